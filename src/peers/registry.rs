//! The live connections, at most one a peer, and who is told of them.
//!
//! A subscriber holds what it was told last, and gets the difference to what is: it never misses a
//! connection that lasts, however late or slow it is, and needs no queue.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::watch;

use super::on_link::is_on_link;
use super::record::ConnectionInfo;
use crate::crypto::PublicKey;
use crate::hyperdht::{Path, PathKind};
use crate::protomux::Protomux;
use crate::sync::lock;
use crate::udx::StreamHandle;

/// How many peers are connected at most.
pub const CONNECTION_LIMIT: usize = 64;

/// How many reasons are kept for subscribers that have not asked yet.
const REASONS: usize = 1024;

/// A live connection to an approved peer. Clones share it.
#[derive(Clone)]
pub struct PeerConnection {
    /// The peer, as the handshake proved.
    pub key: PublicKey,
    /// The channels on the connection.
    pub mux: Protomux,
    /// The stream under it: statistics.
    pub udx: StreamHandle,
    /// Where the peer is.
    pub remote: SocketAddr,
    /// How packets get to the peer.
    pub path: Path,
    /// Whether this side dialed.
    pub initiator: bool,
    /// Since when, in Unix milliseconds.
    pub since: u64,
    /// Tells connections of one process apart.
    pub number: u64,
    pub(super) meter: Arc<Mutex<Meter>>,
}

/// How much flowed between the last two looks at a connection.
#[derive(Debug, Default)]
pub(super) struct Meter {
    last: Option<(Instant, u64)>,
    bytes_per_second: u64,
}

impl PeerConnection {
    /// The connection as the API shows it.
    #[must_use]
    pub fn info(&self) -> ConnectionInfo {
        let stats = self.udx.stats();
        ConnectionInfo {
            path: self.path(),
            // A connection over a relay goes elsewhere when a direct path is found.
            address: self.remote_now().to_string(),
            initiator: self.initiator,
            since: self.since,
            round_trip_ms: (self.udx.rtt().as_secs_f64() * 10_000.0).round() / 10.0,
            bytes_per_second: lock(&self.meter).bytes_per_second,
            bytes_sent: stats.bytes_sent,
            bytes_received: stats.bytes_received,
        }
    }

    fn remote_now(&self) -> SocketAddr {
        self.udx.remote_addr().unwrap_or(self.remote)
    }

    /// What packets go through now.
    pub(super) fn path(&self) -> PathKind {
        match self.path.kind() {
            PathKind::Relayed => PathKind::Relayed,
            _ if is_on_link(self.remote_now().ip()) => PathKind::Lan,
            kind => kind,
        }
    }

    /// Notes how much flowed since the last time.
    pub(super) fn measure(&self) {
        let stats = self.udx.stats();
        let (now, bytes) = (Instant::now(), stats.bytes_sent.saturating_add(stats.bytes_received));
        let mut meter = lock(&self.meter);
        if let Some((at, before)) = meter.last.replace((now, bytes)) {
            let seconds = now.duration_since(at).as_secs_f64().max(0.001);
            // Far below 2^52, and never negative.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let rate = (bytes.saturating_sub(before) as f64 / seconds) as u64;
            meter.bytes_per_second = rate;
        }
    }
}

impl PeerConnection {
    /// Ends it at once, without sending what waits. The other side has to hear of it soon: it may be
    /// holding a second connection back until it does.
    pub(super) fn destroy(&self) {
        self.udx.destroy();
        self.mux.close();
    }
}

impl fmt::Debug for PeerConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerConnection")
            .field("key", &self.key)
            .field("remote", &self.remote)
            .field("initiator", &self.initiator)
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

/// A change of the live connections.
#[derive(Debug, Clone)]
pub enum ConnectionEvent {
    /// A peer is connected.
    Up(PeerConnection),
    /// A connection is over, or is about to be because a newer one took its place.
    Down {
        /// The peer.
        key: PublicKey,
        /// Why, for a person.
        reason: String,
    },
}

/// What is live now.
pub(super) struct Registry {
    state: Mutex<State>,
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    live: HashMap<PublicKey, PeerConnection>,
    /// Why the last connection of a peer ended; at most [`REASONS`].
    reasons: HashMap<PublicKey, String>,
    closed: bool,
}

/// What became of an attempt to put a connection into the registry.
pub(super) enum Insertion {
    /// It is the live one now, in place of this one.
    Done(Option<PeerConnection>),
    /// There are [`CONNECTION_LIMIT`] others.
    Full,
    /// No more are taken.
    Closed,
}

impl State {
    fn remember(&mut self, key: PublicKey, reason: &str) {
        if self.reasons.len() >= REASONS {
            self.reasons.clear();
        }
        self.reasons.insert(key, reason.to_owned());
    }
}

impl Registry {
    pub(super) fn new() -> Self {
        Self { state: Mutex::default(), changes: watch::Sender::new(0) }
    }

    /// Makes `connection` its peer's live one. `then` runs before anybody else sees it.
    pub(super) fn insert(&self, connection: PeerConnection, then: impl FnOnce()) -> Insertion {
        let replaced = {
            let mut state = lock(&self.state);
            if state.closed {
                return Insertion::Closed;
            }
            let known = state.live.contains_key(&connection.key);
            if !known && state.live.len() >= CONNECTION_LIMIT {
                return Insertion::Full;
            }
            then();
            state.remember(connection.key, "replaced by a newer connection");
            state.live.insert(connection.key, connection)
        };
        self.changed();
        Insertion::Done(replaced)
    }

    /// Takes a connection that ended out, unless another took its place. `then` runs before anybody
    /// else sees it.
    pub(super) fn remove(&self, key: &PublicKey, number: u64, reason: &str, then: impl FnOnce()) {
        {
            let mut state = lock(&self.state);
            if state.live.get(key).is_none_or(|live| live.number != number) {
                return;
            }
            state.live.remove(key);
            state.remember(*key, reason);
            then();
        }
        self.changed();
    }

    /// Takes no more connections; those that are there go on until they are closed.
    pub(super) fn close(&self) {
        lock(&self.state).closed = true;
        self.changed();
    }

    pub(super) fn get(&self, key: &PublicKey) -> Option<PeerConnection> {
        lock(&self.state).live.get(key).cloned()
    }

    pub(super) fn all(&self) -> Vec<PeerConnection> {
        lock(&self.state).live.values().cloned().collect()
    }

    /// Whether this peer is connected, or could be as far as the limit goes.
    pub(super) fn has_room_for(&self, key: &PublicKey) -> bool {
        let state = lock(&self.state);
        !state.closed && (state.live.len() < CONNECTION_LIMIT || state.live.contains_key(key))
    }

    /// Waits until the peer is connected, or is not. Cancel-safe. Never ends once closed.
    pub(super) async fn wait_for(&self, key: &PublicKey, connected: bool) {
        let mut changes = self.changes.subscribe();
        while lock(&self.state).live.contains_key(key) != connected {
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until connection `number` is not its peer's live one any more. Cancel-safe. Never ends once
    /// closed.
    pub(super) async fn replaced(&self, key: &PublicKey, number: u64) {
        let mut changes = self.changes.subscribe();
        while lock(&self.state).live.get(key).is_some_and(|live| live.number == number) {
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    pub(super) fn subscribe(self: &Arc<Self>) -> ConnectionEvents {
        let changes = self.changes.subscribe();
        ConnectionEvents {
            registry: Arc::clone(self),
            changes,
            told: HashMap::new(),
            queue: VecDeque::new(),
        }
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

/// The changes of the live connections, beginning with those that are live already.
pub struct ConnectionEvents {
    registry: Arc<Registry>,
    changes: watch::Receiver<u64>,
    told: HashMap<PublicKey, u64>,
    queue: VecDeque<ConnectionEvent>,
}

impl ConnectionEvents {
    /// The next change; `None` when the node is closed and all connections are over. A connection that
    /// came and went between two calls is not reported; one that was replaced is `Down`, then `Up`.
    ///
    /// Cancel-safe.
    pub async fn next(&mut self) -> Option<ConnectionEvent> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(event);
            }
            self.changes.mark_unchanged();
            let closed = self.look();
            if !self.queue.is_empty() {
                continue;
            }
            if closed || self.changes.changed().await.is_err() {
                return None;
            }
        }
    }

    /// Queues the difference between what was told and what is; whether this was the last.
    fn look(&mut self) -> bool {
        let state = lock(&self.registry.state);
        let (queue, told) = (&mut self.queue, &mut self.told);
        told.retain(|key, number| {
            let stays = state.live.get(key).is_some_and(|live| live.number == *number);
            if !stays {
                let reason = state.reasons.get(key).cloned().unwrap_or_default();
                queue.push_back(ConnectionEvent::Down { key: *key, reason });
            }
            stays
        });
        for (key, live) in &state.live {
            if !told.contains_key(key) {
                told.insert(*key, live.number);
                queue.push_back(ConnectionEvent::Up(live.clone()));
            }
        }
        state.closed && state.live.is_empty()
    }
}
