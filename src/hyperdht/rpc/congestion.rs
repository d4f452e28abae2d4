//! How many requests may be on their way at once (`dht-rpc` `CongestionWindow`).
//!
//! Requests are counted in slots of 750 ms, four of them in a ring. A slot takes `max_window` requests
//! and all four together twice as many; an answer frees a place, and after three seconds a place is
//! free in any case.

/// Requests that may be unanswered in one slot.
pub(crate) const MAX_WINDOW: usize = 80;

/// The counters of the last four slots.
#[derive(Debug, Default)]
pub(crate) struct CongestionWindow {
    slots: [usize; 4],
    current: usize,
    total: usize,
}

impl CongestionWindow {
    /// Whether the next request has to wait.
    pub(crate) fn is_full(&self) -> bool {
        self.total >= 2 * MAX_WINDOW || self.slots[self.current] >= MAX_WINDOW
    }

    /// A request was sent.
    pub(crate) fn sent(&mut self) {
        self.slots[self.current] += 1;
        self.total += 1;
    }

    /// A request was answered, or given up.
    pub(crate) fn settled(&mut self) {
        if self.slots[self.current] > 0 {
            self.slots[self.current] -= 1;
            self.total -= 1;
        }
    }

    /// A slot's time is over; to be called every 750 ms.
    pub(crate) fn rotate(&mut self) {
        self.current = (self.current + 1) % self.slots.len();
        self.total -= self.slots[self.current];
        self.slots[self.current] = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_window_frees_with_an_answer_or_with_time() {
        let mut window = CongestionWindow::default();
        for _ in 0..MAX_WINDOW {
            assert!(!window.is_full());
            window.sent();
        }
        assert!(window.is_full());
        window.settled();
        assert!(!window.is_full());
        window.sent();
        window.rotate();
        assert!(!window.is_full(), "a new slot has room");
    }

    #[test]
    fn two_slots_fill_the_ring_until_the_oldest_is_dropped() {
        let mut window = CongestionWindow::default();
        for _ in 0..2 {
            for _ in 0..MAX_WINDOW {
                window.sent();
            }
            window.rotate();
        }
        assert!(window.is_full());
        window.rotate();
        window.rotate();
        assert!(!window.is_full());
    }
}
