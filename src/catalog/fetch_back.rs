//! Damage in the own feed that is put right: hashes follow from the entries, and what peers have of damaged
//! entries is fetched back, which the own signature proves.

use std::time::Duration;

use super::CatalogError;
use super::halt::Halt;
use super::own::{Live, OwnFeed};
use crate::hypercore::{Core, Verified};

/// How long peers may take to send the entries.
const PATIENCE: Duration = Duration::from_secs(30);
/// How many entries that are missing are asked for at once.
const MAX_MISSING: usize = 100_000;

/// What is left of the damage that was found.
pub(super) struct Mended {
    /// Entries that came back.
    pub(super) entries: u64,
    /// Entries that are damaged still.
    pub(super) bad: Vec<u64>,
    /// Whether all that the feed has to have is there, as it was signed.
    pub(super) whole: bool,
}

/// Puts right what can be. Entries that no connected peer has are left as they are.
pub(super) async fn mend(live: &Live, found: &Verified) -> Result<Mended, CatalogError> {
    live.core.mend_tree(found).await?;
    // Also those that did not come back an earlier time. A feed that is not written fetches by itself.
    let missing = if live.core.writable() { missing(&live.core) } else { Vec::new() };
    let (theirs, lost) = match found.is_proven {
        true => parted(live, found.bad.iter().chain(&missing)),
        // It would be compared with hashes that are damaged, too.
        false => (Vec::new(), found.bad.clone()),
    };
    if !theirs.is_empty() {
        live.core.forget(&theirs).await?;
        fetch(live, &theirs).await;
        live.core.flush().await?;
    }
    let is_whole = |index: &u64| matches!(live.core.get(*index), Ok(Some(_)));
    let (back, missing): (Vec<u64>, Vec<u64>) = theirs.into_iter().partition(is_whole);
    let mut bad = lost;
    bad.extend(missing);
    bad.sort_unstable();
    let (entries, hashes) = (back.len() as u64, found.nodes.len());
    if entries > 0 || hashes > 0 {
        tracing::warn!(entries, hashes, "damage in the own feed was put right");
    }
    let state = live.core.state();
    let whole = bad.is_empty() && state.contiguous_length == state.length;
    Ok(Mended { entries, bad, whole })
}

/// The first entries that are not here.
fn missing(core: &Core) -> Vec<u64> {
    let next = |from: u64| Some(core.next_missing(from)).filter(|index| *index < core.length());
    std::iter::successors(next(0), |index| next(index + 1)).take(MAX_MISSING).collect()
}

/// The entries that a connected peer says it has, and the others.
fn parted<'a>(live: &Live, bad: impl Iterator<Item = &'a u64>) -> (Vec<u64>, Vec<u64>) {
    let peers = live.handle.peers();
    let there = peers.iter().map(|peer| peer.remote_contiguous_length).max().unwrap_or(0);
    let (mut theirs, lost): (Vec<u64>, Vec<u64>) = bad.partition(|index| **index < there);
    theirs.sort_unstable();
    (theirs, lost)
}

/// Waits until the entries are here, or have not come for too long.
async fn fetch(live: &Live, entries: &[u64]) {
    let ranges =
        entries.chunk_by(|a, b| a + 1 == *b).filter_map(|run| Some(*run.first()?..run.last()? + 1));
    let fetching: Vec<_> = ranges.map(|range| live.handle.download(range)).collect();
    let all = async {
        for range in &fetching {
            range.done().await?;
        }
        Ok::<_, CatalogError>(())
    };
    match tokio::time::timeout(PATIENCE, all).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "damaged entries cannot be fetched back"),
        Err(_) => tracing::warn!("damaged entries did not come back from peers"),
    }
}

impl OwnFeed {
    /// Lets a feed that is whole again be written. What else kept it from that before is not known any
    /// more, so peers are heard first, as after a restore.
    pub(super) async fn is_whole_again(&self) -> Result<(), CatalogError> {
        let _one = self.publishing.lock().await;
        let is_halted = matches!(*self.halt.borrow(), Some(Halt::Damaged(_)));
        if is_halted { self.reopen(Some(Halt::Restored)).await } else { Ok(()) }
    }
}
