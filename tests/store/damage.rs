//! Flipped bits, and how they are put right.

use std::path::Path;

use alex_p2p::catalog::{Verification, VerifyOptions};
use alex_p2p::error::ErrorCode;
use alex_p2p::node::{Node, NodeOptions};

use crate::{Pair, alone, book, books, open, refused, until};

async fn verify(node: &Node) -> Verification {
    let options = VerifyOptions { peers: true, ..VerifyOptions::default() };
    node.catalog().verify(options).await.unwrap()
}

/// Changes the database of a node that is closed; how many rows.
fn change(dir: &Path, sql: &str) -> usize {
    let database = rusqlite::Connection::open(dir.join("p2p.db")).unwrap();
    database.execute(sql, []).unwrap()
}

/// Flips a bit in the hash of tree node 6 in every feed.
fn damage_a_leaf(dir: &Path) {
    let database = rusqlite::Connection::open(dir.join("p2p.db")).unwrap();
    let pages = "SELECT place, nodes FROM core_nodes WHERE place & 0xffffffffff = 0";
    let mut pages = database.prepare(pages).unwrap();
    let pages: Vec<(i64, Vec<u8>)> = pages
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    for (place, mut nodes) in pages {
        nodes[6 * 40 + 20] ^= 4;
        let sql = "UPDATE core_nodes SET nodes = ?2 WHERE place = ?1";
        assert_eq!(database.execute(sql, (place, nodes)).unwrap(), 1);
    }
}

#[tokio::test]
async fn entries_of_the_own_feed_that_were_damaged_come_back_from_a_peer() {
    let mut pair = Pair::with(300).await;
    pair.writer.close().await;
    let dir = pair.dirs[0].path();
    let sql = "UPDATE core_blocks SET bytes = x'00' WHERE place & 0xffffffffff IN (7, 8, 70)";
    assert_eq!(change(dir, sql), 3);
    pair.reader.suspend().await.unwrap();
    let writer = alone(dir).await;
    let found = verify(&writer).await;
    assert_eq!((found.ok, found.damaged, found.mended), (false, vec![7, 8, 70], 0));
    assert_eq!(refused(&writer).await, ErrorCode::Corrupt);
    writer.close().await;

    pair.reader.resume().await.unwrap();
    pair.writer = open(&pair.testnet, dir).await;
    let found = loop {
        // Until the peer is connected.
        let found = verify(&pair.writer).await;
        if found.ok {
            break found;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    };
    assert_eq!((found.entries, found.mended, found.damaged), (300, 3, Vec::new()));
    // Somebody may have more: what was wrong before the damage is not known.
    until(&pair.writer, "the confirmation", |node| node.catalog().trouble().is_none()).await;
    pair.writer.catalog().publish(books(300..301)).await.unwrap();
    pair.followed().await;
    let found = verify(&pair.writer).await;
    assert!(found.ok && found.entries == 301 && found.mended == 0, "{found:?}");
    pair.close().await;
}

#[tokio::test]
async fn damaged_hashes_of_feeds_are_made_anew_from_their_entries() {
    let mut pair = Pair::with(300).await;
    pair.writer.close().await;
    pair.reader.close().await;
    damage_a_leaf(pair.dirs[0].path());
    damage_a_leaf(pair.dirs[1].path());
    let writer = alone(pair.dirs[0].path()).await;
    let found = verify(&writer).await;
    assert_eq!((found.ok, found.entries, found.mended), (true, 300, 1));
    writer.catalog().publish(books(300..301)).await.unwrap();
    writer.close().await;
    let reader = alone(pair.dirs[1].path()).await;
    assert!(verify(&reader).await.refetched.is_empty());
    reader.close().await;
    pair.writer = open(&pair.testnet, pair.dirs[0].path()).await;
    pair.reader = open(&pair.testnet, pair.dirs[1].path()).await;
    pair.followed().await;
    pair.close().await;
}

#[tokio::test]
async fn an_entry_of_a_peer_that_is_damaged_with_its_hash_is_fetched_again() {
    let mut pair = Pair::with(300).await;
    pair.reader.close().await;
    let dir = pair.dirs[1].path();
    let sql = "UPDATE core_blocks SET bytes = x'00' WHERE place & 0xffffffffff = 3";
    assert_eq!(change(dir, sql), 1);
    damage_a_leaf(dir);
    pair.reader = open(&pair.testnet, dir).await;
    assert_eq!(verify(&pair.reader).await.refetched.len(), 1);
    pair.followed().await;
    assert!(verify(&pair.reader).await.refetched.is_empty());
    pair.close().await;
}

/// Flips bits in each page of a database, one after the other: what is wrong is found, or what is read is
/// right. `FLIPS` says how many a page (4 unless set).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_in_any_page_is_found_or_harmless() {
    const COUNT: usize = 150;
    let dir = tempfile::tempdir().unwrap();
    let node = alone(dir.path()).await;
    node.catalog().publish(books(0..COUNT)).await.unwrap();
    node.close().await;
    let database = dir.path().join("p2p.db");
    let whole = std::fs::read(&database).unwrap();
    let page_size = usize::from(u16::from_be_bytes([whole[16], whole[17]]));
    let (mut refused, mut found, mut harmless) = (0, 0, 0);
    let pages = whole.len() / page_size;
    let flips = std::env::var("FLIPS").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    for flip in 0..flips * pages {
        // Somewhere else in each page, each time.
        let page = flip % pages;
        let at = page * page_size + (flip * 2_654_435_761 + 701) % page_size;
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (flip % 8);
        std::fs::write(&database, &damaged).unwrap();
        let mut options = NodeOptions::new(dir.path());
        options.bootstrap = Some(Vec::new());
        options.host = Some("127.0.0.1".into());
        options.port = Some(0);
        let node = match Node::open(options).await {
            Ok(node) => node,
            Err(error) => {
                assert!(
                    [ErrorCode::Corrupt, ErrorCode::Internal, ErrorCode::Io].contains(&error.code),
                    "page {page}: {error}"
                );
                refused += 1;
                continue;
            }
        };
        let verified = node.catalog().verify(VerifyOptions::default()).await;
        if verified.as_ref().is_ok_and(|found| found.ok) {
            harmless += 1;
            for number in 0..COUNT {
                let shown = node.catalog().get(&format!("b{number}"));
                let title = shown.unwrap().map(|book| book.title);
                assert_eq!(title, Some(format!("Book number {number}")), "page {page} at {at}");
            }
        } else {
            found += 1;
            assert!(node.catalog().publish(vec![book(COUNT)]).await.is_err(), "page {page}");
        }
        node.close().await;
    }
    println!("{pages} pages: {refused} refused, {found} found, {harmless} harmless");
    assert!(found + refused > 0 && harmless > 0);
}
