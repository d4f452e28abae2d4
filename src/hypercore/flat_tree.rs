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
