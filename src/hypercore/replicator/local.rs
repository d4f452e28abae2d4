//! What replication has to know of a core: enough for the state machine, nothing of storage.

use std::ops::Range;

use crate::hypercore::{Core, Position};

/// A core as the state machine sees it. Answers are immediate.
pub(super) trait LocalCore {
    /// The verified length in blocks.
    fn length(&self) -> u64;
    /// The verified length in bytes.
    fn byte_length(&self) -> u64;
    /// The fork.
    fn fork(&self) -> u64;
    /// How many blocks the log surely has in common with what it was at an earlier fork.
    fn common_since(&self, fork: u64) -> u64;
    /// All blocks below are here.
    fn contiguous_length(&self) -> u64;
    /// Whether a block is here.
    fn has(&self, index: u64) -> bool;
    /// The first block at or after `from` that is not here.
    fn next_missing(&self, from: u64) -> u64;
    /// The first block at or after `from` that is here.
    fn next_present(&self, from: u64) -> Option<u64>;
    /// The blocks that the byte at `offset` may be in, while that is more than one.
    fn seek(&self, offset: u64) -> Option<Range<u64>>;
    /// Bitfield words of 32 blocks from `start`, a multiple of 32; zeros at the end may be missing.
    fn bitfield_words(&self, start: u64, count: usize) -> Vec<u32>;
    /// How many levels above a block there is no tree node here.
    fn missing_nodes(&self, block: u64) -> u64;
    /// Whether an upgrade from `length` can be proven.
    fn can_upgrade_from(&self, length: u64) -> bool;
    /// Whether the manifest is here and can be sent (a compat core has none to send).
    fn has_manifest(&self) -> bool;
    /// Whether the manifest is still unknown.
    fn needs_manifest(&self) -> bool;
    /// Whether this is where the log is written.
    fn is_writer(&self) -> bool;
}

impl LocalCore for Core {
    fn length(&self) -> u64 {
        self.length()
    }
    fn byte_length(&self) -> u64 {
        self.byte_length()
    }
    fn fork(&self) -> u64 {
        self.fork()
    }
    fn common_since(&self, fork: u64) -> u64 {
        self.common_since(fork)
    }
    fn contiguous_length(&self) -> u64 {
        self.contiguous_length()
    }
    fn has(&self, index: u64) -> bool {
        self.has(index)
    }
    fn next_missing(&self, from: u64) -> u64 {
        self.next_missing(from)
    }
    fn next_present(&self, from: u64) -> Option<u64> {
        self.next_present(from)
    }
    fn seek(&self, offset: u64) -> Option<Range<u64>> {
        match self.seek(offset) {
            Ok(Position::Between { start, end }) => Some(start..end),
            _ => None,
        }
    }
    fn bitfield_words(&self, start: u64, count: usize) -> Vec<u32> {
        self.bitfield_words(start, count)
    }
    fn missing_nodes(&self, block: u64) -> u64 {
        // A storage that fails here fails the answer's verification too, where it is reported.
        self.missing_nodes(block.saturating_mul(2)).unwrap_or(0)
    }
    fn can_upgrade_from(&self, length: u64) -> bool {
        self.can_upgrade_from(length).unwrap_or(false)
    }
    fn has_manifest(&self) -> bool {
        self.manifest().is_some_and(|manifest| !manifest.is_compat(self.key()))
    }
    fn needs_manifest(&self) -> bool {
        self.manifest().is_none()
    }
    fn is_writer(&self) -> bool {
        self.writable()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The flat-tree indexes of the roots over `length` blocks, left to right.
    pub(in super::super) fn full_roots(length: u64) -> impl Iterator<Item = u64> {
        let mut start = 0;
        (0..64u32).rev().filter(move |level| length >> level & 1 == 1).map(move |level| {
            let root = 2 * start + (1 << level) - 1;
            start += 1 << level;
            root
        })
    }

    /// A core of bits and nodes that are set by hand.
    #[derive(Debug, Default)]
    pub(in super::super) struct FakeCore {
        pub(in super::super) length: u64,
        pub(in super::super) fork: u64,
        /// What `common_since` says of all earlier forks.
        pub(in super::super) common: u64,
        pub(in super::super) blocks: BTreeSet<u64>,
        pub(in super::super) nodes: BTreeSet<u64>,
        pub(in super::super) manifest: bool,
        pub(in super::super) written_here: bool,
    }

    impl FakeCore {
        /// Knows `length` blocks' roots and has none of the blocks.
        pub(in super::super) fn reader(length: u64) -> Self {
            let nodes = full_roots(length).collect();
            Self { length, nodes, manifest: true, ..Self::default() }
        }

        /// Has all of `length` blocks.
        pub(in super::super) fn writer(length: u64) -> Self {
            let nodes = (0..2 * length).collect();
            Self {
                length,
                blocks: (0..length).collect(),
                nodes,
                manifest: true,
                written_here: true,
                ..Self::default()
            }
        }
    }

    impl LocalCore for FakeCore {
        fn length(&self) -> u64 {
            self.length
        }
        fn byte_length(&self) -> u64 {
            self.length * 100
        }
        fn fork(&self) -> u64 {
            self.fork
        }
        fn common_since(&self, fork: u64) -> u64 {
            if fork == self.fork { u64::MAX } else { self.common }
        }
        fn contiguous_length(&self) -> u64 {
            (0..).take_while(|index| self.blocks.contains(index)).count() as u64
        }
        fn has(&self, index: u64) -> bool {
            self.blocks.contains(&index)
        }
        fn next_missing(&self, from: u64) -> u64 {
            (from..).find(|index| !self.has(*index)).unwrap_or(u64::MAX)
        }
        fn next_present(&self, from: u64) -> Option<u64> {
            self.blocks.range(from..).next().copied()
        }
        /// Blocks have 100 bytes; the tree is known down to the nodes that are here.
        fn seek(&self, offset: u64) -> Option<Range<u64>> {
            let block = offset / 100;
            let level = self.missing_nodes(block) as u32;
            let start = block >> level << level;
            (block < self.length && level > 0).then(|| start..start + (1 << level))
        }
        fn bitfield_words(&self, start: u64, count: usize) -> Vec<u32> {
            let word =
                |i: u64| (0..32).map(|bit| u32::from(self.has(start + i * 32 + bit)) << bit).sum();
            (0..count as u64).map(word).collect()
        }
        fn missing_nodes(&self, block: u64) -> u64 {
            let node = |level: u64| 2 * (block >> level << level) + (1 << level) - 1;
            (0..).take_while(|level| !self.nodes.contains(&node(*level))).count() as u64
        }
        fn can_upgrade_from(&self, length: u64) -> bool {
            let known = full_roots(length).all(|root| self.nodes.contains(&root));
            length == 0 || length < self.length && known
        }
        fn has_manifest(&self) -> bool {
            self.manifest
        }
        fn needs_manifest(&self) -> bool {
            !self.manifest
        }
        fn is_writer(&self) -> bool {
            self.written_here
        }
    }
}
