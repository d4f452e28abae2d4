//! Asking a quicker peer for what a slow one was asked for, once nothing else is left to ask.
//!
//! As in npm `hypercore/lib/hotswap-queue.js`, a block is asked of three peers at most. There any block
//! may be asked for again; here only one that should have come by now, from a peer that is silent or
//! much slower, so that equally quick peers do not send everything twice at the end.

use std::time::{Duration, Instant};

use super::local::LocalCore;
use super::peer::Peer;
use super::remote_bitfield::RemoteBitfield;
use super::requests::{Asked, Downloads, PeerId};
use crate::hypercore::messages::Message;

/// The most peers that are asked for one block at once, as in npm hypercore.
const MAX_ASKED: usize = 3;
/// The most requests for blocks of others that a peer has in flight.
const MAX_IN_FLIGHT: usize = 16;
/// How long a block may take at least before it is asked of another, and in round trips of that one.
const PATIENCE: Duration = Duration::from_millis(200);
const PATIENCE_TRIPS: u32 = 4;

/// A block that is asked for.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) peers: Vec<PeerId>,
    /// When the last of them was asked.
    pub(super) since: Instant,
}

/// How a peer does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Bytes of blocks a second, when last measured.
    pub(super) rate: f64,
    /// When it answered last.
    pub(super) answered_at: Instant,
}

/// How long a block may take before another peer is asked, and how many may be at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) patience: Duration,
    pub(super) most: usize,
}

impl Downloads {
    /// Claims, besides those who have them, at most `most` blocks that were asked of slower peers so
    /// long ago that they should be here, the oldest first; and says when to look again.
    pub(super) fn swap(
        &mut self,
        peer: PeerId,
        core: &impl LocalCore,
        bits: &RemoteBitfield,
        end: u64,
        limits: Limits,
        now: Instant,
    ) -> (Vec<u64>, Option<Instant>) {
        let Limits { patience, most } = limits;
        let mine = self.paces.get(&peer).map_or(0.0, |pace| pace.rate);
        let is_slow = |other: &PeerId| {
            let Some(pace) = self.paces.get(other) else { return true };
            if mine == 0.0 {
                return true; // Nobody knows how quick we are before we were asked.
            }
            now.saturating_duration_since(pace.answered_at) > patience || pace.rate * 2.0 < mine
        };
        let (mut due, mut next) = (Vec::new(), None::<Instant>);
        for (index, claim) in &self.claims {
            let can_help = claim.peers.len() < MAX_ASKED
                && !claim.peers.contains(&peer)
                && *index < end
                && bits.has(*index)
                && !core.has(*index);
            if !can_help {
                continue;
            }
            let at = claim.since + patience;
            if at <= now && claim.peers.iter().all(is_slow) {
                due.push((claim.since, *index));
            } else {
                let at = at.max(now + patience / 4);
                next = Some(next.map_or(at, |other| other.min(at)));
            }
        }
        due.sort_unstable();
        due.truncate(most);
        for (_, index) in &due {
            if let Some(claim) = self.claims.get_mut(index) {
                claim.peers.push(peer);
                claim.since = now;
            }
        }
        // With answers on their way, it is looked at again when they come.
        let next = next.filter(|_| due.is_empty());
        (due.into_iter().map(|(_, index)| index).collect(), next)
    }

    /// Whether nobody else is asked for anything.
    fn is_alone(&self, peer: PeerId) -> bool {
        self.paces.keys().all(|other| *other == peer)
    }

    /// Blocks that were asked of `peer` and came from another, since the last call.
    pub(super) fn take_beaten(&mut self, peer: PeerId) -> Vec<u64> {
        self.beaten.remove(&peer).unwrap_or_default()
    }
}

impl Peer {
    /// Cancels what came from others meanwhile.
    pub(super) fn cancel_beaten(&mut self, downloads: &mut Downloads) {
        let mut beaten = downloads.take_beaten(self.id);
        beaten.sort_unstable();
        if beaten.is_empty() {
            return;
        }
        let is_beaten = |asked: &Asked| matches!(asked, Asked::Block { index, .. } if beaten.binary_search(index).is_ok());
        let beaten_requests = self.outstanding.iter().filter(|(_, other)| is_beaten(&other.asked));
        let mut requests: Vec<u64> = beaten_requests.map(|(request, _)| *request).collect();
        requests.sort_unstable();
        for request in requests {
            self.cancel(request, downloads);
        }
    }

    /// Takes a request back.
    pub(super) fn cancel(&mut self, request: u64, downloads: &mut Downloads) {
        let Some(outstanding) = self.outstanding.remove(&request) else { return };
        self.cancels += 1;
        self.out.push(Message::Cancel(request));
        self.settle(request, outstanding.asked, false, downloads);
    }

    /// Asks for what slower peers were asked for.
    pub(super) fn hotswap(
        &mut self,
        core: &impl LocalCore,
        downloads: &mut Downloads,
        end: u64,
        room: u64,
        now: Instant,
    ) {
        let is_early = self.next_swap.is_some_and(|next| now < next);
        if is_early || downloads.is_alone(self.id) {
            return;
        }
        let in_flight = self.outstanding.values().filter(|other| other.is_hotswap).count();
        let most = MAX_IN_FLIGHT.saturating_sub(in_flight).min(usize::try_from(room).unwrap_or(0));
        if most == 0 {
            return;
        }
        let patience = PATIENCE.max(self.pipeline.distance() * PATIENCE_TRIPS);
        let limits = Limits { patience, most };
        let (blocks, next) = downloads.swap(self.id, core, &self.bits, end, limits, now);
        self.next_swap = next;
        for index in blocks {
            let (nodes, depends_on) = self.expected.plan(core, index);
            let asked = Asked::Block { index, nodes };
            let request = self.next_id;
            self.ask(asked, depends_on, false, core, now);
            if let Some(outstanding) = self.outstanding.get_mut(&request) {
                outstanding.is_hotswap = true;
            }
            self.counters.hotswaps += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::local::tests::FakeCore;
    use super::super::requests::Scan;
    use super::*;

    const LIMITS: Limits = Limits { patience: PATIENCE, most: MAX_IN_FLIGHT };

    fn everything() -> (Downloads, RemoteBitfield) {
        let (mut downloads, mut bits) = (Downloads::default(), RemoteBitfield::default());
        downloads.want_all(true);
        bits.set_range(0, 100, true);
        (downloads, bits)
    }

    #[test]
    fn a_block_of_a_slow_peer_is_asked_of_at_most_three_and_cancelled_by_the_first() {
        let core = FakeCore::reader(100);
        let (mut downloads, all) = everything();
        let start = Instant::now();
        let patience = LIMITS.patience;
        let mut scan = Scan::default();
        let asked = downloads.claim_next(PeerId(1), &core, &all, &mut scan, 1, start);
        assert_eq!(asked, Some(0));
        let swap = |downloads: &mut Downloads, peer, at| {
            downloads.swap(PeerId(peer), &core, &all, 100, LIMITS, start + at)
        };
        let (early, next) = swap(&mut downloads, 2, patience / 2);
        assert_eq!((early, next), (vec![], Some(start + patience)));
        for (peer, times) in [(2, 1), (3, 2)] {
            assert_eq!(swap(&mut downloads, peer, patience * times).0, [0]);
            assert_eq!(swap(&mut downloads, peer, patience * times).0, [0; 0]);
        }
        assert_eq!(swap(&mut downloads, 4, patience * 9), (vec![], None));
        downloads.fulfilled(PeerId(2), 0);
        assert_eq!(downloads.take_beaten(PeerId(1)), [0]);
        assert_eq!(downloads.take_beaten(PeerId(3)), [0]);
        assert!(downloads.take_beaten(PeerId(2)).is_empty() && downloads.beaten.is_empty());
    }

    #[test]
    fn a_peer_that_is_as_quick_as_others_takes_nothing_from_them() {
        let core = FakeCore::reader(100);
        let (mut downloads, all) = everything();
        let start = Instant::now();
        let patience = LIMITS.patience;
        downloads.claim_next(PeerId(1), &core, &all, &mut Scan::default(), 1, start);
        let later = start + 10 * patience;
        for (rate, taken) in [(100.0, 0), (201.0, 1)] {
            downloads.note_pace(PeerId(1), Pace { rate: 100.0, answered_at: later });
            downloads.note_pace(PeerId(2), Pace { rate, answered_at: later });
            let (blocks, next) = downloads.swap(PeerId(2), &core, &all, 100, LIMITS, later);
            assert_eq!(blocks.len(), taken);
            assert_eq!(next.is_some(), taken == 0);
        }
    }
}
