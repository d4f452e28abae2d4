//! Disks that fill up.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use alex_p2p::catalog::{ListOptions, VerifyOptions};
use alex_p2p::error::ErrorCode;
use alex_p2p::events::EventKind;
use alex_p2p::node::BackupOptions;
use alex_p2p::transfer::{Policy, State};
use tempfile::TempDir;

use crate::support::{Disk, Server, approve, connect, event, soon, until, until_state};
use crate::{alone, book, books, total};

/// A small file system that fills up; unmounted at the end.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn new(mebibytes: u32) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={mebibytes}m");
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir.path());
        match mount.output() {
            Ok(output) if output.status.success() => Some(Self(dir)),
            _ => None,
        }
    }

    /// Leaves no room.
    fn fill(&self, ballast: &Path) {
        let mut left = 8 << 20;
        while left > 0 {
            let bytes = vec![0; left];
            let file = OpenOptions::new().create(true).append(true).open(ballast);
            match file.and_then(|mut file| file.write_all(&bytes)) {
                Ok(()) => {}
                Err(_) => left /= 2,
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn on_a_full_disk_publishing_and_backups_say_so_and_work_again_when_there_is_room() {
    let Some(disk) = SmallDisk::new(8) else {
        println!("skipped: mounting a small tmpfs takes root");
        return;
    };
    let (data, ballast) = (disk.0.path().join("data"), disk.0.path().join("ballast"));
    let node = alone(&data).await;
    node.catalog().publish(books(0..300)).await.unwrap();
    disk.fill(&ballast);
    let big = |number| {
        let mut book = book(number);
        book.entry.extra.insert("text".into(), "x".repeat(60_000).into());
        book
    };
    let full = node.catalog().publish((300..340).map(big).collect()).await.unwrap_err();
    assert_eq!(full.code, ErrorCode::DiskFull, "{full}");
    let backup = disk.0.path().join("a.backup");
    let full = node.backup(&backup, BackupOptions::default()).await.unwrap_err();
    assert_eq!(full.code, ErrorCode::DiskFull, "{full}");
    assert_eq!((node.catalog().length(), total(&node)), (300, 300));
    assert_eq!(node.catalog().trouble(), None);

    std::fs::remove_file(&ballast).unwrap();
    node.catalog().publish((300..310).map(big).collect()).await.unwrap();
    node.backup(&backup, BackupOptions::default()).await.unwrap();
    assert!(node.catalog().verify(VerifyOptions::default()).await.unwrap().ok);
    node.close().await;
    let node = alone(&data).await;
    assert_eq!((node.catalog().length(), total(&node)), (310, 310));
    node.close().await;
}

/// A server whose disk is small, and one whose disk is not.
async fn small_and_large() -> Option<(SmallDisk, Disk, Disk, Server, Server)> {
    let small = SmallDisk::new(8)?;
    let dir = tempfile::tempdir_in(small.0.path()).unwrap();
    let (reading, writing) = (Disk { dir, ..Disk::new() }, Disk::new());
    let reader = Server::start(&reading, Policy::AutoAccept).await;
    let writer = Server::start(&writing, Policy::AutoAccept).await;
    approve(&reader.database, &writer.key).await.unwrap();
    Some((small, reading, writing, reader, writer))
}

/// Waits until `reader` shows so many books of `writer`.
async fn shows(reader: &Server, writer: &Server, count: u64) {
    let theirs = reader.catalog.of(writer.key);
    let mut events = reader.events.subscribe(Some(0));
    while theirs.list(&ListOptions::default()).unwrap().total != count {
        events.next().await.unwrap();
    }
}

/// Waits until the server says that its catalogs need room.
async fn asked_for_room(server: &Server) {
    let told = event(
        &server.events,
        |kind| matches!(kind, EventKind::Status { layer, ok: false, .. } if layer == "catalog"),
    )
    .await;
    let EventKind::Status { message, .. } = told else { panic!("{told:?}") };
    assert!(message.contains("make room"), "{message}");
}

#[tokio::test]
async fn a_friends_catalog_for_which_there_is_no_room_comes_when_there_is() {
    let Some((disk, _reading, _writing, reader, writer)) = small_and_large().await else {
        println!("skipped: mounting a small tmpfs takes root");
        return;
    };
    let ballast = disk.0.path().join("ballast");
    let _connection = connect(&reader, &writer).await;
    writer.catalog.publish(vec![book(1000)]).await.unwrap();
    soon(shows(&reader, &writer, 1)).await;
    disk.fill(&ballast);
    let big = |number| {
        let mut book = book(number);
        book.entry.extra.insert("text".into(), "x".repeat(10_000).into());
        book
    };
    writer.catalog.publish((0..100).map(big).collect()).await.unwrap();
    asked_for_room(&reader).await;
    std::fs::remove_file(&ballast).unwrap();
    soon(shows(&reader, &writer, 101)).await;
    let options = VerifyOptions { peers: true, ..VerifyOptions::default() };
    let found = reader.catalog.verify(options).await.unwrap();
    assert!(found.ok && found.refetched.is_empty(), "{found:?}");
    reader.stop().await;
    writer.stop().await;
}

#[tokio::test]
async fn a_friend_met_on_a_full_disk_is_followed_when_there_is_room() {
    let Some((disk, _reading, _writing, reader, writer)) = small_and_large().await else {
        println!("skipped: mounting a small tmpfs takes root");
        return;
    };
    let ballast = disk.0.path().join("ballast");
    writer.catalog.publish(books(0..3)).await.unwrap();
    disk.fill(&ballast);
    let _connection = connect(&reader, &writer).await;
    asked_for_room(&reader).await;
    std::fs::remove_file(&ballast).unwrap();
    soon(shows(&reader, &writer, 3)).await;
    reader.stop().await;
    writer.stop().await;
}

#[tokio::test]
async fn a_book_for_which_there_is_no_room_fails_and_is_resumed_when_there_is() {
    let Some((disk, _reading, writing, reader, writer)) = small_and_large().await else {
        println!("skipped: mounting a small tmpfs takes root");
        return;
    };
    let file = writing.file("book.epub", 3 << 20, 7);
    writer.publish("book", &file).await;
    let _connection = connect(&reader, &writer).await;
    let ballast = disk.0.path().join("ballast");
    std::fs::write(&ballast, vec![0; 4 << 20]).unwrap();
    let transfer = reader.request(&writer, "book").await;
    let info = until(&transfer, |info| info.state.is_terminal()).await;
    assert_eq!((info.state, info.error.as_deref()), (State::Failed, Some("ERR_DISK_FULL")));
    assert!(info.reason.unwrap().contains("make room"));
    std::fs::remove_file(&ballast).unwrap();
    transfer.resume().await.unwrap();
    let info = until_state(&transfer, State::Completed).await;
    assert!(std::fs::read(info.path.unwrap()).unwrap() == std::fs::read(&file).unwrap());
    reader.stop().await;
    writer.stop().await;
}
