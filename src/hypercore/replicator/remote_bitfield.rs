//! Which blocks a peer says it has.
//!
//! A peer may claim anything, so a claim must cost no more than its message did: everything up to a
//! contiguous length is one number, long ranges are runs of whole pages, and only pages that are
//! partly set take memory, at most [`MAX_PAGES`] of them. A claim beyond the bounds is forgotten:
//! nothing is asked of the peer that it would have to be believed for.

use std::collections::BTreeMap;

/// Blocks a page.
pub(super) const PAGE_BITS: u64 = 32_768;
/// The most partly set pages that are kept: 8,388,608 blocks in one mebibyte.
const MAX_PAGES: usize = 256;
/// The most runs of whole pages that are kept.
const MAX_RUNS: usize = 256;
const WORDS: usize = (PAGE_BITS / 64) as usize;

type Page = Box<[u64; WORDS]>;

/// A sparse, bounded set of block indexes.
#[derive(Debug, Default)]
pub(super) struct RemoteBitfield {
    /// All blocks below are set.
    contiguous: u64,
    /// Runs of pages that are set entirely: first page to one past the last; disjoint.
    runs: BTreeMap<u64, u64>,
    /// Pages that are set in part.
    pages: BTreeMap<u64, Page>,
}

impl RemoteBitfield {
    /// Everything below is set.
    pub(super) fn contiguous(&self) -> u64 {
        self.contiguous
    }

    /// Whether `index` is set.
    pub(super) fn has(&self, index: u64) -> bool {
        index < self.contiguous
            || self.run_end(index / PAGE_BITS).is_some()
            || self.pages.get(&(index / PAGE_BITS)).is_some_and(|page| bit(page, index))
    }

    /// The first index in `from..end` that is set.
    pub(super) fn next_set(&self, from: u64, end: u64) -> Option<u64> {
        let found = if from < self.contiguous {
            from
        } else {
            let page = from / PAGE_BITS;
            if self.run_end(page).is_some() {
                from
            } else {
                let run = self.runs.range(page..).next().map(|(start, _)| start * PAGE_BITS);
                let set = self
                    .pages
                    .range(page..)
                    .find_map(|(number, page)| first_set(page, number * PAGE_BITS, from));
                run.into_iter().chain(set).min()?
            }
        };
        (found < end).then_some(found)
    }

    /// Sets or clears `length` blocks from `start`. The cost does not grow with `length`.
    pub(super) fn set_range(&mut self, start: u64, length: u64, has: bool) {
        let end = start.saturating_add(length);
        if start >= end {
            return;
        }
        if has {
            if start <= self.contiguous {
                self.contiguous = self.contiguous.max(end);
            } else {
                self.fill(start, end, true);
            }
            return;
        }
        self.split_contiguous(start, end);
        self.fill(start, end, false);
    }

    /// Replaces the blocks from `start`, a multiple of 32, by the bits of `words`.
    pub(super) fn insert(&mut self, start: u64, words: &[u32]) {
        let end = start.saturating_add(words.len() as u64 * 32);
        self.split_contiguous(start, end);
        let mut at = start;
        let mut rest = words;
        while !rest.is_empty() {
            let number = at / PAGE_BITS;
            let offset = (at % PAGE_BITS / 32) as usize;
            let count = rest.len().min(2 * WORDS - offset);
            let (now, later) = rest.split_at(count);
            if count == 2 * WORDS && now.iter().all(|word| *word == u32::MAX) {
                self.fill(at, at + PAGE_BITS, true);
            } else if let Some(page) = self.page(number, now.iter().any(|word| *word != 0)) {
                for (i, word) in now.iter().enumerate() {
                    let (slot, shift) = ((offset + i) / 2, (offset + i) % 2 * 32);
                    if let Some(slot) = page.get_mut(slot) {
                        *slot = *slot & !(0xffff_ffff << shift) | u64::from(*word) << shift;
                    }
                }
            }
            at += count as u64 * 32;
            rest = later;
        }
    }

    /// Forgets what is said about blocks below `index`, which nobody asks for any more.
    pub(super) fn forget_below(&mut self, index: u64) {
        let first = index / PAGE_BITS;
        while let Some(entry) = self.pages.first_entry() {
            if *entry.key() >= first {
                break;
            }
            entry.remove();
        }
    }

    /// Takes `start..end` out of the contiguous part and keeps what is above it.
    fn split_contiguous(&mut self, start: u64, end: u64) {
        let above = self.contiguous;
        if start < above {
            self.contiguous = start;
            if end < above {
                self.fill(end, above, true);
            }
        }
    }

    fn fill(&mut self, start: u64, end: u64, has: bool) {
        let first_whole = start.div_ceil(PAGE_BITS);
        let end_whole = end / PAGE_BITS;
        if first_whole < end_whole {
            self.fill_pages(first_whole, end_whole, has);
        }
        if first_whole > end_whole {
            return self.fill_part(start / PAGE_BITS, start % PAGE_BITS, end % PAGE_BITS, has);
        }
        if !start.is_multiple_of(PAGE_BITS) {
            self.fill_part(start / PAGE_BITS, start % PAGE_BITS, PAGE_BITS, has);
        }
        if !end.is_multiple_of(PAGE_BITS) {
            self.fill_part(end_whole, 0, end % PAGE_BITS, has);
        }
    }

    /// Sets or clears whole pages, `first` to one before `end`.
    fn fill_pages(&mut self, first: u64, end: u64, has: bool) {
        let covered: Vec<u64> = self.pages.range(first..end).map(|(number, _)| *number).collect();
        for number in covered {
            self.pages.remove(&number);
        }
        self.remove_run(first, end);
        if has && self.runs.len() < MAX_RUNS {
            self.runs.insert(first, end);
        }
    }

    fn remove_run(&mut self, first: u64, end: u64) {
        let touched: Vec<(u64, u64)> = self
            .runs
            .range(..end)
            .rev()
            .take_while(|(_, run_end)| **run_end > first)
            .map(|(start, run_end)| (*start, *run_end))
            .collect();
        for (start, run_end) in touched {
            self.runs.remove(&start);
            if start < first {
                self.runs.insert(start, first);
            }
            if run_end > end && self.runs.len() < MAX_RUNS {
                self.runs.insert(end, run_end);
            }
        }
    }

    /// Sets or clears bits `from..to` of one page.
    fn fill_part(&mut self, number: u64, from: u64, to: u64, has: bool) {
        if has && self.run_end(number).is_some() {
            return;
        }
        let Some(page) = self.page(number, has) else { return };
        for (i, word) in page.iter_mut().enumerate() {
            let low = from.saturating_sub(i as u64 * 64).min(64);
            let high = to.saturating_sub(i as u64 * 64).min(64);
            if low < high {
                let ones = u64::MAX >> (64 - (high - low)) << low;
                *word = if has { *word | ones } else { *word & !ones };
            }
        }
    }

    /// The page with this number as bits, made when it is part of a run or when `create` says so.
    fn page(&mut self, number: u64, create: bool) -> Option<&mut [u64; WORDS]> {
        let mut initial = create.then_some(0);
        if self.run_end(number).is_some() {
            self.remove_run(number, number + 1);
            initial = Some(u64::MAX);
        }
        if let Some(word) = initial
            && !self.pages.contains_key(&number)
            && self.pages.len() < MAX_PAGES
        {
            self.pages.insert(number, Box::new([word; WORDS]));
        }
        self.pages.get_mut(&number).map(|page| &mut **page)
    }

    fn run_end(&self, page: u64) -> Option<u64> {
        let (_, end) = self.runs.range(..=page).next_back()?;
        (*end > page).then_some(*end)
    }
}

fn bit(page: &[u64; WORDS], index: u64) -> bool {
    let offset = index % PAGE_BITS;
    page.get((offset / 64) as usize).is_some_and(|word| word >> (offset % 64) & 1 == 1)
}

/// The first set bit at or after `from` in a page that starts at `base`.
fn first_set(page: &[u64; WORDS], base: u64, from: u64) -> Option<u64> {
    let offset = from.saturating_sub(base);
    let mut mask = u64::MAX << (offset % 64);
    for (i, word) in page.iter().enumerate().skip((offset / 64) as usize) {
        let masked = word & mask;
        if masked != 0 {
            return Some(base + i as u64 * 64 + u64::from(masked.trailing_zeros()));
        }
        mask = u64::MAX;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_claim_of_everything_costs_one_number_or_one_run() {
        let mut bits = RemoteBitfield::default();
        bits.set_range(1 << 20, (1 << 53) - 1, true);
        assert!(bits.has(1 << 52) && !bits.has(0));
        assert_eq!((bits.runs.len(), bits.pages.len()), (1, 1));
        bits.set_range(0, (1 << 53) - 1, true);
        assert_eq!(bits.contiguous(), (1 << 53) - 1);
        bits.set_range(77, 1, false);
        assert!(!bits.has(77) && bits.has(78) && bits.has(1 << 40));
        assert!(bits.pages.len() <= 2);
    }

    #[test]
    fn scattered_claims_stop_at_the_bound() {
        let mut bits = RemoteBitfield::default();
        for i in 0..10_000 {
            bits.set_range(5 + i * 3 * PAGE_BITS, PAGE_BITS * 2, true);
        }
        assert!(bits.pages.len() <= MAX_PAGES && bits.runs.len() <= MAX_RUNS);
    }

    #[test]
    fn pages_below_what_is_wanted_are_forgotten() {
        let mut bits = RemoteBitfield::default();
        bits.insert(PAGE_BITS, &[1]);
        bits.insert(3 * PAGE_BITS, &[1]);
        bits.forget_below(2 * PAGE_BITS);
        assert!(!bits.has(PAGE_BITS) && bits.has(3 * PAGE_BITS));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn it_agrees_with_a_plain_set(
            operations in prop::collection::vec(
                (0u8..3, 0u64..4 * PAGE_BITS, 1u64..2 * PAGE_BITS, any::<u32>()), 1..24
            ),
            probes in prop::collection::vec(0u64..7 * PAGE_BITS, 40),
        ) {
            let mut bits = RemoteBitfield::default();
            let mut plain = vec![false; 7 * PAGE_BITS as usize];
            for (operation, start, length, word) in operations {
                match operation {
                    0 => {
                        bits.set_range(start, length, true);
                        plain[start as usize..(start + length) as usize].fill(true);
                    }
                    1 => {
                        bits.set_range(start, length, false);
                        plain[start as usize..(start + length) as usize].fill(false);
                    }
                    _ => {
                        let start = start / 32 * 32;
                        let words = vec![word; (length / 32 + 1) as usize];
                        bits.insert(start, &words);
                        for i in 0..words.len() as u64 * 32 {
                            plain[(start + i) as usize] = word >> (i % 32) & 1 == 1;
                        }
                    }
                }
            }
            for probe in probes {
                prop_assert_eq!(bits.has(probe), plain[probe as usize], "{}", probe);
                let next = (probe..).zip(&plain[probe as usize..]).find(|(_, set)| **set);
                let next = next.map(|(index, _)| index);
                prop_assert_eq!(bits.next_set(probe, u64::MAX), next, "from {}", probe);
            }
        }
    }
}
