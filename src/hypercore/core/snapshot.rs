//! A log as it was: a length that stays while the log grows.
//!
//! As in npm hypercore: after the log was cut, the blocks that the cut left are still to be had from a
//! snapshot, and later ones are not ([`CoreError::SnapshotGone`], there `SNAPSHOT_NOT_AVAILABLE`).

use std::sync::Arc;

use bytes::Bytes;

use super::Core;
use crate::crypto::Hash;
use crate::hypercore::error::CoreError;
use crate::hypercore::tree::Roots;

/// A log at one moment. It keeps no blocks: those that are cleared are gone from it, too.
#[derive(Clone)]
pub struct Snapshot {
    core: Core,
    fork: u64,
    roots: Arc<Roots>,
}

impl Core {
    /// The log as it is now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let (fork, roots) = self.locked(|state| (state.fork, Arc::clone(&state.roots)));
        Snapshot { core: self.clone(), fork, roots }
    }
}

impl Snapshot {
    /// The length in blocks.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.roots.length
    }

    /// The length in bytes.
    #[must_use]
    pub fn byte_length(&self) -> u64 {
        self.roots.byte_length
    }

    /// The fork.
    #[must_use]
    pub fn fork(&self) -> u64 {
        self.fork
    }

    /// The tree hash.
    #[must_use]
    pub fn tree_hash(&self) -> Hash {
        self.roots.hash()
    }

    /// How many of its blocks are still what the log says.
    #[must_use]
    pub fn compatible_length(&self) -> u64 {
        self.roots.length.min(self.core.common_since(self.fork))
    }

    /// A block, or `None` when it is not here or was appended later. Fails as [`Core::get`] does, and
    /// with [`CoreError::SnapshotGone`] when the log says something else there now.
    pub fn get(&self, index: u64) -> Result<Option<Bytes>, CoreError> {
        if index >= self.length() {
            return Ok(None);
        }
        self.check(index)?;
        let block = self.core.get(index)?;
        // It may have been cut while the block was read.
        self.check(index)?;
        Ok(block)
    }

    fn check(&self, index: u64) -> Result<(), CoreError> {
        if index < self.compatible_length() { Ok(()) } else { Err(CoreError::SnapshotGone(index)) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{block, download, memory, reader, written};
    use super::*;

    #[tokio::test]
    async fn a_snapshot_keeps_its_length_while_the_log_grows() {
        let source = written(&memory(), 10).await;
        let copy = reader(&memory(), &source);
        download(&copy, &source);
        for core in [&source, &copy] {
            let snapshot = core.snapshot();
            let (hash, bytes) = (core.tree_hash(), core.byte_length());
            source.append(vec![block(11)]).await.unwrap();
            download(&copy, &source);
            assert!(core.length() > snapshot.length());
            assert_eq!((snapshot.tree_hash(), snapshot.byte_length()), (hash, bytes));
            assert_eq!(snapshot.get(9).unwrap(), Some(block(9)));
            assert_eq!(snapshot.get(snapshot.length()).unwrap(), None);
            assert_eq!((snapshot.compatible_length(), snapshot.fork()), (snapshot.length(), 0));
        }
    }

    #[tokio::test]
    async fn after_a_cut_a_snapshot_has_what_the_cut_left() {
        let core = written(&memory(), 10).await;
        let (before, hash) = (core.snapshot(), core.tree_hash());
        core.truncate(6, None).await.unwrap();
        core.append((20..30).map(block).collect()).await.unwrap();
        assert_eq!((before.length(), before.compatible_length(), before.fork()), (10, 6, 0));
        assert_eq!(before.tree_hash(), hash);
        assert_eq!(before.get(5).unwrap(), Some(block(5)));
        assert!(matches!(before.get(6), Err(CoreError::SnapshotGone(6))));
        let after = core.snapshot();
        assert_eq!((after.length(), after.compatible_length()), (16, 16));
        core.truncate(12, None).await.unwrap();
        assert_eq!((before.compatible_length(), after.compatible_length()), (6, 12));
        assert_eq!(after.get(11).unwrap(), Some(block(25)));
    }
}
