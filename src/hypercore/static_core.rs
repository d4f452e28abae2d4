//! Logs whose blocks are a file's bytes and whose key is the file's own merkle root.
//!
//! The manifest has a prologue and no signers, so the tree hash is all the authority there is: whoever
//! has the same bytes has the same log. npm hypercore makes the same key of
//! `{ prologue: { hash, length }, signers: [], quorum: 0 }`.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use blake2b_simd::Params;
use blake2b_simd::many::{HashManyJob, degree, hash_many};

use super::block_file::FileStamp;
use super::core::CancelOnDrop;
use super::error::CoreError;
use super::manifest::Manifest;
use super::messages::Node;
use super::tree::{Batch, Roots};
use crate::crypto::{Hash, KEY_LENGTH};

/// Bytes a block of a book; the last one is shorter.
pub const BLOCK_SIZE: u64 = 64 * 1024;

/// What stands before a block's bytes in its leaf's hash: a type and the size.
const PREFIX: usize = 9;

/// Told how many bytes of how many are done. Called on a blocking thread, about once a mebibyte.
pub type Progress = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// The tree over a file's blocks.
#[derive(Debug, Clone)]
pub struct StaticTree {
    /// The manifest: a prologue and no signers.
    pub manifest: Manifest,
    /// The key of the core.
    pub key: Hash,
    /// The tree hash.
    pub hash: Hash,
    /// The length in blocks.
    pub length: u64,
    /// The length in bytes.
    pub byte_length: u64,
    /// All tree nodes, in no order.
    pub nodes: Vec<Node>,
    /// The file that was hashed.
    pub path: PathBuf,
    /// What it was when it was hashed.
    pub stamp: FileStamp,
}

impl StaticTree {
    /// Hashes the file at `path` on a blocking thread. Dropping the future ends the work soon.
    ///
    /// Fails with [`CoreError::FileChanged`] when the file changes under it, and with
    /// [`CoreError::BlockSize`] when it is empty.
    pub async fn build(path: &Path, progress: Option<Progress>) -> Result<Self, CoreError> {
        let cancelled = CancelOnDrop::default();
        let flag = Arc::clone(&cancelled.0);
        let path = path.to_owned();
        let work = move || Self::build_now(path, progress.as_ref(), &flag);
        tokio::task::spawn_blocking(work).await.map_err(|_| CoreError::Cancelled)?
    }

    fn build_now(
        path: PathBuf,
        progress: Option<&Progress>,
        cancelled: &AtomicBool,
    ) -> Result<Self, CoreError> {
        let mut file = File::open(&path)?;
        let stamp = FileStamp::of(&file)?;
        if stamp.size == 0 {
            return Err(CoreError::BlockSize(0));
        }
        let mut tree = Batch::new(Roots::default());
        let mut hasher = LeafHasher::new();
        let mut told = 0;
        loop {
            if cancelled.load(Ordering::Relaxed) {
                return Err(CoreError::Cancelled);
            }
            let end = hasher.round(&mut file, &mut tree)?;
            let done = tree.roots.byte_length;
            if let Some(progress) = progress
                && (done - told >= 1 << 20 || end)
            {
                told = done;
                progress(done, stamp.size);
            }
            if end {
                break;
            }
        }
        if tree.roots.byte_length != stamp.size || FileStamp::of(&file)? != stamp {
            return Err(CoreError::FileChanged);
        }
        let hash = tree.roots.hash();
        let manifest = Manifest::fixed(hash, tree.roots.length);
        Ok(Self {
            key: manifest.key(),
            manifest,
            hash,
            length: tree.roots.length,
            byte_length: tree.roots.byte_length,
            nodes: tree.found.iter().map(|found| found.node).collect(),
            path,
            stamp,
        })
    }
}

/// Hashes as many blocks at a time as the processor has lanes for.
struct LeafHasher {
    params: Params,
    buffers: Vec<Vec<u8>>,
}

impl LeafHasher {
    fn new() -> Self {
        let mut params = Params::new();
        params.hash_length(KEY_LENGTH);
        let buffer = vec![0; PREFIX + BLOCK_SIZE as usize];
        Self { params, buffers: vec![buffer; degree().max(1)] }
    }

    /// Reads and appends a block a lane; whether the file has ended.
    fn round(&mut self, file: &mut impl Read, tree: &mut Batch) -> Result<bool, CoreError> {
        let mut sizes = Vec::with_capacity(self.buffers.len());
        let mut end = false;
        for buffer in &mut self.buffers {
            let size = fill(file, buffer.get_mut(PREFIX..).unwrap_or_default())?;
            if size > 0 {
                sizes.push(size);
                if let Some(prefix) = buffer.get_mut(1..PREFIX) {
                    prefix.copy_from_slice(&(size as u64).to_le_bytes());
                }
            }
            end = size < BLOCK_SIZE as usize;
            if end {
                break;
            }
        }
        let mut jobs: Vec<_> = self
            .buffers
            .iter()
            .zip(&sizes)
            .map(|(buffer, size)| {
                HashManyJob::new(&self.params, buffer.get(..PREFIX + size).unwrap_or_default())
            })
            .collect();
        hash_many(&mut jobs);
        for (job, size) in jobs.iter().zip(&sizes) {
            let mut hash = [0; KEY_LENGTH];
            hash.copy_from_slice(job.to_hash().as_bytes());
            let node = Node { index: 2 * tree.roots.length, size: *size as u64, hash };
            tree.append_root(node).ok_or(CoreError::TooLong)?;
        }
        Ok(end)
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
