//! Which packets are lost (RACK and tail loss probes, RFC 8985) and when to look (timers).

use std::time::{Duration, Instant};

use super::outgoing::{Outgoing, SentPacket};
use super::rtt::RttEstimate;

/// The other side acknowledges at once, but its scheduler takes a moment.
const ACK_DELAY: Duration = Duration::from_millis(2);
/// Retransmission timeouts in a row after which the stream ends (libudx: `UDX_MAX_RTO_TIMEOUTS`).
const MAX_TIMEOUTS: u32 = 6;
/// The tolerance for reordering grows to at most so many quarters of the smallest round-trip time.
const MAX_TOLERANCE: u32 = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// Repairing what RACK found lost, until everything before `until` is acknowledged.
    Recovery {
        until: u64,
    },
    /// The same after a retransmission timeout.
    Loss {
        until: u64,
    },
}

/// The delivered packet that was sent last.
#[derive(Debug, Clone, Copy)]
struct LastSent {
    index: u64,
    rtt: Duration,
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// Nothing.
    Nothing,
    /// Packets may have become lost by waiting.
    LossDetection,
    /// The end of a flight may be lost: send something.
    TailProbe,
    /// Nothing came back for a whole timeout.
    Timeout,
}

/// Loss recovery of a stream.
#[derive(Debug)]
pub(super) struct Recovery {
    pub(super) rtt: RttEstimate,
    phase: Phase,
    last_sent: Option<LastSent>,
    /// One above the highest packet delivered.
    highest: u64,
    reordering_seen: bool,
    tolerance: u32,
    timeouts: u32,
    /// The packet of the tail loss probe on its way.
    probe: Option<u64>,
    /// A probe needs a round-trip time measured since the last one.
    probe_allowed: bool,
    detection_at: Option<Instant>,
    probe_at: Option<Instant>,
    timeout_at: Option<Instant>,
}

impl Recovery {
    pub(super) fn new() -> Self {
        Self {
            rtt: RttEstimate::default(),
            phase: Phase::Open,
            last_sent: None,
            highest: 0,
            reordering_seen: false,
            tolerance: 1,
            timeouts: 0,
            probe: None,
            probe_allowed: true,
            detection_at: None,
            probe_at: None,
            timeout_at: None,
        }
    }

    /// When [`Self::due`] has something to say.
    pub(super) fn deadline(&self) -> Option<Instant> {
        [self.detection_at, self.probe_at, self.timeout_at].into_iter().flatten().min()
    }

    /// What is due at `now`. A timer fires once.
    pub(super) fn due(&mut self, now: Instant) -> Due {
        let fired = |timer: &mut Option<Instant>| timer.take_if(|at| *at <= now).is_some();
        if fired(&mut self.timeout_at) {
            Due::Timeout
        } else if fired(&mut self.detection_at) {
            Due::LossDetection
        } else if fired(&mut self.probe_at) {
            Due::TailProbe
        } else {
            Due::Nothing
        }
    }

    /// A packet was delivered: returns its round-trip time if that is unambiguous.
    pub(super) fn on_delivered(&mut self, now: Instant, packet: &SentPacket) -> Option<Duration> {
        let rtt = now.saturating_duration_since(packet.sent_at);
        self.timeouts = 0;
        if packet.seq >= self.highest {
            self.highest = packet.seq + 1;
        } else if !packet.is_retransmission {
            self.reordering_seen = true;
        }
        if packet.is_retransmission && self.rtt.min().is_some_and(|min| rtt < min) {
            // The first transmission arrived after all: more patience next time.
            self.tolerance = (self.tolerance + 1).min(MAX_TOLERANCE);
            self.reordering_seen = true;
            return None;
        }
        if self.last_sent.is_none_or(|last| packet.index > last.index) {
            self.last_sent = Some(LastSent { index: packet.index, rtt });
        }
        if packet.is_retransmission {
            return None;
        }
        self.rtt.update(now, rtt);
        self.probe_allowed = true;
        Some(rtt)
    }

    /// A packet was delivered that does not measure the present path.
    pub(super) fn on_delivered_elsewhere(&mut self, packet: &SentPacket) {
        self.timeouts = 0;
        self.highest = self.highest.max(packet.seq + 1);
    }

    /// Everything before `ack` arrived. True when that ends a recovery.
    pub(super) fn on_ack(&mut self, ack: u64) -> bool {
        if self.probe.is_some_and(|seq| ack > seq) {
            self.probe = None;
        }
        match self.phase {
            Phase::Recovery { until } | Phase::Loss { until } if ack >= until => {
                self.phase = Phase::Open;
                true
            }
            _ => false,
        }
    }

    fn tolerated_delay(&self, outgoing: &Outgoing) -> Duration {
        if !self.reordering_seen && (self.phase != Phase::Open || outgoing.delivered_early() >= 3) {
            return Duration::ZERO;
        }
        let quarter = self.rtt.min().unwrap_or_default() / 4;
        (quarter * self.tolerance).min(self.rtt.smoothed().unwrap_or_default())
    }

    /// Takes packets as lost that were sent long enough before one that arrived, calls `each` with them
    /// and sets the timer for the next one. True when that begins a recovery.
    pub(super) fn detect(
        &mut self,
        now: Instant,
        outgoing: &mut Outgoing,
        mut each: impl FnMut(&SentPacket),
    ) -> bool {
        self.detection_at = None;
        let Some(last) = self.last_sent else { return false };
        let patience = last.rtt + self.tolerated_delay(outgoing);
        let (mut found, mut next_at) = (false, None);
        outgoing.detect_lost(
            |packet| {
                let lost_at = packet.sent_at + patience;
                if packet.index < last.index && lost_at > now {
                    next_at = Some(lost_at);
                }
                packet.index < last.index && lost_at <= now
            },
            |packet| {
                // A probe that is too large says nothing of congestion.
                found |= !packet.is_probe;
                each(packet);
            },
        );
        self.detection_at = next_at;
        let begins = found && self.phase == Phase::Open;
        if begins {
            self.phase = Phase::Recovery { until: outgoing.next() };
            self.probe = None;
        }
        begins
    }

    /// The retransmission timer fired: takes as lost what is overdue, the first packet at least.
    /// False when that was once too often, if it `counts`.
    pub(super) fn on_timeout(
        &mut self,
        now: Instant,
        counts: bool,
        outgoing: &mut Outgoing,
        mut each: impl FnMut(&SentPacket),
    ) -> bool {
        self.timeouts += u32::from(counts);
        if self.timeouts >= MAX_TIMEOUTS {
            return false;
        }
        self.phase = Phase::Loss { until: outgoing.next() };
        self.probe = None;
        self.probe_at = None;
        let rtt = self.last_sent.map_or(Duration::ZERO, |last| last.rtt);
        let patience = rtt + self.tolerated_delay(outgoing);
        if let Some(first) = outgoing.lose_first() {
            each(&first);
        }
        outgoing.detect_lost(|packet| packet.sent_at + patience <= now, each);
        self.timeout_at = Some(now + self.backed_off());
        true
    }

    /// How often in a row the retransmission timer fired.
    pub(super) const fn timeouts(&self) -> u32 {
        self.timeouts
    }

    fn backed_off(&self) -> Duration {
        if self.timeouts > 0 { self.rtt.rto() * 2 } else { self.rtt.rto() }
    }

    /// A packet went out. `is_new`: it had not been sent before.
    pub(super) fn on_sent(&mut self, now: Instant, outgoing: &Outgoing, is_new: bool) {
        if self.timeout_at.is_none() {
            self.timeout_at = Some(now + self.backed_off());
        }
        if is_new {
            self.arm_probe(now, outgoing);
        }
    }

    /// A tail loss probe went out as packet `seq`.
    pub(super) fn on_probe_sent(&mut self, now: Instant, seq: u64) {
        self.probe = Some(seq);
        self.probe_allowed = false;
        self.probe_at = None;
        self.timeout_at = Some(now + self.backed_off());
    }

    /// An acknowledgement brought something: the timers start over.
    pub(super) fn on_progress(&mut self, now: Instant, outgoing: &Outgoing) {
        if outgoing.is_idle() {
            self.timeout_at = None;
            self.probe_at = None;
            self.detection_at = None;
        } else {
            self.timeout_at = Some(now + self.backed_off());
            self.arm_probe(now, outgoing);
        }
    }

    fn arm_probe(&mut self, now: Instant, outgoing: &Outgoing) {
        self.probe_at = None;
        let busy = self.phase != Phase::Open || outgoing.delivered_early() > 0;
        if outgoing.is_idle() || busy || self.probe.is_some() || !self.probe_allowed {
            return;
        }
        let patience =
            self.rtt.smoothed().map_or(Duration::from_secs(1), |rtt| rtt * 2 + ACK_DELAY);
        let at = now + patience;
        self.probe_at = self.timeout_at.is_none_or(|timeout| at < timeout).then_some(at);
    }
}
