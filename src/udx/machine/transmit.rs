//! What a stream sends, and when.

use std::net::SocketAddr;
use std::time::Instant;

use super::moving::Remote;
use super::{Machine, Phase};
use crate::udx::header::{self, HEADER_SIZE, Header, flags};

/// Packets written to the caller's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Transmit {
    /// Where they go.
    pub destination: SocketAddr,
    /// They go the way from before the last [`Machine::change_remote`]: over the socket of then.
    pub is_previous: bool,
    /// The size of each packet but the last, which may be shorter; `None`: there is one packet.
    pub segment: Option<usize>,
}

/// What packet comes next.
enum Next {
    Again(u64),
    New(u16, bool),
}

impl Machine {
    /// Writes the next packets to `out`, which is empty: one, or a batch of packets of one size, at most
    /// `batch(size)` of them. `None` when nothing is to be sent now.
    pub fn poll_transmit(
        &mut self,
        now: Instant,
        batch: impl Fn(usize) -> usize,
        out: &mut Vec<u8>,
    ) -> Option<Transmit> {
        let remote = self.remote?;
        if std::mem::take(&mut self.destroy_due) {
            self.write_control(remote, flags::DESTROY, out);
            return Some(self.one(remote));
        }
        if matches!(self.phase, Phase::Unconnected | Phase::Gone) {
            return None;
        }
        if std::mem::take(&mut self.heartbeat_due) {
            self.write_control(remote, flags::HEARTBEAT, out);
            return Some(self.one(remote));
        }
        if let Some(transmit) = self.write_path_probe(now, out) {
            return Some(transmit);
        }
        if std::mem::take(&mut self.end_due) {
            let seq = self.outgoing.next().saturating_sub(1);
            let header = self.header(remote, flags::END, seq);
            out.extend_from_slice(&header.encode());
            return Some(self.one(remote));
        }
        // With gaps to report the acknowledgement cannot ride on data.
        if self.ack_due && self.incoming.has_gaps() {
            self.write_ack(remote, out);
            return Some(self.one(remote));
        }
        if self.phase == Phase::Connected {
            if std::mem::take(&mut self.tail_probe_due) && self.write_tail_probe(now, remote, out) {
                return Some(self.one(remote));
            }
            if let Some(transmit) = self.write_batch(now, remote, batch, out) {
                return Some(transmit);
            }
        }
        if self.ack_due {
            self.write_ack(remote, out);
            return Some(self.one(remote));
        }
        None
    }

    /// One packet to `remote`.
    pub(super) const fn one(&self, remote: Remote) -> Transmit {
        Transmit {
            destination: remote.addr,
            is_previous: remote.generation < self.generation,
            segment: None,
        }
    }

    pub(super) fn header(&mut self, remote: Remote, kind: u8, seq: u64) -> Header {
        Header {
            kind,
            data_offset: 0,
            stream_id: remote.id,
            window: self.incoming.advertise(),
            seq: header::wire(seq),
            ack: header::wire(self.incoming.next()),
        }
    }

    pub(super) fn write_control(&mut self, remote: Remote, kind: u8, out: &mut Vec<u8>) {
        let header = self.header(remote, kind, self.outgoing.next());
        out.extend_from_slice(&header.encode());
    }

    fn write_ack(&mut self, remote: Remote, out: &mut Vec<u8>) {
        self.ack_due = false;
        let kind = if self.incoming.has_gaps() { flags::SACK } else { 0 };
        self.write_control(remote, kind, out);
        for range in self.incoming.sacks() {
            out.extend_from_slice(&header::wire(range.start).to_le_bytes());
            out.extend_from_slice(&header::wire(range.end).to_le_bytes());
        }
    }

    /// Writes packets while window, pace and batch allow.
    fn write_batch(
        &mut self,
        now: Instant,
        remote: Remote,
        batch: impl Fn(usize) -> usize,
        out: &mut Vec<u8>,
    ) -> Option<Transmit> {
        self.pace_at = None;
        let mut next = self.next_packet(now)?;
        let room = self.congestion.cwnd().saturating_sub(self.outgoing.in_flight());
        if room < self.size_of(&next) && self.outgoing.in_flight() > 0 {
            return None;
        }
        let wanted = room.min(self.outgoing.unsent() + self.size_of(&next));
        let rate = self.congestion.pacing_rate();
        let largest = self.mtu.packet_size() as u64;
        let mut allowance = match self.pacer.allowance(now, rate, wanted, largest) {
            Ok(bytes) => bytes.min(room.max(largest)),
            Err(at) => {
                self.pace_at = Some(at);
                return None;
            }
        };

        let segment = self.size_of(&next) as usize;
        let limit = batch(segment);
        let mut count = 0;
        loop {
            let size = self.size_of(&next);
            let padded = self.write_packet(now, remote, &next, count == 0, out);
            self.pacer.consume(size);
            allowance = allowance.saturating_sub(size);
            count += 1;
            // Only the last packet of a batch may be shorter, none longer.
            if padded || size < segment as u64 || count >= limit {
                break;
            }
            match self.next_packet(now) {
                Some(packet) if self.size_of(&packet) <= (segment as u64).min(allowance) => {
                    next = packet;
                }
                _ => break,
            }
        }
        Some(Transmit { segment: (count > 1).then_some(segment), ..self.one(remote) })
    }

    /// What to send if window and pace allow: first what was lost, then what is new.
    fn next_packet(&mut self, now: Instant) -> Option<Next> {
        if let Some(seq) = self.outgoing.next_lost() {
            return Some(Next::Again(seq));
        }
        let next = self.next_new();
        if next.is_none() {
            if self.outgoing.unsent() == 0 {
                self.rate.on_app_limited(self.outgoing.in_flight());
            } else {
                self.await_window(now);
            }
        }
        next
    }

    fn next_new(&self) -> Option<Next> {
        let largest = self.mtu.packet_size() - HEADER_SIZE;
        let window = self.send_window.saturating_sub(self.outgoing.unacked_payload());
        let wanted = self.outgoing.unsent().min(largest as u64);
        // A window that cuts a packet short is waited out while others are on their way.
        let limit = match window {
            _ if window >= wanted => largest,
            _ if self.outgoing.is_idle() && window > 0 => window as usize,
            _ => return None,
        };
        self.outgoing.next_new(limit).map(|(length, is_end)| Next::New(length, is_end))
    }

    fn size_of(&self, next: &Next) -> u64 {
        match next {
            Next::Again(seq) => self.outgoing.get(*seq).map_or(0, |packet| packet.size()),
            Next::New(length, _) => u64::from(*length) + HEADER_SIZE as u64,
        }
    }

    /// Writes one packet. True when it was padded to probe the path: then nothing follows it.
    fn write_packet(
        &mut self,
        now: Instant,
        remote: Remote,
        next: &Next,
        may_probe: bool,
        out: &mut Vec<u8>,
    ) -> bool {
        let rate = self.rate.on_sent(now, self.outgoing.in_flight());
        let (seq, padding) = match *next {
            Next::Again(seq) => {
                self.outgoing.resend(seq, now, rate);
                self.retransmits += 1;
                (seq, None)
            }
            Next::New(length, is_end) => {
                let size = usize::from(length) + HEADER_SIZE;
                // A probe before anything was acknowledged could delay the first byte by a timeout.
                let probe =
                    may_probe && size == self.mtu.packet_size() && self.rate.delivered() > 0;
                let padding = if probe { self.mtu.probe(size) } else { None };
                (self.outgoing.send_new((length, is_end), now, rate, padding.is_some()), padding)
            }
        };
        let is_new = matches!(next, Next::New(..));
        self.recovery.on_sent(now, &self.outgoing, is_new);
        let Some(packet) = self.outgoing.get(seq) else { return false };
        let kind = if packet.is_end { flags::END } else { flags::DATA };
        let mut header = self.header(remote, kind, seq);
        header.data_offset = padding.unwrap_or(0);
        out.extend_from_slice(&header.encode());
        out.resize(out.len() + usize::from(header.data_offset), 0);
        self.outgoing.copy_payload(seq, out);
        // Data carries the acknowledgement, unless there are gaps to report.
        self.ack_due &= self.incoming.has_gaps();
        padding.is_some()
    }

    /// Sends a packet to learn whether the end of the flight arrived: a new one, or the last one again.
    /// Neither window nor pace hold it back.
    fn write_tail_probe(&mut self, now: Instant, remote: Remote, out: &mut Vec<u8>) -> bool {
        if self.outgoing.is_idle() {
            return false;
        }
        let again = |machine: &Self| machine.outgoing.last_on_its_way().map(Next::Again);
        let Some(next) = self.next_new().or_else(|| again(self)) else { return false };
        self.write_packet(now, remote, &next, false, out);
        let seq = match next {
            Next::Again(seq) => seq,
            Next::New(..) => self.outgoing.next() - 1,
        };
        self.recovery.on_probe_sent(now, seq);
        true
    }
}
