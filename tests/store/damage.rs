//! Flipped bits, and disks that fill up.

use alex_p2p::catalog::VerifyOptions;
use alex_p2p::error::ErrorCode;
use alex_p2p::node::{BackupOptions, Node, NodeOptions};
use tempfile::TempDir;

use crate::{alone, book, books, total};

/// Flips one bit in each page of a database, one after the other: what is wrong is found, or what is
/// read is right.
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
    for flip in 0..4 * pages {
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
    println!("{refused} refused, {found} found, {harmless} harmless");
    assert!(found + refused > 0 && harmless > 0);
}

/// A small file system that fills up; unmounted at the end.
#[cfg(target_os = "linux")]
struct SmallDisk(TempDir);

#[cfg(target_os = "linux")]
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
}

#[cfg(target_os = "linux")]
impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn on_a_full_disk_publishing_and_backups_say_so_and_work_again_when_there_is_room() {
    let Some(disk) = SmallDisk::new(8) else {
        println!("skipped: mounting a small tmpfs takes root");
        return;
    };
    let (data, ballast) = (disk.0.path().join("data"), disk.0.path().join("ballast"));
    let node = alone(&data).await;
    node.catalog().publish(books(0..300)).await.unwrap();
    let mut left = 8 << 20;
    while left > 0 {
        let bytes = vec![0; left];
        match std::fs::OpenOptions::new().create(true).append(true).open(&ballast) {
            Ok(mut file) => {
                use std::io::Write;
                if file.write_all(&bytes).is_err() {
                    left /= 2;
                }
            }
            Err(_) => break,
        }
    }
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
