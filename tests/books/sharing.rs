//! Passing peers' catalogs on: to nobody by default, among approved peers where the user says so.

use std::time::Duration;

use alex_p2p::catalog::{Book, BookEntry, ListOptions};
use alex_p2p::crypto::{Hash, PublicKey};
use alex_p2p::events::EventKind;
use alex_p2p::hypercore::replicator::{Policy, Replicator};
use alex_p2p::hypercore::{Core, MemoryStorage, OpenOptions};

use crate::support::{Disk, Server, connect, connect_stranger, event};

fn book(number: usize) -> Book {
    let id = format!("b{number}");
    let entry = BookEntry { title: format!("Title {id}"), id, ..BookEntry::default() };
    Book { entry, source: None }
}

async fn has_books(server: &Server, owner: PublicKey, count: u64) {
    let is_there =
        || server.catalog.of(owner).list(&ListOptions::default()).unwrap().total == count;
    if !is_there() {
        event(&server.events, |kind| {
            matches!(kind, EventKind::CatalogUpdated { .. }) && is_there()
        })
        .await;
    }
}

/// B and C have met A, which then published more; only B has heard of that, and A is away.
async fn half_informed(shares: [bool; 2]) -> (PublicKey, Server, Server, [Disk; 3]) {
    let disks = [Disk::new(), Disk::new(), Disk::new()];
    let a = Server::start_sharing(&disks[0], false).await;
    let b = Server::start_sharing(&disks[1], shares[0]).await;
    let c = Server::start_sharing(&disks[2], shares[1]).await;
    a.catalog.publish((0..40).map(book).collect()).await.unwrap();
    let to_c = connect(&a, &c).await;
    has_books(&c, a.key, 40).await;
    to_c.0.close();
    to_c.1.closed().await;
    a.catalog.publish((40..60).map(book).collect()).await.unwrap();
    let to_b = connect(&a, &b).await;
    has_books(&b, a.key, 60).await;
    to_b.0.close();
    to_b.1.closed().await;
    let key = a.key;
    a.stop().await;
    (key, b, c, disks)
}

#[tokio::test]
async fn a_third_server_gets_a_catalog_through_another_while_its_owner_is_away() {
    let (a, b, c, _disks) = half_informed([true, true]).await;
    let _connection = connect(&b, &c).await;
    has_books(&c, a, 60).await;
}

#[tokio::test]
async fn a_server_passes_nothing_on_and_asks_nobody_else_unless_told_to() {
    for shares in [[false, true], [true, false], [false, false]] {
        let (a, b, c, _disks) = half_informed(shares).await;
        let _connection = connect(&b, &c).await;
        // What they have for each other arrives.
        b.catalog.publish(vec![book(1)]).await.unwrap();
        has_books(&c, b.key, 1).await;
        assert_eq!(c.catalog.of(a).list(&ListOptions::default()).unwrap().total, 40, "{shares:?}");
    }
}

/// How many blocks of the feed a program that knows its key gets from `server`.
async fn taken(server: &Server, feed: Hash) -> u64 {
    let keys = alex_p2p::crypto::KeyPair::generate();
    let mux = connect_stranger(server, &keys).await;
    let replicator = Replicator::new();
    let core = Core::open(&MemoryStorage::new(), feed, OpenOptions::default()).unwrap();
    let handle = replicator.add(core, Policy::fetch());
    replicator.attach(&mux);
    let mut changes = handle.core().subscribe();
    let all = changes.wait_for(|now| now.length > 0 && now.contiguous_length == now.length);
    let _ = tokio::time::timeout(Duration::from_millis(500), all).await;
    handle.core().contiguous_length()
}

#[tokio::test]
async fn a_peer_that_asks_for_somebody_elses_feed_gets_nothing_unless_it_is_shared() {
    for (shares, expected) in [(false, 0), (true, 60)] {
        let (a, b, _c, _disks) = half_informed([shares, false]).await;
        let feed = b.catalog.of(a).status().unwrap().unwrap().feed_key;
        let feed = *PublicKey::from_z32(&feed).unwrap().as_bytes();
        assert_eq!(taken(&b, feed).await, expected, "shares: {shares}");
    }
}
