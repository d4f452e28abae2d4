//! Two whole nodes over a DHT in the process: pairing, browsing, a book.
#![allow(clippy::unwrap_used, missing_docs)]

use std::num::NonZeroU32;
use std::path::Path;
use std::time::{Duration, Instant};

use alex_p2p::catalog::{Book, ListOptions};
use alex_p2p::discovery::DiscoveryOptions;
use alex_p2p::error::ErrorCode;
use alex_p2p::hyperdht::Testnet;
use alex_p2p::node::{Limits, Node, NodeOptions};
use alex_p2p::peers::{AddOptions, AddressSource, PeerUpdate};
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

/// A lender with one book of these bytes, and a reader that is connected to it and knows its catalog.
struct Pair {
    testnet: Testnet,
    lender: Node,
    reader: Node,
    dirs: [tempfile::TempDir; 2],
}

impl Pair {
    async fn with_book(bytes: &[u8], limits: Limits) -> Self {
        let testnet = Testnet::start(3).await.unwrap();
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let lender = NodeOptions { limits, ..options(dirs[0].path(), &testnet) };
        let lender = Node::open(lender).await.unwrap();
        let reader = NodeOptions { port: Some(free_port()), ..options(dirs[1].path(), &testnet) };
        let reader = Node::open(reader).await.unwrap();

        let file = dirs[0].path().join("a book.epub");
        std::fs::write(&file, bytes).unwrap();
        let json = serde_json::json!({"id": "book-1", "title": "A Book", "author": "Somebody", "format": "epub"});
        let entry = serde_json::from_value(json).unwrap();
        let book = Book { entry, source: Some(BookSource::Path(file)) };
        lender.catalog().publish(vec![book]).await.unwrap();

        let add = AddOptions::default();
        reader
            .peers()
            .add(&lender.identity().invite_link(Some("lender")), add.clone())
            .await
            .unwrap();
        lender.peers().add(&reader.identity().public_key_text(), add).await.unwrap();
        let key = lender.identity().public_key();
        until(&reader, "the lender", |node| node.peers().get(&key).unwrap().is_online).await;
        until(&reader, "the catalog", |node| {
            node.catalog().of(key).list(&ListOptions::default()).unwrap().total == 1
        })
        .await;
        Self { testnet, lender, reader, dirs }
    }

    async fn fetch(&self) -> Vec<u8> {
        let peer = self.lender.identity().public_key_text();
        let request = BookRequest { peer, book_id: "book-1".into(), save_to: None };
        let transfer = self.reader.transfers().request(request).await.unwrap();
        let info = tokio::time::timeout(PATIENCE, transfer.done()).await.unwrap().unwrap();
        assert_eq!(info.state, State::Completed);
        std::fs::read(info.path.unwrap()).unwrap()
    }

    async fn close(self) {
        self.reader.close().await;
        self.lender.close().await;
        self.testnet.close().await;
        drop(self.dirs);
    }
}

/// A port below those that the system gives away: nobody takes it while the node is suspended.
fn free_port() -> u16 {
    let first = 20_000 + (std::process::id() % 8_000) as u16;
    let is_free = |port: &u16| std::net::UdpSocket::bind(("127.0.0.1", *port)).is_ok();
    (first..32_000).find(is_free).unwrap()
}

fn noise(count: u32) -> Vec<u8> {
    (0..count).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_pair_browse_and_share_a_book() {
    let bytes = noise(3_000_000);
    let pair = Pair::with_book(&bytes, Limits::default()).await;
    assert_eq!(pair.fetch().await, bytes);
    let reader = pair.reader.clone();
    pair.close().await;
    assert_eq!(reader.status().unwrap_err().code, ErrorCode::Closed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_peer_leaves_no_transfer_and_no_catalog() {
    let pair = Pair::with_book(&noise(100_000), Limits::default()).await;
    let (reader, key) = (&pair.reader, pair.lender.identity().public_key());
    pair.lender.close().await;
    let request = BookRequest { peer: key.to_z32(), book_id: "book-1".into(), save_to: None };
    let transfer = reader.transfers().request(request).await.unwrap();
    assert!(reader.peers().remove(&key).await.unwrap());
    let info = tokio::time::timeout(PATIENCE, transfer.done()).await.unwrap().unwrap();
    assert_eq!(info.state, State::Cancelled);
    let forgotten = async {
        while reader.catalog().of(key).status().unwrap().is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, forgotten).await.unwrap();
    pair.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_limit_is_kept() {
    let bytes = noise(600_000);
    let limits = Limits { upload_bytes_per_second: NonZeroU32::new(300_000), ..Limits::default() };
    let pair = Pair::with_book(&bytes, limits).await;
    let begun = Instant::now();
    assert_eq!(pair.fetch().await, bytes);
    // Without what a burst allows, and without the last block, which nothing waits for.
    assert!(begun.elapsed() >= Duration::from_secs_f64((600_000. - 37_500. - 65_536.) / 300_000.));
    pair.close().await;
}

#[tokio::test]
async fn a_second_open_of_a_directory_is_locked_until_the_first_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let offline = || NodeOptions {
        discovery: DiscoveryOptions { dht: false, lan: false, topic: false },
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

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_node_sends_nothing_and_is_back_at_once_after_it_resumes() {
    let pair = Pair::with_book(b"a book", Limits::default()).await;
    let lender = pair.lender.identity().public_key();
    let port = pair.reader.dht().unwrap().local_addr().port();
    pair.reader.suspend().await.unwrap();
    pair.reader.suspend().await.unwrap();
    let status = pair.reader.status().unwrap();
    assert!(status.is_suspended && status.addresses.is_empty());
    assert!(status.advice.iter().any(|advice| advice.contains("resume()")));
    assert!(
        pair.reader.connections().is_none() && !pair.reader.peers().get(&lender).unwrap().is_online
    );
    let reader = pair.reader.identity().public_key();
    until(&pair.lender, "the reader to go", |node| !node.peers().get(&reader).unwrap().is_online)
        .await;
    // Nobody has its port now, and what needs no network works.
    drop(std::net::UdpSocket::bind(("127.0.0.1", port)).unwrap());
    assert_eq!(pair.reader.catalog().of(lender).list(&ListOptions::default()).unwrap().total, 1);

    let begun = Instant::now();
    pair.reader.resume().await.unwrap();
    pair.reader.resume().await.unwrap();
    assert_eq!(pair.reader.dht().unwrap().local_addr().port(), port);
    until(&pair.reader, "the lender", |node| node.peers().get(&lender).unwrap().is_online).await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(pair.fetch().await, b"a book");
    pair.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_finds_its_peers_where_they_are_when_the_whole_network_is_gone() {
    let pair = Pair::with_book(b"a book", Limits::default()).await;
    let lender = pair.lender.identity().public_key();
    let given = pair.lender.dht().unwrap().local_addr().to_string();
    let update = PeerUpdate { address: Some(Some(given)), ..PeerUpdate::default() };
    pair.reader.peers().update(&lender, update).await.unwrap();
    let again = options(pair.dirs[1].path(), &pair.testnet);
    pair.reader.close().await;
    pair.testnet.close().await;
    let reader = Node::open(again).await.unwrap();
    until(&reader, "the lender", |node| node.peers().get(&lender).unwrap().is_online).await;
    let peer = reader.peers().get(&lender).unwrap();
    assert!(peer.addresses.iter().any(|known| known.source == AddressSource::Manual));
    reader.close().await;
    pair.lender.close().await;
}

#[tokio::test]
async fn a_node_without_the_dht_listens_and_says_which_layers_work() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(NodeOptions {
        discovery: DiscoveryOptions { dht: false, ..DiscoveryOptions::default() },
        host: Some("127.0.0.1".into()),
        port: Some(0),
        ..NodeOptions::new(dir.path())
    })
    .await
    .unwrap();
    let status = node.status().unwrap();
    let names: Vec<_> = status.layers.iter().map(|layer| layer.name.as_str()).collect();
    assert_eq!(names, ["dht", "lan", "topic", "relay", "catalog"]);
    let enabled: Vec<_> = status.layers.iter().map(|layer| layer.is_enabled).collect();
    assert_eq!(enabled, [false, false, false, false, true]);
    assert_eq!(status.addresses.len(), 1);
    node.close().await;
    assert_eq!(node.resume().await.unwrap_err().code, ErrorCode::Closed);
}
