//! A copy of the database in one file, made while it is written, and put back.
//!
//! The copy is what SQLite's `VACUUM INTO` gives: one moment of the database, without the log. Rows of
//! `meta` say whose it is; they are gone again after it was put back.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::integrity::{from_store, problems_of};
use super::{Database, StoreError, schema};
use crate::crypto::{KEY_LENGTH, random};
use crate::error::{Error, ErrorCode, Result};

/// The row of `meta` of a database that was put back, until its feed is known to be nowhere longer.
pub(crate) const RESTORED: &str = "catalog_restored";

const PUBLIC_KEY: &str = "backup_public_key";
const IDENTITY: &str = "backup_identity";
/// A sealed identity has some 120 bytes.
const MAX_IDENTITY_BYTES: usize = 1024;

/// Whose backup it is.
pub(crate) struct BackupFacts {
    pub public_key: [u8; KEY_LENGTH],
    /// The identity, encrypted, when it is in the backup.
    pub identity: Option<Vec<u8>>,
}

impl Database {
    /// Copies the database into the new file `to`, readable by its owner only, and returns its size in
    /// bytes. It appears there only when it is whole and synced. Writes go on meanwhile. Dropping the
    /// future ends the work soon and leaves nothing.
    pub(crate) async fn backup(&self, to: &Path, facts: BackupFacts) -> Result<u64> {
        let to = std::path::absolute(to)?;
        self.on_own_connection(move |connection| copy(connection, &to, &facts)).await
    }
}

fn copy(connection: &Connection, to: &Path, facts: &BackupFacts) -> Result<u64> {
    if to.try_exists()? {
        return Err(exists(to));
    }
    let part = Part::create(to)?;
    let name = part.path.to_str().ok_or_else(|| {
        Error::new(ErrorCode::InvalidArgument, "the backup's path is not valid Unicode")
    })?;
    connection.execute("VACUUM INTO ?1", [name]).map_err(|error| from_store(error.into()))?;
    put_facts(&part.path, facts).map_err(from_store)?;
    let file = File::options().write(true).open(&part.path)?;
    file.sync_all()?;
    let bytes = file.metadata()?.len();
    drop(file);
    part.appear(to)?;
    Ok(bytes)
}

fn exists(path: &Path) -> Error {
    let message = format!("{} exists already; choose a name that is free", path.display());
    Error::new(ErrorCode::InvalidArgument, message)
}

fn put_facts(path: &Path, facts: &BackupFacts) -> Result<(), StoreError> {
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "MEMORY")?;
    let sql = "INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)";
    connection.execute(sql, (PUBLIC_KEY, facts.public_key))?;
    if let Some(identity) = &facts.identity {
        connection.execute(sql, (IDENTITY, identity))?;
    }
    connection.close().map_err(|(_, error)| error.into())
}

/// Reads whose backup the file is, after checking that it is one and is whole. Blocks on disk.
pub(crate) fn read_backup(path: &Path) -> Result<BackupFacts> {
    File::open(path).map_err(|error| {
        let code = match error.kind() {
            io::ErrorKind::NotFound => ErrorCode::NotFound,
            _ => ErrorCode::Io,
        };
        Error::new(code, format!("the backup {} cannot be read: {error}", path.display()))
    })?;
    let facts = facts_of(path).map_err(|error| not_whole(&error.to_string()))?;
    let Some(facts) = facts else { return Err(not_whole("it does not say whose it is")) };
    match problems_of(path).map_err(|error| not_whole(&error.to_string()))?.first() {
        Some(problem) => Err(not_whole(problem)),
        None => Ok(facts),
    }
}

fn not_whole(why: &str) -> Error {
    let message = format!("this is no whole backup ({why}): use another one; nothing was changed");
    Error::new(ErrorCode::Corrupt, message)
}

fn facts_of(path: &Path) -> Result<Option<BackupFacts>, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    schema::check(&connection)?;
    let row = |name: &str| {
        let sql = "SELECT value FROM meta WHERE name = ?1 AND typeof(value) = 'blob'
            AND length(value) <= ?2";
        connection
            .query_row(sql, (name, MAX_IDENTITY_BYTES as i64), |row| row.get::<_, Vec<u8>>(0))
            .optional()
    };
    let public_key = row(PUBLIC_KEY)?.and_then(|bytes| bytes.try_into().ok());
    let identity = row(IDENTITY)?;
    Ok(public_key.map(|public_key| BackupFacts { public_key, identity }))
}

/// Makes the database `to`, which must not exist, from a backup that [`read_backup`] has read. It is
/// marked as restored. Blocks on disk.
pub(crate) fn restore_backup(from: &Path, to: &Path) -> Result<()> {
    if to.try_exists()? {
        return Err(exists(to));
    }
    let part = Part::create(to)?;
    let mut file = File::options().write(true).open(&part.path)?;
    io::copy(&mut File::open(from)?, &mut file)?;
    drop(file);
    mark(&part.path).map_err(from_store)?;
    File::options().write(true).open(&part.path)?.sync_all()?;
    // A log that was left without its database would be taken for this one's.
    for end in ["-wal", "-shm"] {
        let mut name = to.as_os_str().to_owned();
        name.push(end);
        match fs::remove_file(name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    part.appear(to)
}

fn mark(path: &Path) -> Result<(), StoreError> {
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "MEMORY")?;
    // What was deleted must not be left in the file.
    connection.pragma_update(None, "secure_delete", true)?;
    connection.execute("DELETE FROM meta WHERE name IN (?1, ?2)", [PUBLIC_KEY, IDENTITY])?;
    connection
        .execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?1, x'01')", [RESTORED])?;
    connection.close().map_err(|(_, error)| error.into())
}

/// A file under a name of its own until it is whole; removed unless it appears.
struct Part {
    path: PathBuf,
}

impl Part {
    /// An empty file beside `to`, for its owner only.
    fn create(to: &Path) -> Result<Self> {
        let mut name = to.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{:016x}.part", u64::from_le_bytes(random())));
        let path = to.with_file_name(name);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options.open(&path).map_err(|error| {
            let what = format!("no file can be made beside {}: {error}", to.display());
            Error::of_disk(Error::from(error).code, what)
        })?;
        Ok(Self { path })
    }

    /// Gives the file its name, unless another has it.
    fn appear(self, to: &Path) -> Result<()> {
        match fs::hard_link(&self.path, to) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(exists(to)),
            // File systems without links, as on memory sticks.
            Err(_) if to.try_exists()? => return Err(exists(to)),
            Err(_) => fs::rename(&self.path, to)?,
        }
        #[cfg(unix)]
        if let Some(folder) = to.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "a partial copy of the database was left behind");
            }
            _ => {}
        }
    }
}
