//! A peer's feed that was cut and written differently: its catalog here becomes the new one.

use alex_p2p::catalog::{Book, BookEntry, ListOptions};
use alex_p2p::crypto::KeyPair;
use alex_p2p::events::EventKind;
use alex_p2p::hypercore::replicator::{Policy as Serving, Replicator};
use alex_p2p::hypercore::{Core, CreateOptions, Manifest, MemoryStorage, OpenOptions};
use alex_p2p::protomux::Protomux;
use alex_p2p::store::StoreError;
use alex_p2p::transfer::Policy;
use bytes::Bytes;

use crate::support::{Disk, Server, connect_stranger, event, soon};

/// A feed that is written by hand.
struct Writer {
    keys: KeyPair,
    core: Core,
    replicator: Replicator,
}

impl Writer {
    fn new() -> Self {
        let keys = KeyPair::generate();
        let manifest = Manifest::single(keys.public_key());
        let options = CreateOptions { manifest, writer: Some(keys.clone()), compat: false };
        let core = Core::create(&MemoryStorage::new(), options).unwrap();
        let replicator = Replicator::new();
        replicator.add(core.clone(), Serving::serve());
        Self { keys, core, replicator }
    }

    async fn add(&self, ids: std::ops::Range<u32>) {
        let entry = |id| {
            format!(r#"{{"type":"book-added","id":"b{id}","title":"Book {id}","sizeBytes":1}}"#)
        };
        self.core.append(ids.map(|id| Bytes::from(entry(id))).collect()).await.unwrap();
    }

    async fn follow(&self, server: &Server) -> Protomux {
        let (peer, key) = (self.keys.public_key(), *self.core.key());
        server.catalog.set_feed(peer, key).await.unwrap();
        let mux = connect_stranger(server, &self.keys).await;
        self.replicator.attach(&mux);
        mux
    }

    /// What the server shows of this feed, once it has replayed `length` entries and `books` are left.
    async fn shown(&self, server: &Server, length: u64, books: u64) -> Vec<String> {
        let (peer, catalog) = (self.keys.public_key(), server.catalog.of(self.keys.public_key()));
        let is_there = || catalog.status().unwrap().is_some_and(|status| status.books == books);
        event(&server.events, |kind| {
            matches!(kind, EventKind::CatalogUpdated { peer: whose, length: now }
                if *whose == peer.to_z32() && *now == length)
                && is_there()
        })
        .await;
        self.titles(server)
    }

    fn titles(&self, server: &Server) -> Vec<String> {
        let options = ListOptions { limit: Some(1000), ..ListOptions::default() };
        let page = server.catalog.of(self.keys.public_key()).list(&options).unwrap();
        let mut titles: Vec<_> = page.books.into_iter().map(|book| book.title).collect();
        titles.sort_unstable();
        titles
    }
}

fn titles(ids: impl Iterator<Item = u32>) -> Vec<String> {
    let mut titles: Vec<_> = ids.map(|id| format!("Book {id}")).collect();
    titles.sort_unstable();
    titles
}

#[tokio::test]
async fn a_catalog_whose_feed_was_cut_shows_what_the_new_fork_says() {
    let disk = Disk::new();
    let server = Server::start(&disk, Policy::AutoAccept).await;
    let writer = Writer::new();
    writer.add(0..300).await;
    let mux = writer.follow(&server).await;
    assert_eq!(writer.shown(&server, 300, 300).await, titles(0..300));

    writer.core.truncate(200, None).await.unwrap();
    writer.add(1000..1050).await;
    assert_eq!(writer.shown(&server, 250, 250).await, titles((0..200).chain(1000..1050)));
    // As long as before, and all of it different.
    writer.core.truncate(0, None).await.unwrap();
    writer.add(2000..2250).await;
    let all = titles(2000..2250);
    while writer.shown(&server, 250, 250).await != all {
        tokio::task::yield_now().await;
    }
    // It is so after a restart, and goes on from there.
    mux.close();
    server.stop().await;
    let server = Server::start(&disk, Policy::AutoAccept).await;
    assert_eq!(writer.titles(&server), all);
    writer.core.truncate(249, None).await.unwrap();
    writer.add(3000..3002).await;
    writer.follow(&server).await;
    assert_eq!(writer.shown(&server, 251, 251).await, titles((2000..2249).chain(3000..3002)));
}

#[tokio::test]
async fn other_catalogs_stay_when_one_is_cut() {
    let disk = Disk::new();
    let server = Server::start(&disk, Policy::AutoAccept).await;
    let own = BookEntry { id: "own".into(), title: "Own".into(), ..BookEntry::default() };
    server.catalog.publish(vec![Book { entry: own, source: None }]).await.unwrap();
    let (cut, other) = (Writer::new(), Writer::new());
    for writer in [&cut, &other] {
        writer.add(0..20).await;
        writer.follow(&server).await;
        writer.shown(&server, 20, 20).await;
    }
    cut.core.truncate(3, None).await.unwrap();
    cut.add(50..51).await;
    assert_eq!(cut.shown(&server, 4, 4).await, titles((0..3).chain(50..51)));
    assert_eq!(other.titles(&server), titles(0..20));
    assert_eq!(server.catalog.list(&ListOptions::default()).unwrap().total, 1);
}

/// Writing on at the fork that was restored would make two logs of one.
#[tokio::test]
async fn a_restored_catalog_is_published_at_the_later_fork_that_a_peer_has() {
    let disk = Disk::new();
    let server = Server::start(&disk, Policy::AutoAccept).await;
    let book = |id: &str| {
        let entry = BookEntry { id: id.into(), title: id.into(), ..BookEntry::default() };
        Book { entry, source: None }
    };
    server.catalog.publish(["a", "b", "c"].map(book).into()).await.unwrap();
    let key = server.catalog.key();
    // What a restore writes down, and what signs the feed.
    let namespace = server
        .database
        .write(|transaction| {
            transaction
                .execute("INSERT INTO meta (name, value) VALUES ('catalog_restored', x'01')", [])?;
            let sql = "SELECT value FROM meta WHERE name = 'catalog_namespace'";
            Ok::<[u8; 32], StoreError>(transaction.query_row(sql, [], |row| row.get(0))?)
        })
        .await
        .unwrap();
    // A peer that has the feed as it is, and one that has a later fork of it, which is shorter.
    let manifest = Manifest::single_in(server.key, namespace);
    assert_eq!(manifest.key(), key);
    let open = || Core::open(&MemoryStorage::new(), key, OpenOptions::default()).unwrap();
    let (behind, reader) = (open(), Replicator::new());
    reader.add(behind.clone(), Serving::fetch());
    let stranger = KeyPair::generate();
    let mux = connect_stranger(&server, &stranger).await;
    reader.attach(&mux);
    let mut changes = behind.subscribe();
    changes.wait_for(|now| now.contiguous_length == 3).await.unwrap();
    mux.close();
    server.stop().await;
    let storage = MemoryStorage::new();
    let writer = CreateOptions { manifest, writer: Some(disk.keys.clone()), compat: false };
    let writer = Core::create(&storage, writer).unwrap();
    let entry =
        |id: &str| Bytes::from(format!(r#"{{"type":"book-added","id":"{id}","title":"T"}}"#));
    writer.append(vec![entry("x")]).await.unwrap();
    writer.truncate(0, None).await.unwrap();
    writer.append(vec![entry("later")]).await.unwrap();
    writer.close().await.unwrap();
    let ahead = Core::open(&storage, key, OpenOptions::default()).unwrap();

    let server = Server::start(&disk, Policy::AutoAccept).await;
    assert!(server.catalog.publish(vec![book("d")]).await.is_err());
    let mut events = server.events.subscribe(None);
    let _behind = connect_stranger(&server, &stranger).await;
    reader.attach(&_behind);
    let other = Replicator::new();
    other.add(ahead.clone(), Serving::serve());
    let _ahead = connect_stranger(&server, &KeyPair::generate()).await;
    other.attach(&_ahead);
    soon(async {
        while server.catalog.trouble().is_some() {
            events.next().await.unwrap();
        }
    })
    .await;
    server.catalog.publish(vec![book("d")]).await.unwrap();
    let shown = server.catalog.list(&ListOptions::default()).unwrap();
    let mut ids: Vec<_> = shown.books.into_iter().map(|book| book.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["d", "later"]);
    assert_eq!(server.catalog.length(), 2);
}
