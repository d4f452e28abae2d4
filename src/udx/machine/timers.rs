//! What the passing of time does to a stream.

use std::time::{Duration, Instant};

use super::{Machine, Phase};
use crate::udx::recovery::Due;
use crate::udx::stream::CloseReason;

/// A side that was silent for so long is asked whether it lives.
const SILENCE: Duration = Duration::from_secs(4);
/// Earlier when something was on its way, from here or there: an address may have changed, and only a
/// packet from there can tell.
const SILENCE_AMID_DATA: Duration = Duration::from_secs(1);
/// And again after so long.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// It is dead after so long without any answer, at least so many times asked.
const DEAD_AFTER: Duration = Duration::from_secs(12);
const MIN_ASKED: u32 = 3;
/// The longest time between two questions for the window.
const WINDOW_PROBE_MAX: Duration = Duration::from_secs(5);

/// Whether the other side lives.
#[derive(Debug)]
pub(super) struct Liveness {
    heard_at: Instant,
    first_asked_at: Instant,
    asked_at: Instant,
    asked: u32,
    was_data: bool,
    /// The first question is overdue.
    is_overdue: bool,
}

impl Liveness {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            heard_at: now,
            first_asked_at: now,
            asked_at: now,
            asked: 0,
            was_data: false,
            is_overdue: false,
        }
    }

    pub(super) const fn heard(&mut self, now: Instant, is_data: bool) {
        self.heard_at = now;
        self.asked = 0;
        self.is_overdue = false;
        self.was_data = is_data;
    }

    const fn asked_now(&mut self, now: Instant) {
        if self.asked == 0 {
            self.first_asked_at = now;
        }
        self.asked += 1;
        self.asked_at = now;
    }

    pub(super) fn is_silent(&self, now: Instant, since: Duration) -> bool {
        now.saturating_duration_since(self.heard_at) >= since
    }

    /// When to ask next. `is_unanswered`: what was sent was not acknowledged in time.
    fn deadline(&self, is_unanswered: bool) -> Instant {
        match self.asked {
            0 if self.was_data || is_unanswered => self.heard_at + SILENCE_AMID_DATA,
            0 => self.heard_at + SILENCE,
            _ => self.asked_at + ASK_EVERY,
        }
    }
}

impl Machine {
    /// When [`Self::handle_timeout`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Unconnected | Phase::Gone => None,
            Phase::Lingering { until } => Some(until),
            Phase::Connected => [
                self.recovery.deadline(),
                self.window_probe_at,
                self.pace_at,
                self.detached_until,
                self.moving.as_ref().map(|moving| moving.next_at),
                Some(self.liveness.deadline(self.is_unanswered())),
            ]
            .into_iter()
            .flatten()
            .min(),
        }
    }

    /// Whether the other side was asked whether it lives, and the answer is overdue. That ends when it is
    /// heard.
    #[must_use]
    pub const fn is_silent(&self) -> bool {
        self.liveness.is_overdue
    }

    const fn is_unanswered(&self) -> bool {
        self.recovery.timeouts() > 0
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        match self.phase {
            Phase::Lingering { until } if until <= now => self.phase = Phase::Gone,
            Phase::Connected => self.handle_connected_timeout(now),
            _ => {}
        }
    }

    fn handle_connected_timeout(&mut self, now: Instant) {
        self.pace_at.take_if(|at| *at <= now);
        if self.detached_until.is_some_and(|until| until <= now) {
            self.destroy(now);
            return;
        }
        loop {
            match self.recovery.due(now) {
                Due::Nothing => break,
                Due::LossDetection => {
                    self.detect_losses(now);
                }
                Due::TailProbe => self.tail_probe_due = true,
                Due::Timeout => self.handle_retransmission_timeout(now),
            }
        }
        if self.window_probe_at.take_if(|at| *at <= now).is_some() {
            self.heartbeat_due = true;
            self.window_probes += 1;
        }
        self.check_liveness(now);
        self.check_move(now);
    }

    fn handle_retransmission_timeout(&mut self, now: Instant) {
        // libudx forgets a stream once both halves ended, so the last acknowledgement comes once or
        // never. When nothing but that is missing and nobody answers, the stream has ended.
        let only_end = self.incoming.has_ended() && self.outgoing.awaits_only_end();
        let silent = now.saturating_duration_since(self.liveness.heard_at);
        if only_end && self.recovery.timeouts() >= 2 && silent >= SILENCE {
            self.close(now, CloseReason::Ended);
            return;
        }
        let mtu = &mut self.mtu;
        // A receiver that says it is full and drops is not a dead one.
        let counts = self.send_window > 0;
        let alive = self.recovery.on_timeout(now, counts, &mut self.outgoing, |packet| {
            if packet.is_probe {
                mtu.on_probe_lost();
            }
        });
        if alive {
            self.congestion.on_timeout(self.outgoing.in_flight());
        } else {
            self.close(now, CloseReason::TimedOut);
        }
    }

    /// Looks for lost packets; returns the bytes that count as congestion.
    pub(super) fn detect_losses(&mut self, now: Instant) -> u64 {
        let (mtu, mut lost) = (&mut self.mtu, 0);
        let begins = self.recovery.detect(now, &mut self.outgoing, |packet| {
            if packet.is_probe {
                mtu.on_probe_lost();
            } else {
                lost += packet.size();
            }
        });
        if begins {
            self.congestion.on_recovery();
        }
        lost
    }

    /// Sets the timer that asks for the window, if only the window keeps data back.
    pub(super) fn await_window(&mut self, now: Instant) {
        if self.window_probe_at.is_none() && self.outgoing.is_idle() {
            let base = (self.rtt() * 4).max(Duration::from_millis(200));
            let wait = base.saturating_mul(1 << self.window_probes.min(8)).min(WINDOW_PROBE_MAX);
            self.window_probe_at = Some(now + wait);
        }
    }

    fn check_liveness(&mut self, now: Instant) {
        if self.liveness.deadline(self.is_unanswered()) > now {
            return;
        }
        // Slow paths get the time their retransmissions need.
        let limit = DEAD_AFTER.max(self.recovery.rtt.rto() * 6);
        let silent = now.saturating_duration_since(self.liveness.heard_at);
        // Asked first: after this machine slept, the silence is its own.
        if silent >= limit && self.liveness.asked >= MIN_ASKED {
            self.close(now, CloseReason::TimedOut);
        } else {
            self.heartbeat_due = true;
            let answered_by = self.liveness.first_asked_at + ASK_EVERY.max(self.recovery.rtt.rto());
            self.liveness.is_overdue = self.liveness.asked > 0 && answered_by <= now;
            self.liveness.asked_now(now);
        }
    }
}
