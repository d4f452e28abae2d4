//! Listening under a key pair (`hyperdht` `lib/server.js`).
//!
//! A client's handshake is one Noise IK message, passed on by a node or sent directly. The firewall
//! sees the client's proved key before anything is answered; a refusal is silence. The same message
//! may come over several nodes and again after a timeout: it is decided once, and each copy gets the
//! same reply.

use std::net::{SocketAddr, SocketAddrV4};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::addresses::{is_private, match_address};
use super::announcer::Announcer;
use super::cache::{ExpiringMap, Key};
use super::connection::{Connection, Path, PathKind};
use super::half_open::{HalfOpen, MAX_HALF_OPEN};
use super::messages::FirewallKind;
use super::messages::handshake::{self, HolepunchInfo, NoisePayload, UdxInfo, VERSION};
use super::messages::records::PeerRecord;
use super::node::{Handle, Inner};
use super::noise;
use super::options::{Firewall, RelayThrough, ServerOptions};
use super::punch::puncher::Puncher;
use super::punch::server::{Punches, ServerPunch};
use super::relay::attempt::{self, RelayAttempt};
use super::rpc::Incoming;
use super::rpc::message::NodeId;
use super::rpc::socket::Socket;
use super::store::target_of;
use crate::crypto::{self, KeyPair, PublicKey};
use crate::rate_limit::RateLimit;
use crate::sync::lock;
use crate::tasks::Spawn;
use crate::udx::{StreamOptions, UdxStream};

/// How long a decided handshake is remembered.
const HANDSHAKE_AGE: Duration = Duration::from_secs(10);
/// Decided handshakes that are remembered.
const MAX_HANDSHAKES: usize = 1024;
/// Handshakes decided a second; more are dropped unseen. As many again are decided of those that come a
/// second time: a client sends its message over several nodes and repeats it, and so gets through where
/// thousands of others are sent once.
const HANDSHAKE_RATE: u32 = 500;
/// Dropped handshakes that are known again.
const MAX_DROPPED: usize = 8192;
/// Connections that wait for [`Server::accept`].
const MAX_UNACCEPTED: usize = 64;

/// Reasons in a reply.
const ERROR_NONE: u64 = 0;
const ERROR_ABORTED: u64 = 1;
const ERROR_VERSION_MISMATCH: u64 = 2;

/// A server: connections come in under one public key. Dropping it closes it without unannouncing.
pub struct Server {
    pub(crate) shared: Arc<ServerShared>,
    connections: tokio::sync::Mutex<mpsc::Receiver<Connection>>,
    /// Keeps the node running as long as anything listens on it.
    _node: Arc<Handle>,
}

pub(crate) struct ServerShared {
    keys: KeyPair,
    pub(crate) target: NodeId,
    /// What nodes are told of us.
    pub(crate) record: Bytes,
    firewall: Firewall,
    relay_through: Option<RelayThrough>,
    state: Mutex<State>,
    /// Held while a handshake is decided, so that two copies of one are not decided twice.
    deciding: Mutex<()>,
    pub(super) punches: Punches,
    /// Admitted clients that have not sent a packet yet.
    pub(super) half_open: AtomicUsize,
    pub(super) accepted: mpsc::Sender<Connection>,
    pub(crate) announcer: Arc<Announcer>,
    pub(super) inner: Arc<Inner>,
    pub(crate) cancel: CancellationToken,
}

struct State {
    /// By the hash of the client's message: our reply, or nothing when it was refused.
    handshakes: ExpiringMap<Option<Reply>>,
    /// By the hash of a message that was dropped because there were too many.
    dropped: ExpiringMap<()>,
    limit: RateLimit,
    repeated: RateLimit,
}

impl State {
    /// Whether a handshake may be decided now.
    fn admits(&mut self, key: Key) -> bool {
        if self.limit.allow() || (self.dropped.get(&key).is_some() && self.repeated.allow()) {
            return true;
        }
        self.dropped.sweep();
        self.dropped.insert(key, ());
        false
    }
}

/// Our reply to a client's handshake.
#[derive(Clone)]
struct Reply {
    noise: Vec<u8>,
    /// The punch from whose socket it goes out.
    punch: Option<Weak<ServerPunch>>,
}

/// A punch that is prepared while a handshake is decided.
struct Prepared {
    id: u64,
    puncher: Puncher,
    /// Whether the reply goes out from the puncher's socket.
    replies: bool,
}

impl Server {
    pub(crate) fn start(node: Arc<Handle>, keys: &KeyPair, options: ServerOptions) -> Self {
        let inner = Arc::clone(&node.inner);
        let (accepted, connections) = mpsc::channel(MAX_UNACCEPTED);
        let public_key = keys.public_key();
        let target = target_of(&public_key);
        let record = PeerRecord { public_key, relay_addresses: Vec::new() };
        let state = State {
            handshakes: ExpiringMap::new(MAX_HANDSHAKES, HANDSHAKE_AGE),
            dropped: ExpiringMap::new(MAX_DROPPED, HANDSHAKE_AGE),
            limit: RateLimit::new(HANDSHAKE_RATE, HANDSHAKE_RATE),
            repeated: RateLimit::new(HANDSHAKE_RATE, HANDSHAKE_RATE),
        };
        let shared = Arc::new(ServerShared {
            keys: keys.clone(),
            target,
            record: record.encode().into(),
            firewall: options.firewall,
            relay_through: options.relay_through,
            state: Mutex::new(state),
            deciding: Mutex::default(),
            punches: Punches::default(),
            half_open: AtomicUsize::new(0),
            accepted,
            announcer: Arc::new(Announcer::new(keys.clone(), target)),
            cancel: inner.rpc.cancel.child_token(),
            inner,
        });
        let announcing = Arc::clone(&shared);
        shared.inner.rpc.tasks.spawn_task(async move {
            tokio::select! {
                () = announcing.cancel.cancelled() => {}
                () = announcing.announcer.run(&announcing.inner) => {}
            }
        });
        Self { shared, connections: tokio::sync::Mutex::new(connections), _node: node }
    }

    /// The next connection; `None` once the server or its node is closed. Cancel safe. Connections
    /// that nobody accepts wait, at most 64 of them.
    pub async fn accept(&self) -> Option<Connection> {
        let mut connections = self.connections.lock().await;
        tokio::select! {
            () = self.shared.cancel.cancelled() => None,
            connection = connections.recv() => connection,
        }
    }

    /// The key under which others connect.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        self.shared.keys.public_key()
    }

    /// Addresses through which a handshake reaches this server: its own, when others reach it, and
    /// nodes that pass handshakes on. At most 3, empty until [`Server::announced`].
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let addresses = self.shared.announcer.relay_addresses();
        addresses.into_iter().map(SocketAddr::V4).collect()
    }

    /// Waits until the first announcement is over, whether or not a node took it. Cancel safe.
    pub async fn announced(&self) {
        tokio::select! {
            () = self.shared.cancel.cancelled() => {}
            () = self.shared.announcer.announced() => {}
        }
    }

    /// Stops listening, and takes the announcement back (for at most 2 s). Connections stay open.
    /// Idempotent.
    pub async fn close(&self) {
        self.shared.close().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.cancel.cancel();
        self.shared.inner.remove_server(&self.shared);
    }
}

impl ServerShared {
    pub(crate) async fn close(self: &Arc<Self>) {
        self.cancel.cancel();
        self.inner.remove_server(self);
        self.announcer.stop(&self.inner.rpc).await;
    }

    /// Decides on a client's Noise message. `relayed_for` is the client's address when a node passed
    /// the message on. Returns our Noise message and the socket it goes through, or nothing to say
    /// nothing.
    pub(crate) fn on_handshake(
        self: &Arc<Self>,
        noise: &[u8],
        relayed_for: Option<SocketAddrV4>,
        incoming: &Incoming,
    ) -> Option<(Socket, Vec<u8>)> {
        if self.announcer.is_probe(noise) {
            return None;
        }
        let reply = self.reply_to(noise, relayed_for, incoming)?;
        let punch = reply.punch.and_then(|punch| punch.upgrade());
        let socket = punch.and_then(|punch| punch.socket());
        Some((socket.unwrap_or_else(|| incoming.socket.clone()), reply.noise))
    }

    fn reply_to(
        self: &Arc<Self>,
        noise: &[u8],
        relayed_for: Option<SocketAddrV4>,
        incoming: &Incoming,
    ) -> Option<Reply> {
        let key = crypto::hash(&[noise]);
        let _deciding = lock(&self.deciding);
        {
            let mut state = lock(&self.state);
            state.handshakes.sweep();
            if let Some(decided) = state.handshakes.get(&key) {
                return decided.clone();
            }
            let is_full = self.half_open.load(Ordering::Relaxed) >= MAX_HALF_OPEN;
            if self.cancel.is_cancelled() || is_full || !state.admits(key) {
                tracing::debug!(from = %incoming.from, "a handshake was dropped");
                return None;
            }
        }
        let reply = self.decide(noise, relayed_for, incoming);
        lock(&self.state).handshakes.insert(key, reply.clone());
        reply
    }

    fn decide(
        self: &Arc<Self>,
        noise: &[u8],
        relayed_for: Option<SocketAddrV4>,
        incoming: &Incoming,
    ) -> Option<Reply> {
        let client = relayed_for.map_or(incoming.from, SocketAddr::V4);
        let mut handshake = noise::responder(&self.keys).ok()?;
        let payload = handshake.read(noise).ok()?;
        let payload = NoisePayload::decode(&payload).ok()?;
        let remote = handshake.remote_public_key()?;
        // A firewall that panics admits nobody, and must not end the node's receiving.
        let admitted = catch_unwind(AssertUnwindSafe(|| (self.firewall)(&remote, client)));
        if !admitted.unwrap_or(false) {
            tracing::debug!(peer = %remote.short(), %client, "a handshake was refused");
            return None;
        }
        let (error, client_stream) = match payload.udx {
            _ if payload.version != VERSION => (ERROR_VERSION_MISMATCH, None),
            None => (ERROR_ABORTED, None),
            Some(udx) => (ERROR_NONE, Some(udx.id)),
        };
        let raw = client_stream.map(|_| self.inner.udx.create_stream(StreamOptions::default()));
        let public = self.inner.rpc.remote_address();
        let local_addresses = self.inner.local_addresses();
        let prepared = match (public, relayed_for) {
            (None, Some(client)) if raw.is_some() => {
                self.prepare_punch(client, &payload, &local_addresses, incoming)
            }
            _ => None,
        };
        // A client that came directly, or that anybody reaches, needs none.
        let may_relay = relayed_for.is_some()
            && payload.firewall != FirewallKind::Open
            && client_stream.is_some();
        let of_client = payload.relay_through.as_ref().filter(|_| may_relay);
        let own_relay = if may_relay { self.own_relay(of_client) } else { None };
        let mut addresses4: Vec<SocketAddrV4> = public.into_iter().collect();
        addresses4.extend(local_addresses);
        let reply = NoisePayload {
            version: VERSION,
            error,
            firewall: if public.is_some() { FirewallKind::Open } else { FirewallKind::Unknown },
            holepunch: prepared
                .as_ref()
                .map(|punch| HolepunchInfo { id: punch.id, relays: self.announcer.relays() }),
            addresses4,
            addresses6: Vec::new(),
            udx: Some(UdxInfo {
                reusable_socket: false,
                id: raw.as_ref().map_or(0, UdxStream::local_id),
                seq: 0,
            }),
            has_secret_stream: true,
            relay_through: own_relay,
            relay_addresses: self.announcer.relay_addresses(),
        };
        let noise = handshake.write(&reply.encode()).ok()?;
        let Some((raw, remote_id)) = raw.zip(client_stream) else {
            return Some(Reply { noise, punch: None });
        };
        let session = handshake.finish().ok()?;
        let is_relayed = relayed_for.is_some();
        tracing::debug!(peer = %remote.short(), %client, is_relayed, "a handshake was admitted");
        let route = if !is_relayed {
            Some(incoming.socket.clone())
        } else if payload.firewall == FirewallKind::Open {
            Some(self.inner.rpc.socket())
        } else {
            None
        };
        if let Some(socket) = route {
            let path = Path::new(attempt::kind_of(PathKind::Direct, client));
            HalfOpen::new(self).connect(raw, session, &socket.udx, remote_id, client, path);
            return Some(Reply { noise, punch: None });
        }
        let replies = prepared.as_ref().is_some_and(|punch| punch.replies);
        let punch = prepared.map(|Prepared { id, puncher, .. }| {
            Arc::new(ServerPunch::new(&self.inner, id, puncher, &session))
        });
        let answering = punch.as_ref().filter(|_| replies).map(Arc::downgrade);
        let relay = RelayAttempt::new(&self.inner, own_relay.as_ref(), of_client, true);
        self.open(raw, session, remote_id, punch, relay);
        Some(Reply { noise, punch: answering })
    }

    /// The relay that we name, if the options have one.
    fn own_relay(
        &self,
        of_client: Option<&handshake::RelayThrough>,
    ) -> Option<handshake::RelayThrough> {
        let named = of_client.map(|relay| PublicKey::from_bytes(relay.public_key));
        let choose = self.relay_through.as_ref()?;
        // A chooser that panics chooses none, and must not end the node's receiving.
        let chosen = catch_unwind(AssertUnwindSafe(|| choose(named.as_ref()))).ok().flatten();
        chosen.filter(|relay| *relay != self.keys.public_key()).map(attempt::offer)
    }

    /// Gets ready for a punch with a client that a node passed on, unless that cannot come about.
    fn prepare_punch(
        &self,
        client: SocketAddrV4,
        payload: &NoisePayload,
        ours: &[SocketAddrV4],
        incoming: &Incoming,
    ) -> Option<Prepared> {
        if payload.firewall == FirewallKind::Open || self.announcer.relays().is_empty() {
            return None;
        }
        let id = self.punches.reserve()?;
        let puncher = ServerPunch::open(&self.inner, id, payload.firewall)?;
        // A client behind the same NAT reaches our own socket by its local address, and the
        // reference tries that only at the address that the reply comes from.
        let is_same_network = client.ip() == incoming.request.to.ip() && {
            let private = payload.addresses4.iter().filter(|address| is_private(*address.ip()));
            match_address(ours, &private.copied().collect::<Vec<_>>()).is_some()
        };
        Some(Prepared { id, puncher, replies: !is_same_network })
    }

    /// Answers a client's message about the punch of handshake `id`.
    pub(crate) async fn on_holepunch(
        &self,
        id: u64,
        payload: &[u8],
        client: SocketAddrV4,
        incoming: &Incoming,
    ) -> Option<(Socket, Vec<u8>)> {
        let is_trusted = self.announcer.is_relay(incoming.from);
        self.punches.get(id)?.on_message(payload, client, is_trusted, incoming).await
    }
}
