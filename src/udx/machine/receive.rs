//! What a packet does to a stream.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::moving::Numbers;
use super::{MAX_KEPT, MAX_KEPT_SIZE, Machine, Phase};
use crate::udx::header::{self, MAX_SACKS, Packet, flags};
use crate::udx::rate::RateSample;
use crate::udx::stream::CloseReason;

/// Packets whose numbers are further from the expected ones are not the other side's: neither keeps so
/// many unacknowledged.
const MAX_DISTANCE: u64 = 1 << 16;

/// Round trips count as at least so long when the window is fitted to them.
const SHORTEST_TRIP: Duration = Duration::from_millis(1);

impl Machine {
    /// Takes a packet.
    ///
    /// Ignored: packets for another stream, from another address than the other side's (unless it may have
    /// moved: `moving`), with numbers far from the expected ones, and those that acknowledge what was never
    /// sent. libudx takes packets from anywhere, but an id is no secret from an observer, and a DESTROY
    /// ends a stream.
    pub fn handle_packet(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) {
        if header::stream_id(bytes) != Some(self.id) {
            return;
        }
        if self.remote.is_none() {
            self.keep(from, bytes);
            return;
        }
        if self.phase == Phase::Gone {
            return;
        }
        let Some(packet) = Packet::decode(bytes) else { return };
        let Some(numbers) = self.numbers(&packet) else { return };
        if !self.is_from_remote(now, from) {
            self.heard_stranger(now, from, &numbers);
            return;
        }
        self.heard_from(now, from, &numbers);
        let Numbers { seq, ack, .. } = numbers;
        self.liveness.heard(now, packet.has(flags::DATA));
        if let Phase::Lingering { .. } = self.phase {
            self.answer_latecomer(&packet);
            return;
        }
        if packet.has(flags::HEARTBEAT) {
            // Keepalive, window or path probe; what follows is padding.
            self.ack_due = true;
            return;
        }
        let is_new = seq >= self.incoming.next();
        if packet.has(flags::DATA | flags::END) {
            self.ack_due = true;
            if is_new && !packet.has(flags::DESTROY) {
                // A reader that has been told of the end gets no more.
                let payload = if packet.has(flags::DATA) { packet.payload } else { &[] };
                self.incoming.insert(seq, payload, packet.has(flags::END));
            }
        }
        self.fit_window(now);
        self.handle_ack(now, &packet, ack, seq);
        self.close_if_ended(now);
        // Last: whoever waits for what it acknowledges must not hear of an error.
        if is_new && packet.has(flags::DESTROY) {
            self.close(now, CloseReason::Reset);
        }
    }

    /// The full sequence number and acknowledgement of a packet; `None` when the other side cannot have
    /// sent it now or a moment ago.
    fn numbers<'a>(&self, packet: &'a Packet<'a>) -> Option<Numbers<'a>> {
        let (expected, first) = (self.incoming.next(), self.outgoing.first());
        let seq = header::expand(expected, packet.header.seq)?;
        let ack = header::expand(first, packet.header.ack)?;
        let near = seq.abs_diff(expected) <= MAX_DISTANCE && first <= ack + MAX_DISTANCE;
        (near && ack <= self.outgoing.next()).then_some(Numbers { seq, ack, packet })
    }

    /// Once a round trip: lets the receive window follow what the reader takes.
    fn fit_window(&mut self, now: Instant) {
        let Some(trip) = self.recovery.rtt.min().map(|rtt| rtt.max(SHORTEST_TRIP)) else { return };
        let (since, before) = self.taken;
        let elapsed = now.saturating_duration_since(since);
        if elapsed < trip {
            return;
        }
        let taken = self.incoming.taken();
        let share = trip.as_secs_f64() / elapsed.as_secs_f64();
        self.incoming.fit_window(((taken - before) as f64 * share) as u64);
        self.taken = (now, taken);
    }

    fn keep(&mut self, from: SocketAddr, bytes: &[u8]) {
        let fits = self.kept.len() < MAX_KEPT && bytes.len() <= MAX_KEPT_SIZE;
        if fits && self.phase == Phase::Unconnected {
            self.kept.push((from, bytes.into()));
        }
    }

    /// The stream is closed here; the other side may have missed how.
    fn answer_latecomer(&mut self, packet: &Packet<'_>) {
        if packet.has(flags::DESTROY) {
            self.phase = Phase::Gone;
        } else if self.closed == Some(CloseReason::Destroyed) {
            self.destroy_due = true;
        } else if packet.has(flags::END) {
            self.ack_due = true;
        } else if packet.has(flags::DATA | flags::HEARTBEAT) {
            // It does not know of our END, or it would be silent.
            self.end_due = true;
        }
    }

    fn handle_ack(&mut self, now: Instant, packet: &Packet<'_>, ack: u64, seq: u64) {
        if ack < self.outgoing.first() {
            return;
        }
        self.update_send_window(packet, ack, seq);

        let mut sample = RateSample::default();
        let was_idle = self.outgoing.is_idle();
        let first = self.outgoing.first();
        let path_begins_at = self.path_begins_at;
        let (recovery, rate, mtu) = (&mut self.recovery, &mut self.rate, &mut self.mtu);
        let mut delivered = |packet: &crate::udx::outgoing::SentPacket| {
            if packet.index <= path_begins_at {
                // It went another way, or went this way before it was known to be one.
                return recovery.on_delivered_elsewhere(packet);
            }
            if packet.is_probe {
                mtu.on_probe_acked();
            }
            if let Some(rtt) = recovery.on_delivered(now, packet) {
                sample.rtt = Some(sample.rtt.map_or(rtt, |known| known.min(rtt)));
            }
            let sent = (&packet.rate, packet.sent_at, packet.index);
            rate.on_delivered(now, sent, packet.size(), &mut sample);
        };
        self.outgoing.acknowledge(ack, &mut delivered);
        let mut sacks = [(0u64, 0u64); MAX_SACKS];
        let valid = packet.sacks().filter_map(|(start, end)| {
            let start = header::expand(ack, start)?;
            let end = header::expand(ack, end)?;
            (ack <= start && start < end && end <= self.outgoing.next()).then_some((start, end))
        });
        let count = sacks.iter_mut().zip(valid).map(|(slot, sack)| *slot = sack).count();
        let sacks = sacks.get_mut(..count).unwrap_or_default();
        // In order, or what one packet reports would look reordered.
        sacks.sort_unstable();
        for (start, end) in sacks {
            self.outgoing.acknowledge_range(*start..*end, &mut delivered);
        }
        if was_idle {
            return;
        }
        if self.recovery.on_ack(ack) {
            self.congestion.on_recovered();
        }
        if sample.newly_acked > 0 {
            sample.newly_lost = self.detect_losses(now);
            self.congestion.set_packet_size(self.mtu.packet_size() as u64);
            self.rate.finish(&mut sample);
            let in_flight = self.outgoing.in_flight();
            self.congestion.on_ack(now, &sample, self.rate.delivered(), in_flight);
            // Behind a packet that was lost, and perhaps lost again, several flights wait to be released.
            let cwnd = self.congestion.cwnd();
            let useful =
                if self.outgoing.delivered_early() > 0 { 6 * cwnd } else { cwnd + cwnd / 2 };
            let useful = usize::try_from(useful).unwrap_or(usize::MAX);
            self.outgoing.set_limit(useful.max(super::MIN_SEND_BUFFER).min(self.send_buffer));
        }
        if sample.newly_acked > 0 || ack > first {
            self.recovery.on_progress(now, &self.outgoing);
        }
    }

    /// As in libudx (and RFC 9293): only a packet newer than the last that said so moves the window.
    fn update_send_window(&mut self, packet: &Packet<'_>, ack: u64, seq: u64) {
        let newer = self.window_seq < seq || (self.window_seq == seq && self.window_ack <= ack);
        if newer {
            self.send_window = packet.header.window.into();
            self.window_seq = seq;
            self.window_ack = ack;
            if self.send_window > 0 {
                self.window_probe_at = None;
                self.window_probes = 0;
            }
        }
    }
}
