//! Peer-to-peer book sharing for self-hosted e-book servers, on the Hypercore stack's own wire.

pub mod bindings;
pub mod catalog;
pub mod crypto;
pub mod discovery;
pub mod encoding;
pub mod error;
pub mod events;
pub mod hypercore;
pub mod hyperdht;
pub mod identity;
pub mod node;
pub mod peers;
pub mod protomux;
mod rate_limit;
pub mod secret_stream;
pub mod store;
mod sync;
mod text;
mod time;
pub mod transfer;
pub mod udx;
