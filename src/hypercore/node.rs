//! The hashes of the tree (npm `hypercore-crypto`: `data`, `parent`, `tree`).

use super::messages::Node;
use crate::crypto::{Hash, hash};

const LEAF: &[u8] = &[0];
const PARENT: &[u8] = &[1];
const ROOTS: &[u8] = &[2];

/// The leaf of a block.
pub(super) fn leaf(block: u64, data: &[u8]) -> Node {
    let size = data.len() as u64;
    Node { index: 2 * block, size, hash: hash(&[LEAF, &size.to_le_bytes(), data]) }
}

/// The parent at `index` of two nodes, in whichever order; `None` when their sizes are absurd.
pub(super) fn parent(index: u64, a: &Node, b: &Node) -> Option<Node> {
    let (left, right) = if a.index <= b.index { (a, b) } else { (b, a) };
    let size = left.size.checked_add(right.size)?;
    let hash = hash(&[PARENT, &size.to_le_bytes(), &left.hash, &right.hash]);
    Some(Node { index, size, hash })
}

/// The hash of a whole tree.
pub(super) fn tree(roots: &[Node]) -> Hash {
    let mut bytes = Vec::with_capacity(1 + roots.len() * 48);
    bytes.extend_from_slice(ROOTS);
    for root in roots {
        bytes.extend_from_slice(&root.hash);
        bytes.extend_from_slice(&root.index.to_le_bytes());
        bytes.extend_from_slice(&root.size.to_le_bytes());
    }
    hash(&[&bytes])
}
