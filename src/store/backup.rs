//! A copy of the database in one file, made while it is written, and put back.
//!
//! The copy is what SQLite's `VACUUM INTO` gives: one moment of the database, without the log. Behind it
//! stand the identity, encrypted, and what proves that nothing was changed (`backup_file.rs`).
//!
//! A backup comes back from places where others may write, and a database is code. So it is proven before
//! anything of it is opened, and what is opened is a copy that nobody else has.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension};

use super::backup_file::{Layout, MAX_IDENTITY_BYTES, append_footer, not_whole};
use super::defensive::{harden, open_untrusted};
use super::integrity::{from_store, problems};
use super::{Database, StoreError, schema};
use crate::crypto::{Hash, KEY_LENGTH, random};
use crate::error::{Error, ErrorCode, Result};

/// The row of `meta` of a database that was put back, until its feed is known to be nowhere longer.
pub(crate) const RESTORED: &str = "catalog_restored";

/// Rows of `meta` in backups that were made before there were footers.
const PUBLIC_KEY: &str = "backup_public_key";
const IDENTITY: &str = "backup_identity";
/// The bytes of an SQLite file that say whether it has a log, and what they are when it has none.
const FORMAT_VERSIONS: u64 = 18;
const WITHOUT_LOG: [u8; 2] = [1, 1];

/// Whose backup it is.
pub(crate) struct BackupFacts {
    pub public_key: [u8; KEY_LENGTH],
    /// The identity, encrypted, when it is in the backup.
    pub identity: Option<Vec<u8>>,
}

impl Database {
    /// Copies the database into the new file `to`, readable by its owner only, and returns its size in
    /// bytes. Only who has `key` can tell that it is whole, or change it. It appears there only when it is
    /// whole and synced. Writes go on meanwhile. Dropping the future ends the work soon and leaves nothing.
    pub(crate) async fn backup(&self, to: &Path, facts: BackupFacts, key: Hash) -> Result<u64> {
        let to = std::path::absolute(to)?;
        self.on_own_connection(move |connection| copy(connection, &to, &facts, &key)).await
    }
}

fn copy(connection: &Connection, to: &Path, facts: &BackupFacts, key: &Hash) -> Result<u64> {
    if to.try_exists()? {
        return Err(exists(to));
    }
    let part = Part::create(to)?;
    let name = part.path.to_str().ok_or_else(|| {
        Error::new(ErrorCode::InvalidArgument, "the backup's path is not valid Unicode")
    })?;
    connection.execute("VACUUM INTO ?1", [name]).map_err(|error| from_store(error.into()))?;
    leave_ours(&part.path).map_err(from_store)?;
    let mut file = File::options().read(true).write(true).open(&part.path)?;
    let identity = facts.identity.as_deref().unwrap_or_default();
    let bytes = append_footer(&mut file, &facts.public_key, identity, key)?;
    file.sync_all()?;
    drop(file);
    part.appear(to)?;
    Ok(bytes)
}

fn exists(path: &Path) -> Error {
    let message = format!("{} exists already; choose a name that is free", path.display());
    Error::new(ErrorCode::InvalidArgument, message)
}

/// Takes a person's own tables out of the copy: only ours are put back.
fn leave_ours(path: &Path) -> Result<(), StoreError> {
    let connection = open_alone(path)?;
    for table in schema::own_tables(&connection)? {
        connection.execute(&format!("DROP TABLE \"{}\"", table.replace('"', "\"\"")), [])?;
    }
    connection.close().map_err(|(_, error)| error.into())
}

/// Opens a file that nobody else has, without a log beside it.
fn open_alone(path: &Path) -> Result<Connection, StoreError> {
    let connection = Connection::open(path)?;
    harden(&connection)?;
    connection.pragma_update(None, "journal_mode", "MEMORY")?;
    Ok(connection)
}

/// A backup that somebody gave. Nothing of it is believed yet.
pub(crate) struct BackupFile {
    file: File,
    layout: Option<Layout>,
}

impl BackupFile {
    /// Opens a backup and reads its footer. Blocks on disk, as the other methods do.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(|error| {
            let code = match error.kind() {
                io::ErrorKind::NotFound => ErrorCode::NotFound,
                _ => ErrorCode::Io,
            };
            Error::new(code, format!("the backup {} cannot be read: {error}", path.display()))
        })?;
        let layout = Layout::read(&mut file)?;
        Ok(Self { file, layout })
    }

    /// Whose it says it is; `None` when it has no footer.
    pub(crate) fn facts(&self) -> Option<BackupFacts> {
        let Layout { public_key, identity, .. } = self.layout.as_ref()?;
        Some(BackupFacts { public_key: *public_key, identity: identity.clone() })
    }

    /// Whether it is what was made with this key, to the last bit.
    pub(crate) fn is_authentic(&mut self, key: &Hash) -> Result<bool> {
        match &self.layout {
            Some(layout) => layout.authenticate(&mut self.file, key, &mut io::sink()),
            None => Ok(false),
        }
    }

    /// Makes the database `to`, which must not exist, as a part: it is there once the part appears. It has
    /// all that was backed up with this key, and is marked as restored.
    pub(crate) fn restore(&mut self, key: &Hash, to: &Path) -> Result<Part> {
        let layout = self.layout.as_ref().ok_or_else(|| not_whole("it has no footer"))?;
        let part = Part::create(to)?;
        let mut copy = File::options().write(true).open(&part.path)?;
        // Once more: somebody may have changed the file since.
        if !layout.authenticate(&mut self.file, key, &mut copy)? {
            return Err(not_whole("it changes while it is read"));
        }
        drop(copy);
        look_at(&part.path)?;
        mark(&part.path).map_err(from_store)?;
        File::options().write(true).open(&part.path)?.sync_all()?;
        Ok(part)
    }

    /// Copies what the file has, whoever made it, and opens that so that nothing of it runs. `beside` is
    /// where the copy is for as long as it is read.
    pub(crate) fn untrusted(&mut self, beside: &Path) -> Result<UntrustedBackup> {
        let part = Part::create(beside)?;
        let mut copy = File::options().write(true).open(&part.path)?;
        self.file.rewind()?;
        io::copy(&mut Read::by_ref(&mut self.file), &mut copy)?;
        // A copy of a running node's file counts on a log, which a copy of it alone does not have.
        copy.seek(SeekFrom::Start(FORMAT_VERSIONS))?;
        copy.write_all(&WITHOUT_LOG)?;
        drop(copy);
        let connection = look_at(&part.path)?;
        Ok(UntrustedBackup { connection, _part: part })
    }
}

/// Opens a file, and refuses it unless it is whole and has what our migrations make and nothing more.
fn look_at(path: &Path) -> Result<Connection> {
    let refused = |error: StoreError| match from_store(error) {
        error if error.code == ErrorCode::Aborted => error,
        error => not_whole(&error.message),
    };
    let connection = open_untrusted(path).map_err(refused)?;
    schema::check_exact(&connection).map_err(refused)?;
    match problems(&connection, "quick_check").map_err(refused)?.first() {
        Some(problem) => Err(not_whole(problem)),
        None => Ok(connection),
    }
}

fn mark(path: &Path) -> Result<(), StoreError> {
    let connection = open_alone(path)?;
    connection
        .execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?1, x'01')", [RESTORED])?;
    connection.close().map_err(|(_, error)| error.into())
}

/// A database that may be anybody's work: it has the right tables, and any rows.
pub(crate) struct UntrustedBackup {
    connection: Connection,
    _part: Part,
}

impl UntrustedBackup {
    /// The connection, which can only read.
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Whose it says it is, as backups without a footer said it.
    pub(crate) fn facts(&self) -> Option<BackupFacts> {
        let public_key = self.meta(PUBLIC_KEY)?.try_into().ok()?;
        Some(BackupFacts { public_key, identity: self.meta(IDENTITY) })
    }

    /// A small value of `meta`.
    pub(crate) fn meta(&self, name: &str) -> Option<Vec<u8>> {
        let sql = "SELECT value FROM meta WHERE name = ?1 AND typeof(value) = 'blob'
            AND length(value) <= ?2";
        let value =
            self.connection.query_row(sql, (name, MAX_IDENTITY_BYTES as i64), |row| row.get(0));
        value.optional().ok().flatten()
    }
}

/// A file under a name of its own until it is whole; removed unless it appears.
pub(crate) struct Part {
    path: PathBuf,
}

impl Part {
    /// An empty file beside `to`, for its owner only.
    pub(crate) fn create(to: &Path) -> Result<Self> {
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

    /// Where the file is until it appears.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the database its name. A log that was left there without its database would be taken for this
    /// one's, and goes.
    pub(crate) fn appear_as_database(self, to: &Path) -> Result<()> {
        if to.try_exists()? {
            return Err(exists(to));
        }
        for end in ["-wal", "-shm", "-journal"] {
            let mut name = to.as_os_str().to_owned();
            name.push(end);
            match fs::remove_file(name) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        self.appear(to)
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
