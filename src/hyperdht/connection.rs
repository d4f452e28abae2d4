//! A connection to a peer.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::crypto::PublicKey;
use crate::secret_stream::{SecretStream, Session, StreamOptions};
use crate::udx::{StreamHandle, UdxStream};

/// An encrypted connection to a peer whose key is proved.
pub struct Connection {
    /// The messages both ways.
    pub stream: SecretStream,
    /// The UDX stream under it: statistics, and destroying it.
    pub udx: StreamHandle,
    /// Where the peer is.
    pub remote: SocketAddr,
    /// Whether we connected to it.
    pub initiator: bool,
}

impl Connection {
    /// The peer's key.
    #[must_use]
    pub fn remote_public_key(&self) -> PublicKey {
        self.stream.remote_public_key()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("peer", &self.stream.remote_public_key())
            .field("remote", &self.remote)
            .field("initiator", &self.initiator)
            .finish_non_exhaustive()
    }
}

/// A finished handshake and a connected stream.
pub(crate) struct Established {
    pub raw: UdxStream,
    pub session: Session,
    pub remote: SocketAddr,
}

impl Established {
    pub(crate) fn into_connection(self, keep_alive: Duration) -> Connection {
        let options = StreamOptions { keep_alive: Some(keep_alive), ..Default::default() };
        let udx = self.raw.handle();
        let initiator = self.session.is_initiator;
        Connection {
            stream: SecretStream::with_options(self.raw, self.session, options),
            udx,
            remote: self.remote,
            initiator,
        }
    }
}
