//! The merkle tree's top: the roots, how they grow, and how upgrades are checked against them.
//!
//! The reference is `MerkleTreeBatch` and `verifyUpgrade` in npm `hypercore/lib/merkle-tree.js`.

use bytes::Bytes;

use super::error::{ApplyError, CoreError};
use super::flat_tree;
use super::manifest::Prologue;
use super::messages::{DataUpgrade, MAX_INDEX, Node};
use super::node;
use crate::crypto::Hash;

/// Where tree nodes are looked up.
pub(super) trait Nodes {
    /// The node at `index`, if it is known.
    fn node(&self, index: u64) -> Result<Option<Node>, CoreError>;

    /// The node at `index`, which should be known.
    fn expect(&self, index: u64) -> Result<Node, CoreError> {
        self.node(index)?.ok_or(CoreError::MissingNode(index))
    }
}

/// A log's length and the roots that stand for all of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Roots {
    pub(super) length: u64,
    pub(super) byte_length: u64,
    pub(super) nodes: Vec<Node>,
}

impl Roots {
    /// Looks up the roots of a log of this length.
    pub(super) fn load(length: u64, nodes: &impl Nodes) -> Result<Self, CoreError> {
        let roots = flat_tree::roots(length)
            .map(|index| nodes.expect(index))
            .collect::<Result<Vec<_>, _>>()?;
        let byte_length = roots.iter().try_fold(0u64, |sum, root| sum.checked_add(root.size));
        let byte_length = byte_length.ok_or(CoreError::Corrupt("sizes of the tree's roots"))?;
        Ok(Self { length, byte_length, nodes: roots })
    }

    /// The tree hash.
    pub(super) fn hash(&self) -> Hash {
        node::tree(&self.nodes)
    }
}

/// A node that is to be stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    pub(super) node: Node,
    /// Whether its size is proven with its hash. A parent's hash covers only the sum of its children's
    /// sizes, so of two that a peer sent, the sizes could be shifted. Such a node never replaces a
    /// stored one.
    pub(super) sized: bool,
}

impl Found {
    pub(super) fn sized(node: Node) -> Self {
        Self { node, sized: true }
    }

    pub(super) fn sent(node: Node) -> Self {
        Self { node, sized: false }
    }
}

/// Roots that grow, and the nodes that came with it.
#[derive(Debug, Clone)]
pub(super) struct Batch {
    pub(super) roots: Roots,
    pub(super) found: Vec<Found>,
    pub(super) upgraded: bool,
}

impl Batch {
    pub(super) fn new(roots: Roots) -> Self {
        Self { roots, found: Vec::new(), upgraded: false }
    }

    /// Appends a block.
    pub(super) fn append(&mut self, block: &[u8]) -> Option<()> {
        let leaf = node::leaf(self.roots.length, block);
        self.append_root(leaf).map(drop)
    }

    /// Appends blocks, level by level: what stands side by side is hashed side by side. After `None`, which
    /// is as in [`Batch::append_root`], the batch is of no use any more.
    pub(super) fn append_all(&mut self, blocks: &[Bytes]) -> Option<()> {
        if let [block] = blocks {
            return self.append(block);
        }
        let numbered: Vec<(u64, &[u8])> =
            (self.roots.length..).zip(blocks.iter().map(|block| &block[..])).collect();
        let mut level = node::leaves(&numbered);
        let roots = &mut self.roots;
        roots.length = roots.length.checked_add(level.len() as u64)?;
        for leaf in &level {
            roots.byte_length = roots.byte_length.checked_add(leaf.size)?;
        }
        if roots.length > MAX_INDEX / 2 || roots.byte_length > MAX_INDEX {
            return None;
        }
        self.upgraded |= !level.is_empty();
        self.found.extend(level.iter().copied().map(Found::sent));
        let mut without_sibling = Vec::new();
        while let Some(first) = level.first() {
            // What is left of the first that is new is a root, the last that is left.
            if flat_tree::sibling(first.index) < first.index {
                level.insert(0, roots.nodes.pop()?);
            }
            if level.len() % 2 == 1 {
                without_sibling.extend(level.pop());
            }
            level = node::parents(&level)?;
            self.found.extend(level.iter().copied().map(Found::sized));
        }
        roots.nodes.extend(without_sibling.into_iter().rev());
        Some(())
    }

    /// Appends a tree that stands directly right of the roots, and merges what has become whole.
    /// Returns the last root's index, or `None` when sizes exceed what JavaScript can count.
    pub(super) fn append_root(&mut self, root: Node) -> Option<u64> {
        let roots = &mut self.roots;
        roots.length = roots.length.checked_add(flat_tree::leaves(root.index))?;
        roots.byte_length = roots.byte_length.checked_add(root.size)?;
        if roots.length > MAX_INDEX / 2 || roots.byte_length > MAX_INDEX {
            return None;
        }
        self.upgraded = true;
        self.found.push(Found::sent(root));
        roots.nodes.push(root);
        while let [.., left, right] = roots.nodes.as_slice() {
            if flat_tree::sibling(right.index) != left.index {
                break;
            }
            let parent = node::parent(flat_tree::parent(right.index), left, right)?;
            self.found.push(Found::sized(parent));
            roots.nodes.truncate(roots.nodes.len() - 2);
            roots.nodes.push(parent);
        }
        roots.nodes.last().map(|root| root.index)
    }

    /// Grows to what an upgrade proves. `below` is the root of the block, hash or seek that came with
    /// it, and may stand for one of the upgrade's nodes; returns it unless it was used.
    ///
    /// This checks the form only: what the roots then are is for the signature to say.
    pub(super) fn upgrade(
        &mut self,
        upgrade: &DataUpgrade,
        prologue: Option<&Prologue>,
        below: Option<Node>,
    ) -> Result<Option<Node>, ApplyError> {
        if upgrade.start > MAX_INDEX || upgrade.length > MAX_INDEX {
            return Err(ApplyError::Malformed("numbers of an upgrade"));
        }
        let target = upgrade.start + upgrade.length;
        if target == 0 {
            return Err(ApplyError::Malformed("an empty upgrade"));
        }
        if prologue.is_some_and(|prologue| {
            upgrade.start < prologue.length
                && (upgrade.start != 0 || upgrade.length < prologue.length)
        }) {
            return Err(ApplyError::Malformed("an upgrade that ends inside the prologue"));
        }
        let mut queue = Queue::new(&upgrade.nodes, below);
        let had = self.roots.nodes.len();
        let mut grow = had > 0;
        let mut same = 0;
        for root in flat_tree::roots(target) {
            if self.roots.nodes.get(same).is_some_and(|known| known.index == root) {
                same += 1;
                continue;
            }
            if std::mem::take(&mut grow) && same < self.roots.nodes.len() {
                let mut at = self.last()?;
                while at != root {
                    at = self.push(queue.shift(flat_tree::sibling(at))?)?;
                }
                continue;
            }
            self.push(queue.shift(root)?)?;
        }
        if prologue.is_some_and(|prologue| {
            prologue.length == self.roots.length && prologue.hash != self.roots.hash()
        }) {
            return Err(ApplyError::Checksum(self.last()?));
        }
        self.append_additional(&upgrade.additional_nodes)?;
        Ok(queue.extra)
    }

    /// Appends what lies between the length that was asked for and the length that is signed.
    fn append_additional(&mut self, nodes: &[Node]) -> Result<(), ApplyError> {
        let mut at = flat_tree::sibling(self.last()?);
        let mut rest = nodes;
        while let [node, more @ ..] = rest {
            if node.index != at {
                break;
            }
            at = flat_tree::sibling(self.push(*node)?);
            rest = more;
        }
        for node in rest {
            while node.index != at {
                let (left, _) = flat_tree::children(at)
                    .ok_or(ApplyError::Malformed("an unexpected additional node"))?;
                at = left;
            }
            at = flat_tree::sibling(self.push(*node)?);
        }
        Ok(())
    }

    fn push(&mut self, node: Node) -> Result<u64, ApplyError> {
        self.append_root(node).ok_or(ApplyError::Malformed("sizes of an upgrade"))
    }

    fn last(&self) -> Result<u64, ApplyError> {
        let last = self.roots.nodes.last().map(|root| root.index);
        last.ok_or(ApplyError::Malformed("an upgrade of nothing"))
    }
}

/// The nodes of a proof in their order, and one that was computed and fits anywhere
/// (`NodeQueue` of the reference).
pub(super) struct Queue<'a> {
    nodes: &'a [Node],
    extra: Option<Node>,
}

impl<'a> Queue<'a> {
    pub(super) fn new(nodes: &'a [Node], extra: Option<Node>) -> Self {
        Self { nodes, extra }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.extra.is_none()
    }

    /// The next node, which must stand at `index`.
    pub(super) fn shift(&mut self, index: u64) -> Result<Node, ApplyError> {
        if let Some(node) = self.extra.take_if(|node| node.index == index) {
            return Ok(node);
        }
        match self.nodes {
            [node, rest @ ..] if node.index == index => {
                self.nodes = rest;
                Ok(*node)
            }
            [] => Err(ApplyError::Malformed("a node is missing")),
            _ => Err(ApplyError::Malformed("a node out of order")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(length: u64) -> Batch {
        let mut batch = Batch::new(Roots::default());
        for i in 0..length {
            batch.append(format!("block {i}").as_bytes()).unwrap();
        }
        batch
    }

    fn node_of(batch: &Batch, index: u64) -> Node {
        batch.found.iter().find(|found| found.node.index == index).unwrap().node
    }

    fn upgrade(full: &Batch, from: u64, to: u64) -> DataUpgrade {
        let nodes = |from, to| {
            flat_tree::upgrade_path(from, to)
                .into_iter()
                .map(|index| node_of(full, index))
                .collect()
        };
        DataUpgrade {
            start: from,
            length: to - from,
            nodes: nodes(from, to),
            additional_nodes: if to == full.roots.length {
                Vec::new()
            } else {
                nodes(to, full.roots.length)
            },
            signature: None,
        }
    }

    #[test]
    fn roots_stand_where_flat_tree_says() {
        for length in 0..200 {
            let batch = log(length);
            let indexes: Vec<u64> = batch.roots.nodes.iter().map(|root| root.index).collect();
            assert_eq!(indexes, flat_tree::roots(length).collect::<Vec<_>>());
        }
    }

    #[test]
    fn blocks_appended_together_make_the_tree_that_they_make_one_by_one() {
        let blocks: Vec<Bytes> =
            (0..150).map(|i| format!("{i} {}", "x".repeat(40 * i)).into()).collect();
        for start in (0..40).chain([63, 64, 65]) {
            let mut before = Batch::new(Roots::default());
            blocks.iter().take(start).for_each(|block| before.append(block).unwrap());
            for end in start..=blocks.len() {
                let (mut slow, mut fast) =
                    (Batch::new(before.roots.clone()), Batch::new(before.roots.clone()));
                blocks[start..end].iter().for_each(|block| slow.append(block).unwrap());
                fast.append_all(&blocks[start..end]).unwrap();
                let facts = |batch: &Batch| {
                    let mut found: Vec<_> =
                        batch.found.iter().map(|found| (found.node, found.sized)).collect();
                    found.sort_unstable_by_key(|(node, _)| node.index);
                    let roots = &batch.roots;
                    (found, roots.length, roots.byte_length, roots.nodes.clone(), batch.upgraded)
                };
                assert_eq!(facts(&fast), facts(&slow), "{start} to {end}");
            }
        }
    }

    #[test]
    fn every_upgrade_leads_to_the_same_tree_from_every_length_to_every_length() {
        let full = log(41);
        for from in 0..41 {
            for to in from + 1..=41 {
                let mut batch = Batch::new(log(from).roots);
                let left = batch.upgrade(&upgrade(&full, from, to), None, None).unwrap();
                assert!(left.is_none());
                assert_eq!(batch.roots.hash(), full.roots.hash(), "{from} to {to}");
                assert_eq!(batch.roots.byte_length, full.roots.byte_length);
            }
        }
    }

    #[test]
    fn absurd_upgrades_are_errors() {
        let full = log(9);
        let empty = DataUpgrade { length: 0, nodes: vec![], ..upgrade(&full, 0, 9) };
        let huge = DataUpgrade { start: u64::MAX, length: u64::MAX, ..upgrade(&full, 0, 9) };
        let short = DataUpgrade { nodes: vec![], ..upgrade(&full, 3, 9) };
        let lifted = |index| DataUpgrade {
            additional_nodes: vec![Node { index, size: MAX_INDEX, hash: [0; 32] }; 128],
            ..upgrade(&full, 3, 9)
        };
        for (name, upgrade) in [
            ("empty", empty),
            ("huge", huge),
            ("short", short),
            ("lifted leaf", lifted(18)),
            ("lifted root", lifted(MAX_INDEX)),
        ] {
            for length in [0, 3, 9, 10] {
                let outcome = Batch::new(log(length).roots).upgrade(&upgrade, None, None);
                assert!(outcome.is_err() || length >= 9 && name == "short", "{name} {length}");
            }
        }
    }

    #[test]
    fn an_upgrade_must_cover_the_prologue_and_have_its_hash() {
        let full = log(9);
        let prologue = Prologue { hash: log(5).roots.hash(), length: 5 };
        let run = |from, to, prologue| {
            Batch::new(log(from).roots).upgrade(&upgrade(&full, from, to), Some(prologue), None)
        };
        assert!(run(0, 5, &prologue).is_ok());
        assert!(run(5, 9, &prologue).is_ok());
        assert!(run(0, 4, &prologue).is_err());
        assert!(run(2, 9, &prologue).is_err());
        assert!(run(0, 5, &Prologue { hash: [0; 32], ..prologue }).is_err());
    }
}
