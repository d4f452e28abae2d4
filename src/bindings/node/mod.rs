//! The Node addon: one file a JavaScript class, and the few conversions that they share.
//!
//! - `call.rs` turns a Rust future into a promise that an `AbortSignal` can end and whose failure is
//!   an `Error` with a stable `code`.
//! - Values cross as JSON: made on a Rust thread, parsed by the engine, which is faster than building
//!   objects property by property, and one set of serde names holds for every language.
//! - `types.d.ts` describes those values; the build puts it at the top of `index.d.ts`.

// The traits that convert values to and from JavaScript are unsafe to implement.
#![allow(unsafe_code)]

mod argument;
mod backup;
mod book;
mod call;
mod catalog_feed;
mod error;
mod events;
mod identity;
mod json;
mod life;
mod open;
mod p2p_node;
mod peer_manager;
mod signal;
mod stream;
mod testnet;
mod threads;
mod transfers;
