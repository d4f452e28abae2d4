//! Congestion control: a compact BBR (draft-cardwell-iccrg-bbr-congestion-control-00), as libudx has.
//!
//! The path is modelled by its bandwidth and its round-trip time, so that single losses do not slow a
//! stream down. Loss counts only when a tenth of a round is gone: then a buffer on the path (the
//! receiver's socket, often) overflows, and what is on its way is held below what got through.
//!
//! Like its later versions (draft-ietf-ccwg-bbr) it leaves less standing in queues than the first did:
//! about half of what the path itself holds, and it is paced slightly below the bandwidth that was measured.
//! A part of that half grows with the square root of the rate only: of two streams on one link, the slower
//! has more of it for its size, and they become equal.

use std::time::{Duration, Instant};

use super::rate::RateSample;

/// 2/ln 2: doubles the rate every round.
const STARTUP_GAIN: f64 = 2.885;
/// What a round of probing does to the rate: up, down to drain what that queued, then level.
const CYCLE: [f64; 8] = [1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
/// How many times what the path holds may be on its way while its bandwidth is being found.
const STARTUP_CWND_GAIN: f64 = 2.0;
/// The same afterwards: what exceeds 1 stands in the queue when the bandwidth was measured too high.
const CWND_GAIN: f64 = 1.35;
/// The same on paths shorter than `LONG_PATH`, where acknowledgements wait for schedulers.
const SHORT_CWND_GAIN: f64 = 2.0;
const LONG_PATH: Duration = Duration::from_millis(5);
/// Besides, on longer ones, so many times the square root of what the path holds, counted in packets. When
/// all windows are in proportion to bandwidths that were measured with them, nothing changes the shares of
/// a link.
const CWND_ROOT: f64 = 2.0;
/// Bunched acknowledgements make the measured bandwidth a little too high, which would fill the queue. At
/// 0.99 less stands there (a round trip of 20 ms becomes 22 and not 30), but 0.4 % of the link stay unused.
const PACING_MARGIN: f64 = 0.995;
/// Rounds for which the highest bandwidth counts.
const BANDWIDTH_ROUNDS: u64 = 10;
/// Startup ends after so many rounds without a quarter more bandwidth.
const FULL_PIPE_ROUNDS: u8 = 3;
/// How long the smallest round-trip time counts before it is measured anew.
const MIN_RTT_WINDOW: Duration = Duration::from_secs(10);
const PROBE_RTT_TIME: Duration = Duration::from_millis(200);
/// Shorter paths are treated as this long: timers and schedulers are no finer.
const SMALLEST_RTT: Duration = Duration::from_millis(1);
const INITIAL_PACKETS: u64 = 10;
const MIN_PACKETS: u64 = 4;
/// One batch, in bytes: what the sender's own offloading delays.
const BATCH: f64 = 65_536.0;
/// The share of a round that must be lost to count as congestion.
const LOSS_THRESHOLD: f64 = 0.1;
/// Fewer lost packets than this in a round are chance.
const LOSS_PACKETS: u64 = 12;
/// A ceiling holds for so many round trips, then it is lifted slowly.
const CEILING_ROUNDS: u32 = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Startup,
    Drain,
    ProbeBandwidth,
    ProbeRtt,
}

/// The congestion controller of a stream. All amounts are bytes, rates bytes a second.
#[derive(Debug)]
pub(super) struct Bbr {
    mode: Mode,
    packet: u64,
    cwnd: u64,
    prior_cwnd: u64,
    /// The highest bandwidth of each of the last rounds, newest last.
    bandwidth: Vec<(u64, f64)>,
    min_rtt: Option<Duration>,
    min_rtt_at: Instant,
    round: u64,
    round_ends_at: u64,
    round_started: bool,
    full_bandwidth: f64,
    full_rounds: u8,
    pipe_is_full: bool,
    cycle: usize,
    cycle_at: Instant,
    probe_rtt_until: Option<Instant>,
    in_recovery: bool,
    conserve_until_round: u64,
    round_acked: u64,
    round_lost: u64,
    /// What the path was seen not to hold.
    ceiling: Option<f64>,
    ceiling_holds_until: Instant,
}

impl Bbr {
    /// A controller for packets of `packet` bytes; `seed` spreads the probing of several streams.
    pub(super) fn new(now: Instant, packet: u64, seed: u32) -> Self {
        Self {
            mode: Mode::Startup,
            packet,
            cwnd: INITIAL_PACKETS * packet,
            prior_cwnd: 0,
            bandwidth: Vec::new(),
            min_rtt: None,
            min_rtt_at: now,
            round: 0,
            round_ends_at: 0,
            round_started: false,
            full_bandwidth: 0.0,
            full_rounds: 0,
            pipe_is_full: false,
            // Any phase but the draining one.
            cycle: [0, 2, 3, 4, 5, 6, 7][seed as usize % 7],
            cycle_at: now,
            probe_rtt_until: None,
            in_recovery: false,
            conserve_until_round: 0,
            round_acked: 0,
            round_lost: 0,
            ceiling: None,
            ceiling_holds_until: now,
        }
    }

    /// Bytes that may be on their way.
    pub(super) const fn cwnd(&self) -> u64 {
        self.cwnd
    }

    /// Bytes a second that may leave.
    pub(super) fn pacing_rate(&self) -> f64 {
        let rate = match self.max_bandwidth() {
            // No sample yet: the first window over the round-trip time.
            bandwidth if bandwidth > 0.0 => bandwidth,
            _ => (INITIAL_PACKETS * self.packet) as f64 / self.rtt().as_secs_f64(),
        };
        let gain = match self.mode {
            Mode::Startup => STARTUP_GAIN,
            Mode::Drain => 1.0 / STARTUP_GAIN,
            Mode::ProbeBandwidth => CYCLE[self.cycle % CYCLE.len()],
            Mode::ProbeRtt => 1.0,
        };
        // Never so slow that the pacer itself becomes the bottleneck it measures.
        (rate * gain * PACING_MARGIN)
            .max((MIN_PACKETS * self.packet) as f64 / self.rtt().as_secs_f64().max(0.1))
    }

    /// Packets are larger from now on.
    pub(super) const fn set_packet_size(&mut self, packet: u64) {
        self.packet = packet;
    }

    fn max_bandwidth(&self) -> f64 {
        self.bandwidth.iter().map(|(_, bandwidth)| *bandwidth).fold(0.0, f64::max)
    }

    fn rtt(&self) -> Duration {
        self.min_rtt.unwrap_or(SMALLEST_RTT).max(SMALLEST_RTT)
    }

    fn bdp(&self) -> f64 {
        self.max_bandwidth() * self.rtt().as_secs_f64()
    }

    fn floor(&self) -> u64 {
        MIN_PACKETS * self.packet
    }

    /// Takes what an acknowledgement said. `delivered` counts from the stream's beginning.
    pub(super) fn on_ack(
        &mut self,
        now: Instant,
        sample: &RateSample,
        delivered: u64,
        in_flight: u64,
    ) {
        self.update_round(now, sample, delivered);
        self.update_bandwidth(sample);
        self.check_full_pipe(sample);
        self.update_cycle(now, sample, in_flight);
        self.update_min_rtt(now, sample, in_flight);
        self.update_cwnd(sample, delivered, in_flight);
    }

    fn update_round(&mut self, now: Instant, sample: &RateSample, delivered: u64) {
        self.round_acked += sample.newly_acked;
        self.round_lost += sample.newly_lost;
        self.round_started = sample.newly_acked > 0 && sample.prior_delivered >= self.round_ends_at;
        if !self.round_started {
            return;
        }
        self.round_ends_at = delivered;
        self.round += 1;
        if self.is_congested() {
            let through = self.max_bandwidth() * self.min_rtt.unwrap_or_default().as_secs_f64();
            self.ceiling = Some((self.round_acked as f64 * 0.9).max(through));
            self.ceiling_holds_until = now + self.rtt() * CEILING_ROUNDS;
            self.pipe_is_full |= self.mode == Mode::Startup;
        } else if let Some(ceiling) = self.ceiling.filter(|_| now >= self.ceiling_holds_until) {
            let lifted = ceiling * 1.05;
            self.ceiling = (lifted < self.window() + 3.0 * BATCH).then_some(lifted);
        }
        self.round_acked = 0;
        self.round_lost = 0;
    }

    /// Whether more of this round is lost than chance explains.
    fn is_congested(&self) -> bool {
        let total = (self.round_acked + self.round_lost) as f64;
        self.round_lost > LOSS_PACKETS * self.packet
            && self.round_lost as f64 > total * LOSS_THRESHOLD
    }

    /// What may be on its way so that the path is never empty.
    fn window(&self) -> f64 {
        let bdp = self.bdp();
        let is_long = self.rtt() >= LONG_PATH;
        let gain = match self.pipe_is_full {
            false => STARTUP_CWND_GAIN,
            true if is_long => CWND_GAIN,
            true => SHORT_CWND_GAIN,
        };
        let root = if is_long { CWND_ROOT } else { 0.0 };
        gain * bdp + root * (bdp * self.packet as f64).sqrt()
    }

    fn update_bandwidth(&mut self, sample: &RateSample) {
        // Shorter than any round trip: acknowledgements were bunched, the quotient means nothing.
        let too_short = self.min_rtt.is_some_and(|min| sample.interval < min);
        if sample.newly_acked == 0 || sample.interval.is_zero() || too_short {
            return;
        }
        let bandwidth = sample.delivered as f64 / sample.interval.as_secs_f64();
        if sample.is_app_limited && bandwidth < self.max_bandwidth() {
            return;
        }
        let round = self.round;
        self.bandwidth.retain(|(at, _)| at + BANDWIDTH_ROUNDS > round);
        match self.bandwidth.last_mut().filter(|(at, _)| *at == round) {
            Some((_, highest)) => *highest = highest.max(bandwidth),
            None => self.bandwidth.push((round, bandwidth)),
        }
    }

    fn check_full_pipe(&mut self, sample: &RateSample) {
        if !self.pipe_is_full && self.round_started && !sample.is_app_limited {
            let bandwidth = self.max_bandwidth();
            if bandwidth >= self.full_bandwidth * 1.25 {
                self.full_bandwidth = bandwidth;
                self.full_rounds = 0;
            } else {
                self.full_rounds += 1;
                self.pipe_is_full = self.full_rounds >= FULL_PIPE_ROUNDS;
            }
        }
        if self.mode == Mode::Startup && self.pipe_is_full {
            self.mode = Mode::Drain;
        }
    }

    fn update_cycle(&mut self, now: Instant, sample: &RateSample, in_flight: u64) {
        let in_flight = in_flight as f64;
        if self.mode == Mode::Drain && in_flight <= self.bdp() + BATCH {
            self.mode = Mode::ProbeBandwidth;
            self.cycle_at = now;
        }
        if self.mode != Mode::ProbeBandwidth {
            return;
        }
        let gain = CYCLE[self.cycle % CYCLE.len()];
        let is_over = now.saturating_duration_since(self.cycle_at) > self.rtt();
        let next = if gain > 1.0 {
            // Up until the queue shows it, or something breaks.
            is_over && (sample.newly_lost > 0 || in_flight >= gain * self.bdp())
                || now.saturating_duration_since(self.cycle_at) > 4 * self.rtt()
        } else if gain < 1.0 {
            is_over || in_flight <= self.bdp()
        } else {
            is_over
        };
        if next {
            self.cycle = (self.cycle + 1) % CYCLE.len();
            self.cycle_at = now;
        }
    }

    fn update_min_rtt(&mut self, now: Instant, sample: &RateSample, in_flight: u64) {
        let expired = now.saturating_duration_since(self.min_rtt_at) > MIN_RTT_WINDOW;
        let counts = |rtt: &Duration| expired || self.min_rtt.is_none_or(|min| *rtt <= min);
        if let Some(rtt) = sample.rtt.filter(counts) {
            self.min_rtt = Some(rtt);
            self.min_rtt_at = now;
        }
        // Below the resolution there is no queue worth draining; nor while the application idles.
        let worth_it = self.rtt() > SMALLEST_RTT && !sample.is_app_limited;
        if expired && worth_it && self.pipe_is_full && self.mode != Mode::ProbeRtt {
            self.mode = Mode::ProbeRtt;
            self.prior_cwnd = self.cwnd;
            self.probe_rtt_until = None;
        }
        if self.mode == Mode::ProbeRtt {
            match self.probe_rtt_until {
                None if in_flight <= self.probe_rtt_cwnd() => {
                    self.probe_rtt_until = Some(now + PROBE_RTT_TIME);
                }
                Some(until) if now >= until => {
                    self.min_rtt_at = now;
                    self.mode = Mode::ProbeBandwidth;
                    self.cycle_at = now;
                    self.cwnd = self.cwnd.max(self.prior_cwnd);
                }
                _ => {}
            }
        }
    }

    fn probe_rtt_cwnd(&self) -> u64 {
        ((self.bdp() / 2.0) as u64).max(self.floor())
    }

    fn update_cwnd(&mut self, sample: &RateSample, delivered: u64, in_flight: u64) {
        // Batches are acknowledged as a whole: without room for some, sending would stutter.
        let batches = 3.0 * (self.pacing_rate() * 0.001).min(BATCH);
        let mut target = self.window() + batches;
        if let Some(ceiling) = self.ceiling {
            target = target.min(ceiling);
        }
        let target = target as u64;
        let grown = self.cwnd + sample.newly_acked;
        if self.in_recovery && self.is_congested() && self.prior_cwnd == 0 {
            self.conserve(in_flight);
        }
        if self.in_recovery && self.round < self.conserve_until_round {
            // One packet out for one delivered, until the loss is understood.
            self.cwnd = self.cwnd.max(in_flight + sample.newly_acked);
        } else if self.pipe_is_full {
            self.cwnd = grown.min(target);
        } else if self.cwnd < target || delivered < INITIAL_PACKETS * self.packet {
            self.cwnd = grown;
        }
        self.cwnd = self.cwnd.max(self.floor());
        if self.mode == Mode::ProbeRtt {
            self.cwnd = self.cwnd.min(self.probe_rtt_cwnd());
        }
    }

    /// Packets were found lost and are being sent again. Some always are on a radio link: only many
    /// slow the stream down.
    pub(super) const fn on_recovery(&mut self) {
        self.in_recovery = true;
    }

    fn conserve(&mut self, in_flight: u64) {
        self.prior_cwnd = self.prior_cwnd.max(self.cwnd);
        self.conserve_until_round = self.round + 1;
        self.cwnd = (in_flight + self.packet).max(self.floor());
    }

    /// What was lost has been repaired.
    pub(super) fn on_recovered(&mut self) {
        if self.in_recovery {
            self.in_recovery = false;
            self.cwnd = self.cwnd.max(self.prior_cwnd);
            self.prior_cwnd = 0;
        }
    }

    /// Nothing came back for a whole retransmission timeout.
    pub(super) fn on_timeout(&mut self, in_flight: u64) {
        self.on_recovery();
        self.conserve(in_flight);
        self.full_bandwidth = 0.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Drives the controller over a path of `rate` bytes a second and `rtt`, losing `loss` of each round.
    fn settle(rate: f64, rtt: Duration, loss: f64) -> Bbr {
        let mut now = Instant::now();
        let mut bbr = Bbr::new(now, 1472, 3);
        let mut delivered = 0;
        for _ in 0..60 {
            let sent = bbr.cwnd.min((bbr.pacing_rate() * rtt.as_secs_f64()) as u64).max(1472);
            let lost = (sent as f64 * loss) as u64;
            let interval = rtt.as_secs_f64().max((sent - lost) as f64 / rate);
            now += Duration::from_secs_f64(interval);
            let sample = RateSample {
                delivered: sent - lost,
                interval: Duration::from_secs_f64(interval),
                prior_delivered: delivered,
                rtt: Some(Duration::from_secs_f64(interval)),
                newly_acked: sent - lost,
                newly_lost: lost,
                ..RateSample::default()
            };
            delivered += sent - lost;
            bbr.on_ack(now, &sample, delivered, sent / 2);
        }
        bbr
    }

    #[test]
    fn the_bandwidth_of_a_path_is_found() {
        for (rate, rtt) in [(1e6, 50), (10e6, 20), (100e6, 5)] {
            let bbr = settle(rate, Duration::from_millis(rtt), 0.0);
            let found = bbr.max_bandwidth() / rate;
            assert!((0.9..1.1).contains(&found), "{rate}: {found}");
            assert!(bbr.pipe_is_full);
            assert!((bbr.cwnd as f64) < 3.0 * rate * rtt as f64 / 1000.0 + 3.0 * BATCH);
        }
    }

    #[test]
    fn a_few_lost_packets_do_not_slow_it_down() {
        let bbr = settle(10e6, Duration::from_millis(20), 0.05);
        assert!(bbr.max_bandwidth() > 9e6, "{}", bbr.max_bandwidth());
        assert!(bbr.ceiling.is_none());
    }
}
