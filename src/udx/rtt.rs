//! Round-trip times and the retransmission timeout (RFC 6298, with libudx's bounds).

use std::time::{Duration, Instant};

const RTO_MIN: Duration = Duration::from_secs(1);
const RTO_MAX: Duration = Duration::from_secs(30);
/// A sample above this that is also an outlier spans a machine's sleep, not a network.
const SLEEP_SUSPECT: Duration = Duration::from_secs(5);
/// How long the smallest round-trip time counts (libudx: `UDX_RTT_MIN_WINDOW_MS`).
const MIN_WINDOW: Duration = Duration::from_secs(300);

/// The estimate of a stream.
#[derive(Debug, Default)]
pub(super) struct RttEstimate {
    smoothed: Option<Duration>,
    variation: Duration,
    min: Option<(Duration, Instant)>,
}

impl RttEstimate {
    /// Takes a sample from a packet that was sent once.
    pub(super) fn update(&mut self, now: Instant, sample: Duration) {
        let sample = self.clamp(sample);
        self.min = match self.min {
            Some((min, at)) if min < sample && now.saturating_duration_since(at) < MIN_WINDOW => {
                Some((min, at))
            }
            _ => Some((sample, now)),
        };
        match self.smoothed {
            None => {
                self.smoothed = Some(sample);
                self.variation = sample / 2;
            }
            Some(smoothed) => {
                self.variation = (self.variation * 3 + smoothed.abs_diff(sample)) / 4;
                self.smoothed = Some((smoothed * 7 + sample) / 8);
            }
        }
    }

    fn clamp(&self, sample: Duration) -> Duration {
        let outlier = self.smoothed.map_or(RTO_MAX, |smoothed| smoothed + self.variation * 5);
        if sample > outlier && sample > SLEEP_SUSPECT { outlier.min(RTO_MAX) } else { sample }
    }

    /// The smoothed time; `None` before the first sample.
    pub(super) const fn smoothed(&self) -> Option<Duration> {
        self.smoothed
    }

    /// The smallest time of the last five minutes.
    pub(super) fn min(&self) -> Option<Duration> {
        self.min.map(|(min, _)| min)
    }

    /// The retransmission timeout: 1 s to 30 s.
    pub(super) fn rto(&self) -> Duration {
        self.smoothed
            .map_or(RTO_MIN, |smoothed| (smoothed + self.variation * 4).clamp(RTO_MIN, RTO_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_stays_between_one_and_thirty_seconds() {
        let now = Instant::now();
        let mut rtt = RttEstimate::default();
        assert_eq!(rtt.rto(), RTO_MIN);
        rtt.update(now, Duration::from_millis(2));
        assert_eq!((rtt.rto(), rtt.min()), (RTO_MIN, Some(Duration::from_millis(2))));
        let mut slow = RttEstimate::default();
        slow.update(now, Duration::from_secs(25));
        assert_eq!(slow.rto(), RTO_MAX);
    }

    #[test]
    fn a_sleeping_machine_does_not_ruin_the_estimate() {
        let now = Instant::now();
        let mut rtt = RttEstimate::default();
        for _ in 0..20 {
            rtt.update(now, Duration::from_millis(20));
        }
        rtt.update(now, Duration::from_secs(3600));
        assert_eq!(rtt.rto(), RTO_MIN);
    }
}
