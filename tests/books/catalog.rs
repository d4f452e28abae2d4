//! A peer's catalog: live, cached, rebuilt, and fast enough.

use alex_p2p::catalog::{Book, BookEntry, ListOptions, SearchOptions, Sort};
use alex_p2p::error::ErrorCode;
use alex_p2p::events::EventKind;
use alex_p2p::transfer::Policy;

use crate::support::{Disk, Server, connect, event, soon};

fn book(number: usize) -> Book {
    let entry = BookEntry {
        id: format!("b{number}"),
        title: format!("Book number {number}"),
        author: Some(format!("Author {}", number % 100)),
        ..BookEntry::default()
    };
    Book { entry, source: None }
}

fn search(words: &str) -> ListOptions {
    ListOptions { search: Some(words.into()), ..ListOptions::default() }
}

/// Waits until `reader` has replayed all of `writer`'s feed.
async fn replayed(reader: &Server, writer: &Server) {
    let (peer, wanted) = (writer.key.to_z32(), writer.catalog.length());
    event(&reader.events, |kind| {
        matches!(kind, EventKind::CatalogUpdated { peer: whose, length }
            if *whose == peer && *length >= wanted)
    })
    .await;
}

#[tokio::test]
async fn a_peers_catalog_arrives_and_follows_live() {
    let (a, b) = (Disk::new(), Disk::new());
    let a = Server::start(&a, Policy::AutoAccept).await;
    let b = Server::start(&b, Policy::AutoAccept).await;
    a.catalog.publish((0..300).map(book).collect()).await.unwrap();
    let _connection = connect(&a, &b).await;
    replayed(&b, &a).await;
    assert_eq!(b.catalog.of(a.key).list(&ListOptions::default()).unwrap().total, 300);
    a.catalog.publish(vec![book(300)]).await.unwrap();
    a.catalog.unpublish(vec!["b7".into()]).await.unwrap();
    replayed(&b, &a).await;
    let theirs = b.catalog.of(a.key);
    assert_eq!(theirs.list(&search("number 300")).unwrap().total, 1);
    assert!(theirs.get("b7").unwrap().is_none());
    assert_eq!(theirs.status().unwrap().unwrap().books, 300);
    // Both ways: a has seen b's empty feed, and its own catalog is its own.
    assert_eq!(a.catalog.list(&ListOptions::default()).unwrap().total, 300);
    assert_eq!(a.catalog.of(b.key).list(&ListOptions::default()).unwrap().total, 0);
}

#[tokio::test]
async fn a_catalog_is_browsed_while_its_server_is_away_and_after_a_restart() {
    let (a_disk, b_disk) = (Disk::new(), Disk::new());
    let a = Server::start(&a_disk, Policy::AutoAccept).await;
    let b = Server::start(&b_disk, Policy::AutoAccept).await;
    a.catalog.publish((0..50).map(book).collect()).await.unwrap();
    let connection = connect(&a, &b).await;
    replayed(&b, &a).await;
    drop(connection);
    let a_key = a.key;
    b.stop().await;
    let b = Server::start(&b_disk, Policy::AutoAccept).await;
    let theirs = b.catalog.of(a_key);
    assert_eq!(theirs.list(&search("author 7")).unwrap().total, 1);
    // And it goes on from there.
    a.catalog.publish(vec![book(50)]).await.unwrap();
    let _connection = connect(&a, &b).await;
    replayed(&b, &a).await;
    assert!(theirs.get("b50").unwrap().is_some());
}

#[tokio::test]
async fn the_own_catalog_survives_a_restart_and_sync_appends_only_changes() {
    let disk = Disk::new();
    let server = Server::start(&disk, Policy::AutoAccept).await;
    let key = server.catalog.key();
    let changes = server.catalog.sync((0..1000).map(book).collect()).await.unwrap();
    assert_eq!((changes.added, server.catalog.length()), (1000, 1000));
    server.stop().await;
    let server = Server::start(&disk, Policy::AutoAccept).await;
    assert_eq!(server.catalog.key(), key);
    let changes = server.catalog.sync((1..1001).map(book).collect()).await.unwrap();
    assert_eq!((changes.added, changes.removed, changes.unchanged), (1, 1, 999));
    assert_eq!(server.catalog.length(), 1002);
    assert_eq!(server.catalog.list(&ListOptions::default()).unwrap().total, 1000);
}

#[tokio::test]
async fn a_hundred_thousand_books_are_published_in_one_batch() {
    let disk = Disk::new();
    let server = Server::start(&disk, Policy::AutoAccept).await;
    let books: Vec<_> = (0..100_000).map(book).collect();
    // Without a limit: how long it takes is for the bench to say.
    let changes = server.catalog.sync(books.clone()).await.unwrap();
    assert_eq!((changes.added, server.catalog.length()), (100_000, 100_000));
    let again = server.catalog.sync(books).await.unwrap();
    assert_eq!((again.unchanged, server.catalog.length()), (100_000, 100_000));
    assert_eq!(server.catalog.list(&search("number 99999")).unwrap().total, 1);
}

#[tokio::test]
async fn a_peer_with_a_new_feed_gets_a_new_catalog() {
    let (a_disk, b_disk) = (Disk::new(), Disk::new());
    let b = Server::start(&b_disk, Policy::AutoAccept).await;
    let a = Server::start(&a_disk, Policy::AutoAccept).await;
    a.catalog.publish((0..10).map(book).collect()).await.unwrap();
    let connection = connect(&a, &b).await;
    replayed(&b, &a).await;
    drop(connection);
    a.stop().await;
    // The database is lost, the identity is not.
    std::fs::remove_file(a_disk.path("p2p.db")).unwrap();
    let a = Server::start(&a_disk, Policy::AutoAccept).await;
    a.catalog.publish(vec![book(77)]).await.unwrap();
    let _connection = connect(&a, &b).await;
    let theirs = b.catalog.of(a.key);
    soon(async {
        let mut events = b.events.subscribe(Some(0));
        while theirs.get("b77").unwrap().is_none() {
            events.next().await.unwrap();
        }
    })
    .await;
    assert_eq!(theirs.list(&ListOptions::default()).unwrap().total, 1);
}

#[tokio::test]
async fn a_forgotten_peers_catalog_is_gone() {
    let (a, b) = (Disk::new(), Disk::new());
    let a = Server::start(&a, Policy::AutoAccept).await;
    let b = Server::start(&b, Policy::AutoAccept).await;
    a.catalog.publish((0..10).map(book).collect()).await.unwrap();
    let _connection = connect(&a, &b).await;
    replayed(&b, &a).await;
    b.catalog.forget(a.key).await.unwrap();
    assert_eq!(b.catalog.of(a.key).list(&ListOptions::default()).unwrap().total, 0);
    assert!(b.catalog.of(a.key).status().unwrap().is_none());
}

#[tokio::test]
async fn publishing_stops_when_a_copy_of_the_data_directory_has_published_too() {
    let (a_disk, b_disk) = (Disk::new(), Disk::new());
    let a = Server::start(&a_disk, Policy::AutoAccept).await;
    let b = Server::start(&b_disk, Policy::AutoAccept).await;
    a.catalog.publish((0..3).map(book).collect()).await.unwrap();
    a.stop().await;
    let copy_disk = a_disk.copy();
    let a = Server::start(&a_disk, Policy::AutoAccept).await;
    a.catalog.publish((3..9).map(book).collect()).await.unwrap();
    let connection = connect(&a, &b).await;
    replayed(&b, &a).await;
    drop(connection);
    let copy = Server::start(&copy_disk, Policy::AutoAccept).await;
    copy.catalog.publish(vec![book(77)]).await.unwrap();
    assert_eq!(copy.catalog.trouble(), None);
    let _connection = connect(&copy, &b).await;
    event(
        &copy.events,
        |kind| matches!(kind, EventKind::Status { layer, ok: false, .. } if layer == "catalog"),
    )
    .await;
    let refused = copy.catalog.publish(vec![book(78)]).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Corrupt);
    assert!(refused.message.contains("copied"), "{refused}");
    copy.stop().await;
    let copy = Server::start(&copy_disk, Policy::AutoAccept).await;
    assert!(copy.catalog.trouble().is_some(), "also after a restart");
}

#[tokio::test]
async fn a_database_of_the_version_before_search_is_filled_from_its_feeds() {
    let (a_disk, b_disk) = (Disk::new(), Disk::new());
    let a = Server::start(&a_disk, Policy::AutoAccept).await;
    let b = Server::start(&b_disk, Policy::AutoAccept).await;
    a.catalog.publish((0..50).map(book).collect()).await.unwrap();
    b.catalog.publish((0..7).map(book).collect()).await.unwrap();
    let connection = connect(&a, &b).await;
    replayed(&b, &a).await;
    drop(connection);
    let a_key = a.key;
    a.stop().await;
    b.stop().await;
    let database = rusqlite::Connection::open(b_disk.path("p2p.db")).unwrap();
    database
        .execute_batch(
            "DROP TRIGGER catalog_follows_forks; DROP VIEW catalog_entries; \
             DROP TABLE catalog_books; DROP TABLE catalog_words; DROP TABLE catalog_search; \
             DROP INDEX cores_by_key; \
             DROP INDEX transfers_by_book; \
             ALTER TABLE transfers DROP COLUMN approved_edition; \
             ALTER TABLE transfers DROP COLUMN approved_hash; \
             CREATE TABLE catalog_books (row INTEGER PRIMARY KEY, feed INTEGER NOT NULL, \
               book_id TEXT NOT NULL, entry TEXT NOT NULL, UNIQUE (feed, book_id)) STRICT; \
             CREATE VIRTUAL TABLE catalog_search USING fts5 (words, content = '', \
               contentless_delete = 1, tokenize = 'unicode61 remove_diacritics 2'); \
             PRAGMA user_version = 2;",
        )
        .unwrap();
    drop(database);
    let b = Server::start(&b_disk, Policy::AutoAccept).await;
    assert_eq!(b.catalog.list(&search("number")).unwrap().total, 7);
    let theirs = b.catalog.of(a_key);
    let peer = a_key.to_z32();
    event(&b.events, |kind| {
        matches!(kind, EventKind::CatalogUpdated { peer: whose, length }
            if *whose == peer && *length == 50)
    })
    .await;
    assert_eq!(theirs.status().unwrap().unwrap().books, 50);
    let options = SearchOptions {
        query: Some("author 7".into()),
        sort: Some(Sort::Title),
        include_own: true,
        ..SearchOptions::default()
    };
    assert_eq!(b.catalog.search(&options).unwrap().hits.len(), 1);
    assert_eq!(b.catalog.length(), 7, "nothing was published anew");
}
