//! Positions in a binary tree that is written down in order: leaves are even, parents odd.
//!
//! The reference is npm `flat-tree`. Block `i` is tree node `2 * i`. All positions here are below
//! 2^54, because no number on the wire is above 2^53 and a step up at most doubles it.

/// How many levels `index` is above the leaves.
#[must_use]
pub const fn depth(index: u64) -> u32 {
    (!index).trailing_zeros()
}

/// The leftmost leaf below `index`.
#[must_use]
pub const fn left_span(index: u64) -> u64 {
    index & (index + 1)
}

/// The rightmost leaf below `index`.
#[must_use]
pub const fn right_span(index: u64) -> u64 {
    if index & 1 == 0 { index } else { (index | (index + 1)) - 1 }
}

/// How many leaves are below `index`.
#[must_use]
pub const fn leaves(index: u64) -> u64 {
    1 << depth(index)
}

/// The parent of `index`.
#[must_use]
pub const fn parent(index: u64) -> u64 {
    let step = 1 << depth(index);
    if index & (step << 1) == 0 { index + step } else { index - step }
}

/// The other child of `index`'s parent.
#[must_use]
pub const fn sibling(index: u64) -> u64 {
    let step = 2 << depth(index);
    if index & step == 0 { index + step } else { index - step }
}

/// The left and the right child, or `None` for a leaf.
#[must_use]
pub const fn children(index: u64) -> Option<(u64, u64)> {
    if index & 1 == 0 {
        return None;
    }
    let step = 1 << (depth(index) - 1);
    Some((index - step, index + step))
}

/// Whether `other` is `index` or below it (`Iterator.contains` of the reference).
#[must_use]
pub const fn contains(index: u64, other: u64) -> bool {
    left_span(index) <= other && other <= right_span(index)
}

/// The roots of the full trees that hold the first `length` blocks, left to right.
pub fn roots(length: u64) -> impl Iterator<Item = u64> {
    let mut offset = 0;
    let mut left = length;
    std::iter::from_fn(move || {
        let factor = 1u64 << left.checked_ilog2()?;
        let root = offset + factor - 1;
        offset += 2 * factor;
        left -= factor;
        Some(root)
    })
}

/// How many blocks the log has when its last tree ends with the leaves of `index`.
#[must_use]
pub const fn length_through(index: u64) -> u64 {
    right_span(index) / 2 + 1
}

/// Whether every leaf below `index` is one of the first `length`.
#[must_use]
pub const fn is_within(index: u64, length: u64) -> bool {
    right_span(index) / 2 < length
}

/// The nodes that stand before block `length` and have blocks from there on below them: what else than
/// the nodes from `2 * length` on goes when a log is cut to `length`.
pub fn straddling(length: u64) -> impl Iterator<Item = u64> {
    let head = 2 * length;
    // Above level 52 a node that begins at 0 would stand behind every index there is.
    (1..53u32)
        .map(move |level| (length >> level << (level + 1)) + (1 << level) - 1)
        .filter(move |index| *index < head && !is_within(*index, length))
}

/// The nodes that, together with the roots of the first `from` blocks, give the roots of the first
/// `to` (`upgradeProof` in npm `hypercore/lib/merkle-tree.js`).
#[must_use]
pub fn upgrade_path(from: u64, to: u64) -> Vec<u64> {
    let mut path = Vec::new();
    let last_leaf = (2 * from).checked_sub(2);
    for root in roots(to) {
        let Some(last_leaf) = last_leaf else {
            path.push(root);
            continue;
        };
        if right_span(root) <= last_leaf {
            continue;
        }
        if !contains(root, last_leaf) {
            path.push(root);
            continue;
        }
        let mut at = last_leaf;
        while at != root {
            if sibling(at) > last_leaf {
                path.push(sibling(at));
            }
            at = parent(at);
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_those_of_the_reference() {
        // Index, depth, parent, sibling, left and right span: from npm flat-tree.
        let cases = [
            (0, 0, 1, 2, 0, 0),
            (2, 0, 1, 0, 2, 2),
            (1, 1, 3, 5, 0, 2),
            (5, 1, 3, 1, 4, 6),
            (3, 2, 7, 11, 0, 6),
            (11, 2, 7, 3, 8, 14),
            (7, 3, 15, 23, 0, 14),
            (20, 0, 21, 22, 20, 20),
        ];
        for (index, d, p, s, left, right) in cases {
            let found =
                (depth(index), parent(index), sibling(index), left_span(index), right_span(index));
            assert_eq!(found, (d, p, s, left, right), "{index}");
        }
        assert_eq!(children(3), Some((1, 5)));
        assert_eq!(children(4), None);
        assert_eq!(roots(0).count(), 0);
        assert_eq!(roots(11).collect::<Vec<_>>(), [7, 17, 20]);
        assert!(contains(3, 6) && contains(3, 0) && contains(3, 3) && !contains(3, 7));
    }

    #[test]
    fn parents_children_and_siblings_agree_also_at_the_limit() {
        for index in (0..5_000).chain((1 << 53) - 2_000..1 << 53) {
            let up = parent(index);
            let (left, right) = children(up).unwrap();
            assert!(left == index || right == index);
            assert_eq!(sibling(left), right);
            assert_eq!(sibling(right), left);
            assert!(contains(up, index) && !contains(index, up));
            assert_eq!(right_span(index) - left_span(index), 2 * leaves(index) - 2);
        }
    }

    #[test]
    fn the_longest_log_has_53_roots_at_most() {
        assert_eq!(roots((1 << 53) - 1).count(), 53);
    }
}
