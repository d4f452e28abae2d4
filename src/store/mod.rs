//! The SQLite database of a node: one writer thread with group commit, and read connections.
//!
//! WAL mode, one file. Writes are closures sent to the writer thread; all that wait at the same
//! moment share one transaction, each under a savepoint of its own, so that one that fails does not undo
//! its neighbours. An acknowledged [`Database::write`] survives `kill -9` and power loss: a second thread
//! syncs the log for all that wait for it, while the next transactions run. Reads run on the caller's
//! thread over a small pool of read-only connections and see every acknowledged write.
//!
//! What the disk refuses is an error of the write that it was for, and the next one is tried anew: nothing
//! has to be opened again when there is room, or the disk works. `writer.rs` says what a failed sync means.

mod backup;
mod backup_file;
mod bulk;
mod cores;
mod defensive;
mod integrity;
mod log;
mod schema;
mod tail;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode as SqliteCode, OpenFlags, Transaction};
use tokio::sync::oneshot;

use crate::error::{Error, ErrorCode};
use crate::sync::lock;
use defensive::harden;
use writer::{Finish, Job, Ran, Writer};

pub(crate) use backup::{BackupFacts, BackupFile, Part, RESTORED, UntrustedBackup};
pub use cores::CoreStore;
pub(crate) use cores::copy_core;
pub(crate) use integrity::readable;

/// How many writes may wait for the writer thread; further callers wait (their future stays pending).
const WRITE_QUEUE: usize = 1024;
/// How many idle read connections are kept.
const IDLE_READERS: usize = 2;
/// What each connection keeps of the database, in KiB. The system keeps it anyway; this saves calls, once
/// a connection.
const WRITER_CACHE: i64 = 512;
const READER_CACHE: i64 = 256;

/// Why the database did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// SQLite refused or failed.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// The database was closed.
    #[error("the database is closed")]
    Closed,
    /// The file was written by a newer version of this library.
    #[error(
        "the database has schema version {found}, this library knows up to {known}: update @alex/p2p"
    )]
    TooNew {
        /// What the file says.
        found: i64,
        /// What this build knows.
        known: i64,
    },
    /// The file's tables, triggers, views and indexes are not those that this library makes.
    #[error(
        "it has {what}, which this library did not make, so nothing of it was run. If you put it there \
         yourself, take it out again with the sqlite3 program; otherwise somebody changed the file: restore \
         a backup"
    )]
    ForeignSchema {
        /// What is there, or missing.
        what: String,
    },
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::Closed => return Self::closed(),
            StoreError::TooNew { .. } | StoreError::ForeignSchema { .. } => ErrorCode::Corrupt,
            StoreError::Sqlite(rusqlite::Error::SqliteFailure(failure, _)) => match failure.code {
                SqliteCode::DiskFull => ErrorCode::DiskFull,
                SqliteCode::DatabaseBusy | SqliteCode::DatabaseLocked => ErrorCode::Busy,
                SqliteCode::DatabaseCorrupt | SqliteCode::NotADatabase => ErrorCode::Corrupt,
                SqliteCode::SystemIoFailure | SqliteCode::CannotOpen | SqliteCode::ReadOnly => {
                    ErrorCode::Io
                }
                _ => ErrorCode::Internal,
            },
            StoreError::Sqlite(error) if StoreError::is_unreadable(error) => ErrorCode::Corrupt,
            StoreError::Sqlite(_) => ErrorCode::Internal,
        };
        Self::of_disk(code, format!("the database p2p.db failed: {error}"))
    }
}

/// What a write is told to survive when it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// The end of this process (`kill -9`). For what can be fetched again, such as a download's blocks.
    Process,
    /// Power loss, too: the transaction is synced to disk.
    Power,
}

/// A handle to the open database; clones share it.
#[derive(Clone)]
pub struct Database {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    writer: Mutex<Option<Writer>>,
    readers: Mutex<Vec<Connection>>,
    slots: Arc<tokio::sync::Semaphore>,
}

impl Database {
    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Opens or creates the database at `path` and brings its schema up to date. Blocks on disk.
    ///
    /// Fails with [`StoreError::ForeignSchema`] when somebody put a trigger, a view, or anything about our
    /// tables into the file: it would act on what is decided here. A person's own tables may be there.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut connection = Connection::open(path)?;
        harden(&connection)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // The log is synced by the writer's own second thread; checkpoints sync both files.
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        // By the writer, when whoever waits for a write has been told.
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
        configure(&connection, WRITER_CACHE)?;
        schema::migrate(&mut connection)?;
        let writer = Writer::start(connection, path)?;
        Ok(Self {
            inner: Arc::new(Inner {
                path: path.to_owned(),
                writer: Mutex::new(Some(writer)),
                readers: Mutex::new(Vec::new()),
                slots: Arc::new(tokio::sync::Semaphore::new(WRITE_QUEUE)),
            }),
        })
    }

    /// Runs `work` in a transaction on the writer thread and returns when it is synced to disk.
    ///
    /// An error of `work` undoes what it did. Cancelling the future does not cancel work that is queued.
    pub async fn write<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, E> + Send + 'static,
    {
        self.write_with(Durability::Power, work).await
    }

    /// [`Database::write`] with a choice of what the acknowledged write survives.
    pub async fn write_with<T, E, F>(&self, durability: Durability, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, E> + Send + 'static,
    {
        let slots = Arc::clone(&self.inner.slots);
        let slot = slots.acquire_owned().await.map_err(|_| E::from(StoreError::Closed))?;
        let (reply, answer) = oneshot::channel();
        let run = move |transaction: Result<&Transaction<'_>, &rusqlite::Error>| {
            let outcome = match transaction {
                Ok(transaction) => guarded(transaction, work),
                Err(error) => Err(E::from(copy_error(error).into())),
            };
            let is_done = outcome.is_ok();
            let finish: Finish = Box::new(move |committed| {
                drop(slot);
                let outcome = match committed {
                    Ok(()) => outcome,
                    Err(error) => outcome.and(Err(E::from(copy_error(error).into()))),
                };
                // The caller may have gone; the work stands all the same.
                let _ = reply.send(outcome);
            });
            Ran { is_done, finish }
        };
        {
            let writer = lock(&self.inner.writer);
            let writer = writer.as_ref().ok_or_else(|| E::from(StoreError::Closed))?;
            writer.send(Job { durability, run: Box::new(run) })?;
        }
        answer.await.map_err(|_| E::from(StoreError::Closed))?
    }

    /// Runs `work` with a read-only connection on the calling thread. Keep it short: it blocks.
    pub fn read<T, E: From<StoreError>>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, E>,
    ) -> Result<T, E> {
        if lock(&self.inner.writer).is_none() {
            return Err(E::from(StoreError::Closed));
        }
        let idle = lock(&self.inner.readers).pop();
        let connection = match idle {
            Some(connection) => connection,
            None => open_reader(&self.inner.path).map_err(|error| E::from(error.into()))?,
        };
        let outcome = work(&connection);
        let mut readers = lock(&self.inner.readers);
        if readers.len() < IDLE_READERS {
            readers.push(connection);
        }
        outcome
    }

    /// Finishes queued writes and closes the file. Blocks on disk; a second call does nothing.
    pub fn close(&self) {
        let writer = lock(&self.inner.writer).take();
        self.inner.slots.close();
        // The writer must be the last to close: it puts the log back into the file, readers cannot.
        lock(&self.inner.readers).clear();
        if let Some(writer) = writer {
            writer.close();
        }
        lock(&self.inner.readers).clear();
    }
}

fn configure(connection: &Connection, cache_kib: i64) -> Result<(), rusqlite::Error> {
    harden(connection)?;
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    connection.set_prepared_statement_cache_capacity(128);
    // Statements are planned once, and not again for each value that is bound: that took longer than most
    // of them run.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.pragma_update(None, "cache_size", -cache_kib)?;
    // No table of ours has any, and a person's own table is not to keep rows of ours from being deleted.
    connection.pragma_update(None, "foreign_keys", false)
}

fn open_reader(path: &Path) -> Result<Connection, rusqlite::Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    configure(&connection, READER_CACHE)?;
    Ok(connection)
}

/// Runs a write; a panic is an error of this write alone.
fn guarded<T, E: From<StoreError>>(
    transaction: &Transaction<'_>,
    work: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
) -> Result<T, E> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(transaction)))
        .unwrap_or_else(|_| Err(E::from(StoreError::Sqlite(rusqlite::Error::UnwindingPanic))))
}

/// `rusqlite::Error` is not `Clone`; what callers look at is kept.
fn copy_error(error: &rusqlite::Error) -> rusqlite::Error {
    match error {
        rusqlite::Error::SqliteFailure(failure, message) => {
            rusqlite::Error::SqliteFailure(*failure, message.clone())
        }
        other => rusqlite::Error::InvalidParameterName(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(db: &Database) -> i64 {
        db.read(|c| {
            Ok::<_, StoreError>(c.query_row("SELECT count(*) FROM meta", [], |row| row.get(0))?)
        })
        .unwrap()
    }

    async fn put(db: &Database, name: &'static str) -> Result<(), StoreError> {
        db.write(move |t| {
            t.execute("INSERT INTO meta (name, value) VALUES (?1, '')", [name])?;
            Ok(())
        })
        .await
    }

    #[tokio::test]
    async fn an_acknowledged_write_is_seen_by_readers_and_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p2p.db");
        let db = Database::open(&path).unwrap();
        put(&db, "a").await.unwrap();
        assert_eq!(count(&db), 1);
        db.close();
        assert!(!dir.path().join("p2p.db-wal").exists(), "all of it is in the one file");
        assert_eq!(count(&Database::open(&path).unwrap()), 1);
    }

    #[tokio::test]
    async fn a_failing_write_does_not_undo_its_neighbours() {
        let dir = tempfile::tempdir().unwrap();
        let db = Database::open(&dir.path().join("p2p.db")).unwrap();
        let (a, b, c) = tokio::join!(put(&db, "a"), put(&db, "a"), put(&db, "b"));
        assert!(a.is_ok() && b.is_err() && c.is_ok());
        assert_eq!(count(&db), 2);
    }

    #[tokio::test]
    async fn a_panicking_write_fails_alone() {
        let dir = tempfile::tempdir().unwrap();
        let db = Database::open(&dir.path().join("p2p.db")).unwrap();
        let failed: Result<(), StoreError> = db.write(|_| panic!("on purpose")).await;
        assert!(failed.is_err());
        put(&db, "a").await.unwrap();
        assert_eq!(count(&db), 1);
    }

    #[tokio::test]
    async fn a_closed_database_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let db = Database::open(&dir.path().join("p2p.db")).unwrap();
        db.close();
        assert!(matches!(put(&db, "a").await, Err(StoreError::Closed)));
        assert!(matches!(db.read(|_| Ok::<_, StoreError>(())), Err(StoreError::Closed)));
    }
}
