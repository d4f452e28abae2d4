//! Hashing the blocks of a file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use blake2b_simd::many::degree;

use super::disk_file::read_exact_at;
use super::error::CoreError;
use super::node;
use super::static_core::{BLOCK_SIZE, Progress};
use crate::crypto::{Hash, KEY_LENGTH};
use crate::sync::lock;

/// How many blocks a thread takes at a time.
const STRETCH: u64 = 8;

/// Hashes a file's blocks: as many side by side as the processor has lanes for, on two threads, each of
/// which takes the next stretch when it is done with one.
pub(super) struct Hashing<'a> {
    file: &'a File,
    size: u64,
    blocks: u64,
    progress: Option<&'a Progress>,
    cancelled: &'a AtomicBool,
    /// The first block that nobody has taken.
    next: AtomicU64,
    hashed: Mutex<Hashed>,
}

/// What both threads have done.
struct Hashed {
    leaves: Vec<Hash>,
    /// How many bytes of the file they are of.
    bytes: u64,
    /// How many bytes were told.
    told: u64,
}

impl<'a> Hashing<'a> {
    /// Of `file`, which has `size` bytes.
    pub(super) fn new(
        file: &'a File,
        size: u64,
        progress: Option<&'a Progress>,
        cancelled: &'a AtomicBool,
    ) -> Self {
        let blocks = size.div_ceil(BLOCK_SIZE);
        let leaves = vec![[0; KEY_LENGTH]; blocks as usize];
        let hashed = Mutex::new(Hashed { leaves, bytes: 0, told: 0 });
        Self { file, size, blocks, progress, cancelled, next: AtomicU64::new(0), hashed }
    }

    /// The hashes of the blocks, as leaves. To be called on a thread that may wait.
    pub(super) fn run(self) -> Result<Vec<Hash>, CoreError> {
        if self.blocks <= STRETCH {
            self.work()?;
        } else {
            std::thread::scope(|scope| {
                let other = std::thread::Builder::new().spawn_scoped(scope, || self.work());
                let mine = self.work();
                // Where no thread can be had, this one did it all.
                let theirs = other.map_or(Ok(Ok(())), |other| other.join());
                mine.and(theirs.unwrap_or(Err(CoreError::Cancelled)))
            })?;
        }
        Ok(self.hashed.into_inner().unwrap_or_else(PoisonError::into_inner).leaves)
    }

    /// Takes stretch after stretch until none is left.
    fn work(&self) -> Result<(), CoreError> {
        let mut lanes = Lanes::new();
        loop {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(CoreError::Cancelled);
            }
            let start = self.next.fetch_add(STRETCH, Ordering::Relaxed);
            if start >= self.blocks {
                return Ok(());
            }
            let end = (start + STRETCH).min(self.blocks);
            match lanes.hash(self.file, self.size, start..end) {
                Ok(leaves) => self.put(start as usize..end as usize, &leaves),
                Err(error) => {
                    self.next.store(self.blocks, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
    }

    fn put(&self, blocks: Range<usize>, leaves: &[Hash]) {
        let mut hashed = lock(&self.hashed);
        let bytes = (blocks.end as u64 * BLOCK_SIZE).min(self.size);
        hashed.bytes += bytes - blocks.start as u64 * BLOCK_SIZE;
        if let Some(places) = hashed.leaves.get_mut(blocks) {
            places.copy_from_slice(leaves);
        }
        let done = hashed.bytes;
        if let Some(progress) = self.progress
            && (done - hashed.told >= 1 << 20 || done == self.size)
        {
            hashed.told = done;
            progress(done, self.size);
        }
    }
}

/// A buffer for each lane.
struct Lanes(Vec<Vec<u8>>);

impl Lanes {
    fn new() -> Self {
        Self(vec![vec![0; BLOCK_SIZE as usize]; degree().max(1)])
    }

    /// The leaves of the blocks in `range` of a file of `size` bytes.
    fn hash(&mut self, file: &File, size: u64, range: Range<u64>) -> Result<Vec<Hash>, CoreError> {
        let mut leaves = Vec::with_capacity((range.end - range.start) as usize);
        let mut at = range.start;
        while at < range.end {
            let mut blocks = Vec::with_capacity(self.0.len());
            for (buffer, index) in self.0.iter_mut().zip(at..range.end) {
                let length = (size - index * BLOCK_SIZE).min(BLOCK_SIZE);
                let block = buffer.get_mut(..length as usize).unwrap_or_default();
                match read_exact_at(file, block, index * BLOCK_SIZE) {
                    Ok(()) => blocks.push((index, &*block)),
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                        return Err(CoreError::FileChanged);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            at += blocks.len() as u64;
            leaves.extend(node::leaves(&blocks).into_iter().map(|leaf| leaf.hash));
        }
        Ok(leaves)
    }
}
