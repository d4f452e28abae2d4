//! How much to ask of a peer at once: what its distance and its speed need, measured by its answers.
//!
//! Less leaves the path idle; more only waits somewhere, in memory that the receiver or the sender
//! could do without. As in BBR, the amount is a multiple of the highest rate and the shortest round
//! trip, which waiting cannot inflate.

use std::time::{Duration, Instant};

/// Multiple of what is on its way at full speed: lets the rate that is found grow. 2 is no faster, and
/// what is asked for lies in memory.
const GAIN: f64 = 1.5;
/// Bytes besides: what is taken, hashed and written at a time, on either side. With less, one side of a fast
/// path waits for the other: 0.5 MiB took a tenth more time over loopback.
const SLACK: f64 = (1 << 20) as f64;
/// Never more bytes than this (design: what a peer may have buffered, on its way and once waiting).
const MOST: f64 = (8 << 20) as f64;
/// How long the highest rate counts, twice.
const PERIOD: Duration = Duration::from_secs(5);

/// What was measured of one peer's answers.
#[derive(Debug)]
pub(super) struct Pipeline {
    delivered: u64,
    shortest: Option<Duration>,
    /// The highest rates (bytes a second) of this period and the one before.
    highest: [f64; 2],
    period_ends_at: Instant,
}

/// The moment a request was sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    at: Instant,
    delivered: u64,
}

impl Pipeline {
    pub(super) fn new(now: Instant) -> Self {
        Self { delivered: 0, shortest: None, highest: [0.0; 2], period_ends_at: now + PERIOD }
    }

    /// A request goes out.
    pub(super) fn on_sent(&self, now: Instant) -> Sent {
        Sent { at: now, delivered: self.delivered }
    }

    /// The answer came, with so many bytes of a block.
    pub(super) fn on_answer(&mut self, sent: &Sent, bytes: u64, now: Instant) {
        self.delivered += bytes;
        let took = now.saturating_duration_since(sent.at);
        self.shortest = Some(self.shortest.map_or(took, |least| least.min(took)));
        if now >= self.period_ends_at {
            self.highest = [0.0, self.highest[0]];
            self.period_ends_at = now + PERIOD;
        }
        if !took.is_zero() {
            let rate = (self.delivered - sent.delivered) as f64 / took.as_secs_f64();
            self.highest[0] = self.highest[0].max(rate);
        }
    }

    /// The shortest time an answer took; zero before the first one.
    pub(super) fn distance(&self) -> Duration {
        self.shortest.unwrap_or_default()
    }

    /// The highest rate of late, in bytes a second; 0 before it was measured.
    pub(super) fn rate(&self) -> f64 {
        self.highest[0].max(self.highest[1])
    }

    /// How many bytes of blocks may be asked for at once.
    pub(super) fn window(&self) -> u64 {
        (GAIN * self.rate() * self.distance().as_secs_f64() + SLACK).min(MOST) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 65_536;

    /// The window, in bytes, after `rounds` round trips over a path of `rate` bytes a second.
    fn window(rate: f64, trip: Duration, rounds: u32) -> u64 {
        let start = Instant::now();
        let mut pipeline = Pipeline::new(start);
        let (mut now, mut free_at) = (start, start);
        for _ in 0..rounds {
            let blocks = pipeline.window() / BLOCK;
            let sent: Vec<Sent> = (0..blocks).map(|_| pipeline.on_sent(now)).collect();
            free_at = free_at.max(now + trip);
            for sent in &sent {
                free_at += Duration::from_secs_f64(BLOCK as f64 / rate);
                pipeline.on_answer(sent, BLOCK, free_at);
            }
            now = free_at;
        }
        pipeline.window()
    }

    #[test]
    fn a_near_peer_is_asked_for_little_and_a_far_one_for_what_the_path_holds() {
        let near = window(500e6, Duration::from_micros(300), 50);
        assert!(near < 2 << 20, "{near}");
        let far = window(50e6, Duration::from_millis(50), 20);
        assert!(far as f64 > 50e6 * 0.05, "{far}");
    }

    #[test]
    fn waiting_does_not_inflate_the_window_and_nothing_exceeds_the_most() {
        let slow = window(1e6, Duration::from_millis(20), 200);
        assert!(slow < 2 << 20, "{slow}");
        assert_eq!(window(1e9, Duration::from_secs(1), 50), MOST as u64);
    }
}
