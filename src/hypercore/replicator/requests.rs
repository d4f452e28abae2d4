//! What is being downloaded: one [`Downloads`] a core, shared by its peers, so that no block is asked
//! of two of them before the first has had its time.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use super::forks::ForkLimit;
use super::hotswap::{Claim, Pace};
use super::local::LocalCore;
use super::pipeline::Sent;
use super::remote_bitfield::RemoteBitfield;
use super::seeks::Seeks;
use super::wanted::Wanted;

/// Names one (core, peer) pair within a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PeerId(pub(super) u64);

/// Which blocks of a core are wanted, and which are asked of whom.
#[derive(Debug, Default)]
pub(super) struct Downloads {
    pub(super) seeks: Seeks,
    wanted: Wanted,
    pub(super) claims: HashMap<u64, Claim>,
    /// Blocks that are asked for before all others: they are missing and not asked of anybody (any
    /// more), or somebody waits for just them.
    released: BTreeSet<u64>,
    /// Blocks that somebody waits for, and how many do.
    urgent: HashMap<u64, usize>,
    /// Changes with every release, so that a peer looks through `released` once a change.
    version: u64,
    /// The fork that all of this is about.
    fork: u64,
    /// Changes with the fork and when more is wanted: what a peer had looked through is to be looked
    /// through again.
    epoch: u64,
    /// All blocks below are here, claimed, released or not wanted.
    cursor: u64,
    /// Who was asked for an upgrade; one at a time, because each starts where the last ended.
    upgrade: Option<PeerId>,
    /// How often the core may become another fork.
    pub(super) forks: ForkLimit,
    /// How the peers do, to tell who is slow.
    pub(super) paces: HashMap<PeerId, Pace>,
    /// Blocks that were asked of a peer, and came from another.
    pub(super) beaten: HashMap<PeerId, Vec<u64>>,
}

/// Where a peer is in looking for blocks to ask for.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Below, this peer has nothing that is wanted, missing and unclaimed, except what was released.
    cursor: u64,
    /// The `version` at which `released` had nothing for this peer.
    version: Option<u64>,
    /// The `epoch` that the cursor is about.
    epoch: u64,
}

impl Scan {
    /// Starts over, after the peer said that it has more.
    pub(super) fn restart(&mut self) {
        *self = Self::default();
    }
}

impl Downloads {
    /// Which blocks are wanted.
    pub(super) fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// Wants every block, or only those that somebody waits for.
    pub(super) fn want_all(&mut self, all: bool) {
        self.wanted.set_all(all);
        self.look_again(0);
    }

    /// Wants these blocks until [`Self::unwant`] is called with the id that is returned. A single one is
    /// asked for before all others.
    pub(super) fn want(&mut self, blocks: std::ops::Range<u64>) -> u64 {
        if blocks.end == blocks.start.saturating_add(1) {
            *self.urgent.entry(blocks.start).or_default() += 1;
            if !self.claims.contains_key(&blocks.start) {
                self.released.insert(blocks.start);
            }
        }
        self.look_again(blocks.start);
        self.wanted.add(blocks)
    }

    /// Wants these blocks no more, unless others do.
    pub(super) fn unwant(&mut self, id: u64, blocks: &std::ops::Range<u64>) {
        self.wanted.remove(id);
        if blocks.end == blocks.start.saturating_add(1)
            && let Some(waiting) = self.urgent.get_mut(&blocks.start)
        {
            *waiting -= 1;
            if *waiting == 0 {
                self.urgent.remove(&blocks.start);
            }
        }
    }

    /// Whether somebody waits for just this block.
    pub(super) fn is_urgent(&self, index: u64) -> bool {
        self.urgent.contains_key(&index)
    }

    /// Claims a wanted block below `end` that is missing here, present there and asked of nobody.
    pub(super) fn claim_next(
        &mut self,
        peer: PeerId,
        core: &impl LocalCore,
        bits: &RemoteBitfield,
        scan: &mut Scan,
        end: u64,
        now: Instant,
    ) -> Option<u64> {
        if scan.epoch != self.epoch {
            *scan = Scan { epoch: self.epoch, ..Scan::default() };
        }
        let index = self.next_released(core, bits, scan, end).or_else(|| {
            let index = self.next_unclaimed(core, bits, scan, end)?;
            scan.cursor = index + 1;
            if index == self.cursor {
                self.cursor += 1;
            }
            Some(index)
        })?;
        self.claims.insert(index, Claim { peers: vec![peer], since: now });
        Some(index)
    }

    fn next_released(
        &mut self,
        core: &impl LocalCore,
        bits: &RemoteBitfield,
        scan: &mut Scan,
        end: u64,
    ) -> Option<u64> {
        if scan.version == Some(self.version) {
            return None;
        }
        let mut done = Vec::new();
        let found = self.released.iter().copied().find(|index| {
            let is_done = core.has(*index)
                || self.claims.contains_key(index)
                || !self.wanted.contains(*index);
            if is_done {
                done.push(*index);
            }
            !is_done && *index < end && bits.has(*index)
        });
        for index in done.into_iter().chain(found) {
            self.released.remove(&index);
        }
        if found.is_none() {
            scan.version = Some(self.version);
        }
        found
    }

    fn next_unclaimed(
        &mut self,
        core: &impl LocalCore,
        bits: &RemoteBitfield,
        scan: &mut Scan,
        end: u64,
    ) -> Option<u64> {
        self.cursor = self.cursor.max(core.contiguous_length());
        while self.cursor < end && self.is_taken(core, self.cursor) {
            self.cursor += 1;
        }
        let mut at = scan.cursor.max(self.cursor);
        loop {
            at = self.wanted.next(core.next_missing(at)).filter(|next| *next < end)?;
            let there = bits.next_set(at, end)?;
            if there != at {
                at = there;
                continue;
            }
            if self.is_taken(core, at) || self.released.contains(&at) {
                at += 1;
                scan.cursor = at;
                continue;
            }
            return Some(at);
        }
    }

    /// Looks again for what went missing when the core became another fork.
    pub(super) fn follow_fork(&mut self, core: &impl LocalCore) {
        let fork = core.fork();
        if fork == self.fork {
            return;
        }
        let common = core.common_since(self.fork);
        self.fork = fork;
        self.released.split_off(&common);
        self.look_again(common);
    }

    /// The block arrived from `peer` and is verified. Others need not send it any more.
    pub(super) fn fulfilled(&mut self, peer: PeerId, index: u64) {
        let Some(claim) = self.claims.remove(&index) else { return };
        for other in claim.peers.into_iter().filter(|other| *other != peer) {
            self.beaten.entry(other).or_default().push(index);
            self.version += 1;
        }
    }

    /// The block did not arrive from `peer`; if it was asked of nobody else, anybody may be.
    pub(super) fn release(&mut self, peer: PeerId, index: u64) {
        let Some(claim) = self.claims.get_mut(&index) else { return };
        claim.peers.retain(|other| *other != peer);
        if claim.peers.is_empty() {
            self.claims.remove(&index);
            self.released.insert(index);
            self.version += 1;
        }
    }

    /// Gives back everything that is still claimed for a peer, and forgets it.
    pub(super) fn release_all(&mut self, peer: PeerId) {
        let owned = self.claims.iter().filter(|(_, claim)| claim.peers.contains(&peer));
        for index in owned.map(|(index, _)| *index).collect::<Vec<_>>() {
            self.release(peer, index);
        }
        self.beaten.remove(&peer);
        self.paces.remove(&peer);
        self.seek_released(peer);
        self.upgrade_done(peer);
    }

    /// Claims the upgrade; false while another is under way.
    pub(super) fn claim_upgrade(&mut self, peer: PeerId) -> bool {
        if self.upgrade.is_some() {
            return false;
        }
        self.upgrade = Some(peer);
        true
    }

    /// The upgrade asked of `peer` is done, one way or the other.
    pub(super) fn upgrade_done(&mut self, peer: PeerId) {
        if self.upgrade == Some(peer) {
            self.upgrade = None;
            self.version += 1;
        }
    }

    /// Claims this block, unless it is here, asked of somebody, or not wanted.
    pub(super) fn claim(
        &mut self,
        peer: PeerId,
        core: &impl LocalCore,
        index: u64,
        now: Instant,
    ) -> bool {
        if self.is_taken(core, index) || !self.wanted.contains(index) {
            return false;
        }
        self.released.remove(&index);
        self.claims.insert(index, Claim { peers: vec![peer], since: now });
        true
    }

    /// A byte was looked for at `peer`, with or without success.
    pub(super) fn seek_done(&mut self, peer: PeerId, seek: u64) {
        if self.seeks.answered(seek, peer) {
            self.version += 1;
        }
    }

    fn seek_released(&mut self, peer: PeerId) {
        if self.seeks.release(peer) {
            self.version += 1;
        }
    }

    /// Notes how a peer does.
    pub(super) fn note_pace(&mut self, peer: PeerId, pace: Pace) {
        self.paces.insert(peer, pace);
    }

    /// Changes whenever something becomes free for other peers to ask for.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// How many blocks are asked for.
    #[cfg(test)]
    pub(super) fn claimed(&self) -> usize {
        self.claims.len()
    }

    /// More is wanted from `index` on.
    fn look_again(&mut self, index: u64) {
        self.cursor = self.cursor.min(index);
        self.epoch += 1;
        self.version += 1;
    }

    fn is_taken(&self, core: &impl LocalCore, index: u64) -> bool {
        self.claims.contains_key(&index) || core.has(index)
    }
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// A block and this many levels of proof.
    Block { index: u64, nodes: u64 },
    /// The log's growth from `start`, with the first new block where the peer has it.
    Upgrade { start: u64, length: u64, block: Option<u64> },
    /// The manifest alone.
    Manifest,
    /// All of the tree of a later fork, and its signature.
    Fork { length: u64 },
    /// The hashes from block `index` up so many levels, which show what a later fork has in common.
    Path { index: u64, levels: u64 },
    /// Proof of all of a log that is written here, to see whether it is written elsewhere too.
    Check { length: u64 },
    /// Tree nodes on the way to a byte, from a leaf up so many levels.
    Seek { seek: u64, bytes: u64, index: u64, nodes: u64 },
}

impl Asked {
    /// Whether it is about a later fork than ours.
    pub(super) fn is_fork(&self) -> bool {
        matches!(self, Self::Fork { .. } | Self::Path { .. })
    }
}

/// A request that was sent and not answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outstanding {
    /// What for.
    pub(super) asked: Asked,
    /// The fork that it is about.
    pub(super) fork: u64,
    /// The request whose answer brings the node this one's proof ends at.
    pub(super) depends_on: Option<u64>,
    /// When it was sent.
    pub(super) sent: Sent,
    /// Somebody else was asked before, and is slow.
    pub(super) is_hotswap: bool,
}

#[cfg(test)]
mod tests {
    use super::super::local::tests::FakeCore;
    use super::*;

    fn now() -> Instant {
        Instant::now()
    }

    /// Downloads of everything.
    fn downloads() -> Downloads {
        let mut downloads = Downloads::default();
        downloads.want_all(true);
        downloads
    }

    fn bits(ranges: &[(u64, u64)]) -> RemoteBitfield {
        let mut bits = RemoteBitfield::default();
        for (start, length) in ranges {
            bits.set_range(*start, *length, true);
        }
        bits
    }

    #[test]
    fn two_peers_are_never_asked_for_one_block() {
        let core = FakeCore::reader(100);
        let (mut downloads, all) = (downloads(), bits(&[(0, 100)]));
        let mut scans = [Scan::default(), Scan::default()];
        let mut asked = BTreeSet::new();
        for turn in 0..100 {
            let scan = &mut scans[turn % 2];
            let peer = PeerId(turn as u64 % 2);
            asked.insert(downloads.claim_next(peer, &core, &all, scan, 100, now()).unwrap());
        }
        assert_eq!(asked.len(), 100);
        let more = downloads.claim_next(PeerId(0), &core, &all, &mut scans[0], 100, now());
        assert_eq!(more, None);
    }

    #[test]
    fn a_peer_with_holes_leaves_the_holes_to_others() {
        let core = FakeCore::reader(10);
        let mut downloads = downloads();
        let (some, all) = (bits(&[(4, 2)]), bits(&[(0, 10)]));
        let (mut first, mut second) = (Scan::default(), Scan::default());
        let mut next = |bits: &RemoteBitfield, scan: &mut Scan| {
            downloads.claim_next(PeerId(1), &core, bits, scan, 10, now())
        };
        assert_eq!(next(&some, &mut first), Some(4));
        assert_eq!(next(&some, &mut first), Some(5));
        assert_eq!(next(&some, &mut first), None);
        let rest: Vec<u64> = std::iter::from_fn(|| next(&all, &mut second)).collect();
        assert_eq!(rest, [0, 1, 2, 3, 6, 7, 8, 9]);
    }

    #[test]
    fn a_released_block_is_claimed_again_first() {
        let core = FakeCore::reader(10);
        let (mut downloads, all) = (downloads(), bits(&[(0, 10)]));
        let mut scan = Scan::default();
        let mut next = |downloads: &mut Downloads, peer| {
            downloads.claim_next(peer, &core, &all, &mut scan, 10, now())
        };
        for _ in 0..5 {
            next(&mut downloads, PeerId(1));
        }
        downloads.release(PeerId(1), 2);
        downloads.release(PeerId(1), 2);
        assert_eq!(next(&mut downloads, PeerId(2)), Some(2));
        assert_eq!(next(&mut downloads, PeerId(2)), Some(5));
    }

    #[test]
    fn only_what_is_wanted_is_claimed_and_single_blocks_first() {
        let core = FakeCore::reader(100);
        let (mut downloads, all) = (Downloads::default(), bits(&[(0, 100)]));
        let mut scan = Scan::default();
        let mut next = |downloads: &mut Downloads| {
            downloads.claim_next(PeerId(1), &core, &all, &mut scan, 100, now())
        };
        assert_eq!(next(&mut downloads), None);
        downloads.want(40..43);
        assert_eq!(next(&mut downloads), Some(40));
        let id = downloads.want(90..91);
        assert!(downloads.is_urgent(90));
        assert_eq!(next(&mut downloads), Some(90));
        downloads.want(7..9);
        let rest: Vec<u64> = std::iter::from_fn(|| next(&mut downloads)).collect();
        assert_eq!(rest, [7, 8, 41, 42]);
        downloads.unwant(id, &(90..91));
        downloads.release(PeerId(1), 90);
        downloads.release(PeerId(1), 41);
        assert_eq!(next(&mut downloads), Some(41));
        assert_eq!(next(&mut downloads), None);
    }
}
