//! Reading everything again to see that it is whole.

use super::commit::blocking;
use super::{Core, FileAccess};
use crate::hypercore::bitfield::PAGE_BITS;
use crate::hypercore::error::CoreError;
use crate::hypercore::static_core::Progress;
use crate::hypercore::tree::{Batch, Roots};
use crate::sync::lock;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What [`Core::verify`] has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// How many blocks are here and as the tree says.
    pub good: u64,
    /// The blocks that were not. They are forgotten, so that they can be fetched again.
    pub bad: Vec<u64>,
    /// All blocks are here, and the tree made of their bytes is the one that was signed.
    pub whole: bool,
}

impl Core {
    /// Reads and hashes every block that is here, on a blocking thread.
    ///
    /// Blocks that are not what the tree says are forgotten, durably; then they may be fetched again.
    /// In a file that is only read nothing is forgotten. Dropping the future ends the work soon.
    pub async fn verify(&self, progress: Option<Progress>) -> Result<Verified, CoreError> {
        let verified = self.check(progress).await?;
        let read_only =
            self.inner.file.as_ref().is_some_and(|file| file.access() == FileAccess::Read);
        if !verified.bad.is_empty() && !read_only {
            self.forget(&verified.bad).await?;
        }
        Ok(verified)
    }

    /// As [`Core::verify`], but changes nothing: blocks that are not what the tree says are kept. For a
    /// log that is written here, and so can be fetched from nobody.
    pub async fn check(&self, progress: Option<Progress>) -> Result<Verified, CoreError> {
        self.flush().await?;
        let cancelled = CancelOnDrop::default();
        let flag = Arc::clone(&cancelled.0);
        let core = self.clone();
        blocking(move || core.verify_now(progress.as_ref(), &flag)).await?
    }

    fn verify_now(
        &self,
        progress: Option<&Progress>,
        cancelled: &AtomicBool,
    ) -> Result<Verified, CoreError> {
        let roots = self.locked(|state| Arc::clone(&state.roots));
        let mut verified = Verified::default();
        let mut tree = Batch::new(Roots::default());
        let (mut done, mut told) = (0u64, 0u64);
        let mut at = 0;
        while let Some(index) = self.locked(|state| state.bits.next_present(at)) {
            if cancelled.load(Ordering::Relaxed) {
                return Err(CoreError::Cancelled);
            }
            at = index + 1;
            match self.get(index) {
                Ok(Some(block)) => {
                    verified.good += 1;
                    done += block.len() as u64;
                    if index == tree.roots.length {
                        tree.append(&block).ok_or(CoreError::TooLong)?;
                        tree.found.clear();
                    }
                }
                Ok(None) => {}
                Err(
                    CoreError::MissingBlock(_)
                    | CoreError::CorruptBlock(_)
                    | CoreError::FileChanged,
                ) => verified.bad.push(index),
                Err(error) => return Err(error),
            }
            if let Some(progress) = progress
                && (done - told >= 1 << 20 || done == roots.byte_length)
            {
                told = done;
                progress(done, roots.byte_length);
            }
        }
        verified.whole = tree.roots.length == roots.length && tree.roots.hash() == roots.hash();
        Ok(verified)
    }

    /// Whether all blocks are here and each was verified since the core was opened, just before it was
    /// written: then a crash cannot have come between what the disk and the bitfield say.
    #[must_use]
    pub fn is_verified_here(&self) -> bool {
        let is_written = self.inner.file.as_ref().is_none_or(|file| file.check_early().is_ok());
        self.locked(|state| {
            let length = state.roots.length;
            is_written
                && length > 0
                && state.applied_here >= length
                && state.bits.contiguous() >= length
        })
    }

    /// Forgets blocks, durably. The tree keeps what it knows of them.
    pub async fn forget(&self, blocks: &[u64]) -> Result<(), CoreError> {
        {
            let mut state = lock(&self.inner.state);
            state.check()?;
            for index in blocks {
                if state.bits.remove(*index) {
                    state.applied_here = 0;
                    state.pending.blocks.remove(index);
                    state.pending.removed.insert(*index);
                    state.pending.pages.insert(index / PAGE_BITS);
                }
            }
            self.inner.announce(&state);
        }
        self.flush().await
    }
}

/// Tells a blocking thread that nobody waits for it any more.
#[derive(Default)]
pub(in crate::hypercore) struct CancelOnDrop(pub(in crate::hypercore) Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
