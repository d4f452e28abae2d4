//! The write-ahead log as a file: synced, and brought back after a sync that failed.
//!
//! After a failed sync the system may call pages clean that never reached the disk, and the next sync then
//! succeeds although a part of the log is lost: whatever was acknowledged behind that part would be lost
//! with it at the next power cut. So the log is not trusted again before each of its frames was read, found
//! to be what SQLite wrote (frames have checksums that stand on each other), written once more, and synced.
//! The format is that of <https://www.sqlite.org/fileformat2.html#walformat>.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ffi};

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
/// The magic number of a log whose checksums are over little-endian words; one more is big-endian.
const MAGIC: u32 = 0x377f_0682;

/// The log of a database, which exists while a connection to it is open.
pub(super) struct Log {
    path: PathBuf,
    /// Open from the start, so that it is told of every failure to write pages back.
    file: File,
}

impl Log {
    /// Opens the log of the database at `path`.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let mut name = path.as_os_str().to_owned();
        name.push("-wal");
        let path = PathBuf::from(name);
        Ok(Self { file: open(&path)?, path })
    }

    /// Brings what was written to the log to disk.
    pub(super) fn sync(&self) -> Result<(), rusqlite::Error> {
        self.file.sync_data().map_err(|error| failure(ffi::SQLITE_IOERR_FSYNC, &error))
    }

    /// Another handle to the same file, which is told of failures by itself.
    pub(super) fn reopened(&self) -> io::Result<Self> {
        Ok(Self { path: self.path.clone(), file: open(&self.path)? })
    }

    /// How many frames `connection` counts on.
    pub(super) fn frames(connection: &Connection) -> Result<u64, rusqlite::Error> {
        let mut ask = connection.prepare_cached("PRAGMA wal_checkpoint(NOOP)")?;
        let frames: i64 = ask.query_row([], |row| row.get(1))?;
        Ok(u64::try_from(frames).unwrap_or(0))
    }

    /// Writes the frames that `connection` counts on once more, and syncs them. Nobody may write to the
    /// database meanwhile. Fails when they cannot be read as they were written, or not be synced.
    pub(super) fn bring_back(&self, connection: &Connection) -> Result<(), rusqlite::Error> {
        let frames = Self::frames(connection)?;
        // A handle of its own: one that was told of the failure is not told again.
        let rewrite = || {
            let mut file = open(&self.path)?;
            rewrite(&mut file, frames)?;
            file.sync_data()
        };
        rewrite().map_err(|error| failure(ffi::SQLITE_IOERR_FSYNC, &error))
    }
}

fn open(path: &Path) -> io::Result<File> {
    // Windows syncs only what is open for writing.
    File::options().read(true).write(true).open(path)
}

/// An error of the operating system as SQLite would tell it.
pub(super) fn failure(otherwise: i32, error: &io::Error) -> rusqlite::Error {
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ffi::SQLITE_FULL,
        _ => otherwise,
    };
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some(error.to_string()))
}

/// Reads `frames` frames, checks them, and writes each again where it is.
fn rewrite(file: &mut File, frames: u64) -> io::Result<()> {
    if frames == 0 {
        return Ok(());
    }
    let mut header = [0; HEADER];
    file.rewind()?;
    file.read_exact(&mut header)?;
    let word = |at: usize| be_word(&header, at);
    let mut sums = match word(0) {
        MAGIC => Sums { is_big_endian: false, first: 0, second: 0 },
        magic if magic == MAGIC + 1 => Sums { is_big_endian: true, first: 0, second: 0 },
        _ => return Err(lost()),
    };
    let (page, salt) = (word(8) as usize, &header[16..24]);
    sums.add(&header[..24]);
    if !sums.are(&header[24..]) || !page.is_power_of_two() || !(512..=65_536).contains(&page) {
        return Err(lost());
    }
    write_at(file, 0, &header)?;
    let mut frame = vec![0; FRAME_HEADER + page];
    for number in 0..frames {
        let at = HEADER as u64 + number * frame.len() as u64;
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut frame)?;
        sums.add(&frame[..8]);
        sums.add(&frame[FRAME_HEADER..]);
        if frame[8..16] != *salt || !sums.are(&frame[16..FRAME_HEADER]) {
            return Err(lost());
        }
        write_at(file, at, &frame)?;
    }
    Ok(())
}

fn write_at(file: &mut File, at: u64, bytes: &[u8]) -> io::Result<()> {
    file.seek(SeekFrom::Start(at))?;
    file.write_all(bytes)
}

fn lost() -> io::Error {
    io::Error::other("a part of the database's log was lost: close the node and open it again")
}

fn be_word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    word.map_or(0, u32::from_be_bytes)
}

/// The checksum of the log's format, over all that came so far.
struct Sums {
    is_big_endian: bool,
    first: u32,
    second: u32,
}

impl Sums {
    /// Adds bytes, eight by eight.
    fn add(&mut self, bytes: &[u8]) {
        let (words, _) = bytes.as_chunks::<4>();
        let word = |bytes: [u8; 4]| match self.is_big_endian {
            true => u32::from_be_bytes(bytes),
            false => u32::from_le_bytes(bytes),
        };
        for pair in words.chunks_exact(2) {
            self.first = self.first.wrapping_add(word(pair[0])).wrapping_add(self.second);
            self.second = self.second.wrapping_add(word(pair[1])).wrapping_add(self.first);
        }
    }

    /// Whether they are what is written here.
    fn are(&self, written: &[u8]) -> bool {
        (self.first, self.second) == (be_word(written, 0), be_word(written, 4))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(dir: &tempfile::TempDir) -> (Connection, PathBuf) {
        let path = dir.path().join("p2p.db");
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "journal_mode", "WAL").unwrap();
        connection.execute("CREATE TABLE numbers (number INTEGER PRIMARY KEY)", []).unwrap();
        for number in 0..50 {
            connection.execute("INSERT INTO numbers VALUES (?1)", [number]).unwrap();
        }
        (connection, path)
    }

    #[test]
    fn a_log_is_brought_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (connection, path) = written(&dir);
        let log = Log::of(&path).unwrap();
        let before = std::fs::read(&log.path).unwrap();
        assert!(before.len() > 50 * 4096);
        log.bring_back(&connection).unwrap();
        assert_eq!(std::fs::read(&log.path).unwrap(), before);
        // Also when it began anew, with older frames behind its end.
        connection.query_row("PRAGMA wal_checkpoint", [], |_| Ok(())).unwrap();
        connection.execute("INSERT INTO numbers VALUES (100)", []).unwrap();
        log.bring_back(&connection).unwrap();
        log.sync().unwrap();
    }

    #[test]
    fn a_log_that_lost_a_bit_is_not_brought_back() {
        let dir = tempfile::tempdir().unwrap();
        let (connection, path) = written(&dir);
        let log = Log::of(&path).unwrap();
        let before = std::fs::read(&log.path).unwrap();
        for at in (3..before.len()).step_by(1777) {
            let mut damaged = before.clone();
            damaged[at] ^= 16;
            std::fs::write(&log.path, damaged).unwrap();
            assert!(log.bring_back(&connection).is_err(), "{at}");
        }
        std::fs::write(&log.path, &before).unwrap();
        log.bring_back(&connection).unwrap();
    }
}
