//! Peer-to-peer book sharing for self-hosted e-book servers, on the Hypercore stack's own wire.
//!
//! Two servers find each other by key through a DHT, admit each other, see each other's catalog live and
//! send each other books, encrypted, verified and resumable, with no server in between. Everything is
//! opened by [`node::Node`]; the layers under it can be used by themselves. A layer imports only layers
//! below it:
//!
//! | layer | what it is |
//! |---|---|
//! | `bindings` | the Node addon; converts and does nothing else |
//! | [`node`] | opens all of it over a data directory, and closes it |
//! | [`discovery`] | ways into the DHT, the topic, changes of the network |
//! | [`peers`] | who is admitted, who knocks, who is online; one connection a pair |
//! | [`catalog`] | the own feed and those of peers, replayed, searched |
//! | [`transfer`] | one book on its way: asked for, granted, resumed, landed |
//! | [`events`], [`identity`] | what happened, numbered; the key pair and its forms |
//! | [`store`] | the SQLite database |
//! | [`hypercore`] | logs that verify: merkle tree, proofs, replication |
//! | [`hyperdht`] | finding by key: RPC, queries, announcing, handshakes |
//! | [`protomux`] | channels on one connection |
//! | [`secret_stream`] | the Noise handshake and the encrypted stream |
//! | [`udx`] | reliable streams over UDP |
//! | [`encoding`], [`crypto`], [`error`] | compact encoding; keys and hashes; the error of the public API |
//!
//! With the feature `node` (on by default) the library is also a Node addon.

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
mod tasks;
mod text;
mod time;
pub mod transfer;
pub mod udx;
