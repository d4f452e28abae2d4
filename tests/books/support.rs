//! Servers with catalogs and transfers, joined by encrypted connections in memory.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alex_p2p::catalog::{Book, BookEntry, Catalog, CatalogOptions};
use alex_p2p::crypto::{KeyPair, PublicKey};
use alex_p2p::error::Error;
use alex_p2p::events::{EventKind, Events};
use alex_p2p::hypercore::Storage;
use alex_p2p::hypercore::replicator::Replicator;
use alex_p2p::protomux::{MuxOptions, Protomux};
use alex_p2p::secret_stream::connect_xx;
use alex_p2p::store::{CoreStore, Database, StoreError};
use alex_p2p::transfer::message::{Hello, VERSION};
use alex_p2p::transfer::{
    BookRequest, BookSource, PeerRules, Policy, State, Transfer, TransferInfo, TransferLimits,
    TransferOptions, Transfers,
};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};

/// How long something may stay as it is before it is taken for stuck: a minute, or `PATIENCE` seconds for long
/// runs on a machine that does other things at the same time.
pub fn patience() -> Duration {
    let told = std::env::var("PATIENCE").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(told.unwrap_or(60))
}

/// What outlives a server's process.
pub struct Disk {
    pub dir: TempDir,
    pub keys: KeyPair,
}

impl Disk {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir, keys: KeyPair::generate() }
    }

    /// A copy of the stopped server, as `cp -r` makes it.
    pub fn copy(&self) -> Self {
        let copy = Self { dir: tempfile::tempdir().unwrap(), keys: self.keys.clone() };
        for file in std::fs::read_dir(self.dir.path()).unwrap() {
            let from = file.unwrap().path();
            if from.is_file() {
                std::fs::copy(&from, copy.dir.path().join(from.file_name().unwrap())).unwrap();
            }
        }
        copy
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file of `size` bytes that depend on `seed`.
    pub fn file(&self, name: &str, size: usize, seed: u64) -> PathBuf {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let bytes = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        });
        let path = self.path(name);
        std::fs::write(&path, bytes.take(size).collect::<Vec<_>>()).unwrap();
        path
    }
}

/// Approves a server, as a person does.
pub async fn approve(database: &Database, peer: &PublicKey) -> Result<(), Error> {
    let sql =
        "INSERT OR IGNORE INTO peers (public_key, status, added_at) VALUES (?1, 'approved', 0)";
    let key = peer.to_z32();
    let insert = database.write(move |t| Ok::<_, StoreError>(t.execute(sql, [key]).map(drop)?));
    Ok(insert.await?)
}

/// Everybody is approved, with one policy.
pub struct Rules(pub Mutex<Policy>);

impl PeerRules for Rules {
    fn is_approved(&self, _peer: &PublicKey) -> bool {
        true
    }
    fn policy(&self, _peer: &PublicKey) -> Policy {
        *self.0.lock().unwrap()
    }
}

/// A running server.
pub struct Server {
    pub key: PublicKey,
    keys: KeyPair,
    pub database: Database,
    pub replicator: Replicator,
    pub events: Events,
    pub catalog: Catalog,
    pub transfers: Transfers,
    pub rules: Arc<Rules>,
}

impl Server {
    pub async fn start(disk: &Disk, policy: Policy) -> Self {
        Self::start_with(disk, policy, TransferLimits::default()).await
    }

    pub async fn start_with(disk: &Disk, policy: Policy, limits: TransferLimits) -> Self {
        Self::start_in(disk.dir.path(), &disk.keys, policy, limits).await
    }

    /// A server in a folder that outlives it.
    pub async fn start_in(
        folder: &Path,
        keys: &KeyPair,
        policy: Policy,
        limits: TransferLimits,
    ) -> Self {
        Self::try_start(folder, keys, policy, limits).await.unwrap()
    }

    pub async fn try_start(
        folder: &Path,
        keys: &KeyPair,
        policy: Policy,
        limits: TransferLimits,
    ) -> Result<Self, Error> {
        Self::open(folder, keys, policy, limits, false).await
    }

    /// A server that passes peers' catalogs on, or does not.
    pub async fn start_sharing(disk: &Disk, share_feeds: bool) -> Self {
        let (policy, limits) = (Policy::AutoAccept, TransferLimits::default());
        Self::open(disk.dir.path(), &disk.keys, policy, limits, share_feeds).await.unwrap()
    }

    async fn open(
        folder: &Path,
        keys: &KeyPair,
        policy: Policy,
        limits: TransferLimits,
        share_feeds: bool,
    ) -> Result<Self, Error> {
        let database = Database::open(&folder.join("p2p.db"))?;
        let storage: Arc<dyn Storage> = Arc::new(CoreStore::new(database.clone()));
        let replicator = Replicator::new();
        let events = Events::in_memory();
        let catalog = Catalog::open(CatalogOptions {
            database: database.clone(),
            storage: Arc::clone(&storage),
            replicator: replicator.clone(),
            key_pair: keys.clone(),
            events: events.clone(),
            share_feeds,
        })
        .await?;
        let rules = Arc::new(Rules(Mutex::new(policy)));
        let (feed_key, hearing, approving) = (catalog.key(), catalog.clone(), database.clone());
        let transfers = Transfers::open(TransferOptions {
            database: database.clone(),
            storage: Arc::clone(&storage),
            replicator: replicator.clone(),
            library: Arc::new(catalog.clone()),
            peers: Arc::clone(&rules) as _,
            events: events.clone(),
            hello: Arc::new(move || Hello {
                version: VERSION,
                nickname: None,
                feed_key: Some(feed_key),
                features: Vec::new(),
            }),
            on_hello: Arc::new(move |peer, hello| {
                let (catalog, database) = (hearing.clone(), approving.clone());
                tokio::spawn(async move {
                    let _ = approve(&database, &peer).await;
                    if let Some(key) = hello.feed_key {
                        let _ = catalog.set_feed(peer, key).await;
                    }
                });
            }),
            data_dir: folder.to_owned(),
            books_dir: folder.join("books"),
            limits,
        })
        .await?;
        catalog.on_change(transfers.readers());
        let (key, keys) = (keys.public_key(), keys.clone());
        Ok(Self { key, keys, database, replicator, events, catalog, transfers, rules })
    }

    /// Connects to whoever is at the other end of a stream.
    #[allow(dead_code)] // for tests with several processes
    pub async fn join<S>(&self, stream: S, is_initiator: bool) -> Option<Protomux>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stream = connect_xx(stream, is_initiator, &self.keys).await.ok()?;
        let mux = Protomux::new(stream, MuxOptions { paused: true });
        self.replicator.attach(&mux);
        self.transfers.attach(&mux);
        mux.start();
        Some(mux)
    }

    pub async fn stop(self) {
        self.transfers.close().await;
        self.catalog.close().await;
        self.database.close();
    }

    pub async fn publish(&self, id: &str, path: &Path) {
        let entry = BookEntry {
            id: id.into(),
            title: format!("Title {id}"),
            author: Some("Author".into()),
            format: Some("epub".into()),
            ..BookEntry::default()
        };
        let source = Some(BookSource::Path(path.to_owned()));
        self.catalog.publish(vec![Book { entry, source }]).await.unwrap();
    }

    pub async fn request(&self, from: &Self, book_id: &str) -> Transfer {
        let peer = from.key.to_z32();
        let request = BookRequest { peer, book_id: book_id.into(), save_to: None };
        self.transfers.request(request).await.unwrap()
    }

    /// The one transfer of this server.
    pub fn only_transfer(&self) -> Transfer {
        let all = self.transfers.list(&Default::default()).unwrap();
        assert_eq!(all.len(), 1, "{all:?}");
        self.transfers.get(&all[0].id).unwrap().unwrap()
    }
}

/// Connects two servers. Dropping or closing what this returns ends the connection.
pub async fn connect(a: &Server, b: &Server) -> (Protomux, Protomux) {
    attach(a, b, raw(&a.keys, &b.keys).await)
}

fn attach(a: &Server, b: &Server, muxes: (Protomux, Protomux)) -> (Protomux, Protomux) {
    for (server, mux) in [(a, &muxes.0), (b, &muxes.1)] {
        server.replicator.attach(mux);
        server.transfers.attach(mux);
        mux.start();
    }
    muxes
}

/// [`connect`] over a link of about 20 MB/s, so that a transfer can be caught in the middle.
pub async fn connect_slow(a: &Server, b: &Server) -> (Protomux, Protomux) {
    let (left, middle_left) = tokio::io::duplex(1 << 16);
    let (middle_right, right) = tokio::io::duplex(1 << 16);
    tokio::spawn(async move {
        let (left_read, left_write) = tokio::io::split(middle_left);
        let (right_read, right_write) = tokio::io::split(middle_right);
        tokio::join!(carry(left_read, right_write), carry(right_read, left_write));
    });
    attach(a, b, over(left, right, &a.keys, &b.keys).await)
}

async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let mut chunk = vec![0; 20_000];
    while let Ok(read @ 1..) = from.read(&mut chunk).await {
        if to.write_all(&chunk[..read]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let _ = to.shutdown().await;
}

/// Connects a server to a program that has only protomux.
pub async fn connect_stranger(server: &Server, keys: &KeyPair) -> Protomux {
    approve(&server.database, &keys.public_key()).await.unwrap();
    let (left, right) = raw(&server.keys, keys).await;
    server.replicator.attach(&left);
    server.transfers.attach(&left);
    left.start();
    right.start();
    // The server's end lives as long as the connection.
    tokio::spawn(async move { left.closed().await });
    right
}

async fn raw(a: &KeyPair, b: &KeyPair) -> (Protomux, Protomux) {
    let (left, right) = tokio::io::duplex(1 << 18);
    over(left, right, a, b).await
}

async fn over(
    left: DuplexStream,
    right: DuplexStream,
    a: &KeyPair,
    b: &KeyPair,
) -> (Protomux, Protomux) {
    let (left, right) = tokio::join!(connect_xx(left, true, a), connect_xx(right, false, b));
    let mux = |stream| Protomux::new(stream, MuxOptions { paused: true });
    (mux(left.unwrap()), mux(right.unwrap()))
}

pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(patience(), future).await.expect("it takes too long")
}

/// Waits until the transfer shows what `wanted` says.
pub async fn until(transfer: &Transfer, wanted: impl Fn(&TransferInfo) -> bool) -> TransferInfo {
    let mut info = transfer.info().unwrap();
    while !wanted(&info) {
        let next = tokio::time::timeout(patience(), transfer.changed(&info)).await;
        let next = next.unwrap_or_else(|_| panic!("it stays {info:?}")).unwrap();
        assert!(next != info, "it ended as {info:?}");
        info = next;
    }
    info
}

pub async fn until_state(transfer: &Transfer, state: State) -> TransferInfo {
    until(transfer, |info| info.state == state).await
}

/// Waits for an event.
pub async fn event(events: &Events, wanted: impl Fn(&EventKind) -> bool) -> EventKind {
    let mut all = events.subscribe(Some(0));
    soon(async {
        loop {
            let event = all.next().await.unwrap();
            if wanted(&event.kind) {
                return event.kind.clone();
            }
        }
    })
    .await
}
