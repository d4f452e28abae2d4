//! Connecting to a peer by its key (`hyperdht` `lib/connect.js`).
//!
//! Nodes at which the peer announced itself pass our handshake on. It is the same message for each of
//! them, and the first answer counts. Then the streams of both sides need a path: see [`super::route`].

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::net::{SocketAddr, SocketAddrV4};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::announcer::PROMPT;
use super::connection::{Connection, Established, Path, PathKind};
use super::error::ConnectError;
use super::messages::handshake::{Handshake, NoisePayload, RelayThrough, UdxInfo, VERSION};
use super::messages::records::PeerRecord;
use super::messages::{FirewallKind, Mode, commands};
use super::node::Inner;
use super::noise;
use super::options::ConnectOptions;
use super::punch::client::ClientPunch;
use super::relay::attempt::{self, Found, RelayAttempt};
use super::route::{NoRoute, Route};
use super::rpc::Call;
use super::rpc::io::{Attempts, RequestError};
use super::rpc::message::{NodeId, node_id};
use super::rpc::query::{Query, QueryOptions};
use super::rpc::socket::Socket;
use super::rpc::table::distance;
use super::store::target_of;
use crate::crypto::{KeyPair, PublicKey};
use crate::secret_stream::Session;
use crate::sync::lock;
use crate::tasks::Spawn;
use crate::udx::{StreamOptions, UdxStream};

/// Handshakes in flight at once, beside those that are late.
const PARALLEL: usize = 3;
/// Nodes asked to pass a handshake on.
const MAX_ASKED: usize = 20;
/// Known nodes and addresses among them.
const MAX_KNOWN: usize = 8;
/// Pause before a peer is asked again that cannot punch just now.
const TRY_LATER: Duration = Duration::from_secs(2);
/// How often to begin anew when somebody on the way answers with garbage.
const MAX_BAD_REPLIES: usize = 3;

/// The answer to our handshake.
pub(crate) struct HandshakeAnswer {
    /// Whom we asked: a node that passes handshakes on, or the server itself.
    pub via: SocketAddr,
    /// The server's address as `via` sees it.
    pub server: SocketAddr,
    /// Our address as `via` sees it.
    pub client: Option<SocketAddrV4>,
    pub is_relayed: bool,
    /// The socket through which we asked.
    pub socket: Socket,
    noise: Vec<u8>,
}

enum Asked {
    Answered(Box<HandshakeAnswer>),
    /// It does not know the server.
    NoRoute,
    Silent(SocketAddr),
    Failed(ConnectError),
}

enum Failure {
    /// This node answered with something that is not from the server.
    BadReply(SocketAddr),
    /// The peer cannot punch just now, and will have forgotten the handshake.
    TryLater,
    Final(ConnectError),
}

impl From<NoRoute> for Failure {
    fn from(error: NoRoute) -> Self {
        match error {
            NoRoute::TryLater => Self::TryLater,
            NoRoute::Unreachable => Self::Final(ConnectError::Unreachable),
        }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        Self::Final(error)
    }
}

impl From<RequestError> for ConnectError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Timeout => Self::Timeout,
            RequestError::Busy => Self::Busy,
            RequestError::Closed => Self::Closed,
        }
    }
}

pub(crate) struct Connector {
    pub inner: Arc<Inner>,
    pub keys: KeyPair,
    pub remote: PublicKey,
    pub options: ConnectOptions,
}

impl Connector {
    /// Connects without a relay. As connecting over one connects to that, the future is boxed.
    pub(crate) fn connect_directly(
        mut self,
    ) -> Pin<Box<dyn Future<Output = Result<Connection, ConnectError>> + Send>> {
        self.options.relay_through = None;
        Box::pin(self.connect())
    }

    pub(crate) async fn connect(self) -> Result<Connection, ConnectError> {
        let cancel = self.inner.rpc.cancel.clone();
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(ConnectError::Closed),
            outcome = tokio::time::timeout(self.options.timeout, self.run()) => {
                outcome.unwrap_or(Err(ConnectError::Timeout))
            }
        }
    }

    async fn run(&self) -> Result<Connection, ConnectError> {
        let mut excluded = HashSet::new();
        // Among known addresses there may be one that is true, however many are not.
        while excluded.len() < MAX_BAD_REPLIES.max(self.options.addresses.len()) {
            match self.attempt(&excluded).await {
                Ok(connection) => return Ok(connection),
                Err(Failure::Final(error)) => return Err(error),
                // Until it can, or the time for connecting is over.
                Err(Failure::TryLater) => tokio::time::sleep(TRY_LATER).await,
                Err(Failure::BadReply(from)) => {
                    tracing::debug!(%from, "a node answered a handshake with garbage");
                    excluded.insert(from);
                }
            }
        }
        Err(ConnectError::InvalidHandshake)
    }

    async fn attempt(&self, excluded: &HashSet<SocketAddr>) -> Result<Connection, Failure> {
        let inner = &self.inner;
        let raw = inner.udx.create_stream(StreamOptions::default());
        let first_packet = raw.on_first_packet();
        let mut handshake = noise::initiator(&self.keys, &self.remote)
            .map_err(|_| ConnectError::InvalidHandshake)?;
        let public = inner.rpc.remote_address();
        let mut addresses4: Vec<SocketAddrV4> = public.into_iter().collect();
        addresses4.extend(inner.local_addresses());
        let payload = NoisePayload {
            version: VERSION,
            firewall: if public.is_some() { FirewallKind::Open } else { FirewallKind::Unknown },
            addresses4,
            udx: Some(UdxInfo { reusable_socket: false, id: raw.local_id(), seq: 0 }),
            has_secret_stream: true,
            relay_through: self.own_relay(),
            ..NoisePayload::default()
        };
        let own_relay = payload.relay_through;
        let message =
            handshake.write(&payload.encode()).map_err(|_| ConnectError::InvalidHandshake)?;
        let answer = self.exchange(message, excluded).await?;

        let bad = || Failure::BadReply(answer.via);
        let payload = handshake.read(&answer.noise).map_err(|_| bad())?;
        let payload = NoisePayload::decode(&payload).map_err(|_| bad())?;
        if payload.version != VERSION {
            return Err(ConnectError::Incompatible("it speaks another version").into());
        }
        if payload.error != 0 {
            return Err(ConnectError::Incompatible("it ended the handshake").into());
        }
        let Some(udx) = payload.udx else {
            return Err(ConnectError::Incompatible("it names no stream").into());
        };
        let session = handshake.finish().map_err(|_| ConnectError::InvalidHandshake)?;

        let is_open = public.is_some();
        let punch = if is_open || !answer.is_relayed || payload.firewall == FirewallKind::Open {
            None
        } else {
            ClientPunch::new(inner, target_of(&self.remote), &answer, &payload, &session)
        };
        // With an open side there is a path.
        let may_relay = answer.is_relayed && !is_open && payload.firewall != FirewallKind::Open;
        let of_server = payload.relay_through.as_ref();
        let relay = RelayAttempt::new(inner, of_server, own_relay.as_ref(), false);
        let relay = relay.filter(|_| may_relay && !self.options.no_relay);
        let (answer, payload) = (Arc::new(answer), Arc::new(payload));
        let route = Route {
            inner: Arc::clone(inner),
            answer: Arc::clone(&answer),
            payload: Arc::clone(&payload),
            is_open,
        };
        let first_packet =
            attempt::not_from(relay.as_ref().map(RelayAttempt::address), first_packet);
        let finding = route.find(punch, first_packet);
        let connection = match relay {
            Some(relay) => self.race(raw, session, udx.id, relay, finding).await?,
            None => self.take(raw, session, udx.id, finding.await?),
        };
        self.remember(&answer, &payload);
        Ok(connection)
    }

    /// The relay that we name, if the options have one.
    fn own_relay(&self) -> Option<RelayThrough> {
        let relays = &self.options.relay_through;
        let chosen = relays.as_ref().and_then(|choose| choose(None));
        chosen.filter(|relay| *relay != self.remote).map(attempt::offer)
    }

    fn take(&self, raw: UdxStream, session: Session, remote_id: u32, found: Found) -> Connection {
        raw.connect(&found.socket, remote_id, found.address);
        let path = Path::new(found.kind);
        self.inner.adopt(Established { raw, session, remote: found.address, path })
    }

    /// Connects over a relay or a direct path, whichever is there first. From the relay, the connection
    /// moves on to the direct path when that is found.
    async fn race(
        &self,
        raw: UdxStream,
        session: Session,
        remote_id: u32,
        relay: RelayAttempt,
        finding: impl Future<Output = Result<Found, NoRoute>> + Send + 'static,
    ) -> Result<Connection, Failure> {
        let mut finding = Box::pin(finding);
        let mut pairing = Box::pin(relay.pair(raw.local_id()));
        let mut no_route = None;
        let mut is_relaying = true;
        loop {
            tokio::select! {
                biased;
                found = &mut finding, if no_route.is_none() => match found {
                    Ok(found) => return Ok(self.take(raw, session, remote_id, found)),
                    Err(error) => no_route = Some(error),
                },
                paired = &mut pairing, if is_relaying => {
                    is_relaying = false;
                    let Ok(paired) = paired.inspect_err(|error| tracing::debug!(%error, "no relay"))
                    else {
                        continue;
                    };
                    let Some(remote) = attempt::connect(&raw, &paired) else { continue };
                    let (stream, path) = (raw.handle(), Path::new(PathKind::Relayed));
                    let is_finding = no_route.is_none();
                    let finding = async move {
                        if is_finding { finding.await.ok() } else { None }
                    };
                    let upgrading =
                        attempt::upgrade(stream, remote_id, path.clone(), paired, finding);
                    self.inner.rpc.spawn(upgrading);
                    return Ok(self.inner.adopt(Established { raw, session, remote, path }));
                }
                else => return Err(no_route.unwrap_or(NoRoute::Unreachable).into()),
            }
        }
    }

    /// Keeps the nodes that reach the peer for the next time.
    fn remember(&self, answer: &HandshakeAnswer, payload: &NoisePayload) {
        let mut addresses: Vec<SocketAddr> = vec![answer.via];
        addresses.extend(payload.relay_addresses.iter().copied().map(SocketAddr::V4));
        addresses.dedup();
        addresses.truncate(PARALLEL);
        lock(&self.inner.routes).insert(target_of(&self.remote), addresses);
    }

    /// Sends the handshake over every way that turns up until one answers. Whoever wants may say that the
    /// peer is known to it, and pass nothing on: the peer chose the closest that do, so those come first.
    async fn exchange(
        &self,
        message: Vec<u8>,
        excluded: &HashSet<SocketAddr>,
    ) -> Result<HandshakeAnswer, ConnectError> {
        let inner = &self.inner;
        let target = target_of(&self.remote);
        let mut ways: VecDeque<SocketAddr> = self.options.addresses.iter().copied().collect();
        let direct_only = self.options.direct_only;
        if !direct_only {
            ways.extend(lock(&inner.store).peer(&target).map(|peer| peer.relay));
            ways.extend(lock(&inner.routes).get(&target).into_iter().flatten());
        }
        ways.truncate(MAX_KNOWN);
        let mut found: BTreeMap<NodeId, SocketAddr> = BTreeMap::new();
        let find = Call::new(commands::FIND_PEER, None, None);
        let options = QueryOptions { retries: 3, ..QueryOptions::default() };
        let mut query =
            (!direct_only).then(|| Query::new(Arc::clone(&inner.rpc), target, find, options));
        let parallel = if direct_only { MAX_KNOWN } else { PARALLEL };
        let mut asked: HashSet<SocketAddr> = excluded.clone();
        let mut silent = Vec::new();
        let mut requests: JoinSet<Asked> = JoinSet::new();
        let mut is_known = false;
        // One that is silent must not hold up the others.
        let mut late = 0;
        let mut prompt = Instant::now();

        loop {
            while requests.len() < parallel + late && asked.len() < excluded.len() + MAX_ASKED {
                let next = ways.pop_front().or_else(|| found.pop_first().map(|(_, way)| way));
                let Some(way) = next else { break };
                if asked.insert(way) {
                    prompt = Instant::now() + PROMPT;
                    requests.spawn_task(ask(Arc::clone(inner), target, message.clone(), way));
                }
            }
            if requests.is_empty() && query.is_none() {
                break;
            }
            tokio::select! {
                reply = next_of(&mut query), if query.is_some() => match reply {
                    None => query = None,
                    Some(reply) => {
                        let record = reply.value.as_deref().and_then(|value| PeerRecord::decode(value).ok());
                        if record.is_some_and(|record| record.public_key == self.remote) {
                            is_known = true;
                            if let SocketAddr::V4(from) = reply.from {
                                found.insert(distance(&node_id(from), &target), reply.from);
                            }
                        }
                    }
                },
                Some(outcome) = requests.join_next(), if !requests.is_empty() => {
                    late = late.min(requests.len());
                    match outcome {
                        Ok(Asked::Answered(answer)) if direct_only && answer.is_relayed => {}
                        Ok(Asked::Answered(answer)) => return Ok(*answer),
                        Ok(Asked::Failed(error)) => return Err(error),
                        Ok(Asked::Silent(way)) => silent.push(way),
                        Ok(Asked::NoRoute) | Err(_) => {}
                    }
                }
                () = tokio::time::sleep_until(prompt), if late < requests.len() => late = requests.len(),
            }
        }
        if is_known || self.any_alive(silent).await {
            Err(ConnectError::Unanswered)
        } else {
            Err(ConnectError::PeerNotFound)
        }
    }

    /// Whether one of the given addresses that did not answer a handshake answers a ping.
    async fn any_alive(&self, addresses: Vec<SocketAddr>) -> bool {
        let mut pings = JoinSet::new();
        for address in addresses {
            let rpc = Arc::clone(&self.inner.rpc);
            pings.spawn_task(async move {
                let ping = Call::internal(super::rpc::serve::PING, None);
                rpc.request(address, ping, Attempts::ONCE).await.is_ok()
            });
        }
        while let Some(outcome) = pings.join_next().await {
            if outcome.unwrap_or(false) {
                return true;
            }
        }
        false
    }
}

async fn next_of(query: &mut Option<Query>) -> Option<Arc<super::rpc::io::Reply>> {
    match query {
        Some(query) => query.next().await,
        None => None,
    }
}

/// Sends the handshake to one node, or to the server itself.
async fn ask(inner: Arc<Inner>, target: NodeId, noise: Vec<u8>, way: SocketAddr) -> Asked {
    let value = Some(Bytes::from(Handshake::from_client(noise).encode()));
    let call = Call::new(commands::PEER_HANDSHAKE, Some(target), value);
    let socket = inner.rpc.socket();
    let reply = match inner.rpc.request_with(&socket, way, call, Attempts::default(), || {}).await {
        Ok(reply) => reply,
        Err(RequestError::Timeout) => return Asked::Silent(way),
        Err(error) => return Asked::Failed(error.into()),
    };
    let Some(handshake) = reply.value.as_deref().and_then(|value| Handshake::decode(value).ok())
    else {
        return Asked::NoRoute;
    };
    if handshake.mode != Mode::Reply || handshake.noise.is_empty() {
        return Asked::NoRoute;
    }
    let server = handshake.peer_address.map_or(way, SocketAddr::V4);
    Asked::Answered(Box::new(HandshakeAnswer {
        via: way,
        server,
        client: reply.to,
        is_relayed: handshake.peer_address.is_some(),
        socket,
        noise: handshake.noise,
    }))
}
