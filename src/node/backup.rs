//! Backups: everything but the books in one file, and a node made from one.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Node, make_private};
use crate::catalog::salvage;
use crate::crypto::{KeyPair, PublicKey};
use crate::error::{Error, ErrorCode, Result};
use crate::identity::{DataDirLock, Identity, backup_key, seal, unseal};
use crate::store::{BackupFacts, BackupFile, Database, Part, UntrustedBackup};

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
    /// The backup could not be proven to be what was made, so only the catalog is there: no peers, no
    /// policies, no transfers, and not where the books' files are.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub catalog_only: bool,
}

impl Node {
    /// Copies peers, catalogs and transfers as they are at one moment into the new file `path`, readable
    /// by its owner only, while the node goes on. It appears only when it is whole and synced. Books
    /// are not in it; the identity is if there is a passphrase, encrypted. Nobody can change it without
    /// being noticed who has neither the passphrase nor `keypair.json`. Dropping the future ends the work
    /// and leaves nothing.
    ///
    /// # Errors
    ///
    /// `ERR_INVALID_ARGUMENT` when the file exists or the passphrase is short or missing; `ERR_IO`,
    /// `ERR_DISK_FULL`, `ERR_CORRUPT`, `ERR_CLOSED`.
    pub async fn backup(&self, path: &Path, options: BackupOptions) -> Result<Backup> {
        self.check_open()?;
        let pair = self.identity().key_pair();
        let identity = match (options.identity, options.passphrase) {
            (None, None) | (Some(false), _) => None,
            (_, Some(passphrase)) => {
                let pair = pair.clone();
                Some(on_disk(move || seal(&pair, &passphrase)).await?)
            }
            (Some(true), None) => {
                let message = "the identity is only backed up encrypted: give a passphrase, too";
                return Err(Error::new(ErrorCode::InvalidArgument, message));
            }
        };
        let has_identity = identity.is_some();
        let facts = BackupFacts { public_key: self.identity().bytes(), identity };
        let bytes = self.inner.database.backup(path, facts, backup_key(pair)).await?;
        Ok(Backup { path: path.to_owned(), bytes, has_identity })
    }

    /// Makes the data directory of a node from a backup. Opened afterwards, the node publishes nothing
    /// until a peer has confirmed that its catalog is not longer elsewhere, or a person has: see
    /// [`crate::catalog::Catalog::resume_publishing`].
    ///
    /// The backup must be what was made, to the last bit, which the identity proves. A backup without the
    /// identity is restored beside the `keypair.json` that belongs to it, which must be in the directory.
    /// Not cancel safe; calling it again after a crash is.
    ///
    /// # Errors
    ///
    /// `ERR_INVALID_STATE` when the directory has a node, or another's key pair, or none and there is
    /// none in the backup; `ERR_INVALID_ARGUMENT` without a passphrase where one is needed, and
    /// `ERR_DENIED` for a wrong one; `ERR_CORRUPT` for a file that is no whole backup, that was changed, or
    /// that was made before backups could be proven; `ERR_NOT_FOUND`, `ERR_LOCKED`, `ERR_IO`,
    /// `ERR_DISK_FULL`. Nothing was changed then.
    pub async fn restore(
        backup: &Path,
        data_dir: &Path,
        passphrase: Option<&str>,
    ) -> Result<Restored> {
        restore(backup, data_dir, passphrase, false).await
    }

    /// As [`Node::restore`], but takes a backup that nothing proves, too: one of an older version, or one
    /// that was changed. Of such a one, only the catalog is restored, as far as the identity signed it, and
    /// nothing that gives anybody a right ([`Restored::catalog_only`]).
    ///
    /// # Errors
    ///
    /// As [`Node::restore`]; `ERR_CORRUPT` when the catalog is not what was signed.
    pub async fn restore_unauthenticated(
        backup: &Path,
        data_dir: &Path,
        passphrase: Option<&str>,
    ) -> Result<Restored> {
        restore(backup, data_dir, passphrase, true).await
    }
}

async fn restore(
    backup: &Path,
    data_dir: &Path,
    passphrase: Option<&str>,
    unauthenticated: bool,
) -> Result<Restored> {
    let (backup, data_dir) = (backup.to_owned(), data_dir.to_owned());
    let passphrase = passphrase.map(str::to_owned);
    let begun =
        on_disk(move || Restore::begin(&backup, data_dir, passphrase.as_deref(), unauthenticated));
    begun.await?.finish().await
}

/// A restore whose backup was looked at.
struct Restore {
    folder: Folder,
    identity: Found,
    source: Source,
}

/// Whose backup it is.
struct Found {
    pair: KeyPair,
    /// Whether it came out of the backup, and is not in the data directory yet.
    is_new: bool,
}

/// What is restored from.
enum Source {
    /// The database, all of it, in a file that has to appear.
    Whole(Part),
    /// A backup that nothing proves.
    Untrusted(Box<UntrustedBackup>),
}

impl Restore {
    fn begin(
        backup: &Path,
        data_dir: PathBuf,
        passphrase: Option<&str>,
        unauthenticated: bool,
    ) -> Result<Self> {
        if data_dir.join("p2p.db").try_exists()? {
            let message = "the data directory has a node already: restore into a new directory, or move \
                           p2p.db away first";
            return Err(Error::new(ErrorCode::InvalidState, message));
        }
        let mut file = BackupFile::open(backup)?;
        let there = match data_dir.try_exists()? {
            true => Identity::key_pair_in(&data_dir)?,
            false => None,
        };
        if let Some(facts) = file.facts() {
            let identity = whose(there, &facts, passphrase)?;
            let key = backup_key(&identity.pair);
            if file.is_authentic(&key)? {
                let folder = Folder::lock(data_dir)?;
                let part = file.restore(&key, &folder.database())?;
                return Ok(Self { folder, identity, source: Source::Whole(part) });
            }
            if !unauthenticated {
                return Err(unproven("it was changed after it was made, or is damaged"));
            }
            let folder = Folder::lock(data_dir)?;
            let untrusted = Box::new(file.untrusted(&folder.database())?);
            return Ok(Self { folder, identity, source: Source::Untrusted(untrusted) });
        }
        if !unauthenticated {
            return Err(unproven(
                "it is not whole, was not made by backup(), or by a version that could not prove it yet",
            ));
        }
        let folder = Folder::lock(data_dir)?;
        let untrusted = Box::new(file.untrusted(&folder.database())?);
        let identity = match (there, untrusted.facts()) {
            (there, Some(facts)) => whose(there, &facts, passphrase)?,
            (Some(pair), None) => Found { pair, is_new: false },
            (None, None) => {
                let message = "this backup does not say whose it is: put the keypair.json that belongs to \
                               it into the data directory first";
                return Err(Error::new(ErrorCode::InvalidState, message));
            }
        };
        Ok(Self { folder, identity, source: Source::Untrusted(untrusted) })
    }

    async fn finish(self) -> Result<Restored> {
        let Self { folder, identity, source } = self;
        let key = identity.pair.public_key();
        let (part, catalog_only) = match source {
            Source::Whole(part) => (part, false),
            Source::Untrusted(backup) => {
                let part = Part::create(&folder.database())?;
                let path = part.path().to_owned();
                let database = on_disk(move || Ok(Database::open(&path)?)).await?;
                let salvaged = salvage(*backup, &database, key).await;
                on_disk(move || {
                    database.close();
                    Ok(())
                })
                .await?;
                let entries = salvaged?;
                tracing::warn!(
                    entries,
                    "only the catalog of an unauthenticated backup is restored"
                );
                (part, true)
            }
        };
        on_disk(move || {
            // In this order, so that the folder is empty when it is dropped.
            let (folder, part) = (folder, part);
            // A crash in between leaves a key pair, beside which the backup is restored again.
            if identity.is_new {
                Identity::put(&folder.path, &identity.pair)?;
            }
            part.appear_as_database(&folder.database())?;
            folder.keep();
            let (public_key, has_identity) = (key.to_z32(), identity.is_new);
            Ok(Restored { public_key, has_identity, catalog_only })
        })
        .await
    }
}

/// The identity that a backup is of: the one that is there, or else the one in the backup.
fn whose(there: Option<KeyPair>, facts: &BackupFacts, passphrase: Option<&str>) -> Result<Found> {
    let key = PublicKey::from_bytes(facts.public_key);
    match (there, &facts.identity, passphrase) {
        (Some(pair), ..) if pair.public_key() == key => Ok(Found { pair, is_new: false }),
        (Some(_), ..) => {
            let message = "keypair.json in the data directory is another server's: restore into a new \
                           directory";
            Err(Error::new(ErrorCode::InvalidState, message))
        }
        (None, Some(sealed), Some(passphrase)) => {
            let pair = unseal(sealed, &facts.public_key, passphrase)?;
            Ok(Found { pair, is_new: true })
        }
        (None, Some(_), None) => {
            let message = "the identity in this backup is encrypted: give its passphrase";
            Err(Error::new(ErrorCode::InvalidArgument, message))
        }
        (None, None, _) => {
            let message = format!(
                "this backup is without the identity: put the keypair.json of {} into the data \
                 directory first",
                key.to_z32()
            );
            Err(Error::new(ErrorCode::InvalidState, message))
        }
    }
}

fn unproven(why: &str) -> Error {
    let message = format!(
        "this backup cannot be proven to be what was made ({why}): use another one. Nothing was changed. \
         If there is no other, its catalog alone can be restored: with the option unauthenticated"
    );
    Error::new(ErrorCode::Corrupt, message)
}

/// The data directory while it is filled, which no other node can open.
struct Folder {
    path: PathBuf,
    lock: Option<DataDirLock>,
    /// It was not there before, and goes again unless it is kept.
    is_new: bool,
}

impl Folder {
    fn lock(path: PathBuf) -> Result<Self> {
        let is_new = !path.try_exists()?;
        make_private(&path)?;
        let lock = Some(DataDirLock::acquire(&path)?);
        Ok(Self { path, lock, is_new })
    }

    fn database(&self) -> PathBuf {
        self.path.join("p2p.db")
    }

    fn keep(mut self) {
        self.is_new = false;
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(self.lock.take());
        if self.is_new {
            // What cannot be removed is an empty folder, or one that somebody uses by now.
            let _ = std::fs::remove_file(self.path.join("lock"));
            let _ = std::fs::remove_dir(&self.path);
        }
    }
}

async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    crate::tasks::blocking(work).await.unwrap_or_else(|_| {
        Err(Error::new(ErrorCode::Internal, "a defect of @alex/p2p ended this call"))
    })
}
