//! What a hostile network does to a DHT node: garbage, forgeries, floods, lies. It goes on.

#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use alex_p2p::crypto::{self, KeyPair, PublicKey};
use alex_p2p::encoding::Writer;
use alex_p2p::hyperdht::{BootstrapNode, ConnectOptions, DhtOptions, Firewall, HyperDht, Testnet};
use tokio::net::UdpSocket;

use wire::{
    ANNOUNCE, FIND_PEER, INVALID_TOKEN, LOOKUP, TARGET, TOKEN, VALUE, answer, attacker,
    handshake_value, ping, request,
};

mod floods;
mod forgeries;
mod liars;
#[path = "../peers/setup.rs"]
#[allow(dead_code)] // the tests of peers use more of it
mod setup;
mod wire;

async fn assert_alive(socket: &UdpSocket, node: SocketAddr) {
    // A queue that a flood filled may have dropped a ping or two.
    for tid in [60_001, 60_002, 60_003] {
        socket.send_to(&ping(tid), node).await.expect("send");
        if answer(socket, tid).await.is_some() {
            return;
        }
    }
    panic!("the node does not answer pings any more");
}

fn persistent_node() -> HyperDht {
    HyperDht::bind(DhtOptions {
        bootstrap: Vec::new(),
        host: [127, 0, 0, 1].into(),
        port: 0,
        ephemeral: Some(false),
        firewalled: false,
        public_address: Some("127.0.0.1:0".parse().expect("address")),
        ..DhtOptions::default()
    })
    .expect("bind")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_survives_garbage_and_every_command_with_garbage() {
    let node = persistent_node();
    node.bootstrapped().await;
    let socket = attacker().await;
    let address = node.local_addr();
    for length in 0..1500 {
        let garbage: Vec<u8> = (0..length).map(|_| crypto::random::<1>()[0]).collect();
        socket.send_to(&garbage, address).await.expect("send");
        if length % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    assert_alive(&socket, address).await;
    for command in (0..16).chain([250, 1 << 20, u64::MAX]) {
        for flags in 0..32 {
            for length in [0, 1, 6, 33, 200] {
                let mut packet = request(flags, 1);
                if flags & 1 != 0 {
                    packet.raw(&crypto::random::<32>());
                }
                if flags & TOKEN != 0 {
                    packet.raw(&crypto::random::<32>());
                }
                packet.uint(command);
                if flags & TARGET != 0 {
                    packet.raw(&crypto::random::<32>());
                }
                if flags & VALUE != 0 {
                    packet.buffer(&crypto::random::<200>()[..length]);
                }
                socket.send_to(packet.as_slice(), address).await.expect("send");
            }
        }
        assert_alive(&socket, address).await;
    }
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_counts_only_from_whom_we_asked() {
    let (bootstrap, forger) = (attacker().await, attacker().await);
    let SocketAddr::V4(address) = bootstrap.local_addr().expect("address") else { unreachable!() };
    let node = HyperDht::bind(DhtOptions {
        bootstrap: vec![BootstrapNode::from(address)],
        host: [127, 0, 0, 1].into(),
        port: 0,
        ..DhtOptions::default()
    })
    .expect("bind");
    let mut buffer = [0; 1500];
    let (length, from) = bootstrap.recv_from(&mut buffer).await.expect("a query");
    assert!(length > 4 && buffer[0] == 3);
    let tid = u16::from_le_bytes([buffer[2], buffer[3]]);
    let response = |host: [u8; 4]| {
        let mut writer = Writer::new();
        writer.u8(0x13).uint(0).u16(tid).raw(&host).u16(4567);
        writer.into_vec()
    };
    forger.send_to(&response([6, 6, 6, 6]), from).await.expect("send");
    // Pings go the same way as the forged response: once answered, that has been dealt with.
    assert_alive(&forger, from).await;
    assert_eq!(node.status().seen_host, None);
    bootstrap.send_to(&response([1, 2, 3, 4]), from).await.expect("send");
    tokio::time::timeout(Duration::from_secs(5), node.bootstrapped()).await.expect("bootstrapped");
    assert_eq!(node.status().seen_host, Some([1, 2, 3, 4].into()));
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_stored_without_a_token_of_ours() {
    let node = persistent_node();
    node.bootstrapped().await;
    let socket = attacker().await;
    let keys = KeyPair::generate();
    let mut announce = Writer::new();
    announce.uint(1 | 4).raw(keys.public_key().as_bytes()).uint(0).raw(&keys.sign(b"anything"));

    let mut packet = request(TOKEN | TARGET | VALUE, 7);
    packet.raw(&[9; 32]).uint(ANNOUNCE).raw(&[1; 32]).buffer(announce.as_slice());
    socket.send_to(packet.as_slice(), node.local_addr()).await.expect("send");
    let reply = answer(&socket, 7).await.expect("an error");
    assert_eq!(u64::from(reply[1]) & 8, 8, "an error");
    assert_eq!(reply.last(), Some(&INVALID_TOKEN));

    let mut packet = request(TARGET | VALUE, 8);
    packet.uint(ANNOUNCE).raw(&[1; 32]).buffer(announce.as_slice());
    socket.send_to(packet.as_slice(), node.local_addr()).await.expect("send");
    for (tid, command) in [(9, LOOKUP), (10, FIND_PEER)] {
        let lookup = request(TARGET, tid).uint(command).raw(&[1; 32]).as_slice().to_vec();
        socket.send_to(&lookup, node.local_addr()).await.expect("send");
        let reply = answer(&socket, tid).await.expect("an answer");
        assert_eq!(u64::from(reply[1]) & VALUE, 0, "command {command} found something");
    }
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_handshakes_is_bounded_and_the_server_still_reachable() {
    let testnet = Testnet::start(4).await.expect("testnet");
    let server_node = HyperDht::bind(testnet.options()).expect("bind");
    let client_node = HyperDht::bind(testnet.options()).expect("bind");
    let keys = KeyPair::generate();
    let admit: Firewall = Arc::new(|_: &PublicKey, _: SocketAddr| true);
    let server = server_node.listen(&keys, admit).expect("listen");
    server.announced().await;
    let socket = attacker().await;
    let target = crypto::hash(&[keys.public_key().as_bytes()]);
    for round in 0..5000u32 {
        let noise = [crypto::random::<96>().as_slice(), &round.to_le_bytes()].concat();
        let value = handshake_value(&noise);
        let mut packet = request(TARGET | VALUE, round as u16);
        packet.uint(0).raw(&target).buffer(&value);
        socket.send_to(packet.as_slice(), server_node.local_addr()).await.expect("send");
    }
    assert_alive(&socket, server_node.local_addr()).await;
    let connection = client_node.connect(&keys.public_key(), ConnectOptions::default()).await;
    assert_eq!(connection.expect("connect").remote_public_key(), keys.public_key());
    client_node.close().await;
    server_node.close().await;
    testnet.close().await;
}
