//! A server under attack, and peers that have protomux and hypercore and nothing of this library above them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use alex_p2p::catalog::{Book, Changes};
use alex_p2p::crypto::{KeyPair, PublicKey};
use alex_p2p::error::Error;
use alex_p2p::hypercore::replicator::{Policy as CorePolicy, Replicator};
use alex_p2p::hypercore::{Core, MemoryStorage, OpenOptions, StaticTree};
use alex_p2p::hyperdht::{ConnectOptions, HyperDht, Testnet};
use alex_p2p::node::{Node, NodeOptions};
use alex_p2p::peers::{AddOptions, PeerUpdate};
use alex_p2p::protomux::{Channel, ChannelOptions, MuxOptions, Protomux};
use alex_p2p::transfer::{BookSource, Direction, Filter, Policy, Transfer, TransferInfo};
use serde_json::{Value, json};

pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for what must come.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it takes too long")
}

/// A node with a DHT of its own.
pub struct Server {
    pub testnet: Testnet,
    pub node: Node,
    pub dht: HyperDht,
    pub dir: tempfile::TempDir,
}

impl Server {
    pub async fn start(policy: Policy) -> Self {
        let testnet = Testnet::start(2).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let node = Self::open(&testnet, dir.path(), policy).await;
        let dht = HyperDht::bind(testnet.options()).unwrap();
        Self { testnet, node, dht, dir }
    }

    async fn open(testnet: &Testnet, dir: &Path, policy: Policy) -> Node {
        let bootstrap = testnet.bootstrap().iter().map(ToString::to_string).collect();
        let options = NodeOptions {
            bootstrap: Some(bootstrap),
            host: Some("127.0.0.1".into()),
            port: Some(0),
            policy,
            ..NodeOptions::new(dir.join("data"))
        };
        Node::open(options).await.unwrap()
    }

    /// Closes the node and opens it again.
    pub async fn restart(&mut self, policy: Policy) {
        self.node.close().await;
        self.node = Self::open(&self.testnet, self.dir.path(), policy).await;
    }

    pub fn key(&self) -> PublicKey {
        self.node.identity().public_key()
    }

    /// Writes a file and publishes it; gives what its bytes are as a core.
    pub async fn publish(&self, id: &str, name: &str, bytes: &[u8]) -> StaticTree {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        self.publish_file(id, path.clone()).await.unwrap();
        StaticTree::build(&path, None).await.unwrap()
    }

    pub async fn publish_file(&self, id: &str, path: PathBuf) -> Result<Changes, Error> {
        let json = json!({"id": id, "title": format!("Book {id}"), "format": "epub"});
        let entry = serde_json::from_value(json).unwrap();
        self.node
            .catalog()
            .publish(vec![Book { entry, source: Some(BookSource::Path(path)) }])
            .await
    }

    pub async fn unpublish(&self, id: &str) {
        self.node.catalog().unpublish(vec![id.to_owned()]).await.unwrap();
    }

    pub async fn add(&self, keys: &KeyPair) {
        let key = keys.public_key().to_z32();
        self.node.peers().add(&key, AddOptions::default()).await.unwrap();
    }

    pub async fn set_policy(&self, keys: &KeyPair, policy: Policy) {
        let update = PeerUpdate { policy: Some(Some(policy)), ..PeerUpdate::default() };
        self.node.peers().update(&keys.public_key(), update).await.unwrap();
    }

    /// Every outgoing transfer, the newest first.
    pub fn outgoing(&self) -> Vec<TransferInfo> {
        let filter = Filter {
            direction: Some(Direction::Outgoing),
            limit: Some(10_000),
            ..Filter::default()
        };
        self.node.transfers().list(&filter).unwrap()
    }

    pub fn transfer(&self, id: &str) -> Transfer {
        self.node.transfers().get(id).unwrap().unwrap()
    }

    /// An approved peer connects.
    pub async fn connect(&self, keys: &KeyPair) -> Friend {
        self.connect_as(keys, &json!({"version": 1})).await
    }

    pub async fn connect_as(&self, keys: &KeyPair, hello: &Value) -> Friend {
        self.node.connections().unwrap().announced().await;
        let connection = soon(async {
            loop {
                let options =
                    ConnectOptions { key_pair: Some(keys.clone()), ..ConnectOptions::default() };
                if let Ok(connection) = self.dht.connect(&self.key(), options).await {
                    return connection;
                }
            }
        })
        .await;
        let mux = Protomux::new(connection.stream, MuxOptions::default());
        let replicator = Replicator::new();
        replicator.attach(&mux);
        let channel = open(&mux, hello).unwrap();
        soon(channel.opened()).await.unwrap();
        Friend { mux, channel, replicator, pings: 0.into() }
    }

    pub async fn close(self) {
        self.node.close().await;
        self.dht.close().await;
        self.testnet.close().await;
    }
}

/// Opens the channel; `None` when the server has hung up.
pub fn open(mux: &Protomux, hello: &Value) -> Option<Channel> {
    let options = ChannelOptions {
        protocol: "alex/p2p".into(),
        handshake: hello.to_string().into_bytes(),
        ..ChannelOptions::default()
    };
    mux.open(options).ok()
}

/// A peer that is connected.
pub struct Friend {
    pub mux: Protomux,
    pub channel: Channel,
    pub replicator: Replicator,
    pings: std::sync::atomic::AtomicU64,
}

impl Friend {
    pub async fn send(&self, kind: u32, message: Value) {
        // The server may have hung up.
        let _ = self.channel.send(kind, message.to_string().as_bytes()).await;
    }

    pub async fn request(&self, id: &str, book: &str) {
        self.send(0, json!({"id": id, "bookId": book})).await;
    }

    /// The next reply about this request; those about others are dropped.
    pub async fn reply(&self, id: &str) -> Value {
        loop {
            let message = soon(self.channel.recv()).await.expect("the channel is open");
            let reply: Value = serde_json::from_slice(&message.data).unwrap();
            if message.kind == 1 && reply["id"] == id {
                return reply;
            }
        }
    }

    /// Drops all replies that were sent before now.
    pub async fn drain(&self) {
        let id = format!("ping {}", self.pings.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        self.request(&id, "no such book").await;
        self.reply(&id).await;
    }

    /// Asks, and gives the status that the server answers with.
    pub async fn ask(&self, id: &str, book: &str) -> String {
        self.drain().await;
        self.request(id, book).await;
        self.reply(id).await["status"].as_str().unwrap().to_owned()
    }

    /// Asks, and reads on until the answer has this status.
    pub async fn ask_until(&self, id: &str, book: &str, status: &str) -> Value {
        self.request(id, book).await;
        self.until(id, status).await
    }

    pub async fn until(&self, id: &str, status: &str) -> Value {
        loop {
            let reply = self.reply(id).await;
            if reply["status"] == status {
                return reply;
            }
        }
    }

    /// Begins to fetch the core of a book.
    pub fn fetch(&self, tree: &StaticTree) -> Core {
        let core = Core::open(&MemoryStorage::new(), tree.key, OpenOptions::default()).unwrap();
        self.replicator.add(core.clone(), CorePolicy::fetch());
        core
    }

    /// Waits until the book is here.
    pub async fn reads(&self, tree: &StaticTree) {
        let core = self.fetch(tree);
        let whole =
            |state: &alex_p2p::hypercore::CoreChange| state.contiguous_length == tree.length;
        soon(core.subscribe().wait_for(whole)).await.unwrap();
        core.close().await.unwrap();
    }

    /// Asks for the book's blocks and gets none.
    pub async fn cannot_read(&self, tree: &StaticTree) {
        let core = self.fetch(tree);
        // What is answered later shows that the server has had its time.
        self.drain().await;
        self.drain().await;
        assert_eq!(core.state().blocks, 0, "a block that may not be read was sent");
        core.close().await.unwrap();
    }

    /// Waits until the server has ended the connection.
    pub async fn is_hung_up_on(&self) {
        soon(self.mux.closed()).await;
    }
}

/// Bytes that depend on a seed.
pub fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let bytes = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    });
    bytes.take(size).collect()
}
