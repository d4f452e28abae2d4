//! More of everything than anybody needs.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use alex_p2p::crypto::{self, KeyPair, PublicKey};
use alex_p2p::encoding::Writer;
use alex_p2p::hyperdht::{ConnectOptions, HyperDht, Testnet};
use alex_p2p::protomux::{MuxOptions, Protomux};
use alex_p2p::secret_stream::{Handshake, Pattern};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::setup::{Server, eventually};
use crate::wire::{PEER_HANDSHAKE, TARGET, VALUE, attacker, handshake_value, request};

const ATTEMPTS: usize = 10_000;
/// Approved peers that connect meanwhile.
const APPROVED: usize = 8;
const MAX_CONNECT: Duration = Duration::from_secs(2);
const MAX_GROWTH: u64 = 32 << 20;

/// First messages of handshakes, each of a key of its own: all that a stranger can do rightly.
fn knocks(server: &PublicKey, count: usize) -> Vec<Vec<u8>> {
    let target = crypto::hash(&[server.as_bytes()]);
    let mut payload = Writer::new();
    // Version, a UDX stream and a secret stream, no error, an unknown NAT; stream 7.
    payload.uint(1).uint(8 | 16).uint(0).uint(0).uint(1).uint(0).uint(7).uint(0).uint(1);
    let knock = |index: usize| {
        let keys = KeyPair::generate();
        let prologue = crypto::namespace("hyperswarm/dht", 0);
        let mut noise = Handshake::new(Pattern::IK, true, &keys, Some(server), &prologue).unwrap();
        let value = handshake_value(&noise.write(payload.as_slice()).unwrap());
        let mut packet = request(TARGET | VALUE, index as u16);
        packet.uint(PEER_HANDSHAKE).raw(&target).buffer(&value);
        packet.into_vec()
    };
    let threads = 2;
    std::thread::scope(|scope| {
        let parts: Vec<_> = (0..threads)
            .map(|part| {
                let knock = &knock;
                scope.spawn(move || (part..count).step_by(threads).map(knock).collect::<Vec<_>>())
            })
            .collect();
        parts.into_iter().flat_map(|part| part.join().unwrap()).collect()
    })
}

/// The memory of this process, in bytes.
#[cfg(target_os = "linux")]
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[cfg(not(target_os = "linux"))]
fn resident() -> u64 {
    0
}

/// Sends all of `packets`, in turn to each of `to`, several times faster than a server decides on
/// handshakes; `sent` counts.
async fn send_all(packets: Vec<Vec<u8>>, to: Vec<SocketAddr>, sent: watch::Sender<usize>) {
    let socket = attacker().await;
    for (index, packet) in packets.iter().enumerate() {
        socket.send_to(packet, to[index % to.len()]).await.unwrap();
        sent.send_replace(index + 1);
        if index % 16 == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approved_peer_connects_while_ten_thousand_strangers_try() {
    let net = Testnet::start(4).await.unwrap();
    let server = Server::start(&net, 1).await;
    let client = HyperDht::bind(net.options()).unwrap();
    client.bootstrapped().await;
    server.connections.announced().await;
    let packets = knocks(&server.key(), ATTEMPTS);
    // Straight to the server, and through the nodes at which it is announced.
    let mut to: Vec<SocketAddr> = net.nodes().iter().map(HyperDht::local_addr).collect();
    to.push(server.dht.local_addr());
    let before = resident();
    let (sent, mut progress) = watch::channel(0);
    let flood = tokio::spawn(send_all(packets, to, sent));
    // By then the server has decided on all that it decides at once.
    progress.wait_for(|sent| *sent >= ATTEMPTS / 4).await.unwrap();
    let began = Instant::now();
    let mut approved = JoinSet::new();
    for _ in 0..APPROVED {
        let (client, keys, key) = (client.clone(), KeyPair::generate(), server.key());
        server.peers.approve(&keys.public_key()).await.unwrap();
        approved.spawn(async move {
            let options = ConnectOptions { key_pair: Some(keys), ..ConnectOptions::default() };
            let connection = client.connect(&key, options).await.expect("connect");
            (began.elapsed(), Protomux::new(connection.stream, MuxOptions::default()))
        });
    }
    let (mut times, connections): (Vec<Duration>, Vec<Protomux>) =
        approved.join_all().await.into_iter().unzip();
    eventually("all are connected", || server.connections.list().len() == APPROVED).await;
    times.push(began.elapsed());
    times.sort_unstable();
    assert!(!flood.is_finished(), "the flood was over too soon");
    flood.await.unwrap();
    let grown = resident().saturating_sub(before);
    let knocks = server.peers.pending().len();
    println!(
        "connected within {times:?}; {} KiB more; {knocks} knocks are remembered",
        grown >> 10
    );
    assert!(knocks > 0, "nobody knocked");
    assert!(times[APPROVED] < MAX_CONNECT, "an approved peer connected only after {times:?}");
    assert!(grown < MAX_GROWTH, "{grown} bytes more");
    drop(connections);
    client.close().await;
    Server::close_all([server], net).await;
}
