//! Whose feed a key names: shown by the feed's manifest, before anything of it is stored.
//!
//! A peer may name any key: another peer's feed, a book's core, nothing at all. So what it names is at first
//! a core in memory, beside whatever else has the key here, that is open with this peer alone and asks for
//! the manifest and the length. A feed is the feed of the server whose key alone signs it, by its manifest,
//! of which the key is the hash; nobody else can prove that. As a book's manifest has no signers, what is
//! proven to be a feed is no book's core either, and the two can share one storage.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::CatalogOptions;
use crate::crypto::PublicKey;
use crate::hypercore::replicator::{CoreHandle, Download, PeerFilter, Policy};
use crate::hypercore::{Core, CoreChange, CoreError, Manifest, MemoryStorage, OpenOptions};
use crate::sync::lock;

/// How many entries of a peer's feed are fetched: enough for a full catalog that was rewritten a few
/// times. A longer feed is followed no further.
const MAX_FEED_ENTRIES: u64 = 4_000_000;
/// How many bytes of a peer's feed are fetched.
const MAX_FEED_BYTES: u64 = 4 << 30;
/// How many bytes the manifest of a feed may have: one signer, and little else.
const MAX_MANIFEST_BYTES: usize = 4096;

/// How many new feeds of one peer are stored …
const MAX_CHANGES: usize = 6;
/// … in this time. A server starts a new feed when its old one is lost, which is hardly ever.
const CHANGES_IN: Duration = Duration::from_secs(60 * 60);

/// What a key has turned out to name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Finding {
    /// The peer's own feed, of this many bytes.
    Theirs(Manifest, u64),
    /// Something else.
    Foreign,
    /// The peer's own feed, which is longer than a catalog may be.
    TooLong,
}

/// Whether `server` alone signs the log with this manifest.
pub(super) fn is_feed_of(manifest: &Manifest, server: &PublicKey) -> bool {
    manifest.quorum == 1
        && matches!(manifest.signers.as_slice(), [signer] if signer.public_key == *server)
}

/// Whether a feed is longer than what is fetched of one.
pub(super) fn is_too_long(state: &CoreChange) -> bool {
    state.length > MAX_FEED_ENTRIES || state.byte_length > MAX_FEED_BYTES
}

/// Whether the disk has room for a feed of so many bytes. When the question cannot be asked, writing will
/// tell.
pub(super) fn has_room(options: &CatalogOptions, bytes: u64) -> bool {
    let folder = options.database.path().parent();
    let free = folder.and_then(|folder| fs4::available_space(folder).ok());
    free.is_none_or(|free| free >= bytes)
}

/// With whom a feed of `peer` is open. Its catalog is its own business: unless the user says otherwise,
/// nobody gets it from us but itself, or learns that we have it.
pub(super) fn admits(options: &CatalogOptions, peer: PublicKey) -> PeerFilter {
    let shares = options.share_feeds;
    Arc::new(move |asking| shares || *asking == peer)
}

/// Finds out whether `key` names a feed of `peer`, as soon as somebody who is asked shows its manifest.
/// Nothing is stored, and nobody else sees anything of it. Cancel safe.
pub(super) async fn examine(
    options: &CatalogOptions,
    peer: PublicKey,
    key: [u8; 32],
    asked: PeerFilter,
) -> Result<Finding, CoreError> {
    let core = Core::open(&MemoryStorage::new(), key, OpenOptions::default())?;
    let policy =
        Policy { download: Download::OnDemand, upload: Arc::new(|_| false), peers: Some(asked) };
    let asking = Asking(options.replicator.add_beside(core.clone(), policy));
    let found = asking.0.until(|| {
        let Some(manifest) = core.manifest() else { return Ok(None) };
        let state = core.state();
        Ok(Some(match is_feed_of(&manifest, &peer) {
            false => Finding::Foreign,
            true if is_too_long(&state) || manifest.encode().len() > MAX_MANIFEST_BYTES => {
                Finding::TooLong
            }
            true => Finding::Theirs(Manifest::clone(&manifest), state.byte_length),
        }))
    });
    found.await
}

/// Ends the replication of what was asked about.
struct Asking(CoreHandle);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// How often each peer has come with a new feed lately.
#[derive(Default)]
pub(super) struct FeedRates {
    times: Mutex<HashMap<PublicKey, VecDeque<Instant>>>,
}

impl FeedRates {
    /// Returns when another new feed of this peer may be stored, and counts it. Cancel safe.
    pub(super) async fn turn(&self, peer: &PublicKey) {
        while let Err(until) = self.try_turn(peer) {
            tokio::time::sleep_until(until).await;
        }
    }

    fn try_turn(&self, peer: &PublicKey) -> Result<(), Instant> {
        let mut times = lock(&self.times);
        let times = times.entry(*peer).or_default();
        if times.len() >= MAX_CHANGES
            && let Some(first) = times.front()
        {
            let until = *first + CHANGES_IN;
            if until > Instant::now() {
                return Err(until);
            }
            times.pop_front();
        }
        times.push_back(Instant::now());
        Ok(())
    }

    /// Forgets a peer that was removed.
    pub(super) fn forget(&self, peer: &PublicKey) {
        lock(&self.times).remove(peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::KeyPair;

    #[test]
    fn a_feed_is_the_feed_of_the_server_that_alone_signs_it() {
        let (ours, other) = (KeyPair::generate().public_key(), KeyPair::generate().public_key());
        let single = Manifest::single(ours);
        assert!(is_feed_of(&single, &ours) && !is_feed_of(&single, &other));
        let both = [single.signers.clone(), Manifest::single(other).signers].concat();
        for manifest in [
            Manifest::fixed([1; 32], 7),
            Manifest { quorum: 0, ..single.clone() },
            Manifest { quorum: 1, signers: both.clone(), ..single.clone() },
            Manifest { quorum: 2, signers: both, ..single },
        ] {
            assert!(!is_feed_of(&manifest, &ours), "{manifest:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_changes_its_feed_some_times_an_hour_and_others_do_not_wait_for_it() {
        let changes = FeedRates::default();
        let (often, once) = (PublicKey::from_bytes([1; 32]), PublicKey::from_bytes([2; 32]));
        let began = Instant::now();
        for _ in 0..MAX_CHANGES {
            changes.turn(&often).await;
        }
        changes.turn(&once).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        changes.turn(&often).await;
        assert!(began.elapsed() >= CHANGES_IN, "{:?}", began.elapsed());
        changes.forget(&often);
        let forgotten = Instant::now();
        changes.turn(&often).await;
        assert_eq!(forgotten.elapsed(), Duration::ZERO);
    }
}
