//! Following a log to a new fork: what its writer has cut and perhaps written differently.
//!
//! The reference is `ReorgBatch` in npm `hypercore/lib/merkle-tree.js`. A signature over the whole new
//! tree comes first. Then the first node that differs is followed down, one path of hashes after the
//! other, until it is clear which blocks both forks have in common; the others are forgotten, in the
//! commit that stores the new tree.

use std::collections::HashMap;

use bytes::Bytes;

use super::Core;
use super::commit::GROUP_BYTES;
use super::state::{Inner, Known};
use crate::hypercore::error::{ApplyError, CoreError};
use crate::hypercore::flat_tree;
use crate::hypercore::messages::{Data, DataUpgrade, Node};
use crate::hypercore::storage::MAX_LENGTH;
use crate::hypercore::tree::{Batch, Found, Nodes, Roots};
use crate::hypercore::verifier::Verifier;
use crate::hypercore::verify::below;
use crate::sync::lock;

/// A new fork whose signature is good, on the way to being taken over.
#[derive(Debug)]
pub(in crate::hypercore) struct Reorg {
    fork: u64,
    roots: Roots,
    signature: Bytes,
    manifest: Option<Known>,
    found: HashMap<u64, Found>,
    /// The first node of the new tree that is not known to be the old tree's; everything before it is.
    differs: Option<Node>,
    /// The fork and length that is left.
    base: (u64, u64),
}

/// Which path of the new tree leads further: from a leaf to the node so many levels above it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::hypercore) struct Path {
    /// The blocks whose leaves will do: this one, and those up to one before `end`.
    pub(in crate::hypercore) start: u64,
    /// One past the last block.
    pub(in crate::hypercore) end: u64,
    /// The levels.
    pub(in crate::hypercore) levels: u64,
}

impl Reorg {
    /// The fork that the log is to become.
    pub(in crate::hypercore) fn fork(&self) -> u64 {
        self.fork
    }

    /// What is still to be asked for, or `None` when it can be taken over.
    pub(in crate::hypercore) fn path(&self) -> Option<Path> {
        let top = self.differs.filter(|node| node.index & 1 == 1)?.index;
        let (start, end) = (flat_tree::left_span(top) / 2, flat_tree::length_through(top));
        let end = end.min(self.base.1);
        (start < end).then(|| Path { start, end, levels: flat_tree::depth(top).into() })
    }

    /// How many blocks both forks are known to have in common.
    fn common(&self) -> u64 {
        let before = self.differs.map(|node| flat_tree::left_span(node.index) / 2);
        before.unwrap_or(self.roots.length).min(self.base.1)
    }

    fn keep(&mut self, found: &[Found]) {
        for found in found {
            let known = self.found.entry(found.node.index).or_insert(*found);
            if found.sized {
                *known = *found;
            }
        }
    }

    /// Goes down from the node that differs as far as its children are known.
    fn descend(&mut self, old: &Inner) -> Result<(), CoreError> {
        while let Some(node) = self.differs
            && let Some((left, right)) = flat_tree::children(node.index)
            && let (Some(left), Some(right)) = (self.found.get(&left), self.found.get(&right))
        {
            let known = old.node(left.node.index)?;
            let is_same = known.is_some_and(|known| known.hash == left.node.hash);
            self.differs = Some(if is_same { right.node } else { left.node });
        }
        Ok(())
    }
}

impl Core {
    /// Checks a signed upgrade from nothing that is about a later fork than this core's.
    ///
    /// Nothing changes before [`Core::finish_reorg`]. Where the log is written, a good signature is
    /// [`ApplyError::WrittenElsewhere`].
    pub(in crate::hypercore) fn start_reorg(&self, data: &Data) -> Result<Reorg, ApplyError> {
        let inner = &*self.inner;
        let (fork, length, known) = self.locked(|state| {
            state.check()?;
            Ok::<_, CoreError>((state.fork, state.roots.length, state.manifest.clone()))
        })?;
        let other_fork = ApplyError::Fork { ours: fork, theirs: data.fork };
        if data.fork <= fork || inner.file.is_some() {
            return Err(other_fork);
        }
        let Some(upgrade) = data.upgrade.as_ref().filter(|upgrade| upgrade.start == 0) else {
            return Err(ApplyError::Malformed("a fork without all of its tree"));
        };
        let manifest = self.check_manifest(data, known.as_ref(), true)?;
        let known = manifest.as_ref().or(known.as_ref()).ok_or(ApplyError::Manifest)?;
        let (batch, signature) = self.signed_tree(data.fork, upgrade, known)?;
        let prologue = known.manifest.prologue;
        if prologue.is_some_and(|prologue| batch.roots.length <= prologue.length) {
            // Nobody has signed for the number of this fork.
            return Err(other_fork);
        }
        if batch.roots.length > MAX_LENGTH {
            return Err(CoreError::TooLong.into());
        }
        if inner.writer.is_some() {
            return Err(ApplyError::WrittenElsewhere { length: batch.roots.length });
        }
        let mut differs = None;
        for root in &batch.roots.nodes {
            let known = inner.node(root.index)?;
            if known.is_none_or(|known| known.hash != root.hash) {
                differs = Some(*root);
                break;
            }
        }
        let Batch { roots, found, .. } = batch;
        let mut reorg = Reorg {
            fork: data.fork,
            roots,
            signature,
            manifest,
            found: HashMap::new(),
            differs,
            base: (fork, length),
        };
        reorg.keep(&found);
        reorg.descend(inner)?;
        Ok(reorg)
    }

    /// The tree of an upgrade from nothing whose signature is good.
    fn signed_tree(
        &self,
        fork: u64,
        upgrade: &DataUpgrade,
        known: &Known,
    ) -> Result<(Batch, Bytes), ApplyError> {
        let mut batch = Batch::new(Roots::default());
        batch.upgrade(upgrade, known.manifest.prologue.as_ref(), None)?;
        let signature = upgrade.signature.clone().unwrap_or_default();
        let verifier = Verifier::new(&self.inner.key, &known.manifest);
        if !verifier.verify(&batch, fork, upgrade.signature.as_deref()) {
            return Err(ApplyError::Signature);
        }
        Ok((batch, signature))
    }

    /// Takes in the path that [`Reorg::path`] asked for.
    pub(in crate::hypercore) fn continue_reorg(
        &self,
        reorg: &mut Reorg,
        data: &Data,
    ) -> Result<(), ApplyError> {
        let Some(top) = reorg.differs else { return Ok(()) };
        if data.fork != reorg.fork {
            return Err(ApplyError::Fork { ours: reorg.fork, theirs: data.fork });
        }
        let mut found = Vec::new();
        let root = below(data, None, &mut found)?.ok_or(ApplyError::Malformed("no path"))?;
        if root.index != top.index {
            return Err(ApplyError::Malformed("a path to another node"));
        }
        if root.hash != top.hash {
            return Err(ApplyError::Checksum(root.index));
        }
        reorg.keep(&found);
        Ok(reorg.descend(&self.inner)?)
    }

    /// Becomes the new fork: at once for readers, on disk as with [`Core::apply`], all of it or nothing.
    /// Returns whether peers have to wait for [`Core::room`].
    ///
    /// Fails with [`ApplyError::Stale`] when the core is not what it was when the reorg was started.
    pub(in crate::hypercore) fn finish_reorg(&self, reorg: Reorg) -> Result<bool, ApplyError> {
        let inner = &*self.inner;
        let _upgrading = lock(&inner.upgrading);
        let common = reorg.common();
        let mut nodes = Vec::with_capacity(reorg.found.len());
        for found in reorg.found.values() {
            let is_cut = !flat_tree::is_within(found.node.index, common);
            if is_cut || found.sized || inner.node(found.node.index)?.is_none() {
                nodes.push(found.node);
            }
        }
        let mut state = lock(&inner.state);
        state.check()?;
        if let Some(failure) = &state.failure {
            return Err(failure.clone().into());
        }
        if (state.fork, state.roots.length) != reorg.base {
            return Err(ApplyError::Stale);
        }
        state.fork_to(reorg.fork, reorg.roots, reorg.signature, common);
        if let Some(manifest) = reorg.manifest {
            state.manifest.get_or_insert(manifest);
        }
        let pending = &mut state.pending;
        pending.truncate = Some(pending.truncate.map_or(common, |before| before.min(common)));
        pending.header = true;
        nodes.into_iter().for_each(|node| pending.put_node(node));
        let full = state.pending.bytes >= GROUP_BYTES;
        inner.announce(&state);
        self.schedule(&mut state);
        drop(state);
        Ok(full)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{
        block, download, memory, pair, proof, reader, request, upgrade, written,
    };
    use super::super::{CreateOptions, OpenOptions};
    use super::*;
    use crate::hypercore::manifest::Manifest;
    use crate::hypercore::memory::MemoryStorage;
    use crate::hypercore::messages::{Request, RequestNode};
    use crate::hypercore::storage::{StorageError, StorageErrorKind};

    fn tree_of(source: &Core) -> Data {
        let fork = source.fork();
        proof(source, &Request { fork, ..upgrade(0, source.length()) })
    }

    /// Follows `source` to its fork; how many paths it took.
    fn follow(copy: &Core, source: &Core) -> Result<u64, ApplyError> {
        let mut reorg = copy.start_reorg(&tree_of(source))?;
        let mut paths = 0;
        while let Some(Path { end, levels, .. }) = reorg.path() {
            let hash = Some(RequestNode { index: 2 * (end - 1), nodes: levels });
            let asked = Request { id: 1, fork: source.fork(), hash, ..Request::default() };
            copy.continue_reorg(&mut reorg, &proof(source, &asked))?;
            paths += 1;
        }
        copy.finish_reorg(reorg)?;
        Ok(paths)
    }

    /// Cuts a log and writes `more` other blocks.
    async fn fork(source: &Core, cut: u64, more: u64) {
        source.truncate(cut, None).await.unwrap();
        source.append((0..more).map(|i| block(500 + i)).collect()).await.unwrap();
    }

    fn again(storage: &MemoryStorage, core: &Core) -> Core {
        Core::open(&storage.after_crash(), *core.key(), OpenOptions::default()).unwrap()
    }

    #[tokio::test]
    async fn a_reader_keeps_what_both_forks_have_and_gets_the_rest_anew() {
        for length in [1, 2, 5, 8, 16, 23] {
            for cut in 0..=length {
                for more in [0, 1, 2, 9, 17] {
                    let source = written(&memory(), length).await;
                    let storage = memory();
                    let copy = reader(&storage, &source);
                    download(&copy, &source);
                    if more & 1 == 0 {
                        copy.flush().await.unwrap();
                    }
                    fork(&source, cut, more).await;
                    if source.length() == 0 {
                        continue;
                    }
                    let paths = follow(&copy, &source).unwrap();
                    assert!(paths < 6, "{paths} paths for {length} blocks");
                    assert_eq!(copy.contiguous_length(), cut, "{length} {cut} {more}");
                    assert_eq!(copy.tree_hash(), source.tree_hash());
                    download(&copy, &source);
                    assert_eq!(copy.state(), source.state());
                    copy.flush().await.unwrap();
                    let again = again(&storage, &copy);
                    assert_eq!(again.state(), source.state());
                    for index in 0..source.length() {
                        assert_eq!(copy.get(index).unwrap(), source.get(index).unwrap());
                        assert_eq!(again.get(index).unwrap(), source.get(index).unwrap());
                    }
                    let all = again.range(0..99, usize::MAX).unwrap();
                    assert_eq!(all, source.range(0..99, usize::MAX).unwrap());
                }
            }
        }
    }

    #[tokio::test]
    async fn a_reader_that_has_nothing_or_a_part_follows_too() {
        let source = written(&memory(), 40).await;
        let (empty, known, part) =
            (reader(&memory(), &source), reader(&memory(), &source), reader(&memory(), &source));
        for copy in [&known, &part] {
            copy.apply(&proof(&source, &upgrade(0, 40))).unwrap();
        }
        for index in [3, 17, 29, 30, 38] {
            part.apply(&proof(&source, &request(&part, index))).unwrap();
        }
        fork(&source, 30, 11).await;
        for copy in [&empty, &known, &part] {
            follow(copy, &source).unwrap();
        }
        assert!(part.has(3) && part.has(17) && part.has(29) && !part.has(30));
        for copy in [&empty, &known, &part] {
            download(copy, &source);
            assert_eq!(copy.state(), source.state());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn forks_on_forks_are_followed_with_nothing_on_disk_between() {
        let source = written(&memory(), 60).await;
        let storage = memory();
        let copy = reader(&storage, &source);
        download(&copy, &source);
        copy.flush().await.unwrap();
        for (cut, more) in [(50, 20), (55, 1), (30, 9), (39, 2), (12, 40)] {
            fork(&source, cut, more).await;
            follow(&copy, &source).unwrap();
            assert_eq!(copy.contiguous_length(), cut);
            download(&copy, &source);
            let all = copy.range(0..99, usize::MAX).unwrap();
            assert_eq!(all, source.range(0..99, usize::MAX).unwrap());
        }
        assert_eq!(again(&storage, &copy).fork(), 0, "one commit has all of it");
        copy.flush().await.unwrap();
        assert_eq!(again(&storage, &copy).state(), source.state());
        assert!(again(&storage, &copy).verify(None).await.unwrap().whole);
    }

    #[tokio::test]
    async fn a_fork_that_cannot_be_stored_is_stored_later() {
        let source = written(&memory(), 20).await;
        let storage = memory();
        let copy = reader(&storage, &source);
        download(&copy, &source);
        copy.flush().await.unwrap();
        fork(&source, 12, 3).await;
        follow(&copy, &source).unwrap();
        download(&copy, &source);
        storage.fail_commits(Some(StorageError::new(StorageErrorKind::Full, "full")));
        assert!(copy.flush().await.is_err());
        assert_eq!(copy.get(13).unwrap(), source.get(13).unwrap());
        assert_eq!(again(&storage, &copy).fork(), 0);
        storage.fail_commits(None);
        copy.flush().await.unwrap();
        assert_eq!(again(&storage, &copy).state(), source.state());
    }

    #[tokio::test]
    async fn a_fork_that_nobody_signed_changes_nothing() {
        let source = written(&memory(), 20).await;
        let copy = reader(&memory(), &source);
        download(&copy, &source);
        let before = (copy.state(), copy.tree_hash());
        let good = tree_of(&source);
        for fork in [1, 2, (1 << 53) - 1] {
            let forged = Data { fork, ..good.clone() };
            let refused = copy.start_reorg(&forged).unwrap_err();
            assert!(matches!(refused, ApplyError::Signature), "{refused}");
        }
        let same = copy.start_reorg(&good).unwrap_err();
        assert!(matches!(same, ApplyError::Fork { .. }) && !same.is_violation());
        fork(&source, 12, 3).await;
        let mut flipped = tree_of(&source);
        flipped.upgrade.as_mut().unwrap().nodes[0].hash[3] ^= 1;
        assert!(copy.start_reorg(&flipped).unwrap_err().is_violation());
        let mut reorg = copy.start_reorg(&tree_of(&source)).unwrap();
        let Path { start, levels, .. } = reorg.path().unwrap();
        let hash = Some(RequestNode { index: 2 * start, nodes: levels });
        let asked = Request { id: 1, fork: 1, hash, ..Request::default() };
        let mut path = proof(&source, &asked);
        path.hash.as_mut().unwrap().nodes[1].size ^= 1;
        assert!(copy.continue_reorg(&mut reorg, &path).unwrap_err().is_violation());
        assert_eq!((copy.state(), copy.tree_hash()), before);
    }

    #[tokio::test]
    async fn the_fork_of_a_static_core_is_signed_by_nobody_and_refused() {
        let source = written(&memory(), 6).await;
        let manifest = Manifest::fixed(source.tree_hash(), 6);
        let key = manifest.key();
        let copy = Core::open(&memory(), key, OpenOptions::default()).unwrap();
        let mut data = Data { manifest: Some(manifest.encode().into()), ..tree_of(&source) };
        data.upgrade.as_mut().unwrap().signature = None;
        let refused = copy.start_reorg(&Data { fork: 7, ..data.clone() }).unwrap_err();
        assert!(matches!(refused, ApplyError::Fork { .. }), "{refused}");
        assert_eq!(copy.apply(&data).unwrap().upgraded, Some(6));
    }

    #[tokio::test]
    async fn a_later_fork_of_a_log_that_is_written_here_was_written_elsewhere() {
        let source = written(&memory(), 9).await;
        let storage = memory();
        let options = CreateOptions {
            manifest: Manifest::single(pair().public_key()),
            writer: Some(pair()),
            compat: false,
        };
        let twin = Core::create(&storage, options).unwrap();
        twin.append(vec![block(0); 4]).await.unwrap();
        fork(&source, 5, 1).await;
        let refused = twin.start_reorg(&tree_of(&source)).unwrap_err();
        assert!(matches!(refused, ApplyError::WrittenElsewhere { length: 6 }), "{refused}");
        assert_eq!((twin.fork(), twin.length()), (0, 4));
    }
}
