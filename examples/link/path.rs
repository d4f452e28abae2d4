//! One direction of the link: what happens to a packet, and when it comes out.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::time::{Duration, Instant};

use crate::tun::Tun;

/// Packets moved before the other direction gets its turn.
const BATCH: usize = 64;

/// What the link does to packets, each way.
#[derive(Debug, Clone)]
pub struct Link {
    /// One way.
    pub delay: Duration,
    /// Bytes a second, counting whole IP packets.
    pub rate: Option<f64>,
    /// Packets that wait for the rate; more are dropped.
    pub queue: usize,
    /// The share that is lost at random.
    pub loss: f64,
    /// The share that is overtaken: it takes up to half as long again.
    pub reorder: f64,
}

impl Default for Link {
    fn default() -> Self {
        Self { delay: Duration::ZERO, rate: None, queue: 1000, loss: 0.0, reorder: 0.0 }
    }
}

/// When a packet comes out, its number, and the packet.
type Travelling = Reverse<(Instant, u64, Vec<u8>)>;

pub struct Path {
    link: Link,
    dice: u64,
    /// When the packets that wait for the rate leave the queue.
    queued: VecDeque<Instant>,
    travelling: BinaryHeap<Travelling>,
    /// Buffers to use again.
    free: Vec<Vec<u8>>,
    taken: u64,
    lost: u64,
    overflowed: u64,
}

impl Path {
    pub fn new(link: &Link, seed: u64) -> Self {
        Self {
            link: link.clone(),
            dice: seed,
            queued: VecDeque::new(),
            travelling: BinaryHeap::new(),
            free: Vec::new(),
            taken: 0,
            lost: 0,
            overflowed: 0,
        }
    }

    /// When the next packet comes out.
    pub fn next_at(&self) -> Option<Instant> {
        self.travelling.peek().map(|Reverse((at, ..))| *at)
    }

    /// What happened so far, for people.
    pub fn counts(&self) -> String {
        format!("{} packets, {} lost, {} overflowed", self.taken, self.lost, self.overflowed)
    }

    /// Takes what came out of `from` and puts into `to` what is due.
    pub fn carry(&mut self, from: &Tun, to: &Tun) -> io::Result<()> {
        let now = Instant::now();
        for _ in 0..BATCH {
            let mut packet = self.free.pop().unwrap_or_default();
            packet.resize(2048, 0);
            let Some(length) = from.read(&mut packet)? else {
                self.free.push(packet);
                break;
            };
            packet.truncate(length);
            self.take(now, packet);
        }
        for _ in 0..BATCH {
            if self.next_at().is_none_or(|at| at > now) {
                break;
            }
            let Some(Reverse((_, _, packet))) = self.travelling.pop() else { break };
            to.write(&packet)?;
            self.free.push(packet);
        }
        Ok(())
    }

    fn take(&mut self, now: Instant, packet: Vec<u8>) {
        self.taken += 1;
        let mut at = now;
        if let Some(rate) = self.link.rate {
            while self.queued.front().is_some_and(|at| *at <= now) {
                self.queued.pop_front();
            }
            if self.queued.len() >= self.link.queue {
                self.overflowed += 1;
                self.free.push(packet);
                return;
            }
            let begins = self.queued.back().copied().unwrap_or(now).max(now);
            at = begins + Duration::from_secs_f64(packet.len() as f64 / rate);
            self.queued.push_back(at);
        }
        if self.roll() < self.link.loss {
            self.lost += 1;
            self.free.push(packet);
            return;
        }
        at += self.link.delay;
        if self.roll() < self.link.reorder {
            at += self.link.delay.mul_f64(self.roll() / 2.0);
        }
        self.travelling.push(Reverse((at, self.taken, packet)));
    }

    /// A number in `0.0..1.0` (splitmix64).
    fn roll(&mut self) -> f64 {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.dice;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}
