//! A channel that the remote has opened, as it waits for us to open it too.

use bytes::Bytes;
use tokio::time::Instant;

use super::Message;
use super::limits::PENDING_TIMEOUT;

/// A channel's name: protocol and id.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Name {
    pub(super) protocol: String,
    pub(super) id: Vec<u8>,
}

/// A channel that the remote opened, as it waits for us.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) name: Name,
    /// Tells it from a later one with the same id.
    pub(super) serial: u64,
    /// When it is given up.
    pub(super) deadline: Instant,
    pub(super) handshake: Bytes,
    /// What the remote has sent on it, in order.
    pub(super) messages: Vec<Message>,
}

impl Pending {
    pub(super) fn new(name: Name, serial: u64, handshake: Bytes, now: Instant) -> Self {
        let deadline = now + PENDING_TIMEOUT;
        Self { name, serial, deadline, handshake, messages: Vec::new() }
    }

    /// What its messages count together.
    pub(super) fn cost(&self) -> usize {
        self.messages.iter().map(Message::cost).sum()
    }
}
