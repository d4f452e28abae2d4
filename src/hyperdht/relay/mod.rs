//! Relays that carry a connection when no direct path is found (npm `blind-relay`, and what npm
//! `hyperdht` makes of it).
//!
//! Both sides of a connection connect to a relay and tell it the same token, and the ids of their streams.
//! The relay answers with an id of its own to each, to which the stream's packets go: it passes them on to
//! the other side. They are encrypted from end to end; the relay learns that two keys talk, and how much.
//!
//! [`session`] is a client's side of a connection to a relay, [`attempt`] a connection that comes about
//! over one and moves to a direct path later, [`server`] the relay.

pub(super) mod attempt;
pub(super) mod server;
pub(super) mod session;
mod wire;
