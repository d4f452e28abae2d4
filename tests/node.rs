//! Two whole nodes over a DHT in the process: pairing, browsing, a book.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::time::Duration;

use alex_p2p::catalog::{Book, ListOptions};
use alex_p2p::discovery::DiscoveryOptions;
use alex_p2p::error::ErrorCode;
use alex_p2p::hyperdht::Testnet;
use alex_p2p::node::{Node, NodeOptions};
use alex_p2p::peers::AddOptions;
use alex_p2p::transfer::{BookRequest, BookSource, Policy, State};

const PATIENCE: Duration = Duration::from_secs(60);

fn options(dir: &Path, testnet: &Testnet) -> NodeOptions {
    NodeOptions {
        bootstrap: Some(testnet.bootstrap().iter().map(ToString::to_string).collect()),
        host: Some("127.0.0.1".into()),
        port: Some(0),
        policy: Policy::AutoAccept,
        ..NodeOptions::new(dir)
    }
}

async fn until(node: &Node, what: &str, mut done: impl FnMut(&Node) -> bool) {
    let mut events = node.events().subscribe(None);
    let wait = async {
        while !done(node) {
            events.next().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("waited for {what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_pair_browse_and_share_a_book() {
    let testnet = Testnet::start(3).await.unwrap();
    let (left, right) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let lender = Node::open(options(left.path(), &testnet)).await.unwrap();
    let reader = Node::open(options(right.path(), &testnet)).await.unwrap();

    let bytes: Vec<u8> =
        (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let file = left.path().join("a book.epub");
    std::fs::write(&file, &bytes).unwrap();
    let json = serde_json::json!({
        "id": "book-1", "title": "A Book", "author": "Somebody", "format": "epub", "sizeBytes": bytes.len(),
    });
    let book =
        Book { entry: serde_json::from_value(json).unwrap(), source: Some(BookSource::Path(file)) };
    lender.catalog().publish(vec![book]).await.unwrap();

    let add = AddOptions::default();
    reader.peers().add(&lender.identity().invite_link(Some("lender")), add.clone()).await.unwrap();
    lender.peers().add(&reader.identity().public_key_text(), add).await.unwrap();
    let key = lender.identity().public_key();
    until(&reader, "the lender to be online", |node| node.peers().get(&key).unwrap().is_online)
        .await;
    until(&reader, "the catalog", |node| {
        node.catalog().of(key).list(&ListOptions::default()).unwrap().total == 1
    })
    .await;

    let request = BookRequest { peer: key.to_z32(), book_id: "book-1".into(), save_to: None };
    let transfer = reader.transfers().request(request).await.unwrap();
    let info = tokio::time::timeout(PATIENCE, transfer.done()).await.unwrap().unwrap();
    assert_eq!(info.state, State::Completed);
    assert_eq!(std::fs::read(info.path.unwrap()).unwrap(), bytes);

    reader.close().await;
    lender.close().await;
    assert_eq!(reader.status().unwrap_err().code, ErrorCode::Closed);
    testnet.close().await;
}

#[tokio::test]
async fn a_second_open_of_a_directory_is_locked_until_the_first_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let offline = || NodeOptions {
        discovery: DiscoveryOptions { dht: false, topic: false },
        ..NodeOptions::new(dir.path())
    };
    let first = Node::open(offline()).await.unwrap();
    let key = first.identity().public_key();
    assert_eq!(Node::open(offline()).await.err().unwrap().code, ErrorCode::Locked);
    first.close().await;
    let second = Node::open(offline()).await.unwrap();
    assert_eq!(second.identity().public_key(), key);
    second.close().await;
}
