//! Giving up blocks that are here: their space is for others, and they may be fetched again.
//!
//! As `clear` in npm hypercore, only that the tree keeps what it knows: a hash is small, and with it
//! the block can be fetched again with a shorter proof.

use std::ops::Range;

use super::commit::blocking;
use super::{Core, FileAccess};
use crate::hypercore::bitfield::PAGE_BITS;
use crate::hypercore::error::CoreError;
use crate::sync::lock;

impl Core {
    /// Gives up blocks; how many were here. Returns when that is on disk, so that a crash does not bring
    /// them back. In a file of blocks that is written here, their space is given back where the system
    /// can do that (Linux); a file that is only read is somebody else's, and refused with
    /// [`CoreError::NotWritable`].
    ///
    /// Replicated cores are cleared with [`crate::hypercore::replicator::CoreHandle::clear`], which
    /// tells the peers. Cancelled, it may or may not have happened.
    pub async fn clear(&self, blocks: Range<u64>) -> Result<u64, CoreError> {
        if self.inner.file.as_ref().is_some_and(|file| file.access() == FileAccess::Read) {
            return Err(CoreError::NotWritable);
        }
        let mut cleared = Vec::<Range<u64>>::new();
        let count = {
            let mut state = lock(&self.inner.state);
            state.check()?;
            let (mut count, mut from) = (0, blocks.start);
            while let Some(index) = state.bits.next_present(from).filter(|at| *at < blocks.end) {
                state.bits.remove(index);
                state.pending.blocks.remove(&index);
                state.pending.removed.insert(index);
                state.pending.pages.insert(index / PAGE_BITS);
                match cleared.last_mut() {
                    Some(last) if last.end == index => last.end = index + 1,
                    _ => cleared.push(index..index + 1),
                }
                (count, from) = (count + 1, index + 1);
            }
            if count > 0 {
                state.applied_here = 0;
                self.inner.announce(&state);
            }
            count
        };
        if count > 0 {
            self.flush().await?;
            self.give_back(cleared).await?;
        }
        Ok(count)
    }

    /// Gives the space of blocks in a file back, unless they have been fetched again meanwhile.
    async fn give_back(&self, cleared: Vec<Range<u64>>) -> Result<(), CoreError> {
        if self.inner.file.is_none() {
            return Ok(());
        }
        // No block is written to the file while this is held.
        let _guard = self.inner.committing.lock().await;
        let core = self.clone();
        blocking(move || {
            let Some(file) = &core.inner.file else { return Ok(()) };
            for blocks in cleared {
                let is_gone = core.locked(|state| {
                    state.bits.next_present(blocks.start).is_none_or(|next| next >= blocks.end)
                });
                if is_gone {
                    file.punch(blocks)?;
                }
            }
            Ok(())
        })
        .await?
    }
}

#[cfg(test)]
mod tests {
    use super::super::OpenOptions;
    use super::super::fixture::{block, download, memory, pair, proof, reader, request, written};
    use super::*;

    #[tokio::test]
    async fn cleared_blocks_are_gone_for_good_and_the_log_stays_what_it_was() {
        let storage = memory();
        let core = written(&storage, 30).await;
        let hash = core.tree_hash();
        assert_eq!(core.clear(5..9).await.unwrap(), 4);
        assert_eq!(core.clear(7..12).await.unwrap(), 3);
        assert_eq!(core.clear(28..u64::MAX).await.unwrap(), 2);
        assert_eq!(core.clear(3..3).await.unwrap(), 0);
        let options = OpenOptions { writer: Some(pair()), ..OpenOptions::default() };
        let again = Core::open(&storage.after_crash(), *core.key(), options).unwrap();
        for core in [&core, &again] {
            let here: Vec<u64> = (0..30).filter(|index| core.has(*index)).collect();
            assert_eq!(here, (0..5).chain(12..28).collect::<Vec<_>>());
            assert_eq!((core.contiguous_length(), core.length()), (5, 30));
            assert_eq!((core.get(6).unwrap(), core.get(12).unwrap()), (None, Some(block(12))));
            assert_eq!(core.tree_hash(), hash);
        }
        assert_eq!(again.append(vec![block(30)]).await.unwrap(), 31);
        assert_eq!(again.get(30).unwrap(), Some(block(30)));
    }

    #[tokio::test]
    async fn cleared_blocks_are_refused_to_peers_and_can_be_fetched_again() {
        let source = written(&memory(), 30).await;
        let copy = reader(&memory(), &source);
        download(&copy, &source);
        copy.clear(0..20).await.unwrap();
        let far = reader(&memory(), &source);
        download(&far, &source);
        far.clear(3..4).await.unwrap();
        assert_eq!(copy.prove(&request(&far, 3)).unwrap(), None);
        assert!(copy.prove(&request(&far, 25)).unwrap().is_some());
        copy.apply(&proof(&source, &request(&copy, 3))).unwrap();
        assert_eq!(copy.get(3).unwrap(), Some(block(3)));
        download(&copy, &source);
        assert_eq!(copy.state(), source.state());
    }

    #[tokio::test]
    async fn blocks_that_are_not_on_disk_yet_are_cleared_too() {
        let source = written(&memory(), 30).await;
        let storage = memory();
        let copy = reader(&storage, &source);
        download(&copy, &source);
        assert_eq!(copy.clear(0..30).await.unwrap(), 30);
        let again =
            Core::open(&storage.after_crash(), *copy.key(), OpenOptions::default()).unwrap();
        assert_eq!((again.length(), again.state().blocks), (30, 0));
    }
}
