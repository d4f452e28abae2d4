//! What replication has to know of a core: enough for the state machine, nothing of storage.

/// A core as the state machine sees it. All answers are immediate and from memory.
pub(super) trait LocalCore {
    /// The verified length in blocks.
    fn length(&self) -> u64;
    /// The verified length in bytes.
    fn byte_length(&self) -> u64;
    /// The fork.
    fn fork(&self) -> u64;
    /// All blocks below are here.
    fn contiguous_length(&self) -> u64;
    /// Whether a block is here.
    fn has(&self, index: u64) -> bool;
    /// Whether a node of the tree is here.
    fn has_node(&self, index: u64) -> bool;
    /// Whether the manifest is here and can be sent (a compat core has none to send).
    fn has_manifest(&self) -> bool;
    /// Whether the manifest is still unknown.
    fn needs_manifest(&self) -> bool;

    /// Whether an upgrade from `length` can be proven: whether the roots at that length are here.
    fn can_upgrade_from(&self, length: u64) -> bool {
        length == 0 || length < self.length() && full_roots(length).all(|root| self.has_node(root))
    }
}

/// The flat-tree indexes of the roots over `length` blocks, left to right.
pub(super) fn full_roots(length: u64) -> impl Iterator<Item = u64> {
    let mut start = 0;
    (0..64u32).rev().filter(move |level| length >> level & 1 == 1).map(move |level| {
        let root = 2 * start + (1 << level) - 1;
        start += 1 << level;
        root
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// A core of bits and nodes that are set by hand.
    #[derive(Debug, Default)]
    pub(in super::super) struct FakeCore {
        pub(in super::super) length: u64,
        pub(in super::super) blocks: BTreeSet<u64>,
        pub(in super::super) nodes: BTreeSet<u64>,
        pub(in super::super) manifest: bool,
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
            Self { length, blocks: (0..length).collect(), nodes, manifest: true }
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
            0
        }
        fn contiguous_length(&self) -> u64 {
            (0..).take_while(|index| self.blocks.contains(index)).count() as u64
        }
        fn has(&self, index: u64) -> bool {
            self.blocks.contains(&index)
        }
        fn has_node(&self, index: u64) -> bool {
            self.nodes.contains(&index)
        }
        fn has_manifest(&self) -> bool {
            self.manifest
        }
        fn needs_manifest(&self) -> bool {
            !self.manifest
        }
    }

    #[test]
    fn roots_are_those_of_the_flat_tree() {
        assert_eq!(full_roots(0).count(), 0);
        assert_eq!(full_roots(1).collect::<Vec<_>>(), [0]);
        assert_eq!(full_roots(5).collect::<Vec<_>>(), [3, 8]);
        assert_eq!(full_roots(8).collect::<Vec<_>>(), [7]);
        assert_eq!(full_roots(7).collect::<Vec<_>>(), [3, 9, 12]);
    }

    #[test]
    fn an_upgrade_is_proven_only_from_a_length_whose_roots_are_here() {
        let reader = FakeCore::reader(8);
        assert!(reader.can_upgrade_from(0));
        assert!(!reader.can_upgrade_from(5));
        assert!(!reader.can_upgrade_from(8));
        assert!(FakeCore::writer(8).can_upgrade_from(5));
    }
}
