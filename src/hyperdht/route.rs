//! Finding a path for the stream of a connection once the handshake is done
//! (`hyperdht` `lib/connect.js` `holepunch`).
//!
//! - The server answered us directly: that is the path.
//! - The server is reachable by anybody: its public address.
//! - We are: the server sends to us.
//! - Otherwise both are behind something. On the same network, the server's local address answers a
//!   ping. Otherwise a hole is punched ([`super::punch`]). Whatever answers first is the path, and so
//!   is a packet of the server's that arrives before.
//! - A server that offers no punch may still be without a NAT: the address that the passing node saw
//!   answers a ping then.

use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::addresses::{is_bogon, is_reserved, match_address};
use super::connect::HandshakeAnswer;
use super::connection::PathKind;
use super::messages::FirewallKind;
use super::messages::handshake::NoisePayload;
use super::node::Inner;
use super::punch::client::{ClientPunch, PunchError};
use super::relay::attempt::{Found, kind_of};
use super::rpc::Call;
use super::rpc::io::{Attempts, RequestError};
use super::rpc::serve::PING;
use super::rpc::socket::Socket;
use crate::tasks::Spawn;
use crate::udx::UdxSocket;

/// How long to look for a path.
const TIMEOUT: Duration = Duration::from_secs(8);

/// How long a server that we told to send to us has to do so, before we try ourselves.
const HEAD_START: Duration = Duration::from_secs(1);

/// How many addresses of a server are tried.
const MAX_CANDIDATES: usize = 6;

/// Why there is no path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoRoute {
    /// None was found.
    Unreachable,
    /// The server has too many punches going on.
    TryLater,
}

/// What is known of both sides after the handshake.
pub(crate) struct Route {
    pub inner: Arc<Inner>,
    pub answer: Arc<HandshakeAnswer>,
    pub payload: Arc<NoisePayload>,
    /// Whether anybody reaches us.
    pub is_open: bool,
}

impl Route {
    /// Finds a path to the server's stream. `first_packet` is where a packet came from that shows one.
    pub(crate) async fn find(
        self,
        punch: Option<ClientPunch>,
        first_packet: impl Future<Output = (UdxSocket, SocketAddr)>,
    ) -> Result<Found, NoRoute> {
        let answer = &self.answer;
        if !answer.is_relayed {
            let (socket, address) = (answer.socket.udx.clone(), answer.via);
            return Ok(Found { socket, address, kind: kind_of(PathKind::Direct, address) });
        }
        let is_punched = punch.is_some();
        let (socket, address) = self.search(punch, first_packet).await?;
        let kind = if is_punched { PathKind::Punched } else { PathKind::Direct };
        Ok(Found { socket, address, kind: kind_of(kind, address) })
    }

    async fn search(
        &self,
        punch: Option<ClientPunch>,
        first_packet: impl Future<Output = (UdxSocket, SocketAddr)>,
    ) -> Result<(UdxSocket, SocketAddr), NoRoute> {
        let Self { inner, answer, payload, is_open } = self;
        let is_open = *is_open;
        let candidates = if payload.firewall == FirewallKind::Open {
            vec![public_address(payload, answer.server)]
        } else if is_open {
            Vec::new()
        } else {
            candidates(&inner.local_addresses(), answer, payload, punch.is_none())
        };
        let mut is_waiting = is_open || !candidates.is_empty();
        let socket = inner.rpc.socket();
        let pong = async {
            if is_open {
                // The server sends to us at once, maybe from another of its sockets than the one that
                // would answer a ping: that socket is the one to talk to.
                tokio::time::sleep(HEAD_START).await;
            }
            first_pong(inner, &socket, candidates).await
        };
        let mut is_punching = punch.is_some();
        let punched = async {
            match punch {
                Some(punch) => punch.run().await,
                None => Err(PunchError::Impossible),
            }
        };
        let waited = tokio::time::sleep(TIMEOUT);
        tokio::pin!(pong, punched, first_packet, waited);
        let mut failure = NoRoute::Unreachable;
        while is_punching || is_waiting {
            tokio::select! {
                biased;
                path = &mut first_packet => return Ok(path),
                Some(address) = &mut pong, if is_waiting => return Ok((socket.udx.clone(), address)),
                outcome = &mut punched, if is_punching => match outcome {
                    Ok(path) => return Ok(path),
                    Err(error) => {
                        tracing::debug!(?error, "no hole was punched");
                        is_punching = false;
                        if error == PunchError::TryLater {
                            failure = NoRoute::TryLater;
                        }
                    }
                },
                () = &mut waited, if is_waiting => is_waiting = false,
            }
        }
        Err(failure)
    }
}

/// Where a server is that anybody reaches. On a private network that is the host that the passing node
/// saw, at the port that the server names: it may have announced itself through another socket.
fn public_address(payload: &NoisePayload, seen: SocketAddr) -> SocketAddr {
    let mut addresses = payload.addresses4.iter().filter(|address| address.port() != 0);
    let public = addresses.clone().find(|address| !is_bogon(*address.ip()));
    let public =
        public.or_else(|| addresses.find(|address| IpAddr::V4(*address.ip()) == seen.ip()));
    public.map_or(seen, |address| SocketAddr::V4(*address))
}

/// Where a server may be that not everybody reaches, likeliest first; `with_seen` also at the address
/// that the passing node saw.
fn candidates(
    ours: &[SocketAddrV4],
    answer: &HandshakeAnswer,
    payload: &NoisePayload,
    with_seen: bool,
) -> Vec<SocketAddr> {
    let is_same_network =
        answer.client.map(|client| IpAddr::V4(*client.ip())) == Some(answer.server.ip());
    let mut addresses: Vec<SocketAddr> = Vec::new();
    if is_same_network {
        let usable = payload.addresses4.iter().filter(|address| !is_reserved(*address.ip()));
        let usable: Vec<SocketAddrV4> = usable.copied().collect();
        addresses.extend(match_address(ours, &usable).map(SocketAddr::V4));
        addresses.extend(usable.into_iter().map(SocketAddr::V4));
    }
    if with_seen {
        addresses.insert(addresses.len().min(2), answer.server);
    }
    let mut seen = std::collections::HashSet::new();
    addresses.retain(|address| address.port() != 0 && seen.insert(*address));
    addresses.truncate(MAX_CANDIDATES);
    addresses
}

/// The first of `addresses` to answer a ping.
async fn first_pong(
    inner: &Arc<Inner>,
    socket: &Socket,
    addresses: Vec<SocketAddr>,
) -> Option<SocketAddr> {
    let mut pings: JoinSet<Result<SocketAddr, RequestError>> = JoinSet::new();
    for address in addresses {
        let (inner, socket) = (Arc::clone(inner), socket.clone());
        pings.spawn_task(async move {
            let ping = Call::internal(PING, None);
            let attempts = Attempts::default();
            inner.rpc.request_with(&socket, address, ping, attempts, || {}).await.map(|_| address)
        });
    }
    if pings.is_empty() {
        // The server comes to us: only a packet of its can end the wait.
        return std::future::pending().await;
    }
    while let Some(outcome) = pings.join_next().await {
        if let Ok(Ok(address)) = outcome {
            return Some(address);
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(addresses: &[&str]) -> NoisePayload {
        let addresses4 = addresses.iter().map(|text| text.parse().unwrap()).collect();
        NoisePayload { addresses4, ..NoisePayload::default() }
    }

    #[test]
    fn a_public_address_beats_what_a_node_saw() {
        let seen: SocketAddr = "5.6.7.8:9".parse().unwrap();
        let with_public = payload(&["192.168.0.1:1", "8.8.8.8:2"]);
        assert_eq!(public_address(&with_public, seen), "8.8.8.8:2".parse().unwrap());
        assert_eq!(public_address(&payload(&["192.168.0.1:1"]), seen), seen);
    }

    #[test]
    fn a_private_server_is_at_the_port_that_it_names() {
        let seen: SocketAddr = "192.168.0.1:5000".parse().unwrap();
        let named = payload(&["10.0.0.1:1", "192.168.0.1:49737"]);
        assert_eq!(public_address(&named, seen), "192.168.0.1:49737".parse().unwrap());
    }
}
