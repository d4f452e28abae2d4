//! From an admitted handshake to a connection: the client's stream is connected over whatever brings its
//! first packet, or over a relay, and handed out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::connection::{Established, Path, PathKind};
use super::punch::server::ServerPunch;
use super::relay::attempt::{self, RelayAttempt};
use super::relay::session::Paired;
use super::server::ServerShared;
use crate::secret_stream::Session;
use crate::udx::{UdxSocket, UdxStream};

/// How long a client may take to send its first packet when there is nothing to punch.
const FIRST_PACKET: Duration = Duration::from_secs(10);
/// Admitted clients that have not sent a packet yet.
pub(super) const MAX_HALF_OPEN: usize = 256;

impl ServerShared {
    /// Connects an admitted client's stream over whatever brings its first packet, or over a relay.
    pub(super) fn open(
        self: &Arc<Self>,
        raw: UdxStream,
        session: Session,
        remote_id: u32,
        punch: Option<Arc<ServerPunch>>,
        relay: Option<RelayAttempt>,
    ) {
        let half_open = HalfOpen::new(self);
        let is_punching = punch.is_some();
        let first_packet =
            attempt::not_from(relay.as_ref().map(RelayAttempt::address), raw.on_first_packet());
        if let Some(punch) = &punch {
            self.punches.insert(punch);
        }
        let stream_id = raw.local_id();
        self.inner.rpc.spawn(async move {
            let mut given_up = Box::pin(async move {
                match punch {
                    Some(punch) => punch.ended().await,
                    None => tokio::time::sleep(FIRST_PACKET).await,
                }
            });
            let mut is_relaying = relay.is_some();
            let mut pairing = Box::pin(async move {
                match relay {
                    Some(relay) => relay.pair(stream_id).await,
                    None => std::future::pending().await,
                }
            });
            tokio::pin!(first_packet);
            let mut is_waiting = true;
            while is_waiting || is_relaying {
                tokio::select! {
                    biased;
                    (socket, client) = &mut first_packet => {
                        let kind = if is_punching { PathKind::Punched } else { PathKind::Direct };
                        let path = Path::new(attempt::kind_of(kind, client));
                        return half_open.connect(raw, session, &socket, remote_id, client, path);
                    }
                    paired = &mut pairing, if is_relaying => {
                        is_relaying = false;
                        let Ok(paired) =
                            paired.inspect_err(|error| tracing::debug!(%error, "no relay"))
                        else {
                            continue;
                        };
                        let path = Path::new(PathKind::Relayed);
                        let stream = raw.handle();
                        if !half_open.connect_relayed(raw, session, &paired, path.clone()) {
                            return;
                        }
                        // The punch goes on meanwhile; the client's packets tell when it succeeded.
                        let punching = async move {
                            if is_waiting {
                                given_up.await;
                            }
                            None
                        };
                        return attempt::upgrade(stream, remote_id, path, paired, punching).await;
                    }
                    () = &mut given_up, if is_waiting => is_waiting = false,
                }
            }
            tracing::debug!("an admitted client never sent a packet");
        });
    }
}

/// Counts an admitted client until its stream is handed out or given up.
pub(super) struct HalfOpen {
    server: Arc<ServerShared>,
}

impl HalfOpen {
    pub(super) fn new(server: &Arc<ServerShared>) -> Self {
        server.half_open.fetch_add(1, Ordering::Relaxed);
        Self { server: Arc::clone(server) }
    }

    pub(super) fn connect(
        self,
        raw: UdxStream,
        session: Session,
        socket: &UdxSocket,
        remote_id: u32,
        remote: SocketAddr,
        path: Path,
    ) {
        raw.connect(socket, remote_id, remote);
        self.hand_out(Established { raw, session, remote, path });
    }

    /// Connects over a relay; false when that is gone already.
    fn connect_relayed(
        self,
        raw: UdxStream,
        session: Session,
        paired: &Paired,
        path: Path,
    ) -> bool {
        let Some(remote) = attempt::connect(&raw, paired) else { return false };
        self.hand_out(Established { raw, session, remote, path });
        true
    }

    fn hand_out(self, established: Established) {
        let connection = self.server.inner.adopt(established);
        if self.server.accepted.try_send(connection).is_err() {
            tracing::warn!("a connection was dropped because nobody accepts connections");
        }
    }
}

impl Drop for HalfOpen {
    fn drop(&mut self) {
        self.server.half_open.fetch_sub(1, Ordering::Relaxed);
    }
}
