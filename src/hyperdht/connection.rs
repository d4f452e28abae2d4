//! A connection to a peer.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::crypto::PublicKey;
use crate::secret_stream::{SecretStream, Session, StreamOptions};
use crate::udx::{StreamHandle, UdxStream};

/// How packets get to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathKind {
    /// To an address that anybody reaches.
    Direct,
    /// Through a hole that both sides made in their NATs.
    Punched,
    /// Over a third server, which sees no more than how much flows.
    Relayed,
    /// Within the local network.
    Lan,
}

impl PathKind {
    const ALL: [Self; 4] = [Self::Direct, Self::Punched, Self::Relayed, Self::Lan];

    /// The word for it: `direct`, `punched`, `relayed` or `lan`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Punched => "punched",
            Self::Relayed => "relayed",
            Self::Lan => "lan",
        }
    }
}

/// The path of a connection, which may become another.
#[derive(Debug, Clone)]
pub struct Path(Arc<AtomicU8>);

impl Path {
    pub(crate) fn new(kind: PathKind) -> Self {
        Self(Arc::new(AtomicU8::new(kind as u8)))
    }

    pub(crate) fn set(&self, kind: PathKind) {
        self.0.store(kind as u8, Ordering::Relaxed);
    }

    /// How packets get to the peer now.
    #[must_use]
    pub fn kind(&self) -> PathKind {
        let number = usize::from(self.0.load(Ordering::Relaxed));
        PathKind::ALL.get(number).copied().unwrap_or(PathKind::Direct)
    }
}

/// An encrypted connection to a peer whose key is proved.
pub struct Connection {
    /// The messages both ways.
    pub stream: SecretStream,
    /// The UDX stream under it: statistics, and destroying it.
    pub udx: StreamHandle,
    /// Where the peer was reached; a relay's address when it is over one.
    pub remote: SocketAddr,
    /// How packets get to the peer, kept up to date also after this was taken apart.
    pub path: Path,
    /// Whether we connected to it.
    pub initiator: bool,
}

impl Connection {
    /// The peer's key.
    #[must_use]
    pub fn remote_public_key(&self) -> PublicKey {
        self.stream.remote_public_key()
    }

    /// How packets get to the peer now.
    #[must_use]
    pub fn path(&self) -> PathKind {
        self.path.kind()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("peer", &self.stream.remote_public_key())
            .field("remote", &self.remote)
            .field("path", &self.path.kind())
            .field("initiator", &self.initiator)
            .finish_non_exhaustive()
    }
}

/// A finished handshake and a connected stream.
pub(crate) struct Established {
    pub raw: UdxStream,
    pub session: Session,
    pub remote: SocketAddr,
    pub path: Path,
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
            path: self.path,
            initiator,
        }
    }
}
