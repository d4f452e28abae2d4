//! A peer's feed that was cut and written differently: its catalog here becomes the new one.

use alex_p2p::catalog::{Book, BookEntry, ListOptions};
use alex_p2p::crypto::KeyPair;
use alex_p2p::events::EventKind;
use alex_p2p::hypercore::replicator::{Policy as Serving, Replicator};
use alex_p2p::hypercore::{Core, CreateOptions, Manifest, MemoryStorage};
use alex_p2p::protomux::Protomux;
use alex_p2p::transfer::Policy;
use bytes::Bytes;

use crate::support::{Disk, Server, connect_stranger, event};

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
