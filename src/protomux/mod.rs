//! Many channels on one encrypted connection.
//!
//! The reference is npm `protomux` 3. A channel has a protocol name and an id; it is open once both
//! sides have opened it, and carries typed messages until either side closes it. Messages may be sent
//! before the other side has opened: they wait there. A channel that the remote opens and we have
//! not goes to the handler of its protocol ([`Protomux::on_open`]), or is rejected.
//!
//! `wire` is the byte format and `table` the rules of opening and closing, both without a socket;
//! `connection` joins them with `outbox` and the channels' inboxes; `tasks` moves the bytes. All that
//! a peer can fill is bounded (`limits`): when an inbox is full, the connection is not read any more.

mod channel;
mod connection;
mod limits;
mod outbox;
mod pending;
mod table;
mod tasks;
mod wire;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

pub use channel::{Channel, Message};

use crate::crypto::PublicKey;
use crate::secret_stream::SecretStream;
use connection::{Connection, Handle, RefuseGuard};

/// Why a channel could not be opened or used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MuxError {
    /// A channel with this protocol and id is open already.
    #[error("this channel is open already")]
    AlreadyOpen,
    /// The remote does not have this channel (now).
    #[error("the remote rejected the channel")]
    Rejected,
    /// The channel or its connection is closed.
    #[error("the channel is closed")]
    Closed,
    /// There are too many channels, or something is too long.
    #[error("{0} exceeds its limit")]
    LimitExceeded(&'static str),
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CloseReason {
    /// We closed it, or dropped its last handle.
    #[error("closed here")]
    Local,
    /// The remote ended it in good order.
    #[error("closed by the remote")]
    Remote,
    /// The remote broke the protocol.
    #[error("protocol violation: {0}")]
    Violation(String),
    /// The stream below failed.
    #[error("connection failed: {0}")]
    Failed(String),
}

/// How a connection with channels starts.
#[derive(Debug, Clone, Default)]
pub struct MuxOptions {
    /// Neither reads nor sends anything before [`Protomux::start`]: all handlers are in place before the
    /// remote's first open is seen, and the remote sees nothing of a connection that is not taken yet.
    pub paused: bool,
}

/// What a channel is opened with.
#[derive(Debug, Clone, Default)]
pub struct ChannelOptions {
    /// The protocol's name, at most 255 bytes.
    pub protocol: String,
    /// Tells channels of one protocol apart, at most 255 bytes; empty for none.
    pub id: Vec<u8>,
    /// What the remote's side gets from [`Channel::opened`], already encoded, at most 64 KiB.
    pub handshake: Vec<u8>,
    /// How many received bytes may wait to be taken; 0 for the default of 1 MiB. A message that is
    /// larger than that still arrives, alone.
    pub inbox: usize,
    /// Other protocol names under which the remote may open this channel.
    pub aliases: Vec<String>,
}

/// A channel that the remote opened and we have not. It is rejected when this is dropped and the
/// channel was not opened in the meantime; at the latest after 5 s.
pub struct RemoteOpen {
    /// The protocol's name.
    pub protocol: String,
    /// The channel's id.
    pub id: Vec<u8>,
    /// What the remote sent along.
    pub handshake: Bytes,
    _guard: RefuseGuard,
}

impl fmt::Debug for RemoteOpen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteOpen").field("protocol", &self.protocol).finish_non_exhaustive()
    }
}

/// Called for every channel that the remote opens and we have not, on the task that reads the
/// connection: it must not block. To accept, it opens the same protocol and id, at once or, keeping
/// the [`RemoteOpen`], soon.
pub type OpenHandler = Arc<dyn Fn(RemoteOpen) + Send + Sync>;

/// A handle to a connection with channels. The connection ends when it is closed, or when all its
/// handles and channels are dropped.
#[derive(Clone, Debug)]
pub struct Protomux {
    handle: Arc<Handle>,
}

impl Protomux {
    /// Takes over an encrypted connection. Must be called within a tokio runtime.
    #[must_use]
    pub fn new(stream: SecretStream, options: MuxOptions) -> Self {
        let connection = Arc::new(Connection::new(
            stream.remote_public_key(),
            *stream.handshake_hash(),
            stream.is_initiator(),
        ));
        if !options.paused {
            connection.started.cancel();
        }
        tasks::spawn(stream, Arc::clone(&connection));
        Self { handle: Arc::new(Handle(connection)) }
    }

    /// Begins to read and to write on a connection that was made paused.
    pub fn start(&self) {
        self.connection().started.cancel();
    }

    /// The remote's authenticated key.
    #[must_use]
    pub fn remote_public_key(&self) -> PublicKey {
        self.connection().remote_public_key
    }

    /// The hash of the connection's handshake: the same on both sides.
    #[must_use]
    pub fn handshake_hash(&self) -> &[u8; 64] {
        &self.connection().handshake_hash
    }

    /// Whether this side began the handshake.
    #[must_use]
    pub fn is_initiator(&self) -> bool {
        self.connection().is_initiator
    }

    /// Whether both are handles to the same connection.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.handle, &other.handle)
    }

    /// Opens a channel on our side. Messages may be sent at once; [`Channel::opened`] tells when the
    /// remote has it too.
    ///
    /// # Errors
    /// `AlreadyOpen`, `LimitExceeded`, or `Closed` when the connection is.
    pub fn open(&self, options: ChannelOptions) -> Result<Channel, MuxError> {
        self.connection().open(&self.handle, options)
    }

    /// Sets what happens when the remote opens a channel of `protocol` that we have not opened.
    /// Without a handler such channels are rejected. A handler that keeps a `Protomux` keeps the
    /// connection open until it is closed; [`remove_handler`](Self::remove_handler) ends that.
    pub fn on_open(&self, protocol: &str, handler: OpenHandler) {
        self.connection().set_handler(protocol, Some(handler));
    }

    /// Forgets the handler of `protocol`.
    pub fn remove_handler(&self, protocol: &str) {
        self.connection().set_handler(protocol, None);
    }

    /// Closes all channels and the connection, after sending what waits to be sent (for at most
    /// 5 s). Returns at once; [`finished`](Self::finished) waits. Closing again does nothing.
    pub fn close(&self) {
        self.connection().end(CloseReason::Local);
    }

    /// Ends the connection at once because the remote broke the protocol of a channel. The reason is
    /// logged and becomes the [`CloseReason::Violation`].
    pub fn close_with(&self, violation: impl Into<String>) {
        self.connection().end(CloseReason::Violation(violation.into()));
    }

    /// Whether the connection is closed, by whomever.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.connection().close_reason().is_some()
    }

    /// Waits until the connection is closed: no channel can be opened or used any more. Cancel safe.
    pub async fn closed(&self) -> CloseReason {
        self.connection().closed().await
    }

    /// Waits until the connection's tasks have ended and the stream below is gone, at most about
    /// 7 s after it was closed. Cancel safe.
    pub async fn finished(&self) {
        self.connection().finished.cancelled().await;
    }

    fn connection(&self) -> &Connection {
        &self.handle.0
    }
}

#[cfg(test)]
mod tests;
