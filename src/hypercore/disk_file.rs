//! A file on disk that holds a log's blocks.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use super::error::CoreError;
use crate::sync::lock;

/// What a file was when it was hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStamp {
    /// Its size in bytes.
    pub size: u64,
    /// When it was modified last, in nanoseconds since 1970; 0 where the system does not tell.
    pub modified: i128,
    /// What no program can set; `None` where the system does not tell.
    state: Option<FileState>,
}

/// Which file it was, and when the system last changed anything about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileState {
    device: u64,
    inode: u64,
    /// In nanoseconds since 1970.
    changed: i128,
}

/// How old a file's last change must be, so that the next one surely gets another time: file systems keep
/// it to two seconds at worst (FAT).
const TIME_STEP: i128 = 2_000_000_000;

impl FileStamp {
    /// What an open file is now.
    pub fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let modified = metadata.modified().ok().map_or(0, nanos);
        Ok(Self { size: metadata.len(), modified, state: FileState::of(&metadata) })
    }

    /// This, when it was not changed just now, or a change right after it would not be seen.
    pub(super) fn settled(mut self) -> Self {
        let now = nanos(SystemTime::now());
        self.state = self.state.filter(|state| state.changed + TIME_STEP < now);
        self
    }

    #[cfg(test)]
    pub(super) fn is_settled(&self) -> bool {
        self.state.is_some()
    }

    /// Whether a file that was this is surely another now.
    pub(super) fn differs(&self, now: &Self) -> bool {
        (self.size, self.modified) != (now.size, now.modified)
    }

    /// Whether a file that was this surely has the same bytes now.
    fn is_surely(&self, now: &Self) -> bool {
        self.state.is_some() && self == now
    }
}

impl FileState {
    #[cfg(unix)]
    #[expect(clippy::unnecessary_wraps, reason = "other systems do not tell")]
    fn of(metadata: &Metadata) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let changed =
            i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec());
        Some(Self { device: metadata.dev(), inode: metadata.ino(), changed })
    }

    #[cfg(not(unix))]
    fn of(_metadata: &Metadata) -> Option<Self> {
        None
    }
}

/// Nanoseconds since 1970.
fn nanos(time: SystemTime) -> i128 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_nanos() as i128,
        Err(before) => -(before.duration().as_nanos() as i128),
    }
}

/// What may be done with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileAccess {
    /// Blocks are read. A peer's blocks are refused.
    Read,
    /// Blocks are read and written; the file is created when it is missing.
    Write,
}

/// The file, opened when it is first needed and kept open: a file that is replaced under its name is
/// still served as it was.
#[derive(Debug)]
pub(super) struct DiskFile {
    path: PathBuf,
    access: FileAccess,
    stamp: Option<FileStamp>,
    file: Mutex<Option<Arc<File>>>,
    early: Mutex<EarlySync>,
}

/// How much was written since the file was synced, and how that went. Synced only at its end, a large
/// file would keep its reader waiting for the disk.
#[derive(Debug, Default)]
struct EarlySync {
    unsynced: u64,
    is_running: bool,
    /// The system reports a failed sync once, and forgets the data.
    failed: Option<CoreError>,
}

/// After so many bytes the file is synced while it is still being written.
const SYNC_BYTES: u64 = 32 << 20;

impl DiskFile {
    /// A file that must be what `stamp` says, if given.
    pub(super) fn new(path: PathBuf, access: FileAccess, stamp: Option<FileStamp>) -> Self {
        Self { path, access, stamp, file: Mutex::new(None), early: Mutex::default() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads `size` bytes from `offset` on, and says whether they surely are what was hashed.
    pub(super) fn read(&self, offset: u64, size: usize) -> Result<(Vec<u8>, bool), CoreError> {
        let file = self.open()?;
        let read = read_vec_at(&file, size, offset);
        // After reading, for a change may come just before it.
        let now = self.stamp.map(|_| FileStamp::of(&file)).transpose()?;
        let stamps = self.stamp.zip(now);
        if stamps.is_some_and(|(stamp, now)| stamp.differs(&now)) {
            return Err(CoreError::FileChanged);
        }
        match read {
            Ok(bytes) => Ok((bytes, stamps.is_some_and(|(stamp, now)| stamp.is_surely(&now)))),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(CoreError::FileChanged)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Writes bytes at `offset`.
    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), CoreError> {
        let file = self.open()?;
        write_all_at(&file, bytes, offset)?;
        lock(&self.early).unsynced += bytes.len() as u64;
        Ok(())
    }

    /// Gives the space of bytes back to the disk where the system can do that; they read as zeros then.
    pub(super) fn punch(&self, start: u64, end: u64) -> Result<(), CoreError> {
        let file = self.open()?;
        let end = end.min(file.metadata()?.len());
        if start < end { Ok(punch_hole(&file, start, end - start)?) } else { Ok(()) }
    }

    /// Whether enough was written that [`Self::sync_early`] is to be called, once for each yes.
    pub(super) fn is_sync_due(&self) -> bool {
        let mut early = lock(&self.early);
        let due = early.unsynced >= SYNC_BYTES && !early.is_running;
        if due {
            (early.is_running, early.unsynced) = (true, 0);
        }
        due
    }

    /// Brings what was written so far to disk. A failure is told by [`Self::finish`].
    pub(super) fn sync_early(&self) {
        let synced = self.open().and_then(|file| Ok(file.sync_data()?));
        let mut early = lock(&self.early);
        early.is_running = false;
        if let Err(error) = synced {
            early.failed = Some(error);
        }
    }

    /// Fails when an early sync has: what was written is not all there.
    pub(super) fn check_early(&self) -> Result<(), CoreError> {
        lock(&self.early).failed.clone().map_or(Ok(()), Err)
    }

    /// Gives the file its final size and syncs its data to disk.
    pub(super) fn finish(&self, byte_length: Option<u64>) -> Result<(), CoreError> {
        self.check_early()?;
        let file = self.open()?;
        if let Some(length) = byte_length
            && file.metadata()?.len() != length
        {
            file.set_len(length)?;
        }
        Ok(file.sync_all()?)
    }

    fn open(&self) -> Result<Arc<File>, CoreError> {
        let mut slot = lock(&self.file);
        if let Some(file) = &*slot {
            return Ok(Arc::clone(file));
        }
        let file = match self.access {
            FileAccess::Read => File::open(&self.path)?,
            FileAccess::Write => OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&self.path)?,
        };
        let file = Arc::new(file);
        *slot = Some(Arc::clone(&file));
        Ok(file)
    }
}

/// Reads into memory that is not filled with zeros first.
#[cfg(target_os = "linux")]
fn read_vec_at(file: &File, size: usize, offset: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size {
        let at = offset + bytes.len() as u64;
        match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut bytes), at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    bytes.truncate(size);
    Ok(bytes)
}

#[cfg(not(target_os = "linux"))]
fn read_vec_at(file: &File, size: usize, offset: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; size];
    read_exact_at(file, &mut bytes, offset)?;
    Ok(bytes)
}

#[cfg(unix)]
pub(super) fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

/// Takes bytes out of a file without moving others. File systems that cannot do that keep the space.
#[cfg(target_os = "linux")]
fn punch_hole(file: &File, offset: u64, length: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(file, flags, offset, length) {
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn punch_hole(_file: &File, _offset: u64, _length: u64) -> io::Result<()> {
    Ok(())
}

#[cfg(windows)]
pub(super) fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let at = offset + done as u64;
        match std::os::windows::fs::FileExt::seek_read(file, &mut bytes[done..], at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => done += count,
        }
    }
    Ok(())
}

#[cfg(windows)]
fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let at = offset + done as u64;
        match std::os::windows::fs::FileExt::seek_write(file, &bytes[done..], at)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => done += count,
        }
    }
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    /// What is read of a file that was `stamp`, and whether it surely is the same.
    fn read(path: &Path, stamp: FileStamp) -> Option<(Vec<u8>, bool)> {
        DiskFile::new(path.to_owned(), FileAccess::Read, Some(stamp)).read(2, 3).ok()
    }

    #[test]
    fn only_a_file_that_the_system_says_nobody_touched_is_surely_the_same() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let stamp = FileStamp::of(&File::open(&path).unwrap()).unwrap().settled();
        let bytes = &std::fs::read(&path).unwrap()[2..5];
        assert_eq!(read(&path, stamp), Some((bytes.to_vec(), true)));
        let state = stamp.state.unwrap();
        for state in [
            FileState { changed: state.changed - 1, ..state },
            FileState { inode: state.inode + 1, ..state },
            FileState { device: state.device + 1, ..state },
        ] {
            let touched = FileStamp { state: Some(state), ..stamp };
            assert_eq!(read(&path, touched), Some((bytes.to_vec(), false)));
        }
    }

    #[test]
    fn a_file_that_was_changed_just_now_is_never_surely_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("book");
        std::fs::write(&path, b"abcdef").unwrap();
        let stamp = FileStamp::of(&File::open(&path).unwrap()).unwrap().settled();
        assert_eq!(read(&path, stamp), Some((b"cde".to_vec(), false)));
    }
}
