//! Announcements, unannouncements and handshakes that are forged, or recorded and sent again.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alex_p2p::crypto::{self, KeyPair, PublicKey};
use alex_p2p::hyperdht::{ConnectOptions, Firewall, HyperDht, Testnet};
use tokio::net::UdpSocket;

use crate::setup::{Server, befriend};
use crate::wire::{
    ANNOUNCE, FIND_PEER, Id, LOOKUP, PEER_HANDSHAKE, Request, Response, Statement, UNANNOUNCE,
    answer, ask, attacker, handshake_value, id_of, is_answered, request,
};
use crate::{persistent_node, wire};

/// What a node says of `target`, with a token.
async fn find(socket: &UdpSocket, node: SocketAddr, target: &Id) -> Response {
    ask(socket, node, FIND_PEER, target, None, None).await.expect("an answer")
}

/// Whether a node knows anybody under `target`, asked in both ways.
async fn knows(socket: &UdpSocket, node: SocketAddr, target: &Id) -> bool {
    let looked_up = ask(socket, node, LOOKUP, target, None, None).await.expect("an answer");
    find(socket, node, target).await.value.is_some() || looked_up.value.is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_announcement_counts_only_from_its_owner_for_this_node_target_and_token() {
    let node = persistent_node();
    node.bootstrapped().await;
    let (socket, address) = (attacker().await, node.local_addr());
    let (keys, other) = (KeyPair::generate(), KeyPair::generate());
    for target in [crypto::hash(&[keys.public_key().as_bytes()]), [7; 32]] {
        let token = find(&socket, address, &target).await.token.expect("a token");
        let good =
            || Statement { keys: &keys, relays: Vec::new(), target, node: id_of(address), token };
        let mut relayed = good().value(ANNOUNCE, &keys);
        relayed[33] = 1; // a relay more than was signed for
        relayed.splice(34..34, [6, 6, 6, 6, 1, 0]);
        let forged = [
            good().value(ANNOUNCE, &other),
            good().value(UNANNOUNCE, &keys),
            Statement { target: [8; 32], ..good() }.value(ANNOUNCE, &keys),
            Statement { node: id_of("127.0.0.1:9".parse().unwrap()), ..good() }
                .value(ANNOUNCE, &keys),
            Statement { token: [9; 32], ..good() }.value(ANNOUNCE, &keys),
            relayed,
        ];
        for (index, value) in forged.iter().enumerate() {
            let answered = is_answered(&socket, address, ANNOUNCE, &target, &token, value).await;
            assert!(!answered, "forgery {index} was answered");
            assert!(!knows(&socket, address, &target).await, "forgery {index} was taken");
        }
        let value = good().value(ANNOUNCE, &keys);
        let answer = ask(&socket, address, ANNOUNCE, &target, Some(&token), Some(&value)).await;
        assert_eq!(answer.map(|answer| answer.error), Some(0));
        assert!(knows(&socket, address, &target).await, "the owner's own was not taken");
    }
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_announcement_is_taken_back_only_by_its_owner() {
    let node = persistent_node();
    node.bootstrapped().await;
    let (socket, address) = (attacker().await, node.local_addr());
    let (keys, other) = (KeyPair::generate(), KeyPair::generate());
    for target in [crypto::hash(&[keys.public_key().as_bytes()]), [7; 32]] {
        let token = find(&socket, address, &target).await.token.expect("a token");
        let of = |keys| Statement { keys, relays: Vec::new(), target, node: id_of(address), token };
        let announced = of(&keys).value(ANNOUNCE, &keys);
        let send = |command, value: Vec<u8>| {
            let socket = &socket;
            async move { is_answered(socket, address, command, &target, &token, &value).await }
        };
        assert!(send(ANNOUNCE, announced.clone()).await);
        let forged = [
            of(&keys).value(UNANNOUNCE, &other),
            // What the owner signed to be announced, sent again as its contrary.
            announced,
            Statement { node: [6; 32], ..of(&keys) }.value(UNANNOUNCE, &keys),
        ];
        for (index, value) in forged.into_iter().enumerate() {
            assert!(!send(UNANNOUNCE, value).await, "forgery {index} was answered");
            assert!(knows(&socket, address, &target).await, "forgery {index} was taken");
        }
        // Somebody takes back what is their own: not that of others under the same target.
        send(UNANNOUNCE, of(&other).value(UNANNOUNCE, &other)).await;
        assert!(knows(&socket, address, &target).await, "another's unannouncement was taken");
        assert!(send(UNANNOUNCE, of(&keys).value(UNANNOUNCE, &keys)).await);
        assert!(!knows(&socket, address, &target).await);
    }
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_announcement_is_worth_nothing_elsewhere() {
    let (node, victim) = (persistent_node(), persistent_node());
    tokio::join!(node.bootstrapped(), victim.bootstrapped());
    let keys = KeyPair::generate();
    let target = crypto::hash(&[keys.public_key().as_bytes()]);
    let owner = attacker().await;
    let address = node.local_addr();
    let token = find(&owner, address, &target).await.token.expect("a token");
    let recorded =
        Statement { keys: &keys, relays: Vec::new(), target, node: id_of(address), token }
            .value(ANNOUNCE, &keys);

    // At another node, with the token of that node as with the recorded one.
    let thief = UdpSocket::bind("127.0.0.2:0").await.expect("bind");
    let other = find(&thief, victim.local_addr(), &target).await.token.expect("a token");
    for token in [token, other] {
        let _ =
            is_answered(&thief, victim.local_addr(), ANNOUNCE, &target, &token, &recorded).await;
        assert!(!knows(&thief, victim.local_addr(), &target).await);
    }
    // At the same node from another host: handshakes would go there.
    let own = find(&thief, address, &target).await.token.expect("a token");
    for token in [token, own] {
        let _ = is_answered(&thief, address, ANNOUNCE, &target, &token, &recorded).await;
        assert!(!knows(&thief, address, &target).await);
    }
    node.close().await;
    victim.close().await;
}

/// A node in the middle that passes everything on between one client and `server`, and keeps the client's
/// handshake.
async fn recorder(server: SocketAddr) -> (SocketAddr, Arc<Mutex<Option<Vec<u8>>>>) {
    let (near, far) = (attacker().await, attacker().await);
    let address = near.local_addr().unwrap();
    let recorded: Arc<Mutex<Option<Vec<u8>>>> = Arc::default();
    let record = Arc::clone(&recorded);
    tokio::spawn(async move {
        let (mut inward, mut outward) = ([0; 4096], [0; 4096]);
        let mut client = None;
        loop {
            tokio::select! {
                Ok((length, from)) = near.recv_from(&mut inward) => {
                    client = Some(from);
                    let request = Request::read(&inward[..length]);
                    if request.is_some_and(|request| !request.is_internal && request.command == PEER_HANDSHAKE) {
                        *record.lock().unwrap() = Some(inward[..length].to_vec());
                    }
                    let _ = far.send_to(&inward[..length], server).await;
                }
                Ok((length, _)) = far.recv_from(&mut outward) => {
                    if let Some(client) = client {
                        let _ = near.send_to(&outward[..length], client).await;
                    }
                }
            }
        }
    });
    (address, recorded)
}

/// Handshakes of so many strangers, enough for a server to forget all that it decided before.
async fn fill_memory(socket: &UdpSocket, server: SocketAddr, key: &PublicKey) {
    let target = crypto::hash(&[key.as_bytes()]);
    for _ in 0..2048u32 {
        let value = handshake_value(&crypto::random::<100>());
        let packet = request(wire::TARGET | wire::VALUE, 1);
        let mut packet = packet;
        packet.uint(PEER_HANDSHAKE).raw(&target).buffer(&value);
        socket.send_to(packet.as_slice(), server).await.expect("send");
        // No faster than a server decides.
        if crypto::random::<1>()[0] < 16 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_handshake_opens_no_second_connection_while_it_is_remembered() {
    let (server_node, client_node) = (persistent_node(), persistent_node());
    let keys = KeyPair::generate();
    let admitted = client_node.key_pair().public_key();
    let admit: Firewall = Arc::new(move |key: &PublicKey, _| *key == admitted);
    let server = server_node.listen(&keys, admit).expect("listen");
    let (middle, recorded) = recorder(server_node.local_addr()).await;
    let options = ConnectOptions { addresses: vec![middle], ..ConnectOptions::default() };
    let connection = client_node.connect(&keys.public_key(), options).await.expect("connect");
    assert_eq!(
        server.accept().await.unwrap().remote_public_key(),
        client_node.key_pair().public_key()
    );

    let recorded = recorded.lock().unwrap().clone().expect("a handshake");
    let thief = attacker().await;
    let tid = u16::from_le_bytes([recorded[2], recorded[3]]);
    for _ in 0..20 {
        thief.send_to(&recorded, server_node.local_addr()).await.expect("send");
        assert!(answer(&thief, tid).await.is_some(), "what was answered is answered again");
    }
    let second = tokio::time::timeout(Duration::from_millis(500), server.accept()).await;
    assert!(second.is_err(), "a recorded handshake became a connection");
    drop(connection);
    client_node.close().await;
    server_node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_handshake_that_was_forgotten_does_not_take_the_peers_place() {
    let net = Testnet::start(4).await.unwrap();
    let (server, friend) = (Server::start(&net, 1).await, Server::start(&net, 2).await);
    server.connections.announced().await;
    // The friend's key, in a node that goes through the one in the middle.
    let (middle, recorded) = recorder(server.dht.local_addr()).await;
    server.peers.approve(&friend.key()).await.unwrap();
    let keys = friend.identity.key_pair().clone();
    let recording = HyperDht::bind(net.options()).unwrap();
    let options = ConnectOptions {
        addresses: vec![middle],
        key_pair: Some(keys),
        ..ConnectOptions::default()
    };
    drop(recording.connect(&server.key(), options).await.expect("connect"));
    let recorded = recorded.lock().unwrap().clone().expect("a handshake");
    recording.close().await;

    befriend(&server, &friend).await;
    server.wait_online(&friend, true).await;
    friend.wait_online(&server, true).await;
    let connection = server.connections.list().remove(0);
    let thief = attacker().await;
    let tid = u16::from_le_bytes([recorded[2], recorded[3]]);
    let replay = async || {
        thief.send_to(&recorded, server.dht.local_addr()).await.expect("send");
        answer(&thief, tid).await
    };
    let remembered = replay().await.expect("what was answered is answered again");
    fill_memory(&thief, server.dht.local_addr(), &server.key()).await;
    // The server decides anew, admits the key, and waits for somebody who knows the secrets of it.
    let mut decided = 0;
    while decided < 5 {
        decided += usize::from(replay().await.is_some_and(|reply| reply != remembered));
    }
    assert!(server.is_online(&friend) && friend.is_online(&server));
    let connections = server.connections.list();
    assert!(connections.len() == 1 && connections[0].number == connection.number);
    assert!(!connection.mux.is_closed());
    Server::close_all([server, friend], net).await;
}
