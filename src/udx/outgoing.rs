//! What was written: waiting to be sent, on its way, or lost and waiting to be sent again.
//!
//! A packet keeps its sequence number and its bytes for good (libudx numbers packets, not bytes), so the
//! bytes stay in one queue and a packet is a range of it.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Instant;

use super::bytequeue::ByteQueue;
use super::header::HEADER_SIZE;
use super::ranges::RangeSet;
use super::rate::SentState;

/// Packets that may be unacknowledged at once: the other side must be able to hold them.
const MAX_PACKETS: usize = 16_384;

/// Transmissions of one packet whose traces are kept at once.
const MAX_TRANSMISSIONS: usize = 4;

/// Unused chunks of the queue that are kept, 2 MiB: it runs full and empty.
const SPARE: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    OnItsWay,
    Lost,
    Delivered,
}

/// A packet that was sent at least once.
#[derive(Debug, Clone, Copy)]
pub(super) struct SentPacket {
    pub(super) seq: u64,
    position: u64,
    pub(super) length: u16,
    pub(super) is_end: bool,
    state: State,
    pub(super) sent_at: Instant,
    /// Counts transmissions over the whole stream: the order of sending.
    pub(super) index: u64,
    pub(super) is_retransmission: bool,
    pub(super) is_probe: bool,
    pub(super) rate: SentState,
}

impl SentPacket {
    /// Bytes on the wire, without padding.
    pub(super) fn size(&self) -> u64 {
        u64::from(self.length) + HEADER_SIZE as u64
    }
}

/// How far this side's END is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    Queued,
    Sent,
}

/// The sending half of a stream.
#[derive(Debug)]
pub(super) struct Outgoing {
    bytes: ByteQueue,
    /// The position of the first byte that was never sent.
    unsent: u64,
    end: End,
    /// The packets `first..next`.
    packets: VecDeque<SentPacket>,
    first: u64,
    /// Packets in the order of their last transmission, with that transmission's index.
    order: VecDeque<(u64, u64)>,
    lost: VecDeque<u64>,
    delivered: RangeSet,
    delivered_early: usize,
    in_flight: u64,
    unacked_payload: u64,
    transmissions: u64,
    limit: usize,
}

impl Outgoing {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            bytes: ByteQueue::new(SPARE),
            unsent: 0,
            end: End::Open,
            packets: VecDeque::new(),
            first: 0,
            order: VecDeque::new(),
            lost: VecDeque::new(),
            delivered: RangeSet::default(),
            delivered_early: 0,
            in_flight: 0,
            unacked_payload: 0,
            transmissions: 0,
            limit: limit.max(1),
        }
    }

    /// Takes as much of `data` as there is room for.
    pub(super) fn write(&mut self, data: &[u8]) -> usize {
        let taken = if self.end == End::Open { data.len().min(self.room()) } else { 0 };
        self.bytes.push(data.get(..taken).unwrap_or_default());
        taken
    }

    /// Bytes that [`Self::write`] would take.
    pub(super) fn room(&self) -> usize {
        self.limit.saturating_sub(self.bytes.len())
    }

    /// Bounds the bytes held from now on; what is there stays.
    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit.max(1);
    }

    /// Lets go of everything: nothing more will be sent. Numbers stay as they are.
    pub(super) fn clear(&mut self) {
        self.first = self.next();
        self.packets.clear();
        self.bytes = ByteQueue::new(SPARE);
        self.unsent = 0;
        self.end = End::Sent;
        self.order.clear();
        self.lost.clear();
        self.delivered = RangeSet::default();
        self.delivered_early = 0;
        self.in_flight = 0;
        self.unacked_payload = 0;
    }

    /// Bytes held, tables included.
    pub(super) fn held(&self) -> usize {
        self.bytes.len()
            + self.packets.len() * size_of::<SentPacket>()
            + self.order.len() * size_of::<(u64, u64)>()
            + self.lost.len() * size_of::<u64>()
            + self.delivered.len() * size_of::<Range<u64>>()
    }

    /// The most that [`Self::held`] gives when no more than `bytes` may be written.
    pub(super) fn held_max(bytes: usize) -> usize {
        let a_packet = size_of::<SentPacket>() + size_of::<Range<u64>>();
        let a_transmission = size_of::<(u64, u64)>() + size_of::<u64>();
        bytes + MAX_PACKETS * (a_packet + MAX_TRANSMISSIONS * a_transmission)
    }

    /// No more will be written.
    pub(super) fn finish(&mut self) {
        if self.end == End::Open {
            self.end = End::Queued;
        }
    }

    pub(super) fn is_finished(&self) -> bool {
        self.end != End::Open
    }

    /// Whether everything, the END included, has been delivered.
    pub(super) fn is_complete(&self) -> bool {
        self.end == End::Sent && self.packets.is_empty()
    }

    /// Whether only the END is not known to be delivered.
    pub(super) fn awaits_only_end(&self) -> bool {
        self.end == End::Sent
            && self.packets.iter().all(|p| p.is_end || p.state == State::Delivered)
    }

    /// The first packet not acknowledged.
    pub(super) const fn first(&self) -> u64 {
        self.first
    }

    /// The number of the next new packet.
    pub(super) fn next(&self) -> u64 {
        self.first + self.packets.len() as u64
    }

    /// Whether nothing awaits acknowledgement.
    pub(super) fn is_idle(&self) -> bool {
        self.packets.is_empty()
    }

    /// Bytes on their way, headers included.
    pub(super) const fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Payload bytes on their way or lost: what the receiver must have room for.
    pub(super) const fn unacked_payload(&self) -> u64 {
        self.unacked_payload
    }

    /// Bytes never sent so far.
    pub(super) const fn unsent(&self) -> u64 {
        self.bytes.end() - self.unsent
    }

    /// Payload bytes sent at least once.
    pub(super) const fn sent(&self) -> u64 {
        self.unsent
    }

    /// Transmissions so far.
    pub(super) const fn transmissions(&self) -> u64 {
        self.transmissions
    }

    /// Packets that arrived ahead of an earlier one.
    pub(super) const fn delivered_early(&self) -> usize {
        self.delivered_early
    }

    pub(super) fn get(&self, seq: u64) -> Option<&SentPacket> {
        self.packets.get(usize::try_from(seq.checked_sub(self.first)?).ok()?)
    }

    fn get_mut(&mut self, seq: u64) -> Option<&mut SentPacket> {
        self.packets.get_mut(usize::try_from(seq.checked_sub(self.first)?).ok()?)
    }

    /// The payload length of the next new packet, at most `limit` bytes, and whether it is the END.
    /// An END has a packet of its own: it needs no window, and is recognized when only it is missing.
    pub(super) fn next_new(&self, limit: usize) -> Option<(u16, bool)> {
        if self.packets.len() >= MAX_PACKETS {
            return None;
        }
        let length = self.unsent().min(limit as u64) as u16;
        if length > 0 {
            Some((length, false))
        } else {
            (self.end == End::Queued && self.unsent() == 0).then_some((0, true))
        }
    }

    /// Whether a packet without bytes may be sent now. After the END nothing may.
    pub(super) fn may_challenge(&self) -> bool {
        self.end != End::Sent && self.packets.len() < MAX_PACKETS
    }

    /// Notes that the next new packet goes out, and returns its number.
    pub(super) fn send_new(
        &mut self,
        (length, is_end): (u16, bool),
        now: Instant,
        rate: SentState,
        is_probe: bool,
    ) -> u64 {
        let seq = self.next();
        self.transmissions += 1;
        let packet = SentPacket {
            seq,
            position: self.unsent,
            length,
            is_end,
            state: State::OnItsWay,
            sent_at: now,
            index: self.transmissions,
            is_retransmission: false,
            is_probe,
            rate,
        };
        self.unsent += u64::from(length);
        if is_end {
            self.end = End::Sent;
        }
        self.order.push_back((seq, packet.index));
        self.in_flight += packet.size();
        self.unacked_payload += u64::from(length);
        self.packets.push_back(packet);
        seq
    }

    /// The lost packet to send again first.
    pub(super) fn next_lost(&mut self) -> Option<u64> {
        while let Some(&seq) = self.lost.front() {
            if self.get(seq).is_some_and(|packet| packet.state == State::Lost) {
                return Some(seq);
            }
            self.lost.pop_front();
        }
        None
    }

    /// The last packet sent, if it is still on its way: what a tail loss probe sends again.
    pub(super) fn last_on_its_way(&self) -> Option<u64> {
        let last = self.packets.back()?;
        (last.state == State::OnItsWay).then(|| self.next() - 1)
    }

    /// Notes that the packet `seq` goes out again.
    pub(super) fn resend(&mut self, seq: u64, now: Instant, rate: SentState) {
        self.transmissions += 1;
        let index = self.transmissions;
        let Some(packet) = self.get_mut(seq) else { return };
        let was_lost = packet.state == State::Lost;
        packet.state = State::OnItsWay;
        packet.sent_at = now;
        packet.index = index;
        packet.is_retransmission = true;
        packet.is_probe = false;
        packet.rate = rate;
        let size = packet.size();
        if was_lost {
            self.in_flight += size;
        }
        self.order.push_back((seq, index));
    }

    /// Appends the payload of packet `seq` to `out`.
    pub(super) fn copy_payload(&self, seq: u64, out: &mut Vec<u8>) {
        if let Some(packet) = self.get(seq) {
            self.bytes
                .visit(packet.position, packet.length.into(), |part| out.extend_from_slice(part));
        }
    }

    /// Everything below `ack` arrived. Calls `each` with every packet not known to be delivered before.
    pub(super) fn acknowledge(&mut self, ack: u64, mut each: impl FnMut(&SentPacket)) {
        while self.first < ack {
            let Some(packet) = self.packets.pop_front() else { return };
            self.first += 1;
            if packet.state == State::Delivered {
                self.delivered_early -= 1;
            } else {
                self.account(&packet);
                each(&packet);
            }
        }
        self.delivered.remove_below(self.first);
        self.bytes.release(self.packets.front().map_or(self.unsent, |packet| packet.position));
    }

    /// The packets `range`, all sent, arrived ahead of others.
    pub(super) fn acknowledge_range(
        &mut self,
        range: Range<u64>,
        mut each: impl FnMut(&SentPacket),
    ) {
        let mut delivered = std::mem::take(&mut self.delivered);
        delivered.insert(range, |fresh| {
            for seq in fresh {
                let Some(packet) = self.get(seq).copied() else { continue };
                self.account(&packet);
                self.delivered_early += 1;
                if let Some(packet) = self.get_mut(seq) {
                    packet.state = State::Delivered;
                }
                each(&packet);
            }
        });
        self.delivered = delivered;
    }

    fn account(&mut self, packet: &SentPacket) {
        self.unacked_payload -= u64::from(packet.length);
        if packet.state == State::OnItsWay {
            self.in_flight -= packet.size();
        }
    }

    /// Walks the packets on their way from the one sent longest ago, and takes as lost those for which
    /// `is_lost` says so, until it says no. Calls `each` with the lost ones; returns the first kept.
    pub(super) fn detect_lost(
        &mut self,
        mut is_lost: impl FnMut(&SentPacket) -> bool,
        mut each: impl FnMut(&SentPacket),
    ) -> Option<SentPacket> {
        while let Some(&(seq, index)) = self.order.front() {
            let current = self.get(seq).filter(|p| p.index == index && p.state == State::OnItsWay);
            if let Some(packet) = current.copied() {
                if !is_lost(&packet) {
                    return Some(packet);
                }
                each(&packet);
                self.lose(seq);
            }
            self.order.pop_front();
        }
        None
    }

    /// Takes the first packet as lost, unless it is already. Returns it if so.
    pub(super) fn lose_first(&mut self) -> Option<SentPacket> {
        let packet = self.packets.front().copied().filter(|p| p.state == State::OnItsWay)?;
        self.lose(self.first);
        Some(packet)
    }

    fn lose(&mut self, seq: u64) {
        let Some(packet) = self.get_mut(seq) else { return };
        packet.state = State::Lost;
        packet.is_probe = false;
        let size = packet.size();
        self.in_flight -= size;
        self.lost.push_back(seq);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::udx::rate::DeliveryRate;

    fn send(outgoing: &mut Outgoing, packets: usize) {
        let now = Instant::now();
        let rate = DeliveryRate::new(now).on_sent(now, 0);
        for _ in 0..packets {
            let plan = outgoing.next_new(100).unwrap();
            outgoing.send_new(plan, now, rate, false);
        }
    }

    fn filled(packets: usize) -> Outgoing {
        let mut outgoing = Outgoing::new(1 << 20);
        outgoing.write(&vec![7; packets * 100]);
        send(&mut outgoing, packets);
        outgoing
    }

    #[test]
    fn acknowledged_bytes_make_room() {
        let mut outgoing = Outgoing::new(1000);
        assert_eq!(outgoing.write(&[1; 1500]), 1000);
        send(&mut outgoing, 10);
        assert_eq!((outgoing.room(), outgoing.in_flight()), (0, 1200));
        outgoing.acknowledge(4, |_| {});
        assert_eq!((outgoing.room(), outgoing.in_flight()), (400, 720));
    }

    #[test]
    fn a_packet_counts_as_delivered_once_however_often_it_is_acknowledged() {
        let mut outgoing = filled(10);
        let mut count = 0;
        outgoing.acknowledge_range(3..6, |_| count += 1);
        outgoing.acknowledge_range(2..7, |_| count += 1);
        outgoing.acknowledge(8, |_| count += 1);
        outgoing.acknowledge(8, |_| count += 1);
        assert_eq!((count, outgoing.in_flight(), outgoing.unacked_payload()), (8, 240, 200));
    }

    #[test]
    fn lost_packets_leave_the_flight_and_come_back_with_their_bytes() {
        let mut outgoing = filled(4);
        let mut lost = 0;
        let kept = outgoing.detect_lost(|packet| packet.index <= 2, |_| lost += 1);
        assert_eq!((lost, kept.unwrap().index, outgoing.in_flight()), (2, 3, 240));
        outgoing.acknowledge(1, |_| {});
        let seq = outgoing.next_lost().unwrap();
        assert_eq!(seq, 1);
        let now = Instant::now();
        outgoing.resend(seq, now, DeliveryRate::new(now).on_sent(now, 0));
        assert_eq!((outgoing.next_lost(), outgoing.in_flight()), (None, 360));
        let mut payload = Vec::new();
        outgoing.copy_payload(seq, &mut payload);
        assert_eq!(payload, [7; 100]);
    }

    #[test]
    fn the_end_follows_the_last_byte() {
        let mut outgoing = Outgoing::new(1000);
        outgoing.write(b"last");
        outgoing.finish();
        assert_eq!(outgoing.write(b"too late"), 0);
        assert_eq!(outgoing.next_new(100), Some((4, false)));
        send(&mut outgoing, 1);
        assert_eq!(outgoing.next_new(0), Some((0, true)));
        send(&mut outgoing, 1);
        assert_eq!(outgoing.next_new(100), None);
        outgoing.acknowledge(1, |_| {});
        assert!(outgoing.awaits_only_end() && !outgoing.is_complete());
        outgoing.acknowledge(2, |_| {});
        assert!(outgoing.is_complete());
    }
}
