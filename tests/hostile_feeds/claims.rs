//! A peer that says things of a feed which it cannot prove.

use alex_p2p::crypto::{Hash, KeyPair, discovery_key, hash, keyed_hash, namespace};
use alex_p2p::encoding::Writer;
use alex_p2p::events::EventKind;
use alex_p2p::hypercore::Manifest;
use alex_p2p::hypercore::messages::{
    Bitfield, Data, DataUpgrade, Handshake, Message, Node, Range, Request, Sync,
};
use alex_p2p::hypercore::replicator::{Policy as CorePolicy, Replicator};
use alex_p2p::hypercore::{Core, CreateOptions, MemoryStorage};
use alex_p2p::protomux::{Channel, ChannelOptions, Protomux};
use alex_p2p::store::StoreError;
use alex_p2p::transfer::Policy;

use crate::support::{Disk, Server, connect, connect_stranger, event, soon};
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
        let key = Manifest::single(keys.public_key()).key();
        let mux = connect_stranger(server, &keys).await;
        server.catalog.set_feed(keys.public_key(), key).await.unwrap();
        Self::open(keys, mux, key).await
    }

    /// A channel for a core that the server opens, too.
    async fn open(keys: KeyPair, mux: Protomux, key: Hash) -> Self {
        Self::try_open(&keys, &mux, key).await.unwrap()
    }

    /// As [`Liar::open`]; `None` when the server does not.
    async fn try_open(keys: &KeyPair, mux: &Protomux, key: Hash) -> Option<Self> {
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
        soon(channel.opened()).await.ok()?;
        Some(Self { keys: keys.clone(), mux: mux.clone(), channel })
    }

    /// False when the server has ended the connection.
    async fn say(&self, message: Message) -> bool {
        let sent = self.channel.send_bytes(message.kind(), message.encode());
        soon(sent).await.is_ok()
    }

    /// The request for an upgrade that the server sends.
    async fn asked(&self) -> Request {
        soon(async {
            loop {
                let message = self.channel.recv().await.unwrap();
                match Message::decode(message.kind, &message.data).unwrap() {
                    Some(Message::Request(request)) if request.upgrade.is_some() => return request,
                    _ => {}
                }
            }
        })
        .await
    }

    /// Proves a feed of 2^22 entries, of which there is none: its own key has signed the root.
    async fn prove_too_much(&self, manifest: &Manifest) {
        const LENGTH: u64 = 1 << 22;
        assert!(self.claim(0, LENGTH).await);
        let request = self.asked().await;
        let root = Node { index: LENGTH - 1, size: LENGTH, hash: [7; 32] };
        let tree = hash(&[&[2], &root.hash, &root.index.to_le_bytes(), &root.size.to_le_bytes()]);
        let signed = [
            &namespace("hypercore", 0)[..],
            &manifest.key(),
            &tree,
            &LENGTH.to_le_bytes(),
            &0u64.to_le_bytes(),
        ]
        .concat();
        let mut signature = Writer::new();
        signature.uint(1).uint(0).raw(&self.keys.sign(&signed)).uint(0).uint(0);
        let upgrade = DataUpgrade {
            start: 0,
            length: LENGTH,
            nodes: vec![root],
            additional_nodes: Vec::new(),
            signature: Some(signature.into_vec().into()),
        };
        let data = Data {
            request: request.id,
            upgrade: Some(upgrade),
            manifest: Some(manifest.encode().into()),
            ..Data::default()
        };
        assert!(self.say(Message::Data(data)).await);
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
    assert_eq!(server.catalog.of(liar.keys.public_key()).status().unwrap(), None);
}

#[tokio::test]
async fn an_upgrade_to_2_to_the_53_that_is_not_proven_ends_the_connection() {
    let (_disk, server, _friends, friend, _friendship) = victim().await;
    let liar = Liar::connect(&server).await;
    assert!(liar.claim(0, LONGEST).await);
    let request = liar.asked().await;
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
    assert_eq!(server.catalog.of(liar.keys.public_key()).status().unwrap(), None);
}

/// How many cores the server has on disk.
fn stored(server: &Server) -> u64 {
    let count = |c: &rusqlite::Connection| {
        Ok::<_, StoreError>(c.query_row("SELECT count(*) FROM cores", [], |row| row.get(0))?)
    };
    server.database.read(count).unwrap()
}

#[tokio::test]
async fn a_feed_that_is_too_long_is_not_stored_when_a_hello_names_it() {
    let (_disk, server, _friends, friend, _friendship) = victim().await;
    serves(&server, &friend).await;
    let before = stored(&server);
    let liar = Liar::connect(&server).await;
    liar.prove_too_much(&Manifest::single(liar.keys.public_key())).await;
    told_that_it_is_too_long(&server).await;
    assert_eq!(server.catalog.of(liar.keys.public_key()).status().unwrap(), None);
    assert_eq!(stored(&server), before);
}

#[tokio::test]
async fn a_feed_that_is_too_long_is_not_stored_when_another_leads_to_it() {
    let (_disk, server, _friends, friend, _friendship) = victim().await;
    serves(&server, &friend).await;
    let keys = KeyPair::generate();
    let mux = connect_stranger(&server, &keys).await;
    let long = Manifest::single_in(keys.public_key(), [9; 32]);
    let old = Core::create(
        &MemoryStorage::new(),
        CreateOptions {
            manifest: Manifest::single(keys.public_key()),
            writer: Some(keys.clone()),
            compat: false,
        },
    )
    .unwrap();
    let named = alex_p2p::crypto::PublicKey::from_bytes(long.key()).to_z32();
    let added = r#"{"type":"book-added","id":"a","title":"A"}"#.to_owned();
    let moved = format!(r#"{{"type":"feed-moved","key":"{named}"}}"#);
    old.append(vec![added.into(), moved.into()]).await.unwrap();
    let replicator = Replicator::new();
    replicator.attach(&mux);
    replicator.add(old.clone(), CorePolicy::serve());
    server.catalog.set_feed(keys.public_key(), *old.key()).await.unwrap();
    shows(&server, keys.public_key(), |status| status.replayed == 2).await;
    let before = stored(&server);
    // The server rejects a core that it has not heard of, or not looked at, yet.
    let liar = soon(async {
        loop {
            if let Some(liar) = Liar::try_open(&keys, &mux, long.key()).await {
                return liar;
            }
        }
    })
    .await;
    liar.prove_too_much(&long).await;
    told_that_it_is_too_long(&server).await;
    let status = shows(&server, keys.public_key(), |_| true).await;
    assert_eq!((status.length, status.books), (2, 1));
    assert_eq!(stored(&server), before);
}

async fn told_that_it_is_too_long(server: &Server) {
    event(
        &server.events,
        |kind| matches!(kind, EventKind::Status { message, .. } if message.contains("too long")),
    )
    .await;
}
