//! The DHT by itself: a network of our own nodes on this machine.

#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alex_p2p::crypto::{KeyPair, PublicKey};
use alex_p2p::hyperdht::{
    ConnectError, ConnectOptions, Connection, DhtOptions, Firewall, HyperDht, JoinOptions, Server,
    Testnet,
};

const NODES: usize = 8;

fn admit_all() -> Firewall {
    Arc::new(|_: &PublicKey, _: SocketAddr| true)
}

async fn node(testnet: &Testnet) -> HyperDht {
    let node = HyperDht::bind(testnet.options()).expect("bind");
    node.bootstrapped().await;
    node
}

async fn within<T>(seconds: u64, what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(seconds), future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} took more than {seconds} s"),
    }
}

/// Sends back whatever comes, until the other side ends.
async fn echo(connection: Connection) {
    let (mut sender, mut receiver) = connection.stream.split();
    while let Ok(Some(message)) = receiver.recv().await {
        if sender.send(&message).await.is_err() {
            return;
        }
    }
}

fn echo_all(server: Arc<Server>) {
    tokio::spawn(async move {
        while let Some(connection) = server.accept().await {
            tokio::spawn(echo(connection));
        }
    });
}

/// Sends a message over a new connection and waits for it to come back.
async fn call(connection: Connection, message: &[u8]) {
    let (mut sender, mut receiver) = connection.stream.split();
    sender.send(message).await.expect("send");
    let reply = within(5, "the echo", receiver.recv()).await.expect("receive");
    assert_eq!(reply.as_deref(), Some(message));
    sender.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_a_testnet_become_persistent_and_know_each_other() {
    let testnet = Testnet::start(NODES).await.expect("testnet");
    for (index, node) in testnet.nodes().iter().enumerate() {
        let status = node.status();
        assert!(!status.ephemeral, "node {index}: {status:?}");
        assert_eq!(node.remote_addr(), Some(node.local_addr()), "node {index}");
        assert!(status.nodes > 0, "node {index}: {status:?}");
    }
    testnet.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_on_loopback_finds_out_that_it_is_reachable() {
    let testnet = Testnet::start(NODES).await.expect("testnet");
    let node = node(&testnet).await;
    let status = node.status();
    assert!(status.ephemeral && !status.firewalled, "{status:?}");
    assert_eq!(node.remote_addr(), Some(node.local_addr()));
    node.close().await;
    testnet.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_connections_all_carry_an_echo() {
    let testnet = Testnet::start(NODES).await.expect("testnet");
    let (server_node, client_node) = (node(&testnet).await, node(&testnet).await);
    let keys = KeyPair::generate();
    let server = Arc::new(server_node.listen(&keys, admit_all()).expect("listen"));
    within(5, "announcing", server.announced()).await;
    echo_all(Arc::clone(&server));
    for round in 0..20u8 {
        let connection = client_node
            .connect(&keys.public_key(), ConnectOptions::default())
            .await
            .unwrap_or_else(|error| panic!("connection {round}: {error}"));
        assert_eq!(connection.remote_public_key(), keys.public_key());
        call(connection, &[round; 100]).await;
    }
    server.close().await;
    client_node.close().await;
    server_node.close().await;
    testnet.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_key_gets_no_answer_and_the_firewall_sees_it_once() {
    let testnet = Testnet::start(NODES).await.expect("testnet");
    let (server_node, client_node) = (node(&testnet).await, node(&testnet).await);
    let keys = KeyPair::generate();
    let knocks: Arc<Mutex<Vec<PublicKey>>> = Arc::default();
    let seen = Arc::clone(&knocks);
    let firewall: Firewall = Arc::new(move |key: &PublicKey, _: SocketAddr| {
        seen.lock().expect("lock").push(*key);
        false
    });
    let server = server_node.listen(&keys, firewall).expect("listen");
    within(5, "announcing", server.announced()).await;
    let key = keys.public_key();
    let connecting = client_node.connect(&key, ConnectOptions::default());
    let outcome = within(12, "the refusal", connecting).await;
    assert_eq!(outcome.err(), Some(ConnectError::Unanswered));
    assert_eq!(*knocks.lock().expect("lock"), [client_node.key_pair().public_key()]);
    client_node.close().await;
    server_node.close().await;
    testnet.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_key_is_not_found() {
    let testnet = Testnet::start(NODES).await.expect("testnet");
    let node = node(&testnet).await;
    let stranger = KeyPair::generate().public_key();
    let outcome = within(5, "the search", node.connect(&stranger, ConnectOptions::default())).await;
    assert_eq!(outcome.err(), Some(ConnectError::PeerNotFound));
    node.close().await;
    testnet.close().await;
}

/// A node that knows no network, or nothing where this machine has no such addresses.
fn alone(host: &str) -> Option<HyperDht> {
    let options = DhtOptions {
        bootstrap: Vec::new(),
        host: host.parse().expect("host"),
        port: 0,
        ..DhtOptions::default()
    };
    match HyperDht::bind(options) {
        Ok(node) => Some(node),
        Err(error) => {
            println!("skipped for {host}: {error}");
            None
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_address_needs_no_network() {
    for host in ["127.0.0.1", "::1"] {
        let (Some(server_node), Some(client_node)) = (alone(host), alone(host)) else { continue };
        let keys = KeyPair::generate();
        let server = Arc::new(server_node.listen(&keys, admit_all()).expect("listen"));
        echo_all(Arc::clone(&server));
        let options =
            ConnectOptions { addresses: vec![server_node.local_addr()], ..Default::default() };
        let connection = client_node.connect(&keys.public_key(), options).await;
        call(connection.unwrap_or_else(|error| panic!("{host}: {error}")), b"hello").await;
        client_node.close().await;
        server_node.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_announcement_is_found_until_it_is_taken_back() {
    let testnet = Testnet::start(NODES).await.expect("testnet");
    let (one, other) = (node(&testnet).await, node(&testnet).await);
    let keys = KeyPair::generate();
    let relay = testnet.nodes()[0].local_addr();
    let accepted = one.announce(&[7; 32], &keys, &[relay]).await.expect("announce");
    assert!(accepted >= NODES - 1, "{accepted} nodes took it");
    let found = other.lookup(&[7; 32]).await;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].public_key, keys.public_key());
    assert_eq!(found[0].addresses, [relay]);
    one.unannounce(&[7; 32], &keys).await;
    assert_eq!(other.lookup(&[7; 32]).await, []);
    one.close().await;
    other.close().await;
    testnet.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_find_each_other_on_a_topic() {
    let testnet = Testnet::start(NODES).await.expect("testnet");
    let (one, other) = (node(&testnet).await, node(&testnet).await);
    let keys = KeyPair::generate();
    let server = one.listen(&keys, admit_all()).expect("listen");
    let mut announced =
        one.join(&[9; 32], JoinOptions { announce: Some(keys.clone()), lookup: false });
    within(5, "announcing", announced.flushed()).await;
    let mut topic = other.join(&[9; 32], JoinOptions { announce: None, lookup: true });
    let found = within(5, "finding", topic.next()).await.expect("a peer");
    assert_eq!(found.public_key, keys.public_key());
    assert_eq!(found.addresses, server.addresses());
    announced.close().await;
    assert_eq!(other.lookup(&[9; 32]).await, []);
    topic.close().await;
    one.close().await;
    other.close().await;
    testnet.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_server_is_forgotten_and_its_key_free() {
    let testnet = Testnet::start(NODES).await.expect("testnet");
    let (one, other) = (node(&testnet).await, node(&testnet).await);
    let keys = KeyPair::generate();
    let server = one.listen(&keys, admit_all()).expect("listen");
    within(5, "announcing", server.announced()).await;
    assert!(!other.find_peer(&keys.public_key()).await.is_empty());
    assert!(one.listen(&keys, admit_all()).is_err());
    server.close().await;
    assert!(server.accept().await.is_none());
    assert_eq!(other.find_peer(&keys.public_key()).await, []);
    assert!(one.listen(&keys, admit_all()).is_ok());
    one.close().await;
    one.close().await;
    let outcome = one.connect(&keys.public_key(), ConnectOptions::default()).await;
    assert_eq!(outcome.err(), Some(ConnectError::Closed));
    other.close().await;
    testnet.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_at_a_known_address_is_no_missing_peer() {
    let (server_node, client_node) = (alone("127.0.0.1").unwrap(), alone("127.0.0.1").unwrap());
    let keys = KeyPair::generate();
    let _server = server_node.listen(&keys, Arc::new(|_, _| false)).expect("listen");
    let options =
        || ConnectOptions { addresses: vec![server_node.local_addr()], ..Default::default() };
    let key = keys.public_key();
    let outcome = within(12, "the refusal", client_node.connect(&key, options())).await;
    assert_eq!(outcome.err(), Some(ConnectError::Unanswered));
    let stranger = KeyPair::generate().public_key();
    let outcome = within(12, "the search", client_node.connect(&stranger, options())).await;
    assert_eq!(outcome.err(), Some(ConnectError::PeerNotFound));
    client_node.close().await;
    server_node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_firewall_that_panics_admits_nobody_and_ends_nothing() {
    let (server_node, client_node) = (alone("127.0.0.1").unwrap(), alone("127.0.0.1").unwrap());
    let keys = KeyPair::generate();
    let admitted = client_node.key_pair().public_key();
    let firewall: Firewall = Arc::new(move |key: &PublicKey, _: SocketAddr| {
        assert_eq!(*key, admitted, "this panic is part of a test");
        true
    });
    let _server = server_node.listen(&keys, firewall).expect("listen");
    let options = |key_pair| ConnectOptions {
        addresses: vec![server_node.local_addr()],
        key_pair,
        ..Default::default()
    };
    let key = keys.public_key();
    let other = client_node.connect(&key, options(Some(KeyPair::generate()))).await;
    assert_eq!(other.err(), Some(ConnectError::Unanswered));
    assert!(client_node.connect(&key, options(None)).await.is_ok());
    client_node.close().await;
    server_node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_hears_at_once_that_a_node_closed() {
    let (server_node, client_node) = (alone("127.0.0.1").unwrap(), alone("127.0.0.1").unwrap());
    let keys = KeyPair::generate();
    let server = Arc::new(server_node.listen(&keys, admit_all()).expect("listen"));
    echo_all(Arc::clone(&server));
    let options =
        ConnectOptions { addresses: vec![server_node.local_addr()], ..Default::default() };
    let connection = client_node.connect(&keys.public_key(), options).await.expect("connect");
    let (mut sender, mut receiver) = connection.stream.split();
    sender.send(b"hello").await.expect("send");
    assert!(within(5, "the echo", receiver.recv()).await.expect("receive").is_some());
    server_node.close().await;
    let outcome = within(2, "the goodbye", receiver.recv()).await;
    assert!(!matches!(outcome, Ok(Some(_))), "{outcome:?}");
    client_node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dual_stack_node_uses_the_ipv4_network() {
    let testnet = Testnet::start(NODES).await.expect("testnet");
    let options = DhtOptions { host: "::".parse().expect("host"), ..testnet.options() };
    let Ok(dual) = HyperDht::bind(options) else {
        println!("skipped: no IPv6 on this machine");
        return;
    };
    dual.bootstrapped().await;
    assert_eq!(dual.remote_addr().map(|address| address.port()), Some(dual.local_addr().port()));
    let keys = KeyPair::generate();
    let server = Arc::new(dual.listen(&keys, admit_all()).expect("listen"));
    within(5, "announcing", server.announced()).await;
    echo_all(Arc::clone(&server));
    let client_node = node(&testnet).await;
    let connection = client_node.connect(&keys.public_key(), ConnectOptions::default()).await;
    call(connection.expect("connect"), b"over IPv4").await;
    client_node.close().await;
    dual.close().await;
    testnet.close().await;
}
