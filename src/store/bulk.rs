//! More memory for the writer while it has much to write at once.
//!
//! A transaction whose pages do not fit into the connection's cache writes them early, reads them again and
//! writes them again. What is usually written is small, so the cache is large only meanwhile.

use rusqlite::Transaction;

use super::{Database, StoreError, WRITER_CACHE};

/// What the writer keeps of the database while it has much to write, in KiB.
const BULK_CACHE: i64 = 4 * 1024;

impl Database {
    /// Gives the writer more memory; called in a transaction that writes much.
    pub(crate) fn widen(transaction: &Transaction<'_>) -> Result<(), StoreError> {
        Ok(transaction.pragma_update(None, "cache_size", -BULK_CACHE)?)
    }

    /// Takes the memory back, when that was the last of much.
    pub(crate) async fn narrow(&self) -> Result<(), StoreError> {
        self.write_with(super::Durability::Process, |transaction| {
            transaction.pragma_update(None, "cache_size", -WRITER_CACHE)?;
            Ok(transaction.execute_batch("PRAGMA shrink_memory")?)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn cache(database: &Database) -> i64 {
        let read =
            |t: &Transaction<'_>| Ok(t.pragma_query_value(None, "cache_size", |r| r.get(0))?);
        database.write::<i64, StoreError, _>(read).await.unwrap()
    }

    #[tokio::test]
    async fn the_writer_has_more_memory_until_it_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&dir.path().join("p2p.db")).unwrap();
        let usual = cache(&database).await;
        database.write(Database::widen).await.unwrap();
        assert!(cache(&database).await < usual);
        database.narrow().await.unwrap();
        assert_eq!(cache(&database).await, usual);
    }
}
