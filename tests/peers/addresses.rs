//! Peers that are dialed where they are said to be, or were, with and without a DHT.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use alex_p2p::error::ErrorCode;
use alex_p2p::hyperdht::PathKind;
use alex_p2p::hyperdht::{HyperDht, Testnet};
use alex_p2p::peers::{AddOptions, AddressSource, PeerUpdate};

use crate::setup::{Server, alone, eventually, key};

fn at(address: SocketAddr) -> AddOptions {
    AddOptions { address: Some(address.to_string()), ..AddOptions::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_given_address_needs_no_dht_and_neither_does_the_one_where_a_peer_was_reached() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let a = Server::open(dirs[0].path(), alone(), 1).await;
    let b = Server::open(dirs[1].path(), alone(), 2).await;
    let address = b.dht.local_addr();
    a.peers.add(&b.key().to_z32(), AddOptions::default()).await.unwrap();
    b.peers.add(&a.key().to_z32(), AddOptions::default()).await.unwrap();
    let code = || a.connections.unavailable(&b.key()).code;
    eventually("nobody knows where the other is", || code() == ErrorCode::PeerOffline).await;
    assert!(!a.is_online(&b));

    let update = PeerUpdate { address: Some(Some(address.to_string())), ..PeerUpdate::default() };
    let given = Instant::now();
    a.peers.update(&b.key(), update).await.unwrap();
    a.wait_online(&b, true).await;
    b.wait_online(&a, true).await;
    assert!(given.elapsed() < Duration::from_secs(3), "{:?}", given.elapsed());
    let connection = a.peers.get(&b.key()).unwrap().connection.unwrap();
    assert_eq!((connection.path, connection.address), (PathKind::Lan, address.to_string()));

    let update = PeerUpdate { address: Some(None), ..PeerUpdate::default() };
    a.peers.update(&b.key(), update).await.unwrap();
    a.close().await;
    b.wait_online(&a, false).await;
    let a = Server::open(dirs[0].path(), alone(), 1).await;
    let known = a.peers.get(&b.key()).unwrap().addresses;
    assert_eq!((known[0].source, known.len()), (AddressSource::Reached, 1));
    a.wait_online(&b, true).await;
    a.close().await;
    b.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_is_none_is_refused_and_the_wrong_servers_address_is_no_way_in() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let a = Server::open(dirs[0].path(), alone(), 1).await;
    let other = Server::open(dirs[1].path(), alone(), 2).await;
    other.peers.approve(&a.key()).await.unwrap();
    let nonsense = AddOptions { address: Some("nowhere".into()), ..AddOptions::default() };
    let error = a.peers.add(&key(9).to_z32(), nonsense).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
    assert!(a.peers.list().is_empty());

    a.peers.add(&key(9).to_z32(), at(other.dht.local_addr())).await.unwrap();
    eventually("it is not there", || a.peers.get(&key(9)).unwrap().problem.is_some()).await;
    assert!(a.connections.list().is_empty() && other.connections.list().is_empty());
    a.close().await;
    other.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_knock_at_a_given_address_is_told_from_an_absent_peer() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let a = Server::open(dirs[0].path(), alone(), 1).await;
    let b = Server::open(dirs[1].path(), alone(), 2).await;
    a.peers.add(&b.key().to_z32(), at(b.dht.local_addr())).await.unwrap();
    eventually("the knock is listed", || b.peers.pending().len() == 1).await;
    let code = || a.connections.unavailable(&b.key()).code;
    eventually("the dialer says why", || code() == ErrorCode::NotApproved).await;
    a.close().await;
    b.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_addresses_do_not_hold_up_the_network() {
    let net = Testnet::start(4).await.unwrap();
    let a = Server::start(&net, 1).await;
    // A server that dials nobody, so that only the dial of `a` counts.
    let keys = alex_p2p::crypto::KeyPair::from_seed(&[2; 32]);
    let node = HyperDht::bind(net.options()).unwrap();
    node.bootstrapped().await;
    let server = node.listen(&keys, Arc::new(|_, _| true)).unwrap();
    server.announced().await;

    let sockets: Vec<UdpSocket> = (0..5).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    let silent: Vec<SocketAddr> = sockets.iter().map(|s| s.local_addr().unwrap()).collect();
    a.peers.found(key(2), AddressSource::Lan, &silent[..4]);
    let added = Instant::now();
    a.peers.add(&key(2).to_z32(), at(silent[4])).await.unwrap();
    eventually("it is online", || a.peers.get(&key(2)).unwrap().is_online).await;
    // Each of the wrong ones is given up after 4 s.
    assert!(added.elapsed() < Duration::from_secs(1), "{:?}", added.elapsed());
    assert_eq!(a.peers.get(&key(2)).unwrap().addresses.len(), 6);
    node.close().await;
    a.close().await;
    net.close().await;
}
