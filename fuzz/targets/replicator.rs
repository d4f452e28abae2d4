//! A replicator with a core that it writes and one that it reads, and an authenticated peer that says
//! anything on `hypercore/alpha`: no block is believed that was not signed, and with an honest peer both
//! cores arrive afterwards.
//!
//! The input is a program: messages as they are, messages of every kind with numbers at and beyond the
//! limits, answers to what is asked that may be changed, blocks and bytes that are waited for or given up,
//! and time that passes. Time is simulated.

use std::collections::VecDeque;
use std::sync::OnceLock;
use std::time::Duration;

use alex_p2p::crypto::{KeyPair, keyed_hash, namespace};
use alex_p2p::hypercore::messages::{
    Bitfield, Handshake as Opening, Message, NoData, NoDataReason, Range, RequestNode,
    RequestSeek, RequestUpgrade, Sync, Want,
};
use alex_p2p::hypercore::replicator::{CoreHandle, Fetching, PROTOCOL, Policy, Replicator};
use alex_p2p::hypercore::{Core, CreateOptions, Manifest, MemoryStorage, OpenOptions, Request};
use alex_p2p::protomux::{Channel, ChannelOptions, MuxOptions, Protomux};
use alex_p2p::secret_stream::SecretStream;
use bytes::Bytes;
use tokio::io::duplex;
use tokio::time::timeout;

use crate::program::{byte, bytes};
use crate::session::sessions;

/// Blocks of both logs.
const LENGTH: u64 = 13;
/// No honest peer needs longer.
const PATIENCE: Duration = Duration::from_secs(600);
/// How much of what it was asked the foe remembers.
const ASKED: usize = 64;

/// One input is one program.
pub fn run(data: &[u8]) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().unwrap().block_on(play(data));
}

struct World {
    written: CoreHandle,
    read: CoreHandle,
    waits: VecDeque<Fetching>,
    /// The log that `read` is a copy of.
    source: Core,
    foe: Option<Foe>,
}

/// The channels of both cores, as the foe has them.
struct Foe {
    mux: Protomux,
    channels: [Channel; 2],
    asked: VecDeque<Request>,
}

async fn play(data: &[u8]) {
    let Some((mode, mut program)) = data.split_first() else { return };
    let replicator = Replicator::new();
    let [written, source] = [log(1).await, log(2).await];
    let copy = Core::open(&MemoryStorage::new(), *source.key(), OpenOptions::default()).unwrap();
    let policy = if mode & 1 == 0 { Policy::fetch() } else { Policy::on_demand() };
    let written = replicator.add(written, Policy::serve());
    let read = replicator.add(copy, policy);
    let foe = Foe::connect(&replicator, [&written, &read]).await;
    let mut world = World { written, read, waits: VecDeque::new(), source, foe };
    while world.step(&mut program).await.is_some() {}
    world.finish(&replicator).await;
}

impl World {
    async fn step(&mut self, program: &mut &[u8]) -> Option<()> {
        let (step, detail) = (byte(program)?, byte(program)?);
        match step & 15 {
            0 => {
                let length = usize::from(byte(program)? & 63);
                let message = bytes(program, length);
                self.foe.as_mut()?.send(detail >> 7, u32::from(detail & 15), &message.into()).await;
            }
            1 | 2 => {
                let data = self.answer(detail, program)?;
                let kind = data.kind();
                self.foe.as_mut()?.send(1, kind, &data.encode()).await;
            }
            3..=11 => {
                let message = message(step & 15, detail, program)?;
                let (kind, encoded) = (message.kind(), message.encode());
                self.foe.as_mut()?.send(detail >> 7, kind, &encoded).await;
            }
            12 => {
                let start = u64::from(detail & 15);
                self.waits.push_back(self.read.download(start..start + u64::from(detail >> 4)));
                self.waits.truncate(8);
            }
            13 => {
                self.waits.pop_front();
                let seek = self.read.seek(u64::from(detail));
                let _ = timeout(Duration::from_millis(u64::from(step >> 4)), seek).await;
            }
            14 => {
                let start = u64::from(detail & 15);
                // Not of the log that is written here, which is not to be had from anybody else.
                self.read.clear(start..start + u64::from(detail >> 4)).await.unwrap();
            }
            _ => tokio::time::sleep(Duration::from_millis(u64::from(detail) * 100)).await,
        }
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        self.foe.as_mut()?.listen();
        self.check();
        Some(())
    }

    /// An answer to something that was asked, which may be changed.
    fn answer(&mut self, detail: u8, program: &mut &[u8]) -> Option<Message> {
        let asked = &mut self.foe.as_mut()?.asked;
        let request = asked.remove(usize::from(detail & 7) % asked.len().max(1))?;
        let refusal = NoData { request: request.id, reason: NoDataReason::NotAvailable };
        if detail & 0x78 == 0x78 {
            return Some(Message::NoData(refusal));
        }
        let Ok(Some(data)) = self.source.prove(&request) else {
            return Some(Message::NoData(refusal));
        };
        if detail & 0x18 != 0x18 {
            return Some(Message::Data(data));
        }
        let (at, by) = (usize::from(byte(program)?), byte(program)?);
        let mut encoded = Message::Data(data).encode().to_vec();
        let at = (at + usize::from(detail & 0x60) * 4) % encoded.len();
        encoded[at] ^= by;
        Message::decode(3, &encoded.into()).ok().flatten()
    }

    /// Whatever was said, what is here is what was signed.
    fn check(&self) {
        let core = self.read.core();
        assert!(core.length() <= LENGTH && core.fork() == 0);
        for index in 0..core.length() {
            if let Some(value) = core.get(index).unwrap() {
                assert_eq!(value, block(index), "another block {index}");
            }
        }
        assert_eq!(self.written.core().contiguous_length(), LENGTH);
        assert!(self.read.peers().len() <= 1 && self.written.peers().len() <= 1);
    }

    /// The foe leaves, and an honest peer comes.
    async fn finish(mut self, replicator: &Replicator) {
        if let Some(foe) = self.foe.take() {
            foe.mux.close();
            let left = async {
                foe.mux.closed().await;
                foe.mux.finished().await;
            };
            let _ = timeout(PATIENCE, left).await;
        }
        self.waits.clear();
        let honest = Replicator::new();
        honest.add(self.source.clone(), Policy::serve());
        let storage = MemoryStorage::new();
        let key = *self.written.core().key();
        let copy = Core::open(&storage, key, OpenOptions::default()).unwrap();
        let copy = honest.add(copy, Policy::fetch());
        let (near, far) = connect();
        replicator.attach(&near);
        honest.attach(&far);
        near.start();
        far.start();
        for handle in [&copy, &self.read] {
            let whole = handle.download(0..LENGTH);
            let whole = timeout(PATIENCE, whole.done()).await;
            assert!(matches!(whole, Ok(Ok(()))), "{whole:?} {:?}", handle.core().state());
        }
        assert_eq!(self.read.core().tree_hash(), self.source.tree_hash());
        near.close();
        near.finished().await;
    }
}

impl Foe {
    async fn connect(replicator: &Replicator, cores: [&CoreHandle; 2]) -> Option<Self> {
        let (near, mux) = connect();
        replicator.attach(&near);
        let open = |core: &CoreHandle| {
            let key = core.core().key();
            let capability = keyed_hash(mux.handshake_hash(), &[&namespace("hypercore", 2), key]);
            mux.open(ChannelOptions {
                protocol: PROTOCOL.into(),
                id: core.core().discovery_key().to_vec(),
                handshake: Opening { seeks: true, capability }.encode(),
                ..ChannelOptions::default()
            })
        };
        let channels = [open(cores[0]).ok()?, open(cores[1]).ok()?];
        near.start();
        mux.start();
        for channel in &channels {
            timeout(PATIENCE, channel.opened()).await.ok()?.ok()?;
        }
        Some(Self { mux, channels, asked: VecDeque::new() })
    }

    async fn send(&mut self, core: u8, kind: u32, message: &Bytes) {
        let channel = &self.channels[usize::from(core & 1)];
        let _ = timeout(PATIENCE, channel.send(kind, message)).await;
    }

    /// Takes what came, and remembers what it asks of the log that is read.
    fn listen(&mut self) {
        for (at, channel) in self.channels.iter().enumerate() {
            while let Some(received) = now(channel.recv()) {
                let message = Message::decode(received.kind, &received.data);
                match message.unwrap() {
                    Some(Message::Request(request)) if at == 1 => self.asked.push_back(request),
                    _ => {}
                }
            }
        }
        while self.asked.len() > ASKED {
            self.asked.pop_front();
        }
    }
}

/// What a future gives without waiting.
fn now<T>(future: impl Future<Output = Option<T>>) -> Option<T> {
    use std::task::{Context, Poll, Waker};
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => None,
    }
}

/// A message of every kind, right in most things.
fn message(step: u8, flags: u8, program: &mut &[u8]) -> Option<Message> {
    let mut number = || {
        let first = byte(program)?;
        Some(match first {
            0..=199 => u64::from(first & 31),
            200..=249 => u64::from(first) << byte(program)?.min(44),
            _ => ((1 << 53) - 1) >> ((first - 250) * 3),
        })
    };
    let flag = |bit: u8| flags >> bit & 1 == 1;
    Some(match step {
        3 | 4 => Message::Sync(Sync {
            fork: if flag(6) { number()? } else { 0 },
            length: number()?,
            remote_length: number()?,
            can_upgrade: !flag(0),
            uploading: !flag(1),
            downloading: !flag(2),
            has_manifest: !flag(3),
            allow_push: flag(4),
        }),
        5 => {
            let mut request = Request { id: number()?, ..Request::default() };
            if flag(0) {
                request.block = Some(RequestNode { index: number()?, nodes: number()? });
            }
            if flag(1) {
                request.hash = Some(RequestNode { index: number()?, nodes: number()? });
            }
            if flag(2) {
                request.seek = Some(RequestSeek { bytes: number()?, padding: number()? });
            }
            if flag(3) {
                request.upgrade = Some(RequestUpgrade { start: number()?, length: number()? });
            }
            (request.manifest, request.priority) = (flag(4), u64::from(flag(5)));
            Message::Request(request)
        }
        6 => Message::Cancel(number()?),
        7 => Message::NoData(NoData {
            request: number()?,
            reason: if flag(0) { NoDataReason::InvalidRequest } else { NoDataReason::NotAvailable },
        }),
        8 | 9 => Message::Range(Range { drop: flag(0), start: number()?, length: number()? }),
        10 => {
            let want = Want { start: number()?, length: number()?, any: flag(1) };
            if flag(0) { Message::Unwant(want) } else { Message::Want(want) }
        }
        _ => {
            let start = number()? / 32 * 32;
            let words = bytes(program, usize::from(flags & 15));
            Message::Bitfield(Bitfield { start, words: words.into_iter().map(u32::from).collect() })
        }
    })
}

fn block(index: u64) -> Bytes {
    vec![index as u8; (index * 5 % 17) as usize].into()
}

/// A log of [`LENGTH`] blocks that the keys of `seed` sign.
async fn log(seed: u8) -> Core {
    static STORES: OnceLock<[MemoryStorage; 2]> = OnceLock::new();
    let pair = KeyPair::from_seed(&[seed; 32]);
    let manifest = Manifest::single(pair.public_key());
    if let Some(stores) = STORES.get() {
        let storage = stores[usize::from(seed - 1)].after_crash();
        let options = OpenOptions { writer: Some(pair), ..OpenOptions::default() };
        return Core::open(&storage, manifest.key(), options).unwrap();
    }
    let stores = [MemoryStorage::new(), MemoryStorage::new()];
    for (at, storage) in (1..).zip(&stores) {
        let pair = KeyPair::from_seed(&[at; 32]);
        let manifest = Manifest::single(pair.public_key());
        let options = CreateOptions { manifest, writer: Some(pair), compat: false };
        let core = Core::create(storage, options).unwrap();
        core.append((0..LENGTH).map(block).collect()).await.unwrap();
    }
    let _ = STORES.set(stores);
    Box::pin(log(seed)).await
}

/// Two ends of a connection; nothing is read before `start`.
fn connect() -> (Protomux, Protomux) {
    let (near, far) = duplex(1 << 20);
    let mux = |raw, end: usize| {
        Protomux::new(SecretStream::new(raw, sessions()[end].clone()), MuxOptions { paused: true })
    };
    (mux(near, 0), mux(far, 1))
}
