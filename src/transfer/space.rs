//! Room on the disks that books on their way will need.
//!
//! Every book that is fetched, or written down to be sent, reserves what it has yet to write. So books that begin
//! together cannot all count on the same free space.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::error::{Error, ErrorCode, Result};
use crate::sync::lock;

/// What stays free beside the books, in bytes.
const MARGIN: u64 = 1024 * 1024;

/// What is reserved on each disk. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Space {
    reserved: Arc<Mutex<HashMap<Disk, u64>>>,
}

/// A file system, as far as one can be told from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Disk(u64, PathBuf);

/// Room that is reserved until this is dropped.
pub(super) struct Reservation {
    space: Space,
    parts: Vec<(Disk, u64)>,
}

impl Space {
    /// Reserves so many bytes on the disk of each of these folders, which need not exist yet. Where two are on one
    /// disk, the first counts: a file is moved there, not copied. Blocks on disk.
    ///
    /// # Errors
    ///
    /// `ERR_DISK_FULL`, and then nothing is reserved.
    pub(super) fn reserve(&self, folders: &[(&Path, u64)]) -> Result<Reservation> {
        let mut disks: Vec<(Disk, u64, Option<u64>)> = Vec::new();
        let mut names = Vec::new();
        for (wanted, bytes) in folders {
            let Some(folder) = wanted.ancestors().find(|path| path.is_dir()) else { continue };
            let disk = Disk::of(folder);
            if disks.iter().all(|(known, ..)| *known != disk) {
                // When the question cannot be asked, writing will tell.
                disks.push((disk, *bytes, free_on(folder)));
                names.push(wanted.display());
            }
        }
        let mut reservation = Reservation { space: self.clone(), parts: Vec::new() };
        let mut reserved = lock(&self.reserved);
        for ((disk, bytes, free), folder) in disks.iter().zip(names) {
            let promised = reserved.get(disk).copied().unwrap_or_default();
            let needed = promised.saturating_add(*bytes).saturating_add(MARGIN);
            if free.is_some_and(|free| free < needed) {
                let others = match promised {
                    0 => String::new(),
                    promised => format!(" beside {promised} for other books"),
                };
                let message = format!(
                    "the disk that holds {folder} has no room for {bytes} bytes{others}: make room on it, \
                     then resume"
                );
                return Err(Error::new(ErrorCode::DiskFull, message));
            }
        }
        for (disk, bytes, _) in disks {
            *reserved.entry(disk.clone()).or_default() += bytes;
            reservation.parts.push((disk, bytes));
        }
        drop(reserved);
        Ok(reservation)
    }
}

/// How many bytes are free; `None` where that is not known. File systems that keep no count (ramfs, some in user
/// space or over a network) say that they have no blocks at all.
fn free_on(folder: &Path) -> Option<u64> {
    let size = fs4::total_space(folder).ok()?;
    fs4::available_space(folder).ok().filter(|_| size > 0)
}

impl Disk {
    /// The disk of a folder that exists.
    fn of(folder: &Path) -> Self {
        #[cfg(unix)]
        if let Ok(metadata) = folder.metadata() {
            return Self(std::os::unix::fs::MetadataExt::dev(&metadata), PathBuf::new());
        }
        // Elsewhere by the root of the path: a drive, or a share.
        let root = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        Self(0, root.ancestors().last().unwrap_or(&root).to_owned())
    }
}

impl Reservation {
    /// Only `left` bytes are yet to be written in the first folder.
    pub(super) fn shrink_to(&mut self, left: u64) {
        let mut reserved = lock(&self.space.reserved);
        if let Some((disk, bytes)) = self.parts.first_mut() {
            let less = bytes.saturating_sub(left);
            *bytes -= less;
            take_off(&mut reserved, disk, less);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut reserved = lock(&self.space.reserved);
        for (disk, bytes) in &self.parts {
            take_off(&mut reserved, disk, *bytes);
        }
    }
}

fn take_off(reserved: &mut HashMap<Disk, u64>, disk: &Disk, bytes: u64) {
    if let Some(promised) = reserved.get_mut(disk) {
        *promised -= bytes;
        if *promised == 0 {
            reserved.remove(disk);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_books_count_on_the_same_room() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("not/yet");
        let reserve = |space: &Space, bytes| space.reserve(&[(dir.path(), bytes), (&deep, bytes)]);
        let free = fs4::available_space(dir.path()).unwrap();
        let space = Space::default();
        assert!(reserve(&space, u64::MAX / 2).is_err());
        let mut first = reserve(&space, free / 3 * 2).unwrap();
        let refused = reserve(&space, free / 3 * 2).err().unwrap();
        assert_eq!(refused.code, ErrorCode::DiskFull);
        assert!(refused.message.contains(&dir.path().display().to_string()), "{refused}");
        first.shrink_to(10);
        let second = reserve(&space, free / 3 * 2).unwrap();
        drop((first, second));
        assert!(lock(&space.reserved).is_empty());
    }
}
