//! A file whose bytes are a log's blocks, one after the other, all but the last of one size: on disk, or
//! in memory.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::disk_file::{DiskFile, FileAccess, FileStamp};
use super::error::CoreError;
use crate::sync::lock;

/// The file.
#[derive(Debug)]
pub(super) struct BlockFile {
    block_size: u64,
    access: FileAccess,
    medium: Medium,
}

#[derive(Debug)]
enum Medium {
    Disk(DiskFile),
    Memory(Arc<MemoryFile>),
}

/// The bytes of a log that is too small to be worth a way over the disk.
#[derive(Debug, Default)]
pub struct MemoryFile {
    blocks: Mutex<BTreeMap<u64, Bytes>>,
}

impl MemoryFile {
    /// A file with these bytes, cut into blocks of `block_size` bytes.
    #[must_use]
    pub fn of(bytes: &Bytes, block_size: u64) -> Self {
        let size = usize::try_from(block_size).unwrap_or(usize::MAX).max(1);
        let starts = (0..bytes.len()).step_by(size);
        let block = |start: usize| bytes.slice(start..start.saturating_add(size).min(bytes.len()));
        Self { blocks: Mutex::new((0..).zip(starts.map(block)).collect()) }
    }

    /// The blocks that are here, in order.
    #[must_use]
    pub fn blocks(&self) -> Vec<Bytes> {
        lock(&self.blocks).values().cloned().collect()
    }
}

impl BlockFile {
    /// A file on disk that must be what `stamp` says, if given.
    pub(super) fn on_disk(
        path: PathBuf,
        block_size: u64,
        access: FileAccess,
        stamp: Option<FileStamp>,
    ) -> Self {
        Self::new(block_size, access, Medium::Disk(DiskFile::new(path, access, stamp)))
    }

    /// A file in memory.
    pub(super) fn in_memory(file: Arc<MemoryFile>, block_size: u64, access: FileAccess) -> Self {
        Self::new(block_size, access, Medium::Memory(file))
    }

    fn new(block_size: u64, access: FileAccess, medium: Medium) -> Self {
        Self { block_size: block_size.max(1), access, medium }
    }

    pub(super) fn access(&self) -> FileAccess {
        self.access
    }

    /// Whether reading and writing never wait for a disk.
    pub(super) fn is_in_memory(&self) -> bool {
        matches!(self.medium, Medium::Memory(_))
    }

    /// Where it is, on disk.
    pub(super) fn path(&self) -> Option<&Path> {
        match &self.medium {
            Medium::Disk(file) => Some(file.path()),
            Medium::Memory(_) => None,
        }
    }

    /// The size that block `index` has in a log of that many bytes.
    pub(super) fn size_of(&self, index: u64, byte_length: u64) -> u64 {
        byte_length.saturating_sub(self.offset(index)).min(self.block_size)
    }

    /// Whether a log of so many blocks and bytes can be cut from a file.
    pub(super) fn fits(&self, length: u64, byte_length: u64) -> bool {
        byte_length.div_ceil(self.block_size) == length
    }

    /// Reads block `index`, which has `size` bytes, and says whether these surely are the bytes that were
    /// hashed.
    pub(super) fn read(&self, index: u64, size: usize) -> Result<(Bytes, bool), CoreError> {
        match &self.medium {
            Medium::Disk(file) => {
                let (bytes, is_sure) = file.read(self.offset(index), size)?;
                Ok((bytes.into(), is_sure))
            }
            Medium::Memory(file) => {
                let block = lock(&file.blocks).get(&index).cloned();
                let block = block.filter(|block| block.len() == size);
                Ok((block.ok_or(CoreError::FileChanged)?, true))
            }
        }
    }

    /// Writes block `index`.
    pub(super) fn write(&self, index: u64, block: &Bytes) -> Result<(), CoreError> {
        match &self.medium {
            Medium::Disk(file) => file.write(self.offset(index), block),
            Medium::Memory(file) => {
                lock(&file.blocks).insert(index, block.clone());
                Ok(())
            }
        }
    }

    /// Gives the space of blocks back where the system can do that.
    pub(super) fn punch(&self, blocks: Range<u64>) -> Result<(), CoreError> {
        match &self.medium {
            Medium::Disk(file) => file.punch(self.offset(blocks.start), self.offset(blocks.end)),
            Medium::Memory(file) => {
                lock(&file.blocks).retain(|index, _| !blocks.contains(index));
                Ok(())
            }
        }
    }

    /// As [`DiskFile::is_sync_due`].
    pub(super) fn is_sync_due(&self) -> bool {
        self.disk().is_some_and(DiskFile::is_sync_due)
    }

    /// As [`DiskFile::sync_early`].
    pub(super) fn sync_early(&self) {
        if let Some(file) = self.disk() {
            file.sync_early();
        }
    }

    /// As [`DiskFile::check_early`].
    pub(super) fn check_early(&self) -> Result<(), CoreError> {
        self.disk().map_or(Ok(()), DiskFile::check_early)
    }

    /// As [`DiskFile::finish`].
    pub(super) fn finish(&self, byte_length: Option<u64>) -> Result<(), CoreError> {
        self.disk().map_or(Ok(()), |file| file.finish(byte_length))
    }

    fn disk(&self) -> Option<&DiskFile> {
        match &self.medium {
            Medium::Disk(file) => Some(file),
            Medium::Memory(_) => None,
        }
    }

    fn offset(&self, index: u64) -> u64 {
        index.saturating_mul(self.block_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io;

    fn file(dir: &Path, access: FileAccess, stamp: Option<FileStamp>) -> BlockFile {
        BlockFile::on_disk(dir.join("book"), 4, access, stamp)
    }

    #[test]
    fn blocks_stand_where_their_index_says_whatever_the_order() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(dir.path(), FileAccess::Write, None);
        file.write(2, &Bytes::from_static(b"ij")).unwrap();
        file.write(0, &Bytes::from_static(b"abcd")).unwrap();
        file.write(1, &Bytes::from_static(b"efgh")).unwrap();
        assert_eq!(file.read(1, 4).unwrap(), (Bytes::from_static(b"efgh"), false));
        assert_eq!(file.read(2, 2).unwrap().0[..], *b"ij");
        assert!(matches!(file.read(2, 4), Err(CoreError::FileChanged)));
        file.finish(Some(9)).unwrap();
        assert_eq!(std::fs::read(file.path().unwrap()).unwrap(), b"abcdefghi");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_space_of_blocks_is_given_back() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let size = 1 << 16;
        let file = BlockFile::on_disk(dir.path().join("book"), size, FileAccess::Write, None);
        for index in 0..4 {
            file.write(index, &vec![7; size as usize].into()).unwrap();
        }
        file.finish(None).unwrap();
        let before = std::fs::metadata(file.path().unwrap()).unwrap();
        file.punch(1..3).unwrap();
        file.punch(9..u64::MAX).unwrap();
        let after = std::fs::metadata(file.path().unwrap()).unwrap();
        assert_eq!(after.len(), before.len());
        assert_eq!(file.read(0, size as usize).unwrap().0, vec![7; size as usize]);
        assert_eq!(file.read(2, size as usize).unwrap().0, vec![0; size as usize]);
        assert!(after.blocks() < before.blocks(), "{} {}", after.blocks(), before.blocks());
    }

    #[test]
    fn a_changed_file_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("book"), b"abcdef").unwrap();
        let opened = File::open(dir.path().join("book")).unwrap();
        let stamp = FileStamp::of(&opened).unwrap();
        let file = file(dir.path(), FileAccess::Read, Some(stamp));
        assert_eq!(file.read(1, 2).unwrap().0[..], *b"ef");
        std::fs::write(dir.path().join("book"), b"abcdefg").unwrap();
        assert!(matches!(file.read(1, 2), Err(CoreError::FileChanged)));
    }

    #[test]
    fn a_missing_file_is_an_error_with_its_kind() {
        let dir = tempfile::tempdir().unwrap();
        let kind = match file(dir.path(), FileAccess::Read, None).read(0, 1) {
            Err(CoreError::File { kind, .. }) => kind,
            other => panic!("{other:?}"),
        };
        assert_eq!(kind, io::ErrorKind::NotFound);
    }

    #[test]
    fn only_the_last_block_may_be_short() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(dir.path(), FileAccess::Read, None);
        assert_eq!((file.size_of(0, 6), file.size_of(1, 6), file.size_of(9, 6)), (4, 2, 0));
        assert!(file.fits(2, 6) && file.fits(2, 8) && !file.fits(2, 4) && !file.fits(2, 9));
    }

    #[test]
    fn a_file_in_memory_has_the_blocks_that_were_written() {
        let bytes = Bytes::from_static(b"abcdefghi");
        let whole = Arc::new(MemoryFile::of(&bytes, 4));
        let source = BlockFile::in_memory(whole, 4, FileAccess::Read);
        let copied = Arc::new(MemoryFile::default());
        let copy = BlockFile::in_memory(Arc::clone(&copied), 4, FileAccess::Write);
        for (index, size) in [(2, 1), (0, 4), (1, 4)] {
            copy.write(index, &source.read(index, size).unwrap().0).unwrap();
        }
        assert_eq!(copied.blocks().concat(), bytes);
        assert!(matches!(source.read(2, 4), Err(CoreError::FileChanged)));
        copy.punch(1..2).unwrap();
        assert!(matches!(copy.read(1, 4), Err(CoreError::FileChanged)));
        copy.finish(Some(9)).unwrap();
    }
}
