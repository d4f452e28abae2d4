//! The state machine of a stream: packets and the time in, packets and timers out.
//!
//! It knows no socket and no clock, so that two of them can be driven over a simulated link
//! (`tests/simulation`) or by a fuzzer (`fuzz`). Whoever drives one
//!
//! - gives it packets ([`Machine::handle_packet`]), bytes ([`Machine::write`]) and the program's wishes;
//! - then sends what [`Machine::poll_transmit`] gives, until that is nothing;
//! - then calls [`Machine::handle_timeout`] when [`Machine::deadline`] has come, and begins again.
//!
//! The time never goes backwards from call to call. What always holds, whatever packets arrive: nothing
//! panics; [`Machine::read`] gives a prefix of what the other side wrote; no more than
//! [`Machine::held_max`] bytes are held; a stream whose other side is silent closes.

mod moving;
mod receive;
mod timers;
mod transmit;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use self::moving::{Move, Previous, Remote};
use self::timers::Liveness;
pub use self::transmit::Transmit;
use super::bbr::Bbr;
use super::incoming::Incoming;
use super::mtu::{ETHERNET_MTU, MtuSearch};
use super::outgoing::Outgoing;
use super::pacer::Pacer;
use super::rate::DeliveryRate;
use super::recovery::Recovery;
use super::stream::{CloseReason, StreamOptions, StreamStats};

/// The window that is assumed until the other side says (libudx: `UDX_DEFAULT_RWND_MAX`).
const ASSUMED_WINDOW: u64 = 4 << 20;
/// Written bytes that may always wait; more only as the path takes more.
const MIN_SEND_BUFFER: usize = 256 << 10;
/// Packets kept that come before the stream is connected.
const MAX_KEPT: usize = 64;
/// Longer packets are not kept (bytes).
const MAX_KEPT_SIZE: usize = 2048;
/// What such a packet costs besides its bytes.
const KEPT_COST: usize = 64;
/// A closed stream answers for so long, so that the other side hears how it ended.
const LINGER: Duration = Duration::from_secs(10);
/// What was written before the stream was let go has so long to arrive.
const DETACHED_FLUSH: Duration = Duration::from_secs(30);
/// After that the other side has so long to end its half.
const DETACHED_END: Duration = Duration::from_secs(5);

/// Where a stream is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Unconnected,
    Connected,
    /// Closed, and answering latecomers until then.
    Lingering {
        until: Instant,
    },
    /// Nothing is sent or received any more.
    Gone,
}

/// A stream without its socket.
#[derive(Debug)]
pub struct Machine {
    id: u32,
    phase: Phase,
    closed: Option<CloseReason>,
    remote: Option<Remote>,
    previous: Option<Previous>,
    moving: Option<Move>,
    /// How often the program changed the way to the other side.
    generation: u32,
    /// Transmissions before this path: their acknowledgements do not measure it.
    path_begins_at: u64,
    /// Earlier no stranger is taken for the other side.
    newcomers_from: Instant,
    incoming: Incoming,
    outgoing: Outgoing,
    recovery: Recovery,
    congestion: Bbr,
    rate: DeliveryRate,
    pacer: Pacer,
    mtu: MtuSearch,
    liveness: Liveness,
    /// What the other side can still take, in bytes, and which packet said so.
    send_window: u64,
    window_seq: u64,
    window_ack: u64,
    /// When to ask for the window again, and how often that was done in a row.
    window_probe_at: Option<Instant>,
    window_probes: u32,
    /// When the pacer allows more.
    pace_at: Option<Instant>,
    /// What goes out next besides data.
    ack_due: bool,
    heartbeat_due: bool,
    destroy_due: bool,
    end_due: bool,
    tail_probe_due: bool,
    /// Nobody holds the stream any more; destroyed at that time at the latest.
    detached_until: Option<Instant>,
    kept: Vec<(SocketAddr, Box<[u8]>)>,
    retransmits: u64,
    /// What the reader had taken, and when that was looked at.
    taken: (Instant, u64),
    /// Once closed: what had been sent until then.
    bytes_sent: u64,
    send_buffer: usize,
    /// Everything written, and the END, has arrived.
    flushed: bool,
}

impl Machine {
    /// A stream that is not connected, known to the other side as `id`.
    #[must_use]
    pub fn new(now: Instant, id: u32, options: &StreamOptions) -> Self {
        let mtu = MtuSearch::new(true, ETHERNET_MTU);
        Self {
            id,
            phase: Phase::Unconnected,
            closed: None,
            remote: None,
            previous: None,
            moving: None,
            generation: 0,
            path_begins_at: 0,
            newcomers_from: now,
            incoming: Incoming::new(options.receive_window, options.budget.clone()),
            outgoing: Outgoing::new(options.send_buffer.min(MIN_SEND_BUFFER)),
            recovery: Recovery::new(),
            congestion: Bbr::new(now, mtu.packet_size() as u64, id),
            rate: DeliveryRate::new(now),
            pacer: Pacer::new(now),
            mtu,
            liveness: Liveness::new(now),
            send_window: ASSUMED_WINDOW,
            window_seq: 0,
            window_ack: 0,
            window_probe_at: None,
            window_probes: 0,
            pace_at: None,
            ack_due: false,
            heartbeat_due: false,
            destroy_due: false,
            end_due: false,
            tail_probe_due: false,
            detached_until: None,
            kept: Vec::new(),
            retransmits: 0,
            taken: (now, 0),
            bytes_sent: 0,
            send_buffer: options.send_buffer,
            flushed: false,
        }
    }

    /// Makes the other side known: what was written goes out, packets that came before are processed.
    /// The link to the first hop takes IP packets of `link_mtu` bytes. False when the stream was connected
    /// or closed before.
    pub fn connect(&mut self, now: Instant, addr: SocketAddr, id: u32, link_mtu: u16) -> bool {
        if self.phase != Phase::Unconnected {
            return false;
        }
        self.phase = Phase::Connected;
        self.remote = Some(Remote { addr, id, link_mtu, generation: 0 });
        self.mtu = MtuSearch::new(addr.is_ipv4(), link_mtu);
        self.liveness = Liveness::new(now);
        // Whoever accepts a connection may have nothing to say, and the other side may wait for its first
        // packet to learn where it is.
        self.heartbeat_due = true;
        for (from, packet) in std::mem::take(&mut self.kept) {
            self.handle_packet(now, from, &packet);
        }
        true
    }

    /// Takes bytes to send; zero when there is no room.
    pub fn write(&mut self, data: &[u8]) -> usize {
        self.outgoing.write(data)
    }

    /// Bytes that [`Self::write`] would take.
    #[must_use]
    pub fn room(&self) -> usize {
        self.outgoing.room()
    }

    /// Ends this half once everything written is sent.
    pub fn finish(&mut self) {
        self.outgoing.finish();
    }

    /// Whether [`Self::finish`] was called.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.outgoing.is_finished()
    }

    /// Whether everything written, and the END, has arrived.
    #[must_use]
    pub const fn is_flushed(&self) -> bool {
        self.flushed
    }

    /// Whether there is so much room that a waiting writer is worth waking.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.room() * 4 >= self.send_buffer.min(MIN_SEND_BUFFER)
    }

    /// Whether [`Self::read`] left something to send: a window worth announcing.
    #[must_use]
    pub const fn has_news(&self) -> bool {
        self.ack_due
    }

    /// Moves received bytes out, as many as fit.
    pub fn read(&mut self, out: &mut [u8]) -> usize {
        let mut filled = 0;
        self.read_with(out.len(), |part| {
            if let Some(space) = out.get_mut(filled..filled + part.len()) {
                space.copy_from_slice(part);
                filled += part.len();
            }
        })
    }

    /// As [`Self::read`], for whoever has no place for the bytes yet: gives at most `most` of them to
    /// `take`, in order.
    pub fn read_with(&mut self, most: usize, take: impl FnMut(&[u8])) -> usize {
        let read = self.incoming.read(most, take);
        if self.phase == Phase::Connected && self.incoming.window_update_due() {
            self.ack_due = true;
        }
        read
    }

    /// Bytes that wait for [`Self::read`].
    #[must_use]
    pub fn available(&self) -> usize {
        self.incoming.available()
    }

    /// Whether the other side has ended its half and everything before that has arrived.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.incoming.has_ended()
    }

    /// Ends the stream at once and tells the other side.
    pub fn destroy(&mut self, now: Instant) {
        if self.closed.is_none() {
            self.destroy_due = self.phase == Phase::Connected;
            self.close(now, CloseReason::Destroyed);
        }
    }

    /// Nobody holds the stream any more. What was written and ended still arrives; anything else is
    /// destroyed.
    pub fn detach(&mut self, now: Instant) {
        // Also while it lingers: what was never read would be held for as long.
        self.incoming.discard();
        if self.closed.is_some() {
            return;
        }
        if self.phase == Phase::Connected && self.is_finished() {
            self.detached_until = Some(now + DETACHED_FLUSH);
            self.note_flushed(now);
        } else {
            self.destroy(now);
        }
    }

    /// The socket is gone: whatever is due goes out now or never.
    pub fn abandon(&mut self, now: Instant) {
        if self.closed.is_none() {
            self.destroy_due = self.phase == Phase::Connected;
            self.close(now, CloseReason::SocketClosed);
        }
        self.phase = Phase::Gone;
    }

    fn close(&mut self, now: Instant, reason: CloseReason) {
        if self.closed.is_some() {
            return;
        }
        self.closed = Some(reason);
        self.flushed |= reason == CloseReason::Ended;
        self.destroy_due |= reason == CloseReason::TimedOut;
        let answers = matches!(reason, CloseReason::Ended | CloseReason::Destroyed);
        self.phase = match self.phase {
            Phase::Connected if answers => Phase::Lingering { until: now + LINGER },
            _ => Phase::Gone,
        };
        self.kept.clear();
        self.moving = None;
        // What has arrived, or cannot any more, need not be held.
        self.bytes_sent = self.outgoing.sent();
        self.outgoing.clear();
    }

    /// Both halves ended: the stream is closed.
    fn close_if_ended(&mut self, now: Instant) {
        self.note_flushed(now);
        if self.flushed && self.incoming.has_ended() {
            self.close(now, CloseReason::Ended);
        }
    }

    fn note_flushed(&mut self, now: Instant) {
        self.flushed |= self.outgoing.is_complete();
        if let Some(until) = self.detached_until.filter(|_| self.flushed) {
            self.detached_until = Some(until.min(now + DETACHED_END));
        }
    }

    /// Why the stream is closed, if it is.
    #[must_use]
    pub const fn closed(&self) -> Option<CloseReason> {
        self.closed
    }

    /// Whether the machine will never send or receive anything again.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.phase == Phase::Gone
    }

    /// Whether the other side has been made known.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.phase != Phase::Unconnected && self.remote.is_some()
    }

    /// Where packets go.
    #[must_use]
    pub fn remote_addr(&self) -> Option<SocketAddr> {
        self.remote.map(|remote| remote.addr)
    }

    /// Bytes held in buffers and tables, about: what must stay bounded whatever the other side sends.
    #[must_use]
    pub fn held(&self) -> usize {
        let kept: usize = self.kept.iter().map(|(_, packet)| packet.len() + KEPT_COST).sum();
        self.incoming.held() + self.outgoing.held() + kept
    }

    /// The most that [`Self::held`] ever gives, by the options of the stream.
    #[must_use]
    pub fn held_max(&self) -> usize {
        self.incoming.held_max()
            + Outgoing::held_max(self.send_buffer)
            + MAX_KEPT * (MAX_KEPT_SIZE + KEPT_COST)
    }

    /// The smoothed round-trip time; zero before the first measurement.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.recovery.rtt.smoothed().unwrap_or_default()
    }

    /// The stream's counters.
    #[must_use]
    pub fn stats(&self) -> StreamStats {
        StreamStats {
            bytes_sent: self.bytes_sent.max(self.outgoing.sent()),
            bytes_received: self.incoming.received(),
            retransmits: self.retransmits,
        }
    }
}
