//! Approved peers that misbehave, and more peers than there is room for.

use alex_p2p::crypto::KeyPair;
use alex_p2p::events::{EventKind, Subscription};
use alex_p2p::hyperdht::{ConnectError, ConnectOptions, Connection, HyperDht, Testnet};
use alex_p2p::peers::CONNECTION_LIMIT;
use alex_p2p::protomux::{MuxOptions, Protomux};

use crate::setup::{Server, eventually};

fn pair(n: u8) -> KeyPair {
    KeyPair::from_seed(&[n; 32])
}

/// Connects under a key of its own, as a program that is not ours may.
async fn connect(dht: &HyperDht, n: u8, to: &Server) -> Result<Connection, ConnectError> {
    to.connections.announced().await;
    let options = ConnectOptions { key_pair: Some(pair(n)), ..ConnectOptions::default() };
    dht.connect(&to.key(), options).await
}

async fn reason_of_offline(events: &mut Subscription) -> String {
    loop {
        if let EventKind::PeerOffline { reason, .. } = events.next().await.unwrap().kind {
            return reason;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_sends_nothing_is_never_online_and_dropped() {
    let net = Testnet::start(4).await.unwrap();
    let server = Server::start(&net, 1).await;
    server.peers.approve(&pair(100).public_key()).await.unwrap();
    let dht = HyperDht::bind(net.options()).unwrap();
    let silent = connect(&dht, 100, &server).await.unwrap();
    silent.udx.closed().await;
    assert!(server.connections.list().is_empty());
    assert_eq!(server.peers.list()[0].last_seen_at, None);
    dht.close().await;
    Server::close_all([server], net).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_sends_garbage_is_dropped_with_a_reason() {
    let net = Testnet::start(4).await.unwrap();
    let server = Server::start(&net, 1).await;
    server.peers.approve(&pair(100).public_key()).await.unwrap();
    let mut events = server.events.subscribe(None);
    let dht = HyperDht::bind(net.options()).unwrap();
    let (mut sender, _receiver) = connect(&dht, 100, &server).await.unwrap().stream.split();
    sender.send(&[0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).await.unwrap();
    let reason = reason_of_offline(&mut events).await;
    assert!(reason.contains("violation"), "{reason}");
    assert!(server.connections.list().is_empty());
    dht.close().await;
    Server::close_all([server], net).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_than_the_limit_are_connected() {
    let net = Testnet::start(4).await.unwrap();
    let server = Server::start(&net, 1).await;
    let limit = u8::try_from(CONNECTION_LIMIT).unwrap();
    for n in 100..=100 + limit {
        server.peers.approve(&pair(n).public_key()).await.unwrap();
    }
    let dht = HyperDht::bind(net.options()).unwrap();
    let mut connections = Vec::new();
    for n in 100..100 + limit {
        let connection = connect(&dht, n, &server).await.unwrap();
        connections.push(Protomux::new(connection.stream, MuxOptions::default()));
    }
    eventually("all are connected", || server.connections.list().len() == CONNECTION_LIMIT).await;
    assert!(connect(&dht, 100 + limit, &server).await.is_err());
    assert!(server.peers.pending().is_empty());

    // One goes: there is room again.
    connections.remove(0).close();
    eventually("one is gone", || server.connections.list().len() < CONNECTION_LIMIT).await;
    connect(&dht, 100 + limit, &server).await.unwrap();
    dht.close().await;
    Server::close_all([server], net).await;
}
