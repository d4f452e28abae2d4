//! A limit on how much may happen: `burst` at once, `rate` a second over time.

use std::time::Duration;

use tokio::time::Instant;

/// A token bucket.
#[derive(Debug)]
pub(crate) struct RateLimit {
    rate: f64,
    burst: f64,
    /// Below zero after a [`RateLimit::charge`] beyond what there was.
    left: f64,
    at: Instant,
}

impl RateLimit {
    pub(crate) fn new(rate: u32, burst: u32) -> Self {
        let burst = f64::from(burst);
        Self { rate: f64::from(rate), burst, left: burst, at: Instant::now() }
    }

    /// Whether it may happen now; counts it if so.
    pub(crate) fn allow(&mut self) -> bool {
        self.allow_amount(1)
    }

    /// Whether `amount` may happen now; counts it if so.
    pub(crate) fn allow_amount(&mut self, amount: usize) -> bool {
        self.refill();
        let amount = amount as f64;
        if self.left < amount {
            return false;
        }
        self.left -= amount;
        true
    }

    /// Counts `amount` that happens in any case. Returns how long to wait before anything more.
    pub(crate) fn charge(&mut self, amount: u64) -> Duration {
        self.refill();
        self.left -= amount as f64;
        if self.left >= 0.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(-self.left / self.rate).unwrap_or(Duration::MAX)
    }

    fn refill(&mut self) {
        let now = Instant::now();
        let elapsed = now.duration_since(self.at).as_secs_f64();
        self.at = now;
        self.left = (self.left + elapsed * self.rate).min(self.burst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_allowed_and_no_more() {
        let mut limit = RateLimit::new(1, 3);
        assert_eq!((0..10).filter(|_| limit.allow()).count(), 3);
    }

    #[test]
    fn what_is_charged_beyond_the_burst_is_waited_for() {
        let mut limit = RateLimit::new(100, 100);
        assert_eq!(limit.charge(100), Duration::ZERO);
        let wait = limit.charge(1000);
        assert!(wait > Duration::from_secs(9) && wait <= Duration::from_secs(10), "{wait:?}");
    }
}
