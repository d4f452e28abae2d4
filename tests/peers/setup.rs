//! A server without books: identity, database, DHT node, peers, connections.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alex_p2p::crypto::{KeyPair, PublicKey};
use alex_p2p::events::Events;
use alex_p2p::hyperdht::{DhtOptions, HyperDht, Testnet};
use alex_p2p::identity::Identity;
use alex_p2p::peers::{AddOptions, Connections, Peers};
use alex_p2p::store::Database;

/// Longer than anything here may take; a crash takes up to 20 s to be seen.
const LIMIT: Duration = Duration::from_secs(40);

pub struct Server {
    seed: u8,
    dir: Option<tempfile::TempDir>,
    pub database: Database,
    pub identity: Identity,
    pub events: Events,
    pub peers: Peers,
    pub dht: HyperDht,
    pub connections: Connections,
}

pub fn key(seed: u8) -> PublicKey {
    KeyPair::from_seed(&[seed; 32]).public_key()
}

impl Server {
    /// A server with the key of this seed and nobody on its list.
    pub async fn start(net: &Testnet, seed: u8) -> Self {
        // Once a process; RUST_LOG says what to show.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let dir = tempfile::tempdir().unwrap();
        let mut server = Self::open(dir.path(), net.options(), seed).await;
        server.dir = Some(dir);
        server
    }

    pub async fn open(dir: &Path, options: DhtOptions, seed: u8) -> Self {
        let database = Database::open(&dir.join("p2p.db")).unwrap();
        let identity = Identity::from_key_pair(KeyPair::from_seed(&[seed; 32]));
        let events = Events::open(&database).await.unwrap();
        let peers = Peers::open(&database, identity.public_key(), &events).await.unwrap();
        let dht = HyperDht::bind(options).unwrap();
        let connections = Connections::start(&dht, &identity, &peers, Arc::new(|_| {})).unwrap();
        Self { seed, dir: None, database, identity, events, peers, dht, connections }
    }

    pub fn key(&self) -> PublicKey {
        self.identity.public_key()
    }

    pub fn is_online(&self, other: &Self) -> bool {
        self.peers.get(&other.key()).is_some_and(|peer| peer.is_online)
    }

    pub async fn wait_online(&self, other: &Self, online: bool) {
        let what = format!("{} sees {} online: {online}", self.seed, other.seed);
        eventually(&what, || self.is_online(other) == online).await;
    }

    pub async fn close(&self) {
        self.connections.close().await;
        self.peers.close().await;
        self.dht.close().await;
        self.database.close();
    }

    pub async fn close_all<const N: usize>(servers: [Self; N], net: Testnet) {
        for server in servers {
            server.close().await;
        }
        net.close().await;
    }

    /// Closes it and opens it again over the same database, on another port.
    pub async fn restart(mut self, net: &Testnet) -> Self {
        self.close().await;
        let dir = self.dir.take().unwrap();
        let mut server = Self::open(dir.path(), net.options(), self.seed).await;
        server.dir = Some(dir);
        server
    }
}

/// Each approves the other by its invite link.
pub async fn befriend(a: &Server, b: &Server) {
    let (link_a, link_b) = (a.identity.invite_link(None), b.identity.invite_link(Some("B")));
    let (at_a, at_b) = tokio::join!(
        a.peers.add(&link_b, AddOptions::default()),
        b.peers.add(&link_a, AddOptions::default())
    );
    assert_eq!(at_a.unwrap().nickname.as_deref(), Some("B"));
    at_b.unwrap();
}

/// Waits until `holds`, and fails the test when it never does.
pub async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// On this machine, with no network to ask.
pub fn alone() -> DhtOptions {
    DhtOptions {
        direct_only: true,
        bootstrap: Vec::new(),
        host: [127, 0, 0, 1].into(),
        port: 0,
        ..DhtOptions::default()
    }
}
