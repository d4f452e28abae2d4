//! The connections of a node: listens, dials every approved peer, and keeps one connection a pair.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::arbitration::{self, Verdict, WITHDRAWAL};
use super::dialer::{Wake, keep_connected};
use super::directory::Peers;
use super::presence::Admission;
use super::registry::{ConnectionEvents, Insertion, PeerConnection, Registry};
use super::relays;
use crate::crypto::PublicKey;
use crate::error::{Error, ErrorCode, Result};
use crate::hyperdht::{Connection, Firewall, HyperDht, Server, ServerOptions};
use crate::identity::Identity;
use crate::protomux::{MuxOptions, Protomux};
use crate::sync::lock;
use crate::tasks::Spawn;
use crate::time::now_ms;
use crate::udx::StreamHandle;

/// How many peers are dialed at the same time.
const DIALS: usize = 16;
/// How many peers are dialed at known addresses at the same time.
const DIRECT_DIALS: usize = 64;
/// How many accepted connections wait at once for a first byte, or for the other side to withdraw them.
const UNDECIDED: usize = 128;
/// An accepted connection on which nothing arrived by then is dropped.
const FIRST_BYTE: Duration = Duration::from_secs(10);
/// A connection on which nothing arrives for so long is dropped: keep-alives come every 5 s.
const SILENCE: Duration = Duration::from_secs(30);
/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// How long closing waits for the peers to have heard of it.
const GOODBYE: Duration = Duration::from_secs(1);

/// Called with every new connection before anything is read from it, so that no channel the peer opens
/// is missed. It must not block.
pub type Attach = Arc<dyn Fn(&PeerConnection) + Send + Sync>;

/// The connections of a node; clones share them.
#[derive(Clone)]
pub struct Connections {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) identity: Identity,
    pub(super) peers: Peers,
    pub(super) dht: HyperDht,
    pub(super) registry: Arc<Registry>,
    /// Dials over the network under way.
    pub(super) dials: Semaphore,
    /// Dials at known addresses under way.
    pub(super) direct_dials: Semaphore,
    undecided: Arc<Semaphore>,
    wakes: Mutex<HashMap<PublicKey, Arc<Wake>>>,
    attach: Attach,
    /// Peers that connections may go over.
    pub(super) relays: Mutex<Vec<PublicKey>>,
    next_number: AtomicU64,
    announced: watch::Sender<bool>,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

impl Connections {
    /// Listens under the identity and begins to dial. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// `ERR_CLOSED` when the DHT node is closed; `ERR_LOCKED` when it listens under this identity
    /// already.
    pub fn start(
        dht: &HyperDht,
        identity: &Identity,
        peers: &Peers,
        attach: Attach,
    ) -> Result<Self> {
        let inner = Arc::new(Inner {
            identity: identity.clone(),
            peers: peers.clone(),
            dht: dht.clone(),
            registry: Arc::new(Registry::new()),
            dials: Semaphore::new(DIALS),
            direct_dials: Semaphore::new(DIRECT_DIALS),
            undecided: Arc::new(Semaphore::new(UNDECIDED)),
            wakes: Mutex::default(),
            attach,
            relays: Mutex::default(),
            next_number: AtomicU64::new(1),
            announced: watch::Sender::new(false),
            cancel: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        dht.relay_over_peers(relays::relay_peers(Arc::downgrade(&inner)));
        let options = ServerOptions {
            relay_through: Some(relays::relay_to_listen(Arc::downgrade(&inner))),
            ..ServerOptions::new(firewall(Arc::downgrade(&inner)))
        };
        let server =
            dht.listen_with(identity.key_pair(), options).map_err(|error| match error {
                crate::hyperdht::ListenError::AlreadyListening => {
                    Error::new(ErrorCode::Locked, error.to_string())
                }
                _ => Error::closed(),
            })?;
        let server = Arc::new(server);
        inner.spawn(note_announced(Arc::clone(&inner), Arc::clone(&server)));
        inner.spawn(accept(Arc::clone(&inner), server));
        inner.spawn(follow_approvals(Arc::clone(&inner)));
        let dialers = Arc::downgrade(&inner);
        peers.on_address(Box::new(move |key| {
            if let Some(inner) = dialers.upgrade() {
                inner.wake(key);
            }
        }));
        Ok(Self { inner })
    }

    /// From now on goes over these peers, while they are connected and relay, to others to which there is
    /// no direct path.
    pub fn relay_through(&self, relays: Vec<PublicKey>) {
        *lock(&self.inner.relays) = relays;
    }

    /// The live connection to this peer.
    #[must_use]
    pub fn get(&self, key: &PublicKey) -> Option<PeerConnection> {
        self.inner.registry.get(key)
    }

    /// All live connections, at most [`super::CONNECTION_LIMIT`].
    #[must_use]
    pub fn list(&self) -> Vec<PeerConnection> {
        self.inner.registry.all()
    }

    /// The live connections and all changes from now on.
    #[must_use]
    pub fn subscribe(&self) -> ConnectionEvents {
        self.inner.registry.subscribe()
    }

    /// Whether the DHT was told where this server is, so that others can find it.
    #[must_use]
    pub fn is_announced(&self) -> bool {
        *self.inner.announced.borrow()
    }

    /// Waits until [`Connections::is_announced`], or the end of the connections. Cancel safe.
    pub async fn announced(&self) {
        let mut announced = self.inner.announced.subscribe();
        // It cannot be dropped before us.
        let told = async { announced.wait_for(|told| *told).await.is_ok() };
        self.inner.cancel.run_until_cancelled(told).await;
    }

    /// The peer may be there now: dials it at once if it is approved and not connected.
    pub fn wake(&self, key: &PublicKey) {
        self.inner.wake(key);
    }

    /// The network came back or changed: dials everybody at once who is not connected, or over a relay.
    pub fn network_changed(&self) {
        let keys: Vec<PublicKey> = lock(&self.inner.wakes).keys().copied().collect();
        keys.iter().for_each(|key| self.inner.wake(key));
    }

    /// Why a request to this peer cannot be sent now, as an error for the caller.
    #[must_use]
    pub fn unavailable(&self, key: &PublicKey) -> Error {
        let Some(peer) = self.inner.peers.get(key) else {
            let message = "no peer has this key: add or approve it first";
            return Error::new(ErrorCode::NotFound, message);
        };
        let problem = peer.problem.and_then(|problem| {
            let code = ErrorCode::ALL.iter().find(|code| code.as_str() == problem.code)?;
            Some(Error::new(*code, problem.message))
        });
        problem.unwrap_or_else(|| Error::new(ErrorCode::PeerOffline, "this peer is not connected"))
    }

    /// Stops dialing and listening, and closes all connections: what waits to be sent gets 1 s to go
    /// out. Idempotent. The DHT node stays open, and should until this is over: peers hear of it then.
    pub async fn close(&self) {
        let inner = &self.inner;
        inner.registry.close();
        let connections = inner.registry.all();
        inner.cancel.cancel();
        let goodbye = async {
            for connection in &connections {
                connection.mux.close();
            }
            for connection in &connections {
                connection.udx.closed().await;
            }
        };
        if tokio::time::timeout(GOODBYE, goodbye).await.is_err() {
            for connection in &connections {
                connection.udx.destroy();
            }
        }
        inner.tasks.close();
        inner.tasks.wait().await;
    }
}

/// Answers the DHT inside the handshake.
fn firewall(inner: Weak<Inner>) -> Firewall {
    Arc::new(move |key: &PublicKey, address: SocketAddr| {
        let Some(inner) = inner.upgrade() else { return false };
        if inner.peers.admission(key, address) != Admission::Approved {
            return false;
        }
        if let Some(wake) = lock(&inner.wakes).get(key) {
            wake.arriving.notify_one();
        }
        inner.registry.has_room_for(key)
    })
}

async fn note_announced(inner: Arc<Inner>, server: Arc<Server>) {
    if inner.cancel.run_until_cancelled(server.announced()).await.is_some() {
        inner.announced.send_replace(true);
    }
}

async fn accept(inner: Arc<Inner>, server: Arc<Server>) {
    loop {
        tokio::select! {
            () = inner.cancel.cancelled() => break,
            connection = server.accept() => match connection {
                Some(connection) => inner.accepted(connection),
                None => break,
            },
        }
    }
    server.close().await;
}

/// Waits until the peer has sent something; whether it did in time.
///
/// A dialer that broke off may leave us with a connection that it does not know of; its first bytes are
/// the proof that it does. They come right after the handshake, so asking often is cheap.
async fn is_used(udx: &StreamHandle) -> bool {
    let began = Instant::now();
    let mut pause = Duration::from_millis(1);
    while udx.stats().bytes_received == 0 {
        if began.elapsed() > FIRST_BYTE {
            return false;
        }
        tokio::select! {
            _ = udx.closed() => return udx.stats().bytes_received > 0,
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_millis(50)),
        }
    }
    true
}

/// Keeps one dialer for each approved peer, and no connection to others.
async fn follow_approvals(inner: Arc<Inner>) {
    let mut approvals = inner.peers.approvals();
    let mut dialers: HashMap<PublicKey, CancellationToken> = HashMap::new();
    loop {
        approvals.mark_unchanged();
        let approved = inner.peers.approved();
        dialers.retain(|key, dialer| {
            let stays = approved.contains(key);
            if !stays {
                dialer.cancel();
                lock(&inner.wakes).remove(key);
            }
            stays
        });
        for key in approved {
            if dialers.contains_key(&key) {
                continue;
            }
            let wake = Arc::new(Wake::default());
            lock(&inner.wakes).insert(key, Arc::clone(&wake));
            let cancel = inner.cancel.child_token();
            dialers.insert(key, cancel.clone());
            let dialing = keep_connected(Arc::clone(&inner), key, wake);
            inner.spawn(async move {
                cancel.run_until_cancelled(dialing).await;
            });
        }
        for connection in inner.registry.all() {
            if !dialers.contains_key(&connection.key) {
                inner.end(&connection, "this peer is not approved any more");
                connection.destroy();
            }
        }
        tokio::select! {
            () = inner.cancel.cancelled() => return,
            changed = approvals.changed() => if changed.is_err() { return },
        }
    }
}

impl Inner {
    pub(super) fn own(&self) -> PublicKey {
        self.identity.public_key()
    }

    fn wake(&self, key: &PublicKey) {
        // One that is silent is being dialed.
        let is_connected = self.registry.get(key).is_some_and(|live| !live.udx.is_silent());
        if let Some(wake) = lock(&self.wakes).get(key) {
            (if is_connected { &wake.better } else { &wake.now }).notify_one();
        }
    }

    /// Takes a connection that a peer dialed, once the peer has sent something on it.
    fn accepted(self: &Arc<Self>, connection: Connection) {
        let key = connection.remote_public_key();
        let Ok(slot) = Arc::clone(&self.undecided).try_acquire_owned() else {
            return tracing::warn!(peer = key.short(), "too many connections come in at once");
        };
        let inner = Arc::clone(self);
        self.spawn(async move {
            let _slot = slot;
            match inner.cancel.run_until_cancelled(is_used(&connection.udx)).await {
                Some(true) => inner.admit(connection),
                Some(false) => tracing::debug!(peer = key.short(), "a connection was never used"),
                None => {}
            }
        });
    }

    /// Takes a new connection, dialed or accepted, and decides between it and one that is there.
    pub(super) fn admit(self: &Arc<Self>, connection: Connection) {
        let key = connection.remote_public_key();
        let Some(existing) = self.registry.get(&key) else { return self.establish(connection) };
        let verdict = match arbitration::decide(
            &self.own(),
            &key,
            existing.initiator,
            connection.initiator,
        ) {
            // Whoever dialed it noticed that, too.
            Verdict::Wait if existing.udx.is_silent() => Verdict::Replace,
            verdict => verdict,
        };
        tracing::debug!(peer = key.short(), ?verdict, "a second connection to a peer");
        match verdict {
            Verdict::Replace => self.establish(connection),
            Verdict::Withdraw => connection.udx.destroy(),
            Verdict::Wait => {
                let Ok(slot) = Arc::clone(&self.undecided).try_acquire_owned() else { return };
                let inner = Arc::clone(self);
                self.spawn(async move {
                    let _slot = slot;
                    tokio::select! {
                        () = inner.cancel.cancelled() => {}
                        _ = connection.udx.closed() => {}
                        _ = existing.udx.closed() => inner.establish(connection),
                        () = tokio::time::sleep(WITHDRAWAL) => inner.establish(connection),
                    }
                });
            }
        }
    }

    /// Takes a connection that we dialed to take the place of `live`, whoever dialed that.
    pub(super) fn supersede(self: &Arc<Self>, live: &PeerConnection, connection: Connection) {
        match self.registry.get(&live.key) {
            Some(current) if current.number == live.number => self.establish(connection),
            // Another was faster.
            _ => self.admit(connection),
        }
    }

    /// Makes a connection its peer's live one.
    fn establish(self: &Arc<Self>, connection: Connection) {
        let Connection { stream, udx, remote, initiator, path } = connection;
        let key = stream.remote_public_key();
        if !self.peers.is_approved(&key) {
            return udx.destroy();
        }
        let connection = PeerConnection {
            key,
            mux: Protomux::new(stream, MuxOptions { paused: true }),
            udx,
            remote,
            path,
            initiator,
            since: now_ms(),
            meter: Arc::default(),
            number: self.next_number.fetch_add(1, Ordering::Relaxed),
        };
        let live = connection.clone();
        let insertion = self.registry.insert(connection.clone(), || {
            self.peers.online(&key, Arc::new(move || live.info()));
        });
        match insertion {
            Insertion::Done(None) => {
                tracing::info!(peer = key.short(), initiator, "a peer is connected");
            }
            Insertion::Done(Some(old)) => {
                tracing::debug!(peer = key.short(), initiator, "a newer connection took over");
                self.retire(old, &connection);
            }
            Insertion::Full => {
                tracing::warn!(peer = key.short(), "too many peers are connected");
                return connection.destroy();
            }
            Insertion::Closed => return connection.destroy(),
        }
        (self.attach)(&connection);
        // Only now the other side hears of it, and ends the one that this replaced.
        connection.mux.start();
        let inner = Arc::clone(self);
        self.spawn(async move {
            let reason = watch(&connection, &inner.cancel).await;
            inner.end(&connection, &reason);
        });
        // Blocked between the question above and now: `follow_approvals` may have looked too early.
        if !self.peers.is_approved(&key)
            && let Some(connection) = self.registry.get(&key)
        {
            connection.destroy();
        }
    }

    /// Ends a connection that a newer one replaced. If we dialed that, the other side may not have taken
    /// it yet, and would be without one for a moment if the old one went before.
    fn retire(self: &Arc<Self>, old: PeerConnection, new: &PeerConnection) {
        if !new.initiator {
            return old.destroy();
        }
        let (inner, new) = (Arc::clone(self), new.udx.clone());
        self.spawn(async move {
            tokio::select! {
                () = inner.cancel.cancelled() => {}
                _ = old.udx.closed() => {}
                _ = is_used(&new) => {}
            }
            old.destroy();
        });
    }

    /// The connection is over: the peer is offline, unless a newer one took over.
    fn end(&self, connection: &PeerConnection, reason: &str) {
        let key = &connection.key;
        self.registry.remove(key, connection.number, reason, || {
            tracing::info!(peer = key.short(), reason, "a peer is not connected any more");
            self.peers.offline(key, reason);
        });
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_task(task);
    }
}

/// Waits until a connection is over, and ends one on which nothing arrives. Gives the reason.
async fn watch(connection: &PeerConnection, cancel: &CancellationToken) -> String {
    let closed = connection.mux.closed();
    tokio::pin!(closed);
    let mut received = 0;
    let mut silent = Duration::ZERO;
    loop {
        tokio::select! {
            reason = &mut closed => return reason.to_string(),
            () = cancel.cancelled() => {
                connection.mux.close();
                return "this node is closing".to_owned();
            }
            () = tokio::time::sleep(LOOK) => {}
        }
        let now = connection.udx.stats().bytes_received;
        connection.measure();
        silent = if now == received { silent + LOOK } else { Duration::ZERO };
        if silent >= SILENCE {
            connection.destroy();
            return format!("nothing arrived for {} seconds", silent.as_secs());
        }
        received = now;
    }
}
