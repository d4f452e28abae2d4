//! Which tree nodes are on their way from a peer, so that no node is asked for twice.

use std::collections::HashMap;

use super::local::LocalCore;

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
