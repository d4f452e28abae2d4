//! The own feed out of a backup that nobody vouches for: what it says is believed as far as our own
//! signature proves it.

use super::own::NAMESPACE;
use crate::crypto::{PublicKey, discovery_key};
use crate::error::{Error, ErrorCode, Result};
use crate::hypercore::{Core, Manifest, OpenOptions};
use crate::store::{CoreStore, Database, RESTORED, StoreError, UntrustedBackup, copy_core};

/// Copies the feed of `server` into an empty database, verifies every entry of it, and marks the database as
/// restored. Returns how many entries it has; 0 when the backup has no feed, and then a new one is begun.
///
/// Fails with `ERR_CORRUPT` when an entry is not what was signed: the database is to be thrown away then.
pub(crate) async fn salvage(
    backup: UntrustedBackup,
    database: &Database,
    server: PublicKey,
) -> Result<u64> {
    let namespace = backup.meta(NAMESPACE).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let Some(namespace) = namespace else { return Ok(0) };
    let manifest = Manifest::single_in(server, namespace);
    let key = manifest.key();
    let is_there = database
        .write(move |transaction| copy_core(backup.connection(), transaction, &discovery_key(&key)))
        .await
        .map_err(|error: StoreError| unproven(&Error::from(error)))?;
    if !is_there {
        return Ok(0);
    }
    let open = OpenOptions { manifest: Some(manifest), ..OpenOptions::default() };
    let core = Core::open(&CoreStore::new(database.clone()), key, open)
        .map_err(|error| unproven(&error.into()))?;
    let checked = core.check(None).await.map_err(|error| unproven(&error.into()))?;
    let length = core.length();
    core.close().await?;
    if length == 0 {
        return Ok(0);
    }
    if !checked.whole {
        return Err(unproven(&Error::new(
            ErrorCode::Corrupt,
            "an entry is missing, or another one",
        )));
    }
    database
        .write::<_, StoreError, _>(move |transaction| {
            let sql = "INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)";
            transaction.execute(sql, (NAMESPACE, namespace))?;
            transaction.execute(sql, (RESTORED, [1_u8]))?;
            Ok(())
        })
        .await?;
    Ok(length)
}

/// What a disk did stays what it is; anything else says that the backup is not ours.
fn unproven(error: &Error) -> Error {
    if error.code.is_disk() {
        return error.clone();
    }
    let message = format!(
        "the catalog in this backup is not what was signed ({}): use another backup; nothing was changed",
        error.message
    );
    Error::new(ErrorCode::Corrupt, message)
}
