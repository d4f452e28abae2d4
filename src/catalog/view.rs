//! The catalog view: what a feed says when replayed, as rows in SQLite with full-text search.
//!
//! A feed has a number; a book's row is `number << 32 | sequence`, so that one range of row ids is one
//! catalog, in the order of publication, in the table as in the search index. A book keeps its row when
//! it is described anew. The position up to which a feed was replayed is written in the transaction
//! that writes the rows. What a book's entry says is read where the feed's core keeps it.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use rusqlite::{CachedStatement, Connection, OptionalExtension, Transaction, params};

use super::CatalogError;
use super::entry::{self, Entry, EntryError};
use super::search::Keys;
use crate::crypto::PublicKey;
use crate::store::{StoreError, readable};

/// The most books that one server's catalog has here; more are skipped and counted.
pub const MAX_BOOKS: u64 = 1_000_000;

/// How many bits of a row id number the books of a feed.
pub(super) const SEQUENCE_BITS: u32 = 32;
/// How many bits of a row id number the books of a part, which is sorted by itself.
pub(super) const PART_BITS: u32 = 14;
/// The last sequence number of a feed.
const MAX_SEQUENCE: i64 = (1 << SEQUENCE_BITS) - 1;

/// What is known of one replayed feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feed {
    /// The feed's number in this database.
    pub(super) number: i64,
    /// The server whose catalog it is.
    pub server: PublicKey,
    /// The key of the feed's core.
    pub key: [u8; 32],
    /// How many entries were replayed.
    pub position: u64,
    /// How many books are on offer.
    pub books: u64,
    /// How many entries were skipped: bad ones, and those beyond the limit.
    pub skipped: u64,
    /// When the view last changed, in Unix milliseconds.
    pub updated_at: Option<u64>,
    next_sequence: i64,
}

impl Feed {
    /// Why nothing of the feed can be shown, if so: of the `length` entries that it has, none is one.
    pub(super) fn trouble(&self, length: u64) -> Option<String> {
        let is_unreadable = length > 0 && self.position >= length && self.skipped == self.position;
        is_unreadable.then(|| {
            format!(
                "none of the {length} entries of this catalog can be read. Perhaps they are encrypted, which \
                 catalogs cannot be: its owner has to publish it in a feed without an encryption key"
            )
        })
    }

    /// The parts that the feed's books are in.
    pub(super) fn parts(&self) -> RangeInclusive<i64> {
        let (first, _) = rows_of(self.number);
        let last = first | self.next_sequence.saturating_sub(1).clamp(0, MAX_SEQUENCE);
        first >> PART_BITS..=last >> PART_BITS
    }
}

/// One entry, read before the transaction begins.
pub(super) struct Step {
    read: Result<Entry, EntryError>,
    keys: Keys,
}

impl Step {
    /// Reads a block of a feed.
    pub(super) fn read(block: &[u8]) -> Self {
        let read = entry::decode(block);
        let keys = match &read {
            Ok(Entry::Added(book)) => Keys::of(book),
            _ => Keys::default(),
        };
        Self { read, keys }
    }
}

/// The feed of `server`, if its catalog is known.
pub(super) fn feed(
    connection: &Connection,
    server: &PublicKey,
) -> Result<Option<Feed>, StoreError> {
    let mut statement = connection.prepare_cached(&format!("{SELECT_FEED} WHERE server = ?1"))?;
    Ok(statement.query_row([server.as_bytes()], feed_row).optional()?)
}

/// Every feed, in the order in which they became known.
pub(super) fn feeds(connection: &Connection) -> Result<Vec<Feed>, StoreError> {
    let mut statement = connection.prepare_cached(&format!("{SELECT_FEED} ORDER BY number"))?;
    let mut rows = statement.query([])?;
    let mut feeds = Vec::new();
    while let Some(row) = rows.next()? {
        feeds.extend(readable("catalog_feeds", feed_row(row))?);
    }
    Ok(feeds)
}

/// How many books of a forgotten feed are deleted at a time.
const LEFTOVERS: u32 = 2000;

const SELECT_FEED: &str = "SELECT number, server, feed_key, position, next_sequence, books, skipped, \
     updated_at FROM catalog_feeds";

fn feed_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Feed> {
    Ok(Feed {
        number: row.get(0)?,
        server: PublicKey::from_bytes(row.get(1)?),
        key: row.get(2)?,
        position: row.get(3)?,
        next_sequence: row.get(4)?,
        books: row.get(5)?,
        skipped: row.get(6)?,
        updated_at: row.get(7)?,
    })
}

/// Makes `key` the feed of `server`. Another key than before empties the view, which is then replayed
/// from the start.
pub(super) fn set_feed(
    transaction: &Transaction<'_>,
    server: &PublicKey,
    key: &[u8; 32],
) -> Result<Feed, StoreError> {
    forget_unreadable(transaction, server)?;
    if let Some(known) = feed(transaction, server)? {
        if known.key == *key {
            return Ok(known);
        }
        remove(transaction, server)?;
    }
    transaction.execute(
        "INSERT INTO catalog_feeds (server, feed_key) VALUES (?1, ?2)",
        params![server.as_bytes(), key],
    )?;
    feed(transaction, server)?.ok_or(StoreError::Sqlite(rusqlite::Error::QueryReturnedNoRows))
}

/// Forgets what was replayed of a server's feed if nobody can read how far: it is replayed from the start.
fn forget_unreadable(transaction: &Transaction<'_>, server: &PublicKey) -> Result<(), StoreError> {
    match feed(transaction, server) {
        Err(StoreError::Sqlite(error)) if StoreError::is_unreadable(&error) => {}
        other => return other.map(drop),
    }
    transaction.execute("DELETE FROM catalog_feeds WHERE server = ?1", [server.as_bytes()])?;
    tracing::warn!(
        server = server.short(),
        "a row of the catalogs cannot be read; it is made again"
    );
    Ok(())
}

/// What this node's owner has decided about a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It may have a catalog here.
    Approved,
    /// What it has here stays, and nothing comes.
    Blocked,
    /// It is no peer (any more).
    Unknown,
}

/// What the owner has decided about `server`.
pub(super) fn standing(
    connection: &Connection,
    server: &PublicKey,
) -> Result<Standing, StoreError> {
    let mut statement =
        connection.prepare_cached("SELECT status = 'approved' FROM peers WHERE public_key = ?1")?;
    let is_approved = statement.query_row([server.to_z32()], |row| row.get(0)).optional()?;
    Ok(match is_approved {
        Some(true) => Standing::Approved,
        Some(false) => Standing::Blocked,
        None => Standing::Unknown,
    })
}

/// Makes `key` the feed of a peer, as [`set_feed`] does. One that is not approved gets no feed that it has
/// not got.
pub(super) fn set_peer_feed(
    transaction: &Transaction<'_>,
    peer: &PublicKey,
    key: &[u8; 32],
) -> Result<Feed, CatalogError> {
    let known = feed(transaction, peer)?.is_some_and(|feed| feed.key == *key);
    match standing(transaction, peer)? {
        Standing::Approved => {}
        Standing::Blocked if known => {}
        Standing::Blocked | Standing::Unknown => return Err(CatalogError::NotApproved),
    }
    Ok(set_feed(transaction, peer, key)?)
}

/// Empties the view of a server's feed, to be replayed from the start.
pub(super) fn empty(
    transaction: &Transaction<'_>,
    server: &PublicKey,
    key: &[u8; 32],
) -> Result<(), StoreError> {
    if remove(transaction, server)?.is_some() {
        set_feed(transaction, server, key)?;
    }
    Ok(())
}

/// Forgets a server's catalog, in the transaction that removes the server from the peers: nothing of it is
/// shown from then on. Nothing brings it back but a new approval. What is left of it, a million books at most, is
/// deleted afterwards, little by little: whoever waits for the database does not wait for that.
///
/// # Errors
///
/// When the database fails.
pub fn forget_in(transaction: &Transaction<'_>, peer: &PublicKey) -> Result<(), StoreError> {
    remove(transaction, peer).map(drop)
}

/// Forgets a server's catalog, as [`forget_in`] does. Returns the key of its feed.
pub(super) fn remove(
    transaction: &Transaction<'_>,
    server: &PublicKey,
) -> Result<Option<[u8; 32]>, StoreError> {
    let sql = "DELETE FROM catalog_feeds WHERE server = ?1 RETURNING feed_key";
    Ok(transaction.query_row(sql, [server.as_bytes()], |row| row.get(0)).optional()?)
}

/// Deletes some of the books of feeds that were forgotten. False when none are left.
pub(super) fn remove_leftovers(transaction: &Transaction<'_>) -> Result<bool, StoreError> {
    let Some(number) = forgotten(transaction)? else { return Ok(false) };
    let (first, last) = rows_of(number);
    let sql =
        "SELECT row FROM catalog_books WHERE row BETWEEN ?1 AND ?2 ORDER BY row LIMIT 1 OFFSET ?3";
    let some = params![first, last, LEFTOVERS];
    let until = transaction.query_row(sql, some, |row| row.get(0)).optional()?.unwrap_or(last);
    for sql in [
        "DELETE FROM catalog_search WHERE rowid BETWEEN ?1 AND ?2",
        "DELETE FROM catalog_books WHERE row BETWEEN ?1 AND ?2",
    ] {
        transaction.execute(sql, [first, until])?;
    }
    Ok(true)
}

/// The number of a feed that was forgotten and has books still.
fn forgotten(connection: &Connection) -> Result<Option<i64>, StoreError> {
    let mut next =
        connection.prepare_cached("SELECT min(row) FROM catalog_books WHERE row >= ?1")?;
    let mut known = connection.prepare_cached("SELECT 1 FROM catalog_feeds WHERE number = ?1")?;
    let mut from = 0;
    while let Some(row) = next.query_row([from], |row| row.get::<_, Option<i64>>(0))? {
        let number = row >> SEQUENCE_BITS;
        if !known.exists([number])? {
            return Ok(Some(number));
        }
        from = rows_of(number).1.saturating_add(1);
    }
    Ok(None)
}

/// The first and the last row id that a feed's books can have.
pub(super) fn rows_of(number: i64) -> (i64, i64) {
    let first = number << SEQUENCE_BITS;
    (first, first | MAX_SEQUENCE)
}

/// Replays `steps`, the entries from `from` on, and moves the position behind them.
///
/// Fails with [`CatalogError::Moved`] when the feed is no longer at `from` or was replaced meanwhile.
pub(super) fn apply(
    transaction: &Transaction<'_>,
    number: i64,
    from: u64,
    steps: &[Step],
    now: u64,
) -> Result<Feed, CatalogError> {
    let mut statement = transaction
        .prepare_cached(&format!("{SELECT_FEED} WHERE number = ?1"))
        .map_err(StoreError::from)?;
    let found = statement.query_row([number], feed_row).optional().map_err(StoreError::from)?;
    let mut feed = found.filter(|feed| feed.position == from).ok_or(CatalogError::Moved)?;
    apply_steps(transaction, &mut feed, steps)?;
    feed.position = from + steps.len() as u64;
    feed.updated_at = Some(now);
    transaction
        .prepare_cached(
            "UPDATE catalog_feeds SET position = ?2, next_sequence = ?3, books = ?4, skipped = ?5, \
             updated_at = ?6 WHERE number = ?1",
        )
        .and_then(|mut update| {
            update.execute(params![
                number,
                feed.position,
                feed.next_sequence,
                feed.books,
                feed.skipped,
                now
            ])
        })
        .map_err(StoreError::from)?;
    Ok(feed)
}

fn apply_steps(
    transaction: &Transaction<'_>,
    feed: &mut Feed,
    steps: &[Step],
) -> Result<(), StoreError> {
    let mut insert = transaction.prepare_cached(
        "INSERT INTO catalog_books \
         (row, feed, part, block, book_id, title, author, added, format, language) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) ON CONFLICT (feed, book_id) DO NOTHING",
    )?;
    let mut replace = transaction.prepare_cached(
        "UPDATE catalog_books SET title = ?3, author = ?4, added = ?5, format = ?6, language = ?7, \
         block = ?8 WHERE feed = ?1 AND book_id = ?2 RETURNING row",
    )?;
    let mut delete = transaction.prepare_cached(
        "DELETE FROM catalog_books WHERE feed = ?1 AND book_id = ?2 RETURNING row",
    )?;
    let mut index =
        transaction.prepare_cached("INSERT INTO catalog_search (rowid, words) VALUES (?1, ?2)")?;
    let mut unindex = transaction.prepare_cached("DELETE FROM catalog_search WHERE rowid = ?1")?;
    for (block, step) in (feed.position..).zip(steps) {
        match &step.read {
            Ok(Entry::Added(book)) => {
                let (number, id, keys) = (feed.number, &book.id, &step.keys);
                let Keys { words, title, author, added, format, language } = keys;
                let row = rows_of(number).0 | feed.next_sequence;
                let has_room = feed.books < MAX_BOOKS && feed.next_sequence < MAX_SEQUENCE;
                let part = row >> PART_BITS;
                let fields =
                    params![row, number, part, block, id, title, author, added, format, language];
                if has_room && insert.execute(fields)? == 1 {
                    index.execute(params![row, words])?;
                    feed.next_sequence += 1;
                    feed.books += 1;
                    continue;
                }
                let fields = params![number, id, title, author, added, format, language, block];
                let replaced: Option<i64> =
                    replace.query_row(fields, |row| row.get(0)).optional()?;
                match replaced {
                    Some(row) => {
                        unindex.execute([row])?;
                        index.execute(params![row, words])?;
                    }
                    None => feed.skipped += 1,
                }
            }
            Ok(Entry::Removed { id }) => {
                let removed: Option<i64> =
                    delete.query_row(params![feed.number, id], |row| row.get(0)).optional()?;
                if let Some(row) = removed {
                    unindex.execute([row])?;
                    feed.books = feed.books.saturating_sub(1);
                }
            }
            Ok(Entry::Unknown) => {}
            Err(error) => {
                tracing::debug!(server = feed.server.short(), %error, "skipped a catalog entry");
                feed.skipped += 1;
            }
        }
    }
    Ok(())
}

/// The JSON of one book's entry.
pub(super) fn entry_json(
    connection: &Connection,
    number: i64,
    book_id: &str,
) -> Result<Option<String>, StoreError> {
    let mut statement = connection
        .prepare_cached("SELECT entry FROM catalog_entries WHERE feed = ?1 AND book_id = ?2")?;
    Ok(statement.query_row(params![number, book_id], text).optional()?.flatten())
}

/// Every book in a catalog: its id, and the JSON of its entry unless that is damaged.
pub(super) fn each_book<E: From<StoreError>>(
    connection: &Connection,
    number: i64,
    mut work: impl FnMut(&str, Option<&str>) -> Result<(), E>,
) -> Result<(), E> {
    let sql = |error: rusqlite::Error| E::from(error.into());
    let (first, last) = rows_of(number);
    let mut statement = connection
        .prepare_cached(
            "SELECT book_id, (SELECT bytes FROM core_blocks WHERE place = ( \
               SELECT core.id << 40 FROM catalog_feeds AS feed \
               CROSS JOIN cores AS core ON core.key = feed.feed_key WHERE feed.number = ?3 \
             ) | block) FROM catalog_books WHERE row BETWEEN ?1 AND ?2",
        )
        .map_err(sql)?;
    let mut rows = statement.query([first, last, number]).map_err(sql)?;
    while let Some(row) = rows.next().map_err(sql)? {
        let id = row.get_ref(0).map_err(sql)?.as_str().map_err(|error| sql(error.into()))?;
        let entry = row.get_ref(1).map_err(sql)?;
        work(id, entry.as_bytes().ok().and_then(|entry| std::str::from_utf8(entry).ok()))?;
    }
    Ok(())
}

/// The JSON of the book in a row, if it is still there.
pub(super) fn entry_at(connection: &Connection, row: i64) -> Result<Option<String>, StoreError> {
    let mut statement =
        connection.prepare_cached("SELECT entry FROM catalog_entries WHERE row = ?1")?;
    Ok(statement.query_row([row], text).optional()?.flatten())
}

/// Reads many entries whose places are known.
pub(super) struct Entries<'c> {
    core_of: CachedStatement<'c>,
    block: CachedStatement<'c>,
    cores: BTreeMap<i64, Option<i64>>,
}

impl<'c> Entries<'c> {
    pub(super) fn new(connection: &'c Connection) -> Result<Self, StoreError> {
        let core_of = connection.prepare_cached(
            "SELECT core.id << 40 FROM catalog_feeds AS feed \
             CROSS JOIN cores AS core ON core.key = feed.feed_key WHERE feed.number = ?1",
        )?;
        let block = connection.prepare_cached("SELECT bytes FROM core_blocks WHERE place = ?1")?;
        Ok(Self { core_of, block, cores: BTreeMap::new() })
    }

    /// The JSON of an entry of a feed.
    pub(super) fn get(&mut self, number: i64, block: i64) -> Result<Option<String>, StoreError> {
        let core = match self.cores.get(&number) {
            Some(core) => *core,
            None => {
                let core = self.core_of.query_row([number], |row| row.get(0)).optional()?;
                self.cores.insert(number, core);
                core
            }
        };
        let Some(core) = core else { return Ok(None) };
        Ok(self.block.query_row([core | block], text).optional()?.flatten())
    }
}

/// A text that may be damaged.
fn text(row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<String>> {
    Ok(std::str::from_utf8(row.get_ref(0)?.as_bytes()?).ok().map(str::to_owned))
}

#[cfg(test)]
pub(super) mod fixture {
    use super::*;
    use crate::store::Database;

    /// Puts `entries` into the feed with `key` and replays them.
    pub(in super::super) async fn replay(
        database: &Database,
        server: PublicKey,
        key: [u8; 32],
        entries: &[impl AsRef<[u8]>],
    ) -> Feed {
        let blocks: Vec<_> = entries.iter().map(|entry| entry.as_ref().to_vec()).collect();
        let steps: Vec<_> = blocks.iter().map(|block| Step::read(block)).collect();
        let write = move |transaction: &Transaction<'_>| {
            let feed = set_feed(transaction, &server, &key)?;
            transaction.execute(
                "INSERT INTO cores (discovery_key, key, fork, length, byte_length) \
                 VALUES (?1, ?1, 0, 0, 0) ON CONFLICT DO NOTHING",
                [key],
            )?;
            for (index, block) in (feed.position..).zip(&blocks) {
                transaction.execute(
                    "INSERT INTO core_blocks (place, bytes) \
                     SELECT id << 40 | ?2, ?3 FROM cores WHERE key = ?1",
                    params![key, index, block],
                )?;
            }
            apply(transaction, feed.number, feed.position, &steps, 5)
        };
        database.write(write).await.unwrap()
    }
}
