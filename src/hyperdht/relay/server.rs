//! A relay: passes streams on between peers that find no direct path to each other.
//!
//! Whoever may use it is decided by whom it is attached to. A peer may have so many pairings, and all
//! together may pass on so many bytes a second: a packet beyond that is lost, and the senders' congestion
//! control settles below.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::node::HyperDht;
use super::wire::{PAIR, PROTOCOL, Pair, Token, UNPAIR, decode_unpair, encode_unpair};
use crate::crypto::PublicKey;
use crate::protomux::{Channel, ChannelOptions, Protomux};
use crate::rate_limit::RateLimit;
use crate::sync::lock;
use crate::tasks::Spawn;
use crate::udx::{RelayLimit, RelayedStreams, Udx};

/// How long one side of a pairing waits for the other.
const PENDING: Duration = Duration::from_secs(20);
/// A pairing over which nothing went for so long is over: keep-alives come every few seconds.
const IDLE: Duration = Duration::from_secs(60);
/// How often pairings are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// Bytes that may pass at once, whatever the rate.
const BURST: u32 = 256 << 10;
/// What a client may send ahead of us, in bytes: pairings are 40 each.
const INBOX: usize = 16 << 10;

/// How much a relay does for others.
#[derive(Debug, Clone, Copy)]
pub struct RelayOptions {
    /// How many bytes a second it passes on, of all pairings together. 2 MiB by default.
    pub bytes_per_second: NonZeroU32,
    /// Pairings at once, those that wait for their other side included. 64 by default.
    pub pairings: usize,
    /// The same for each peer. 8 by default.
    pub pairings_per_peer: usize,
}

impl Default for RelayOptions {
    fn default() -> Self {
        let bytes_per_second = NonZeroU32::MIN.saturating_add((2 << 20) - 1);
        Self { bytes_per_second, pairings: 64, pairings_per_peer: 8 }
    }
}

/// What a relay does now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RelayStats {
    /// Pairings that wait for their other side.
    pub pending: usize,
    /// Pairings over which packets go.
    pub active: usize,
    /// Bytes passed on so far.
    pub bytes: u64,
}

/// A relay for the peers that it is attached to. Clones share it; it ends with the last clone.
#[derive(Clone)]
pub struct RelayServer {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    tasks: TaskTracker,
}

struct Shared {
    udx: Udx,
    options: RelayOptions,
    limit: Mutex<Meter>,
    pairings: Mutex<HashMap<Token, Pairing>>,
    cancel: CancellationToken,
}

struct Meter {
    limit: RateLimit,
    bytes: u64,
}

struct Pairing {
    /// The side that is not the initiator, and the initiator.
    sides: [Option<Side>; 2],
    since: Instant,
    streams: Option<RelayedStreams>,
}

struct Side {
    peer: PublicKey,
    channel: Weak<Channel>,
    stream_id: u32,
}

impl Pairing {
    fn is_of(&self, channel: &Weak<Channel>) -> bool {
        self.sides.iter().flatten().any(|side| side.channel.ptr_eq(channel))
    }

    /// Tells the sides, but for the one that knows, that it is over: what else would tell them may have been
    /// lost on the way.
    fn tell(&self, token: &Token, except: Option<&Weak<Channel>>) {
        for side in self.sides.iter().flatten() {
            let is_told = except.is_some_and(|channel| side.channel.ptr_eq(channel));
            if let Some(channel) = side.channel.upgrade().filter(|_| !is_told) {
                // A side with a whole outbox waiting notices by itself.
                let _ = channel.try_send(UNPAIR, &encode_unpair(token));
            }
        }
    }

    fn is_over(&self) -> bool {
        match &self.streams {
            None => self.since.elapsed() >= PENDING,
            Some(streams) => streams.idle() >= IDLE,
        }
    }
}

impl RelayServer {
    /// A relay over the sockets of this node. Needs a tokio runtime.
    #[must_use]
    pub fn new(dht: &HyperDht, options: RelayOptions) -> Self {
        let rate = options.bytes_per_second.get();
        let meter = Meter { limit: RateLimit::new(rate, rate.max(BURST)), bytes: 0 };
        let shared = Arc::new(Shared {
            udx: dht.udx().clone(),
            options,
            limit: Mutex::new(meter),
            pairings: Mutex::default(),
            cancel: CancellationToken::new(),
        });
        let tasks = TaskTracker::new();
        let (weak, cancel) = (Arc::downgrade(&shared), shared.cancel.clone());
        tasks.spawn_task(async move {
            let mut ticks = tokio::time::interval(LOOK);
            while cancel.run_until_cancelled(ticks.tick()).await.is_some() {
                let Some(shared) = weak.upgrade() else { return };
                shared.remove(Pairing::is_over);
            }
        });
        Self { handle: Arc::new(Handle { shared, tasks }) }
    }

    /// Relays for the peer of this connection, for as long as it is open. To be called before anything is
    /// read from it.
    pub fn attach(&self, mux: &Protomux) {
        let weak = Arc::downgrade(&self.handle);
        let own = mux.clone();
        let accept = move |id: Vec<u8>| {
            let Some(handle) = weak.upgrade() else { return };
            if id != own.remote_public_key().as_bytes() {
                return;
            }
            let protocol = PROTOCOL.to_owned();
            let options = ChannelOptions { protocol, id, inbox: INBOX, ..Default::default() };
            let Ok(channel) = own.open(options) else { return };
            let shared = Arc::clone(&handle.shared);
            handle.tasks.spawn_task(serve(shared, Arc::new(channel), own.remote_public_key()));
        };
        mux.on_open(PROTOCOL, Arc::new(move |open| accept(open.id.clone())));
    }

    /// What it does now.
    #[must_use]
    pub fn stats(&self) -> RelayStats {
        let pairings = lock(&self.handle.shared.pairings);
        let active = pairings.values().filter(|pairing| pairing.streams.is_some()).count();
        let pending = pairings.len() - active;
        drop(pairings);
        RelayStats { pending, active, bytes: lock(&self.handle.shared.limit).bytes }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.cancel.cancel();
    }
}

/// Does what one peer asks for, until its channel is closed.
async fn serve(shared: Arc<Shared>, channel: Arc<Channel>, peer: PublicKey) {
    let cancel = shared.cancel.clone();
    while let Some(Some(message)) = cancel.run_until_cancelled(channel.recv()).await {
        let is_good = match message.kind {
            PAIR => {
                Pair::decode(&message.data).map(|pair| shared.pair(&channel, peer, pair)).is_ok()
            }
            UNPAIR => {
                decode_unpair(&message.data).map(|token| shared.unpair(&channel, &token)).is_ok()
            }
            _ => true,
        };
        if !is_good {
            tracing::debug!(peer = peer.short(), "a message to the relay made no sense");
            break;
        }
    }
    channel.close();
    let channel = Arc::downgrade(&channel);
    shared.remove(|pairing| pairing.is_of(&channel));
}

impl Shared {
    fn pair(self: &Arc<Self>, channel: &Arc<Channel>, peer: PublicKey, pair: Pair) {
        let mut pairings = lock(&self.pairings);
        pairings.retain(|_, pairing| !pairing.is_over());
        let is_peers = |pairing: &&Pairing| pairing.sides.iter().flatten().any(|s| s.peer == peer);
        let of_peer = pairings.values().filter(is_peers).count();
        let is_full =
            pairings.len() >= self.options.pairings && !pairings.contains_key(&pair.token);
        if is_full || of_peer >= self.options.pairings_per_peer {
            return tracing::debug!(peer = peer.short(), "no more pairings at the relay");
        }
        let pairing = pairings.entry(pair.token).or_insert_with(|| Pairing {
            sides: [None, None],
            since: Instant::now(),
            streams: None,
        });
        let [other, initiator] = &mut pairing.sides;
        let side = if pair.is_initiator { initiator } else { other };
        if side.is_some() {
            return;
        }
        let channel = Arc::downgrade(channel);
        *side = Some(Side { peer, channel, stream_id: pair.id });
        let [Some(other), Some(initiator)] = &pairing.sides else { return };
        let streams = self.udx.relay([other.stream_id, initiator.stream_id], self.limit());
        for ((side, id), is_initiator) in
            [other, initiator].into_iter().zip(streams.ids()).zip([false, true])
        {
            let answer = Pair { is_initiator, token: pair.token, id };
            let channel = side.channel.upgrade();
            // A side that does not take it has a whole outbox waiting, and gives up after a while.
            let _ = channel.map(|channel| channel.try_send(PAIR, &answer.encode()));
        }
        tracing::debug!(a = other.peer.short(), b = initiator.peer.short(), "relaying");
        pairing.streams = Some(streams);
    }

    fn unpair(&self, channel: &Arc<Channel>, token: &Token) {
        let channel = Arc::downgrade(channel);
        let mut pairings = lock(&self.pairings);
        if pairings.get(token).is_some_and(|pairing| pairing.is_of(&channel))
            && let Some(pairing) = pairings.remove(token)
        {
            pairing.tell(token, Some(&channel));
        }
    }

    /// Ends pairings, and tells those of their sides that have a channel still.
    fn remove(&self, is_over: impl Fn(&Pairing) -> bool) {
        lock(&self.pairings).retain(|token, pairing| {
            let is_over = is_over(pairing);
            if is_over {
                pairing.tell(token, None);
            }
            !is_over
        });
    }

    fn limit(self: &Arc<Self>) -> RelayLimit {
        let shared = Arc::downgrade(self);
        Arc::new(move |bytes| {
            let Some(shared) = shared.upgrade() else { return false };
            let mut meter = lock(&shared.limit);
            let allowed = meter.limit.allow_amount(bytes);
            meter.bytes += if allowed { bytes as u64 } else { 0 };
            allowed
        })
    }
}
