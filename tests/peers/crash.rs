//! A peer that ends without a goodbye: another process, killed or stopped.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use alex_p2p::hyperdht::{DhtOptions, Testnet};

use crate::setup::{Server, eventually, key};

const VARIABLE: &str = "ALEX_P2P_TEST_PEER";
const CHILD_SEED: u8 = 200;
const SERVER_SEED: u8 = 1;

/// Not a test by itself: the other process. Approves the server and waits to be killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(variable) = std::env::var(VARIABLE) else { return };
    let (seed, bootstrap) = variable.split_once(' ').unwrap();
    let dir = tempfile::tempdir().unwrap();
    let options = DhtOptions {
        bootstrap: vec![bootstrap.parse().unwrap()],
        host: "127.0.0.1".parse().unwrap(),
        port: 0,
        ..DhtOptions::default()
    };
    let server = Server::open(dir.path(), options, seed.parse().unwrap()).await;
    server.peers.approve(&key(SERVER_SEED)).await.unwrap();
    println!("ready");
    std::future::pending().await
}

struct Peer(Child, u8);

impl Peer {
    /// Starts the other process and waits until it approved us.
    fn start(net: &Testnet, seed: u8) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::child", "--nocapture"])
            .env(VARIABLE, format!("{seed} {}", net.bootstrap()[0]))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let peer = Self(child, seed);
        assert!(lines.map_while(Result::ok).any(|line| line.contains("ready")));
        peer
    }

    /// Ends it as `kill -9` does.
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn connected(net: &Testnet, seed: u8) -> (Server, Peer) {
    let server = Server::start(net, SERVER_SEED).await;
    server.peers.approve(&key(seed)).await.unwrap();
    let peer = Peer::start(net, seed);
    wait_online(&server, &peer, true).await;
    (server, peer)
}

async fn wait_online(server: &Server, peer: &Peer, online: bool) {
    let is_online = || server.peers.get(&key(peer.1)).unwrap().is_online;
    eventually(&format!("the peer is online: {online}"), || is_online() == online).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_peer_is_offline_within_20_seconds() {
    let net = Testnet::start(4).await.unwrap();
    let (server, mut peer) = connected(&net, CHILD_SEED).await;
    let began = Instant::now();
    peer.kill();
    wait_online(&server, &peer, false).await;
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    Server::close_all([server], net).await;
}

/// Which of the two keys is greater decides who dials first, and whose connection stays.
async fn restart_after_crash(seed: u8) {
    let net = Testnet::start(4).await.unwrap();
    let (server, mut peer) = connected(&net, seed).await;
    let before = server.connections.get(&key(seed)).unwrap().number;
    peer.kill();
    let _again = Peer::start(&net, seed);
    let began = Instant::now();
    let number = || server.connections.get(&key(seed)).map(|connection| connection.number);
    eventually("there is a new connection", || number().is_some_and(|n| n != before)).await;
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    Server::close_all([server], net).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_with_the_greater_key_comes_back_before_its_old_connection_times_out() {
    restart_after_crash((200..).find(|seed| key(*seed) > key(SERVER_SEED)).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_with_the_lesser_key_comes_back_before_its_old_connection_times_out() {
    restart_after_crash((200..).find(|seed| key(*seed) < key(SERVER_SEED)).unwrap()).await;
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_peer_is_offline_within_20_seconds() {
    let net = Testnet::start(4).await.unwrap();
    let (server, peer) = connected(&net, CHILD_SEED).await;
    let began = Instant::now();
    let stopped = Command::new("kill").args(["-STOP", &peer.0.id().to_string()]).status();
    assert!(stopped.unwrap().success());
    wait_online(&server, &peer, false).await;
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    Server::close_all([server], net).await;
}
