//! Peers over a real DHT in this process: approving, presence, reconnecting, crashes.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Tests.

mod addresses;
mod crash;
mod hostile;
mod setup;
mod silence;

use std::time::{Duration, Instant};

use alex_p2p::discovery::{Discovery, DiscoveryOptions, Parts};
use alex_p2p::error::ErrorCode;
use alex_p2p::events::EventKind;
use alex_p2p::hyperdht::Testnet;
use alex_p2p::peers::{ConnectionEvent, PeerStatus};

use setup::{Server, befriend, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_that_approve_each_other_are_online() {
    let net = Testnet::start(4).await.unwrap();
    let (a, b) = (Server::start(&net, 1).await, Server::start(&net, 2).await);
    let mut events = a.events.subscribe(None);
    befriend(&a, &b).await;
    a.wait_online(&b, true).await;
    b.wait_online(&a, true).await;
    let peer = a.peers.get(&b.key()).unwrap();
    assert!(peer.problem.is_none() && peer.last_seen_at.is_some());
    assert!(peer.connection.unwrap().address.starts_with("127.0.0.1:"));
    loop {
        if let EventKind::PeerOnline { peer, .. } = events.next().await.unwrap().kind {
            break assert_eq!(peer, b.key().to_z32());
        }
    }
    a.close().await;
    b.wait_online(&a, false).await;
    b.close().await;
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_approval_on_one_side_is_a_knock_on_the_other_until_that_approves() {
    let net = Testnet::start(4).await.unwrap();
    let (a, b) = (Server::start(&net, 1).await, Server::start(&net, 2).await);
    a.peers.approve(&b.key()).await.unwrap();
    eventually("the knock is listed", || b.peers.pending().len() == 1).await;
    assert_eq!(b.peers.pending()[0].key, a.key().to_z32());
    assert_eq!(b.peers.get(&a.key()).unwrap().status, PeerStatus::Pending);
    assert!(!b.is_online(&a) && !a.is_online(&b));
    // Before the other server is announced, it is offline.
    let code = || a.connections.unavailable(&b.key()).code;
    eventually("the dialer says why", || code() == ErrorCode::NotApproved).await;

    let approved = Instant::now();
    b.peers.approve(&a.key()).await.unwrap();
    a.wait_online(&b, true).await;
    assert!(approved.elapsed() < Duration::from_secs(3), "{:?}", approved.elapsed());
    assert!(b.peers.pending().is_empty());
    Server::close_all([a, b], net).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocking_ends_the_connection_and_refuses_the_next() {
    let net = Testnet::start(4).await.unwrap();
    let (a, b) = (Server::start(&net, 1).await, Server::start(&net, 2).await);
    befriend(&a, &b).await;
    a.wait_online(&b, true).await;
    a.peers.block(&b.key()).await.unwrap();
    b.wait_online(&a, false).await;
    eventually("the blocked peer is gone", || a.connections.get(&b.key()).is_none()).await;
    eventually("the blocked peer is refused", || b.peers.get(&a.key()).unwrap().problem.is_some())
        .await;
    assert!(a.peers.pending().is_empty() && !a.is_online(&b));

    a.peers.approve(&b.key()).await.unwrap();
    a.wait_online(&b, true).await;
    b.peers.remove(&a.key()).await.unwrap();
    a.wait_online(&b, false).await;
    Server::close_all([a, b], net).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn either_side_comes_back_with_its_key_after_a_restart() {
    let net = Testnet::start(4).await.unwrap();
    let (mut a, mut b) = (Server::start(&net, 1).await, Server::start(&net, 2).await);
    befriend(&a, &b).await;
    a.wait_online(&b, true).await;
    for _ in 0..2 {
        b = b.restart(&net).await;
        a.wait_online(&b, true).await;
        b.wait_online(&a, true).await;
        a = a.restart(&net).await;
        b.wait_online(&a, true).await;
        a.wait_online(&b, true).await;
    }
    Server::close_all([a, b], net).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_dial_at_once_and_one_and_the_same_connection_is_left() {
    let net = Testnet::start(4).await.unwrap();
    for round in 0..6 {
        let a = Server::start(&net, 10 + round).await;
        let b = Server::start(&net, 20 + round).await;
        let mut at_a_events = a.events.subscribe(None);
        let mut at_b_events = b.events.subscribe(None);
        befriend(&a, &b).await;
        a.wait_online(&b, true).await;
        b.wait_online(&a, true).await;
        // The second dial is decided within a second.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let at_a = a.connections.get(&b.key()).unwrap();
        let at_b = b.connections.get(&a.key()).unwrap();
        assert_eq!(at_a.mux.handshake_hash(), at_b.mux.handshake_hash());
        assert_eq!((a.connections.list().len(), b.connections.list().len()), (1, 1));
        // Neither side was ever without the other.
        for events in [&mut at_a_events, &mut at_b_events] {
            while let Some(event) = events.try_next() {
                assert!(!matches!(event.kind, EventKind::PeerOffline { .. }), "{event:?}");
            }
        }
        a.close().await;
        b.close().await;
    }
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_get_what_is_live_and_then_each_change() {
    let net = Testnet::start(4).await.unwrap();
    let (a, b) = (Server::start(&net, 1).await, Server::start(&net, 2).await);
    let mut early = a.connections.subscribe();
    befriend(&a, &b).await;
    a.wait_online(&b, true).await;
    let mut late = a.connections.subscribe();
    for events in [&mut early, &mut late] {
        let Some(ConnectionEvent::Up(up)) = events.next().await else { panic!("not up") };
        assert_eq!(up.key, b.key());
    }
    a.peers.block(&b.key()).await.unwrap();
    // A second connection, dialed by the other side, may have taken over before.
    let reason = loop {
        match late.next().await.unwrap() {
            ConnectionEvent::Down { reason, .. } if reason.contains("replaced") => {}
            ConnectionEvent::Down { key, reason } if key == b.key() => break reason,
            event => assert!(matches!(event, ConnectionEvent::Up(_))),
        }
    };
    assert!(reason.contains("not approved"), "{reason}");
    Server::close_all([a, b], net).await;
    assert!(late.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_not_there_is_offline_and_says_so() {
    let net = Testnet::start(4).await.unwrap();
    let a = Server::start(&net, 1).await;
    let nobody = setup::key(99);
    a.peers.approve(&nobody).await.unwrap();
    eventually("the dialer says why", || a.peers.get(&nobody).unwrap().problem.is_some()).await;
    assert_eq!(a.connections.unavailable(&nobody).code, ErrorCode::PeerOffline);
    assert_eq!(a.connections.unavailable(&setup::key(98)).code, ErrorCode::NotFound);
    a.close().await;
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_on_the_topic_are_listed_and_not_added() {
    let net = Testnet::start(4).await.unwrap();
    let (a, b) = (Server::start(&net, 1).await, Server::start(&net, 2).await);
    let options = DiscoveryOptions { topic: true, ..DiscoveryOptions::default() };
    let parts = |s: &Server| Parts {
        dht: s.dht.clone(),
        bootstrap: net.bootstrap(),
        identity: s.identity.clone(),
        peers: s.peers.clone(),
        connections: s.connections.clone(),
        database: s.database.clone(),
    };
    let on_topic = |s: &Server| Discovery::start(&parts(s), options);
    let (at_a, at_b) = (on_topic(&a), on_topic(&b));
    eventually("one of them finds the other", || {
        !a.peers.discovered().is_empty() || !b.peers.discovered().is_empty()
    })
    .await;
    assert!(a.peers.list().is_empty() && b.peers.list().is_empty());
    assert!(!a.is_online(&b));
    at_a.close().await;
    at_b.close().await;
    Server::close_all([a, b], net).await;
}
