//! What a relay of ours does for its peers, and what it does not.

#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alex_p2p::crypto::{KeyPair, PublicKey};
use alex_p2p::hyperdht::{
    ConnectOptions, DhtOptions, HyperDht, RelayOptions, RelayServer, RelayStats,
};
use alex_p2p::protomux::{Channel, ChannelOptions, MuxOptions, Protomux};
use alex_p2p::udx::{StreamOptions, Udx, UdxSocket, UdxStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PATIENCE: Duration = Duration::from_secs(30);
const PAIR: u32 = 0;
const UNPAIR: u32 = 1;

fn node() -> HyperDht {
    HyperDht::bind(DhtOptions {
        bootstrap: Vec::new(),
        host: [127, 0, 0, 1].into(),
        port: 0,
        ..DhtOptions::default()
    })
    .expect("a socket")
}

/// A relay, and the node that it listens on.
struct Relay {
    dht: HyperDht,
    keys: KeyPair,
    server: RelayServer,
}

impl Relay {
    fn start(options: RelayOptions) -> Self {
        let (dht, keys) = (node(), KeyPair::generate());
        let server = RelayServer::new(&dht, options);
        let listening =
            dht.listen(&keys, Arc::new(|_: &PublicKey, _: SocketAddr| true)).expect("a server");
        let relay = server.clone();
        tokio::spawn(async move {
            while let Some(connection) = listening.accept().await {
                let mux = Protomux::new(connection.stream, MuxOptions { paused: true });
                relay.attach(&mux);
                mux.start();
                tokio::spawn(async move { mux.closed().await });
            }
        });
        Self { dht, keys, server }
    }

    async fn until(&self, wanted: impl Fn(RelayStats) -> bool) -> RelayStats {
        let waiting = async {
            loop {
                let stats = self.server.stats();
                if wanted(stats) {
                    return stats;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let outcome = tokio::time::timeout(PATIENCE, waiting).await;
        outcome.unwrap_or_else(|_| panic!("the relay stays at {:?}", self.server.stats()))
    }
}

/// A peer that is connected to the relay.
struct Client {
    mux: Protomux,
    channel: Channel,
    _dht: HyperDht,
}

impl Client {
    async fn connect(relay: &Relay) -> Self {
        let dht = node();
        let key = *dht.key_pair().public_key().as_bytes();
        let mux = Self::mux(&dht, relay).await;
        let channel = open(&mux, &key);
        channel.opened().await.expect("the relay opens its channel");
        Self { mux, channel, _dht: dht }
    }

    async fn mux(dht: &HyperDht, relay: &Relay) -> Protomux {
        let options =
            ConnectOptions { addresses: vec![relay.dht.local_addr()], ..Default::default() };
        let key = relay.keys.public_key();
        let connecting = dht.connect(&key, options);
        let connection = tokio::time::timeout(PATIENCE, connecting).await.expect("in time");
        Protomux::new(connection.expect("a connection").stream, MuxOptions::default())
    }

    async fn pair(&self, is_initiator: bool, token: u8, id: u32) {
        let mut message = vec![u8::from(is_initiator)];
        message.extend([token; 32]);
        message.push(0xfe);
        message.extend(id.to_le_bytes());
        message.push(0);
        self.channel.send(PAIR, &message).await.expect("sent");
    }

    /// Waits until the relay says that the pairing of this token is over.
    async fn unpaired(&self, token: u8) {
        let message = tokio::time::timeout(PATIENCE, self.channel.recv()).await.expect("in time");
        let message = message.expect("a message");
        assert_eq!((message.kind, &message.data[1..]), (UNPAIR, &[token; 32][..]));
    }

    /// The relay's stream for ours.
    async fn paired(&self) -> u32 {
        let message = tokio::time::timeout(PATIENCE, self.channel.recv()).await.expect("in time");
        let data = message.expect("a message").data;
        assert_eq!(data.get(33), Some(&0xfe), "a large random id");
        u32::from_le_bytes(data[34..38].try_into().expect("four bytes"))
    }
}

fn open(mux: &Protomux, id: &[u8]) -> Channel {
    let options = ChannelOptions {
        protocol: "blind-relay".into(),
        id: id.to_vec(),
        ..ChannelOptions::default()
    };
    mux.open(options).expect("a channel")
}

/// A stream of its own socket.
fn stream() -> (UdxSocket, UdxStream) {
    let udx = Udx::new();
    let socket = udx.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a socket");
    let stream = udx.create_stream(StreamOptions::default());
    (socket, stream)
}

/// Two streams that are connected over the relay.
async fn relayed(relay: &Relay) -> ([Client; 2], [(UdxSocket, UdxStream); 2]) {
    let clients = [Client::connect(relay).await, Client::connect(relay).await];
    let ends = [stream(), stream()];
    for (index, (client, (_, stream))) in clients.iter().zip(&ends).enumerate() {
        client.pair(index == 1, 7, stream.local_id()).await;
    }
    for (client, (socket, stream)) in clients.iter().zip(&ends) {
        stream.connect(socket, client.paired().await, relay.dht.local_addr());
    }
    (clients, ends)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_peers_with_one_token_get_a_stream_to_each_other() {
    let relay = Relay::start(RelayOptions::default());
    let (_clients, [(_socket_a, mut a), (_socket_b, mut b)]) = relayed(&relay).await;
    a.write_all(b"from a").await.expect("written");
    let mut text = [0; 6];
    let read = tokio::time::timeout(PATIENCE, b.read_exact(&mut text)).await;
    read.expect("in time").expect("read");
    assert_eq!(&text, b"from a");
    let stats = relay.server.stats();
    assert_eq!((stats.pending, stats.active), (0, 1));
    assert!(stats.bytes > 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_goes_over_a_relay_than_its_rate_allows() {
    let rate = 200_000;
    let options = RelayOptions {
        bytes_per_second: NonZeroU32::new(rate).expect("not zero"),
        ..RelayOptions::default()
    };
    let relay = Relay::start(options);
    let (_clients, [(_socket_a, mut a), (_socket_b, mut b)]) = relayed(&relay).await;
    let start = Instant::now();
    tokio::spawn(async move { a.write_all(&vec![1; 8 << 20]).await });
    tokio::spawn(async move { b.read_to_end(&mut Vec::new()).await });
    // What may pass at once is 256 KiB.
    let stats = relay.until(|stats| stats.bytes > 700_000).await;
    let allowed = f64::from(256 << 10) + start.elapsed().as_secs_f64() * f64::from(rate);
    assert!(stats.bytes as f64 <= allowed, "{} of {allowed}", stats.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_has_only_so_many_pairings() {
    let relay = Relay::start(RelayOptions { pairings_per_peer: 2, ..RelayOptions::default() });
    let (client, other) = (Client::connect(&relay).await, Client::connect(&relay).await);
    other.pair(false, 50, 70_000).await;
    for token in 0..10 {
        client.pair(true, token, 70_000).await;
    }
    for token in 0..2 {
        let unpair = [&[0][..], &[token; 32]].concat();
        client.channel.send(UNPAIR, &unpair).await.expect("sent");
    }
    // Messages are taken in order: once there is this pairing, the others were decided on.
    client.pair(true, 50, 70_000).await;
    client.paired().await;
    let stats = relay.server.stats();
    assert_eq!((stats.pending, stats.active), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_side_alone_is_not_paired_and_goes_with_its_connection() {
    let relay = Relay::start(RelayOptions::default());
    let client = Client::connect(&relay).await;
    client.pair(true, 1, 70_000).await;
    client.pair(true, 1, 70_001).await;
    let stats = relay.until(|stats| stats.pending == 1).await;
    assert_eq!(stats.active, 0);
    client.mux.close();
    relay.until(|stats| stats.pending == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_side_is_told_when_the_first_leaves_its_pairing() {
    let relay = Relay::start(RelayOptions::default());
    let ([first, second], _ends) = relayed(&relay).await;
    first.channel.send(UNPAIR, &[&[0][..], &[7; 32]].concat()).await.expect("sent");
    second.unpaired(7).await;
    assert_eq!(relay.server.stats().active, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_side_is_told_when_the_first_leaves_the_relay() {
    let relay = Relay::start(RelayOptions::default());
    let ([first, second], _ends) = relayed(&relay).await;
    first.mux.close();
    second.unpaired(7).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_takes_back_the_pairing_of_another() {
    let relay = Relay::start(RelayOptions::default());
    let (client, other) = (Client::connect(&relay).await, Client::connect(&relay).await);
    client.pair(true, 1, 70_000).await;
    relay.until(|stats| stats.pending == 1).await;
    other.channel.send(UNPAIR, &[&[0][..], &[1; 32]].concat()).await.expect("sent");
    other.pair(false, 2, 70_000).await;
    let stats = relay.until(|stats| stats.pending == 2).await;
    assert_eq!(stats.active, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_under_the_key_of_another_is_refused() {
    let relay = Relay::start(RelayOptions::default());
    let dht = node();
    let mux = Client::mux(&dht, &relay).await;
    let channel = open(&mux, &[7; 32]);
    let opened = tokio::time::timeout(PATIENCE, channel.opened()).await.expect("in time");
    assert!(opened.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_makes_no_sense_ends_the_channel() {
    let relay = Relay::start(RelayOptions::default());
    let client = Client::connect(&relay).await;
    client.pair(true, 1, 70_000).await;
    client.channel.send(PAIR, &[1, 2, 3]).await.expect("sent");
    tokio::time::timeout(PATIENCE, client.channel.closed()).await.expect("in time");
    relay.until(|stats| stats.pending == 0).await;
}
