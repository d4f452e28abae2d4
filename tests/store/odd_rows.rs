//! Rows of the database that nothing here wrote: the node opens, and goes on without them.

use alex_p2p::catalog::VerifyOptions;
use alex_p2p::crypto::{KeyPair, PublicKey};
use alex_p2p::error::ErrorCode;
use alex_p2p::node::Node;
use alex_p2p::peers::{AddOptions, PeerUpdate, Policy};
use tempfile::TempDir;

use super::{alone, book, books, total};

fn friend() -> PublicKey {
    KeyPair::from_seed(&[1; 32]).public_key()
}

/// The directory of a node with three books and a friend who gets any of them.
async fn setup() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let node = alone(dir.path()).await;
    node.catalog().publish(books(0..3)).await.unwrap();
    node.peers().add(&friend().to_z32(), AddOptions::default()).await.unwrap();
    let update = PeerUpdate { policy: Some(Some(Policy::AutoAccept)), ..PeerUpdate::default() };
    node.peers().update(&friend(), update).await.unwrap();
    node.close().await;
    dir
}

/// Opens the node after `sql` was run on its database.
async fn after(dir: &TempDir, sql: &str) -> Node {
    let connection = rusqlite::Connection::open(dir.path().join("p2p.db")).unwrap();
    connection.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    drop(connection);
    alone(dir.path()).await
}

#[tokio::test]
async fn rows_that_cannot_be_read_are_skipped() {
    for (sql, is_friend) in [
        ("INSERT INTO peers (public_key, status, added_at) VALUES ('none', 'approved', 1)", true),
        (
            "INSERT INTO peers (public_key, status, added_at)
             VALUES (CAST (x'ff' AS TEXT), 'approved', 1)",
            true,
        ),
        ("UPDATE peers SET added_at = -1, last_seen_at = -9223372036854775807", true),
        ("UPDATE peers SET feed_key = x'01', address = 'nowhere at all'", true),
        ("UPDATE peers SET nickname = CAST (x'ff' AS TEXT)", false),
        ("INSERT INTO knocks VALUES (CAST (x'ff' AS TEXT), 1, 2, 3, NULL)", true),
        ("INSERT INTO knocks VALUES ('none', -1, -2, -3, 'nowhere')", true),
        (
            "INSERT INTO peer_addresses VALUES (CAST (x'ff' AS TEXT), CAST (x'ff' AS TEXT), -1)",
            true,
        ),
        ("INSERT INTO catalog_feeds (server, feed_key) VALUES (x'01', x'')", true),
        ("INSERT INTO catalog_feeds (server, feed_key, number) VALUES (x'02', x'02', -7)", true),
        ("INSERT OR REPLACE INTO meta VALUES ('events_reserved', 'many')", true),
        ("INSERT OR REPLACE INTO meta VALUES ('dht-nodes', x'ff')", true),
        ("UPDATE catalog_feeds SET position = -1", true),
        ("UPDATE catalog_feeds SET books = -1, next_sequence = 1", true),
        (
            "INSERT INTO cores (discovery_key, key, fork, length, byte_length) VALUES (x'', x'', -1, -1, -1)",
            true,
        ),
    ] {
        let dir = setup().await;
        let node = after(&dir, sql).await;
        assert_eq!(node.peers().is_approved(&friend()), is_friend, "{sql}");
        assert_eq!(node.peers().approved().len(), usize::from(is_friend), "{sql}");
        assert_eq!((total(&node), node.catalog().trouble()), (3, None), "{sql}");
        node.catalog().publish(vec![book(3)]).await.unwrap();
        node.close().await;
        let node = alone(dir.path()).await;
        assert_eq!(total(&node), 4, "{sql}");
        assert!(node.catalog().verify(VerifyOptions::default()).await.unwrap().ok, "{sql}");
        node.close().await;
    }
}

#[tokio::test]
async fn a_policy_that_nobody_knows_gives_no_book_away() {
    let dir = setup().await;
    let node = after(&dir, "UPDATE peers SET policy = 'everything'").await;
    assert_eq!(node.peers().policy(&friend()), Some(Policy::MetadataOnly));
    node.close().await;
}

#[tokio::test]
async fn a_namespace_that_cannot_be_read_is_known_from_the_feed() {
    for value in ["'text'", "7", "x'0102'"] {
        let dir = setup().await;
        let node = after(
            &dir,
            &format!("UPDATE meta SET value = {value} WHERE name = 'catalog_namespace'"),
        )
        .await;
        assert_eq!((total(&node), node.catalog().trouble()), (3, None));
        let key = node.catalog().key();
        node.catalog().publish(vec![book(3)]).await.unwrap();
        node.close().await;
        let node = alone(dir.path()).await;
        assert_eq!((total(&node), node.catalog().key()), (4, key));
        node.close().await;
    }
}

#[tokio::test]
async fn a_feed_that_cannot_be_read_is_reported_and_not_begun_again() {
    for sql in [
        "UPDATE cores SET length = -1",
        "UPDATE cores SET fork = -1",
        "UPDATE cores SET manifest = x'ff'",
        "UPDATE cores SET signature = x'ff'",
        "UPDATE core_bits SET bits = x'ff'",
        "UPDATE cores SET manifest = x'ff'; UPDATE meta SET value = 7 WHERE name = 'catalog_namespace'",
    ] {
        let dir = setup().await;
        let key = {
            let node = alone(dir.path()).await;
            node.close().await;
            node.catalog().key()
        };
        let node = after(&dir, sql).await;
        assert_eq!(node.catalog().key(), key, "{sql}");
        assert!(node.catalog().trouble().is_some(), "{sql}");
        let error = node.catalog().publish(vec![book(3)]).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Corrupt, "{sql}");
        node.catalog().start_new_feed().await.unwrap();
        node.catalog().publish(vec![book(3)]).await.unwrap();
        node.close().await;
    }
}

#[tokio::test]
async fn what_keeps_a_node_from_publishing_does_so_whatever_its_value_is() {
    for name in ["catalog_restored", "catalog_written_elsewhere", "catalog_damaged"] {
        for value in ["7", "'text'", "x''"] {
            let dir = setup().await;
            let node = after(&dir, &format!("INSERT INTO meta VALUES ('{name}', {value})")).await;
            assert!(node.catalog().trouble().is_some(), "{name} {value}");
            assert!(node.catalog().publish(vec![book(3)]).await.is_err());
            node.close().await;
        }
    }
}
