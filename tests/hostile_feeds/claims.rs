//! A peer that says things of a feed which it cannot prove.

use alex_p2p::crypto::{KeyPair, discovery_key, keyed_hash, namespace};
use alex_p2p::hypercore::Manifest;
use alex_p2p::hypercore::messages::{Bitfield, Data, DataUpgrade, Handshake, Message, Range, Sync};
use alex_p2p::protomux::{Channel, ChannelOptions, Protomux};
use alex_p2p::transfer::Policy;

use crate::support::{Disk, Server, connect, connect_stranger, soon};
use crate::{assert_flat, book, memory, shows};

/// A peer that has only protomux, and a channel for its own feed that the server opened, too.
struct Liar {
    keys: KeyPair,
    mux: Protomux,
    channel: Channel,
}

impl Liar {
    async fn connect(server: &Server) -> Self {
        let keys = KeyPair::generate();
        let mux = connect_stranger(server, &keys).await;
        let key = Manifest::single(keys.public_key()).key();
        server.catalog.set_feed(keys.public_key(), key).await.unwrap();
        let side = if mux.is_initiator() { 1 } else { 2 };
        let parts: [&[u8]; 2] = [&namespace("hypercore", side), &key];
        let capability = keyed_hash(mux.handshake_hash(), &parts);
        let options = ChannelOptions {
            protocol: "hypercore/alpha".into(),
            id: discovery_key(&key).to_vec(),
            handshake: Handshake { seeks: true, capability }.encode(),
            ..ChannelOptions::default()
        };
        let channel = mux.open(options).unwrap();
        soon(channel.opened()).await.unwrap();
        Self { keys, mux, channel }
    }

    /// False when the server has ended the connection.
    async fn say(&self, message: Message) -> bool {
        let sent = self.channel.send_bytes(message.kind(), message.encode());
        soon(sent).await.is_ok()
    }

    async fn claim(&self, fork: u64, length: u64) -> bool {
        let sync = Sync {
            fork,
            length,
            remote_length: 0,
            can_upgrade: true,
            uploading: true,
            downloading: true,
            has_manifest: true,
            allow_push: false,
        };
        self.say(Message::Sync(sync)).await
    }
}

const LONGEST: u64 = (1 << 53) - 1;

async fn victim() -> (Disk, Server, Disk, Server, (Protomux, Protomux)) {
    let (disk, friends) = (Disk::new(), Disk::new());
    let server = Server::start(&disk, Policy::AutoAccept).await;
    let friend = Server::start(&friends, Policy::AutoAccept).await;
    let friendship = connect(&friend, &server).await;
    (disk, server, friends, friend, friendship)
}

/// Other friends are served, also now.
async fn serves(server: &Server, friend: &Server) {
    friend.catalog.publish((0..100).map(book).collect()).await.unwrap();
    shows(server, friend.key, |status| status.books == 100).await;
}

#[tokio::test]
async fn a_claimed_length_of_2_to_the_53_takes_no_memory() {
    let (_disk, server, _friends, friend, _friendship) = victim().await;
    let liar = Liar::connect(&server).await;
    let before = memory();
    for length in [LONGEST, 1 << 39, LONGEST] {
        assert!(liar.claim(0, length).await);
        assert!(liar.say(Message::Range(Range { drop: false, start: 0, length })).await);
        for step in 0..2000 {
            let start = (length / 2000 * step) & !31;
            liar.say(Message::Range(Range { drop: false, start, length: 7 })).await;
            liar.say(Message::Bitfield(Bitfield { start, words: vec![0x5555_5555; 1024] })).await;
        }
    }
    serves(&server, &friend).await;
    assert_flat(before, 64);
    let status = shows(&server, liar.keys.public_key(), |_| true).await;
    assert_eq!((status.length, status.books), (0, 0));
}

#[tokio::test]
async fn an_upgrade_to_2_to_the_53_that_is_not_proven_ends_the_connection() {
    let (_disk, server, _friends, friend, _friendship) = victim().await;
    let liar = Liar::connect(&server).await;
    assert!(liar.claim(0, LONGEST).await);
    let request = soon(async {
        loop {
            let message = liar.channel.recv().await.unwrap();
            match Message::decode(message.kind, &message.data).unwrap() {
                Some(Message::Request(request)) if request.upgrade.is_some() => return request,
                _ => {}
            }
        }
    })
    .await;
    let manifest = Manifest::single(liar.keys.public_key()).encode();
    let upgrade = DataUpgrade {
        start: 0,
        length: LONGEST,
        nodes: Vec::new(),
        additional_nodes: Vec::new(),
        signature: Some(vec![1; 68].into()),
    };
    let data = Data {
        request: request.id,
        upgrade: Some(upgrade),
        manifest: Some(manifest.into()),
        ..Data::default()
    };
    liar.say(Message::Data(data)).await;
    soon(liar.mux.closed()).await;
    serves(&server, &friend).await;
}

#[tokio::test]
async fn a_fork_that_grows_without_end_takes_no_memory() {
    let (_disk, server, _friends, friend, _friendship) = victim().await;
    let liar = Liar::connect(&server).await;
    let before = memory();
    for fork in 1..30_000 {
        let length = 1 + fork % 1000;
        if !liar.claim(fork * 7, length).await {
            break;
        }
        liar.say(Message::Range(Range { drop: false, start: 0, length })).await;
        if fork % 10 == 0 {
            let start = (fork << 20) & !31;
            liar.say(Message::Bitfield(Bitfield { start, words: vec![1; 1024] })).await;
        }
    }
    serves(&server, &friend).await;
    assert_flat(before, 64);
    let status = shows(&server, liar.keys.public_key(), |_| true).await;
    assert_eq!((status.length, status.books), (0, 0));
}
