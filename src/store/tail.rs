//! The tail: a small file beside the database with the appends that no commit has yet.
//!
//! A note is one write of a few hundred bytes, where a transaction writes whole pages of several tables. What
//! a note says is proven by its signature ([`crate::hypercore`]), so nothing here has to be checked but its
//! bounds: damage, what a write left unfinished, and what is left of earlier notes lead nowhere. Nothing is
//! synced either; that is what commits are for. Once a commit has everything, the file is written from its
//! start again.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use bytes::Bytes;

use crate::crypto::Hash;
use crate::encoding::{DecodeError, Reader, Writer};
use crate::hypercore::storage::{Note, Result, StorageError, StorageErrorKind};
use crate::sync::lock;

/// How large the file may become. What does not fit is committed.
const MAX_BYTES: u64 = 1024 * 1024;
/// How many blocks one note may have.
const MAX_BLOCKS: usize = 1024;

/// The notes of all cores of a database.
pub(super) struct Tail {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Open once it was needed. Its position is where the next note goes.
    file: Option<File>,
    end: u64,
    /// Whether what is in the file was counted.
    is_known: bool,
    /// Whether there is a file, from this run or an earlier one that did not end well.
    is_there: bool,
    /// Cores with notes that no commit has.
    noted: HashSet<Hash>,
    /// The disk refused a note: all is committed from now on.
    is_broken: bool,
}

impl Tail {
    /// The tail of the database at `path`.
    pub(super) fn of(path: &Path) -> Self {
        let mut name = path.as_os_str().to_owned();
        name.push("-tail");
        Self { path: name.into(), state: Mutex::default() }
    }

    /// Whether there is room for more.
    pub(super) fn takes(&self) -> bool {
        let state = lock(&self.state);
        !state.is_broken && state.end < MAX_BYTES
    }

    /// Writes a note; `false` when it cannot be.
    pub(super) fn put(&self, core: &Hash, note: &Note) -> bool {
        let record = encode(core, note);
        let mut state = lock(&self.state);
        if state.is_broken || note.blocks.len() > MAX_BLOCKS {
            return false;
        }
        let written = self.write(&mut state, &record).unwrap_or_else(|error| {
            tracing::warn!(%error, path = %self.path.display(), "appends cannot be noted");
            state.is_broken = true;
            false
        });
        if written {
            state.noted.insert(*core);
        }
        written
    }

    /// Writes a record, if there is room for it.
    fn write(&self, state: &mut State, record: &[u8]) -> io::Result<bool> {
        self.count(state)?;
        let end = state.end + record.len() as u64;
        if end > MAX_BYTES {
            return Ok(false);
        }
        let file = match &mut state.file {
            Some(file) => file,
            empty => {
                let mut file = create(&self.path)?;
                state.is_there = true;
                file.seek(SeekFrom::Start(state.end))?;
                empty.insert(file)
            }
        };
        file.write_all(record)?;
        state.end = end;
        Ok(true)
    }

    /// The notes of a core, oldest first.
    pub(super) fn notes(&self, core: &Hash) -> Result<Vec<Note>> {
        let mut state = lock(&self.state);
        self.count(&mut state).map_err(|error| failed(&self.path, &error))?;
        if !state.noted.contains(core) {
            return Ok(Vec::new());
        }
        let bytes = self.read().map_err(|error| failed(&self.path, &error))?.unwrap_or_default();
        Ok(Records(&bytes).filter(|(of, _)| of == core).map(|(_, note)| note).collect())
    }

    /// A commit has all notes of a core, or made them void.
    pub(super) fn forget(&self, core: &Hash) {
        let mut state = lock(&self.state);
        if !state.noted.remove(core) || !state.noted.is_empty() {
            return;
        }
        // What is there stays until it is written over: a commit had it.
        let rewound = state.file.as_mut().map_or(Ok(()), Seek::rewind);
        match rewound {
            Ok(()) => state.end = 0,
            Err(error) => {
                tracing::warn!(%error, "appends cannot be noted any more");
                state.is_broken = true;
            }
        }
    }

    /// Removes the file, if nobody needs it.
    pub(super) fn tidy(&self) {
        let mut state = lock(&self.state);
        if state.noted.is_empty() && std::mem::take(&mut state.is_there) {
            (state.file, state.end) = (None, 0);
            if let Err(error) = std::fs::remove_file(&self.path) {
                tracing::debug!(%error, "the tail was not removed");
            }
        }
    }

    /// Finds out which cores have notes, and where they end, the first time.
    fn count(&self, state: &mut State) -> io::Result<()> {
        if state.is_known {
            return Ok(());
        }
        let bytes = self.read()?;
        state.is_there = bytes.is_some();
        let bytes = bytes.unwrap_or_default();
        let mut records = Records(&bytes);
        state.noted.extend(records.by_ref().map(|(core, _)| core));
        state.end = (bytes.len() - records.0.len()) as u64;
        state.is_known = true;
        Ok(())
    }

    /// What is in the file, if there is one.
    fn read(&self) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn failed(path: &Path, error: &io::Error) -> StorageError {
    StorageError::new(StorageErrorKind::Io, format!("{} cannot be read: {error}", path.display()))
}

/// A record: its size in bytes (u32), and that many.
fn encode(core: &Hash, note: &Note) -> Vec<u8> {
    let size: usize = note.blocks.iter().map(|block| block.len() + 5).sum();
    let mut out = Writer::with_capacity(size + 192);
    out.u32(0).raw(core).uint(note.fork).uint(note.start).buffer(&note.signature);
    out.uint(note.blocks.len() as u64);
    note.blocks.iter().for_each(|block| _ = out.buffer(block));
    let mut record = out.into_vec();
    let size = (record.len() - 4) as u32;
    record[..4].copy_from_slice(&size.to_le_bytes());
    record
}

fn decode(record: &[u8]) -> Result<(Hash, Note), DecodeError> {
    let mut reader = Reader::new(record);
    let core = reader.fixed32()?;
    let (fork, start) = (reader.uint()?, reader.uint()?);
    let signature = Bytes::copy_from_slice(reader.buffer()?);
    let blocks = reader.vec(MAX_BLOCKS, |reader| Ok(Bytes::copy_from_slice(reader.buffer()?)))?;
    if blocks.is_empty() || !reader.is_empty() || start.checked_add(MAX_BLOCKS as u64).is_none() {
        return Err(DecodeError::Invalid("note"));
    }
    Ok((core, Note { fork, start, signature, blocks }))
}

/// The records at the start of the bytes, as far as they are whole.
struct Records<'a>(&'a [u8]);

impl Iterator for Records<'_> {
    type Item = (Hash, Note);

    fn next(&mut self) -> Option<Self::Item> {
        let (size, rest) = self.0.split_first_chunk()?;
        let (record, rest) = rest.split_at_checked(u32::from_le_bytes(*size) as usize)?;
        let decoded = decode(record).ok()?;
        self.0 = rest;
        Some(decoded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(start: u64) -> Note {
        let blocks = (0..1 + start % 3).map(|n| Bytes::from(vec![n as u8; 10 * n as usize]));
        Note { fork: 1, start, signature: vec![7; 64].into(), blocks: blocks.collect() }
    }

    #[test]
    fn notes_are_there_when_the_file_is_read_again_and_each_core_has_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p2p.db");
        let tail = Tail::of(&path);
        for start in 0..20 {
            assert!(tail.put(&[start as u8 % 2; 32], &note(start)));
        }
        for (tail, known) in [(tail, 0), (Tail::of(&path), 1)] {
            let of = |core| tail.notes(&[core; 32]).unwrap();
            assert_eq!(of(0), (0..20).step_by(2).map(note).collect::<Vec<_>>());
            assert_eq!(of(1), (1..20).step_by(2).map(note).collect::<Vec<_>>());
            assert_eq!(of(2), vec![note(0); known]);
            assert!(tail.put(&[2; 32], &note(0)));
            assert_eq!(of(2), vec![note(0); known + 1]);
        }
    }

    #[test]
    fn the_file_is_written_from_its_start_when_all_is_committed_and_is_gone_in_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p2p.db");
        let tail = Tail::of(&path);
        let size = || std::fs::metadata(dir.path().join("p2p.db-tail")).unwrap().len();
        (0..2).for_each(|core| assert!(tail.put(&[core; 32], &note(0))));
        let full = size();
        tail.forget(&[0; 32]);
        assert_eq!(tail.notes(&[1; 32]).unwrap(), vec![note(0)]);
        tail.forget(&[1; 32]);
        assert!(tail.put(&[5; 32], &note(0)));
        assert_eq!((size(), tail.notes(&[5; 32]).unwrap()), (full, vec![note(0)]));
        tail.tidy();
        assert_eq!(size(), full, "it is needed");
        tail.forget(&[5; 32]);
        tail.tidy();
        assert!(!dir.path().join("p2p.db-tail").exists());
        assert!(tail.put(&[0; 32], &note(4)));
        assert_eq!(tail.notes(&[0; 32]).unwrap(), vec![note(4)]);
    }

    #[test]
    fn the_file_of_a_run_that_did_not_end_goes_once_a_commit_has_its_notes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p2p.db");
        assert!(Tail::of(&path).put(&[1; 32], &note(0)));
        let tail = Tail::of(&path);
        assert_eq!(tail.notes(&[1; 32]).unwrap(), vec![note(0)]);
        tail.tidy();
        assert!(dir.path().join("p2p.db-tail").exists(), "it is needed");
        tail.forget(&[1; 32]);
        tail.tidy();
        assert!(!dir.path().join("p2p.db-tail").exists());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(
            mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..600),
            cut in 0..600usize,
            flips in proptest::collection::vec((0..2000usize, 0..8u32), 0..4),
        ) {
            // Alone, after a whole record, and as damage to records.
            let whole: Vec<u8> = (0..3).flat_map(|start| encode(&[3; 32], &note(start))).collect();
            let found = |bytes: &[u8]| Records(bytes).count();
            proptest::prop_assert!(found(&bytes) <= bytes.len() / 40);
            bytes.splice(0..0, whole.iter().copied());
            proptest::prop_assert!(found(&bytes) >= 3);
            bytes.truncate(whole.len() + cut);
            for (at, bit) in flips {
                let at = at % bytes.len();
                bytes[at] ^= 1 << bit;
            }
            proptest::prop_assert!(found(&bytes) <= bytes.len() / 40);
        }
    }

    #[test]
    fn the_file_is_bounded_and_what_is_no_record_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p2p.db");
        let tail = Tail::of(&path);
        let large = Note { blocks: vec![vec![1; 100_000].into()], ..note(0) };
        let count = (0..20).take_while(|_| tail.put(&[1; 32], &large)).count();
        assert_eq!(count, 10);
        assert!(tail.put(&[1; 32], &note(1)), "a small one fits");
        let mut bytes = std::fs::read(dir.path().join("p2p.db-tail")).unwrap();
        assert!(bytes.len() as u64 <= MAX_BYTES);
        for at in [0, 1, 2, 3, 40, 150, 100_000, bytes.len() - 1] {
            bytes[at] ^= 0x80;
            std::fs::write(dir.path().join("p2p.db-tail"), &bytes[..at + 1]).unwrap();
            assert!(Tail::of(&path).notes(&[1; 32]).unwrap().len() <= count + 1);
            bytes[at] ^= 0x80;
        }
    }
}
