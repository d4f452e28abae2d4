//! How fast the path delivers: a sample an acknowledgement
//! (draft-cheng-iccrg-delivery-rate-estimation).

use std::time::{Duration, Instant};

/// What is remembered of the moment a packet was sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct SentState {
    delivered: u64,
    delivered_at: Instant,
    first_sent_at: Instant,
    is_app_limited: bool,
}

/// What one acknowledgement says.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RateSample {
    /// Bytes delivered between the sending of the packet that was acknowledged and its acknowledgement.
    pub(super) delivered: u64,
    /// In how much time.
    pub(super) interval: Duration,
    /// What had been delivered when that packet was sent.
    pub(super) prior_delivered: u64,
    /// The sender had nothing to send: the path may be faster.
    pub(super) is_app_limited: bool,
    /// The round-trip time, if a packet gave one.
    pub(super) rtt: Option<Duration>,
    /// Bytes that this acknowledgement covers.
    pub(super) newly_acked: u64,
    /// Bytes found lost with it.
    pub(super) newly_lost: u64,
    pub(super) best: Option<u64>,
}

/// The counters of a stream.
#[derive(Debug)]
pub(super) struct DeliveryRate {
    delivered: u64,
    delivered_at: Instant,
    first_sent_at: Instant,
    /// Samples are app limited until so much is delivered; zero: they are not.
    app_limited_until: u64,
}

impl DeliveryRate {
    pub(super) const fn new(now: Instant) -> Self {
        // A stream begins without enough to send.
        Self { delivered: 0, delivered_at: now, first_sent_at: now, app_limited_until: 1 }
    }

    /// Bytes delivered so far.
    pub(super) const fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Notes that a packet goes out while `in_flight` bytes are on their way.
    pub(super) const fn on_sent(&mut self, now: Instant, in_flight: u64) -> SentState {
        if in_flight == 0 {
            self.first_sent_at = now;
            self.delivered_at = now;
        }
        SentState {
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            first_sent_at: self.first_sent_at,
            is_app_limited: self.app_limited_until != 0,
        }
    }

    /// Notes that the sender ran out of data with `in_flight` bytes on their way.
    pub(super) fn on_app_limited(&mut self, in_flight: u64) {
        self.app_limited_until = (self.delivered + in_flight).max(1);
    }

    /// Notes that a packet of `size` bytes, the `index`th sent, was delivered.
    pub(super) fn on_delivered(
        &mut self,
        now: Instant,
        (sent, sent_at, index): (&SentState, Instant, u64),
        size: u64,
        sample: &mut RateSample,
    ) {
        self.delivered += size;
        self.delivered_at = now;
        sample.newly_acked += size;
        // The packet sent last tells the most recent rate.
        if sample.best.is_none_or(|best| index > best) {
            sample.best = Some(index);
            sample.prior_delivered = sent.delivered;
            sample.is_app_limited = sent.is_app_limited;
            let sending = sent_at.saturating_duration_since(sent.first_sent_at);
            let acking = now.saturating_duration_since(sent.delivered_at);
            // The longer of the two: acknowledgements that come bunched say nothing of the path.
            sample.interval = sending.max(acking);
            self.first_sent_at = sent_at;
        }
        if self.app_limited_until != 0 && self.delivered > self.app_limited_until {
            self.app_limited_until = 0;
        }
    }

    /// Completes the sample after the last packet of an acknowledgement.
    pub(super) const fn finish(&self, sample: &mut RateSample) {
        sample.delivered = self.delivered.saturating_sub(sample.prior_delivered);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_path_gives_its_rate() {
        let start = Instant::now();
        let mut rate = DeliveryRate::new(start);
        let at = |ms: u64| start + Duration::from_millis(ms);
        // 1,000 bytes a millisecond, acknowledged 10 ms later.
        let sent: Vec<_> = (0..100).map(|n| (rate.on_sent(at(n), n.min(1)), at(n))).collect();
        let mut sample = RateSample::default();
        for (n, (state, sent_at)) in sent.iter().enumerate() {
            sample = RateSample::default();
            rate.on_delivered(at(n as u64 + 10), (state, *sent_at, n as u64), 1000, &mut sample);
            rate.finish(&mut sample);
        }
        let bytes_per_ms = sample.delivered as f64 / (sample.interval.as_secs_f64() * 1000.0);
        assert!((900.0..1100.0).contains(&bytes_per_ms), "{bytes_per_ms}");
    }
}
