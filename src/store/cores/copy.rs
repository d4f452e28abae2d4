//! A core taken over from another database, which may be anybody's work.

use rusqlite::{Connection, Transaction};

use super::rows::{header, id, place, places, put_header};
use crate::crypto::Hash;
use crate::store::StoreError;

/// Copies all that `from` has of a core into the database of `transaction`, which has nothing of it. Whether
/// there was one.
///
/// The values have the right types, and nothing else of them was looked at: open the core and verify it.
pub(crate) fn copy_core(
    from: &Connection,
    transaction: &Transaction<'_>,
    discovery_key: &Hash,
) -> Result<bool, StoreError> {
    let Some(theirs) = id(from, discovery_key)? else { return Ok(false) };
    let (first, end) = places(theirs)?;
    let ours = put_header(transaction, discovery_key, &header(from, theirs)?)?;
    let ours = place(ours, 0)?;
    for (table, column) in
        [("core_blocks", "bytes"), ("core_nodes", "nodes"), ("core_bits", "bits")]
    {
        let read = format!("SELECT place, {column} FROM {table} WHERE place >= ?1 AND place < ?2");
        let write = format!("INSERT INTO {table} (place, {column}) VALUES (?1, ?2)");
        let (mut read, mut write) = (from.prepare(&read)?, transaction.prepare(&write)?);
        let mut rows = read.query([first, end])?;
        while let Some(row) = rows.next()? {
            let place = row.get::<_, i64>(0)? - first;
            write.execute((
                ours | place,
                row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?,
            ))?;
        }
    }
    Ok(true)
}
