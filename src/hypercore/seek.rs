//! From bytes to blocks and back, by the sizes in the tree.
//!
//! The reference is `getByteOffset`, `seekFromHead`, `seekTrustedTree` and `seekUntrustedTree` in npm
//! `hypercore/lib/merkle-tree.js`. Padding is what encryption adds to every block.

use super::error::CoreError;
use super::flat_tree;
use super::messages::{Node, RequestSeek};
use super::tree::{Nodes, Roots};

/// How many bytes are left of tree node `index`.
pub(super) fn byte_offset(roots: &Roots, index: u64, nodes: &impl Nodes) -> Result<u64, CoreError> {
    let leaf = flat_tree::left_span(index);
    let mut offset = 0u64;
    for root in &roots.nodes {
        if flat_tree::right_span(root.index) < leaf {
            offset = offset.saturating_add(root.size);
            continue;
        }
        let mut at = root.index;
        while at != leaf {
            let Some((left, right)) = flat_tree::children(at) else { break };
            if flat_tree::contains(left, leaf) {
                at = left;
            } else {
                offset = offset.saturating_add(nodes.expect(left)?.size);
                at = right;
            }
        }
        return Ok(offset);
    }
    if leaf == 2 * roots.length { Ok(offset) } else { Err(CoreError::InvalidRequest("position")) }
}

/// The tree node, or its leaf, below which a byte of a log of `length` blocks is; `2 * length` when
/// it is behind them.
pub(super) fn from_head(
    length: u64,
    seek: &RequestSeek,
    nodes: &impl Nodes,
) -> Result<u64, CoreError> {
    let mut bytes = i128::from(seek.bytes);
    for index in flat_tree::roots(length) {
        let size = unpadded(&nodes.expect(index)?, seek.padding);
        if bytes == size {
            return Ok(index);
        }
        if bytes < size {
            return trusted(index, bytes, seek.padding, nodes);
        }
        bytes -= size;
    }
    Ok(2 * length)
}

/// The tree node below which a byte is that should be below `root`.
pub(super) fn below(
    root: u64,
    roots: &Roots,
    seek: &RequestSeek,
    nodes: &impl Nodes,
) -> Result<u64, CoreError> {
    let padded = i128::from(seek.padding) * i128::from(flat_tree::left_span(root) / 2);
    let offset = i128::from(byte_offset(roots, root, nodes)?) - padded;
    let bytes = i128::from(seek.bytes) - offset;
    if bytes == 0 {
        return Ok(root);
    }
    if bytes < 0 || unpadded(&nodes.expect(root)?, seek.padding) <= bytes {
        return Err(CoreError::InvalidRequest("a seek beside its block"));
    }
    trusted(root, bytes, seek.padding, nodes)
}

/// The deepest known node below `root` that has byte number `bytes` of it.
fn trusted(root: u64, bytes: i128, padding: u64, nodes: &impl Nodes) -> Result<u64, CoreError> {
    if bytes == 0 {
        return Ok(root);
    }
    let mut bytes = bytes;
    let mut at = root;
    while let Some((left, right)) = flat_tree::children(at) {
        let Some(node) = nodes.node(left)? else { return Ok(at) };
        let size = unpadded(&node, padding);
        if size == bytes {
            return Ok(left);
        }
        if size > bytes {
            at = left;
        } else {
            bytes -= size;
            at = right;
        }
    }
    Ok(at)
}

/// Where byte `bytes` of the log is: a leaf and how many bytes into it, or the deepest node that is
/// known and how many bytes into that; `None` behind the end (`ByteSeeker._seek` of the reference).
pub(super) fn position(
    roots: &Roots,
    bytes: u64,
    nodes: &impl Nodes,
) -> Result<Option<(u64, u64)>, CoreError> {
    let mut bytes = bytes;
    for root in &roots.nodes {
        if bytes >= root.size {
            bytes -= root.size;
            continue;
        }
        let mut at = root.index;
        while let Some((left, right)) = flat_tree::children(at) {
            let Some(node) = nodes.node(left)? else { break };
            if bytes < node.size {
                at = left;
            } else {
                bytes -= node.size;
                at = right;
            }
        }
        return Ok(Some((at, bytes)));
    }
    Ok(None)
}

fn unpadded(node: &Node, padding: u64) -> i128 {
    i128::from(node.size) - i128::from(padding) * i128::from(flat_tree::leaves(node.index))
}
