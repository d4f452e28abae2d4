//! `kill -9` at random moments, in appends, replication and transfers: nothing that was acknowledged is
//! lost, and what is left opens, verifies and goes on.
//!
//! `KILLS` says how often (24 unless set), `KILL_SEED` where to begin, `KILL_ROLE` who alone is killed. A
//! failure names its seed.

mod others;

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use alex_p2p::catalog::{Book, BookEntry, VerifyOptions};
use alex_p2p::crypto::KeyPair;
use alex_p2p::hypercore::replicator::{Policy as CorePolicy, Replicator};
use alex_p2p::hypercore::storage::Survives;
use alex_p2p::hypercore::{Core, Manifest, OpenOptions};
use alex_p2p::protomux::{MuxOptions, Protomux};
use alex_p2p::secret_stream::connect_xx;
use alex_p2p::store::{CoreStore, Database};
use alex_p2p::transfer::{BookRequest, Filter, Policy, State, Transfer, TransferLimits};
use bytes::Bytes;
use tempfile::TempDir;
use tokio::net::TcpStream;

use self::others::{OtherLog, OtherServer};
use crate::dice::Dice;
use crate::support::{Disk, Server, connect, patience, soon, until_state};

const VARIABLE: &str = "ALEX_P2P_KILLED";
/// Entries an append, in turn.
const BATCHES: [u64; 3] = [1, 10, 500];
/// The latest kill, after the victim began its work.
const LATEST: Duration = Duration::from_millis(250);
const BOOK_BYTES: usize = 3 << 20;
/// Of every second book: it is often being put in its place when the end comes.
const SMALL_BOOK_BYTES: usize = 100_000;

/// What the process does that is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Append,
    /// Appends that survive this, and not the loss of power.
    Note,
    Fetch,
    Publish,
    Follow,
    Send,
    Receive,
}

const ROLES: [Role; 7] =
    [Role::Append, Role::Note, Role::Fetch, Role::Publish, Role::Follow, Role::Send, Role::Receive];

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

fn victim_keys() -> KeyPair {
    KeyPair::from_seed(&[77; 32])
}

fn other_keys() -> KeyPair {
    KeyPair::from_seed(&[78; 32])
}

fn block(index: u64) -> Bytes {
    format!("{index}:{}", "x".repeat((index % 97) as usize)).into()
}

fn books(numbers: std::ops::Range<u64>) -> Vec<Book> {
    let entry = |number| BookEntry {
        id: format!("b{number}"),
        title: format!("Book number {number}"),
        ..BookEntry::default()
    };
    numbers.map(|number| Book { entry: entry(number), source: None }).collect()
}

async fn server(folder: &Path, keys: &KeyPair) -> Server {
    Server::start_in(folder, keys, Policy::AutoAccept, TransferLimits::default()).await
}

async fn fetch_book(server: &Server, peer: &KeyPair, number: u64) -> Transfer {
    let peer = peer.public_key().to_z32();
    let request = BookRequest { peer, book_id: format!("book{number}"), save_to: None };
    // The catalog may not be here yet.
    server.transfers.request(request).await.unwrap()
}

/// Not a test by itself: the process that is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn victim() {
    let Ok(variable) = std::env::var(VARIABLE) else { return };
    std::thread::spawn(|| {
        // Nobody is left behind when the test ends early.
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(1);
    });
    let mut words = variable.splitn(5, ' ');
    let mut word = || words.next().unwrap();
    let (role, batch, at) = (word().to_owned(), word().to_owned(), word().to_owned());
    let (number, folder) = (word().parse::<u64>().unwrap(), PathBuf::from(word()));
    let (batch, at) = (batch.parse().unwrap(), at.parse().unwrap());
    let role = ROLES.into_iter().find(|known| format!("{known:?}") == role).unwrap();
    match role {
        Role::Append => append(&folder, batch).await,
        Role::Note => note(&folder, batch).await,
        Role::Fetch => fetch(&folder, at).await,
        _ => serve(role, &folder, batch, at, number).await,
    }
}

async fn append(folder: &Path, batch: u64) {
    let (_database, core) = open_log(folder);
    println!("ready");
    loop {
        let start = core.length();
        core.append((start..start + batch).map(block).collect()).await.unwrap();
        println!("acknowledged {}", core.length());
    }
}

/// Appends one by one, and every now and then a batch that is synced.
async fn note(folder: &Path, batch: u64) {
    let (_database, core) = open_log(folder);
    println!("ready");
    loop {
        for _ in 0..100 {
            let next = vec![block(core.length())];
            core.append_surviving(next, Survives::Process).await.unwrap();
            println!("acknowledged {}", core.length());
            // Now before, now after the commits.
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
        let start = core.length();
        core.append((start..start + batch).map(block).collect()).await.unwrap();
        println!("acknowledged {}", core.length());
    }
}

fn open_log(folder: &Path) -> (Database, Core) {
    let database = Database::open(&folder.join("p2p.db")).unwrap();
    let keys = victim_keys();
    let manifest = Some(Manifest::single(keys.public_key()));
    let key = Manifest::single(keys.public_key()).key();
    let options = OpenOptions { manifest, writer: Some(keys), ..OpenOptions::default() };
    let core = Core::open(&CoreStore::new(database.clone()), key, options).unwrap();
    (database, core)
}

async fn fetch(folder: &Path, at: SocketAddr) {
    let database = Database::open(&folder.join("p2p.db")).unwrap();
    let storage = CoreStore::new(database);
    let core = Core::open(&storage, other_log_key(), OpenOptions::default()).unwrap();
    let replicator = Replicator::new();
    replicator.add(core.clone(), CorePolicy::fetch());
    let _mux =
        attach(&replicator, TcpStream::connect(at).await.unwrap(), true, &victim_keys()).await;
    println!("ready");
    let mut changes = core.subscribe();
    loop {
        changes.changed().await.unwrap();
        let here = changes.borrow_and_update().contiguous_length;
        core.flush().await.unwrap();
        println!("acknowledged {here}");
    }
}

fn other_log_key() -> [u8; 32] {
    Manifest::single(other_keys().public_key()).key()
}

async fn attach(
    replicator: &Replicator,
    stream: TcpStream,
    is_initiator: bool,
    keys: &KeyPair,
) -> Option<Protomux> {
    let mux = Protomux::new(
        connect_xx(stream, is_initiator, keys).await.ok()?,
        MuxOptions { paused: true },
    );
    replicator.attach(&mux);
    mux.start();
    Some(mux)
}

async fn serve(role: Role, folder: &Path, batch: u64, at: SocketAddr, number: u64) {
    let server = server(folder, &victim_keys()).await;
    if role == Role::Send {
        offer(&server, folder, number).await;
    }
    let _mux = server.join(TcpStream::connect(at).await.unwrap(), true).await;
    println!("ready");
    match role {
        Role::Publish => loop {
            let start = server.catalog.length();
            server.catalog.publish(books(start..start + batch)).await.unwrap();
            println!("acknowledged {}", server.catalog.length());
        },
        Role::Receive => {
            let transfer = fetch_book(&server, &other_keys(), number).await;
            until_state(&transfer, State::Completed).await;
            println!("acknowledged 1");
        }
        _ => {}
    }
    std::future::pending().await
}

fn book_bytes(number: u64) -> Vec<u8> {
    let mut dice = Dice::new(number);
    let least = if number.is_multiple_of(2) { BOOK_BYTES } else { SMALL_BOOK_BYTES };
    let mut bytes: Vec<u8> = Vec::with_capacity(least + 70_000);
    while bytes.len() < least + number as usize % 70_000 {
        bytes.extend(dice.next().to_le_bytes());
    }
    bytes
}

async fn offer(server: &Server, folder: &Path, number: u64) {
    let path = folder.join(format!("book{number}.epub"));
    if !path.exists() {
        std::fs::write(&path, book_bytes(number)).unwrap();
    }
    server.publish(&format!("book{number}"), &path).await;
}

/// The process that is killed, and what it has acknowledged.
struct Victim {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Victim {
    fn start(role: Role, batch: u64, at: SocketAddr, number: u64, folder: &Path) -> Self {
        let variable = format!("{role:?} {batch} {at} {number} {}", folder.display());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kills::victim", "--nocapture"])
            .env(VARIABLE, variable)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (told, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| told.send(line))
        });
        let mut victim = Self { child, lines };
        loop {
            match victim.lines.recv_timeout(patience()) {
                Ok(line) if line.contains("ready") => return victim,
                Ok(_) => {}
                Err(error) => {
                    victim.kill();
                    panic!("the victim did not begin: {error}");
                }
            }
        }
    }

    /// Kills it as `kill -9` does, and returns the last thing that it had acknowledged.
    fn kill(&mut self) -> u64 {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        // The pipe has all that was said before the end.
        let last = self.lines.iter().filter_map(|line| {
            line.strip_prefix("acknowledged ").map(|count| count.parse().unwrap())
        });
        last.last().unwrap_or(0)
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One role, killed once with each batch; the folder is the same.
struct Scene {
    role: Role,
    folder: TempDir,
    /// The other server's.
    disk: Disk,
}

impl Scene {
    async fn play(role: Role, seeds: std::ops::Range<u64>) -> u64 {
        let disk = Disk { dir: tempfile::tempdir().unwrap(), keys: other_keys() };
        let scene = Self { role, folder: tempfile::tempdir().unwrap(), disk };
        let mut acknowledged = 0;
        match role {
            Role::Append | Role::Note => {
                for seed in seeds {
                    acknowledged += scene.kill_appending(seed).await;
                }
            }
            Role::Fetch => {
                let other = OtherLog::start().await;
                for seed in seeds {
                    acknowledged += scene.kill_fetching(seed, &other).await;
                }
            }
            _ => {
                let mut other = OtherServer::start(&scene.disk).await;
                for seed in seeds {
                    acknowledged += scene.kill_server(seed, &mut other).await;
                }
            }
        }
        acknowledged
    }

    /// Starts the victim, kills it at a moment that the seed says, and returns what it acknowledged.
    async fn killed(&self, seed: u64, at: SocketAddr) -> u64 {
        let batch = BATCHES[(seed % 3) as usize];
        let (role, folder) = (self.role, self.folder.path().to_owned());
        let start = move || Victim::start(role, batch, at, seed, &folder);
        let mut victim = tokio::task::spawn_blocking(start).await.unwrap();
        // The moment is what is random here.
        let moment = Dice::new(seed).below(LATEST.as_micros() as u64);
        tokio::time::sleep(Duration::from_micros(moment)).await;
        tokio::task::spawn_blocking(move || victim.kill()).await.unwrap()
    }

    async fn kill_appending(&self, seed: u64) -> u64 {
        let acknowledged = self.killed(seed, "127.0.0.1:9".parse().unwrap()).await;
        let (database, core) = open_log(self.folder.path());
        check_log(&core, acknowledged, seed).await;
        core.close().await.unwrap();
        database.close();
        acknowledged
    }

    async fn kill_fetching(&self, seed: u64, other: &OtherLog) -> u64 {
        let batch = BATCHES[(seed % 3) as usize];
        let core = other.core.clone();
        let growing = tokio::spawn(async move {
            loop {
                let start = core.length();
                core.append((start..start + batch).map(block).collect()).await.unwrap();
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        let acknowledged = self.killed(seed, other.at).await;
        growing.abort();
        let database = Database::open(&self.folder.path().join("p2p.db")).unwrap();
        let storage = CoreStore::new(database.clone());
        let core = Core::open(&storage, other_log_key(), OpenOptions::default()).unwrap();
        let here = core.contiguous_length();
        assert!(here >= acknowledged, "seed {seed}: {here} of {acknowledged}");
        let verified = core.verify(None).await.unwrap();
        assert!(verified.bad.is_empty(), "seed {seed}: {verified:?}");
        for index in (0..core.length()).filter(|index| core.has(*index)) {
            assert_eq!(core.get(index).unwrap(), Some(block(index)), "seed {seed}");
        }
        core.close().await.unwrap();
        database.close();
        acknowledged
    }

    async fn kill_server(&self, seed: u64, other: &mut OtherServer) -> u64 {
        let mut growing = None;
        match self.role {
            Role::Follow => growing = Some(other.publish(BATCHES[(seed % 3) as usize])),
            Role::Receive => offer(&other.server, self.disk.dir.path(), seed).await,
            Role::Send => {
                fetch_book(&other.server, &victim_keys(), seed).await;
            }
            _ => {}
        }
        let acknowledged = self.killed(seed, other.at).await;
        if let Some(growing) = growing.take() {
            growing.abort();
            let _ = growing.await;
        }
        let again = server(self.folder.path(), &victim_keys()).await;
        if acknowledged > 0 && self.role == Role::Receive {
            let done = Filter { state: Some(State::Completed), ..Filter::default() };
            let done = again.transfers.list(&done).unwrap();
            let book = done.iter().find(|info| info.book_id == format!("book{seed}"));
            let path = book.and_then(|info| info.path.as_ref());
            let path = path.unwrap_or_else(|| panic!("seed {seed}: the book is not there"));
            assert!(std::fs::read(path).unwrap() == book_bytes(seed), "seed {seed}: another book");
        }
        let options = VerifyOptions { peers: true, ..VerifyOptions::default() };
        let found = again.catalog.verify(options).await.unwrap();
        assert!(found.ok && !found.rebuilt && found.refetched.is_empty(), "seed {seed}: {found:?}");
        let length = again.catalog.length();
        if self.role == Role::Publish {
            assert!(length >= acknowledged, "seed {seed}: {length} of {acknowledged}");
            assert_eq!(again.catalog.status().unwrap().unwrap().books, length, "seed {seed}");
        }
        let connection = connect(&again, &other.server).await;
        let there: &Server = &other.server;
        for (reader, writer) in [(&again, there), (there, &again)] {
            soon(replayed(reader, writer)).await;
            assert_eq!(writer.catalog.trouble(), None, "seed {seed}");
        }
        match self.role {
            Role::Send => arrived(&other.server, &victim_keys(), seed).await,
            Role::Receive => arrived(&again, &other_keys(), seed).await,
            _ => {}
        }
        drop(connection);
        if self.role == Role::Receive {
            only_whole_books(&again, self.folder.path(), seed);
        }
        again.stop().await;
        let left = std::fs::read_dir(self.folder.path().join("incoming")).unwrap();
        let left: Vec<_> = left.map(|file| file.unwrap().file_name()).collect();
        assert!(left.is_empty(), "seed {seed}: {left:?} is left");
        acknowledged
    }
}

async fn arrived(server: &Server, from: &KeyPair, seed: u64) {
    let transfer = fetch_book(server, from, seed).await;
    let info = until_state(&transfer, State::Completed).await;
    let path = info.path.unwrap();
    assert!(std::fs::read(&path).unwrap() == book_bytes(seed), "seed {seed}: another book");
}

/// Every file among the books is what one completed transfer says it has fetched.
fn only_whole_books(server: &Server, folder: &Path, seed: u64) {
    let done = Filter { state: Some(State::Completed), limit: Some(10_000), ..Filter::default() };
    let done = server.transfers.list(&done).unwrap();
    let mut told: Vec<PathBuf> = done.into_iter().filter_map(|info| info.path).collect();
    let files = std::fs::read_dir(folder.join("books")).unwrap();
    let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    told.sort();
    files.sort();
    assert_eq!(files, told, "seed {seed}");
}

/// Waits until `reader` shows all of `writer`'s catalog.
async fn replayed(reader: &Server, writer: &Server) {
    let mut events = reader.events.subscribe(None);
    loop {
        // It may still be replaying what it published last.
        let wanted = writer.catalog.status().unwrap().unwrap();
        let shown = reader.catalog.of(writer.key).status().unwrap();
        let is_whole = |shown: &alex_p2p::catalog::CatalogStatus| {
            (shown.replayed, shown.books) == (wanted.length, wanted.books)
        };
        if shown.as_ref().is_some_and(is_whole) {
            return;
        }
        // A hello has no event.
        let _ = tokio::time::timeout(Duration::from_millis(100), events.next()).await;
    }
}

async fn check_log(core: &Core, acknowledged: u64, seed: u64) {
    let length = core.length();
    assert!(length >= acknowledged, "seed {seed}: {length} of {acknowledged}");
    let verified = core.verify(None).await.unwrap();
    assert!(length == 0 || verified.whole && verified.good == length, "seed {seed}: {verified:?}");
    for index in 0..length {
        assert_eq!(core.get(index).unwrap(), Some(block(index)), "seed {seed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_a_process_is_killed() {
    let (first, kills) = (number("KILL_SEED", 1), number("KILLS", 24));
    let began = Instant::now();
    let mut acknowledged = [0u64; ROLES.len()];
    let mut seed = first;
    while seed < first + kills {
        let scene = (seed / 3) as usize % ROLES.len();
        let end = (seed + 3).min(first + kills);
        let only = std::env::var("KILL_ROLE").ok();
        let only = only.and_then(|only| ROLES.into_iter().find(|role| format!("{role:?}") == only));
        let role = only.unwrap_or(ROLES[scene]);
        println!("seeds {seed} to {} {role:?} {:?}", end - 1, began.elapsed());
        acknowledged[scene] += Scene::play(role, seed..end).await;
        seed = end;
    }
    println!("{kills} kills in {:?}; acknowledged: {acknowledged:?}", began.elapsed());
    assert!(acknowledged.iter().sum::<u64>() > 0);
}
