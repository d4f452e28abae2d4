//! Appending: one commit and one signature for all appends that wait at the same time.
//!
//! An append is seen by readers and peers only once it is on disk. Otherwise a crash could take back
//! what peers already have, and the next append would fork the log.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::Core;
use super::commit::{blocking, commit_pending};
use super::noted::note;
use super::state::{Append, Inner};
use crate::hypercore::error::CoreError;
use crate::hypercore::messages::Node;
use crate::hypercore::storage::{Commit, MAX_BLOCK_BYTES, MAX_LENGTH, Survives};
use crate::hypercore::tree::{Batch, Roots};
use crate::hypercore::verifier::Verifier;
use crate::sync::lock;

/// How many blocks, and how many bytes of them, are hashed where they are appended: a thread that has to
/// wake up takes longer.
const FEW_BLOCKS: usize = 8;
const FEW_BYTES: usize = 16 * 1024;

impl Core {
    /// Appends blocks, each of at most [`MAX_BLOCK_BYTES`], and returns the new length when they are synced to disk.
    ///
    /// Appends that wait at the same time share one commit and one signature. Cancelled, it may or
    /// may not have appended.
    pub async fn append(&self, blocks: Vec<Bytes>) -> Result<u64, CoreError> {
        self.append_surviving(blocks, Survives::Power).await
    }

    /// [`Core::append`] with a choice of what the acknowledged append survives.
    ///
    /// With [`Survives::Process`], as JavaScript has it, it is not synced: the loss of power can take back
    /// what peers already have, and the next append then forks the log. For logs of which nobody else has
    /// a copy yet, and for those that are made anew when they are damaged.
    pub async fn append_surviving(
        &self,
        blocks: Vec<Bytes>,
        survives: Survives,
    ) -> Result<u64, CoreError> {
        if self.inner.writer.is_none() || self.inner.file.is_some() {
            return Err(CoreError::NotWritable);
        }
        if let Some(block) = blocks.iter().find(|block| block.len() > MAX_BLOCK_BYTES) {
            return Err(CoreError::BlockSize(block.len()));
        }
        self.locked(|state| state.check())?;
        if blocks.is_empty() {
            return Ok(self.length());
        }
        if let Some(start) = self.note(&blocks, survives)? {
            return Ok(start + blocks.len() as u64);
        }
        let (done, outcome) = oneshot::channel();
        if lock(&self.inner.appends).add(Append { blocks, survives, done }) {
            crate::tasks::spawn(run(Arc::clone(&self.inner)));
        }
        outcome.await.unwrap_or(Err(CoreError::Closed))
    }

    pub(super) async fn wait_for_appends(&self) {
        while lock(&self.inner.appends).is_worked_on() {
            // The runner holds this lock while it commits.
            drop(self.inner.committing.lock().await);
            tokio::task::yield_now().await;
        }
    }
}

async fn run(inner: Arc<Inner>) {
    loop {
        let Some(queue) = lock(&inner.appends).next() else { return };
        let synced = queue.iter().any(|append| append.survives == Survives::Power);
        let survives = if synced { Survives::Power } else { Survives::Process };
        let (blocks, waiting): (Vec<_>, Vec<_>) =
            queue.into_iter().map(|append| (append.blocks, append.done)).unzip();
        let mut lengths: Vec<u64> = blocks.iter().map(|blocks| blocks.len() as u64).collect();
        let outcome = append_all(&inner, blocks.into_iter().flatten().collect(), survives).await;
        if let Ok(start) = outcome {
            let mut end = start;
            for length in &mut lengths {
                end += *length;
                *length = end;
            }
        }
        for (done, length) in waiting.into_iter().zip(lengths) {
            // Whoever asked may have gone; the blocks stay.
            let _ = done.send(outcome.clone().map(|_| length));
        }
    }
}

pub(super) fn are_few(blocks: &[Bytes]) -> bool {
    blocks.len() <= FEW_BLOCKS && blocks.iter().map(Bytes::len).sum::<usize>() <= FEW_BYTES
}

/// Appends and returns the length before.
async fn append_all(
    inner: &Arc<Inner>,
    blocks: Vec<Bytes>,
    survives: Survives,
) -> Result<u64, CoreError> {
    let _guard = inner.committing.lock().await;
    if let Some(start) = note(inner, &blocks, survives)? {
        return Ok(start);
    }
    // The pages that are stored with an append must not have bits of blocks that are not.
    commit_pending(inner, Survives::Process).await?;
    let (signed, commit) = {
        if are_few(&blocks) {
            signed_commit(inner, &blocks, survives)?
        } else {
            let inner = Arc::clone(inner);
            blocking(move || signed_commit(&inner, &blocks, survives)).await??
        }
    };
    let stored = inner.storage.commit(Arc::new(commit)).await;
    let mut state = lock(&inner.state);
    let start = state.roots.length;
    if let Err(error) = stored {
        // When only its sync failed, it is stored: blocks, nodes and bits that no later commit would
        // take away, and with which the log could not be opened again.
        state.pending.cut_to(start);
        return Err(error.into());
    }
    state.bits.insert_range(start, signed.roots.length);
    state.signature = Some(signed.signature);
    state.roots = Arc::new(signed.roots);
    inner.announce(&state);
    Ok(start)
}

/// Blocks that were hashed and signed as what comes next.
pub(super) struct Signed {
    pub(super) roots: Roots,
    pub(super) signature: Bytes,
    /// In order.
    pub(super) nodes: Vec<Node>,
    pub(super) fork: u64,
    /// The length before.
    pub(super) start: u64,
}

pub(super) fn sign(inner: &Inner, blocks: &[Bytes]) -> Result<Signed, CoreError> {
    let (fork, roots, manifest) = {
        let state = lock(&inner.state);
        let manifest = state.manifest.as_ref().ok_or(CoreError::NotWritable)?;
        (state.fork, Roots::clone(&state.roots), Arc::clone(&manifest.manifest))
    };
    let writer = inner.writer.as_ref().ok_or(CoreError::NotWritable)?;
    let start = roots.length;
    if manifest.prologue.is_some_and(|prologue| start < prologue.length) {
        return Err(CoreError::NotWritable);
    }
    if start + blocks.len() as u64 > MAX_LENGTH {
        return Err(CoreError::TooLong);
    }
    let mut batch = Batch::new(roots);
    batch.append_all(blocks).ok_or(CoreError::TooLong)?;
    let roots = batch.roots;
    let signature = Verifier::new(&inner.key, &manifest).sign(&roots, fork, writer);
    let signature = Bytes::from(signature.ok_or(CoreError::NotWritable)?);
    let mut nodes: Vec<_> = batch.found.iter().map(|found| found.node).collect();
    // Level by level they are in order, which this sort makes use of.
    nodes.sort_by_key(|node| node.index);
    Ok(Signed { roots, signature, nodes, fork, start })
}

fn signed_commit(
    inner: &Inner,
    blocks: &[Bytes],
    survives: Survives,
) -> Result<(Signed, Commit), CoreError> {
    let mut signed = sign(inner, blocks)?;
    let (mut header, pages) = {
        let state = lock(&inner.state);
        (state.header(&inner.key), state.bits.pages_with(signed.start, signed.roots.length))
    };
    header.length = signed.roots.length;
    header.byte_length = signed.roots.byte_length;
    header.signature = Some(signed.signature.clone());
    let commit = Commit {
        header: Some(header),
        truncate: None,
        nodes: Arc::new(std::mem::take(&mut signed.nodes)),
        blocks: (signed.start..).zip(blocks.iter().cloned()).collect(),
        removed_blocks: Vec::new(),
        pages,
        survives,
    };
    Ok((signed, commit))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{block, create, memory, pair, reader, written};
    use super::super::{CreateOptions, OpenOptions};
    use super::*;
    use crate::hypercore::flat_tree;
    use crate::hypercore::manifest::Manifest;
    use crate::hypercore::storage::{StorageError, StorageErrorKind};

    #[tokio::test]
    async fn what_is_appended_is_there_after_a_crash() {
        let storage = memory();
        let core = written(&storage, 30).await;
        assert_eq!(core.append(vec![block(30), block(31)]).await.unwrap(), 32);
        let options = OpenOptions { writer: Some(pair()), ..OpenOptions::default() };
        let again = Core::open(&storage.after_crash(), *core.key(), options).unwrap();
        assert_eq!(again.state(), core.state());
        assert_eq!(again.contiguous_length(), 32);
        assert_eq!(again.get(31).unwrap(), Some(block(31)));
        assert_eq!(again.tree_hash(), core.tree_hash());
        assert_eq!(again.append(vec![block(32)]).await.unwrap(), 33);
    }

    #[tokio::test]
    async fn an_append_that_is_not_synced_is_there_after_the_end_of_the_process() {
        let storage = memory();
        let core = written(&storage, 3).await;
        let appended = core.append_surviving(vec![block(3)], Survives::Process).await;
        assert_eq!(appended.unwrap(), 4);
        let again = reader(&storage.after_crash(), &core);
        assert_eq!(again.state(), core.state());
        assert_eq!(again.get(3).unwrap(), Some(block(3)));
    }

    #[tokio::test]
    async fn appends_that_wait_share_commits_and_each_learns_its_length() {
        let storage = memory();
        let core = written(&storage, 1).await;
        let before = storage.commits(core.discovery_key());
        let appends: Vec<_> = (0..50)
            .map(|i| {
                let core = core.clone();
                tokio::spawn(async move { core.append(vec![block(i); 2]).await.unwrap() })
            })
            .collect();
        let mut lengths = Vec::new();
        for append in appends {
            lengths.push(append.await.unwrap());
        }
        lengths.sort_unstable();
        assert_eq!(lengths, (0..50).map(|i| 3 + 2 * i).collect::<Vec<_>>());
        assert!(storage.commits(core.discovery_key()) - before < 10);
    }

    #[tokio::test]
    async fn an_append_that_cannot_be_stored_leaves_no_trace() {
        let storage = memory();
        let core = written(&storage, 3).await;
        let before = (core.state(), core.tree_hash());
        let full = StorageError::new(StorageErrorKind::Full, "no space");
        storage.fail_commits(Some(full));
        let failed = core.append(vec![block(3)]).await;
        assert!(matches!(failed, Err(CoreError::Storage(_))), "{failed:?}");
        assert_eq!((core.state(), core.tree_hash()), before);
        storage.fail_commits(None);
        assert_eq!(core.append(vec![block(3)]).await.unwrap(), 4);
    }

    #[tokio::test]
    async fn an_append_that_could_not_be_synced_leaves_no_bits_behind_the_end() {
        let few = |count| vec![Bytes::from_static(b"b"); count];
        let failure = || Some(StorageError::new(StorageErrorKind::Io, "no sync"));
        // What fails goes beyond a page of the bitfield; what comes then does not, or not as far.
        for (length, lost, next) in [(8_190, 300, 1), (8_190, 9_000, 2), (8_192, 300, 3), (0, 9, 2)]
        {
            let storage = memory();
            let core = create(&storage);
            core.append(few(length)).await.unwrap();
            storage.fail_syncs(failure());
            assert!(core.append(few(lost)).await.is_err());
            assert_eq!(core.state().blocks, length as u64);
            storage.fail_syncs(None);
            let expected = create(&memory());
            expected.append(few(length)).await.unwrap();
            expected.append(few(next)).await.unwrap();
            core.append(few(next)).await.unwrap();
            let options = OpenOptions { writer: Some(pair()), ..OpenOptions::default() };
            let again = Core::open(&storage.after_crash(), *core.key(), options).unwrap();
            for core in [&core, &again] {
                assert_eq!(
                    (core.state(), core.tree_hash()),
                    (expected.state(), expected.tree_hash())
                );
            }
            assert!(again.verify(None).await.unwrap().whole);
            let end = 2 * (length + lost) as u64;
            let behind = (0..end).filter(|node| !flat_tree::is_within(*node, core.length()));
            for node in behind.step_by(7) {
                assert_eq!(again.inner.storage.node(node).unwrap(), None, "node {node}");
            }
        }
    }

    #[tokio::test]
    async fn a_log_closed_after_an_append_that_could_not_be_synced_opens_as_it_was() {
        let storage = memory();
        let core = written(&storage, 3).await;
        let before = (core.state(), core.tree_hash());
        storage.fail_syncs(Some(StorageError::new(StorageErrorKind::Io, "no sync")));
        assert!(core.append(vec![block(3); 5]).await.is_err());
        storage.fail_syncs(None);
        core.close().await.unwrap();
        let again = reader(&storage, &core);
        assert_eq!((again.state(), again.tree_hash()), before);
    }

    #[tokio::test]
    async fn only_the_signer_appends() {
        let storage = memory();
        let core = written(&storage, 1).await;
        let copy = reader(&memory(), &core);
        assert!(!copy.writable());
        assert!(matches!(copy.append(vec![block(0)]).await, Err(CoreError::NotWritable)));
        let writer = Some(KeyPair::from_seed(&[4; 32]));
        let manifest = Manifest::single(pair().public_key());
        let options = CreateOptions { manifest, writer, compat: false };
        assert!(matches!(Core::create(&memory(), options), Err(CoreError::NotWritable)));
    }

    #[tokio::test]
    async fn a_core_has_one_owner_until_it_is_closed() {
        let storage = memory();
        let core = create(&storage);
        let open = || Core::open(&storage, *core.key(), OpenOptions::default());
        assert!(matches!(open(), Err(CoreError::AlreadyOpen)));
        core.append(vec![block(0)]).await.unwrap();
        core.close().await.unwrap();
        core.close().await.unwrap();
        assert!(matches!(core.append(vec![block(1)]).await, Err(CoreError::Closed)));
        assert!(matches!(core.get(0), Err(CoreError::Closed)));
        assert!(core.state().closed);
        assert_eq!(open().unwrap().length(), 1);
        let options = CreateOptions {
            manifest: Manifest::single(pair().public_key()),
            writer: Some(pair()),
            compat: false,
        };
        assert!(matches!(Core::create(&storage, options), Err(CoreError::Exists)));
    }

    use crate::crypto::KeyPair;
}
