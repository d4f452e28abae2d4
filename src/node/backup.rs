//! Backups: everything but the books in one file, and a node made from one.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Node, make_private};
use crate::crypto::PublicKey;
use crate::error::{Error, ErrorCode, Result};
use crate::identity::{DataDirLock, Identity, seal, unseal};
use crate::store::{BackupFacts, read_backup, restore_backup};

/// What goes into a backup.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackupOptions {
    /// Encrypts the identity in the backup; at least 8 characters.
    pub passphrase: Option<String>,
    /// Whether the identity is in the backup, which takes a passphrase. When absent, it is if there is
    /// one.
    pub identity: Option<bool>,
}

/// A backup that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Backup {
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Whether the identity is in it.
    pub has_identity: bool,
}

/// A data directory that was made from a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Restored {
    /// Whose it is, z32.
    pub public_key: String,
    /// Whether `keypair.json` came out of the backup, and was not there before.
    pub has_identity: bool,
}

impl Node {
    /// Copies peers, catalogs and transfers as they are at one moment into the new file `path`, readable
    /// by its owner only, while the node goes on. It appears only when it is whole and synced. Books
    /// are not in it; the identity is if there is a passphrase, encrypted. Dropping the future ends the
    /// work and leaves nothing.
    ///
    /// # Errors
    ///
    /// `ERR_INVALID_ARGUMENT` when the file exists or the passphrase is short or missing; `ERR_IO`,
    /// `ERR_DISK_FULL`, `ERR_CORRUPT`, `ERR_CLOSED`.
    pub async fn backup(&self, path: &Path, options: BackupOptions) -> Result<Backup> {
        self.check_open()?;
        let identity = match (options.identity, options.passphrase) {
            (None, None) | (Some(false), _) => None,
            (_, Some(passphrase)) => {
                let pair = self.identity().key_pair().clone();
                Some(on_disk(move || seal(&pair, &passphrase)).await?)
            }
            (Some(true), None) => {
                let message = "the identity is only backed up encrypted: give a passphrase, too";
                return Err(Error::new(ErrorCode::InvalidArgument, message));
            }
        };
        let has_identity = identity.is_some();
        let facts = BackupFacts { public_key: self.identity().bytes(), identity };
        let bytes = self.inner.database.backup(path, facts).await?;
        Ok(Backup { path: path.to_owned(), bytes, has_identity })
    }

    /// Makes the data directory of a node from a backup. Opened afterwards, the node publishes nothing
    /// until a peer has confirmed that its catalog is not longer elsewhere, or a person has: see
    /// [`crate::catalog::Catalog::resume_publishing`].
    ///
    /// A backup without the identity is restored beside the `keypair.json` that belongs to it, which
    /// must be in the directory. Not cancel safe; calling it again after a crash is.
    ///
    /// # Errors
    ///
    /// `ERR_INVALID_STATE` when the directory has a node, or another's key pair, or none and there is
    /// none in the backup; `ERR_INVALID_ARGUMENT` without a passphrase where one is needed, and
    /// `ERR_DENIED` for a wrong one; `ERR_CORRUPT` for a file that is no whole backup; `ERR_NOT_FOUND`,
    /// `ERR_LOCKED`, `ERR_IO`, `ERR_DISK_FULL`. Nothing was changed then.
    pub async fn restore(
        backup: &Path,
        data_dir: &Path,
        passphrase: Option<&str>,
    ) -> Result<Restored> {
        let (backup, data_dir) = (backup.to_owned(), data_dir.to_owned());
        let passphrase = passphrase.map(str::to_owned);
        on_disk(move || restore(&backup, &data_dir, passphrase.as_deref())).await
    }
}

fn restore(backup: &Path, data_dir: &Path, passphrase: Option<&str>) -> Result<Restored> {
    let database = data_dir.join("p2p.db");
    if database.try_exists()? {
        let message = "the data directory has a node already: restore into a new directory, or move \
                       p2p.db away first";
        return Err(Error::new(ErrorCode::InvalidState, message));
    }
    let facts = read_backup(backup)?;
    let key = PublicKey::from_bytes(facts.public_key);
    let there = if data_dir.try_exists()? { Identity::public_key_in(data_dir)? } else { None };
    let pair = match (there, &facts.identity, passphrase) {
        (Some(there), ..) if there == key => None,
        (Some(_), ..) => {
            let message = "keypair.json in the data directory is another server's: restore into a new \
                           directory";
            return Err(Error::new(ErrorCode::InvalidState, message));
        }
        (None, Some(sealed), Some(passphrase)) => {
            Some(unseal(sealed, &facts.public_key, passphrase)?)
        }
        (None, Some(_), None) => {
            let message = "the identity in this backup is encrypted: give its passphrase";
            return Err(Error::new(ErrorCode::InvalidArgument, message));
        }
        (None, None, _) => {
            let message = format!(
                "this backup is without the identity: put the keypair.json of {} into the data \
                 directory first",
                key.to_z32()
            );
            return Err(Error::new(ErrorCode::InvalidState, message));
        }
    };
    make_private(data_dir)?;
    let _lock = DataDirLock::acquire(data_dir)?;
    let has_identity = pair.is_some();
    // A crash in between leaves a key pair, beside which the backup is restored again.
    if let Some(pair) = pair {
        Identity::put(data_dir, &pair)?;
    }
    restore_backup(backup, &database)?;
    Ok(Restored { public_key: key.to_z32(), has_identity })
}

async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    crate::tasks::blocking(work).await.unwrap_or_else(|_| {
        Err(Error::new(ErrorCode::Internal, "a defect of @alex/p2p ended this call"))
    })
}
