//! Multicast on this machine's loopback, on a port that no other test has.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};

use super::*;
use crate::crypto::KeyPair;
use crate::events::Events;
use crate::hyperdht::{DhtOptions, HyperDht};
use crate::identity::Identity;
use crate::store::Database;

const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const PATIENCE: Duration = Duration::from_secs(30);

/// A server without books and without the DHT.
struct Server {
    _dir: tempfile::TempDir,
    database: Database,
    identity: Identity,
    peers: Peers,
    dht: HyperDht,
    connections: Connections,
    lan: Arc<Lan>,
    search: Option<(CancellationToken, tokio::task::JoinHandle<()>)>,
}

impl Server {
    async fn new(seed: u8, mdns_port: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&dir.path().join("p2p.db")).unwrap();
        let identity = Identity::from_key_pair(KeyPair::from_seed(&[seed; 32]));
        let peers =
            Peers::open(&database, identity.public_key(), &Events::in_memory()).await.unwrap();
        let dht = HyperDht::bind(DhtOptions {
            host: Ipv4Addr::LOCALHOST.into(),
            port: 0,
            direct_only: true,
            ..DhtOptions::default()
        })
        .unwrap();
        let connections = Connections::start(&dht, &identity, &peers, Arc::new(|_| {})).unwrap();
        let (key, address) = (identity.public_key(), dht.local_addr());
        let lan = Lan::new(key, address, mdns_port, peers.clone(), connections.clone());
        Self { _dir: dir, database, identity, peers, dht, connections, lan, search: None }
    }

    fn search(&mut self) {
        let cancel = CancellationToken::new();
        let task = tokio::spawn(Arc::clone(&self.lan).run(cancel.clone()));
        self.search = Some((cancel, task));
    }

    async fn leave(&mut self) {
        let (cancel, task) = self.search.take().unwrap();
        cancel.cancel();
        task.await.unwrap();
    }

    fn key(&self) -> PublicKey {
        self.identity.public_key()
    }

    fn is_online(&self, other: &Self) -> bool {
        self.peers.get(&other.key()).is_some_and(|peer| peer.is_online)
    }

    async fn close(mut self) {
        if self.search.is_some() {
            self.leave().await;
        }
        self.connections.close().await;
        self.peers.close().await;
        self.dht.close().await;
        self.database.close();
    }
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A UDP port that is free now.
fn free_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Somebody who says on the network what he likes.
struct Liar {
    socket: UdpSocket,
    to: SocketAddrV4,
}

impl Liar {
    fn new(mdns_port: u16) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket2::SockRef::from(&socket).set_multicast_if_v4(&Ipv4Addr::LOCALHOST).unwrap();
        Self { socket, to: SocketAddrV4::new(GROUP, mdns_port) }
    }

    /// An answer that this key's server is at `address`.
    fn say(&self, key: &PublicKey, address: SocketAddrV4) {
        self.send(&Self::answer(key, address));
    }

    fn send(&self, packet: &[u8]) {
        self.socket.send_to(packet, self.to).unwrap();
    }

    fn answer(key: &PublicKey, address: SocketAddrV4) -> Vec<u8> {
        let instance = format!("{}._alex-p2p._udp.local", key.to_z32());
        let host = format!("{}.local", key.to_z32());
        let srv = [&[0; 4][..], &address.port().to_be_bytes(), &name(&host)].concat();
        let mut packet = [0u16, 0x8400, 0, 4, 0, 0].map(u16::to_be_bytes).concat();
        packet.extend(record("_alex-p2p._udp.local", 12, &name(&instance)));
        packet.extend(record(&instance, 33, &srv));
        packet.extend(record(&instance, 16, &[0]));
        packet.extend(record(&host, 1, &address.ip().octets()));
        packet
    }
}

fn name(text: &str) -> Vec<u8> {
    let mut name = Vec::new();
    for label in text.split('.') {
        name.push(label.len() as u8);
        name.extend(label.bytes());
    }
    name.push(0);
    name
}

fn record(owner: &str, kind: u16, data: &[u8]) -> Vec<u8> {
    let mut record = name(owner);
    record.extend(kind.to_be_bytes());
    record.extend(1u16.to_be_bytes());
    record.extend(4500u32.to_be_bytes());
    record.extend((data.len() as u16).to_be_bytes());
    record.extend(data);
    record
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_approved_each_other_connect_and_others_are_listed() {
    let port = free_port();
    let mut servers =
        [Server::new(1, port).await, Server::new(2, port).await, Server::new(3, port).await];
    let [a, b, c] = &mut servers;
    a.peers.approve(&b.key()).await.unwrap();
    b.peers.approve(&a.key()).await.unwrap();
    for server in [&mut *a, &mut *b, &mut *c] {
        server.search();
    }
    eventually("both are online", || a.is_online(b) && b.is_online(a)).await;
    eventually("the third lists them", || c.peers.discovered().len() == 2).await;
    eventually("the third is listed", || a.peers.discovered().len() == 1).await;
    assert_eq!(a.peers.discovered()[0].source, "lan");
    assert!(a.peers.pending().is_empty() && !a.peers.is_approved(&c.key()));
    eventually("everybody hears itself", || a.lan.status().is_heard && b.lan.status().is_heard)
        .await;
    eventually("two others are there", || a.lan.status().others == 2).await;
    c.leave().await;
    eventually("one left", || a.lan.status().others == 1).await;
    for server in servers {
        server.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lie_about_a_peer_costs_a_failed_try_and_nobody_else_is_taken_for_it() {
    let port = free_port();
    let (mut a, mut b, mut impostor) =
        (Server::new(1, port).await, Server::new(2, port).await, Server::new(3, port).await);
    a.peers.approve(&b.key()).await.unwrap();
    b.peers.approve(&a.key()).await.unwrap();
    impostor.peers.approve(&a.key()).await.unwrap();
    a.search();
    impostor.search();
    eventually("a hears itself", || a.lan.status().is_heard).await;
    // A server that has another key, and a port where nobody answers.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let liar = Liar::new(port);
    for address in [impostor.dht.local_addr(), silent.local_addr().unwrap()] {
        let SocketAddr::V4(address) = address else { unreachable!() };
        liar.say(&b.key(), address);
        let lie = || {
            a.peers
                .get(&b.key())
                .unwrap()
                .addresses
                .iter()
                .any(|known| known.address == address.to_string())
        };
        eventually("the lie arrives", lie).await;
    }
    assert!(!a.is_online(&b) && a.connections.list().is_empty());
    b.search();
    eventually("the real one is online", || a.is_online(&b)).await;
    let there = a.peers.get(&b.key()).unwrap().connection.unwrap().address;
    assert!(
        there == b.dht.local_addr().to_string() || !a.connections.get(&b.key()).unwrap().initiator
    );
    for server in [a, b, impostor] {
        server.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_with_any_bytes_wrong_do_no_harm() {
    let port = free_port();
    let (mut a, mut b) = (Server::new(1, port).await, Server::new(2, port).await);
    a.peers.approve(&b.key()).await.unwrap();
    b.peers.approve(&a.key()).await.unwrap();
    a.search();
    eventually("a hears itself", || a.lan.status().is_heard).await;
    let liar = Liar::new(port);
    let answer = Liar::answer(&b.key(), SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9));
    for round in 0..4000 {
        let mut packet = answer.clone();
        for _ in 0..=round % 3 {
            let index = rand::random_range(0..packet.len());
            packet[index] = rand::random();
        }
        packet.truncate(rand::random_range(packet.len() / 2..=packet.len()));
        liar.send(&packet);
    }
    b.search();
    eventually("the real one is online", || a.is_online(&b) && b.is_online(&a)).await;
    assert_eq!(a.peers.list().len(), 1);
    for server in [a, b] {
        server.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_announcements_is_bounded_and_peers_still_find_each_other() {
    let port = free_port();
    let (mut a, mut b) = (Server::new(1, port).await, Server::new(2, port).await);
    a.peers.approve(&b.key()).await.unwrap();
    b.peers.approve(&a.key()).await.unwrap();
    a.search();
    eventually("a hears itself", || a.lan.status().is_heard).await;
    let liar = Liar::new(port);
    let flood = tokio::task::spawn_blocking(move || {
        for number in 0u32..20_000 {
            let mut bytes = [7; 32];
            bytes[..4].copy_from_slice(&number.to_le_bytes());
            liar.say(&PublicKey::from_bytes(bytes), SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9));
            if number.is_multiple_of(50) {
                // A network of 50,000 packets a second.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    flood.await.unwrap();
    // The bucket for strangers: 64 at once, then one a second.
    assert!(a.peers.discovered().len() <= 64 + 30, "{}", a.peers.discovered().len());
    eventually("the search pauses", || a.lan.status().is_flooded).await;
    b.search();
    eventually("the real one is online", || a.is_online(&b) && b.is_online(&a)).await;
    assert_eq!(a.peers.list().len(), 1);
    for server in [a, b] {
        server.close().await;
    }
}
