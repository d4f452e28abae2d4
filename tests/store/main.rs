//! A node's data over time: backed up, restored, copied, set back, damaged.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod backups;
mod busy;
mod damage;
#[path = "../simulation/dice.rs"]
#[allow(dead_code)] // the simulator throws them in more ways
mod dice;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod faults;
#[cfg(target_os = "linux")]
mod full;
#[cfg(unix)]
mod kills;
mod odd_rows;
#[path = "../books/support.rs"]
#[allow(dead_code)] // used by the tests of transfers
mod support;

use std::path::Path;
use std::time::Duration;

use alex_p2p::catalog::{Book, BookEntry, ListOptions, VerifyOptions};
use alex_p2p::discovery::DiscoveryOptions;
use alex_p2p::error::ErrorCode;
use alex_p2p::hyperdht::Testnet;
use alex_p2p::node::{BackupOptions, Node, NodeOptions};
use alex_p2p::peers::AddOptions;
use tempfile::TempDir;

fn book(number: usize) -> Book {
    let (id, title) = (format!("b{number}"), format!("Book number {number}"));
    Book { entry: BookEntry { id, title, ..BookEntry::default() }, source: None }
}

fn books(numbers: std::ops::Range<usize>) -> Vec<Book> {
    numbers.map(book).collect()
}

fn total(node: &Node) -> u64 {
    node.catalog().list(&ListOptions::default()).unwrap().total
}

async fn until(node: &Node, what: &str, mut done: impl FnMut(&Node) -> bool) {
    let mut events = node.events().subscribe(None);
    let wait = async {
        while !done(node) {
            // Lengths change without an event of their own.
            let _ = tokio::time::timeout(Duration::from_millis(100), events.next()).await;
        }
    };
    tokio::time::timeout(support::patience(), wait)
        .await
        .unwrap_or_else(|_| panic!("waited for {what}"));
}

/// A writer and a reader that follows its catalog.
struct Pair {
    testnet: Testnet,
    dirs: [TempDir; 3],
    writer: Node,
    reader: Node,
}

impl Pair {
    async fn with(count: usize) -> Self {
        let testnet = Testnet::start(3).await.unwrap();
        let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let writer = open(&testnet, dirs[0].path()).await;
        let reader = open(&testnet, dirs[1].path()).await;
        writer.catalog().publish(books(0..count)).await.unwrap();
        let add = AddOptions::default();
        writer.peers().add(&reader.identity().public_key_text(), add.clone()).await.unwrap();
        reader.peers().add(&writer.identity().public_key_text(), add).await.unwrap();
        let pair = Self { testnet, dirs, writer, reader };
        pair.followed().await;
        pair
    }

    /// Waits until the reader has the writer's whole catalog.
    async fn followed(&self) {
        let (key, wanted) = (self.writer.identity().public_key(), total(&self.writer));
        until(&self.reader, "the catalog", |node| {
            node.catalog().of(key).list(&ListOptions::default()).unwrap().total == wanted
        })
        .await;
    }

    async fn close(self) {
        self.writer.close().await;
        self.reader.close().await;
        self.testnet.close().await;
    }
}

async fn open(testnet: &Testnet, dir: &Path) -> Node {
    let options = NodeOptions {
        bootstrap: Some(testnet.bootstrap().iter().map(ToString::to_string).collect()),
        host: Some("127.0.0.1".into()),
        port: Some(0),
        ..NodeOptions::new(dir)
    };
    Node::open(options).await.unwrap()
}

/// A node alone, without a network. It still dials whom it has met: who is to be away is suspended.
async fn alone(dir: &Path) -> Node {
    let mut options = NodeOptions::new(dir);
    options.discovery = DiscoveryOptions { dht: false, lan: false, topic: false };
    options.host = Some("127.0.0.1".into());
    options.port = Some(0);
    Node::open(options).await.unwrap()
}

fn copy(from: &Path, to: &Path) {
    for name in ["keypair.json", "p2p.db"] {
        std::fs::copy(from.join(name), to.join(name)).unwrap();
    }
}

fn with_passphrase() -> BackupOptions {
    BackupOptions { passphrase: Some("correct horse".into()), ..BackupOptions::default() }
}

async fn refused(node: &Node) -> ErrorCode {
    node.catalog().publish(vec![book(9999)]).await.unwrap_err().code
}

#[tokio::test]
async fn a_restored_node_gets_its_lost_entries_back_from_a_peer_before_it_publishes() {
    let mut pair = Pair::with(3).await;
    let backup = pair.dirs[2].path().join("a.backup");
    pair.writer.backup(&backup, with_passphrase()).await.unwrap();
    pair.writer.catalog().publish(books(3..5)).await.unwrap();
    pair.followed().await;
    let (key, length) = (pair.writer.catalog().key(), pair.writer.catalog().length());
    pair.writer.close().await;

    let dir = tempfile::tempdir().unwrap();
    Node::restore(&backup, dir.path(), Some("correct horse")).await.unwrap();
    // Nobody is there to ask.
    pair.reader.suspend().await.unwrap();
    let writer = alone(dir.path()).await;
    assert_eq!((writer.catalog().length(), total(&writer)), (3, 3));
    assert_eq!(refused(&writer).await, ErrorCode::FeedUnconfirmed);
    assert!(writer.status().unwrap().advice[0].contains("restored"));
    writer.close().await;

    pair.reader.resume().await.unwrap();
    pair.writer = open(&pair.testnet, dir.path()).await;
    until(&pair.writer, "the confirmation", |node| node.catalog().trouble().is_none()).await;
    assert_eq!((pair.writer.catalog().key(), pair.writer.catalog().length()), (key, length));
    pair.writer.catalog().publish(books(5..6)).await.unwrap();
    assert_eq!(total(&pair.writer), 6);
    pair.followed().await;
    assert_eq!(
        pair.reader
            .catalog()
            .of(pair.writer.identity().public_key())
            .status()
            .unwrap()
            .unwrap()
            .length,
        6
    );
    assert!(pair.writer.catalog().verify(VerifyOptions::default()).await.unwrap().ok);
    pair.close().await;
}

#[tokio::test]
async fn a_person_who_knows_better_lets_a_restored_node_publish() {
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let node = alone(dirs[0].path()).await;
    node.catalog().publish(books(0..3)).await.unwrap();
    let backup = dirs[1].path().join("a.backup");
    node.backup(&backup, with_passphrase()).await.unwrap();
    node.close().await;
    let restored = Node::restore(&backup, dirs[2].path(), Some("correct horse")).await.unwrap();
    assert_eq!(restored.public_key, node.identity().public_key_text());
    let node = alone(dirs[2].path()).await;
    assert_eq!(refused(&node).await, ErrorCode::FeedUnconfirmed);
    node.catalog().resume_publishing().await.unwrap();
    node.catalog().publish(books(3..4)).await.unwrap();
    node.close().await;
    let node = alone(dirs[2].path()).await;
    assert_eq!((node.catalog().trouble(), node.catalog().length()), (None, 4));
    node.close().await;
}

#[tokio::test]
async fn a_backup_is_one_private_file_without_the_key_and_never_replaces_another() {
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let node = alone(dirs[0].path()).await;
    node.catalog().publish(books(0..300)).await.unwrap();
    let backup = dirs[1].path().join("a.backup");
    let seed = node.identity().key_pair().seed();
    let made = node.backup(&backup, with_passphrase()).await.unwrap();
    let bytes = std::fs::read(&backup).unwrap();
    assert!(made.has_identity && made.bytes == bytes.len() as u64);
    let hex: String = seed.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(!bytes.windows(32).any(|window| window == seed));
    assert!(!bytes.windows(64).any(|window| window == hex.as_bytes()));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&backup).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let again = node.backup(&backup, with_passphrase()).await.unwrap_err();
    assert_eq!(again.code, ErrorCode::InvalidArgument);
    assert_eq!(std::fs::read(&backup).unwrap(), bytes);
    let short = BackupOptions { passphrase: Some("short".into()), ..BackupOptions::default() };
    let none = BackupOptions { identity: Some(true), ..BackupOptions::default() };
    for options in [short, none] {
        let error = node.backup(&dirs[1].path().join("b"), options).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument);
    }
    assert_eq!(std::fs::read_dir(dirs[1].path()).unwrap().count(), 1, "nothing is left over");
    node.close().await;
}

#[tokio::test]
async fn a_restore_that_cannot_be_changes_nothing() {
    let dirs = [(); 4].map(|()| tempfile::tempdir().unwrap());
    let node = alone(dirs[0].path()).await;
    node.catalog().publish(books(0..300)).await.unwrap();
    let (sealed, bare) = (dirs[1].path().join("sealed"), dirs[1].path().join("bare"));
    node.backup(&sealed, with_passphrase()).await.unwrap();
    node.backup(&bare, BackupOptions::default()).await.unwrap();
    let code = async |backup: &Path, dir: &Path, passphrase| {
        Node::restore(backup, dir, passphrase).await.unwrap_err().code
    };
    let good = Some("correct horse");
    assert_eq!(code(&sealed, dirs[0].path(), good).await, ErrorCode::InvalidState);
    let empty = dirs[2].path();
    assert_eq!(code(&sealed, empty, Some("wrong horse")).await, ErrorCode::Denied);
    assert_eq!(code(&sealed, empty, None).await, ErrorCode::InvalidArgument);
    assert_eq!(code(&bare, empty, good).await, ErrorCode::InvalidState);
    assert_eq!(code(&dirs[1].path().join("missing"), empty, good).await, ErrorCode::NotFound);
    let mut bytes = std::fs::read(&sealed).unwrap();
    let cut = dirs[1].path().join("cut");
    bytes.truncate(bytes.len() / 2);
    std::fs::write(&cut, &bytes).unwrap();
    assert_eq!(code(&cut, empty, good).await, ErrorCode::Corrupt);
    std::fs::write(&cut, b"not a database at all").unwrap();
    assert_eq!(code(&cut, empty, good).await, ErrorCode::Corrupt);
    let database = dirs[0].path().join("p2p.db");
    assert_eq!(code(&database, empty, good).await, ErrorCode::Corrupt, "not made by backup()");
    assert_eq!(std::fs::read_dir(empty).unwrap().count(), 0);
    // Beside its own key pair a backup without the identity is enough.
    std::fs::copy(dirs[0].path().join("keypair.json"), empty.join("keypair.json")).unwrap();
    Node::restore(&bare, empty, None).await.unwrap();
    let restored = alone(empty).await;
    assert_eq!(total(&restored), 300);
    restored.close().await;
    node.close().await;
}

#[tokio::test]
async fn a_new_feed_has_the_books_of_the_old_and_peers_follow_it_at_once() {
    let pair = Pair::with(5).await;
    let catalog = pair.writer.catalog();
    catalog.unpublish(vec!["b1".into()]).await.unwrap();
    let before = catalog.key();
    let key = catalog.start_new_feed().await.unwrap();
    assert!(key != before && catalog.key() == key);
    assert_eq!((catalog.length(), total(&pair.writer)), (4, 4));
    catalog.publish(books(7..9)).await.unwrap();
    pair.followed().await;
    let theirs = pair.reader.catalog().of(pair.writer.identity().public_key());
    assert_eq!(theirs.status().unwrap().unwrap().length, 6);
    pair.writer.close().await;
    let writer = open(&pair.testnet, pair.dirs[0].path()).await;
    assert_eq!((writer.catalog().key(), total(&writer)), (key, 6));
    writer.close().await;
    pair.close().await;
}

#[tokio::test]
async fn a_directory_that_was_set_back_stops_at_the_first_contact_and_goes_on_when_told() {
    let mut pair = Pair::with(3).await;
    pair.writer.close().await;
    copy(pair.dirs[0].path(), pair.dirs[2].path());
    pair.writer = open(&pair.testnet, pair.dirs[0].path()).await;
    pair.writer.catalog().publish(books(3..5)).await.unwrap();
    pair.followed().await;
    pair.writer.close().await;

    pair.writer = open(&pair.testnet, pair.dirs[2].path()).await;
    until(&pair.writer, "the alarm", |node| node.catalog().trouble().is_some()).await;
    assert_eq!(refused(&pair.writer).await, ErrorCode::Corrupt);
    assert!(pair.writer.status().unwrap().advice[0].contains("startNewFeed"));
    pair.writer.catalog().resume_publishing().await.unwrap();
    until(&pair.writer, "the missing entries", |node| node.catalog().trouble().is_none()).await;
    assert_eq!(total(&pair.writer), 5);
    pair.writer.catalog().publish(books(5..6)).await.unwrap();
    pair.followed().await;
    pair.close().await;
}

#[tokio::test]
async fn a_copy_that_published_too_is_told_with_its_peer_and_goes_on_with_a_new_feed() {
    let mut pair = Pair::with(3).await;
    pair.writer.close().await;
    copy(pair.dirs[0].path(), pair.dirs[2].path());
    pair.writer = open(&pair.testnet, pair.dirs[0].path()).await;
    pair.writer.catalog().publish(books(3..5)).await.unwrap();
    pair.followed().await;
    pair.writer.close().await;

    pair.reader.suspend().await.unwrap();
    let copied = alone(pair.dirs[2].path()).await;
    copied.catalog().publish(books(20..29)).await.unwrap();
    copied.close().await;
    pair.reader.resume().await.unwrap();
    let mut told = pair.reader.events().subscribe(None);
    pair.writer = open(&pair.testnet, pair.dirs[2].path()).await;
    until(&pair.writer, "the alarm", |node| node.catalog().trouble().is_some()).await;
    let key = pair.writer.identity().public_key_text();
    let told = async {
        while !told.next().await.is_some_and(|event| {
            let json = serde_json::to_string(&event).unwrap();
            json.contains("\"status\"") && json.contains(&key)
        }) {}
    };
    tokio::time::timeout(support::patience(), told).await.unwrap();
    pair.writer.catalog().start_new_feed().await.unwrap();
    assert_eq!(pair.writer.catalog().trouble(), None);
    pair.writer.catalog().publish(books(30..31)).await.unwrap();
    assert_eq!(total(&pair.writer), 13);
    pair.followed().await;
    pair.close().await;
}

#[tokio::test]
async fn a_damaged_own_feed_is_read_and_not_written_until_there_is_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let node = alone(dir.path()).await;
    node.catalog().publish(books(0..300)).await.unwrap();
    let found = node.catalog().verify(VerifyOptions::default()).await.unwrap();
    assert!(found.ok && found.entries == 300, "{found:?}");
    node.close().await;
    let database = rusqlite::Connection::open(dir.path().join("p2p.db")).unwrap();
    let sql = "UPDATE core_blocks SET bytes = x'00' WHERE place & 0xffffffffff = 7";
    assert_eq!(database.execute(sql, []).unwrap(), 1);
    drop(database);
    let node = alone(dir.path()).await;
    let found = node.catalog().verify(VerifyOptions::default()).await.unwrap();
    assert_eq!((found.ok, found.damaged, found.entries), (false, vec![7], 299));
    assert_eq!(refused(&node).await, ErrorCode::Corrupt);
    node.close().await;
    let node = alone(dir.path()).await;
    assert_eq!(refused(&node).await, ErrorCode::Corrupt, "also after a restart");
    assert_eq!(total(&node), 300);
    assert!(node.catalog().resume_publishing().await.is_err());
    node.catalog().start_new_feed().await.unwrap();
    node.catalog().publish(vec![book(300)]).await.unwrap();
    let found = node.catalog().verify(VerifyOptions::default()).await.unwrap();
    assert!(found.ok && found.entries == 300, "without the book of the damaged entry: {found:?}");
    node.close().await;
}

#[tokio::test]
async fn a_damaged_head_of_the_own_feed_opens_the_node_for_reading() {
    let dir = tempfile::tempdir().unwrap();
    let node = alone(dir.path()).await;
    node.catalog().publish(books(0..300)).await.unwrap();
    let key = node.catalog().key();
    node.close().await;
    let database = rusqlite::Connection::open(dir.path().join("p2p.db")).unwrap();
    database.execute("UPDATE cores SET signature = zeroblob(length(signature))", []).unwrap();
    drop(database);
    let node = alone(dir.path()).await;
    assert_eq!((node.catalog().key(), node.catalog().length(), total(&node)), (key, 300, 300));
    assert_eq!(refused(&node).await, ErrorCode::Corrupt);
    assert!(!node.catalog().verify(VerifyOptions::default()).await.unwrap().ok);
    node.catalog().start_new_feed().await.unwrap();
    node.catalog().publish(vec![book(300)]).await.unwrap();
    assert_eq!(total(&node), 301);
    node.close().await;
}

#[tokio::test]
async fn damage_in_a_peers_feed_is_fetched_again() {
    let mut pair = Pair::with(300).await;
    pair.reader.close().await;
    let database = rusqlite::Connection::open(pair.dirs[1].path().join("p2p.db")).unwrap();
    let sql = "UPDATE core_blocks SET bytes = x'00' WHERE place & 0xffffffffff IN (7, 70)";
    assert_eq!(database.execute(sql, []).unwrap(), 2);
    drop(database);
    pair.reader = open(&pair.testnet, pair.dirs[1].path()).await;
    let key = pair.writer.identity().public_key();
    until(&pair.reader, "the peer", |node| {
        node.peers().get(&key).is_some_and(|peer| peer.is_online)
    })
    .await;
    let verify = || async {
        let options = VerifyOptions { peers: true, ..VerifyOptions::default() };
        pair.reader.catalog().verify(options).await.unwrap()
    };
    let found = verify().await;
    assert!(found.ok);
    assert_eq!(found.refetched, [pair.writer.identity().public_key_text()]);
    let refetched = async {
        loop {
            let core = rusqlite::Connection::open(pair.dirs[1].path().join("p2p.db")).unwrap();
            let sql = "SELECT count(*) FROM core_blocks WHERE length(bytes) > 1";
            if core.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap() == 300 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(support::patience(), refetched).await.unwrap();
    assert!(verify().await.refetched.is_empty());
    pair.close().await;
}
