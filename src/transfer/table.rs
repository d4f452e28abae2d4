//! The `transfers` table. A transfer is here before anybody hears of it. Rows are in the order in which transfers
//! began, whatever the clock said then.

use std::path::PathBuf;

use rusqlite::{Connection, OptionalExtension, Row, Rows, Transaction, params};
use serde::{Deserialize, Serialize};

use super::library::Description;
use super::message::BookCore;
use super::record::{Approval, Record};
use super::state::{Direction, State};
use crate::crypto::{Hash, PublicKey};
use crate::error::ErrorCode;
use crate::store::{StoreError, readable};

/// How many finished transfers of one peer and direction are remembered.
const MAX_FINISHED: u32 = 1000;
/// How many transfers [`list`] gives unless told.
const DEFAULT_LIMIT: u32 = 100;
/// The most that it gives.
const MAX_LIMIT: u32 = 10_000;

/// Which transfers to list; the newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Filter {
    /// Only these.
    pub direction: Option<Direction>,
    /// Only those in this state.
    pub state: Option<State>,
    /// Only those with this peer (z32).
    pub peer: Option<String>,
    /// How many, at most 10,000; 100 unless told.
    pub limit: Option<u32>,
}

const COLUMNS: &str = "id, direction, peer, request_id, book_id, title, author, format, size_bytes, \
     state, reason, error, core_key, tree_hash, length, byte_length, bytes, save_to, path, approved, \
     told, created_at, updated_at, approved_edition, approved_hash";

const UNFINISHED: &str = "state NOT IN ('completed', 'denied', 'cancelled', 'failed')";

/// Writes the record, new or changed.
pub(super) fn put(transaction: &Transaction<'_>, record: &Record) -> Result<(), StoreError> {
    let sql = format!(
        "INSERT INTO transfers ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, \
         ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24, ?25) \
         ON CONFLICT (id) DO UPDATE SET title = excluded.title, author = excluded.author, \
         format = excluded.format, size_bytes = excluded.size_bytes, \
         state = excluded.state, reason = excluded.reason, \
         error = excluded.error, core_key = excluded.core_key, tree_hash = excluded.tree_hash, \
         length = excluded.length, byte_length = excluded.byte_length, bytes = excluded.bytes, \
         save_to = excluded.save_to, path = excluded.path, approved = excluded.approved, \
         approved_edition = excluded.approved_edition, approved_hash = excluded.approved_hash, \
         told = excluded.told, updated_at = excluded.updated_at"
    );
    let path = |path: &Option<PathBuf>| path.as_ref().map(|p| p.to_string_lossy().into_owned());
    transaction.prepare_cached(&sql)?.execute(params![
        record.id,
        record.direction.as_str(),
        record.peer.as_bytes(),
        record.request_id,
        record.book_id,
        record.book.title,
        record.book.author,
        record.book.format,
        record.book.size_bytes,
        record.state.as_str(),
        record.reason,
        record.error.map(ErrorCode::as_str),
        record.core.map(|core| core.key),
        record.core.map(|core| core.hash),
        record.core.map(|core| core.length),
        record.core.map(|core| core.byte_length),
        record.bytes,
        path(&record.save_to),
        path(&record.path),
        record.approval.is_some(),
        record.told,
        record.created_at,
        record.updated_at,
        record.approval.map(|approval| approval.edition),
        record.approval.and_then(|approval| approval.hash),
    ])?;
    Ok(())
}

/// Ends every transfer with a peer, and what a person approved for it, in the transaction that removes or blocks
/// the peer.
///
/// # Errors
///
/// When the database fails.
pub fn end_all_with(transaction: &Transaction<'_>, peer: &PublicKey) -> Result<(), StoreError> {
    let sql = "UPDATE transfers SET approved = 0, approved_edition = NULL, approved_hash = NULL, \
         told = 1, state = CASE WHEN state IN ('completed', 'denied') THEN state ELSE 'cancelled' END \
         WHERE peer = ?1 AND (approved OR state NOT IN ('completed', 'denied', 'cancelled'))";
    transaction.prepare_cached(sql)?.execute([peer.as_bytes()])?;
    Ok(())
}

/// Every transfer with a peer that could go on: those that are not finished, and those that failed and can be
/// resumed.
pub(super) fn endable(
    connection: &Connection,
    peer: &PublicKey,
) -> Result<Vec<String>, StoreError> {
    let sql = "SELECT id FROM transfers WHERE peer = ?1 \
         AND state NOT IN ('completed', 'denied', 'cancelled') \
         AND NOT (direction = 'outgoing' AND state = 'failed')";
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map([peer.as_bytes()], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The cores of incoming transfers that are over and cannot be resumed, as far as they may be stored still.
pub(super) fn ended_parts(connection: &Connection) -> Result<Vec<(Hash, String)>, StoreError> {
    let sql = "SELECT DISTINCT core_key, transfers.id FROM transfers \
         JOIN cores ON cores.key = transfers.core_key \
         WHERE direction = 'incoming' AND state IN ('completed', 'denied', 'cancelled')";
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let read = (|| Ok::<(Hash, String), rusqlite::Error>((row.get(0)?, row.get(1)?)))();
        found.extend(readable("transfers", read)?);
    }
    Ok(found)
}

/// Forgets all but the latest finished transfers with that peer. What failed on its way here can be resumed, so it
/// is not finished.
pub(super) fn prune(
    transaction: &Transaction<'_>,
    direction: Direction,
    peer: &PublicKey,
) -> Result<(), StoreError> {
    let sql = format!(
        "DELETE FROM transfers WHERE id IN (SELECT id FROM transfers WHERE direction = ?1 AND \
         peer = ?2 AND NOT ({UNFINISHED}) AND NOT (direction = 'incoming' AND state = 'failed') \
         ORDER BY rowid DESC LIMIT -1 OFFSET ?3)"
    );
    transaction.prepare_cached(&sql)?.execute(params![
        direction.as_str(),
        peer.as_bytes(),
        MAX_FINISHED
    ])?;
    Ok(())
}

/// The transfer with that id.
pub(super) fn get(connection: &Connection, id: &str) -> Result<Option<Record>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM transfers WHERE id = ?1");
    Ok(connection.prepare_cached(&sql)?.query_row([id], read).optional()?)
}

/// The outgoing transfer that `peer` asked for as `request_id`.
pub(super) fn by_request(
    connection: &Connection,
    peer: &PublicKey,
    request_id: &str,
) -> Result<Option<Record>, StoreError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM transfers WHERE direction = 'outgoing' AND peer = ?1 \
         AND request_id = ?2"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    Ok(statement.query_row(params![peer.as_bytes(), request_id], read).optional()?)
}

/// The incoming transfer of that book which is under way, or failed and can go on.
pub(super) fn open_incoming(
    connection: &Connection,
    peer: &PublicKey,
    book_id: &str,
) -> Result<Option<Record>, StoreError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM transfers WHERE direction = 'incoming' AND peer = ?1 \
         AND book_id = ?2 AND ({UNFINISHED} OR state = 'failed') \
         ORDER BY state = 'failed', rowid DESC LIMIT 1"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    Ok(statement.query_row(params![peer.as_bytes(), book_id], read).optional()?)
}

/// Every transfer that is not finished, the oldest first.
pub(super) fn unfinished(connection: &Connection) -> Result<Vec<Record>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM transfers WHERE {UNFINISHED} ORDER BY rowid");
    let mut statement = connection.prepare_cached(&sql)?;
    read_all(statement.query([])?)
}

/// Incoming transfers whose end the peer has not been told.
pub(super) fn untold(connection: &Connection, peer: &PublicKey) -> Result<Vec<Record>, StoreError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM transfers WHERE direction = 'incoming' AND peer = ?1 AND told = 0 \
         AND NOT ({UNFINISHED}) ORDER BY rowid DESC LIMIT 100"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    read_all(statement.query([peer.as_bytes()])?)
}

/// Lists transfers, the newest first.
pub(super) fn list(
    connection: &Connection,
    filter: &Filter,
    peer: Option<PublicKey>,
) -> Result<Vec<Record>, StoreError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM transfers WHERE (?1 IS NULL OR direction = ?1) \
         AND (?2 IS NULL OR state = ?2) AND (?3 IS NULL OR peer = ?3) \
         ORDER BY rowid DESC LIMIT ?4"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let rows = statement.query(params![
        filter.direction.map(Direction::as_str),
        filter.state.map(State::as_str),
        peer.as_ref().map(PublicKey::as_bytes),
        filter.limit.unwrap_or(DEFAULT_LIMIT).min(MAX_LIMIT),
    ])?;
    read_all(rows)
}

/// The rows that can be read.
fn read_all(mut rows: Rows<'_>) -> Result<Vec<Record>, StoreError> {
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        records.extend(readable("transfers", read(row))?);
    }
    Ok(records)
}

fn read(row: &Row<'_>) -> rusqlite::Result<Record> {
    // Text that means nothing to this version.
    let outside = |column: &str| {
        let index = row.as_ref().column_index(column).unwrap_or_default();
        rusqlite::Error::InvalidColumnType(index, column.to_owned(), rusqlite::types::Type::Text)
    };
    let state: String = row.get("state")?;
    let error: Option<String> = row.get("error")?;
    let path = |text: Option<String>| text.map(PathBuf::from);
    let core = match row.get("core_key")? {
        None => None,
        Some(key) => Some(BookCore {
            key,
            hash: row.get("tree_hash")?,
            length: row.get("length")?,
            byte_length: row.get("byte_length")?,
        }),
    };
    let approval = match (row.get("approved")?, row.get("approved_edition")?) {
        (true, Some(edition)) => Some(Approval { edition, hash: row.get("approved_hash")? }),
        _ => None,
    };
    let direction = match row.get::<_, String>("direction")?.as_str() {
        "incoming" => Direction::Incoming,
        "outgoing" => Direction::Outgoing,
        _ => return Err(outside("direction")),
    };
    Ok(Record {
        id: row.get("id")?,
        direction,
        peer: PublicKey::from_bytes(row.get("peer")?),
        request_id: row.get("request_id")?,
        book_id: row.get("book_id")?,
        book: Description {
            title: row.get("title")?,
            author: row.get("author")?,
            format: row.get("format")?,
            size_bytes: row.get("size_bytes")?,
        },
        state: State::parse(&state).ok_or_else(|| outside("state"))?,
        reason: row.get("reason")?,
        error: error.and_then(|text| ErrorCode::ALL.iter().copied().find(|c| c.as_str() == text)),
        core,
        bytes: row.get("bytes")?,
        save_to: path(row.get("save_to")?),
        path: path(row.get("path")?),
        approval,
        told: row.get("told")?,
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Database;

    const PEER: PublicKey = PublicKey::from_bytes([3; 32]);

    fn open() -> (tempfile::TempDir, Database) {
        let dir = tempfile::tempdir().unwrap();
        let db = Database::open(&dir.path().join("p2p.db")).unwrap();
        (dir, db)
    }

    async fn save(db: &Database, record: &Record) -> Result<(), StoreError> {
        let record = record.clone();
        db.write(move |t| put(t, &record)).await
    }

    fn record() -> Record {
        let book = Description {
            title: "T".into(),
            author: Some("A".into()),
            format: None,
            size_bytes: Some(9),
        };
        Record::incoming(PEER, "b".into(), book, Some("/tmp/x".into()))
    }

    #[tokio::test]
    async fn a_record_reads_back() {
        let (_dir, db) = open();
        let mut record = record();
        save(&db, &record).await.unwrap();
        record.state = State::Failed;
        record.error = Some(ErrorCode::DiskFull);
        record.core = Some(BookCore { key: [1; 32], hash: [2; 32], length: 1, byte_length: 9 });
        record.told = false;
        save(&db, &record).await.unwrap();
        assert_eq!(db.read(|c| get(c, &record.id)).unwrap(), Some(record.clone()));
        assert_eq!(db.read(|c| untold(c, &PEER)).unwrap(), [record]);
    }

    #[tokio::test]
    async fn one_book_of_one_peer_is_under_way_once() {
        let (_dir, db) = open();
        let mut first = record();
        save(&db, &first).await.unwrap();
        assert!(save(&db, &record()).await.is_err());
        first.state = State::Completed;
        save(&db, &first).await.unwrap();
        save(&db, &record()).await.unwrap();
        assert_eq!(db.read(unfinished).unwrap().len(), 1);
    }

    #[tokio::test]
    async fn the_list_is_filtered_and_the_newest_come_first() {
        let (_dir, db) = open();
        let first = record();
        save(&db, &first).await.unwrap();
        let out = Record::outgoing(PEER, "r".into(), "x".into(), Description::default());
        save(&db, &out).await.unwrap();
        let ids = |filter: Filter, peer| -> Vec<String> {
            db.read(|c| list(c, &filter, peer)).unwrap().into_iter().map(|r| r.id).collect()
        };
        assert_eq!(ids(Filter::default(), None), [out.id.clone(), first.id.clone()]);
        let incoming = Filter { direction: Some(Direction::Incoming), ..Filter::default() };
        assert_eq!(ids(incoming, Some(PEER)), [first.id]);
        assert!(ids(Filter::default(), Some(PublicKey::from_bytes([9; 32]))).is_empty());
        assert_eq!(db.read(|c| by_request(c, &PEER, "r")).unwrap(), Some(out));
    }

    #[tokio::test]
    async fn only_the_latest_finished_transfers_of_a_peer_are_remembered() {
        let (_dir, db) = open();
        db.write(|t| {
            for n in 0..MAX_FINISHED + 5 {
                let id = n.to_string();
                let mut record = Record::outgoing(PEER, id, "x".into(), Description::default());
                record.state = State::Cancelled;
                put(t, &record)?;
            }
            prune(t, Direction::Outgoing, &PEER)
        })
        .await
        .unwrap();
        let all = Filter { limit: Some(MAX_LIMIT), ..Filter::default() };
        assert_eq!(db.read(|c| list(c, &all, None)).unwrap().len() as u32, MAX_FINISHED);
    }

    #[tokio::test]
    async fn what_failed_on_its_way_here_is_never_forgotten_for_it_can_be_resumed() {
        let (_dir, db) = open();
        db.write(|t| {
            for n in 0..MAX_FINISHED + 5 {
                let mut record = Record { book_id: n.to_string(), ..record() };
                record.state = State::Failed;
                put(t, &record)?;
            }
            prune(t, Direction::Incoming, &PEER)
        })
        .await
        .unwrap();
        let all = Filter { limit: Some(MAX_LIMIT), ..Filter::default() };
        assert_eq!(db.read(|c| list(c, &all, None)).unwrap().len() as u32, MAX_FINISHED + 5);
    }

    #[tokio::test]
    async fn the_order_is_that_of_beginning_whatever_the_clock_says() {
        let (_dir, db) = open();
        let mut ids = Vec::new();
        for at in [9_000_000, 5, 4_000_000, 1] {
            let mut record = Record { book_id: at.to_string(), ..record() };
            (record.created_at, record.updated_at) = (at, at);
            save(&db, &record).await.unwrap();
            ids.push(record.id);
        }
        let began: Vec<_> = db.read(unfinished).unwrap().into_iter().map(|r| r.id).collect();
        assert_eq!(began, ids);
        let listed = db.read(|c| list(c, &Filter::default(), None)).unwrap();
        assert!(listed.iter().rev().map(|r| &r.id).eq(&ids));
    }

    #[tokio::test]
    async fn a_row_that_cannot_be_read_hides_no_other() {
        let (_dir, db) = open();
        let (first, second) = (record(), Record { book_id: "other".into(), ..record() });
        save(&db, &first).await.unwrap();
        save(&db, &second).await.unwrap();
        let id = first.id.clone();
        db.write::<_, StoreError, _>(move |t| {
            Ok(t.execute("UPDATE transfers SET state = 'levitating' WHERE id = ?1", [id])?)
        })
        .await
        .unwrap();
        let left: Vec<_> = db.read(unfinished).unwrap().into_iter().map(|r| r.id).collect();
        assert_eq!(left, [second.id]);
    }

    #[tokio::test]
    async fn a_peer_that_is_let_go_keeps_no_transfer_and_no_approval() {
        let (_dir, db) = open();
        let approval = Some(Approval { edition: [1; 32], hash: None });
        for (n, state) in State::ALL.into_iter().enumerate() {
            for direction in [Direction::Incoming, Direction::Outgoing] {
                let record =
                    Record { direction, state, approval, book_id: n.to_string(), ..record() };
                save(&db, &record).await.unwrap();
            }
        }
        db.write(|t| end_all_with(t, &PEER)).await.unwrap();
        assert!(db.read(|c| endable(c, &PEER)).unwrap().is_empty());
        for record in db.read(|c| list(c, &Filter::default(), None)).unwrap() {
            let is_over = [State::Completed, State::Denied, State::Cancelled];
            assert!(is_over.contains(&record.state) && record.approval.is_none(), "{record:?}");
        }
    }
}
