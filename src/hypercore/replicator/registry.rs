//! Which cores are replicated over which connections, and the channels between the two.
//!
//! A core has at most one channel a connection. It is opened when either is added and the core's
//! policy admits the peer, and when the peer opens it. A peer may reject a core it has not loaded
//! yet; it opens it later. What a peer opens that we do not have, or not for it, is rejected in the
//! same way whichever it is.
//!
//! Several cores may have one key: the one that was added with [`Replicator::add`], and any number beside
//! it, each for other peers. A peer has to do with the first one that admits it, and sees nothing of the
//! others.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::broadcast;

use super::capability::capability;
use super::driver::{self, End};
use super::swarm::{Membership, Swarm};
use super::{Event, EventKind, PROTOCOL, Replicator, Violation};
use crate::crypto::{Hash, PublicKey};
use crate::hypercore::messages::Handshake;
use crate::protomux::{Channel, ChannelOptions, Protomux, RemoteOpen};
use crate::rate_limit::RateLimit;
use crate::sync::lock;

/// How many bytes of a channel's messages may wait here before the connection is read no further.
const INBOX_BYTES: usize = 2 << 20;
/// How many events a slow listener may be behind.
const EVENTS: usize = 1024;
/// When a channel that we still need was closed by the peer, it is opened again after so long, …
const REOPEN: Duration = Duration::from_millis(500);
/// … at most so often a connection and core.
const MAX_REOPENS: u32 = 8;

pub(super) struct Inner {
    /// By discovery key: the one that was added, then those beside it, the oldest first.
    swarms: Mutex<HashMap<Hash, Vec<Arc<Swarm>>>>,
    connections: Mutex<HashMap<u64, Arc<Connection>>>,
    next_connection: AtomicU64,
    pub(super) events: broadcast::Sender<Event>,
    /// What all peers together may be sent.
    pub(super) upload_limit: Option<Mutex<RateLimit>>,
}

struct Connection {
    mux: Protomux,
    peer: PublicKey,
    /// The cores that have a channel on this connection, and the open with which the peer asked for
    /// the next one before this one was done.
    open: Mutex<HashMap<Hash, Option<RemoteOpen>>>,
    /// How often a core's channel was opened again.
    reopened: Mutex<HashMap<Hash, u32>>,
}

impl Inner {
    pub(super) fn new(upload_limit: Option<RateLimit>) -> Self {
        Self {
            swarms: Mutex::default(),
            connections: Mutex::default(),
            next_connection: AtomicU64::new(0),
            events: broadcast::channel(EVENTS).0,
            upload_limit: upload_limit.map(Mutex::new),
        }
    }

    /// The core with which this peer has to do.
    fn swarm_for(&self, discovery_key: &Hash, peer: &PublicKey) -> Option<Arc<Swarm>> {
        // Policies may look at whatever they like, also at this replicator.
        let all = lock(&self.swarms).get(discovery_key).cloned()?;
        all.into_iter().find(|swarm| swarm.admits(peer))
    }

    /// Whether this core is the one with which the peer has to do.
    fn is_for(&self, swarm: &Arc<Swarm>, peer: &PublicKey) -> bool {
        self.swarm_for(&swarm.discovery_key, peer).is_some_and(|other| Arc::ptr_eq(&other, swarm))
    }
}

impl Replicator {
    pub(super) fn insert(&self, swarm: Arc<Swarm>) {
        {
            let mut swarms = lock(&self.inner.swarms);
            let all = swarms.entry(swarm.discovery_key).or_default();
            if swarm.is_beside {
                all.push(Arc::clone(&swarm));
            } else {
                let old = all.iter().position(|other| !other.is_beside).map(|at| all.remove(at));
                old.into_iter().for_each(|old| old.closed.cancel());
                all.insert(0, Arc::clone(&swarm));
            }
        }
        self.open_everywhere(&swarm);
    }

    pub(super) fn remove(&self, swarm: &Arc<Swarm>) {
        {
            let mut swarms = lock(&self.inner.swarms);
            if let Entry::Occupied(mut all) = swarms.entry(swarm.discovery_key) {
                all.get_mut().retain(|other| !Arc::ptr_eq(other, swarm));
                if all.get().is_empty() {
                    all.remove();
                }
            }
        }
        // Not before: whoever sees it looks for another one that its peer has to do with.
        swarm.closed.cancel();
    }

    /// Opens a core on every connection whose peer its policy admits.
    pub(super) fn open_everywhere(&self, swarm: &Arc<Swarm>) {
        let connections: Vec<_> = lock(&self.inner.connections).values().cloned().collect();
        for connection in connections {
            self.open(swarm, &connection);
        }
    }

    pub(super) fn attach_mux(&self, mux: &Protomux) {
        let connection = Arc::new(Connection {
            peer: mux.remote_public_key(),
            mux: mux.clone(),
            open: Mutex::default(),
            reopened: Mutex::default(),
        });
        let id = self.inner.next_connection.fetch_add(1, Ordering::Relaxed);
        lock(&self.inner.connections).insert(id, Arc::clone(&connection));

        let (inner, weak) = (Arc::downgrade(&self.inner), Arc::downgrade(&connection));
        mux.on_open(PROTOCOL, Arc::new(move |remote| on_remote_open(&inner, &weak, remote)));
        let swarms: Vec<_> = lock(&self.inner.swarms).values().flatten().cloned().collect();
        for swarm in swarms {
            self.open(&swarm, &connection);
        }
        let inner = Arc::downgrade(&self.inner);
        crate::tasks::spawn(async move {
            connection.mux.closed().await;
            if let Some(inner) = inner.upgrade() {
                lock(&inner.connections).remove(&id);
            }
        });
    }

    /// Opens a core's channel, unless it is open or no policy admits the peer. Which core it is follows from the
    /// peer: of several with one key not always the one that was asked for.
    fn open(&self, asked: &Swarm, connection: &Arc<Connection>) {
        let swarm = self.inner.swarm_for(&asked.discovery_key, &connection.peer);
        let Some(swarm) = swarm.filter(|swarm| !swarm.closed.is_cancelled()) else { return };
        match lock(&connection.open).entry(swarm.discovery_key) {
            Entry::Occupied(_) => return,
            Entry::Vacant(entry) => entry.insert(None),
        };
        let mux = &connection.mux;
        let ours = capability(mux.is_initiator(), &swarm.key, mux.handshake_hash());
        let channel = mux.open(ChannelOptions {
            protocol: PROTOCOL.to_owned(),
            id: swarm.discovery_key.to_vec(),
            handshake: Handshake { seeks: true, capability: ours }.encode(),
            inbox: INBOX_BYTES,
            aliases: vec!["hypercore".to_owned()],
        });
        match channel {
            Ok(channel) => {
                let connection = Arc::clone(connection);
                crate::tasks::spawn(self.clone().replicate(swarm, connection, channel));
            }
            Err(error) => {
                tracing::debug!(peer = %connection.peer.short(), %error, "a core's channel does not open");
                lock(&connection.open).remove(&swarm.discovery_key);
            }
        }
    }

    async fn replicate(self, swarm: Arc<Swarm>, connection: Arc<Connection>, channel: Channel) {
        let peer = connection.peer;
        let end = self.replicate_until_end(&swarm, &connection, &channel).await;
        tracing::debug!(peer = %peer.short(), ?end, "a core's channel has ended");
        channel.close();
        drop(channel);
        let next = lock(&connection.open).remove(&swarm.discovery_key).flatten();
        match end {
            End::Violation(violation) => self.punish(&swarm, &connection, violation),
            // The peer opened it again, or another core took its place, while the channel went down.
            _ if next.is_some() || !self.inner.is_for(&swarm, &peer) => {
                self.open(&swarm, &connection);
            }
            End::Remote { was_open: true } if swarm.is_downloading() => {
                self.reopen(swarm, connection).await;
            }
            End::Removed => self.open(&swarm, &connection),
            End::Idle if swarm.is_downloading() => self.open(&swarm, &connection),
            End::Remote { .. } | End::Idle => {}
        }
    }

    async fn replicate_until_end(
        &self,
        swarm: &Arc<Swarm>,
        connection: &Connection,
        channel: &Channel,
    ) -> End {
        let handshake = tokio::select! {
            opened = channel.opened() => match opened {
                Ok(handshake) => handshake,
                Err(_) => return End::Remote { was_open: false },
            },
            () = swarm.closed.cancelled() => return End::Removed,
        };
        let seeks = match connection.check(swarm, &handshake) {
            Ok(handshake) => handshake.seeks,
            Err(violation) => return violation.into(),
        };
        let membership = swarm.join(connection.peer, seeks);
        self.emit(&membership, EventKind::PeerJoined);
        let end = driver::run(self, &membership, channel).await;
        self.emit(&membership, EventKind::PeerLeft);
        end
    }

    async fn reopen(&self, swarm: Arc<Swarm>, connection: Arc<Connection>) {
        let times = {
            let mut reopened = lock(&connection.reopened);
            let times = reopened.entry(swarm.discovery_key).or_default();
            *times += 1;
            *times
        };
        if times > MAX_REOPENS {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(REOPEN * (1 << times.min(6))) => self.open(&swarm, &connection),
            _ = connection.mux.closed() => {}
            () = swarm.closed.cancelled() => {}
        }
    }

    /// Closes the connection of a peer that broke the protocol.
    fn punish(&self, swarm: &Swarm, connection: &Connection, violation: Violation) {
        let reason = format!("the peer {violation}");
        tracing::warn!(peer = %connection.peer.short(), reason, "closing a connection");
        connection.mux.close_with(reason);
        let kind = EventKind::Violation { violation };
        let _ = self.inner.events.send(Event { key: swarm.key, peer: connection.peer, kind });
    }

    pub(super) fn emit(&self, membership: &Membership, kind: EventKind) {
        let (key, peer) = (membership.swarm.key, membership.public_key);
        tracing::debug!(peer = %peer.short(), ?kind, "replication");
        // Nobody listening is fine.
        let _ = self.inner.events.send(Event { key, peer, kind });
    }
}

fn on_remote_open(inner: &Weak<Inner>, connection: &Weak<Connection>, remote: RemoteOpen) {
    let (Some(inner), Some(connection)) = (inner.upgrade(), connection.upgrade()) else { return };
    let Ok(discovery_key) = Hash::try_from(&remote.id[..]) else { return };
    let Some(swarm) = inner.swarm_for(&discovery_key, &connection.peer) else { return };
    // Who only knows the discovery key is to learn nothing, not even that we have the core.
    if connection.check(&swarm, &remote.handshake).is_ok() {
        if let Some(next) = lock(&connection.open).get_mut(&discovery_key) {
            *next = Some(remote);
            return;
        }
        Replicator { inner }.open(&swarm, &connection);
    }
}

impl Connection {
    /// Checks the peer's proof that it knows the core's key.
    fn check(&self, swarm: &Swarm, handshake: &[u8]) -> Result<Handshake, Violation> {
        let (mux, handshake) = (&self.mux, Handshake::decode(handshake)?);
        let theirs = capability(!mux.is_initiator(), &swarm.key, mux.handshake_hash());
        if handshake.capability == theirs { Ok(handshake) } else { Err(Violation::Capability) }
    }
}
