//! Which blocks of a log are here: sparse pages of bits, and how many are contiguous from the start.

use std::collections::BTreeMap;

/// Blocks a page.
pub const PAGE_BITS: u64 = 8192;
const WORDS: usize = (PAGE_BITS / 64) as usize;

/// A page: bit `i` of word `j` is block `64 * j + i` of the page.
pub type Page = [u64; WORDS];

/// A sparse set of block indexes.
#[derive(Debug, Default, Clone)]
pub struct Bitfield {
    pages: BTreeMap<u64, Box<Page>>,
    contiguous: u64,
    count: u64,
}

impl Bitfield {
    /// The set that stored pages make.
    #[must_use]
    pub fn from_pages(pages: impl IntoIterator<Item = (u64, Box<Page>)>) -> Self {
        let pages: BTreeMap<_, _> = pages.into_iter().collect();
        let count = pages
            .values()
            .flat_map(|page| page.iter())
            .map(|word| u64::from(word.count_ones()))
            .sum();
        let mut bitfield = Self { pages, contiguous: 0, count };
        bitfield.contiguous = bitfield.next_missing(0);
        bitfield
    }

    /// Every block below is here, and this one is not.
    #[must_use]
    pub fn contiguous(&self) -> u64 {
        self.contiguous
    }

    /// How many blocks are here.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether a block is here.
    #[must_use]
    pub fn has(&self, index: u64) -> bool {
        self.pages
            .get(&(index / PAGE_BITS))
            .is_some_and(|page| word(page, index) >> (index % 64) & 1 != 0)
    }

    /// Page `number`, if any block on it was ever here.
    #[must_use]
    pub fn page(&self, number: u64) -> Option<&Page> {
        self.pages.get(&number).map(|page| &**page)
    }

    /// Every page with its number.
    pub fn into_pages(self) -> impl Iterator<Item = (u64, Box<Page>)> {
        self.pages.into_iter()
    }

    /// The pages that change when `start..end` is added, as they will be.
    #[must_use]
    pub fn pages_with(&self, start: u64, end: u64) -> Vec<(u64, Box<Page>)> {
        if start >= end {
            return Vec::new();
        }
        let numbers = start / PAGE_BITS..=(end - 1) / PAGE_BITS;
        let pages = self.pages.range(numbers).map(|(number, page)| (*number, page.clone()));
        let mut bits = Self::from_pages(pages);
        bits.insert_range(start, end);
        bits.into_pages().collect()
    }

    /// Adds a block; whether it was missing.
    pub fn insert(&mut self, index: u64) -> bool {
        let page = self.pages.entry(index / PAGE_BITS).or_insert_with(|| Box::new([0; WORDS]));
        let word = &mut page[(index % PAGE_BITS / 64) as usize];
        let bit = 1 << (index % 64);
        if *word & bit != 0 {
            return false;
        }
        *word |= bit;
        self.count += 1;
        if index == self.contiguous {
            self.contiguous = self.next_missing(index + 1);
        }
        true
    }

    /// Adds the blocks from `start` to one before `end`.
    pub fn insert_range(&mut self, start: u64, end: u64) {
        let mut at = start;
        while at < end {
            let page = self.pages.entry(at / PAGE_BITS).or_insert_with(|| Box::new([0; WORDS]));
            let stop = end.min((at / PAGE_BITS + 1) * PAGE_BITS);
            while at < stop {
                let until = stop.min((at / 64 + 1) * 64);
                let ones = u64::MAX >> (64 - (until - at)) << (at % 64);
                let word = &mut page[(at % PAGE_BITS / 64) as usize];
                self.count += u64::from((ones & !*word).count_ones());
                *word |= ones;
                at = until;
            }
        }
        if start <= self.contiguous && end > self.contiguous {
            self.contiguous = self.next_missing(end);
        }
    }

    /// Removes a block; whether it was here.
    pub fn remove(&mut self, index: u64) -> bool {
        let Some(page) = self.pages.get_mut(&(index / PAGE_BITS)) else { return false };
        let word = &mut page[(index % PAGE_BITS / 64) as usize];
        let bit = 1 << (index % 64);
        if *word & bit == 0 {
            return false;
        }
        *word &= !bit;
        self.count -= 1;
        self.contiguous = self.contiguous.min(index);
        true
    }

    /// Removes every block from `length` on.
    pub fn truncate(&mut self, length: u64) {
        let boundary = length.div_ceil(PAGE_BITS);
        for page in self.pages.split_off(&boundary).values() {
            self.count -= page.iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
        }
        if !length.is_multiple_of(PAGE_BITS)
            && let Some(page) = self.pages.get_mut(&(length / PAGE_BITS))
        {
            let first = (length % PAGE_BITS / 64) as usize;
            for (at, word) in page.iter_mut().enumerate().skip(first) {
                let kept = if at == first { (1 << (length % 64)) - 1 } else { 0 };
                self.count -= u64::from((*word & !kept).count_ones());
                *word &= kept;
            }
        }
        self.contiguous = self.contiguous.min(length);
    }

    /// The first block at or after `from` that is missing.
    #[must_use]
    pub fn next_missing(&self, from: u64) -> u64 {
        let mut at = from;
        loop {
            let Some(page) = self.pages.get(&(at / PAGE_BITS)) else { return at };
            let missing = !word(page, at) >> (at % 64);
            if missing != 0 {
                return at + u64::from(missing.trailing_zeros());
            }
            at = (at / 64 + 1) * 64;
        }
    }

    /// The first block at or after `from` that is here.
    #[must_use]
    pub fn next_present(&self, from: u64) -> Option<u64> {
        self.pages.range(from / PAGE_BITS..).find_map(|(number, page)| {
            let start = from.max(number * PAGE_BITS);
            let mut at = start;
            while at / PAGE_BITS == *number {
                let present = word(page, at) >> (at % 64);
                if present != 0 {
                    return Some(at + u64::from(present.trailing_zeros()));
                }
                at = (at / 64 + 1) * 64;
            }
            None
        })
    }

    /// `count` words of 32 blocks from `start` (a multiple of 32), as the wire has them, without the
    /// zero words at the end.
    #[must_use]
    pub fn words(&self, start: u64, count: usize) -> Vec<u32> {
        let mut out = Vec::new();
        let end = start.saturating_add(count as u64 * 32);
        let mut at = start;
        while at < end {
            let Some(next) = self.next_present(at).filter(|next| *next < end) else { break };
            out.resize(((next - start) / 32) as usize, 0);
            at = next / 32 * 32;
            let stop = end.min((at / PAGE_BITS + 1) * PAGE_BITS);
            while at < stop {
                let half = self.pages.get(&(at / PAGE_BITS)).map_or(0, |page| word(page, at));
                out.push((half >> (at % 64)) as u32);
                at += 32;
            }
        }
        while out.last() == Some(&0) {
            out.pop();
        }
        out
    }
}

fn word(page: &Page, index: u64) -> u64 {
    page[(index % PAGE_BITS / 64) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_behaves_as_a_set(
            steps in prop::collection::vec((0u64..40_000, 0u64..300, 0u8..4), 0..60),
            probe in 0u64..40_000,
        ) {
            let (mut bits, mut set) = (Bitfield::default(), BTreeSet::new());
            for (start, length, what) in steps {
                match what {
                    0 => prop_assert_eq!(bits.insert(start % 500), set.insert(start % 500)),
                    1 => {
                        bits.insert_range(start, start + length);
                        set.extend(start..start + length);
                    }
                    2 => prop_assert_eq!(bits.remove(start % 500), set.remove(&(start % 500))),
                    _ => {
                        bits.truncate(start);
                        set.retain(|index| *index < start);
                    }
                }
            }
            prop_assert_eq!(bits.count(), set.len() as u64);
            prop_assert_eq!(bits.has(probe), set.contains(&probe));
            prop_assert_eq!(bits.next_present(probe), set.range(probe..).next().copied());
            let missing = (probe..).find(|index| !set.contains(index));
            prop_assert_eq!(Some(bits.next_missing(probe)), missing);
            prop_assert_eq!(Some(bits.contiguous()), (0..).find(|index| !set.contains(index)));
            let stored = bits.pages.iter().map(|(number, page)| (*number, page.clone()));
            prop_assert_eq!(Bitfield::from_pages(stored).contiguous(), bits.contiguous());
            let mut more = bits.clone();
            more.insert_range(probe, probe + 10_000);
            for (number, page) in bits.pages_with(probe, probe + 10_000) {
                prop_assert_eq!(more.page(number), Some(&*page));
            }
            let words = bits.words(probe / 32 * 32, 100);
            for bit in 0..3200 {
                let word = words.get(bit / 32).copied().unwrap_or(0);
                prop_assert_eq!(
                    word >> (bit % 32) & 1 != 0,
                    set.contains(&(probe / 32 * 32 + bit as u64))
                );
            }
        }
    }

    #[test]
    fn blocks_far_apart_take_one_page_each() {
        let mut bits = Bitfield::default();
        assert!(bits.insert(1 << 38) && bits.insert(0));
        assert_eq!(bits.pages.len(), 2);
        assert_eq!(bits.next_present(1), Some(1 << 38));
    }
}
