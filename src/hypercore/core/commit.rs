//! Writing what peers sent to disk, in groups.
//!
//! Blocks of a download can be fetched again, so they are committed by size and time: what a crash
//! loses is at most two groups. Each commit is whole, so after a crash every block that the bitfield
//! has is there, with the nodes that prove it.

use std::sync::Arc;
use std::time::Duration;

use super::Core;
use super::state::{Inner, Pending, State};
use crate::hypercore::block_file::BlockFile;
use crate::hypercore::error::CoreError;
use crate::hypercore::storage::{Commit, Survives};
use crate::sync::lock;

/// How many bytes wait for a commit before it starts, and before peers have to wait.
pub(super) const GROUP_BYTES: usize = 256 * 1024;
/// How long a change waits for company.
const GROUP_DELAY: Duration = Duration::from_millis(50);
/// After how long a commit that failed is tried again, at first and at last.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LAST: Duration = Duration::from_secs(30);

impl Core {
    /// Starts the committer for what was just put into `state.pending`.
    pub(super) fn schedule(&self, state: &mut State) {
        if state.pending.bytes >= GROUP_BYTES {
            self.inner.wake.notify_one();
        }
        if state.committer {
            return;
        }
        // Without a runtime, nothing is committed before `flush`.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        state.committer = true;
        let inner = Arc::clone(&self.inner);
        runtime.spawn(async move {
            let mut delay = GROUP_DELAY;
            loop {
                if delay > GROUP_DELAY {
                    tokio::time::sleep(delay).await;
                } else if lock(&inner.state).pending.bytes < GROUP_BYTES {
                    let _ = tokio::time::timeout(GROUP_DELAY, inner.wake.notified()).await;
                }
                let guard = inner.committing.lock().await;
                let outcome = commit_pending(&inner, Survives::Process).await;
                drop(guard);
                delay = match outcome {
                    Ok(()) => GROUP_DELAY,
                    Err(_) => (2 * delay).clamp(RETRY_FIRST, RETRY_LAST),
                };
                let mut state = lock(&inner.state);
                if state.pending.is_empty() || state.closed {
                    state.committer = false;
                    return;
                }
            }
        });
    }

    /// Returns when less than a commit's worth waits for the disk, or fails as the storage does.
    /// Cancel safe.
    pub async fn room(&self) -> Result<(), CoreError> {
        let mut commits = self.inner.commits.subscribe();
        loop {
            {
                let state = lock(&self.inner.state);
                state.check()?;
                if let Some(failure) = &state.failure {
                    return Err(failure.clone());
                }
                if state.pending.bytes < GROUP_BYTES {
                    return Ok(());
                }
            }
            if commits.changed().await.is_err() {
                return Err(CoreError::Closed);
            }
        }
    }

    /// Returns when everything applied so far is on disk, where it survives the end of the process.
    /// Tries again what has failed before. Cancelled, the commit goes on.
    pub async fn flush(&self) -> Result<(), CoreError> {
        self.locked(|state| state.check())?;
        self.flush_to(Survives::Process).await
    }

    /// [`Core::flush`] that survives power loss, too; a file of blocks is synced and, when it is whole,
    /// cut to its size.
    pub async fn sync(&self) -> Result<(), CoreError> {
        let inner = Arc::clone(&self.inner);
        let finish = move || {
            let Some(file) = &inner.file else { return Ok(()) };
            let state = lock(&inner.state);
            let whole = state.roots.length > 0 && state.bits.contiguous() >= state.roots.length;
            let length = (whole && file.access() == super::FileAccess::Write)
                .then_some(state.roots.byte_length);
            drop(state);
            file.finish(length)
        };
        self.flush().await?;
        blocking(finish).await??;
        self.flush_to(Survives::Power).await
    }

    async fn flush_to(&self, survives: Survives) -> Result<(), CoreError> {
        let inner = Arc::clone(&self.inner);
        let flushed = crate::tasks::spawn(async move {
            let _guard = inner.committing.lock().await;
            commit_pending(&inner, survives).await
        });
        flushed.await.unwrap_or(Err(CoreError::Closed))
    }

    /// Finishes writing and closes; later calls fail with [`CoreError::Closed`], and the core may be
    /// opened again. A second call does nothing. Fails as the last commit does; it is closed all the
    /// same.
    pub async fn close(&self) -> Result<(), CoreError> {
        {
            let mut state = lock(&self.inner.state);
            if state.closed {
                return Ok(());
            }
            state.closed = true;
        }
        self.wait_for_appends().await;
        let outcome = self.flush_to(Survives::Process).await;
        self.inner.storage.close();
        self.inner.announce(&lock(&self.inner.state));
        outcome
    }
}

/// Runs `work` where it may block on disk.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, CoreError> {
    crate::tasks::blocking(work).await.map_err(|_| CoreError::Closed)
}

/// Commits what is pending; `inner.committing` must be held. With [`Survives::Power`], commits even
/// when nothing is, so that earlier commits get the same.
pub(super) async fn commit_pending(
    inner: &Arc<Inner>,
    survives: Survives,
) -> Result<(), CoreError> {
    let (pending, commit) = {
        let mut state = lock(&inner.state);
        if state.pending.is_empty() && survives == Survives::Process {
            return Ok(());
        }
        let pending = Arc::new(std::mem::take(&mut state.pending));
        let commit = commit_of(inner, &state, &pending, survives);
        state.flushing = Some(Arc::clone(&pending));
        (pending, commit)
    };
    // There is room again while this group is on its way.
    inner.commits.send_modify(|commits| *commits += 1);
    let outcome = store(inner, &pending, commit).await;
    {
        let mut state = lock(&inner.state);
        state.flushing = None;
        state.failure = outcome.as_ref().err().cloned();
        if let Err(error) = &outcome {
            tracing::warn!(%error, "blocks could not be stored");
            state.pending.restore(&pending);
        }
    }
    inner.commits.send_modify(|commits| *commits += 1);
    outcome
}

fn commit_of(inner: &Inner, state: &State, pending: &Pending, survives: Survives) -> Commit {
    let in_file = inner.file.is_some();
    let mut nodes: Vec<_> = pending.nodes.values().copied().collect();
    nodes.sort_unstable_by_key(|node| node.index);
    let page = |number: &u64| Some((*number, Box::new(*state.bits.page(*number)?)));
    Commit {
        // A commit of nothing would not be synced, nor would those before it.
        header: (pending.header || survives == Survives::Power).then(|| state.header(&inner.key)),
        truncate: pending.truncate,
        nodes: Arc::new(nodes),
        blocks: if in_file {
            Vec::new()
        } else {
            pending.blocks.iter().map(|(index, block)| (*index, block.clone())).collect()
        },
        removed_blocks: if in_file {
            Vec::new()
        } else {
            pending.removed.iter().copied().collect()
        },
        pages: pending.pages.iter().filter_map(page).collect(),
        survives,
    }
}

async fn store(
    inner: &Arc<Inner>,
    pending: &Arc<Pending>,
    commit: Commit,
) -> Result<(), CoreError> {
    if let Some(file) = inner.file.as_ref().filter(|file| file.is_in_memory()) {
        pending.blocks.iter().try_for_each(|(index, block)| file.write(*index, block))?;
    } else if inner.file.is_some() && !pending.blocks.is_empty() {
        let (writing, pending) = (Arc::clone(inner), Arc::clone(pending));
        blocking(move || {
            let Some(file) = &writing.file else { return Ok(()) };
            pending.blocks.iter().try_for_each(|(index, block)| file.write(*index, block))?;
            file.check_early()
        })
        .await??;
        if inner.file.as_ref().is_some_and(BlockFile::is_sync_due) {
            let writing = Arc::clone(inner);
            tokio::task::spawn_blocking(move || writing.file.as_ref().map(BlockFile::sync_early));
        }
    }
    Ok(inner.storage.commit(Arc::new(commit)).await?)
}

#[cfg(test)]
mod tests {
    use super::super::OpenOptions;
    use super::super::fixture::{
        create, download, memory, proof, reader, request, upgrade, written,
    };
    use super::*;
    use crate::hypercore::memory::MemoryStorage;
    use crate::hypercore::storage::{StorageError, StorageErrorKind};
    use bytes::Bytes;

    fn full() -> Option<StorageError> {
        Some(StorageError::new(StorageErrorKind::Full, "no space"))
    }

    fn after_crash(storage: &MemoryStorage, core: &Core) -> Core {
        Core::open(&storage.after_crash(), *core.key(), OpenOptions::default()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_applied_is_on_disk_soon_without_anybody_asking() {
        let source = written(&memory(), 20).await;
        let storage = memory();
        let copy = reader(&storage, &source);
        download(&copy, &source);
        assert_eq!(after_crash(&storage, &copy).length(), 0);
        tokio::time::sleep(2 * GROUP_DELAY).await;
        assert_eq!(after_crash(&storage, &copy).state(), copy.state());
        assert_eq!(storage.commits(copy.discovery_key()), 1);
    }

    #[tokio::test]
    async fn a_crash_loses_less_than_a_mebibyte_and_what_is_left_is_whole() {
        let source = create(&memory());
        let block = Bytes::from(vec![7; 64 * 1024]);
        source.append(vec![block; 100]).await.unwrap();
        let storage = memory();
        let copy = reader(&storage, &source);
        copy.apply(&proof(&source, &upgrade(0, 100))).unwrap();
        for index in 0..100 {
            let applied = copy.apply(&proof(&source, &request(&copy, index))).unwrap();
            if applied.full {
                copy.room().await.unwrap();
            }
            let crashed = after_crash(&storage, &copy);
            assert!(copy.state().blocks - crashed.state().blocks < 16);
            assert!(crashed.verify(None).await.unwrap().bad.is_empty());
        }
    }

    #[tokio::test]
    async fn a_full_disk_stops_a_download_and_room_lets_it_go_on() {
        let source = written(&memory(), 20).await;
        let storage = memory();
        let copy = reader(&storage, &source);
        copy.apply(&proof(&source, &upgrade(0, 20))).unwrap();
        storage.fail_commits(full());
        copy.apply(&proof(&source, &request(&copy, 3))).unwrap();
        assert!(matches!(copy.flush().await, Err(CoreError::Storage(_))));
        let refused = copy.apply(&proof(&source, &request(&copy, 4))).unwrap_err();
        assert!(!refused.is_violation());
        assert!(copy.room().await.is_err());
        assert!(copy.get(3).unwrap().is_some());
        storage.fail_commits(None);
        copy.flush().await.unwrap();
        copy.room().await.unwrap();
        download(&copy, &source);
        copy.flush().await.unwrap();
        assert_eq!(after_crash(&storage, &copy).state(), source.state());
    }

    #[tokio::test(start_paused = true)]
    async fn a_commit_that_failed_is_tried_again_by_itself() {
        let source = written(&memory(), 20).await;
        let storage = memory();
        let copy = reader(&storage, &source);
        storage.fail_commits(full());
        download(&copy, &source);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(copy.room().await.is_err());
        storage.fail_commits(None);
        tokio::time::sleep(Duration::from_secs(3)).await;
        copy.room().await.unwrap();
        assert_eq!(after_crash(&storage, &copy).state(), source.state());
    }

    #[tokio::test]
    async fn closing_finishes_what_was_begun() {
        let source = written(&memory(), 20).await;
        let storage = memory();
        let copy = reader(&storage, &source);
        download(&copy, &source);
        copy.close().await.unwrap();
        assert!(matches!(copy.flush().await, Err(CoreError::Closed)));
        assert_eq!(reader(&storage, &source).state(), source.state());
    }
}
