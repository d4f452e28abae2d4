//! What a peer wants to hear of: the ranges of its want messages, without those it took back.
//!
//! As in npm `hypercore/lib/wants.js`, a peer with more wants than an honest one has is told of
//! everything.

use std::collections::BTreeSet;

use crate::hypercore::messages::Want;

/// The most wants that are remembered, as in npm hypercore.
const MAX_WANTS: usize = 512;

/// The wants of one peer.
#[derive(Debug, Default)]
pub(super) struct RemoteWants {
    ranges: BTreeSet<(u64, u64)>,
    everything: bool,
}

impl RemoteWants {
    /// Remembers a want.
    pub(super) fn add(&mut self, want: &Want) {
        if self.ranges.len() < MAX_WANTS {
            self.ranges.insert((want.start, want.length));
        } else if !self.ranges.contains(&(want.start, want.length)) {
            self.everything = true;
        }
    }

    /// Forgets a want that the peer took back.
    pub(super) fn remove(&mut self, want: &Want) {
        self.ranges.remove(&(want.start, want.length));
    }

    /// Whether the peer wants to hear of any of these blocks.
    pub(super) fn covers(&self, start: u64, length: u64) -> bool {
        let end = start.saturating_add(length);
        let before = self.ranges.range(..(end, 0));
        self.everything || before.into_iter().any(|(at, length)| at.saturating_add(*length) > start)
    }

    /// Every want, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Want> {
        self.ranges.iter().map(|(start, length)| Want {
            start: *start,
            length: *length,
            any: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn want(start: u64, length: u64) -> Want {
        Want { start, length, any: false }
    }

    #[test]
    fn a_want_covers_its_blocks_until_it_is_taken_back() {
        let mut wants = RemoteWants::default();
        wants.add(&want(64, 64));
        assert!(!wants.covers(0, 64) && wants.covers(63, 2) && wants.covers(127, 1));
        assert!(!wants.covers(128, 1 << 50));
        wants.remove(&want(64, 64));
        assert!(!wants.covers(64, 1));
    }

    #[test]
    fn wants_without_end_cost_no_memory_and_wants_at_the_limits_do_not_overflow() {
        let mut wants = RemoteWants::default();
        for start in 0..100_000 {
            wants.add(&want(start, u64::MAX));
        }
        assert_eq!(wants.ranges.len(), MAX_WANTS);
        assert!(wants.covers(u64::MAX, 1) && wants.covers(0, 1));
    }
}
