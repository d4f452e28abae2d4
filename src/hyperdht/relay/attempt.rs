//! A connection that comes about over a relay, and moves to a direct path once there is one (npm
//! `hyperdht` `lib/connect.js` and `lib/server.js`, `relayConnection`; `lib/relay-connection.js`).

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::super::connection::{Path, PathKind};
use super::super::messages::handshake::RelayThrough;
use super::super::node::Inner;
use super::session::{Paired, RelayError, pair};
use crate::crypto::{PublicKey, random};
use crate::udx::{StreamHandle, UdxSocket, UdxStream};

/// How long the relay is kept after packets go the direct way: the other side may not know that they do.
const LINGER: Duration = Duration::from_secs(10);

/// A way to the other side's stream that was found.
pub(crate) struct Found {
    pub socket: UdxSocket,
    pub address: SocketAddr,
    pub kind: PathKind,
}

/// What a side with this relay tells the other of it.
pub(crate) fn offer(relay: PublicKey) -> RelayThrough {
    RelayThrough { public_key: *relay.as_bytes(), token: random() }
}

/// The relay over which a connection may come about.
pub(crate) struct RelayAttempt {
    inner: Arc<Inner>,
    relay: PublicKey,
    token: [u8; 32],
    is_initiator: bool,
    /// Where the relay is, once it is known: a packet from there is no direct path.
    address: Arc<OnceLock<SocketAddr>>,
}

impl RelayAttempt {
    /// The server's relay is taken if it named one, else the client's. Whoever named it is the initiator.
    pub(crate) fn new(
        inner: &Arc<Inner>,
        of_server: Option<&RelayThrough>,
        of_client: Option<&RelayThrough>,
        is_server: bool,
    ) -> Option<Self> {
        let chosen = of_server.or(of_client)?;
        Some(Self {
            inner: Arc::clone(inner),
            relay: PublicKey::from_bytes(chosen.public_key),
            token: chosen.token,
            is_initiator: of_server.is_some() == is_server,
            address: Arc::default(),
        })
    }

    /// Where the relay is, once it is known.
    pub(crate) fn address(&self) -> Arc<OnceLock<SocketAddr>> {
        Arc::clone(&self.address)
    }

    /// Connects to the relay and waits there for the other side's stream.
    pub(crate) async fn pair(self, stream_id: u32) -> Result<Paired, RelayError> {
        let Self { inner, relay, token, is_initiator, address } = self;
        pair(inner, relay, is_initiator, token, stream_id, address).await
    }
}

/// Connects `raw` over a relay. Returns where that is; nothing when the relay is gone already.
pub(crate) fn connect(raw: &UdxStream, paired: &Paired) -> Option<SocketAddr> {
    let (socket, address) = paired.path()?;
    raw.connect(&socket, paired.remote_id, address);
    Some(address)
}

/// Waits for a path that is not the relay's.
pub(crate) async fn not_from(
    relay: Option<Arc<OnceLock<SocketAddr>>>,
    first_packet: impl Future<Output = Option<(UdxSocket, SocketAddr)>>,
) -> (UdxSocket, SocketAddr) {
    let relay = relay.as_deref();
    match first_packet.await {
        Some((socket, from)) if relay.and_then(OnceLock::get) != Some(&from) => (socket, from),
        // Connected another way meanwhile, or soon.
        _ => std::future::pending().await,
    }
}

/// Moves a stream from its relay to a direct path: the first that `finding` finds, or over which the other
/// side sends. `remote_id` is the other side's own stream. Ends with the stream.
pub(crate) async fn upgrade(
    stream: StreamHandle,
    remote_id: u32,
    path: Path,
    paired: Paired,
    finding: impl Future<Output = Option<Found>>,
) {
    let finding = async {
        match finding.await {
            Some(found) => found,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(finding);
    let mut is_finding = true;
    let mut next = None;
    loop {
        let found = tokio::select! {
            _ = stream.closed() => return,
            Some((socket, address)) = stream.other_path() => {
                Found { socket, address, kind: PathKind::Punched }
            }
            () = paired.closed(), if next.is_none() => {
                tracing::debug!("a relay does not pass anything on any more");
                return stream.destroy();
            }
            found = &mut finding, if is_finding => {
                is_finding = false;
                found
            }
            is_moved = stream.moved(), if next.is_some() => {
                if !is_moved {
                    return;
                }
                break;
            }
        };
        tracing::debug!(address = %found.address, "a relayed connection goes another way from now on");
        if !stream.change_remote(&found.socket, remote_id, found.address) {
            return;
        }
        next = Some(kind_of(found.kind, found.address));
    }
    if let Some(kind) = next {
        path.set(kind);
    }
    tokio::select! {
        _ = stream.closed() => {}
        () = paired.closed() => {}
        () = tokio::time::sleep(LINGER) => {}
    }
}

/// `kind`, unless the address is one of the local network.
pub(crate) fn kind_of(kind: PathKind, address: SocketAddr) -> PathKind {
    match address {
        SocketAddr::V4(v4) if super::super::addresses::is_private(*v4.ip()) => PathKind::Lan,
        _ => kind,
    }
}
