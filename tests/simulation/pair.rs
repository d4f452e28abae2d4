//! Two machines over a simulated link, in virtual time: delay, loss, reordering, duplication, a
//! bottleneck with a queue, and a path MTU, all from a seed.

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use alex_p2p::udx::header::{Header, Packet, flags};
use alex_p2p::udx::machine::Machine;
use alex_p2p::udx::{ETHERNET_MTU, StreamOptions};

use super::dice::Dice;

/// What the link does to packets, each way.
#[derive(Debug, Clone)]
pub struct Link {
    pub delay: Duration,
    /// Up to so much longer, anew for each packet: what comes later may overtake.
    pub jitter: Duration,
    pub loss: f64,
    pub duplicate: f64,
    /// Bytes a second, and the bytes that wait in front of it.
    pub bottleneck: Option<(f64, f64)>,
    /// The largest UDP payload.
    pub mtu: usize,
    /// What the sides know of it: the IP packets that the first hop takes.
    pub first_hop: u16,
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
            first_hop: ETHERNET_MTU,
        }
    }
}

/// One end: a machine and the program that uses it.
pub struct Side {
    pub machine: Machine,
    /// Where its packets come from.
    pub addr: SocketAddr,
    /// Where packets still reach it besides.
    pub also_at: Option<SocketAddr>,
    /// Bytes the program still wants to write.
    pub to_write: Vec<u8>,
    written: usize,
    /// Ends its half once all is written.
    pub finishes: bool,
    pub received: Vec<u8>,
    pub reads: bool,
    /// Whether packets still reach and leave it.
    pub is_alive: bool,
    /// The header of the last packet it sent, and the highest number of one with DATA.
    pub said: Option<Header>,
    pub newest: Option<u32>,
}

/// A packet under way.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct OnWire {
    at: Instant,
    number: u64,
    from: SocketAddr,
    to: SocketAddr,
    packet: Vec<u8>,
}

/// Two sides and the link between them.
pub struct Pair {
    pub now: Instant,
    pub start: Instant,
    pub link: Link,
    pub sides: [Side; 2],
    pub dice: Dice,
    ids: [u32; 2],
    /// When the bottleneck of each direction is free. Pairs can share it.
    free_at: Rc<Cell<[Instant; 2]>>,
    wire: BinaryHeap<Reverse<OnWire>>,
    /// Packets that went on the wire.
    pub sent: u64,
    /// Bytes of the largest packet that either side sent.
    pub largest: usize,
    /// Packets dropped by loss or by a full queue.
    pub dropped: u64,
    /// Packets sent to an address at which nobody is.
    pub astray: u64,
    /// The most that either machine held, in bytes.
    pub most_held: usize,
}

/// The streams' ids.
pub const IDS: [u32; 2] = [0x1357_9bdf, 0x2468_ace0];

/// The address `10.0.0.host:port`.
pub fn address(host: u8, port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(10, 0, 0, host), port))
}

impl Pair {
    pub fn new(seed: u64, link: Link, options: &StreamOptions) -> Self {
        let start = Instant::now();
        Self::at(start, IDS, seed, link, options)
    }

    fn at(start: Instant, ids: [u32; 2], seed: u64, link: Link, options: &StreamOptions) -> Self {
        let side = |index: usize| Side {
            machine: Machine::new(start, ids[index], options),
            addr: address(1 + index as u8, 1000),
            also_at: None,
            to_write: Vec::new(),
            written: 0,
            finishes: true,
            received: Vec::new(),
            reads: true,
            is_alive: true,
            said: None,
            newest: None,
        };
        Self {
            now: start,
            start,
            link,
            sides: [side(0), side(1)],
            dice: Dice::new(seed),
            ids,
            free_at: Rc::new(Cell::new([start; 2])),
            wire: BinaryHeap::new(),
            sent: 0,
            largest: 0,
            dropped: 0,
            astray: 0,
            most_held: 0,
        }
    }

    pub fn connect(&mut self, index: usize) {
        let addr = self.sides[1 - index].addr;
        self.sides[index].machine.connect(self.now, addr, self.ids[1 - index], self.link.first_hop);
    }

    /// Connected pairs whose packets go through one bottleneck, for [`Pair::run_together`].
    pub fn sharing<const N: usize>(seed: u64, link: &Link) -> [Self; N] {
        let start = Instant::now();
        let mut dice = Dice::new(seed);
        let free_at = Rc::new(Cell::new([start; 2]));
        std::array::from_fn(|_| {
            let ids = [dice.next() as u32, dice.next() as u32];
            let options = StreamOptions::default();
            let mut pair = Self::at(start, ids, dice.next(), link.clone(), &options);
            pair.free_at = Rc::clone(&free_at);
            pair.connect(0);
            pair.connect(1);
            pair.stays_open()
        })
    }

    /// A pair that is connected on both sides.
    pub fn connected(seed: u64, link: Link) -> Self {
        Self::with_options(seed, link, &StreamOptions::default())
    }

    /// The same with options.
    pub fn with_options(seed: u64, link: Link, options: &StreamOptions) -> Self {
        let mut pair = Self::new(seed, link, options);
        pair.connect(0);
        pair.connect(1);
        pair
    }

    /// Neither side ends its half.
    pub fn stays_open(mut self) -> Self {
        self.sides.iter_mut().for_each(|side| side.finishes = false);
        self
    }

    pub fn elapsed(&self) -> Duration {
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
            let (held, most) = (side.machine.held(), side.machine.held_max());
            assert!(held <= most, "{held} bytes held, more than {most}");
            self.most_held = self.most_held.max(held);
            let mut packets = Vec::new();
            let mut out = Vec::new();
            while let Some(transmit) = side.machine.poll_transmit(now, |_| 16, &mut out) {
                assert!(!out.is_empty());
                let size = transmit.segment.unwrap_or(out.len());
                packets.extend(out.chunks(size).map(|p| (transmit.destination, p.to_vec())));
                out.clear();
            }
            for (to, packet) in packets {
                self.put_on_wire(index, to, packet);
            }
        }
    }

    fn put_on_wire(&mut self, index: usize, to: SocketAddr, packet: Vec<u8>) {
        let mut at = self.now;
        self.largest = self.largest.max(packet.len());
        let side = &mut self.sides[index];
        let decoded = Packet::decode(&packet).unwrap();
        side.said = Some(decoded.header);
        if decoded.has(flags::DATA) && side.newest < Some(decoded.header.seq) {
            side.newest = Some(decoded.header.seq);
        }
        if let Some((rate, queue)) = self.link.bottleneck {
            let mut roads = self.free_at.get();
            let free_at = roads[index].max(at);
            if (free_at - at).as_secs_f64() * rate > queue {
                self.dropped += 1;
                return;
            }
            at = free_at + Duration::from_secs_f64(packet.len() as f64 / rate);
            roads[index] = at;
            self.free_at.set(roads);
        }
        let from = side.addr;
        if packet.len() > self.link.mtu || self.dice.unit() < self.link.loss {
            self.dropped += 1;
            return;
        }
        let copies = if self.dice.unit() < self.link.duplicate { 2 } else { 1 };
        for _ in 0..copies {
            let at = at + self.link.delay + self.link.jitter.mul_f64(self.dice.unit());
            self.sent += 1;
            let (number, packet) = (self.sent, packet.clone());
            self.wire.push(Reverse(OnWire { at, number, from, to, packet }));
        }
    }

    /// Hands a packet to side `index` as if it came from `from`.
    pub fn inject(&mut self, index: usize, from: SocketAddr, packet: &[u8]) {
        self.sides[index].machine.handle_packet(self.now, from, packet);
    }

    /// Goes to the next moment at which something happens; false when nothing ever will.
    pub fn step(&mut self) -> bool {
        self.step_until(self.now + Duration::from_secs(3600))
    }

    fn step_until(&mut self, end: Instant) -> bool {
        self.settle();
        let Some(next) = self.next_at() else { return false };
        self.go_to(next.min(end));
        true
    }

    /// When something happens.
    fn next_at(&self) -> Option<Instant> {
        let alive = self.sides.iter().filter(|side| side.is_alive);
        let timer = alive.filter_map(|side| side.machine.deadline()).min();
        let arrival = self.wire.peek().map(|Reverse(packet)| packet.at);
        timer.into_iter().chain(arrival).min()
    }

    fn go_to(&mut self, at: Instant) {
        self.now = self.now.max(at);
        while self.wire.peek().is_some_and(|Reverse(packet)| packet.at <= self.now) {
            let Some(Reverse(OnWire { from, to, packet, .. })) = self.wire.pop() else { break };
            let is_at = |side: &&mut Side| side.addr == to || side.also_at == Some(to);
            match self.sides.iter_mut().find(is_at) {
                Some(side) if side.is_alive => side.machine.handle_packet(self.now, from, &packet),
                Some(_) => {}
                None => self.astray += 1,
            }
        }
        for side in self.sides.iter_mut().filter(|side| side.is_alive) {
            side.machine.handle_timeout(self.now);
        }
    }

    /// Lets pairs that share a bottleneck go on for `time`.
    pub fn run_together(pairs: &mut [Self], time: Duration) {
        let Some(end) = pairs.iter().map(|pair| pair.now + time).max() else { return };
        loop {
            pairs.iter_mut().for_each(Self::settle);
            let next = pairs.iter().filter_map(Self::next_at).min();
            let Some(next) = next.filter(|next| *next < end) else { return };
            pairs.iter_mut().for_each(|pair| pair.go_to(next));
        }
    }

    /// Steps until `done`, or for `limit` of virtual time. True when done.
    pub fn run(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now + limit;
        while !done(self) {
            if self.now >= end || !self.step_until(end) {
                self.settle();
                return done(self);
            }
        }
        true
    }

    /// Lets `time` pass.
    pub fn pass(&mut self, time: Duration) {
        self.run(time, |_| false);
    }

    pub fn both_closed(&self) -> bool {
        self.sides.iter().all(|side| side.machine.closed().is_some())
    }
}
