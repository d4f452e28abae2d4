//! Two machines over a simulated link, in virtual time: delay, loss, reordering, duplication, a
//! bottleneck with a queue, and a path MTU, all from a seed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::Machine;
use crate::udx::stream::{CloseReason, StreamOptions};

/// A small deterministic generator (splitmix64).
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0.0..1.0`.
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}

/// What the link does to packets, each way.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) delay: Duration,
    pub(super) jitter: Duration,
    pub(super) loss: f64,
    pub(super) duplicate: f64,
    /// Bytes a second, and the bytes that wait in front of it.
    pub(super) bottleneck: Option<(f64, f64)>,
    /// The largest UDP payload.
    pub(super) mtu: usize,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            delay: Duration::from_millis(10),
            jitter: Duration::ZERO,
            loss: 0.0,
            duplicate: 0.0,
            bottleneck: None,
            mtu: 1472,
        }
    }
}

/// One end: a machine and the program that uses it.
pub(super) struct Side {
    pub(super) machine: Machine,
    pub(super) addr: SocketAddr,
    /// Bytes the program still wants to write.
    pub(super) to_write: Vec<u8>,
    written: usize,
    /// Ends its half once all is written.
    pub(super) finishes: bool,
    pub(super) received: Vec<u8>,
    pub(super) reads: bool,
    /// Whether packets still reach and leave it.
    pub(super) is_alive: bool,
    free_at: Instant,
}

/// When a packet arrives, its number, to which side, and the packet.
type OnWire = (Instant, u64, usize, Vec<u8>);

pub(super) struct Pair {
    pub(super) now: Instant,
    pub(super) start: Instant,
    pub(super) link: Link,
    pub(super) sides: [Side; 2],
    pub(super) dice: Dice,
    wire: BinaryHeap<Reverse<OnWire>>,
    sent: u64,
    /// Packets dropped by loss or by a full queue.
    pub(super) dropped: u64,
}

pub(super) const IDS: [u32; 2] = [1, 2];

impl Pair {
    pub(super) fn new(seed: u64, link: Link, options: &StreamOptions) -> Self {
        let start = Instant::now();
        let side = |index: usize| Side {
            machine: Machine::new(start, IDS[index] + seed as u32, options),
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 1000 + index as u16)),
            to_write: Vec::new(),
            written: 0,
            finishes: true,
            received: Vec::new(),
            reads: true,
            is_alive: true,
            free_at: start,
        };
        Self {
            now: start,
            start,
            link,
            sides: [side(0), side(1)],
            dice: Dice::new(seed),
            wire: BinaryHeap::new(),
            sent: 0,
            dropped: 0,
        }
    }

    pub(super) fn connect(&mut self, index: usize) {
        let addr = self.sides[1 - index].addr;
        self.sides[index].machine.connect(self.now, addr, IDS[1 - index]);
    }

    /// A pair that is connected on both sides.
    pub(super) fn connected(seed: u64, link: Link) -> Self {
        let mut pair = Self::new(seed, link, &StreamOptions::default());
        pair.connect(0);
        pair.connect(1);
        pair
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    /// Lets the programs read and write, and puts what the machines send on the wire.
    fn settle(&mut self) {
        for index in 0..2 {
            let now = self.now;
            let side = &mut self.sides[index];
            if !side.is_alive {
                continue;
            }
            side.written += side.machine.write(&side.to_write[side.written..]);
            if side.finishes && side.written == side.to_write.len() {
                side.machine.finish();
            }
            let mut buffer = [0; 70_000];
            while side.reads {
                match side.machine.read(&mut buffer) {
                    0 => break,
                    read => side.received.extend_from_slice(&buffer[..read]),
                }
            }
            let mut packets = Vec::new();
            let mut out = Vec::new();
            while let Some(transmit) = side.machine.poll_transmit(now, |_| 16, &mut out) {
                assert!(!out.is_empty());
                let size = transmit.segment.unwrap_or(out.len());
                packets.extend(out.chunks(size).map(<[u8]>::to_vec));
                out.clear();
            }
            for packet in packets {
                self.put_on_wire(1 - index, packet);
            }
        }
    }

    fn put_on_wire(&mut self, to: usize, packet: Vec<u8>) {
        let mut at = self.now;
        if let Some((rate, queue)) = self.link.bottleneck {
            let from = &mut self.sides[1 - to];
            let free_at = from.free_at.max(at);
            if (free_at - at).as_secs_f64() * rate > queue {
                self.dropped += 1;
                return;
            }
            from.free_at = free_at + Duration::from_secs_f64(packet.len() as f64 / rate);
            at = from.free_at;
        }
        if packet.len() > self.link.mtu || self.dice.unit() < self.link.loss {
            self.dropped += 1;
            return;
        }
        let copies = if self.dice.unit() < self.link.duplicate { 2 } else { 1 };
        for _ in 0..copies {
            let at = at + self.link.delay + self.link.jitter.mul_f64(self.dice.unit());
            self.sent += 1;
            self.wire.push(Reverse((at, self.sent, to, packet.clone())));
        }
    }

    /// Goes to the next moment at which something happens; false when nothing ever will.
    pub(super) fn step(&mut self) -> bool {
        self.step_until(self.now + Duration::from_secs(3600))
    }

    fn step_until(&mut self, end: Instant) -> bool {
        self.settle();
        let alive = self.sides.iter().filter(|side| side.is_alive);
        let timer = alive.filter_map(|side| side.machine.deadline()).min();
        let arrival = self.wire.peek().map(|Reverse((at, ..))| *at);
        let Some(next) = timer.into_iter().chain(arrival).min() else { return false };
        self.now = self.now.max(next.min(end));
        while self.wire.peek().is_some_and(|Reverse((at, ..))| *at <= self.now) {
            let Some(Reverse((_, _, to, packet))) = self.wire.pop() else { break };
            let from = self.sides[1 - to].addr;
            if self.sides[to].is_alive {
                self.sides[to].machine.handle_packet(self.now, from, &packet);
            }
        }
        for side in self.sides.iter_mut().filter(|side| side.is_alive) {
            side.machine.handle_timeout(self.now);
        }
        true
    }

    /// Steps until `done`, or for `limit` of virtual time. True when done.
    pub(super) fn run(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now + limit;
        while !done(self) {
            if self.now >= end || !self.step_until(end) {
                self.settle();
                return done(self);
            }
        }
        true
    }

    pub(super) fn both_closed(&self) -> bool {
        self.sides.iter().all(|side| side.machine.closed().is_some())
    }
}

/// A link from a seed: up to 5 % loss, 2 % duplicates, 100 ms delay, reordering across half of that,
/// a slow or fast bottleneck, an MTU anywhere.
fn random_link(dice: &mut Dice) -> Link {
    let delay = Duration::from_micros(50 + dice.below(100_000));
    let rate = 200_000.0 * (1.0 + dice.unit() * 500.0);
    Link {
        delay,
        jitter: if dice.below(2) == 0 { Duration::ZERO } else { delay.mul_f64(dice.unit() / 2.0) },
        loss: if dice.below(3) == 0 { 0.0 } else { dice.unit() * 0.05 },
        duplicate: dice.unit() * 0.02,
        bottleneck: (dice.below(2) == 0).then_some((rate, 30_000.0 + rate * 0.1)),
        mtu: 1172 + dice.below(301) as usize,
    }
}

/// Sends up to 300 kB each way over the seed's link and ends both halves; what went wrong, if anything.
pub(super) fn deliver_everything(seed: u64) -> Result<(), String> {
    let mut dice = Dice::new(seed ^ 0x5eed);
    let link = random_link(&mut dice);
    let mut pair = Pair::new(seed, link.clone(), &StreamOptions::default());
    let mut expected = Vec::new();
    for side in &mut pair.sides {
        let length = dice.below(300_000) as usize;
        side.to_write = (0..length).map(|_| dice.next() as u8).collect();
        expected.push(side.to_write.clone());
    }
    // One side may be connected later than packets reach it.
    pair.connect(0);
    if dice.below(2) == 0 {
        let late = Duration::from_millis(dice.below(2000));
        pair.run(late, |_| false);
    }
    pair.connect(1);
    let finished = pair.run(Duration::from_secs(120), Pair::both_closed);
    for (index, side) in pair.sides.iter().enumerate() {
        let (got, want) = (&side.received, &expected[1 - index]);
        if got != want {
            let (got, want) = (got.len(), want.len());
            let at = pair.elapsed();
            return Err(format!("seed {seed}: {got} of {want} bytes after {at:?}, {link:?}"));
        }
        if side.machine.closed() != Some(CloseReason::Ended) || !finished {
            return Err(format!("seed {seed}: closed {:?}, {link:?}", side.machine.closed()));
        }
    }
    Ok(())
}

#[path = "simulation_tests.rs"]
mod tests;
