//! Long reads over the whole file, on a connection of their own that stops when nobody waits for it.

use std::sync::{Arc, Mutex};

use rusqlite::{Connection, InterruptHandle};

use super::{Database, StoreError, open_reader};
use crate::error::{Error, ErrorCode, Result};
use crate::sync::lock;

/// How many problems are named.
const MAX_PROBLEMS: usize = 20;

impl Database {
    /// Lets SQLite check its file: what it finds wrong, in its own words; nothing when all is well. Reads
    /// all of it, away from the threads that serve the network. Dropping the future ends the work soon.
    pub async fn check_integrity(&self) -> Result<Vec<String>> {
        self.on_own_connection(|connection| match problems(connection, "integrity_check") {
            Err(StoreError::Sqlite(error)) if StoreError::is_damage(&error) => {
                Ok(vec![error.to_string()])
            }
            found => found.map_err(from_store),
        })
        .await
    }

    /// Runs `work` on a blocking thread with a read-only connection that is interrupted when the future
    /// is dropped.
    pub(crate) async fn on_own_connection<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if lock(&self.inner.writer).is_none() {
            return Err(Error::closed());
        }
        let path = self.inner.path.clone();
        let stop = StopOnDrop::default();
        let reading = Arc::clone(&stop.0);
        let run = move || {
            let connection = open_reader(&path).map_err(|error| from_store(error.into()))?;
            {
                let mut reading = lock(&reading);
                if reading.is_stopped {
                    return Err(stopped());
                }
                reading.handle = Some(connection.get_interrupt_handle());
            }
            let outcome = work(&connection);
            lock(&reading).handle = None;
            outcome
        };
        crate::tasks::blocking(run).await.unwrap_or_else(|_| Err(Error::closed()))
    }
}

impl StoreError {
    fn is_damage(error: &rusqlite::Error) -> bool {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        matches!(error, rusqlite::Error::SqliteFailure(failure, _)
            if matches!(failure.code, DatabaseCorrupt | NotADatabase))
    }

    /// Whether a value is none that this library writes: another type, a text that is no Unicode, a number
    /// that is too large or below zero.
    pub(crate) fn is_unreadable(error: &rusqlite::Error) -> bool {
        use rusqlite::Error::{
            FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, Utf8Error,
        };
        matches!(
            error,
            FromSqlConversionFailure(..)
                | IntegralValueOutOfRange(..)
                | InvalidColumnType(..)
                | Utf8Error(..)
        )
    }

    /// Whether the file itself is damaged, or what stands in it is not what this library writes.
    #[must_use]
    pub fn is_corrupt(&self) -> bool {
        matches!(self, Self::Sqlite(error) if Self::is_damage(error) || Self::is_unreadable(error))
    }
}

/// What SQLite finds wrong with the file of a connection.
pub(super) fn problems(connection: &Connection, check: &str) -> Result<Vec<String>, StoreError> {
    let mut check = connection.prepare(&format!("PRAGMA {check}({MAX_PROBLEMS})"))?;
    let rows = check.query_map([], |row| row.get::<_, String>(0))?;
    let mut found = rows.collect::<Result<Vec<_>, _>>()?;
    found.retain(|line| line != "ok");
    Ok(found)
}

/// What `read` makes of a row; `None`, and a warning, when a value in it cannot be read: one row that
/// somebody changed is not to keep a node from its others.
pub(crate) fn readable<T>(
    table: &str,
    read: rusqlite::Result<T>,
) -> Result<Option<T>, rusqlite::Error> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error) if StoreError::is_unreadable(&error) => {
            tracing::warn!(table, %error, "a row of the database cannot be read; it is ignored");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// A failure of the database as the caller sees it.
pub(super) fn from_store(error: StoreError) -> Error {
    match &error {
        StoreError::Sqlite(rusqlite::Error::SqliteFailure(failure, _))
            if failure.code == rusqlite::ErrorCode::OperationInterrupted =>
        {
            stopped()
        }
        _ => error.into(),
    }
}

fn stopped() -> Error {
    Error::new(ErrorCode::Aborted, "the work was stopped, because nobody waits for it")
}

#[derive(Default)]
struct StopOnDrop(Arc<Mutex<Reading>>);

#[derive(Default)]
struct Reading {
    is_stopped: bool,
    handle: Option<InterruptHandle>,
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        let mut reading = lock(&self.0);
        reading.is_stopped = true;
        if let Some(handle) = &reading.handle {
            handle.interrupt();
        }
    }
}
