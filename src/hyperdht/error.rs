//! What can go wrong in the DHT.

pub use super::rpc::io::RequestError;

/// Why no connection came about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// No node knows the peer: it is offline, or not announced yet.
    #[error("no node of the network knows this peer; it is offline")]
    PeerNotFound,
    /// Nodes know the peer and passed our handshake on, and it did not answer. That is how a peer
    /// refuses a key; one that went away without saying so looks the same.
    #[error("the peer is known but did not answer: it refused this key, or has just gone offline")]
    Unanswered,
    /// The peer answered and admitted us, but no packet gets through to it or back.
    #[error("the peer answered but no direct path to it was found")]
    Unreachable,
    /// The peer answered with an error or in another version of the protocol.
    #[error("the peer answered the handshake with an error: {0}")]
    Incompatible(&'static str),
    /// The time given for connecting is over.
    #[error("connecting took too long")]
    Timeout,
    /// A handshake message that does not decrypt or decode.
    #[error("the peer's handshake is invalid")]
    InvalidHandshake,
    /// Too much is going on at once.
    #[error("too many requests are in flight")]
    Busy,
    /// The node was closed.
    #[error("the DHT node is closed")]
    Closed,
}

/// Why a server could not be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Another server of this node listens with the same key pair.
    #[error("a server listens with this key pair already")]
    AlreadyListening,
    /// The node was closed.
    #[error("the DHT node is closed")]
    Closed,
}

/// Why an announcement reached nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnnounceError {
    /// No node accepted it.
    #[error("no node of the network accepted the announcement")]
    NoNodes,
    /// The node was closed.
    #[error("the DHT node is closed")]
    Closed,
}
