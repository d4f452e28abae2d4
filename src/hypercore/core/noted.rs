//! Appends that are noted now and committed a little later, many at once.
//!
//! A note is the blocks and the signature: all else of an append follows from them. It is written by whoever
//! appends, without waiting for anybody, and stands for the append until the next commit. What a crash left
//! of notes is appended anew when the core is opened. The signature proves each: one that was damaged, or is
//! from an earlier time, is none.

use std::sync::Arc;

use bytes::Bytes;

use super::Core;
use super::append::{Signed, are_few, sign};
use super::state::{Inner, State};
use crate::crypto::Hash;
use crate::hypercore::bitfield::PAGE_BITS;
use crate::hypercore::error::CoreError;
use crate::hypercore::storage::{CoreStorage, MAX_BLOCK_BYTES, MAX_LENGTH, Note, Survives};
use crate::hypercore::tree::{Batch, Roots};
use crate::hypercore::verifier::Verifier;
use crate::sync::lock;

impl Core {
    /// Appends with a note when nobody else is at it, and returns the length before.
    pub(super) fn note(
        &self,
        blocks: &[Bytes],
        survives: Survives,
    ) -> Result<Option<u64>, CoreError> {
        let Ok(_guard) = self.inner.committing.try_lock() else { return Ok(None) };
        // Those that wait came first.
        if lock(&self.inner.appends).is_worked_on() {
            return Ok(None);
        }
        note(&self.inner, blocks, survives)
    }
}

/// Appends with a note and returns the length before, or nothing when a commit is needed.
/// `inner.committing` must be held.
pub(super) fn note(
    inner: &Arc<Inner>,
    blocks: &[Bytes],
    survives: Survives,
) -> Result<Option<u64>, CoreError> {
    if survives == Survives::Power || !are_few(blocks) {
        return Ok(None);
    }
    if !inner.storage.takes_notes() || !lock(&inner.state).takes_notes() {
        return Ok(None);
    }
    let signed = sign(inner, blocks)?;
    let note = Note {
        fork: signed.fork,
        start: signed.start,
        signature: signed.signature.clone(),
        blocks: blocks.to_vec(),
    };
    if !inner.storage.note(&note) {
        return Ok(None);
    }
    let mut state = lock(&inner.state);
    let start = signed.start;
    state.append_noted(signed, note.blocks);
    inner.announce(&state);
    Core { inner: Arc::clone(inner) }.schedule(&mut state);
    Ok(Some(start))
}

impl State {
    /// Whether a note can be added to what the storage has. The first append of a log is committed: it has
    /// no place before.
    fn takes_notes(&self) -> bool {
        let length = self.roots.length;
        length > 0 && self.failure.is_none() && self.pending.is_noted(length)
    }

    fn append_noted(&mut self, signed: Signed, blocks: Vec<Bytes>) {
        let end = signed.roots.length;
        signed.nodes.into_iter().for_each(|node| self.pending.put_node(node));
        for (index, block) in (signed.start..).zip(blocks) {
            self.pending.put_block(index, block);
            self.pending.pages.insert(index / PAGE_BITS);
        }
        self.pending.header = true;
        self.pending.noted = Some(end);
        self.bits.insert_range(signed.start, end);
        self.signature = Some(signed.signature);
        self.roots = Arc::new(signed.roots);
    }

    /// Appends what was noted and not committed.
    pub(super) fn append_notes(
        &mut self,
        place: &dyn CoreStorage,
        key: &Hash,
    ) -> Result<(), CoreError> {
        let Some(manifest) = self.manifest.as_ref().map(|known| Arc::clone(&known.manifest)) else {
            return Ok(());
        };
        let mut appended = 0_u64;
        let notes = place.notes()?;
        // The next commit, soon, has them forgotten.
        self.pending.header |= !notes.is_empty();
        for note in notes {
            if note.fork != self.fork || note.start != self.roots.length {
                continue;
            }
            let is_allowed = note.end() <= MAX_LENGTH
                && note.blocks.iter().all(|block| block.len() <= MAX_BLOCK_BYTES);
            let mut batch = Batch::new(Roots::clone(&self.roots));
            if !is_allowed || batch.append_all(&note.blocks).is_none() {
                break;
            }
            let signature = Some(&note.signature[..]);
            if !Verifier::new(key, &manifest).verify(&batch, note.fork, signature) {
                break;
            }
            appended += note.blocks.len() as u64;
            let nodes = batch.found.iter().map(|found| found.node).collect();
            let Note { fork, start, signature, blocks } = note;
            self.append_noted(Signed { roots: batch.roots, signature, nodes, fork, start }, blocks);
        }
        if appended > 0 {
            tracing::info!(
                appended,
                "blocks that were noted before the end of the process were appended"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{block, create, download, memory, pair, reader, written};
    use super::super::{Core, OpenOptions};
    use crate::hypercore::memory::MemoryStorage;
    use crate::hypercore::storage::{StorageError, StorageErrorKind, Survives};

    async fn noted(core: &Core, index: u64) {
        let appended = core.append_surviving(vec![block(index)], Survives::Process).await;
        assert_eq!(appended.unwrap(), index + 1);
    }

    fn again(storage: &MemoryStorage, core: &Core) -> Core {
        let options = OpenOptions { writer: Some(pair()), ..OpenOptions::default() };
        Core::open(storage, *core.key(), options).unwrap()
    }

    /// The two are the same log, with the same blocks.
    async fn assert_same(core: &Core, expected: &Core) {
        assert_eq!((core.state(), core.tree_hash()), (expected.state(), expected.tree_hash()));
        for index in 0..expected.length() {
            assert_eq!(core.get(index).unwrap(), expected.get(index).unwrap());
        }
        assert!(core.verify(None).await.unwrap().whole);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_noted_is_read_proven_and_there_after_a_crash_without_a_commit() {
        let storage = memory();
        let core = written(&storage, 3).await;
        let commits = storage.commits(core.discovery_key());
        for index in 3..40 {
            noted(&core, index).await;
        }
        assert_eq!(storage.commits(core.discovery_key()), commits);
        let crashed = storage.after_crash();
        assert_same(&again(&crashed, &core), &written(&memory(), 40).await).await;
        let copy = reader(&memory(), &core);
        download(&copy, &core);
        assert_same(&copy, &core).await;
    }

    #[tokio::test]
    async fn a_log_goes_on_from_what_was_noted_before_a_crash() {
        let storage = memory();
        let core = written(&storage, 3).await;
        let mut expected = 3;
        let mut crashed = storage.after_crash();
        for round in 0..5 {
            let open = again(&crashed, &core);
            for _ in 0..3 {
                noted(&open, expected).await;
                expected += 1;
            }
            match round {
                1 => open.flush().await.unwrap(),
                2 => {
                    open.append(vec![block(expected)]).await.unwrap();
                    expected += 1;
                }
                3 => {
                    open.truncate(expected - 2, None).await.unwrap();
                    expected -= 2;
                }
                _ => {}
            }
            crashed = crashed.after_crash();
            assert_eq!(again(&crashed.after_crash(), &core).length(), expected, "round {round}");
        }
        let open = again(&crashed, &core);
        for index in 0..expected {
            assert_eq!(open.get(index).unwrap(), Some(block(index)));
        }
        assert!(open.verify(None).await.unwrap().whole);
    }

    #[tokio::test]
    async fn notes_that_were_not_written_like_that_lead_nowhere() {
        let storage = memory();
        let core = written(&storage, 3).await;
        for index in 3..6 {
            noted(&core, index).await;
        }
        for damaged in 0..3 {
            let crashed = storage.after_crash();
            let place = crashed.notes_of(core.discovery_key(), |notes| match damaged {
                0 => notes[1].blocks[0] = block(7),
                1 => notes[1].signature = notes[0].signature.clone(),
                _ => notes.remove(1).blocks.clear(),
            });
            assert!(place, "it has notes");
            let open = again(&crashed, &core);
            assert_same(&open, &written(&memory(), 4).await).await;
            // They are forgotten, and do not stand in the way.
            open.flush().await.unwrap();
            noted(&open, 4).await;
            assert_eq!(again(&crashed.after_crash(), &core).length(), 5);
        }
    }

    #[tokio::test]
    async fn while_commits_fail_appends_fail_and_what_was_noted_before_stays() {
        let storage = memory();
        let core = written(&storage, 3).await;
        noted(&core, 3).await;
        storage.fail_commits(Some(StorageError::new(StorageErrorKind::Full, "no space")));
        assert!(core.flush().await.is_err());
        assert!(core.append_surviving(vec![block(4)], Survives::Process).await.is_err());
        assert_eq!(again(&storage.after_crash(), &core).length(), 4);
        storage.fail_commits(None);
        core.flush().await.unwrap();
        noted(&core, 4).await;
        assert_eq!(again(&storage.after_crash(), &core).length(), 5);
        assert_same(&core, &written(&memory(), 5).await).await;
    }

    #[tokio::test]
    async fn appends_of_many_at_once_are_each_noted_or_committed() {
        let storage = memory();
        let core = written(&storage, 1).await;
        let appends: Vec<_> = (0..200)
            .map(|index| {
                let core = core.clone();
                let survives = if index % 7 == 0 { Survives::Power } else { Survives::Process };
                let append = async move { core.append_surviving(vec![block(9)], survives).await };
                tokio::spawn(append)
            })
            .collect();
        let mut lengths = Vec::new();
        for append in appends {
            lengths.push(append.await.unwrap().unwrap());
        }
        lengths.sort_unstable();
        assert_eq!(lengths, (2..=201).collect::<Vec<_>>());
        assert_eq!(again(&storage.after_crash(), &core).state(), core.state());
    }

    #[tokio::test]
    async fn the_first_append_of_a_log_is_committed() {
        let storage = memory();
        let core = create(&storage);
        noted(&core, 0).await;
        assert_eq!(storage.commits(core.discovery_key()), 1);
        assert_eq!(reader(&storage.after_crash(), &core).length(), 1);
    }
}
