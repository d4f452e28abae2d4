//! What nobody needs any more, deleted at the start: a crash may have come before it was, and earlier versions
//! stored what peers only said.

use std::sync::{Arc, Weak};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension};

use super::proof::is_feed_of;
use super::view::{self, Feed, Standing};
use super::{CatalogError, CatalogOptions, Inner};
use crate::crypto::Hash;
use crate::hypercore::Manifest;
use crate::store::{Durability, StoreError, readable};

/// The cores at which nothing points. Every table that has cores' keys is here: whoever adds one, adds it.
const ORPHANS: &str = "SELECT discovery_key FROM cores WHERE \
     NOT EXISTS (SELECT 1 FROM catalog_feeds WHERE feed_key = cores.key) AND \
     NOT EXISTS (SELECT 1 FROM transfer_parts WHERE core_key = cores.key) AND \
     cores.key NOT IN (SELECT core_key FROM transfer_files) AND \
     cores.key NOT IN (SELECT core_key FROM transfers WHERE core_key IS NOT NULL)";

/// How long others may write between two deletions of leftover books.
const BETWEEN: Duration = Duration::from_millis(20);
/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Why a feed is not kept.
enum Flaw {
    /// Its server was removed.
    Removed,
    /// Nothing says that it is its server's.
    Unproven,
}

/// Deletes the catalogs of servers that are no peers any more, those in feeds that their servers do not
/// sign, and the cores at which nothing points. Returns the peers' feeds that are good. What cannot be
/// deleted now is not used, and deleted at a later start.
pub(super) async fn sweep(options: &CatalogOptions) -> Result<Vec<Feed>, CatalogError> {
    let me = options.key_pair.public_key();
    let (good, bad) = options.database.read(|connection| {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for feed in view::feeds(connection)?.into_iter().filter(|feed| feed.server != me) {
            match flaw(connection, &feed)? {
                None => good.push(feed),
                Some(flaw) => bad.push((feed, flaw)),
            }
        }
        Ok::<_, StoreError>((good, bad))
    })?;
    for (feed, flaw) in &bad {
        let peer = feed.server.short();
        match flaw {
            Flaw::Removed => tracing::info!(peer, "the catalog of a removed peer is deleted"),
            Flaw::Unproven if feed.position == 0 => {}
            Flaw::Unproven => {
                tracing::warn!(peer, "a catalog whose feed its server does not sign is deleted");
            }
        }
    }
    if !bad.is_empty() {
        let remove = move |transaction: &rusqlite::Transaction<'_>| {
            bad.iter().try_for_each(|(feed, _)| view::remove(transaction, &feed.server).map(drop))
        };
        if let Err(error) = options.database.write::<_, StoreError, _>(remove).await {
            tracing::warn!(%error, "catalogs that are not needed any more were not deleted");
        }
    }
    let orphans: Vec<Hash> = options.database.read(|connection| {
        let mut statement = connection.prepare(ORPHANS)?;
        let mut rows = statement.query([])?;
        let mut orphans = Vec::new();
        while let Some(row) = rows.next()? {
            orphans.extend(readable::<Hash>("cores", row.get(0))?);
        }
        Ok::<_, StoreError>(orphans)
    })?;
    for discovery_key in orphans {
        if let Err(error) = options.storage.remove(&discovery_key).await {
            tracing::warn!(%error, "a log that nothing needs any more was not deleted");
        }
    }
    Ok(good)
}

/// Deletes what is left of the books of feeds that were forgotten, now and whenever there may be more. A little at a
/// time, with room for others between: nobody's write waits for a million books.
pub(super) async fn sweep_books(catalog: Weak<Inner>) {
    loop {
        let Some(inner) = catalog.upgrade() else { return };
        let write = |transaction: &rusqlite::Transaction<'_>| view::remove_leftovers(transaction);
        let swept: Result<bool, StoreError> =
            inner.options.database.write_with(Durability::Process, write).await;
        let pause = match swept {
            Ok(true) => Some(BETWEEN),
            Ok(false) => None,
            Err(StoreError::Closed) => return,
            Err(error) => {
                tracing::warn!(%error, "books of a forgotten catalog were not deleted");
                Some(RETRY)
            }
        };
        let (cancel, leftovers) = (inner.cancel.clone(), Arc::clone(&inner.peers.leftovers));
        drop(inner);
        let next = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => leftovers.notified().await,
            }
        };
        if cancel.run_until_cancelled(next).await.is_none() {
            return;
        }
    }
}

fn flaw(connection: &Connection, feed: &Feed) -> Result<Option<Flaw>, StoreError> {
    if view::standing(connection, &feed.server)? == Standing::Unknown {
        return Ok(Some(Flaw::Removed));
    }
    let manifest: Option<Vec<u8>> = connection
        .prepare_cached("SELECT manifest FROM cores WHERE key = ?1")?
        .query_row([feed.key], |row| row.get(0))
        .optional()?
        .flatten();
    let manifest = manifest.and_then(|bytes| Manifest::decode(&bytes).ok());
    let is_proven = manifest
        .is_some_and(|manifest| manifest.is_of(&feed.key) && is_feed_of(&manifest, &feed.server));
    Ok((!is_proven).then_some(Flaw::Unproven))
}
