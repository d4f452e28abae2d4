//! Cutting a log that is written here.
//!
//! Every cut begins a new fork, which is signed, so that readers can tell it from two writers with one
//! key. As with appends, peers hear of it only once it is on disk.

use std::sync::Arc;

use bytes::Bytes;

use super::Core;
use super::commit::{blocking, commit_pending};
use super::state::Inner;
use crate::hypercore::error::CoreError;
use crate::hypercore::messages::MAX_INDEX;
use crate::hypercore::storage::{Commit, Header, Survives};
use crate::hypercore::tree::Roots;
use crate::hypercore::verifier::Verifier;
use crate::sync::lock;

impl Core {
    /// Cuts the log to its first `length` blocks and returns the new fork when that is synced to disk.
    ///
    /// The fork is the one after the current unless another, greater one is given. Fails with
    /// [`CoreError::NotWritable`] where the log is not written, and with [`CoreError::Truncation`] when
    /// it is not as long, when the prologue would be cut, or when the fork is not greater. Cancelled,
    /// it may or may not have cut. When the storage fails to sync, it has cut, but the loss of power may
    /// take that back.
    pub async fn truncate(&self, length: u64, fork: Option<u64>) -> Result<u64, CoreError> {
        if self.inner.writer.is_none() || self.inner.file.is_some() {
            return Err(CoreError::NotWritable);
        }
        let inner = Arc::clone(&self.inner);
        let cut = crate::tasks::spawn(async move { truncate(&inner, length, fork).await });
        cut.await.unwrap_or(Err(CoreError::Closed))
    }

    /// Waits for the end of a cut that is under way; at once when there is none. Cancel safe.
    pub(in crate::hypercore) async fn settled(&self) {
        while self.is_being_cut() {
            // It holds this lock until it is over.
            drop(self.inner.committing.lock().await);
        }
    }

    /// Whether the log is being cut. Until that is over, nothing can be proven.
    pub(in crate::hypercore) fn is_being_cut(&self) -> bool {
        self.locked(|state| state.truncating.is_some())
    }
}

async fn truncate(inner: &Arc<Inner>, length: u64, fork: Option<u64>) -> Result<u64, CoreError> {
    let _guard = inner.committing.lock().await;
    commit_pending(inner, Survives::Process).await?;
    let signed = {
        let inner = Arc::clone(inner);
        blocking(move || sign(&inner, length, fork)).await??
    };
    {
        let mut state = lock(&inner.state);
        state.check()?;
        state.truncating = Some(length);
    }
    let stored = inner.storage.commit(signed.commit).await;
    let is_cut = stored.is_ok() || is_stored(inner, signed.fork);
    let mut state = lock(&inner.state);
    state.truncating = None;
    if is_cut {
        state.fork_to(signed.fork, signed.roots, signed.signature, length);
        inner.announce(&state);
    }
    stored?;
    Ok(signed.fork)
}

/// Whether the storage has this fork although it said that it failed: it could not sync what it had
/// stored. Blocks that are gone there must not be thought to be here.
fn is_stored(inner: &Inner, fork: u64) -> bool {
    matches!(inner.storage.header(), Ok(Some(header)) if header.fork == fork)
}

struct Signed {
    fork: u64,
    roots: Roots,
    signature: Bytes,
    commit: Arc<Commit>,
}

fn sign(inner: &Inner, length: u64, fork: Option<u64>) -> Result<Signed, CoreError> {
    let (header, manifest) = {
        let state = lock(&inner.state);
        let manifest = state.manifest.clone().ok_or(CoreError::NotWritable)?.manifest;
        (state.header(&inner.key), manifest)
    };
    let writer = inner.writer.as_ref().ok_or(CoreError::NotWritable)?;
    if length > header.length {
        return Err(CoreError::Truncation("it is not as long"));
    }
    if manifest.prologue.is_some_and(|prologue| length < prologue.length) {
        return Err(CoreError::Truncation("the prologue would be cut"));
    }
    let fork = fork.unwrap_or(header.fork + 1);
    if fork <= header.fork || fork > MAX_INDEX {
        return Err(CoreError::Truncation("the fork must be a greater one"));
    }
    let roots = Roots::load(length, inner)?;
    let signature = Verifier::new(&inner.key, &manifest).sign(&roots, fork, writer);
    let signature = Bytes::from(signature.ok_or(CoreError::NotWritable)?);
    let header = Header {
        fork,
        length,
        byte_length: roots.byte_length,
        signature: Some(signature.clone()),
        ..header
    };
    let commit = Commit {
        header: Some(header),
        truncate: Some(length),
        nodes: Arc::default(),
        blocks: Vec::new(),
        removed_blocks: Vec::new(),
        pages: Vec::new(),
        survives: Survives::Power,
    };
    Ok(Signed { fork, roots, signature, commit: Arc::new(commit) })
}

#[cfg(test)]
mod tests {
    use super::super::OpenOptions;
    use super::super::fixture::{block, create, memory, pair, reader, written};
    use super::*;
    use crate::hypercore::flat_tree;
    use crate::hypercore::storage::{StorageError, StorageErrorKind};

    fn again(storage: &crate::hypercore::MemoryStorage, core: &Core) -> Core {
        let options = OpenOptions { writer: Some(pair()), ..OpenOptions::default() };
        Core::open(&storage.after_crash(), *core.key(), options).unwrap()
    }

    #[tokio::test]
    async fn a_cut_log_is_what_a_log_of_that_length_is_and_grows_again() {
        for length in [1, 2, 7, 8, 24, 25] {
            for cut in 0..=length {
                let storage = memory();
                let core = written(&storage, length).await;
                let other = create(&memory());
                other.append((0..cut).map(block).collect()).await.unwrap();
                assert_eq!(core.truncate(cut, None).await.unwrap(), 1);
                for core in [core.clone(), again(&storage, &core)] {
                    assert_eq!((core.fork(), core.length()), (1, cut));
                    assert_eq!(core.contiguous_length(), cut);
                    assert_eq!(core.tree_hash(), other.tree_hash());
                    assert_eq!(core.byte_length(), other.byte_length());
                    for index in 0..length {
                        let kept = (index < cut).then(|| block(index));
                        assert_eq!(core.get(index).unwrap(), kept);
                    }
                    let gone = (0..2 * length).filter(|node| !flat_tree::is_within(*node, cut));
                    for node in gone {
                        assert_eq!(core.inner.storage.node(node).unwrap(), None, "node {node}");
                    }
                }
                core.append(vec![block(77); 3]).await.unwrap();
                other.append(vec![block(77); 3]).await.unwrap();
                assert_eq!(again(&storage, &core).tree_hash(), other.tree_hash());
            }
        }
    }

    #[tokio::test]
    async fn a_cut_of_pages_of_blocks_leaves_what_was_before() {
        let storage = memory();
        let core = create(&storage);
        let few = |count| vec![Bytes::from_static(b"b"); count];
        core.append(few(20_000)).await.unwrap();
        for cut in [16_385, 16_384, 16_383, 8_191, 70] {
            core.truncate(cut, None).await.unwrap();
            assert_eq!(core.state().blocks, cut);
            assert_eq!(again(&storage, &core).state(), core.state());
        }
        assert!(again(&storage, &core).verify(None).await.unwrap().whole);
    }

    #[tokio::test]
    async fn what_cannot_be_cut_is_refused_and_stays() {
        let core = written(&memory(), 5).await;
        let before = (core.state(), core.tree_hash());
        for (length, fork) in [(6, None), (3, Some(0)), (3, Some(u64::MAX))] {
            let refused = core.truncate(length, fork).await;
            assert!(matches!(refused, Err(CoreError::Truncation(_))), "{refused:?}");
        }
        assert_eq!((core.state(), core.tree_hash()), before);
        let copy = reader(&memory(), &core);
        assert!(matches!(copy.truncate(0, None).await, Err(CoreError::NotWritable)));
        assert_eq!(core.truncate(3, Some(9)).await.unwrap(), 9);
        assert_eq!(core.truncate(3, None).await.unwrap(), 10);
    }

    #[tokio::test]
    async fn a_cut_that_cannot_be_stored_leaves_no_trace() {
        let storage = memory();
        let core = written(&storage, 5).await;
        let before = (core.state(), core.tree_hash(), core.signature());
        storage.fail_commits(Some(StorageError::new(StorageErrorKind::Io, "no")));
        assert!(matches!(core.truncate(2, None).await, Err(CoreError::Storage(_))));
        assert_eq!((core.state(), core.tree_hash(), core.signature()), before);
        assert_eq!(core.get(4).unwrap(), Some(block(4)));
        storage.fail_commits(None);
        assert_eq!(core.truncate(2, None).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn a_cut_that_could_not_be_synced_is_what_the_storage_has() {
        let storage = memory();
        let core = written(&storage, 5).await;
        storage.fail_syncs(Some(StorageError::new(StorageErrorKind::Io, "no sync")));
        assert!(matches!(core.truncate(2, None).await, Err(CoreError::Storage(_))));
        storage.fail_syncs(None);
        assert_eq!((core.fork(), core.length(), core.get(4).unwrap()), (1, 2, None));
        core.append(vec![block(9)]).await.unwrap();
        assert_eq!(again(&storage, &core).state(), core.state());
        assert!(again(&storage, &core).verify(None).await.unwrap().whole);
    }

    #[tokio::test]
    async fn appends_and_cuts_at_once_leave_one_whole_log() {
        let storage = memory();
        let core = written(&storage, 10).await;
        let appends = (0..20).map(|index| {
            let core = core.clone();
            tokio::spawn(async move { core.append(vec![block(index)]).await.map(drop) })
        });
        let appends: Vec<_> = appends.collect();
        for _ in 0..5 {
            core.truncate(core.length().min(8), None).await.unwrap();
        }
        for append in appends {
            append.await.unwrap().unwrap();
        }
        assert_eq!(core.fork(), 5);
        assert_eq!(again(&storage, &core).state(), core.state());
        assert!(core.verify(None).await.unwrap().whole);
    }

    #[tokio::test]
    async fn the_last_cuts_say_what_earlier_forks_have_in_common() {
        let core = written(&memory(), 30).await;
        for (cut, grow) in [(20, 4), (22, 1), (10, 20)] {
            core.truncate(cut, None).await.unwrap();
            core.append(vec![block(1); grow]).await.unwrap();
        }
        let common: Vec<_> = (0..5).map(|fork| core.common_since(fork)).collect();
        assert_eq!(common, [10, 10, 10, u64::MAX, 0]);
        for _ in 0..20 {
            core.truncate(10, None).await.unwrap();
        }
        assert_eq!((core.common_since(2), core.common_since(22)), (0, 10));
    }
}
