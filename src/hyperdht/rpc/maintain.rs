//! The upkeep of the routing table, in ticks of 5 s (`dht-rpc` `_ontick` and what it calls).

use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::MissedTickBehavior;

use super::io::{Attempts, DRAIN_INTERVAL, RequestError};
use super::message::{NodeId, node_id};
use super::serve::{DOWN_HINT, PING};
use super::table::{K, NotAdded, TableNode};
use super::{Call, Rpc};
use crate::crypto;
use crate::encoding::Writer;
use crate::sync::lock;

const TICK: Duration = Duration::from_secs(5);
/// A longer pause between two ticks means that the machine slept.
const SLEPT: Duration = Duration::from_secs(15);
/// After about 20 minutes without trouble a node on a friendly network may become persistent.
pub(crate) const STABLE_TICKS: u64 = 240;
pub(crate) const MORE_STABLE_TICKS: u64 = 3 * STABLE_TICKS;
/// An idle node looks around every 5 minutes.
pub(crate) const REFRESH_TICKS: u64 = 60;
/// Heard from less than a minute ago.
const RECENT_NODE: u64 = 12;
/// Known for more than half an hour.
const OLD_NODE: u64 = 360;
/// Old nodes that are asked at once whether they are alive, because a new one wants their place.
const MAX_SWAPS: usize = 3;
/// Pings of nodes that queries left behind, in flight at once.
const MAX_SLOW_CHECKS: usize = 20;
/// Down hints sent in one tick.
const MAX_DOWN_HINTS: usize = 50;

/// A node that told us of one that is down, and the one that is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DownHint {
    pub to: SocketAddrV4,
    pub down: SocketAddrV4,
}

impl DownHint {
    /// One for each node that named `down`.
    pub(crate) fn to_all(referrers: &[SocketAddrV4], down: SocketAddrV4) -> Vec<Self> {
        referrers.iter().map(|to| Self { to: *to, down }).collect()
    }
}

impl Rpc {
    /// Runs the ticks until the node closes.
    pub(crate) async fn keep_up(self: Arc<Self>) {
        let mut drain = tokio::time::interval(DRAIN_INTERVAL);
        drain.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut last = SystemTime::now();
        loop {
            tokio::select! {
                _ = drain.tick() => {
                    self.io.drain();
                    self.forget_waiting();
                }
                _ = ticks.tick() => {
                    let now = SystemTime::now();
                    let slept = now.duration_since(last).is_ok_and(|pause| pause > SLEPT);
                    last = now;
                    self.on_tick(slept);
                }
            }
        }
    }

    /// One tick; `slept` when the machine seems to have been asleep since the last.
    pub(crate) fn on_tick(self: &Arc<Self>, slept: bool) {
        let mut state = lock(&self.state);
        state.down_hints_sent = 0;
        state.tick += 1;
        if slept {
            // Everything in the table is old news, and so is our address.
            state.tick += 2 * OLD_NODE;
            // Two ticks before the next round of pings.
            state.tick = (state.tick & !7) + 6;
            state.stable_ticks = MORE_STABLE_TICKS;
            state.refresh_ticks = 1;
            state.checked_host = None;
            if self.options.ephemeral.is_none() {
                state.ephemeral = true;
            }
        }
        if !state.bootstrapped {
            return;
        }
        if self.options.ephemeral.is_none() && state.ephemeral {
            state.stable_ticks = state.stable_ticks.saturating_sub(1);
            if state.stable_ticks == 0 {
                state.stable_ticks = MORE_STABLE_TICKS;
                if state.checked_host.is_none() || state.checked_host != state.nat.view().host() {
                    let rpc = Arc::clone(self);
                    self.spawn(async move { _ = rpc.update_network_state(false).await });
                }
            }
        }
        let tick = state.tick;
        let is_small = state.table.len() < K;
        state.refresh_ticks = state.refresh_ticks.saturating_sub(1);
        let refresh = (tick.is_multiple_of(64) && is_small) || state.refresh_ticks == 0;
        drop(state);
        if slept {
            self.network_changes.send_modify(|changes| *changes += 1);
        }
        if tick.is_multiple_of(8) {
            self.ping_some();
        }
        if refresh {
            self.refresh();
        }
    }

    /// Looks around in the background, at a random place that we know of.
    pub(crate) fn refresh(self: &Arc<Self>) {
        let target = {
            let mut state = lock(&self.state);
            state.refresh_ticks = REFRESH_TICKS;
            let index = random_below(state.table.len().max(1) as u64) as usize;
            state.table.nth(index).map_or(state.table.id(), |node| node.id)
        };
        let rpc = Arc::clone(self);
        self.spawn(async move { rpc.background_query(target).await });
    }

    /// Asks the nodes that were silent for longest whether they are alive.
    fn ping_some(self: &Arc<Self>) {
        let nodes: Vec<NodeId> = {
            let state = lock(&self.state);
            let tick = state.tick;
            let nodes = state.table.oldest_first();
            let is_recent = |node: &&TableNode| tick.saturating_sub(node.pinged) < RECENT_NODE;
            let count = match nodes.first() {
                Some(oldest) if is_recent(oldest) => 2,
                _ if self.io.stats().in_flight > 2 => 3,
                _ => 5,
            };
            let due = nodes.into_iter().take(count).filter(|node| node.pinged != tick);
            due.map(|node| node.id).collect()
        };
        if nodes.is_empty() && lock(&self.state).table.len() == 0 {
            self.refresh();
        }
        nodes.into_iter().for_each(|id| self.check(id));
    }

    /// Pings a node of the table, which loses its place when it is silent.
    pub(crate) fn check(self: &Arc<Self>, id: NodeId) {
        let (address, last_seen) = {
            let mut state = lock(&self.state);
            let tick = state.tick;
            let Some(node) = state.table.get_mut(&id) else { return };
            node.pinged = tick;
            let found = (node.address, node.seen);
            state.checks += 1;
            found
        };
        let rpc = Arc::clone(self);
        self.spawn(async move {
            let answer = rpc.ping(address.into()).await;
            let mut state = lock(&rpc.state);
            state.checks = state.checks.saturating_sub(1);
            let tick = state.tick;
            let is_silent = matches!(answer, Err(RequestError::Timeout));
            let is_stale =
                |node: &TableNode| is_silent || node.seen <= last_seen && node.seen != tick;
            if state.table.get(&id).is_some_and(is_stale) {
                state.table.remove(&id);
            }
        });
    }

    /// A ping of this layer, with retries. Gives our address as the other side sees it.
    pub(crate) async fn ping(&self, to: SocketAddr) -> Result<Option<SocketAddrV4>, RequestError> {
        let reply = self.request(to, Call::internal(PING, None), Attempts::default()).await?;
        Ok(reply.to)
    }

    /// A persistent node sent us something, seeing us at `sample`.
    pub(crate) fn heard_from_node(
        self: &Arc<Self>,
        address: SocketAddrV4,
        sample: Option<SocketAddrV4>,
    ) {
        if self.options.direct_only {
            return;
        }
        let id = node_id(address);
        let mut state = lock(&self.state);
        let tick = state.tick;
        if let Some(node) = state.table.heard(&id, tick) {
            node.down_hinted = false;
            let is_due = node.sampled.is_none_or(|at| tick.saturating_sub(at) >= OLD_NODE);
            if let Some(sample) = sample.filter(|_| is_due) {
                node.sampled = Some(tick);
                self.sample(state, sample);
            }
            return;
        }
        let mut node = TableNode::new(address, tick);
        node.sampled = sample.map(|_| tick);
        match state.table.add(node.clone()) {
            Ok(()) => {
                if let Some(sample) = sample {
                    self.sample(state, sample);
                }
            }
            Err(NotAdded::Known | NotAdded::BlockFull) => {}
            Err(NotAdded::RowFull) => {
                drop(state);
                self.on_full_row(node);
            }
        }
    }

    /// Somebody who is no persistent node answered us; a few of these, bootstrap nodes most likely,
    /// tell us our address.
    pub(crate) fn sample_ephemeral(&self, from: SocketAddr, to: Option<SocketAddrV4>) {
        let Some(to) = to else { return };
        let mut state = lock(&self.state);
        let limit = self.options.bootstrap.len().max(1);
        if state.ephemeral_samples.len() < limit && !state.ephemeral_samples.contains(&from) {
            state.ephemeral_samples.push(from);
            self.sample(state, to);
        }
    }

    fn sample(&self, mut state: std::sync::MutexGuard<'_, super::State>, sample: SocketAddrV4) {
        let before = state.nat.view();
        state.nat.add(sample);
        let after = state.nat.view();
        drop(state);
        if before != after {
            tracing::debug!(?after, "our address changed");
            self.network_changes.send_modify(|changes| *changes += 1);
        }
    }

    /// A new node finds no place: the one we have not heard from for longest has to answer or go.
    fn on_full_row(self: &Arc<Self>, newcomer: TableNode) {
        let (old, last_seen) = {
            let mut state = lock(&self.state);
            if !state.bootstrapped || state.swaps >= MAX_SWAPS {
                return;
            }
            let tick = state.tick;
            let Some(old) = state.table.stalest_in_row_of(&newcomer.id, tick).cloned() else {
                return;
            };
            let is_recent = tick.saturating_sub(old.pinged) < RECENT_NODE;
            if is_recent && tick.saturating_sub(old.added) > OLD_NODE {
                return;
            }
            if let Some(node) = state.table.get_mut(&old.id) {
                node.pinged = tick;
            }
            state.swaps += 1;
            (old.clone(), old.seen)
        };
        let rpc = Arc::clone(self);
        self.spawn(async move {
            let answer = rpc.ping(old.address.into()).await;
            let mut state = lock(&rpc.state);
            state.swaps = state.swaps.saturating_sub(1);
            let lives = answer.is_ok()
                && state.table.get(&old.id).is_some_and(|node| node.seen >= last_seen);
            if !lives {
                state.table.remove(&old.id);
                // Another node may have taken the place meanwhile.
                let _ = state.table.add(newcomer);
            }
        });
    }

    /// A node that was asked for something did not answer.
    pub(crate) fn on_timeout(&self, address: SocketAddrV4) {
        lock(&self.state).table.remove(&node_id(address));
    }

    /// A query went on without these nodes: those that are down leave the table, and whoever named them
    /// hears of it, or the next query meets them again.
    pub(crate) fn check_slow(self: &Arc<Self>, slow: Vec<(SocketAddrV4, Vec<DownHint>)>) {
        for (address, hints) in slow {
            {
                let mut state = lock(&self.state);
                if state.checks >= MAX_SLOW_CHECKS {
                    return;
                }
                state.checks += 1;
            }
            let rpc = Arc::clone(self);
            self.spawn(async move {
                let answer = rpc.ping(address.into()).await;
                {
                    let mut state = lock(&rpc.state);
                    state.checks = state.checks.saturating_sub(1);
                }
                if matches!(answer, Err(RequestError::Timeout)) {
                    rpc.on_timeout(address);
                    rpc.send_down_hints(hints);
                }
            });
        }
    }

    /// Tells nodes that one they named is down. At most 50 in a tick.
    pub(crate) fn send_down_hints(self: &Arc<Self>, hints: Vec<DownHint>) {
        for hint in hints {
            {
                let mut state = lock(&self.state);
                if state.down_hints_sent >= MAX_DOWN_HINTS {
                    return;
                }
                state.down_hints_sent += 1;
            }
            let value = Writer::new().ipv4_address(hint.down).as_slice().to_vec();
            let rpc = Arc::clone(self);
            self.spawn(async move {
                let call = Call::internal(DOWN_HINT, Some(Bytes::from(value)));
                // A hint is a courtesy: nothing follows from its loss.
                let _ = rpc.request(hint.to.into(), call, Attempts::default()).await;
            });
        }
    }
}

/// A random number below `limit`, which must not be 0.
pub(crate) fn random_below(limit: u64) -> u64 {
    u64::from_le_bytes(crypto::random()) % limit
}
