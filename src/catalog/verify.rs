//! Reads everything again to see that it is whole.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use rusqlite::Connection;
use serde::Serialize;

use super::entry::{self, Entry};
use super::halt::Halt;
use super::{Catalog, CatalogError, fetch_back, view};
use crate::crypto::PublicKey;
use crate::error::{Error, ErrorCode, Result};
use crate::hypercore::Core;
use crate::hypercore::static_core::Progress;

/// What is verified.
#[derive(Clone, Default)]
pub struct VerifyOptions {
    /// Also the feeds of peers, as far as they are here.
    pub peers: bool,
    /// Told how many bytes of the feed that is read now are done, of how many.
    pub progress: Option<Progress>,
}

/// What [`Catalog::verify`] has found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verification {
    /// Whether the own feed and the database are whole.
    pub ok: bool,
    /// How many entries of the own feed are as they were signed.
    pub entries: u64,
    /// The entries of the own feed that are not, the first hundred.
    pub damaged: Vec<u64>,
    /// How many entries and hashes of the own feed were damaged and are whole again: hashes follow from
    /// the entries, and entries were fetched back from peers.
    pub mended: u64,
    /// What is wrong, in words.
    pub problems: Vec<String>,
    /// Whether what is shown of the own feed was not what it says, and was made anew from it.
    pub rebuilt: bool,
    /// The peers whose feeds were damaged here, z32. The damage is fetched again.
    pub refetched: Vec<String>,
}

/// How many damaged entries are named.
const MAX_NAMED: usize = 100;

impl Catalog {
    /// Reads the own feed again, every entry against the tree and the tree against the signature, and
    /// lets SQLite check the database; if asked for, also the feeds of peers.
    ///
    /// Damaged entries of the own feed that a connected peer has are fetched back: the own signature
    /// proves that they are what was published. When more of it or the database is damaged, nothing is
    /// published any more, also after a restart; reading goes on, and [`Catalog::trouble`] says what to
    /// do. Once all is whole again, publishing goes on as after a restore. Damaged entries of peers are
    /// forgotten and fetched again. Dropping the future ends the work soon.
    pub async fn verify(&self, options: VerifyOptions) -> Result<Verification> {
        let mut found = Verification::default();
        let own = &self.inner.own;
        match &own.current().live {
            None => found.problems.extend(self.trouble()),
            Some(live) => match live.core.check(options.progress.clone()).await {
                Ok(checked) => {
                    let mended = fetch_back::mend(live, &checked).await?;
                    let bad = mended.bad.len();
                    found.entries = checked.good + mended.entries;
                    found.mended = mended.entries + checked.nodes.len() as u64;
                    if bad > 0 {
                        found.problems.push(format!(
                            "{bad} entries are not what was signed; peers who have them can give them \
                             back when they are connected while this is checked again"
                        ));
                    } else if !mended.whole && *own.halt.borrow() != Some(Halt::Restored) {
                        found.problems.push("entries are missing".to_owned());
                    }
                    found.damaged = mended.bad.into_iter().take(MAX_NAMED).collect();
                }
                Err(error) => {
                    let error = Error::from(error);
                    if error.code != ErrorCode::Corrupt {
                        return Err(error);
                    }
                    found.problems.push(error.message);
                }
            },
        }
        let database = self.inner.options.database.check_integrity().await?;
        found.problems.extend(database.iter().map(|problem| format!("the database: {problem}")));
        if found.problems.is_empty() && !self.shows_what_it_says().await? {
            tracing::warn!("the view of the own feed was damaged; it is made anew");
            own.replay_anew().await?;
            found.rebuilt = true;
            if !self.shows_what_it_says().await? {
                found.problems.push("the list of books is not what the feed says".to_owned());
            }
        }
        found.ok = found.problems.is_empty();
        if !found.ok {
            let halt = Halt::Damaged(found.problems.join("; "));
            if own.stop_publishing(halt).await {
                let message = self.trouble().unwrap_or_default();
                tracing::error!(message, "the catalog is damaged");
                self.inner.options.tell(false, message);
            }
        } else {
            own.is_whole_again().await?;
        }
        if options.peers {
            for (peer, damaged) in
                self.inner.peers.verify(&self.inner.options, options.progress).await?
            {
                if damaged {
                    found.refetched.push(peer.to_z32());
                }
            }
        }
        Ok(found)
    }
}

impl Catalog {
    /// Whether the view of the own feed has the books that its entries say.
    async fn shows_what_it_says(&self) -> Result<bool> {
        let current = self.inner.own.current();
        let Some(live) = &current.live else { return Ok(false) };
        let (core, server) = (live.core.clone(), self.me());
        let compare = move |connection: &Connection| Ok(compare(connection, &core, &server)?);
        self.inner.options.database.on_own_connection(compare).await
    }
}

/// Replays the feed in memory, as hashes, and compares it with the view.
fn compare(connection: &Connection, core: &Core, server: &PublicKey) -> Result<bool, CatalogError> {
    // One moment of both: what is appended meanwhile is not seen.
    let snapshot = connection.unchecked_transaction()?;
    let Some(feed) = view::feed(&snapshot, server)? else { return Ok(false) };
    let hasher = RandomState::new();
    let hash = |bytes: &[u8]| hasher.hash_one(bytes);
    let mut books: HashMap<u64, u64> = HashMap::new();
    let mut at = 0;
    while at < feed.position {
        let blocks = core.range(at..feed.position, 1 << 20)?;
        if blocks.is_empty() {
            return Ok(false);
        }
        for block in &blocks {
            match entry::decode(block) {
                Ok(Entry::Added(book)) => {
                    books.insert(hash(book.id.as_bytes()), hash(block));
                }
                Ok(Entry::Removed { id }) => {
                    books.remove(&hash(id.as_bytes()));
                }
                Ok(Entry::Unknown) | Err(_) => {}
            }
        }
        at += blocks.len() as u64;
    }
    let mut rows = snapshot
        .prepare("SELECT book_id, entry FROM catalog_entries WHERE row BETWEEN ?1 AND ?2")?;
    let (first, last) = view::rows_of(feed.number);
    let mut rows = rows.query([first, last])?;
    while let Some(row) = rows.next()? {
        let (Ok(id), Ok(entry)) = (row.get_ref(0)?.as_bytes(), row.get_ref(1)?.as_bytes()) else {
            return Ok(false);
        };
        if books.remove(&hash(id)) != Some(hash(entry)) {
            return Ok(false);
        }
    }
    Ok(books.is_empty())
}
