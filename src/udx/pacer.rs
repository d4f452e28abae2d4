//! Spreads packets over time, in bursts that a millisecond timer can keep up with.

use std::time::{Duration, Instant};

/// Timers are no finer than this, so a burst is what this time carries.
const TICK: Duration = Duration::from_millis(1);
/// Unused time that may be caught up, in ticks: timers come late.
const CATCH_UP: f64 = 4.0;
/// The smallest allowance in bytes: a new stream's first flight goes out at once.
const MIN_ALLOWANCE: f64 = 16_384.0;
/// No burst needs to be larger: one offloaded batch (bytes).
const MAX_BURST: f64 = 65_536.0;

/// A token bucket in bytes.
#[derive(Debug)]
pub(super) struct Pacer {
    tokens: f64,
    refilled_at: Instant,
}

impl Pacer {
    pub(super) const fn new(now: Instant) -> Self {
        Self { tokens: MIN_ALLOWANCE, refilled_at: now }
    }

    /// How many bytes may go out now, of `wanted`, at `rate` bytes a second; otherwise when to ask again.
    ///
    /// Asking by the burst keeps batches large: a trickle of permits would cost a system call each.
    pub(super) fn allowance(
        &mut self,
        now: Instant,
        rate: f64,
        wanted: u64,
        packet: u64,
    ) -> Result<u64, Instant> {
        let elapsed = now.saturating_duration_since(self.refilled_at);
        self.refilled_at = now;
        let tick = rate * TICK.as_secs_f64();
        let capacity = (tick * CATCH_UP).max(MIN_ALLOWANCE);
        self.tokens = (self.tokens + rate * elapsed.as_secs_f64()).min(capacity);

        let packet = packet as f64;
        let burst = tick.clamp(packet, MAX_BURST.max(packet)).min((wanted as f64).max(packet));
        if self.tokens >= burst {
            return Ok(self.tokens as u64);
        }
        let wait = Duration::try_from_secs_f64((burst - self.tokens) / rate.max(1.0));
        Err(now + wait.unwrap_or(Duration::from_secs(1)).clamp(TICK / 4, Duration::from_secs(1)))
    }

    /// Takes what was sent out of the allowance.
    pub(super) fn consume(&mut self, bytes: u64) {
        self.tokens -= bytes as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that go out in a second when the timer fires `late` after it was due.
    fn sent_in_a_second(rate: f64, late: Duration) -> f64 {
        let start = Instant::now();
        let (mut now, mut sent) = (start, 0u64);
        let mut pacer = Pacer::new(start);
        while now < start + Duration::from_secs(1) {
            match pacer.allowance(now, rate, u64::MAX, 1472) {
                Ok(bytes) => {
                    let packets = (bytes / 1472).min(44) * 1472;
                    pacer.consume(packets);
                    sent += packets;
                }
                Err(when) => now = when + late,
            }
        }
        sent as f64
    }

    #[test]
    fn the_rate_is_kept_from_kilobytes_to_a_gigabyte_with_late_timers() {
        for rate in [100e3, 1e6, 20e6, 150e6, 1e9] {
            for late in [Duration::ZERO, Duration::from_micros(1500)] {
                let share = (sent_in_a_second(rate, late) - MIN_ALLOWANCE) / rate;
                assert!((0.90..1.02).contains(&share), "{rate} {late:?}: {share}");
            }
        }
    }
}
