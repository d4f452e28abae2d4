//! A feed that verifies, and says nonsense.

use alex_p2p::crypto::KeyPair;
use alex_p2p::hypercore::replicator::{Policy as CorePolicy, Replicator};
use alex_p2p::hypercore::{Core, CreateOptions, Manifest, MemoryStorage};
use alex_p2p::transfer::Policy;
use bytes::Bytes;

use crate::support::{Disk, Server, connect, connect_stranger};
use crate::{assert_flat, book, memory, shows};

/// A log of these blocks, signed by `keys`.
async fn feed(keys: &KeyPair, blocks: Vec<Bytes>) -> Core {
    let manifest = Manifest::single(keys.public_key());
    let options = CreateOptions { manifest, writer: Some(keys.clone()), compat: false };
    let core = Core::create(&MemoryStorage::new(), options).unwrap();
    core.append(blocks).await.unwrap();
    core
}

/// Follows `core` as the catalog of `keys`, from a program that has nothing but hypercore.
async fn follow(server: &Server, keys: &KeyPair, core: &Core) -> impl Drop + use<> {
    let mux = connect_stranger(server, keys).await;
    let replicator = Replicator::new();
    replicator.attach(&mux);
    replicator.add(core.clone(), CorePolicy::serve());
    server.catalog.set_feed(keys.public_key(), *core.key()).await.unwrap();
    scopeguard(mux, replicator)
}

/// Keeps a connection until it is dropped.
fn scopeguard(mux: alex_p2p::protomux::Protomux, replicator: Replicator) -> impl Drop {
    struct Held(alex_p2p::protomux::Protomux, #[allow(dead_code)] Replicator);
    impl Drop for Held {
        fn drop(&mut self) {
            self.0.close();
        }
    }
    Held(mux, replicator)
}

fn added(id: &str, title: &str) -> Bytes {
    serde_json::json!({ "type": "book-added", "id": id, "title": title }).to_string().into()
}

fn nonsense() -> Vec<Bytes> {
    let deep = |levels: usize| {
        let (open, shut) = ("[".repeat(levels), "]".repeat(levels));
        Bytes::from(format!(r#"{{"type":"book-added","id":"d","title":"t","x":{open}{shut}}}"#))
    };
    let long = |bytes: usize| added("long", &"x".repeat(bytes));
    vec![
        Bytes::from_static(&[0xff, 0xfe, 0x00, 0x80]),
        Bytes::from_static(b"{\"type\":\"book-added\",\"id\":\"u\",\"title\":\"\xc3\x28\"}"),
        Bytes::from_static(b"not json"),
        Bytes::from_static(b"[1,2,3]"),
        Bytes::new(),
        deep(100),
        deep(1_000_000),
        long(65_536),
        added("", "no id"),
        added(&"i".repeat(513), "a long id"),
        Bytes::from_static(br#"{"type":"book-added","id":"n","title":"t","sizeBytes":1e400}"#),
        Bytes::from_static(br#"{"type":"book-removed","id":7}"#),
    ]
}

#[tokio::test]
async fn entries_that_are_none_are_skipped_and_counted_and_the_others_shown() {
    let (disk, friends) = (Disk::new(), Disk::new());
    let server = Server::start(&disk, Policy::AutoAccept).await;
    let keys = KeyPair::generate();
    let (mut blocks, bad) = (vec![added("a", "The first")], nonsense());
    let wanted = bad.len() as u64;
    for bad in bad {
        blocks.extend([bad, added("a", "The same, again")]);
    }
    blocks.push(added("z", "The last"));
    let length = blocks.len() as u64;
    let core = feed(&keys, blocks).await;
    let _connection = follow(&server, &keys, &core).await;
    let friend = Server::start(&friends, Policy::AutoAccept).await;
    friend.catalog.publish((0..100).map(book).collect()).await.unwrap();
    let _friendship = connect(&friend, &server).await;

    let status = shows(&server, keys.public_key(), |status| status.replayed == length).await;
    assert_eq!((status.books, status.skipped), (2, wanted));
    let theirs = server.catalog.of(keys.public_key());
    assert_eq!(theirs.get("a").unwrap().unwrap().title, "The same, again");
    assert_eq!(theirs.get("z").unwrap().unwrap().title, "The last");
    assert_eq!(shows(&server, friend.key, |status| status.books == 100).await.skipped, 0);
}

/// A block of 64 MiB does not fit a message of the secret stream, so no peer can send one; 64 MiB in blocks
/// that fit can be sent. `HUGE` says how many mebibytes (16 unless set).
#[tokio::test]
async fn entries_of_many_mebibytes_are_skipped_and_take_no_memory_for_long() {
    let (disk, friends) = (Disk::new(), Disk::new());
    let server = Server::start(&disk, Policy::AutoAccept).await;
    let friend = Server::start(&friends, Policy::AutoAccept).await;
    friend.catalog.publish((0..100).map(book).collect()).await.unwrap();
    let keys = KeyPair::generate();
    let huge = Bytes::from(vec![b'['; 1 << 20]);
    let count = std::env::var("HUGE").ok().and_then(|text| text.parse().ok()).unwrap_or(16);
    let core = feed(&keys, vec![huge; count as usize]).await;
    core.append(vec![added("a", "At last")]).await.unwrap();
    let before = memory();
    let _connection = follow(&server, &keys, &core).await;
    let _friendship = connect(&friend, &server).await;
    assert_eq!(shows(&server, friend.key, |status| status.books == 100).await.skipped, 0);
    let status = shows(&server, keys.public_key(), |status| status.replayed == count + 1).await;
    assert_eq!((status.books, status.skipped), (1, count));
    // What is on its way, in both halves of this process.
    assert_flat(before, 96);
}

#[tokio::test]
async fn a_book_described_again_and_again_is_one_book() {
    let disk = Disk::new();
    let server = Server::start(&disk, Policy::AutoAccept).await;
    let keys = KeyPair::generate();
    let blocks = (0..20_000).map(|number| added("a", &format!("Title {number}"))).collect();
    let core = feed(&keys, blocks).await;
    let before = memory();
    let _connection = follow(&server, &keys, &core).await;
    let status = shows(&server, keys.public_key(), |status| status.replayed == 20_000).await;
    assert_eq!((status.books, status.skipped), (1, 0));
    let theirs = server.catalog.of(keys.public_key());
    assert_eq!(theirs.get("a").unwrap().unwrap().title, "Title 19999");
    assert_flat(before, 64);
}
