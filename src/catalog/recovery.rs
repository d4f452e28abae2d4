//! The way back to publishing: hearing from peers that a restored feed is not behind, a person who knows
//! better, or a new feed.

use bytes::Bytes;
use rusqlite::{Connection, params};

use super::entry;
use super::halt::Halt;
use super::own::{Live, NAMESPACE, OwnFeed, damage, namespace};
use super::view::{self, Feed};
use super::{CatalogError, CatalogOptions, moves};
use crate::crypto::random;
use crate::error::{Error, ErrorCode};
use crate::hypercore::replicator::{Head, PeerInfo};
use crate::hypercore::{Core, Manifest, OpenOptions};
use crate::store::StoreError;

/// How many entries are taken over to a new feed at once.
const PAGE: u64 = 2000;

impl OwnFeed {
    /// A person says that publishing may go on. A restored feed is written again at once; one that was
    /// also written elsewhere is first fetched from the peers that have more of it.
    pub(super) async fn resume(&self) -> Result<(), CatalogError> {
        let _one = self.publishing.lock().await;
        let halt = self.halt.borrow().clone();
        match halt {
            None => Ok(()),
            Some(Halt::Restored) => self.reopen(None).await,
            Some(Halt::WrittenElsewhere) => self.reopen(Some(Halt::Restored)).await,
            Some(damaged @ Halt::Damaged(_)) => Err(damaged.error()),
        }
    }

    /// Writes a restored feed again if a connected peer has exactly as much of it as is here, and has proven
    /// that with our own signature, and none says that it has more; unless `is_over`, when those who say so
    /// had time to prove it. True when it is written again now.
    pub(super) async fn try_confirm(&self, is_over: bool) -> Result<bool, CatalogError> {
        if !self.is_confirmed(is_over) {
            return Ok(false);
        }
        let _one = self.publishing.lock().await;
        let waits = *self.halt.borrow() == Some(Halt::Restored);
        if waits {
            self.reopen(None).await?;
        }
        Ok(waits)
    }

    fn is_confirmed(&self, is_over: bool) -> bool {
        let current = self.current();
        let Some(live) = &current.live else { return false };
        // What it says of its length, anybody can say.
        live.handle.ask_for_proofs();
        let (state, peers) = (live.core.state(), live.handle.peers());
        let here = Head { fork: state.fork, length: state.length };
        here.length > 0 && state.contiguous_length == here.length && confirm(here, &peers, is_over)
    }

    /// Opens the feed again, to be written when nothing halts it.
    pub(super) async fn reopen(&self, halt: Option<Halt>) -> Result<(), CatalogError> {
        self.write_halt(halt.clone()).await?;
        if let Some(live) = &self.current().live {
            live.close().await;
        }
        let server = self.options.key_pair.public_key();
        let (manifest, feed) = self.options.database.read(|connection| {
            let namespace = namespace(connection, &server)?.ok_or(CatalogError::Moved)?;
            let feed = view::feed(connection, &server)?.ok_or(CatalogError::Moved)?;
            Ok::<_, CatalogError>((Manifest::single_in(server, namespace), feed))
        })?;
        self.put(manifest, feed, halt).await
    }

    async fn put(
        &self,
        manifest: Manifest,
        feed: Feed,
        halt: Option<Halt>,
    ) -> Result<(), CatalogError> {
        let (key, position) = (feed.key, feed.position);
        match Live::open(&self.options, manifest, feed, halt.is_none()).await {
            Ok(live) => {
                self.replace((&key, position), Some(live));
                self.halt.send_replace(halt);
                Ok(())
            }
            Err(error) => {
                self.replace((&key, position), None);
                let halt = damage(error)?;
                let error = halt.error();
                self.halt.send_replace(Some(halt));
                Err(error)
            }
        }
    }

    /// Empties the view of the own feed and replays it from the start.
    pub(super) async fn replay_anew(&self) -> Result<(), CatalogError> {
        let _one = self.publishing.lock().await;
        let (server, key) = (self.options.key_pair.public_key(), self.current().key);
        self.options
            .database
            .write(move |transaction| {
                view::remove(transaction, &server)?;
                view::set_feed(transaction, &server, &key)
            })
            .await?;
        let halt = self.halt.borrow().clone();
        self.reopen(halt).await
    }

    /// Starts a new feed with the books that are on the catalog now, and returns its key. The old one is
    /// deleted here. Cancelled, it has done all of it or nothing.
    pub(super) async fn start_new(&self) -> Result<[u8; 32], CatalogError> {
        let _one = self.publishing.lock().await;
        let options = &self.options;
        let (server, namespace) = (options.key_pair.public_key(), random::<32>());
        let manifest = Manifest::single_in(server, namespace);
        let key = manifest.key();
        // Whole on disk before anything names it: a crash leaves the old feed as it was.
        copy_books(options, &manifest, self.current().live.as_ref()).await?;
        let writable = self.halt.borrow().is_none();
        if let Some(live) = &self.current().live
            && writable
        {
            moves::announce(live, &key).await?;
        }
        let feed = options
            .database
            .write(move |transaction| {
                transaction.execute(
                    "INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)",
                    (NAMESPACE, namespace),
                )?;
                Halt::write(transaction, None)?;
                view::set_feed(transaction, &server, &key)
            })
            .await?;
        let before = self.current();
        if let Some(live) = &before.live {
            live.close().await;
        }
        self.put(manifest, feed, None).await?;
        let old = crate::crypto::discovery_key(&before.key);
        if let Err(error) = options.storage.remove(&old).await {
            tracing::warn!(%error, "the old feed was not deleted");
        }
        tracing::info!("a new catalog feed was started");
        Ok(key)
    }
}

/// Whether a peer has proven that it has just what is here, and none says that it has more. A later fork is
/// more, however short it is, and an earlier one never is: going on at a fork that was left would make two
/// logs of one.
fn confirm(here: Head, peers: &[PeerInfo], is_over: bool) -> bool {
    peers.iter().any(|peer| peer.proven == here)
        && (is_over || peers.iter().all(|peer| peer.remote <= here))
}

/// Appends every book on the catalog to a feed of its own; damaged entries of the old one are left out.
async fn copy_books(
    options: &CatalogOptions,
    manifest: &Manifest,
    old: Option<&Live>,
) -> Result<(), CatalogError> {
    let open = OpenOptions {
        manifest: Some(manifest.clone()),
        writer: Some(options.key_pair.clone()),
        ..OpenOptions::default()
    };
    let core = Core::open(&*options.storage, manifest.key(), open)?;
    let server = options.key_pair.public_key();
    let mut after = -1;
    loop {
        let page: Vec<(i64, Option<Bytes>)> = options.database.read(|connection| {
            let Some(feed) = view::feed(connection, &server)? else { return Ok(Vec::new()) };
            let (first, last) = view::rows_of(feed.number);
            let page = page_of(connection, first.max(after + 1), last)?;
            let entry = |(row, block): &(i64, u64)| match old {
                Some(old) => match old.core.get(*block) {
                    Err(error) if Error::from(error.clone()).code == ErrorCode::Corrupt => Ok(None),
                    read => Ok(read?),
                },
                None => Ok(view::entry_at(connection, *row)?.map(Bytes::from)),
            };
            let entries = page.iter().map(entry).collect::<Result<Vec<_>, CatalogError>>()?;
            Ok::<_, CatalogError>(page.into_iter().map(|(row, _)| row).zip(entries).collect())
        })?;
        let Some((last, _)) = page.last() else { break };
        after = *last;
        let blocks = page.into_iter().filter_map(|(_, entry)| entry);
        let blocks = blocks.filter(|entry| entry::decode(entry).is_ok());
        core.append(blocks.collect()).await?;
    }
    Ok(core.close().await?)
}

/// The rows of some books, each with its entry's place in the feed.
fn page_of(connection: &Connection, first: i64, last: i64) -> Result<Vec<(i64, u64)>, StoreError> {
    let mut rows = connection.prepare_cached(
        "SELECT row, block FROM catalog_books WHERE row BETWEEN ?1 AND ?2 ORDER BY row LIMIT ?3",
    )?;
    let page = rows.query_map(params![first, last, PAGE], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(page.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(fork: u64, length: u64) -> Head {
        Head { fork, length }
    }

    fn peer(remote: Head, proven: Head) -> PeerInfo {
        PeerInfo {
            public_key: crate::crypto::PublicKey::from_bytes([1; 32]),
            remote,
            proven,
            remote_contiguous_length: 0,
            downloaded_blocks: 0,
            downloaded_bytes: 0,
            uploaded_blocks: 0,
            uploaded_bytes: 0,
            hotswaps: 0,
        }
    }

    #[test]
    fn a_feed_is_confirmed_by_a_peer_that_has_proven_the_same_fork_and_length() {
        let here = head(1, 5);
        assert!(!confirm(here, &[], true));
        assert!(confirm(here, &[peer(here, here)], false));
        for other in [head(0, 5), head(1, 4), head(1, 6), head(2, 5)] {
            assert!(!confirm(here, &[peer(here, other)], true), "{other:?}");
        }
    }

    #[test]
    fn a_peer_that_says_it_has_more_is_waited_for_and_a_later_fork_is_more() {
        let here = head(1, 5);
        for (remote, is_more) in [
            (head(1, 6), true),
            (head(2, 1), true),
            (head(2, 9), true),
            (head(1, 4), false),
            (head(0, 9), false),
        ] {
            let peers = [peer(here, here), peer(remote, Head::default())];
            assert_eq!(confirm(here, &peers, false), !is_more, "{remote:?}");
            assert!(confirm(here, &peers, true));
        }
    }
}
