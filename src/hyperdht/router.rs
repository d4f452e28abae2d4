//! Passing on handshakes and hole punches between peers that do not reach each other yet
//! (`hyperdht` `lib/router.js`).
//!
//! A client asks a node at which the server announced itself; the node passes the request on to the
//! server under the same transaction id, and the server's answer back. Each packet causes one other, which
//! is longer by our id and an address or two at most.

use std::net::SocketAddr;
use std::sync::Arc;

use super::messages::Mode;
use super::messages::handshake::Handshake;
use super::messages::holepunch::Holepunch;
use super::node::Inner;
use super::rpc::message::wire_address;
use super::rpc::{Answer, Incoming};
use crate::sync::lock;

/// Packets passed on for others, a second.
pub(crate) const RELAY_RATE: u32 = 1000;

/// Handles a PEER_HANDSHAKE, as its destination or on its way.
pub(crate) fn on_handshake(inner: &Arc<Inner>, incoming: &Incoming) {
    let Some(target) = incoming.request.target else { return };
    let Some(handshake) =
        incoming.request.value.as_deref().and_then(|value| Handshake::decode(value).ok())
    else {
        return;
    };
    if handshake.noise.is_empty() {
        return;
    }
    if let Some(server) = inner.server(&target) {
        let peer = match handshake.mode {
            Mode::FromClient => None,
            Mode::FromRelay | Mode::FromSecondRelay if handshake.peer_address.is_some() => {
                handshake.peer_address
            }
            _ => return,
        };
        if let Some((socket, noise)) = server.on_handshake(&handshake.noise, peer, incoming) {
            // A punch starts from the socket that the client learns of by this.
            let incoming = Incoming { socket, ..incoming.clone() };
            reply_as_server(inner, &incoming, &handshake, noise);
        }
        return;
    }
    let relay = lock(&inner.store).peer(&target).map(|peer| peer.relay);
    match handshake.mode {
        Mode::FromClient => match relay {
            Some(relay) => {
                let peer_address = Some(wire_address(incoming.from));
                let forward = Handshake {
                    mode: Mode::FromRelay,
                    peer_address,
                    relay_address: None,
                    ..handshake
                };
                pass_on(inner, incoming, forward.encode(), relay);
            }
            // We do not know it: help to find who does.
            None => inner.rpc.answer(incoming, Answer { closer_nodes: true, ..Answer::default() }),
        },
        Mode::FromRelay => {
            let Some(relay) = relay else { return };
            let forward = Handshake {
                mode: Mode::FromSecondRelay,
                relay_address: Some(wire_address(incoming.from)),
                ..handshake
            };
            pass_on(inner, incoming, forward.encode(), relay);
        }
        Mode::FromServer => {
            let Some(client) = handshake.peer_address.filter(|_| relay.is_some()) else { return };
            let reply = Handshake {
                mode: Mode::Reply,
                peer_address: Some(wire_address(incoming.from)),
                relay_address: None,
                ..handshake
            };
            pass_back(inner, incoming, reply.encode(), client.into());
        }
        Mode::FromSecondRelay | Mode::Reply | Mode::Other(_) => {}
    }
}

/// Sends our own server's Noise message back the way the client's came.
fn reply_as_server(inner: &Inner, incoming: &Incoming, handshake: &Handshake, noise: Vec<u8>) {
    let from_server = |peer_address| {
        Handshake {
            mode: Mode::FromServer,
            noise: noise.clone(),
            peer_address,
            relay_address: None,
        }
        .encode()
    };
    match handshake.mode {
        Mode::FromClient => {
            let reply =
                Handshake { mode: Mode::Reply, noise, peer_address: None, relay_address: None };
            let value = Some(reply.encode().into());
            inner.rpc.answer(incoming, Answer { value, ..Answer::default() });
        }
        Mode::FromRelay => {
            inner.rpc.relay(incoming, from_server(handshake.peer_address), incoming.from);
        }
        Mode::FromSecondRelay => {
            let Some(relay) = handshake.relay_address else { return };
            inner.rpc.relay(incoming, from_server(handshake.peer_address), relay.into());
        }
        Mode::FromServer | Mode::Reply | Mode::Other(_) => {}
    }
}

/// Handles a PEER_HOLEPUNCH, as its destination or on its way.
pub(crate) fn on_holepunch(inner: &Arc<Inner>, incoming: &Incoming) {
    let Some(target) = incoming.request.target else { return };
    let Some(message) =
        incoming.request.value.as_deref().and_then(|value| Holepunch::decode(value).ok())
    else {
        return;
    };
    // Only for servers that are announced here: nobody else's packets go anywhere through us.
    let relay = lock(&inner.store).peer(&target).map(|peer| peer.relay);
    match message.mode {
        Mode::FromClient => {
            let Some(relay) = relay else { return };
            // The client learned the server's address from the handshake's reply: the server may
            // answer from another socket than it announced itself with.
            let server = message.peer_address.map_or(relay, SocketAddr::from);
            let peer_address = Some(wire_address(incoming.from));
            let forward = Holepunch { mode: Mode::FromRelay, peer_address, ..message };
            pass_on(inner, incoming, forward.encode(), server);
        }
        Mode::FromRelay => {
            let (Some(server), Some(peer)) = (inner.server(&target), message.peer_address) else {
                return;
            };
            let (server_node, incoming) = (Arc::clone(inner), incoming.clone());
            inner.rpc.spawn(async move {
                let answer =
                    server.on_holepunch(message.id, &message.payload, peer, &incoming).await;
                let Some((socket, payload)) = answer else { return };
                let (mode, peer_address) = (Mode::FromServer, Some(peer));
                let reply = Holepunch { mode, id: 0, payload, peer_address };
                let to = incoming.from;
                server_node.rpc.relay(&Incoming { socket, ..incoming }, reply.encode(), to);
            });
        }
        Mode::FromServer => {
            let Some(client) = message.peer_address.filter(|_| relay.is_some()) else { return };
            let peer_address = Some(wire_address(incoming.from));
            let reply = Holepunch { mode: Mode::Reply, peer_address, ..message };
            pass_back(inner, incoming, reply.encode(), client.into());
        }
        Mode::FromSecondRelay | Mode::Reply | Mode::Other(_) => {}
    }
}

/// Passes a request on, unless its sender has no IPv4 address to be answered at.
fn pass_on(inner: &Inner, incoming: &Incoming, value: Vec<u8>, to: SocketAddr) {
    if !incoming.from.is_ipv4() || to.port() == 0 {
        return;
    }
    if lock(&inner.relay_limit).allow() {
        inner.rpc.relay(incoming, value, to);
    } else {
        tracing::debug!("too many packets to pass on");
    }
}

/// Passes a server's answer back to the client that asked.
fn pass_back(inner: &Inner, incoming: &Incoming, value: Vec<u8>, client: SocketAddr) {
    if client.port() == 0 || !lock(&inner.relay_limit).allow() {
        return;
    }
    let answer = Answer { value: Some(value.into()), ..Answer::default() };
    inner.rpc.answer_to(incoming, client, answer);
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV4;

    use tokio::net::UdpSocket;

    use super::*;
    use crate::crypto::{self, KeyPair};
    use crate::hyperdht::Testnet;
    use crate::hyperdht::messages::commands;
    use crate::hyperdht::messages::records::Announce;
    use crate::hyperdht::rpc::address_validation::MAX_AMPLIFICATION;
    use crate::hyperdht::rpc::message::Request;

    async fn socket() -> (UdpSocket, SocketAddrV4) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let SocketAddr::V4(address) = socket.local_addr().unwrap() else { panic!("not IPv4") };
        (socket, address)
    }

    /// Under the name of another, and with any other named in it: nobody gets more than that by it.
    #[tokio::test]
    async fn what_is_passed_on_is_at_most_four_times_as_long() {
        let testnet = Testnet::start(1).await.unwrap();
        let node = &testnet.nodes()[0];
        let SocketAddr::V4(to) = node.local_addr() else { panic!("not IPv4") };
        let ((asking, _), (server, relay), (third, peer)) =
            (socket().await, socket().await, socket().await);
        let keys = KeyPair::generate();
        let target = crypto::hash(&[keys.public_key().as_bytes()]);
        let (id, token, kind) = ([1; 32], [2; 32], commands::ANNOUNCE);
        let announce = Announce::signed(kind, &keys, Vec::new(), &target, &id, &token).encode();
        lock(&node.inner().store).announce(relay.into(), &target, &id, &token, &announce);

        let handshake = |mode| {
            let peer_address = Some(peer).filter(|_| mode != Mode::FromClient);
            let handshake = Handshake { mode, noise: vec![1], peer_address, relay_address: None };
            (commands::PEER_HANDSHAKE, handshake.encode())
        };
        let holepunch = |mode| {
            let peer_address = Some(peer);
            let holepunch = Holepunch { mode, id: 0, payload: Vec::new(), peer_address };
            (commands::PEER_HOLEPUNCH, holepunch.encode())
        };
        let cases = [
            (handshake(Mode::FromClient), &server),
            (handshake(Mode::FromRelay), &server),
            (handshake(Mode::FromServer), &third),
            (holepunch(Mode::FromClient), &third),
            (holepunch(Mode::FromServer), &third),
        ];
        for ((command, value), receiver) in cases {
            let (target, value) = (Some(target), Some(value.into()));
            let (id, token, internal) = (None, None, false);
            let request = Request { tid: 1, to, id, token, internal, command, target, value };
            let sent = asking.send_to(&request.encode(), to).await.unwrap();
            let received = receiver.recv(&mut [0; 2048]).await.unwrap();
            assert!(received <= MAX_AMPLIFICATION * sent, "{received} for {sent}: {request:?}");
        }
        testnet.close().await;
    }
}
