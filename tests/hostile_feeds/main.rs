//! Friends whose feeds lie: entries that are none, lengths and forks that cannot be, proofs that were
//! changed. All of it is refused, or skipped and counted; memory stays flat and other friends are served.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod claims;
#[path = "../simulation/dice.rs"]
#[allow(dead_code)] // the simulator throws them in more ways
mod dice;
mod entries;
mod names;
mod proofs;
#[path = "../books/support.rs"]
#[allow(dead_code)] // used by the tests of transfers
mod support;

use std::time::Duration;

use alex_p2p::catalog::{Book, BookEntry, CatalogStatus};
use alex_p2p::crypto::PublicKey;

use support::{Server, soon};

const MIB: u64 = 1 << 20;

fn book(number: usize) -> Book {
    let (id, title) = (format!("b{number}"), format!("Book number {number}"));
    Book { entry: BookEntry { id, title, ..BookEntry::default() }, source: None }
}

/// What this process has in memory, in bytes; nothing where that is not known.
fn memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// Fails when this process has much more in memory than `before`.
fn assert_flat(before: Option<u64>, mebibytes: u64) {
    let (Some(before), Some(now)) = (before, memory()) else { return };
    let grown = now.saturating_sub(before);
    println!("grown by {:.1} MiB", grown as f64 / MIB as f64);
    assert!(grown < mebibytes * MIB, "grown by {grown} bytes");
}

/// Waits until what `server` knows of a peer's catalog is as wanted.
async fn shows(
    server: &Server,
    peer: PublicKey,
    wanted: impl Fn(&CatalogStatus) -> bool,
) -> CatalogStatus {
    let mut events = server.events.subscribe(None);
    soon(async {
        loop {
            let status = server.catalog.of(peer).status().unwrap();
            if let Some(status) = status.filter(&wanted) {
                return status;
            }
            let _ = tokio::time::timeout(Duration::from_millis(100), events.next()).await;
        }
    })
    .await
}
