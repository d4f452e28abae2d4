//! Backups that somebody changed, and those that nothing proves: who gets a right by them.

use std::path::{Path, PathBuf};

use alex_p2p::catalog::{Book, BookEntry};
use alex_p2p::crypto::KeyPair;
use alex_p2p::error::ErrorCode;
use alex_p2p::node::{BackupOptions, Node};
use alex_p2p::peers::{AddOptions, PeerUpdate, Policy};
use alex_p2p::transfer::BookSource;
use tempfile::TempDir;

use super::{alone, book, books, refused, total, with_passphrase};

const PASSPHRASE: Option<&str> = Some("correct horse");
/// The footer's length, and where the lengths of the parts stand in it.
const FOOTER: usize = 96;
const LENGTHS: std::ops::Range<usize> = 32..44;

fn friend() -> String {
    KeyPair::from_seed(&[1; 32]).public_key().to_z32()
}

fn attacker() -> String {
    KeyPair::from_seed(&[66; 32]).public_key().to_z32()
}

/// A node with a friend and a book that has a file, and its backup.
struct Setup {
    folder: TempDir,
    key: String,
    backup: PathBuf,
    bytes: Vec<u8>,
}

impl Setup {
    async fn with(options: BackupOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let node = alone(&folder.path().join("data")).await;
        node.catalog().publish(books(0..300)).await.unwrap();
        let file = folder.path().join("a.epub");
        std::fs::write(&file, "a book").unwrap();
        let entry = BookEntry { id: "file".into(), title: "File".into(), ..BookEntry::default() };
        let with_file = Book { entry, source: Some(BookSource::Path(file)) };
        node.catalog().publish(vec![with_file]).await.unwrap();
        let options_of_friend =
            AddOptions { nickname: Some("Friend".into()), ..AddOptions::default() };
        let added = node.peers().add(&friend(), options_of_friend).await.unwrap();
        let update = PeerUpdate { policy: Some(Some(Policy::AutoAccept)), ..PeerUpdate::default() };
        let key = alex_p2p::crypto::PublicKey::from_z32(&added.key).unwrap();
        node.peers().update(&key, update).await.unwrap();
        let backup = folder.path().join("a.backup");
        node.backup(&backup, options).await.unwrap();
        let key = node.identity().public_key_text();
        node.close().await;
        let bytes = std::fs::read(&backup).unwrap();
        Self { folder, key, backup, bytes }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// How long the database and the encrypted identity in the backup are.
    fn lengths(&self) -> (usize, usize) {
        let footer = &self.bytes[self.bytes.len() - FOOTER..];
        let (database, identity) = footer[LENGTHS].split_first_chunk::<8>().unwrap();
        let identity = u32::from_le_bytes(identity.try_into().unwrap());
        (u64::from_le_bytes(*database) as usize, identity as usize)
    }

    fn database(&self) -> &[u8] {
        &self.bytes[..self.lengths().0]
    }

    /// The backup as versions without footers made it.
    fn old_format(&self, name: &str) -> PathBuf {
        let path = self.write(name, self.database());
        let (database, identity) = self.lengths();
        let connection = rusqlite::Connection::open(&path).unwrap();
        let key = alex_p2p::crypto::PublicKey::from_z32(&self.key).unwrap();
        let put = "INSERT INTO meta (name, value) VALUES (?1, ?2)";
        connection.execute(put, ("backup_public_key", key.as_bytes())).unwrap();
        let sealed = &self.bytes[database..database + identity];
        connection.execute(put, ("backup_identity", sealed)).unwrap();
        path
    }

    /// A copy of the backup whose database `sql` was run on; the rest is put behind it again, and fits.
    fn changed(&self, name: &str, sql: &str) -> PathBuf {
        let path = self.write(name, self.database());
        rusqlite::Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let length = bytes.len() as u64;
        bytes.extend(&self.bytes[self.lengths().0..]);
        let footer = bytes.len() - FOOTER;
        bytes[footer + LENGTHS.start..][..8].copy_from_slice(&length.to_le_bytes());
        self.write(name, &bytes)
    }

    /// What restoring it fails with. Nothing may be left of it.
    async fn refused(&self, backup: &Path) -> ErrorCode {
        let to = self.path("refused");
        let error = Node::restore(backup, &to, PASSPHRASE).await.unwrap_err();
        assert!(!to.exists(), "{error}");
        error.code
    }

    /// Restores what nothing proves, and sees that nobody has a right by it.
    async fn catalog_only(&self, backup: &Path, name: &str) -> Node {
        let to = self.path(name);
        let restored = Node::restore_unauthenticated(backup, &to, PASSPHRASE).await.unwrap();
        assert!(restored.catalog_only && restored.has_identity);
        assert_eq!(restored.public_key, self.key);
        assert_eq!(files(&to), ["keypair.json", "lock", "p2p.db"]);
        let node = alone(&to).await;
        assert!(node.peers().list().is_empty() && node.peers().pending().is_empty());
        assert!(node.transfers().list(&Default::default()).unwrap().is_empty());
        let connection = rusqlite::Connection::open(to.join("p2p.db")).unwrap();
        for table in ["catalog_sources", "peers", "transfers", "transfer_files", "knocks"] {
            let count = format!("SELECT count(*) FROM {table}");
            let count: i64 = connection.query_row(&count, [], |row| row.get(0)).unwrap();
            assert_eq!(count, 0, "{table}");
        }
        node
    }
}

fn files(folder: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.unwrap().file_name().into_string().unwrap()
    };
    let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(name).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn what_was_backed_up_comes_back_whole() {
    let setup = Setup::with(with_passphrase()).await;
    let to = setup.path("to");
    let restored = Node::restore(&setup.backup, &to, PASSPHRASE).await.unwrap();
    assert!(restored.has_identity && !restored.catalog_only);
    assert_eq!(files(&to), ["keypair.json", "lock", "p2p.db"]);
    let node = alone(&to).await;
    let peers = node.peers().list();
    assert_eq!((peers.len(), peers[0].key.as_str()), (1, friend().as_str()));
    assert_eq!((peers[0].policy, total(&node)), (Some(Policy::AutoAccept), 301));
    node.close().await;
    let database = rusqlite::Connection::open(to.join("p2p.db")).unwrap();
    let path = "SELECT path FROM catalog_sources WHERE book_id = 'file'";
    let path: String = database.query_row(path, [], |row| row.get(0)).unwrap();
    assert!(path.ends_with("a.epub"));
    // The consent takes nothing away where none is needed.
    let other = setup.path("other");
    let restored = Node::restore_unauthenticated(&setup.backup, &other, PASSPHRASE).await.unwrap();
    assert!(!restored.catalog_only);
}

#[tokio::test]
async fn the_key_pair_beside_it_proves_a_backup_too() {
    for options in [BackupOptions::default(), with_passphrase()] {
        let setup = Setup::with(options).await;
        let to = setup.path("to");
        std::fs::create_dir(&to).unwrap();
        std::fs::copy(setup.path("data/keypair.json"), to.join("keypair.json")).unwrap();
        let changed = setup.changed("changed", "DELETE FROM peers");
        let error = Node::restore(&changed, &to, None).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Corrupt);
        let restored = Node::restore(&setup.backup, &to, None).await.unwrap();
        assert!(!restored.has_identity && !restored.catalog_only);
    }
}

#[tokio::test]
async fn a_byte_that_changes_anywhere_is_noticed() {
    let setup = Setup::with(with_passphrase()).await;
    let (database, identity) = setup.lengths();
    let size = setup.bytes.len();
    assert_eq!(size, database + identity + FOOTER);
    let everywhere = (0..database).step_by(database / 12);
    let everywhere =
        everywhere.chain([database - 1]).chain((database..database + identity).step_by(40));
    for at in everywhere.chain((database + identity..size).step_by(9)).chain([size - 1]) {
        let mut bytes = setup.bytes.clone();
        bytes[at] ^= 1;
        let code = setup.refused(&setup.write("flipped", &bytes)).await;
        // A seal that was changed cannot be told from a wrong passphrase.
        let is_expected = matches!(code, ErrorCode::Corrupt | ErrorCode::Denied);
        assert!(is_expected, "byte {at} of {database} + {identity} + {FOOTER}: {code:?}");
    }
    for length in [0, 1, 95, 96, 4096, database, size - 1] {
        let cut = setup.write("cut", &setup.bytes[..length]);
        assert_eq!(setup.refused(&cut).await, ErrorCode::Corrupt, "{length} bytes");
    }
    let longer = setup.write("longer", &[&setup.bytes[..], b"x"].concat());
    assert_eq!(setup.refused(&longer).await, ErrorCode::Corrupt);
}

#[tokio::test]
async fn a_backup_that_was_changed_is_refused_and_gives_nobody_a_right() {
    let setup = Setup::with(with_passphrase()).await;
    let attacker = attacker();
    let row = format!(
        "INSERT INTO peers (public_key, status, added_at) VALUES ('{attacker}', 'approved', 1);"
    );
    let again = format!(
        "CREATE TRIGGER again AFTER DELETE ON peers WHEN OLD.public_key = '{attacker}' BEGIN {row} END;"
    );
    let restored = format!(
        "CREATE TRIGGER later AFTER INSERT ON meta WHEN NEW.name = 'catalog_restored' BEGIN {row} END;"
    );
    let any_file = "INSERT INTO catalog_sources VALUES ('b1', '/etc/passwd')";
    for (number, sql) in [&row, any_file].into_iter().enumerate() {
        let changed = setup.changed(&format!("row {number}"), sql);
        assert_eq!(setup.refused(&changed).await, ErrorCode::Corrupt, "{sql}");
        let node = setup.catalog_only(&changed, &format!("to {number}")).await;
        assert_eq!(total(&node), 301);
        assert_eq!(refused(&node).await, ErrorCode::FeedUnconfirmed);
        node.catalog().resume_publishing().await.unwrap();
        node.catalog().publish(vec![book(301)]).await.unwrap();
        node.close().await;
    }
    // What would run is not opened, whatever anybody says.
    let view = "DROP TABLE knocks; CREATE VIEW knocks AS SELECT 1 AS public_key;".to_owned();
    let index = "CREATE UNIQUE INDEX one ON peers (status);".to_owned();
    for sql in [again, restored, view, index, "CREATE TABLE mine (x);".to_owned()] {
        let changed = setup.changed("schema", &sql);
        assert_eq!(setup.refused(&changed).await, ErrorCode::Corrupt, "{sql}");
        let to = setup.path("to");
        let error = Node::restore_unauthenticated(&changed, &to, PASSPHRASE).await.unwrap_err();
        assert_eq!((error.code, to.exists()), (ErrorCode::Corrupt, false), "{sql}");
        std::fs::remove_file(changed).unwrap();
    }
}

#[tokio::test]
async fn a_backup_without_its_footer_needs_consent() {
    let setup = Setup::with(with_passphrase()).await;
    for (name, backup) in
        [("stripped", setup.write("stripped", setup.database())), ("old", setup.old_format("old"))]
    {
        assert_eq!(setup.refused(&backup).await, ErrorCode::Corrupt);
        let to = setup.path(&format!("{name} to"));
        if name == "old" {
            setup.catalog_only(&backup, &format!("{name} sealed")).await.close().await;
            let error = Node::restore_unauthenticated(&backup, &to, Some("wrong horse")).await;
            assert_eq!((error.unwrap_err().code, to.exists()), (ErrorCode::Denied, false));
        } else {
            // Nothing says whose it is.
            let error = Node::restore_unauthenticated(&backup, &to, PASSPHRASE).await;
            assert_eq!((error.unwrap_err().code, to.exists()), (ErrorCode::InvalidState, false));
        }
        std::fs::create_dir(&to).unwrap();
        std::fs::copy(setup.path("data/keypair.json"), to.join("keypair.json")).unwrap();
        let error = Node::restore(&backup, &to, None).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Corrupt);
        let restored = Node::restore_unauthenticated(&backup, &to, None).await.unwrap();
        assert!(restored.catalog_only && !restored.has_identity);
        let node = alone(&to).await;
        assert_eq!((total(&node), node.peers().list().len()), (301, 0));
        node.close().await;
    }
}

#[tokio::test]
async fn a_catalog_that_the_identity_did_not_sign_is_refused_with_consent_too() {
    let setup = Setup::with(with_passphrase()).await;
    for sql in [
        "UPDATE core_blocks SET bytes = CAST ('{}' AS BLOB) WHERE place & 1023 = 7",
        "DELETE FROM core_blocks WHERE place & 1023 = 7",
        "UPDATE core_nodes SET nodes = zeroblob(length(nodes))",
        "UPDATE cores SET signature = zeroblob(length(signature))",
        "UPDATE cores SET length = length - 1",
        "UPDATE cores SET fork = 1",
        "DELETE FROM core_bits",
    ] {
        let changed = setup.changed("changed", sql);
        let to = setup.path("to");
        let error = Node::restore_unauthenticated(&changed, &to, PASSPHRASE).await.unwrap_err();
        assert_eq!((error.code, to.exists()), (ErrorCode::Corrupt, false), "{sql}: {error}");
    }
    // Without a feed that it could go on with, a new one is begun.
    let changed = setup.changed("changed", "DELETE FROM cores");
    let node = setup.catalog_only(&changed, "new").await;
    assert_eq!((total(&node), node.catalog().trouble()), (0, None));
    node.catalog().publish(vec![book(1)]).await.unwrap();
    node.close().await;
}

#[tokio::test]
async fn a_backup_of_a_newer_version_says_so() {
    let setup = Setup::with(with_passphrase()).await;
    let mut newer = setup.bytes.clone();
    let version = newer.len() - 20;
    newer[version] = 2;
    let newer = setup.write("newer", &newer);
    let error = Node::restore(&newer, &setup.path("to"), PASSPHRASE).await.unwrap_err();
    assert!(error.code == ErrorCode::Corrupt && error.message.contains("update"), "{error}");
    let newer = setup.changed("schema", "PRAGMA user_version = 1000");
    let to = setup.path("to");
    let error = Node::restore_unauthenticated(&newer, &to, PASSPHRASE).await.unwrap_err();
    assert!(error.code == ErrorCode::Corrupt && error.message.contains("update"), "{error}");
}

#[tokio::test]
async fn what_somebody_put_into_the_database_is_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let node = alone(folder.path()).await;
    node.catalog().publish(books(0..3)).await.unwrap();
    node.close().await;
    let sqlite = |sql: &str| {
        let connection = rusqlite::Connection::open(folder.path().join("p2p.db")).unwrap();
        connection.execute_batch(sql).unwrap();
    };
    let trigger = "CREATE TRIGGER mine AFTER INSERT ON meta BEGIN DELETE FROM peers; END";
    let index = "CREATE UNIQUE INDEX mine ON peers (status)";
    let options = || alex_p2p::node::NodeOptions::new(folder.path());
    for (sql, undo) in [
        (trigger, "DROP TRIGGER mine"),
        ("CREATE VIEW mine AS SELECT 1", "DROP VIEW mine"),
        (index, "DROP INDEX mine"),
        ("DROP INDEX catalog_by_title", ""),
    ] {
        sqlite(sql);
        let error = Node::open(options()).await.map(drop).unwrap_err();
        assert_eq!(error.code, ErrorCode::Corrupt, "{sql}");
        let name = if undo.is_empty() { "catalog_by_title" } else { "\"mine\"" };
        assert!(error.message.contains(name), "{error}");
        sqlite(undo);
        if undo.is_empty() {
            let again = "CREATE INDEX catalog_by_title ON catalog_books (part, title, row, format, language)";
            sqlite(again);
        }
    }
    // A person's own tables do nothing, and are not what is backed up.
    sqlite(
        "CREATE TABLE mine (key TEXT REFERENCES peers ON DELETE RESTRICT, x UNIQUE);
         CREATE INDEX mine_by_key ON mine (key); ANALYZE;",
    );
    let node = alone(folder.path()).await;
    node.peers().add(&friend(), AddOptions::default()).await.unwrap();
    sqlite(&format!("INSERT INTO mine (key) VALUES ('{}')", friend()));
    let key = KeyPair::from_seed(&[1; 32]).public_key();
    assert!(node.peers().remove(&key).await.unwrap());
    let backup = folder.path().join("a.backup");
    node.backup(&backup, with_passphrase()).await.unwrap();
    node.close().await;
    let to = folder.path().join("to");
    Node::restore(&backup, &to, PASSPHRASE).await.unwrap();
    let node = alone(&to).await;
    assert_eq!(total(&node), 3);
    node.close().await;
}
