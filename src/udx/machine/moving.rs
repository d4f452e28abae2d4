//! How a stream follows the other side to another address.
//!
//! Two things can make it move. The program says so ([`Machine::change_remote`]): the new way is asked
//! with heartbeats, and used once a packet came over it. Or the other side's address changes by itself,
//! because a NAT forgot it or its network is another: then its packets come from somewhere unknown. They
//! are ignored while the known address answers. When that has been silent for a while, both are asked,
//! the newcomer with a packet that nobody else gets; it must acknowledge that, and the known address must
//! stay silent, before the stream moves. Whoever forges newcomers costs a few small packets, no more.
//!
//! The old way stays valid for a while. If the other side is heard there again after it was taken for
//! moved, it is asked there, and the stream moves back.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Machine, Phase, Transmit};
use crate::udx::bbr::Bbr;
use crate::udx::header::{self, Packet, flags};
use crate::udx::mtu::MtuSearch;
use crate::udx::rate::DeliveryRate;
use crate::udx::rtt::RttEstimate;

/// A way is left for another only after at least so long a silence, and the retransmission timeout.
const SILENCE: Duration = Duration::from_secs(1);
/// Packets a newcomer may cost.
const NEWCOMER_PROBES: u32 = 4;
/// The first wait for an answer over the way the program gave; it doubles from question to question.
const TOLD_INTERVAL: Duration = Duration::from_millis(250);
const TOLD_INTERVAL_MAX: Duration = Duration::from_secs(4);
/// Questions after which the way the program gave counts as none: after half a minute.
const TOLD_PROBES: u32 = 12;
/// Packets from where the other side was count for so long after it was last heard there.
const PREVIOUS: Duration = Duration::from_secs(10);

/// A way to the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Remote {
    pub(super) addr: SocketAddr,
    pub(super) id: u32,
    /// What the link to the first hop takes.
    pub(super) link_mtu: u16,
    /// How often the program had changed the way when it gave this one: which socket it goes over.
    pub(super) generation: u32,
}

/// Where the other side was.
#[derive(Debug, Clone, Copy)]
pub(super) struct Previous {
    remote: Remote,
    until: Instant,
    /// It was left because it was silent, not because the program said so.
    was_silent: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// The program said so.
    Told,
    /// Packets came from there while the known address was silent.
    Newcomer,
    /// It was taken for moved, and is heard where it was.
    Return,
}

/// A move that is not decided.
#[derive(Debug)]
pub(super) struct Move {
    to: Remote,
    cause: Cause,
    since: Instant,
    probes: u32,
    probe_due: bool,
    pub(super) next_at: Instant,
    /// The packet that only `to` was sent.
    challenge: Option<u64>,
    is_answered: bool,
}

impl Machine {
    /// Sends to `addr` from now on (libudx: `udx_stream_change_remote`), as soon as a packet came from
    /// there; until then the way before is used. What is known of the path starts over, with a link to the
    /// first hop that takes IP packets of `link_mtu` bytes. False when the stream is not connected.
    pub fn change_remote(
        &mut self,
        now: Instant,
        addr: SocketAddr,
        id: u32,
        link_mtu: u16,
    ) -> bool {
        let Some(before) = self.remote.filter(|_| self.phase == Phase::Connected) else {
            return false;
        };
        self.generation += 1;
        let to = Remote { addr, id, link_mtu, generation: self.generation };
        self.begin_move(now, to, Cause::Told);
        if before.addr == addr {
            // Nothing that comes from there could tell the ways apart.
            self.complete_move(now);
        }
        true
    }

    /// Whether packets go another way than the program gave last: that has not answered so far, or never.
    #[must_use]
    pub fn is_on_previous(&self) -> bool {
        self.remote.is_some_and(|remote| remote.generation < self.generation)
    }

    fn begin_move(&mut self, now: Instant, to: Remote, cause: Cause) {
        self.moving = Some(Move {
            to,
            cause,
            since: now,
            probes: 0,
            probe_due: false,
            next_at: now,
            challenge: None,
            is_answered: false,
        });
        self.check_move(now);
    }

    /// How long the known address must have been silent.
    fn silence(&self) -> Duration {
        SILENCE.max(self.recovery.rtt.rto())
    }

    /// Asks again, decides or gives up, when it is time.
    pub(super) fn check_move(&mut self, now: Instant) {
        let silence = self.silence();
        let Some(moving) = self.moving.as_mut().filter(|moving| moving.next_at <= now) else {
            return;
        };
        let is_newcomer = moving.cause == Cause::Newcomer;
        let (most, interval) = match moving.cause {
            Cause::Told => {
                let doubled = TOLD_INTERVAL.saturating_mul(1 << moving.probes.min(8));
                (TOLD_PROBES, doubled.min(TOLD_INTERVAL_MAX))
            }
            Cause::Newcomer | Cause::Return => (NEWCOMER_PROBES, silence / 2),
        };
        if is_newcomer && moving.is_answered && now >= moving.since + silence {
            self.complete_move(now);
        } else if moving.probes >= most {
            self.moving = None;
            self.newcomers_from = now + silence;
        } else {
            moving.probe_due = true;
            moving.probes += 1;
            moving.next_at = now + interval;
        }
    }

    fn complete_move(&mut self, now: Instant) {
        let Some((moving, before)) = self.moving.take().zip(self.remote) else { return };
        let was_silent = moving.cause == Cause::Newcomer;
        self.previous = Some(Previous { remote: before, until: now + PREVIOUS, was_silent });
        self.remote = Some(moving.to);
        if moving.cause != Cause::Told {
            // Nobody answered, or somebody else.
            self.outgoing.detect_lost(|_| true, |_| {});
        }
        self.begin_path(now, moving.to);
        self.newcomers_from = now + self.silence();
        self.liveness.heard(now, false);
        // The other side learns the new address from a packet, and where it has to go on.
        self.heartbeat_due = true;
        self.ack_due = true;
    }

    /// What was known of the path says nothing of another.
    fn begin_path(&mut self, now: Instant, remote: Remote) {
        self.mtu = MtuSearch::new(remote.addr.is_ipv4(), remote.link_mtu);
        self.congestion = Bbr::new(now, self.mtu.packet_size() as u64, remote.id);
        self.rate = DeliveryRate::new(now);
        self.recovery.rtt = RttEstimate::default();
        self.path_begins_at = self.outgoing.transmissions();
    }

    /// Whether packets from `from` are the other side's. Notes where it is heard.
    pub(super) fn is_from_remote(&mut self, now: Instant, from: SocketAddr) -> bool {
        let is_at = |addr: SocketAddr| addr.ip() == from.ip() && addr.port() == from.port();
        self.previous.take_if(|previous| previous.until <= now);
        self.remote.is_some_and(|remote| is_at(remote.addr))
            || self.previous.is_some_and(|previous| is_at(previous.remote.addr))
            || self.moving.as_ref().is_some_and(|m| m.cause == Cause::Told && is_at(m.to.addr))
    }

    /// A good packet came from an address that counts: what that says about moves.
    pub(super) fn heard_from(&mut self, now: Instant, from: SocketAddr, numbers: &Numbers<'_>) {
        if self.phase != Phase::Connected {
            return;
        }
        let is_at = |addr: SocketAddr| addr.ip() == from.ip() && addr.port() == from.port();
        let at_remote = self.remote.is_some_and(|remote| is_at(remote.addr));
        let moving = self.moving.as_ref().map(|moving| (moving.cause, is_at(moving.to.addr)));
        if at_remote {
            if moving.is_some_and(|(cause, _)| cause == Cause::Newcomer) {
                self.moving = None;
                self.newcomers_from = now + self.silence();
            }
            return;
        }
        match moving {
            Some((Cause::Told, true)) => self.complete_move(now),
            Some((Cause::Return, true)) if self.is_answer(numbers) => self.complete_move(now),
            Some((Cause::Told | Cause::Return, _)) => {}
            Some((Cause::Newcomer, _)) | None => {
                let Some(previous) = &mut self.previous else { return };
                previous.until = now + PREVIOUS;
                if previous.was_silent {
                    let to = previous.remote;
                    self.begin_move(now, to, Cause::Return);
                }
            }
        }
    }

    /// A packet came from an address that does not count. What else it says is ignored, also when the
    /// stream moves: nobody else has confirmed it.
    pub(super) fn heard_stranger(&mut self, now: Instant, from: SocketAddr, numbers: &Numbers<'_>) {
        let Some(remote) = self.remote.filter(|_| self.phase == Phase::Connected) else { return };
        let silence = self.silence();
        let Some(moving) = &self.moving else {
            if self.liveness.is_silent(now, silence) && self.newcomers_from <= now {
                // Both are asked.
                self.heartbeat_due = true;
                self.begin_move(now, Remote { addr: from, ..remote }, Cause::Newcomer);
            }
            return;
        };
        let is_newcomer = moving.cause == Cause::Newcomer && moving.to.addr == from;
        if !is_newcomer || !self.is_answer(numbers) {
            return;
        }
        let is_over = now >= moving.since + silence;
        if let Some(moving) = &mut self.moving {
            moving.is_answered = true;
        }
        if is_over {
            self.complete_move(now);
        }
    }

    /// Whether the packet acknowledges what only the new address was sent. Once this half has ended there
    /// is nothing that could be sent for that; then any packet will do.
    fn is_answer(&self, numbers: &Numbers<'_>) -> bool {
        let Some(moving) = self.moving.as_ref().filter(|moving| moving.probes > 0) else {
            return false;
        };
        match moving.challenge {
            Some(challenge) => numbers.acknowledges(challenge),
            None => !moving.probe_due && !self.outgoing.may_challenge(),
        }
    }

    /// Writes the question that is due to the new address.
    pub(super) fn write_path_probe(&mut self, now: Instant, out: &mut Vec<u8>) -> Option<Transmit> {
        let moving = self.moving.as_mut().filter(|moving| moving.probe_due)?;
        moving.probe_due = false;
        let (to, cause, known) = (moving.to, moving.cause, moving.challenge);
        if cause == Cause::Told || (known.is_none() && !self.outgoing.may_challenge()) {
            self.write_control(to, flags::HEARTBEAT, out);
            return Some(self.one(to));
        }
        let seq = known.unwrap_or_else(|| {
            // A packet without bytes: nobody who should not gets any.
            let rate = self.rate.on_sent(now, self.outgoing.in_flight());
            let seq = self.outgoing.send_new((0, false), now, rate, false);
            self.recovery.on_sent(now, &self.outgoing, true);
            seq
        });
        if let Some(moving) = &mut self.moving {
            moving.challenge = Some(seq);
        }
        let header = self.header(to, flags::DATA, seq);
        out.extend_from_slice(&header.encode());
        Some(self.one(to))
    }
}

/// What a packet says, in full numbers.
#[derive(Debug)]
pub(super) struct Numbers<'a> {
    pub(super) seq: u64,
    pub(super) ack: u64,
    pub(super) packet: &'a Packet<'a>,
}

impl Numbers<'_> {
    fn acknowledges(&self, seq: u64) -> bool {
        let mut sacks = self.packet.sacks().filter_map(|(start, end)| {
            Some(header::expand(self.ack, start)?..header::expand(self.ack, end)?)
        });
        self.ack > seq || sacks.any(|range| range.contains(&seq))
    }
}
