//! How fast a transfer is and how long it will take. Takes the time from its caller.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// The least time between two reports of one transfer: at most 4 a second.
pub const REPORT_INTERVAL: Duration = Duration::from_millis(250);
/// After how long a measurement has lost about two thirds of its weight.
const MEMORY: f64 = 3.0;
/// After how long without a byte the rate is 0.
const STALL: Duration = Duration::from_secs(5);

/// How far a transfer is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Verified bytes.
    pub bytes: u64,
    /// The book's size in bytes; 0 until it is known.
    pub total: u64,
    /// Bytes a second over the last seconds.
    pub rate: u64,
    /// Milliseconds left at that rate; `None` while nothing moves.
    pub eta_ms: Option<u64>,
}

/// Estimates the rate from the bytes seen so far, exponentially weighted.
#[derive(Debug, Clone)]
pub struct Meter {
    bytes: u64,
    total: u64,
    rate: f64,
    sampled: Option<Instant>,
    moved: Option<Instant>,
    reported: Option<Instant>,
}

impl Meter {
    /// A meter that starts at `bytes` of `total`; what was there before does not count as speed.
    #[must_use]
    pub fn new(bytes: u64, total: u64) -> Self {
        Self { bytes, total, rate: 0.0, sampled: None, moved: None, reported: None }
    }

    /// Notes that `bytes` of the book are there at `now`.
    pub fn sample(&mut self, bytes: u64, now: Instant) {
        let Some(before) = self.sampled else {
            (self.bytes, self.sampled) = (bytes, Some(now));
            return;
        };
        let elapsed = now.saturating_duration_since(before).as_secs_f64();
        if elapsed < 0.01 {
            return; // too short to divide by; the bytes count in the next sample
        }
        let gained = bytes.saturating_sub(self.bytes);
        let current = gained as f64 / elapsed;
        let first = self.rate == 0.0;
        let weight = if first { 1.0 } else { 1.0 - (-elapsed / MEMORY).exp() };
        self.rate += (current - self.rate) * weight;
        if gained > 0 {
            self.moved = Some(now);
        }
        (self.bytes, self.sampled) = (bytes, Some(now));
    }

    /// Whether a report is due; if so, the next one is not before [`REPORT_INTERVAL`] has passed.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let due = self
            .reported
            .is_none_or(|before| now.saturating_duration_since(before) >= REPORT_INTERVAL);
        if due {
            self.reported = Some(now);
        }
        due
    }

    /// Where the transfer stands at `now`.
    #[must_use]
    pub fn progress(&self, now: Instant) -> Progress {
        let moving = self.moved.is_some_and(|moved| now.saturating_duration_since(moved) < STALL);
        let rate = if moving { self.rate.max(0.0) as u64 } else { 0 };
        let left = self.total.saturating_sub(self.bytes);
        let eta_ms = left.saturating_mul(1000).checked_div(rate);
        Progress { bytes: self.bytes, total: self.total, rate, eta_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_stream_shows_its_rate_and_the_time_left() {
        let start = Instant::now();
        let mut meter = Meter::new(0, 10_000);
        for second in 0..=5 {
            meter.sample(second * 1000, start + Duration::from_secs(second));
        }
        let progress = meter.progress(start + Duration::from_secs(5));
        assert_eq!((progress.bytes, progress.rate), (5000, 1000));
        assert_eq!(progress.eta_ms, Some(5000));
    }

    #[test]
    fn bytes_from_before_a_restart_are_not_speed() {
        let start = Instant::now();
        let mut meter = Meter::new(9000, 10_000);
        meter.sample(9000, start);
        meter.sample(9100, start + Duration::from_secs(1));
        assert_eq!(meter.progress(start + Duration::from_secs(1)).rate, 100);
    }

    #[test]
    fn a_stalled_transfer_has_no_rate_and_no_end() {
        let start = Instant::now();
        let mut meter = Meter::new(0, 10_000);
        meter.sample(0, start);
        meter.sample(1000, start + Duration::from_secs(1));
        let progress = meter.progress(start + Duration::from_secs(7));
        assert_eq!((progress.rate, progress.eta_ms), (0, None));
    }

    #[test]
    fn reports_are_at_most_four_a_second() {
        let start = Instant::now();
        let mut meter = Meter::new(0, 1);
        let due = (0..2000).filter(|ms| meter.is_due(start + Duration::from_millis(*ms))).count();
        assert_eq!(due, 8);
    }
}
