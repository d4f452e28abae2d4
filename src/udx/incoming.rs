//! What was received: in order and waiting for the reader, or early and waiting for its turn.
//!
//! Everything is bounded by the window, which shrinks by what the reader has not taken: a reader that
//! stops stops the sender.

use std::collections::BTreeMap;
use std::ops::Range;

use super::budget::WindowBudget;
use super::bytequeue::ByteQueue;
use super::header::MAX_SACKS;
use super::ranges::RangeSet;

/// Packets further ahead of the next one than this are dropped.
const MAX_AHEAD: u64 = 16_384;
/// Packets that would open another gap beyond so many are dropped.
const MAX_GAPS: usize = 1024;
/// What an early packet costs besides its payload, in bytes.
const EARLY_COST: usize = 64;
/// A window smaller than a packet is advertised as zero: it would only invite a packet that does not fit.
const SMALLEST_WINDOW: usize = 2048;

/// The window to begin with (bytes). It grows to the most allowed only for a reader that keeps up on a path
/// that holds more, so that nobody can fill the whole of it at once.
const FIRST_WINDOW: usize = 1 << 20;

/// Unused chunks of the queue that are kept, 512 KiB: what is received is read soon.
const SPARE: usize = 8;

/// A packet that came before its turn.
#[derive(Debug)]
struct Early {
    payload: Box<[u8]>,
    is_end: bool,
}

/// The receiving half of a stream.
#[derive(Debug)]
pub(super) struct Incoming {
    /// The sequence number of the next packet in order.
    next: u64,
    ready: ByteQueue,
    early: BTreeMap<u64, Early>,
    early_cost: usize,
    early_ranges: RangeSet,
    /// The packet that came last, if it came early: its range is reported first.
    newest: u64,
    ended: bool,
    discarding: bool,
    window: usize,
    largest_window: usize,
    /// What the window grows from, and by how much it did.
    budget: WindowBudget,
    grown: usize,
    advertised: usize,
    /// How far the last report of early ranges went, if not all of them fitted.
    reported: usize,
}

impl Incoming {
    pub(super) fn new(window: u32, budget: WindowBudget) -> Self {
        let largest_window = (window as usize).max(2 * SMALLEST_WINDOW);
        let window = largest_window.min(FIRST_WINDOW);
        Self {
            next: 0,
            ready: ByteQueue::new(SPARE),
            early: BTreeMap::new(),
            early_cost: 0,
            early_ranges: RangeSet::default(),
            newest: 0,
            reported: 0,
            ended: false,
            discarding: false,
            window,
            largest_window,
            budget,
            grown: 0,
            advertised: window,
        }
    }

    /// The sequence number of the next packet in order: what to acknowledge.
    pub(super) const fn next(&self) -> u64 {
        self.next
    }

    /// Whether everything up to the other side's END has arrived.
    pub(super) const fn has_ended(&self) -> bool {
        self.ended
    }

    /// Payload bytes that arrived in order so far.
    pub(super) const fn received(&self) -> u64 {
        self.ready.end()
    }

    /// Payload bytes that the reader has taken.
    pub(super) const fn taken(&self) -> u64 {
        self.ready.end() - self.ready.len() as u64
    }

    /// The reader takes so many bytes a round trip. The window is to hold three times that, up to its
    /// largest: what is lost, and lost again, keeps back all that follows.
    pub(super) fn fit_window(&mut self, bytes: u64) {
        let more = self.window.min(self.largest_window - self.window);
        if more > 0 && bytes.saturating_mul(3) > self.window as u64 && self.budget.take(more) {
            self.window += more;
            self.grown += more;
        }
    }

    /// Bytes that wait for the reader.
    pub(super) const fn available(&self) -> usize {
        self.ready.len()
    }

    /// Bytes held, early packets included.
    pub(super) const fn held(&self) -> usize {
        self.ready.len() + self.early_cost
    }

    /// The most that [`Self::held`] gives with the window as it is.
    pub(super) fn held_max(&self) -> usize {
        self.window + self.window / 4 + EARLY_COST + self.reserve()
    }

    /// Bytes in order that are taken however many early ones there are. Without them a missing packet
    /// would not fit any more once the window is full of what follows it.
    fn reserve(&self) -> usize {
        (self.window / 4).max(SMALLEST_WINDOW)
    }

    /// Takes the packet `seq`. Packets that were received before, or that do not fit, are dropped.
    pub(super) fn insert(&mut self, seq: u64, payload: &[u8], is_end: bool) {
        // A sender that fills the window exactly may have packets on the way that it counts as lost:
        // those a quarter above still fit.
        let mut full = self.held() + payload.len() > self.window + self.window / 4;
        full &= seq > self.next || self.ready.len() + payload.len() > self.reserve();
        if self.ended || full || seq < self.next || seq - self.next >= MAX_AHEAD {
            return;
        }
        if seq > self.next {
            self.insert_early(seq, payload, is_end);
            return;
        }
        self.accept(payload, is_end);
        while !self.ended {
            let entry = self.early.first_entry().filter(|entry| *entry.key() == self.next);
            let Some(entry) = entry else { break };
            let early = entry.remove();
            self.early_cost -= early.payload.len() + EARLY_COST;
            self.accept(&early.payload, early.is_end);
        }
        self.early_ranges.remove_below(self.next);
        if self.ended {
            self.early.clear();
            self.early_cost = 0;
            self.early_ranges = RangeSet::default();
        }
    }

    fn insert_early(&mut self, seq: u64, payload: &[u8], is_end: bool) {
        let opens_gap = self.early_ranges.find(seq - 1).is_none();
        if self.early.contains_key(&seq) || (opens_gap && self.early_ranges.len() >= MAX_GAPS) {
            return;
        }
        self.early_cost += payload.len() + EARLY_COST;
        self.early.insert(seq, Early { payload: payload.into(), is_end });
        self.early_ranges.insert(seq..seq + 1, |_| {});
        self.newest = seq;
    }

    fn accept(&mut self, payload: &[u8], is_end: bool) {
        self.next += 1;
        self.ready.push(payload);
        self.ended = is_end;
        if self.discarding {
            self.ready.release(u64::MAX);
        }
    }

    /// Moves bytes to the reader, `most` at most.
    pub(super) fn read(&mut self, most: usize, take: impl FnMut(&[u8])) -> usize {
        self.ready.read(most, take)
    }

    /// From now on nobody reads: what arrives is acknowledged and let go.
    pub(super) fn discard(&mut self) {
        self.discarding = true;
        self.ready.release(u64::MAX);
    }

    /// The window to advertise now, in bytes.
    pub(super) fn window(&self) -> u32 {
        let free = self.window.saturating_sub(self.held());
        if free < SMALLEST_WINDOW { 0 } else { u32::try_from(free).unwrap_or(u32::MAX) }
    }

    /// Notes that the current window goes out.
    pub(super) fn advertise(&mut self) -> u32 {
        let window = self.window();
        self.advertised = window as usize;
        window
    }

    /// Whether the reader made so much room that the sender should hear of it unasked.
    pub(super) fn window_update_due(&self) -> bool {
        !self.ended && self.window() as usize >= self.advertised + self.window / 4
    }

    /// Whether packets wait for an earlier one.
    pub(super) fn has_gaps(&self) -> bool {
        !self.early_ranges.is_empty()
    }

    /// The early ranges to report: that of the newest packet, then as many others as there is room for.
    /// When there are more, the next call goes on where this one ended: on a long path with loss they
    /// are many, and what is never reported is sent again.
    pub(super) fn sacks(&mut self) -> impl Iterator<Item = Range<u64>> {
        let ranges = self.early_ranges.len();
        let from = if self.reported < ranges { self.reported } else { 0 };
        self.reported = if ranges > MAX_SACKS { from + MAX_SACKS - 1 } else { 0 };
        let newest = self.early_ranges.find(self.newest);
        let (after, before) = (self.early_ranges.iter().skip(from), self.early_ranges.iter());
        let rest = after.chain(before.take(from)).filter({
            let newest = newest.clone();
            move |range| newest.as_ref() != Some(range)
        });
        newest.into_iter().chain(rest.cloned()).take(MAX_SACKS)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.budget.give_back(self.grown);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(incoming: &mut Incoming) -> Vec<u8> {
        let mut out = Vec::new();
        incoming.read(usize::MAX, |part| out.extend_from_slice(part));
        out
    }

    #[test]
    fn packets_in_any_order_and_twice_give_the_bytes_once_in_order() {
        let mut incoming = Incoming::new(1 << 20, WindowBudget::default());
        for (seq, payload) in [(2, "c"), (1, "b"), (2, "x"), (0, "a"), (0, "y"), (3, "d")] {
            incoming.insert(seq, payload.as_bytes(), false);
        }
        assert_eq!(read(&mut incoming), b"abcd");
        assert!(!incoming.has_gaps());
    }

    #[test]
    fn the_end_counts_once_everything_before_it_is_there() {
        let mut incoming = Incoming::new(1 << 20, WindowBudget::default());
        incoming.insert(1, b"", true);
        incoming.insert(2, b"after the end", false);
        assert!(!incoming.has_ended());
        incoming.insert(0, b"all", false);
        assert!(incoming.has_ended());
        assert_eq!(
            (read(&mut incoming), incoming.next(), incoming.held()),
            (b"all".to_vec(), 2, 0)
        );
    }

    #[test]
    fn a_sender_that_ignores_the_window_fills_no_more_than_half_above_it() {
        let mut incoming = Incoming::new(100_000, WindowBudget::default());
        for seq in 0..1000 {
            incoming.insert(seq, &[0; 1000], false);
            incoming.insert(seq * 2 + 5, &[0; 1000], false);
        }
        assert!(incoming.held() <= 150_000 + EARLY_COST, "{}", incoming.held());
        assert!(incoming.held() <= incoming.held_max());
        assert_eq!(incoming.window(), 0);
    }

    #[test]
    fn the_packet_that_is_missing_fits_into_a_window_full_of_later_ones() {
        let mut incoming = Incoming::new(5000, WindowBudget::default());
        for seq in [1, 2, 3, 4, 5, 6, 0] {
            incoming.insert(seq, &[0; 1200], false);
        }
        assert!(incoming.next() > 4, "{}", incoming.next());
    }

    #[test]
    fn the_window_is_what_the_reader_left_and_its_reopening_is_announced() {
        let mut incoming = Incoming::new(100_000, WindowBudget::default());
        for seq in 0..99 {
            incoming.insert(seq, &[0; 1000], false);
        }
        assert_eq!(incoming.advertise(), 0);
        assert!(!incoming.window_update_due());
        incoming.read(10_000, |_| {});
        assert!(!incoming.window_update_due());
        incoming.read(20_000, |_| {});
        assert!(incoming.window_update_due());
        assert_eq!(incoming.advertise(), 31_000);
        assert!(!incoming.window_update_due());
    }

    #[test]
    fn the_newest_range_is_reported_first_and_no_more_than_fit_a_packet() {
        let mut incoming = Incoming::new(1 << 20, WindowBudget::default());
        for seq in (2..500).step_by(2) {
            incoming.insert(seq, b"-", false);
        }
        incoming.insert(300, b"again", false);
        incoming.insert(301, b"-", false);
        let sacks: Vec<_> = incoming.sacks().collect();
        assert_eq!(sacks.len(), MAX_SACKS);
        assert_eq!(sacks[..3], [300..303, 2..3, 4..5]);
        let more: Vec<_> = incoming.sacks().collect();
        assert_eq!(more[..3], [300..303, 100..101, 102..103]);
    }

    #[test]
    fn the_window_grows_with_the_reader_while_the_budget_lasts() {
        let budget = WindowBudget::new(4 << 20);
        let streams = || Incoming::new(8 << 20, budget.clone());
        let (mut first, mut second) = (streams(), streams());
        assert_eq!(first.window(), FIRST_WINDOW as u32);
        first.fit_window(1000);
        assert_eq!(first.window(), 1 << 20);
        (0..9).for_each(|_| first.fit_window(4 << 20));
        assert_eq!(first.window(), 4 << 20);
        second.fit_window(4 << 20);
        second.fit_window(4 << 20);
        assert_eq!(second.window(), 2 << 20, "the rest of the budget");
        drop(first);
        second.fit_window(4 << 20);
        assert_eq!(second.window(), 4 << 20);
    }

    #[test]
    fn gaps_and_distance_are_bounded() {
        let mut incoming = Incoming::new(64 << 20, WindowBudget::default());
        for seq in (1..100_000).step_by(2) {
            incoming.insert(seq, b"", false);
        }
        assert_eq!(incoming.early_ranges.len(), MAX_GAPS);
        incoming.insert(MAX_AHEAD, b"", false);
        assert!(!incoming.early.contains_key(&MAX_AHEAD));
    }
}
