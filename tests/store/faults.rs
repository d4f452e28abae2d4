//! Every call that changes a file, or reads a book that is sent, fails once, and from there on: errors have a
//! name and say what to do, nothing that was acknowledged is lost, and everything works again when the disk
//! does, without a restart.
//!
//! `faults.c` is preloaded into processes of their own, several beside each other: what follows a failure is
//! mostly waiting for the next try. `FAULTS_STEP` says how many calls are left out between two that fail (41
//! unless set; 1 leaves out none), `FAULTS_FIRST` where to begin, `FAULTS_LANES` how many processes there are.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use alex_p2p::catalog::{ListOptions, VerifyOptions};
use alex_p2p::error::{Error, ErrorCode};
use alex_p2p::node::{BackupOptions, Node, NodeOptions};
use alex_p2p::protomux::Protomux;
use alex_p2p::transfer::{BookRequest, Policy, State, TransferLimits};

use crate::support::{Disk, Server, connect, soon, until, until_state};
use crate::{book, books};

const STORY: &str = "FAULTS_STORY";
/// Which of how many processes it is.
const LANE: &str = "FAULTS_LANE";
const LANES: u64 = 16;
/// A book that goes through memory, and one that goes over the disk.
const BOOK_BYTES: [usize; 2] = [300_000, 600_000];
/// Linux' numbers.
const EIO: u64 = 5;
const ENOSPC: u64 = 28;

/// What the preloaded library is told.
struct Control {
    file: std::fs::File,
    folder: PathBuf,
}

impl Control {
    fn new() -> Self {
        let path = std::env::var_os("FAULTS_CONTROL").unwrap();
        let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
        Self { file, folder: std::env::var_os("FAULTS_UNDER").unwrap().into() }
    }

    fn write(&self, numbers: [u64; 4]) {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_ne_bytes()).collect();
        self.file.write_all_at(&bytes, 0).unwrap();
    }

    /// Lets calls fail, counted from now.
    fn arm(&self, calls: std::ops::Range<u64>, error: u64) {
        self.write([0, calls.start, calls.end, error]);
    }

    /// Lets all calls work; how many there were.
    fn disarm(&self) -> u64 {
        let mut count = [0; 8];
        self.file.read_exact_at(&mut count, 0).unwrap();
        self.write([0, u64::MAX, u64::MAX, 0]);
        u64::from_ne_bytes(count)
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Not a test by itself: the process whose calls fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn story() {
    let Some(story) = std::env::var_os(STORY) else { return };
    let control = Control::new();
    let (first, step) = (number("FAULTS_FIRST", 0), number("FAULTS_STEP", 41));
    let (lane, lanes) = (number(LANE, 0), number("FAULTS_LANES", LANES));
    let mut runs = 0;
    for run in (lane..).step_by(lanes as usize) {
        let at = first + run / 4 * step;
        let (range, error) = match run % 4 {
            0 => (at..at + 1, EIO),
            1 => (at..u64::MAX, ENOSPC),
            2 => (at..at + 1, ENOSPC),
            _ => (at..u64::MAX, EIO),
        };
        println!("lane {lane}: calls {range:?} fail with {error}");
        let began = Instant::now();
        let folder = control.folder.join("run");
        std::fs::create_dir(&folder).unwrap();
        let calls = match story.to_str().unwrap() {
            "alone" => alone(&control, &folder, range, error).await,
            "reading" => reading(&control, &folder, range, error).await,
            _ => together(&control, &folder, range, error).await,
        };
        std::fs::remove_dir_all(&folder).unwrap();
        runs += 1;
        println!(
            "lane {lane}: {calls} calls from {at}, run {}, took {:?}",
            run % 4,
            began.elapsed()
        );
        if at >= calls {
            println!("lane {lane}: {runs} runs of about {calls} calls");
            return;
        }
    }
}

/// An error of the disk, with words that say what to do.
fn is_of_the_disk(error: &Error) {
    let named = matches!(error.code, ErrorCode::DiskFull | ErrorCode::Io);
    assert!(named, "{:?}: {error}", error.code);
    let advises =
        ["make room", "see whether", "check th"].iter().any(|words| error.message.contains(words));
    assert!(advises, "{error}");
}

fn acknowledged<T>(outcome: Result<T, Error>) -> bool {
    if let Err(error) = &outcome {
        is_of_the_disk(error);
    }
    outcome.is_ok()
}

fn options(folder: &Path) -> NodeOptions {
    NodeOptions {
        bootstrap: Some(Vec::new()),
        host: Some("127.0.0.1".into()),
        port: Some(0),
        ..NodeOptions::new(folder)
    }
}

fn has(node: &Node, number: usize) -> bool {
    node.catalog().get(&format!("b{number}")).unwrap().is_some()
}

/// A node alone: opened, published to, backed up, closed.
async fn alone(control: &Control, folder: &Path, calls: std::ops::Range<u64>, error: u64) -> u64 {
    let (data, backup) = (folder.join("data"), folder.join("a.backup"));
    let node = Node::open(options(&data)).await.unwrap();
    node.catalog().publish(books(0..20)).await.unwrap();
    node.close().await;
    drop(node);

    control.arm(calls, error);
    let opened = soon(Node::open(options(&data))).await;
    let mut kept: Vec<usize> = (0..20).collect();
    let opened = match opened {
        Ok(node) => {
            if acknowledged(soon(node.catalog().publish(vec![book(20)])).await) {
                kept.push(20);
            }
            if acknowledged(soon(node.catalog().publish(books(21..321))).await) {
                kept.extend(21..321);
            }
            if acknowledged(soon(node.catalog().publish(vec![book(400)])).await) {
                kept.push(400);
            }
            acknowledged(soon(node.backup(&backup, BackupOptions::default())).await);
            Some(node)
        }
        Err(error) => {
            is_of_the_disk(&error);
            None
        }
    };
    let count = control.disarm();
    let node = match opened {
        Some(node) => node,
        None => Node::open(options(&data)).await.unwrap(),
    };
    assert_eq!(node.catalog().trouble(), None);
    soon(node.catalog().publish(vec![book(500)])).await.unwrap();
    kept.push(500);
    assert!(kept.iter().all(|number| has(&node, *number)));
    let found = node.catalog().verify(VerifyOptions::default()).await.unwrap();
    assert!(found.ok && !found.rebuilt, "{found:?}");
    let _ = std::fs::remove_file(&backup);
    soon(node.backup(&backup, BackupOptions::default())).await.unwrap();
    soon(node.close()).await;
    drop(node);
    let node = Node::open(options(&data)).await.unwrap();
    assert!(kept.iter().all(|number| has(&node, *number)), "also after a restart");
    assert!(node.catalog().verify(VerifyOptions::default()).await.unwrap().ok);
    node.close().await;
    count
}

/// The disk of either side: a sender whose disk fails says that the book is not available.
fn is_disk_failure(code: &str) {
    assert!(["ERR_DISK_FULL", "ERR_IO", "ERR_UNAVAILABLE"].contains(&code), "{code}");
}

/// The disks of two servers and a book on the first.
fn disks_with_book(folder: &Path, calls: &std::ops::Range<u64>) -> ([Disk; 2], PathBuf) {
    let disks = ["a", "b"].map(|name| {
        std::fs::create_dir(folder.join(name)).unwrap();
        Disk { dir: tempfile::tempdir_in(folder.join(name)).unwrap(), ..Disk::new() }
    });
    let size = BOOK_BYTES[calls.start.count_ones() as usize % 2];
    let file = disks[0].file("book.epub", size, 5);
    (disks, file)
}

/// Two servers that are connected; the second knows of the book that the first has.
async fn connected(disks: &[Disk; 2], book: &Path) -> (Server, Server, (Protomux, Protomux)) {
    let start = |disk| Server::start_with(disk, Policy::AutoAccept, TransferLimits::default());
    let (a, b) = (start(&disks[0]).await, start(&disks[1]).await);
    a.publish("book", book).await;
    let connection = connect(&a, &b).await;
    soon(follows(&b, &a)).await;
    (a, b, connection)
}

/// Two servers: one publishes, the other follows and fetches a book.
async fn together(
    control: &Control,
    folder: &Path,
    calls: std::ops::Range<u64>,
    error: u64,
) -> u64 {
    let (disks, file) = disks_with_book(folder, &calls);
    let (a, b, connection) = connected(&disks, &file).await;

    control.arm(calls, error);
    let mut kept = 1;
    if acknowledged(soon(a.catalog.publish(books(0..300))).await) {
        kept += 300;
    }
    let request = BookRequest { peer: a.key.to_z32(), book_id: "book".into(), save_to: None };
    let requested = soon(b.transfers.request(request.clone())).await;
    if let Ok(transfer) = &requested {
        // As far as it gets.
        let ended = tokio::time::timeout(Duration::from_millis(1500), transfer.done()).await;
        if let Ok(info) = ended
            && let Some(code) = info.unwrap().error
        {
            is_disk_failure(&code);
        }
    } else {
        acknowledged(requested);
    }
    let count = control.disarm();

    soon(a.catalog.publish(vec![book(900)])).await.unwrap();
    let shown = a.catalog.list(&ListOptions::default()).unwrap().total;
    assert!(shown > kept, "{shown} of {kept}");
    soon(follows(&b, &a)).await;
    let transfer = soon(b.transfers.request(request)).await.unwrap();
    let info = until(&transfer, |info| info.state.is_terminal()).await;
    if info.state == State::Failed {
        let code = info.error.unwrap();
        is_disk_failure(&code);
        transfer.resume().await.unwrap();
    }
    let info = until_state(&transfer, State::Completed).await;
    assert!(std::fs::read(info.path.unwrap()).unwrap() == std::fs::read(&file).unwrap());
    drop(connection);
    for server in [&a, &b] {
        let options = VerifyOptions { peers: true, ..VerifyOptions::default() };
        let found = server.catalog.verify(options).await.unwrap();
        assert!(found.ok && found.refetched.is_empty(), "{found:?}");
    }
    soon(a.stop()).await;
    soon(b.stop()).await;
    count
}

/// Waits until `reader` shows all books of `writer`.
async fn follows(reader: &Server, writer: &Server) {
    let wanted = writer.catalog.list(&ListOptions::default()).unwrap().total;
    let mut events = reader.events.subscribe(None);
    while reader.catalog.of(writer.key).list(&ListOptions::default()).unwrap().total != wanted {
        let _ = tokio::time::timeout(Duration::from_millis(100), events.next()).await;
    }
}

/// A server that fetches a book from one whose file cannot be read: it is told so, while the connection
/// lasts, and gets the book when it can be read.
async fn reading(control: &Control, folder: &Path, calls: std::ops::Range<u64>, error: u64) -> u64 {
    let (disks, file) = disks_with_book(folder, &calls);
    let bytes = std::fs::read(&file).unwrap();
    let (a, b, connection) = connected(&disks, &file).await;
    control.arm(calls, error);
    let transfer = b.request(&a, "book").await;
    let told = until(&transfer, |info| info.state.is_terminal()).await;
    let count = control.disarm();
    if told.state != State::Completed {
        assert_eq!(told.error.as_deref(), Some("ERR_UNAVAILABLE"), "{told:?}");
        soon(transfer.resume()).await.unwrap();
    }
    let info = until_state(&transfer, State::Completed).await;
    assert!(std::fs::read(info.path.unwrap()).unwrap() == bytes);
    drop(connection);
    soon(a.stop()).await;
    soon(b.stop()).await;
    count
}

/// Processes that tell a story, each a part of it; none is left behind.
struct Lanes(Vec<Child>);

impl Drop for Lanes {
    fn drop(&mut self) {
        for lane in &mut self.0 {
            // It is over already, unless another failed.
            let _ = lane.kill();
            let _ = lane.wait();
        }
    }
}

/// The file that a server sends: opening and reading it is among the calls that fail.
const SENT: &str = "/book.epub";

/// Has a story told.
fn tell(story: &str) {
    let dir = tempfile::tempdir().unwrap();
    let library = dir.path().join("faults.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/store/faults.c");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut compile = Command::new(compiler);
    compile.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl");
    assert!(compile.status().unwrap().success());
    let idle: Vec<u8> = [0, u64::MAX, u64::MAX, 0].iter().flat_map(|n| n.to_ne_bytes()).collect();
    let start = |lane: u64| {
        let folder = dir.path().join(lane.to_string());
        let (control, under) = (folder.join("control"), folder.join("under"));
        std::fs::create_dir_all(&under).unwrap();
        std::fs::write(&control, &idle).unwrap();
        let mut told = Command::new(std::env::current_exe().unwrap());
        told.args(["--exact", "faults::story", "--nocapture"])
            .env(STORY, story)
            .env(LANE, lane.to_string())
            .env("LD_PRELOAD", &library)
            .env("FAULTS_CONTROL", &control)
            .env("FAULTS_UNDER", &under)
            .env("FAULTS_READ", SENT);
        if story == "reading" {
            told.env("FAULTS_ONLY_READ", "yes").env("FAULTS_STEP", "1");
        }
        told.spawn().unwrap()
    };
    let mut lanes = Lanes((0..number("FAULTS_LANES", LANES)).map(start).collect());
    for lane in &mut lanes.0 {
        assert!(lane.wait().unwrap().success());
    }
}

#[test]
fn a_node_whose_disk_fails_at_any_call_loses_nothing_and_goes_on() {
    tell("alone");
}

#[test]
fn servers_whose_disks_fail_at_any_call_share_catalogs_and_books_when_they_work_again() {
    tell("together");
}

#[test]
fn a_peer_hears_that_a_book_cannot_be_read_and_gets_it_when_it_can_be() {
    tell("reading");
}
