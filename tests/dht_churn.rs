//! A DHT of our nodes in this process in which nodes leave without a word and others come: what was
//! announced is found all the same, and what that takes grows slowly with the network.
//!
//! `npm test` takes a network of 200 nodes through a few waves. `npm run test:long` lets it grow from 50 to
//! 200 and takes more of them (`CHURN_SIZES`, `CHURN_WAVES`, `CHURN_LOOKUPS`).

#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use alex_p2p::crypto::{self, KeyPair};
use alex_p2p::hyperdht::{BootstrapNode, DhtOptions, Firewall, HyperDht, Server, fuzzing};
use tokio::task::JoinSet;

/// Servers that are looked for, on nodes of their own that stay.
const SERVERS: usize = 20;
/// The share of all other nodes that one wave replaces: one in so many.
const WAVE: usize = 5;
/// Lookups under way at once.
const AT_ONCE: usize = 10;
/// Nodes that start at once.
const STARTING: usize = 20;
/// Of a hundred lookups, so many have to find the peer.
const ENOUGH: usize = 99;
/// How long one may take and still count.
const PATIENCE: Duration = Duration::from_secs(10);

/// A network that changes.
struct Network {
    /// The first stays, so that others find in.
    nodes: Vec<HyperDht>,
    bootstrap: Vec<BootstrapNode>,
    servers: Vec<(HyperDht, Server)>,
}

/// What came of a number of lookups.
struct Outcome {
    found: usize,
    asked: usize,
    median: Duration,
    slowest: Duration,
    /// Requests that all nodes together sent for one lookup, repetitions included.
    messages: f64,
}

impl Network {
    async fn start() -> Self {
        let first = HyperDht::bind(options(Vec::new(), Some(false))).expect("bind");
        first.bootstrapped().await;
        let std::net::SocketAddr::V4(address) = first.local_addr() else { unreachable!() };
        let bootstrap = vec![BootstrapNode::from(address)];
        Self { nodes: vec![first], bootstrap, servers: Vec::new() }
    }

    /// Adds persistent nodes until there are `size`.
    async fn grow(&mut self, size: usize) {
        while self.nodes.len() < size {
            let mut starting = JoinSet::new();
            for _ in 0..STARTING.min(size - self.nodes.len()) {
                let options = options(self.bootstrap.clone(), Some(false));
                starting.spawn(async move {
                    let node = HyperDht::bind(options).expect("bind");
                    node.bootstrapped().await;
                    node
                });
            }
            self.nodes.extend(starting.join_all().await);
        }
    }

    async fn announce(&mut self) {
        let admit: Firewall = Arc::new(|_, _| true);
        while self.servers.len() < SERVERS {
            let node = HyperDht::bind(options(self.bootstrap.clone(), Some(true))).expect("bind");
            let server = node.listen(&KeyPair::generate(), Arc::clone(&admit)).expect("listen");
            self.servers.push((node, server));
        }
        for (_, server) in &self.servers {
            server.announced().await;
        }
    }

    /// One in [`WAVE`] of the nodes is gone, from one moment to the next, and as many new ones come.
    async fn wave(&mut self) {
        let size = self.nodes.len();
        for _ in 0..size / WAVE {
            let index = 1 + random_below(self.nodes.len() - 1);
            // Nothing is said to anybody: the sockets are closed.
            drop(self.nodes.swap_remove(index));
        }
        self.grow(size).await;
    }

    /// Nodes that know nothing of the servers but their keys look for them.
    async fn look_up(&self, lookups: usize) -> Outcome {
        let mut clients = Vec::new();
        for _ in 0..AT_ONCE {
            let client = HyperDht::bind(options(self.bootstrap.clone(), Some(true))).expect("bind");
            client.bootstrapped().await;
            clients.push(client);
        }
        let keys: Vec<_> = self.servers.iter().map(|(_, server)| server.public_key()).collect();
        let before: u64 = clients.iter().map(fuzzing::requests_sent).sum();
        let mut running = JoinSet::new();
        for (index, client) in clients.iter().enumerate() {
            let (client, keys) = (client.clone(), keys.clone());
            running.spawn(async move {
                let mut times = Vec::new();
                for turn in (index..lookups).step_by(AT_ONCE) {
                    let began = Instant::now();
                    let found = client.find_peer(&keys[turn % keys.len()]);
                    let found = tokio::time::timeout(PATIENCE, found).await;
                    times.push(found.is_ok_and(|nodes| !nodes.is_empty()).then(|| began.elapsed()));
                }
                times
            });
        }
        let times: Vec<Option<Duration>> = running.join_all().await.into_iter().flatten().collect();
        let sent = clients.iter().map(fuzzing::requests_sent).sum::<u64>() - before;
        for client in clients {
            client.close().await;
        }
        let asked = times.len();
        let mut times: Vec<Duration> = times.into_iter().flatten().collect();
        times.sort_unstable();
        Outcome {
            found: times.len(),
            asked,
            median: times.get(times.len() / 2).copied().unwrap_or(PATIENCE),
            slowest: times.last().copied().unwrap_or(PATIENCE),
            messages: sent as f64 / asked as f64,
        }
    }
}

impl Outcome {
    fn report(&self, what: &str) {
        println!(
            "{what}: {} of {} found, median {:.1} ms, slowest {:.1} ms, {:.1} requests each",
            self.found,
            self.asked,
            self.median.as_secs_f64() * 1e3,
            self.slowest.as_secs_f64() * 1e3,
            self.messages,
        );
    }

    fn assert_enough(&self, what: &str) {
        let enough = self.found * 100 >= self.asked * ENOUGH;
        assert!(enough, "{what}: {} of {} were found", self.found, self.asked);
    }
}

fn options(bootstrap: Vec<BootstrapNode>, ephemeral: Option<bool>) -> DhtOptions {
    DhtOptions {
        bootstrap,
        host: IpAddr::V4(Ipv4Addr::LOCALHOST),
        port: 0,
        ephemeral,
        firewalled: false,
        public_address: Some(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)),
        ..DhtOptions::default()
    }
}

fn random_below(limit: usize) -> usize {
    u32::from_le_bytes(crypto::random()) as usize % limit
}

fn number(name: &str, otherwise: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[tokio::test(flavor = "multi_thread")]
async fn lookups_succeed_in_a_network_of_two_hundred_nodes_that_come_and_go() {
    let sizes = std::env::var("CHURN_SIZES").unwrap_or_else(|_| "200".to_owned());
    let waves = number("CHURN_WAVES", 2);
    let lookups = number("CHURN_LOOKUPS", 100);
    let mut network = Network::start().await;
    for size in sizes.split(',').map(|size| size.parse::<usize>().expect("a number of nodes")) {
        let began = Instant::now();
        network.grow(size).await;
        network.announce().await;
        println!("{size} nodes after {:.1} s", began.elapsed().as_secs_f64());
        let calm = network.look_up(lookups).await;
        calm.report(&format!("{size} nodes, calm"));
        calm.assert_enough("without churn");
        // It takes log n steps, each of which asks a few nodes: far less than all.
        assert!(calm.messages < 40.0 + 4.0 * (size as f64).log2(), "{} requests", calm.messages);
        for wave in 1..=waves {
            let began = Instant::now();
            network.wave().await;
            let outcome = network.look_up(lookups).await;
            let what =
                format!("{size} nodes, wave {wave} ({:.1} s)", began.elapsed().as_secs_f64());
            outcome.report(&what);
            outcome.assert_enough(&what);
        }
    }
}
