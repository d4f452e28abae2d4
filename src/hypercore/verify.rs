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
/// If the batch is upgraded, its signature is still to be checked.
pub(super) fn verify(
    data: &Data,
    roots: Roots,
    prologue: Option<&Prologue>,
    nodes: &impl Nodes,
) -> Result<Batch, ApplyError> {
    let mut batch = Batch::new(roots);
    let mut unverified = below(data, &mut batch.found)?;
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
fn below(data: &Data, found: &mut Vec<Found>) -> Result<Option<Node>, ApplyError> {
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
        let leaf = node::leaf(block.index, &block.value);
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
