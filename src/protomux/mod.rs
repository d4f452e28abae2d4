//! Many channels on one encrypted connection (npm `protomux` 3).
//!
//! Interface first; the bodies follow.

use std::sync::Arc;

use bytes::Bytes;

use crate::crypto::PublicKey;
use crate::secret_stream::SecretStream;

/// Why a channel could not be opened or used.
#[derive(Debug, Clone, thiserror::Error)]
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
    /// Too many channels, or a protocol, id, handshake or message beyond its limit.
    #[error("{0} exceeds its limit")]
    LimitExceeded(&'static str),
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CloseReason {
    /// We closed it.
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

/// Limits of one connection.
#[derive(Debug, Clone)]
pub struct MuxOptions {
    /// Whether reading waits for [`Protomux::start`], so that handlers are in place before the
    /// remote's first open is seen.
    pub paused: bool,
}

/// What a channel is opened with.
#[derive(Debug, Clone, Default)]
pub struct ChannelOptions {
    /// The protocol's name.
    pub protocol: String,
    /// Tells channels of one protocol apart; empty for none.
    pub id: Vec<u8>,
    /// What the remote's side gets from [`Channel::opened`], already encoded.
    pub handshake: Vec<u8>,
    /// How many received bytes may wait to be taken; 0 for the default.
    pub inbox: usize,
    /// Other protocol names under which the remote may open this channel.
    pub aliases: Vec<String>,
}

/// A channel that the remote opened and we have not.
#[derive(Debug)]
pub struct RemoteOpen {
    /// The protocol's name.
    pub protocol: String,
    /// The channel's id.
    pub id: Vec<u8>,
    /// What the remote sent along.
    pub handshake: Bytes,
}

/// Called for channels that the remote opened.
pub type OpenHandler = Arc<dyn Fn(RemoteOpen) + Send + Sync>;

/// A message of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The message's type: its index in the protocol's list.
    pub kind: u32,
    /// The encoded message.
    pub data: Bytes,
}

/// A handle to a connection with channels.
#[derive(Clone, Debug)]
pub struct Protomux {
    _todo: (),
}

#[allow(unused_variables, missing_docs)]
impl Protomux {
    pub fn new(stream: SecretStream, options: MuxOptions) -> Self {
        unimplemented!()
    }
    pub fn start(&self) {
        unimplemented!()
    }
    pub fn remote_public_key(&self) -> PublicKey {
        unimplemented!()
    }
    pub fn handshake_hash(&self) -> &[u8; 64] {
        unimplemented!()
    }
    pub fn is_initiator(&self) -> bool {
        unimplemented!()
    }
    /// Same connection?
    pub fn same(&self, other: &Self) -> bool {
        unimplemented!()
    }
    pub fn open(&self, options: ChannelOptions) -> Result<Channel, MuxError> {
        unimplemented!()
    }
    pub fn on_open(&self, protocol: &str, handler: OpenHandler) {
        unimplemented!()
    }
    pub fn close(&self) {
        unimplemented!()
    }
    /// Ends the connection because the remote broke a protocol above; the reason is logged.
    pub fn close_with(&self, violation: String) {
        unimplemented!()
    }
    pub fn is_closed(&self) -> bool {
        unimplemented!()
    }
    pub async fn closed(&self) -> CloseReason {
        unimplemented!()
    }
}

impl Default for MuxOptions {
    fn default() -> Self {
        Self { paused: false }
    }
}

/// One channel of a connection. Dropping it closes it.
#[derive(Debug)]
pub struct Channel {
    _todo: (),
}

#[allow(unused_variables, missing_docs)]
impl Channel {
    pub async fn opened(&self) -> Result<Bytes, MuxError> {
        unimplemented!()
    }
    pub async fn recv(&self) -> Option<Message> {
        unimplemented!()
    }
    pub async fn send(&self, kind: u32, data: &[u8]) -> Result<(), MuxError> {
        unimplemented!()
    }
    /// As `send`, without copying the message.
    pub async fn send_bytes(&self, kind: u32, data: Bytes) -> Result<(), MuxError> {
        unimplemented!()
    }
    pub fn try_send(&self, kind: u32, data: &[u8]) -> Result<bool, MuxError> {
        unimplemented!()
    }
    pub async fn send_batch(&self, messages: &[(u32, Bytes)]) -> Result<(), MuxError> {
        unimplemented!()
    }
    pub fn close(&self) {
        unimplemented!()
    }
    pub fn is_closed(&self) -> bool {
        unimplemented!()
    }
}
