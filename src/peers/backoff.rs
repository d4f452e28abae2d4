//! How long to wait before dialing a peer again.

use std::time::Duration;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// Doubles from 1 s to 60 s with every failure in a row, give or take a quarter, so that servers that
/// lost each other at one moment do not come back at one moment.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after one more failure. `chance` is uniform in 0..1.
    pub(super) fn after_failure(&mut self, chance: f64) -> Duration {
        let doubled = FIRST.saturating_mul(1 << self.failures.min(6)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        doubled.mul_f64(0.75 + chance.clamp(0.0, 1.0) / 2.0).min(LONGEST)
    }

    /// Begins anew: the peer was connected, or something says that it can be now.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_from_one_second_to_sixty() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..8).map(|_| backoff.after_failure(0.5).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        backoff.reset();
        assert_eq!(backoff.after_failure(0.0), Duration::from_millis(750));
        for _ in 0..1000 {
            assert!(backoff.after_failure(1.0) <= LONGEST);
        }
    }
}
