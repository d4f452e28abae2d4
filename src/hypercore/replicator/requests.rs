//! What is being downloaded: one [`Downloads`] a core, shared by its peers, so that no block is asked
//! of two of them; and one [`ExpectedNodes`] a peer, so that no tree node is asked for twice.

use std::collections::{BTreeSet, HashMap};

use super::forks::ForkLimit;
use super::local::LocalCore;
use super::pipeline::Sent;
use super::remote_bitfield::RemoteBitfield;

/// Names one (core, peer) pair within a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PeerId(pub(super) u64);

/// Which blocks of a core are asked of whom.
#[derive(Debug, Default)]
pub(super) struct Downloads {
    claims: HashMap<u64, PeerId>,
    /// Blocks below some cursor that are missing and not asked of anybody (any more).
    released: BTreeSet<u64>,
    /// Changes with every release, so that a peer looks through `released` once a change.
    version: u64,
    /// All blocks below are here, claimed or released.
    cursor: u64,
    /// The fork that all of this is about.
    fork: u64,
    /// Changes with the fork, so that every peer is searched from the start.
    epoch: u64,
    /// Who was asked for an upgrade; one at a time, because each starts where the last ended.
    upgrade: Option<PeerId>,
    /// How often the core may become another fork.
    pub(super) forks: ForkLimit,
}

/// Where a peer is in looking for blocks to ask for.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Below, this peer has nothing that is missing and unclaimed, except what was released.
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
    /// Claims a block below `end` that is missing here, present there and asked of nobody.
    pub(super) fn claim_next(
        &mut self,
        peer: PeerId,
        core: &impl LocalCore,
        bits: &RemoteBitfield,
        scan: &mut Scan,
        end: u64,
    ) -> Option<u64> {
        if scan.epoch != self.epoch {
            *scan = Scan { epoch: self.epoch, ..Scan::default() };
        }
        if scan.version != Some(self.version) {
            let mut here = Vec::new();
            let found = self.released.iter().copied().find(|index| {
                let known = core.has(*index);
                if known {
                    here.push(*index);
                }
                !known && *index < end && bits.has(*index)
            });
            for index in here {
                self.released.remove(&index);
            }
            if let Some(index) = found {
                self.released.remove(&index);
                self.claims.insert(index, peer);
                return Some(index);
            }
            scan.version = Some(self.version);
        }
        self.cursor = self.cursor.max(core.contiguous_length());
        while self.cursor < end && self.is_taken(core, self.cursor) {
            self.cursor += 1;
        }
        let mut at = scan.cursor.max(self.cursor);
        loop {
            at = bits.next_set(core.next_missing(at), end)?;
            if !self.is_taken(core, at) && !self.released.contains(&at) {
                break;
            }
            at += 1;
            scan.cursor = at;
        }
        scan.cursor = at + 1;
        if at == self.cursor {
            self.cursor += 1;
        }
        self.claims.insert(at, peer);
        Some(at)
    }

    /// Looks again for what went missing when the core became another fork.
    pub(super) fn follow_fork(&mut self, core: &impl LocalCore) {
        let fork = core.fork();
        if fork == self.fork {
            return;
        }
        let common = core.common_since(self.fork);
        self.fork = fork;
        self.cursor = self.cursor.min(common);
        self.released.split_off(&common);
        self.epoch += 1;
        self.version += 1;
    }

    /// The block arrived and is verified.
    pub(super) fn fulfilled(&mut self, index: u64) {
        self.claims.remove(&index);
    }

    /// The block did not arrive; anybody may be asked for it.
    pub(super) fn release(&mut self, index: u64) {
        if self.claims.remove(&index).is_some() {
            self.released.insert(index);
            self.version += 1;
        }
    }

    /// Gives back everything that is still claimed for a peer.
    pub(super) fn release_all(&mut self, peer: PeerId) {
        let owned = self.claims.iter().filter(|(_, owner)| **owner == peer);
        for index in owned.map(|(index, _)| *index).collect::<Vec<_>>() {
            self.release(index);
        }
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

    /// Claims this block, unless it is here or asked of somebody.
    pub(super) fn claim(&mut self, peer: PeerId, core: &impl LocalCore, index: u64) -> bool {
        if self.is_taken(core, index) {
            return false;
        }
        self.released.remove(&index);
        self.claims.insert(index, peer);
        true
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
}

/// The tree nodes that answers on their way from one peer will bring.
///
/// While the blocks of one subtree are asked for back to back, only the first answer has to prove
/// its way up; each later one ends at a node that an earlier one carries. That is one hash a block
/// instead of a dozen.
#[derive(Debug, Default)]
pub(super) struct ExpectedNodes {
    by_request: HashMap<u64, u64>,
}

impl ExpectedNodes {
    /// How many levels of proof a block needs, and which request in flight it relies on.
    pub(super) fn plan(&self, core: &impl LocalCore, block: u64) -> (u64, Option<u64>) {
        let end = core.length().saturating_mul(2);
        for ((node, right_span), level) in path(block).zip(0..) {
            if right_span >= end {
                break;
            }
            if let Some(request) = self.by_request.get(&node) {
                return (level, Some(*request));
            }
        }
        (core.missing_nodes(block), None)
    }

    /// The answer to `request` will bring the nodes beside and on `levels` levels above `block`.
    pub(super) fn add(&mut self, request: u64, block: u64, levels: u64) {
        for ((node, _), level) in path(block).zip(0..levels) {
            self.by_request.insert(node, request);
            self.by_request.insert(sibling(node, level), request);
        }
    }

    /// The answer to `request` arrived or never will.
    pub(super) fn remove(&mut self, request: u64, block: u64, levels: u64) {
        for ((node, _), level) in path(block).zip(0..levels) {
            for node in [node, sibling(node, level)] {
                if self.by_request.get(&node) == Some(&request) {
                    self.by_request.remove(&node);
                }
            }
        }
    }
}

/// The flat-tree indexes from a block upwards, each with the index of the last leaf below it.
fn path(block: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..53u32).map_while(move |level| {
        let first = block >> level << level;
        let node = first.checked_mul(2)?.checked_add((1 << level) - 1)?;
        Some((node, node + (1 << level) - 1))
    })
}

/// The other child of the parent of a node `level` levels above the leaves.
fn sibling(node: u64, level: u64) -> u64 {
    node ^ (2 << level)
}

#[cfg(test)]
mod tests {
    use super::super::local::tests::FakeCore;
    use super::*;

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
        let (mut downloads, all) = (Downloads::default(), bits(&[(0, 100)]));
        let mut scans = [Scan::default(), Scan::default()];
        let mut asked = BTreeSet::new();
        for turn in 0..100 {
            let scan = &mut scans[turn % 2];
            let peer = PeerId(turn as u64 % 2);
            asked.insert(downloads.claim_next(peer, &core, &all, scan, 100).unwrap());
        }
        assert_eq!(asked.len(), 100);
        assert_eq!(downloads.claim_next(PeerId(0), &core, &all, &mut scans[0], 100), None);
    }

    #[test]
    fn a_peer_with_holes_leaves_the_holes_to_others() {
        let core = FakeCore::reader(10);
        let mut downloads = Downloads::default();
        let (some, all) = (bits(&[(4, 2)]), bits(&[(0, 10)]));
        let (mut first, mut second) = (Scan::default(), Scan::default());
        let mut next = |bits: &RemoteBitfield, scan: &mut Scan| {
            downloads.claim_next(PeerId(1), &core, bits, scan, 10)
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
        let (mut downloads, all) = (Downloads::default(), bits(&[(0, 10)]));
        let mut scan = Scan::default();
        for _ in 0..5 {
            downloads.claim_next(PeerId(1), &core, &all, &mut scan, 10);
        }
        downloads.release(2);
        downloads.release(2);
        assert_eq!(downloads.claim_next(PeerId(2), &core, &all, &mut scan, 10), Some(2));
        assert_eq!(downloads.claim_next(PeerId(2), &core, &all, &mut scan, 10), Some(5));
    }

    #[test]
    fn blocks_in_a_row_need_about_one_node_each() {
        let core = FakeCore::reader(1024);
        let mut expected = ExpectedNodes::default();
        let mut total = 0;
        for block in 0..1024 {
            let (levels, depends_on) = expected.plan(&core, block);
            assert_eq!(depends_on.is_some(), block > 0);
            expected.add(block + 1, block, levels);
            total += levels;
        }
        assert_eq!(total, 1023);
        for block in 0..1024u64 {
            expected.remove(block + 1, block, 10);
        }
        assert!(expected.by_request.is_empty());
    }
}
