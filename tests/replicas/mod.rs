//! Nodes that have nothing but a replicator and cores in memory, and connections between them.

#![allow(dead_code)] // every test binary uses some of it

use std::time::Duration;

use alex_p2p::crypto::{Hash, KeyPair};
use alex_p2p::hypercore::replicator::{CoreHandle, Policy, Replicator};
use alex_p2p::hypercore::{Core, CreateOptions, Manifest, MemoryStorage, OpenOptions};
use alex_p2p::protomux::{MuxOptions, Protomux};
use alex_p2p::secret_stream::connect_xx;
use bytes::Bytes;

pub const PATIENCE: Duration = Duration::from_secs(60);

/// A node with a replicator and its cores in memory.
pub struct Node {
    pub replicator: Replicator,
    pub storage: MemoryStorage,
    pub keys: KeyPair,
}

impl Node {
    pub fn new() -> Self {
        Self::with(Replicator::new())
    }

    pub fn with(replicator: Replicator) -> Self {
        Self { replicator, storage: MemoryStorage::new(), keys: KeyPair::generate() }
    }

    /// A new log with so many blocks, which is not replicated yet.
    pub async fn writer(&self, length: u64) -> Core {
        let keys = KeyPair::generate();
        let manifest = Manifest::single(keys.public_key());
        let options = CreateOptions { manifest, writer: Some(keys), compat: false };
        let core = Core::create(&self.storage, options).unwrap();
        append(&core, length).await;
        core
    }

    pub fn reader(&self, key: &Hash) -> Core {
        Core::open(&self.storage, *key, OpenOptions::default()).unwrap()
    }

    pub fn add(&self, key: &Hash, policy: Policy) -> CoreHandle {
        self.replicator.add(self.reader(key), policy)
    }

    pub fn serve(&self, core: &Core) -> CoreHandle {
        self.replicator.add(core.clone(), Policy::serve())
    }

    pub fn fetch(&self, key: &Hash) -> CoreHandle {
        self.add(key, Policy::fetch())
    }
}

/// What the blocks of these logs say.
pub fn block(index: u64) -> Bytes {
    format!("block {index} {}", "x".repeat((index % 50) as usize)).into()
}

pub async fn append(core: &Core, count: u64) {
    let first = core.length();
    core.append((first..first + count).map(block).collect()).await.unwrap();
}

/// Two ends of a connection; nothing is read before `start`.
pub async fn connect(a: &KeyPair, b: &KeyPair) -> (Protomux, Protomux) {
    let (left, right) = tokio::io::duplex(1 << 16);
    let (left, right) = tokio::join!(connect_xx(left, true, a), connect_xx(right, false, b));
    let mux = |stream| Protomux::new(stream, MuxOptions { paused: true });
    (mux(left.unwrap()), mux(right.unwrap()))
}

pub async fn link(a: &Node, b: &Node) -> (Protomux, Protomux) {
    let (left, right) = connect(&a.keys, &b.keys).await;
    a.replicator.attach(&left);
    b.replicator.attach(&right);
    left.start();
    right.start();
    (left, right)
}
