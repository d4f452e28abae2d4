//! Checking proofs: that what a peer sent leads to hashes that are known.
//!
//! The reference is `verifyTree` and `MerkleTree.verify` in npm `hypercore/lib/merkle-tree.js`.

use super::error::ApplyError;
use super::flat_tree;
use super::manifest::Prologue;
use super::messages::{Data, MAX_INDEX, Node};
use super::node;
use super::tree::{Batch, Found, Nodes, Queue, Roots};

/// Grows `roots` by what `data` proves, and checks every other hash in it against `nodes`.
///
/// `leaf` is that of the block in `data`. If the batch is upgraded, its signature is still to be checked.
pub(super) fn verify(
    data: &Data,
    leaf: Option<Node>,
    roots: Roots,
    prologue: Option<&Prologue>,
    nodes: &impl Nodes,
) -> Result<Batch, ApplyError> {
    let mut batch = Batch::new(roots);
    let mut unverified = below(data, leaf, &mut batch.found)?;
    if let Some(upgrade) = &data.upgrade {
        let start = batch.roots.length;
        unverified = batch.upgrade(upgrade, prologue, unverified).map_err(|error| match error {
            // It grows from roots that are not ours any more: another upgrade was faster.
            ApplyError::Malformed(_) if upgrade.start != start => ApplyError::Stale,
            error => error,
        })?;
    }
    if let Some(node) = unverified {
        let known = nodes.node(node.index)?.ok_or(ApplyError::Unconnected(node.index))?;
        if known.hash != node.hash {
            return Err(ApplyError::Checksum(node.index));
        }
    }
    Ok(batch)
}

/// The root that a block, hash and seek lead to, computed from the leaf up; the nodes on the way go
/// into `found`.
pub(super) fn below(
    data: &Data,
    leaf: Option<Node>,
    found: &mut Vec<Found>,
) -> Result<Option<Node>, ApplyError> {
    let mut root = None;
    if let Some(seek) = &data.seek
        && let Some(first) = seek.nodes.first()
    {
        let mut queue = Queue::new(&seek.nodes, None);
        let start = queue.shift(first.index)?;
        root = Some(climb(Found::sent(start), queue, found)?);
    }
    if let Some(block) = &data.block {
        if block.index > MAX_INDEX / 2 {
            return Err(ApplyError::Malformed("index of a block"));
        }
        let leaf = leaf.unwrap_or_else(|| node::leaf(block.index, &block.value));
        return climb(Found::sized(leaf), Queue::new(&block.nodes, root), found).map(Some);
    }
    if let Some(hash) = &data.hash {
        let mut queue = Queue::new(&hash.nodes, root);
        let start = queue.shift(hash.index)?;
        return climb(Found::sent(start), queue, found).map(Some);
    }
    Ok(root)
}

/// Climbs from a node over all siblings that are given. A sibling of a sized node is sized, because
/// their parent is.
fn climb(start: Found, mut queue: Queue<'_>, found: &mut Vec<Found>) -> Result<Node, ApplyError> {
    found.push(start);
    let Found { node: mut root, mut sized } = start;
    while !queue.is_empty() {
        if root.index > MAX_INDEX {
            return Err(ApplyError::Malformed("a tree that is too high"));
        }
        let sibling = queue.shift(flat_tree::sibling(root.index))?;
        root = node::parent(flat_tree::parent(root.index), &root, &sibling)
            .ok_or(ApplyError::Malformed("sizes of a proof"))?;
        found.push(Found { node: sibling, sized });
        found.push(Found::sized(root));
        sized = true;
    }
    Ok(root)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypercore::error::CoreError;
    use crate::hypercore::messages::{DataBlock, DataHash, DataSeek, DataUpgrade};
    use bytes::Bytes;
    use proptest::prelude::*;
    use std::collections::HashMap;

    struct Known(HashMap<u64, Node>);

    impl Nodes for Known {
        fn node(&self, index: u64) -> Result<Option<Node>, CoreError> {
            Ok(self.0.get(&index).copied())
        }
    }

    fn log(length: u64) -> (Roots, Known) {
        let mut batch = Batch::new(Roots::default());
        for index in 0..length {
            batch.append(&index.to_le_bytes()).unwrap();
        }
        let nodes = batch.found.iter().map(|found| (found.node.index, found.node)).collect();
        (batch.roots, Known(nodes))
    }

    /// Numbers as they come from honest peers, and at the limits.
    fn any_number() -> impl Strategy<Value = u64> {
        prop_oneof![
            8 => 0u64..40,
            1 => Just(MAX_INDEX),
            1 => Just(MAX_INDEX - 1),
            1 => (0u32..53).prop_map(|bits| (1 << bits) - 1),
            1 => Just(u64::MAX),
            1 => any::<u64>(),
        ]
    }

    fn any_node() -> impl Strategy<Value = Node> {
        (any_number(), any_number(), any::<u8>()).prop_map(|(index, size, fill)| Node {
            index,
            size,
            hash: [fill; 32],
        })
    }

    fn any_data() -> impl Strategy<Value = Data> {
        let nodes = || prop::collection::vec(any_node(), 0..6);
        let block = prop::option::of((any_number(), nodes()));
        let hash = prop::option::of((any_number(), nodes()));
        let seek = prop::option::of((any_number(), nodes()));
        let upgrade = prop::option::of((any_number(), any_number(), nodes(), nodes()));
        (block, hash, seek, upgrade).prop_map(|(block, hash, seek, upgrade)| Data {
            block: block.map(|(index, nodes)| DataBlock { index, value: Bytes::new(), nodes }),
            hash: hash.map(|(index, nodes)| DataHash { index, nodes }),
            seek: seek.map(|(bytes, nodes)| DataSeek { bytes, nodes }),
            upgrade: upgrade.map(|(start, length, nodes, additional_nodes)| DataUpgrade {
                start,
                length,
                nodes,
                additional_nodes,
                signature: None,
            }),
            ..Data::default()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn arbitrary_proofs_never_panic_and_never_prove_a_block(
            data in any_data(),
            length in 0u64..20,
        ) {
            let (roots, known) = log(length);
            if let Ok(batch) = verify(&data, None, roots, None, &known) {
                prop_assert!(data.block.is_none() || batch.upgraded);
            }
        }

        #[test]
        fn nodes_where_they_are_expected_never_panic(
            from in 0u64..20,
            to in any_number(),
            sizes in prop::collection::vec(any_number(), 120),
        ) {
            let (roots, known) = log(from);
            let to = to.clamp(from + 1, MAX_INDEX);
            let nodes = flat_tree::upgrade_path(from, to)
                .into_iter()
                .zip(sizes)
                .map(|(index, size)| Node { index, size, hash: [1; 32] })
                .collect();
            let upgrade = DataUpgrade {
                start: from,
                length: to - from,
                nodes,
                additional_nodes: Vec::new(),
                signature: None,
            };
            let data = Data { upgrade: Some(upgrade), ..Data::default() };
            if let Ok(batch) = verify(&data, None, roots, None, &known) {
                prop_assert_eq!(batch.roots.length, to);
                prop_assert!(batch.roots.byte_length <= MAX_INDEX);
            }
        }
    }

    #[test]
    fn a_proof_is_believed_only_where_it_meets_what_is_known() {
        let (roots, mut known) = log(8);
        let leaf = node::leaf(3, &3u64.to_le_bytes());
        let path = [known.0[&4], known.0[&1]];
        known.0.retain(|index, _| *index == 3);
        let with = |nodes: &[Node], value: u64| Data {
            block: Some(DataBlock {
                index: 3,
                value: Bytes::copy_from_slice(&value.to_le_bytes()),
                nodes: nodes.to_vec(),
            }),
            ..Data::default()
        };
        let run = |data: &Data| verify(data, None, roots.clone(), None, &known);
        let batch = run(&with(&path, 3)).unwrap();
        assert!(batch.found.iter().any(|found| found.node == leaf && found.sized));
        assert!(!batch.upgraded);
        assert!(matches!(run(&with(&path, 4)), Err(ApplyError::Checksum(3))));
        assert!(matches!(run(&with(&path[..1], 3)), Err(ApplyError::Unconnected(5))));
        assert!(matches!(run(&with(&path[1..], 3)), Err(ApplyError::Malformed(_))));
    }
}
