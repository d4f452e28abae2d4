//! A set of sequence numbers, kept as sorted ranges.

use std::ops::Range;

/// Disjoint, sorted, non-adjacent ranges.
#[derive(Debug, Default, Clone)]
pub(super) struct RangeSet {
    ranges: Vec<Range<u64>>,
}

impl RangeSet {
    /// Adds `range` and calls `new` with each part of it that was not in the set.
    pub(super) fn insert(&mut self, range: Range<u64>, mut new: impl FnMut(Range<u64>)) {
        if range.is_empty() {
            return;
        }
        // The ranges that touch or overlap it.
        let first = self.ranges.partition_point(|known| known.end < range.start);
        let after = self.ranges.partition_point(|known| known.start <= range.end);
        let mut merged = range.clone();
        let mut at = range.start;
        for known in self.ranges.get(first..after).unwrap_or_default() {
            if at < known.start {
                new(at..known.start.min(range.end));
            }
            at = at.max(known.end);
            merged = merged.start.min(known.start)..merged.end.max(known.end);
        }
        if at < range.end {
            new(at..range.end);
        }
        self.ranges.splice(first..after, [merged]);
    }

    /// Forgets everything below `bound`.
    pub(super) fn remove_below(&mut self, bound: u64) {
        let gone = self.ranges.partition_point(|known| known.end <= bound);
        self.ranges.drain(..gone);
        if let Some(first) = self.ranges.first_mut() {
            first.start = first.start.max(bound);
        }
    }

    /// The range that holds `value`.
    pub(super) fn find(&self, value: u64) -> Option<Range<u64>> {
        let at = self.ranges.partition_point(|known| known.end <= value);
        self.ranges.get(at).filter(|known| known.start <= value).cloned()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Range<u64>> {
        self.ranges.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.ranges.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_range_set_is_a_set(inserts in prop::collection::vec((0u64..60, 0u64..12), 0..40), bound in 0u64..70) {
            let (mut set, mut model) = (RangeSet::default(), BTreeSet::new());
            for (start, length) in inserts {
                let mut reported = BTreeSet::new();
                set.insert(start..start + length, |part| reported.extend(part));
                let fresh: BTreeSet<_> = (start..start + length).filter(|n| !model.contains(n)).collect();
                prop_assert_eq!(&reported, &fresh);
                model.extend(fresh);
                let held: Vec<_> = set.iter().cloned().collect();
                prop_assert!(held.windows(2).all(|pair| pair[0].end < pair[1].start));
                prop_assert!(held.iter().flat_map(Clone::clone).eq(model.iter().copied()));
            }
            set.remove_below(bound);
            model.retain(|&n| n >= bound);
            prop_assert!(set.iter().flat_map(Clone::clone).eq(model.iter().copied()));
            for n in 0..75 {
                prop_assert_eq!(set.find(n).is_some(), model.contains(&n));
            }
        }
    }
}
