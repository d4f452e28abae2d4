//! Two connected streams, a link that does anything, and packets made up by somebody.
//!
//! The input is a program: what the two sides do, what the link does to their packets, how time passes,
//! and what arrives besides. Whatever it is, nothing panics, what is held stays bounded, and a reader gets
//! a prefix of what was written.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use alex_p2p::udx::StreamOptions;
use alex_p2p::udx::header::{Header, Packet, flags};
use alex_p2p::udx::machine::Machine;

const IDS: [u32; 2] = [7, 8];
/// Above what any search goes to.
const LINK_MTU: u16 = 9000;
/// Packets under way; more are dropped.
const MAX_ON_WIRE: usize = 256;
/// A stream over a link that has become perfect has delivered everything, or is closed, after so long. A
/// program that lets a minute pass before a packet arrives teaches it to wait a minute for each.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Reads the program.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn word(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes([self.byte()?, self.byte()?, self.byte()?, self.byte()?]))
    }

    fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// Who makes packets up.
#[derive(PartialEq)]
enum Foe {
    /// Nobody: everything arrives once the link is good.
    Nobody,
    /// Somebody who knows everything but has no bytes to give.
    Stranger,
    /// The other side itself.
    Peer,
}

struct Side {
    machine: Machine,
    addr: SocketAddr,
    written: u64,
    read: u64,
    said: Header,
}

struct World {
    now: Instant,
    foe: Foe,
    sides: [Side; 2],
    /// From, to, bytes.
    wire: VecDeque<(SocketAddr, SocketAddr, Vec<u8>)>,
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn byte_at(position: u64) -> u8 {
    (position * 7 + position / 251) as u8
}

/// One input is one program.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let Some(mode) = input.byte() else { return };
    let mut options = StreamOptions::default();
    options.receive_window = [4 << 20, 100_000, 5_000, 0][usize::from(mode >> 2 & 3)];
    options.send_buffer = [4 << 20, 100_000, 1_500, 0][usize::from(mode >> 4 & 3)];
    let now = Instant::now();
    let side = |index: u16| Side {
        machine: Machine::new(now, IDS[usize::from(index)], &options),
        addr: address(1 + index),
        written: 0,
        read: 0,
        said: Header::default(),
    };
    let foe = match mode & 3 {
        0 => Foe::Stranger,
        1 => Foe::Peer,
        _ => Foe::Nobody,
    };
    let mut world = World { now, foe, sides: [side(0), side(1)], wire: VecDeque::new() };
    world.sides[0].machine.connect(now, address(2), IDS[1], LINK_MTU);
    if mode >> 6 == 0 {
        world.sides[1].machine.connect(now, address(1), IDS[0], LINK_MTU);
    }
    while let Some(step) = input.byte() {
        if world.step(step, &mut input).is_none() {
            break;
        }
        world.settle();
    }
    world.sides[1].machine.connect(world.now, address(1), IDS[0], LINK_MTU);
    world.finish(options.send_buffer > 0);
}

impl World {
    /// One instruction: the low bit is the side, the rest what happens.
    fn step(&mut self, step: u8, input: &mut Input<'_>) -> Option<()> {
        let (index, now) = (usize::from(step & 1), self.now);
        let machine = &mut self.sides[index].machine;
        match step >> 1 & 15 {
            0 => self.write(index, usize::from(input.byte()?) * 64),
            1 => _ = self.read(index, usize::from(input.byte()?) * 64),
            // The link: delivers, drops, repeats, puts behind.
            2 | 3 => (0..=input.byte()?).for_each(|_| self.deliver()),
            4 => _ = self.wire.pop_front(),
            5 => {
                let again = self.wire.front().cloned();
                self.wire.extend(again);
            }
            6 => {
                let first = self.wire.pop_front();
                self.wire.extend(first);
            }
            7 => self.pass(Duration::from_millis(input.byte()?.into())),
            8 => self.pass(Duration::from_millis(u64::from(input.byte()?) * 100)),
            9 => machine.finish(),
            10 | 11 => self.forge(index, input)?,
            12 => {
                let raw = input.byte()?.into();
                let from = address(u16::from(input.byte()?));
                let packet = input.bytes(raw);
                // Bytes from an address that may become the other side's are the peer's only.
                if self.foe == Foe::Peer {
                    machine.handle_packet(now, from, packet);
                }
            }
            13 => self.rebind(index, input.byte()?),
            // Rare, or there would be little else.
            14 => match input.byte()? {
                0 => machine.destroy(now),
                1 => machine.detach(now),
                2 => machine.abandon(now),
                port => _ = machine.change_remote(now, address(port.into()), IDS[1 - index], LINK_MTU),
            },
            _ => self.pass(Duration::from_secs(input.byte()?.into())),
        }
        Some(())
    }

    fn write(&mut self, index: usize, length: usize) {
        let side = &mut self.sides[index];
        let bytes: Vec<u8> = (side.written..).take(length).map(byte_at).collect();
        side.written += side.machine.write(&bytes) as u64;
    }

    fn read(&mut self, index: usize, length: usize) -> usize {
        let side = &mut self.sides[index];
        let mut buffer = vec![0; length];
        let read = side.machine.read(&mut buffer);
        if self.foe != Foe::Peer {
            let right = buffer[..read].iter().zip(side.read..).all(|(b, at)| *b == byte_at(at));
            assert!(right, "other bytes than were written");
        }
        side.read += read as u64;
        assert!(self.foe == Foe::Peer || self.sides[index].read <= self.sides[1 - index].written);
        read
    }

    fn deliver(&mut self) {
        let Some((from, to, packet)) = self.wire.pop_front() else { return };
        if let Some(side) = self.sides.iter_mut().find(|side| side.addr == to) {
            side.machine.handle_packet(self.now, from, &packet);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        for side in &mut self.sides {
            side.machine.handle_timeout(self.now);
        }
    }

    /// The side's address changes, as a NAT does it.
    fn rebind(&mut self, index: usize, port: u8) {
        self.sides[index].addr = address(u16::from(port) * 2 + 10 + index as u16);
    }

    /// A packet with numbers near the real ones.
    fn forge(&mut self, index: usize, input: &mut Input<'_>) -> Option<()> {
        let (mut kind, near) = (input.byte()?, input.byte()?);
        let (seq, ack) = (input.byte()? as i8, input.byte()? as i8);
        let (said, heard) = (self.sides[1 - index].said, self.sides[index].said);
        let from = match near & 3 {
            0 | 1 => self.sides[1 - index].addr,
            _ => address(input.byte()?.into()),
        };
        let mut header = Header {
            kind,
            data_offset: input.byte()?,
            stream_id: IDS[index],
            window: input.word()?,
            seq: heard.ack.wrapping_add_signed(seq.into()),
            ack: said.ack.wrapping_add_signed(ack.into()),
        };
        if near & 4 != 0 {
            header.seq = input.word()?;
        }
        if near & 8 != 0 {
            header.ack = input.word()?;
        }
        let ranges: Vec<_> = (0..near >> 4).filter_map(|_| Some((input.byte()?, input.byte()?))).collect();
        if self.foe == Foe::Nobody {
            return Some(());
        }
        if self.foe == Foe::Stranger {
            kind &= !flags::DATA;
            header.kind = kind;
        }
        let mut packet = header.encode().to_vec();
        for (start, end) in ranges {
            for number in [start, end] {
                packet.extend_from_slice(&said.ack.wrapping_add(number.into()).to_le_bytes());
            }
        }
        self.sides[index].machine.handle_packet(self.now, from, &packet);
        Some(())
    }

    /// Sends what is due and looks whether all is well.
    fn settle(&mut self) {
        for side in &mut self.sides {
            let mut out = Vec::new();
            for count in 0.. {
                assert!(count < 20_000, "it never stops sending");
                let Some(transmit) = side.machine.poll_transmit(self.now, |_| 8, &mut out) else { break };
                for packet in out.chunks(transmit.segment.unwrap_or(out.len())) {
                    side.said = Packet::decode(packet).unwrap().header;
                    if self.wire.len() < MAX_ON_WIRE {
                        self.wire.push_back((side.addr, transmit.destination, packet.to_vec()));
                    }
                }
                out.clear();
            }
            assert!(side.machine.held() <= side.machine.held_max());
            let due = side.machine.deadline();
            assert!(side.machine.is_gone() || due.is_some() || !side.machine.is_connected());
        }
    }

    /// From now on the link is perfect and both read: the rest arrives, or a side is closed.
    fn finish(mut self, can_write: bool) {
        let end = self.now + PATIENCE;
        for side in &mut self.sides {
            side.machine.finish();
        }
        for _ in 0..100_000 {
            self.settle();
            while !self.wire.is_empty() {
                self.deliver();
            }
            while (0..2).map(|index| self.read(index, 65_536)).sum::<usize>() > 0 {}
            self.settle();
            let timers = self.sides.iter().filter_map(|side| side.machine.deadline());
            let Some(next) = timers.min().filter(|next| *next < end) else { break };
            if self.wire.is_empty() {
                self.now = self.now.max(next) + Duration::from_micros(100);
                self.pass(Duration::ZERO);
            }
        }
        let closed = self.sides.iter().any(|side| side.machine.closed().is_some());
        let whole = (0..2).all(|index| self.sides[index].read == self.sides[1 - index].written);
        if self.foe == Foe::Nobody && can_write {
            assert!(closed || whole, "neither delivered nor given up");
        }
    }
}
