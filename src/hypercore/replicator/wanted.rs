//! Which blocks of a core are to be fetched: all of them, or those that somebody waits for.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// What is wanted, as a set of blocks. Only this process adds to it, so nothing bounds it but memory.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    all: bool,
    /// What each caller waits for.
    ranges: HashMap<u64, Range<u64>>,
    /// The same, merged: start to end, disjoint.
    merged: BTreeMap<u64, u64>,
    last_id: u64,
}

impl Wanted {
    /// Wants every block there is and will be, or only those of the ranges.
    pub(super) fn set_all(&mut self, all: bool) {
        self.all = all;
    }

    /// Wants these blocks until the id that is returned is removed.
    pub(super) fn add(&mut self, blocks: Range<u64>) -> u64 {
        self.last_id += 1;
        self.merge(&blocks);
        self.ranges.insert(self.last_id, blocks);
        self.last_id
    }

    /// Wants the blocks of one caller no more, unless others do.
    pub(super) fn remove(&mut self, id: u64) {
        let Some(blocks) = self.ranges.remove(&id) else { return };
        if blocks.is_empty() {
            return;
        }
        self.merged.clear();
        let ranges: Vec<Range<u64>> = self.ranges.values().cloned().collect();
        for range in &ranges {
            self.merge(range);
        }
    }

    /// Whether any caller waits for blocks.
    pub(super) fn has_ranges(&self) -> bool {
        !self.ranges.is_empty()
    }

    /// Whether a block is wanted.
    pub(super) fn contains(&self, index: u64) -> bool {
        self.next(index) == Some(index)
    }

    /// The first wanted block at or after `from`.
    pub(super) fn next(&self, from: u64) -> Option<u64> {
        if self.all {
            return Some(from);
        }
        let before = self.merged.range(..=from).next_back();
        if before.is_some_and(|(_, end)| *end > from) {
            return Some(from);
        }
        self.merged.range(from..).next().map(|(start, _)| *start)
    }

    fn merge(&mut self, blocks: &Range<u64>) {
        if blocks.is_empty() {
            return;
        }
        let (mut start, mut end) = (blocks.start, blocks.end);
        let touched = self.merged.range(..=end).rev().take_while(|(_, other)| **other >= start);
        let touched: Vec<(u64, u64)> = touched.map(|(start, end)| (*start, *end)).collect();
        for (other_start, other_end) in touched {
            self.merged.remove(&other_start);
            start = start.min(other_start);
            end = end.max(other_end);
        }
        self.merged.insert(start, end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn everything_is_wanted_or_only_what_is_waited_for() {
        let mut wanted = Wanted::default();
        assert_eq!(wanted.next(0), None);
        let id = wanted.add(5..7);
        assert_eq!((wanted.next(0), wanted.next(6), wanted.next(7)), (Some(5), Some(6), None));
        wanted.set_all(true);
        assert_eq!(wanted.next(9), Some(9));
        wanted.set_all(false);
        wanted.remove(id);
        wanted.remove(id);
        assert!(!wanted.has_ranges() && !wanted.contains(5));
    }

    #[test]
    fn a_range_without_end_is_one_range() {
        let mut wanted = Wanted::default();
        wanted.add(100..u64::MAX);
        wanted.add(3..3);
        assert_eq!((wanted.next(4), wanted.next(1 << 60)), (Some(100), Some(1 << 60)));
    }

    proptest! {
        #[test]
        fn it_is_the_union_of_the_ranges(
            ranges in prop::collection::vec((0u64..200, 0u64..30), 0..20),
            removed in prop::collection::vec(any::<bool>(), 20),
        ) {
            let mut wanted = Wanted::default();
            let ids: Vec<u64> = ranges.iter().map(|(at, len)| wanted.add(*at..at + len)).collect();
            let mut kept = Vec::new();
            for ((range, id), removed) in ranges.iter().zip(ids).zip(removed) {
                if removed {
                    wanted.remove(id);
                } else {
                    kept.push(range.0..range.0 + range.1);
                }
            }
            for index in 0..240 {
                let inside = kept.iter().any(|range| range.contains(&index));
                prop_assert_eq!(wanted.contains(index), inside, "{}", index);
            }
        }
    }
}
