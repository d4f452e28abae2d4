//! Flipped bits.

use alex_p2p::catalog::VerifyOptions;
use alex_p2p::error::ErrorCode;
use alex_p2p::node::{Node, NodeOptions};

use crate::{alone, book, books};

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
