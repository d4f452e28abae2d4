//! The client's side of a punch: what it asks of the server, round by round (`hyperdht`
//! `lib/connect.js`).

use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::super::connect::HandshakeAnswer;
use super::super::messages::handshake::{HolepunchInfo, NoisePayload, RelayInfo};
use super::super::messages::holepunch::{
    ERROR_ABORTED, ERROR_NONE, ERROR_TRY_LATER, Holepunch, Payload,
};
use super::super::messages::{FirewallKind, Mode, commands};
use super::super::node::Inner;
use super::super::rpc::Call;
use super::super::rpc::io::{Attempts, Reply};
use super::super::rpc::message::NodeId;
use super::plan::is_random;
use super::puncher::Puncher;
use super::seal::Seal;
use super::throttle::Permit;
use crate::secret_stream::Session;
use crate::udx::UdxSocket;

/// How long a server that does not know its NAT yet gets to find out.
const SERVER_PAUSE: Duration = Duration::from_secs(1);
/// How long the packets of the first round get to do the work, before thousands are sent. Besides, npm's
/// server makes one such punch in 20 s: asked for another, it gives up what the first round brought about.
const PATIENCE: Duration = Duration::from_millis(250);
/// How long we wait for other punches of ours to end; the server forgets us after 10 s.
const THROTTLED: Duration = Duration::from_secs(8);
/// How often we look whether they have.
const THROTTLE_PAUSE: Duration = Duration::from_millis(100);

/// Why there is no way through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PunchError {
    /// The nodes in between or the server do not answer, or not as they should.
    NoAnswer,
    /// The server gave up.
    Refused,
    /// The server has too many punches going on.
    TryLater,
    /// The NATs of both sides do not let it happen.
    Impossible,
    /// It was tried for long enough.
    Failed,
}

/// A punch that the client makes.
pub(crate) struct ClientPunch {
    inner: Arc<Inner>,
    target: NodeId,
    /// The server's number for the handshake.
    id: u64,
    /// The node that passed our handshake on.
    via: SocketAddrV4,
    /// The server's socket for the punch as `via` sees it.
    server: SocketAddrV4,
    /// The node over which the first round goes: one that the server trusts.
    server_relay: RelayInfo,
    seal: Seal,
    puncher: Puncher,
    round: AtomicU64,
}

/// The server's answer to one round.
struct Answer {
    payload: Payload,
    /// The server's socket, as the node in between sees it.
    peer: Option<SocketAddrV4>,
}

impl ClientPunch {
    /// Prepares a punch, when the server's answer to the handshake allows one.
    pub(crate) fn new(
        inner: &Arc<Inner>,
        target: NodeId,
        answer: &HandshakeAnswer,
        payload: &NoisePayload,
        session: &Session,
    ) -> Option<Self> {
        let HolepunchInfo { id, relays } = payload.holepunch.as_ref()?;
        let (SocketAddr::V4(via), SocketAddr::V4(server)) = (answer.via, answer.server) else {
            return None;
        };
        let same = relays.iter().find(|relay| relay.relay_address == via);
        let server_relay = *same.or(relays.first())?;
        Some(Self {
            inner: Arc::clone(inner),
            target,
            id: *id,
            via,
            server,
            server_relay,
            seal: Seal::new(session),
            puncher: Puncher::open(inner, true, payload.firewall).ok()?,
            round: AtomicU64::new(0),
        })
    }

    /// Punches. Returns the socket and the server's address that packets get through to.
    pub(crate) async fn run(self) -> Result<(UdxSocket, SocketAddr), PunchError> {
        // A packet may get through at any time, also in the middle of a round.
        tokio::select! {
            biased;
            Some(path) = self.puncher.punched() => return Ok(path),
            outcome = self.rounds() => outcome?,
        }
        self.puncher.punched().await.ok_or(PunchError::Failed)
    }

    /// Tells the server of us and hears of it, until both have started to punch.
    async fn rounds(&self) -> Result<(), PunchError> {
        let (token, peer) = self.probe().await?;
        let mut server = self.server;
        if self.server_relay.relay_address == self.via
            && let Some(peer) = peer.filter(|peer| *peer != server)
        {
            // The server took another socket meanwhile, which its own relay knows of.
            server = peer;
            self.puncher.open_session(server);
        }
        self.puncher.freeze();
        let (local, addresses) = self.puncher.local();
        let permit = if is_random(local, self.puncher.remote().firewall) {
            tokio::time::sleep(PATIENCE).await;
            Some(self.permit().await?)
        } else {
            None
        };
        let request = Payload {
            error: ERROR_NONE,
            firewall: local,
            punching: true,
            addresses,
            token: Some(self.seal.token(*server.ip())),
            remote_token: token,
            ..Payload::default()
        };
        self.exchange(server, self.via, request).await?;
        if !self.puncher.remote().is_punching {
            return Err(PunchError::Refused);
        }
        if self.puncher.punch(permit) { Ok(()) } else { Err(PunchError::Impossible) }
    }

    /// The first round, until both sides know what NATs they have. Gives the token that the server
    /// made for us, and where its relay sees it.
    async fn probe(&self) -> Result<(Option<[u8; 32]>, Option<SocketAddrV4>), PunchError> {
        let mut may_repeat = true;
        loop {
            self.puncher.open_session(self.server);
            let (firewall, addresses) = self.puncher.local();
            let request = Payload {
                error: ERROR_NONE,
                firewall,
                addresses,
                remote_address: Some(self.server),
                ..Payload::default()
            };
            let relay = self.server_relay;
            let Answer { payload, peer } =
                self.exchange(relay.peer_address, relay.relay_address, request).await?;
            if self.puncher.remote().firewall == FirewallKind::Unknown {
                tokio::time::sleep(SERVER_PAUSE).await;
            }
            let is_stable = self.puncher.analyze(false).await;
            if !is_stable && self.puncher.analyze(true).await && may_repeat {
                // From another socket now, which the server has not heard of.
                may_repeat = false;
                continue;
            }
            let remote = self.puncher.remote().firewall;
            let (local, _) = self.puncher.local();
            let is_unknown = remote == FirewallKind::Unknown;
            if may_repeat && (is_unknown || payload.token.is_none()) {
                may_repeat = false;
                continue;
            }
            let both_random = remote == FirewallKind::Random && local == FirewallKind::Random;
            if is_unknown || local == FirewallKind::Unknown || both_random {
                tracing::debug!(?local, ?remote, "there is no way through both NATs");
                self.abort().await;
                return Err(PunchError::Impossible);
            }
            return Ok((payload.token, peer));
        }
    }

    /// Waits until we may punch with random ports.
    async fn permit(&self) -> Result<Permit, PunchError> {
        let end = Instant::now() + THROTTLED;
        loop {
            if let Some(permit) = self.inner.random_punch() {
                return Ok(permit);
            }
            if Instant::now() >= end {
                self.abort().await;
                return Err(PunchError::TryLater);
            }
            tokio::time::sleep(THROTTLE_PAUSE).await;
        }
    }

    /// Tells the server that we give up.
    async fn abort(&self) {
        let relay = self.server_relay;
        let payload = Payload { error: ERROR_ABORTED, ..Payload::default() };
        let (relay, peer) = (relay.relay_address, relay.peer_address);
        // It is told once; if it does not hear that, it notices after a while.
        let _ = self.send(peer, relay, payload, Attempts::ONCE).await;
    }

    /// Sends one message to the server at `peer` over `relay`, and takes its answer.
    async fn exchange(
        &self,
        peer: SocketAddrV4,
        relay: SocketAddrV4,
        payload: Payload,
    ) -> Result<Answer, PunchError> {
        let own_token = payload.token;
        let reply = self.send(peer, relay, payload, Attempts::default()).await?;
        if let Some(to) = reply.to {
            self.puncher.sample(to, reply.from);
        }
        let answer = reply.value.as_deref().and_then(|value| Holepunch::decode(value).ok());
        let answer = answer.filter(|answer| answer.mode == Mode::Reply);
        let answer = answer.ok_or(PunchError::NoAnswer)?;
        let payload = self.seal.decrypt(&answer.payload).ok_or(PunchError::NoAnswer)?;
        match payload.error {
            ERROR_NONE => {}
            ERROR_TRY_LATER => return Err(PunchError::TryLater),
            error => {
                tracing::debug!(error, "the server gave up punching");
                return Err(PunchError::Refused);
            }
        }
        // It sends our token back only if it is where we sent it to.
        let is_echoed = own_token.is_some() && payload.remote_token == own_token;
        let verified = is_echoed.then_some(*peer.ip());
        let addresses = payload.addresses.as_deref().unwrap_or_default();
        self.puncher.update_remote(|remote| {
            remote.update(payload.firewall, addresses, payload.punching, verified);
        });
        Ok(Answer { payload, peer: answer.peer_address })
    }

    async fn send(
        &self,
        peer: SocketAddrV4,
        relay: SocketAddrV4,
        payload: Payload,
        attempts: Attempts,
    ) -> Result<Reply, PunchError> {
        let socket = self.puncher.socket().ok_or(PunchError::NoAnswer)?;
        let round = self.round.fetch_add(1, Ordering::Relaxed);
        let message = Holepunch {
            mode: Mode::FromClient,
            id: self.id,
            payload: self.seal.encrypt(&Payload { round, ..payload }),
            peer_address: Some(peer),
        };
        let value = Some(message.encode().into());
        let call = Call::new(commands::PEER_HOLEPUNCH, Some(self.target), value);
        let reply = self.inner.rpc.request_with(&socket, relay.into(), call, attempts, || {}).await;
        reply.map_err(|_| PunchError::NoAnswer)
    }
}
