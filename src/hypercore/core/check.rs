//! Reading everything again to see that it is whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use super::commit::blocking;
use super::state::Inner;
use super::{Core, FileAccess};
use crate::crypto::Hash;
use crate::hypercore::bitfield::PAGE_BITS;
use crate::hypercore::error::CoreError;
use crate::hypercore::messages::Node;
use crate::hypercore::static_core::Progress;
use crate::hypercore::tree::{Batch, Nodes, Roots};
use crate::hypercore::{flat_tree, node};
use crate::sync::lock;

/// How many nodes of a tree are put right at most: more than a disk damages, and little memory.
const MAX_WRONG: usize = 50_000;

/// What [`Core::verify`] has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// How many blocks are here and as the tree says.
    pub good: u64,
    /// The blocks that were not. They are forgotten, so that they can be fetched again.
    pub bad: Vec<u64>,
    /// All blocks are here, and the tree made of their bytes is the one that was signed.
    pub whole: bool,
    /// Nodes of the tree that are stored as something else than they must be, as they must be. They are
    /// stored anew. Only found when the blocks lead to the tree that was signed.
    pub nodes: Vec<Node>,
    /// What the tree says of the blocks that are bad is proven by what was signed, so that they can be
    /// fetched again.
    pub is_proven: bool,
    /// The fork that was read.
    fork: u64,
}

impl Core {
    /// Reads and hashes every block that is here, on a blocking thread.
    ///
    /// Blocks that are not what the tree says are forgotten, durably; then they may be fetched again.
    /// In a file that is only read nothing is forgotten. Nodes of the tree that are not what they must
    /// be are stored anew. Dropping the future ends the work soon.
    pub async fn verify(&self, progress: Option<Progress>) -> Result<Verified, CoreError> {
        let verified = self.check(progress).await?;
        self.mend_tree(&verified).await?;
        let read_only =
            self.inner.file.as_ref().is_some_and(|file| file.access() == FileAccess::Read);
        if !verified.bad.is_empty() && !read_only {
            self.forget(&verified.bad).await?;
        }
        Ok(verified)
    }

    /// As [`Core::verify`], but changes nothing. For a log that is written here, of which nobody else may
    /// have a copy.
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
        let (fork, roots) = self.locked(|state| (state.fork, Arc::clone(&state.roots)));
        // Where a block and its leaf differ, one is believed or the other: what was signed tells which is
        // right, as long as it is always the same.
        let (mut by_leaves, mut by_blocks) = (Rebuilt::default(), None::<Rebuilt>);
        let mut missing_leaf = None;
        let mut count = 0;
        let (mut done, mut told) = (0u64, 0u64);
        let mut at = 0;
        // What is appended meanwhile is not looked at.
        let next = |at| self.locked(|s| s.bits.next_present(at)).filter(|at| *at < roots.length);
        while let Some(index) = next(at) {
            if cancelled.load(Ordering::Relaxed) {
                return Err(CoreError::Cancelled);
            }
            at = index + 1;
            let Some(Found { block, leaf }) = self.steady(|| self.as_stored(index))? else {
                continue;
            };
            count += 1;
            done += block.map_or(0, |block| block.size);
            if leaf.is_none() {
                missing_leaf.get_or_insert(2 * index);
            }
            // With the hash, the size is proven.
            let leaf = if hash_of(block) == hash_of(leaf) { block } else { leaf };
            if block.is_none() || block != leaf {
                by_blocks.get_or_insert_with(|| by_leaves.clone());
            }
            by_leaves.add(index, leaf.or(block), block, &self.inner)?;
            if let Some(by_blocks) = &mut by_blocks {
                by_blocks.add(index, block.or(leaf), block, &self.inner)?;
            }
            if let Some(progress) = progress
                && (done - told >= 1 << 20 || done == roots.byte_length)
            {
                told = done;
                progress(done, roots.byte_length);
            }
        }
        let (leads, found) = match by_blocks.filter(|by_blocks| by_blocks.leads_to(&roots)) {
            Some(by_blocks) => (true, by_blocks),
            None => (by_leaves.leads_to(&roots), by_leaves),
        };
        if let (false, Some(node)) = (leads, missing_leaf) {
            return Err(CoreError::MissingNode(node));
        }
        let mut is_proven = leads;
        if !leads {
            is_proven = true;
            for index in &found.bad {
                is_proven &= self.is_leaf_proven(*index, &roots)?;
            }
        }
        Ok(Verified {
            good: count - found.bad.len() as u64,
            whole: leads && found.bad.is_empty(),
            nodes: if leads { found.wrong } else { Vec::new() },
            bad: found.bad,
            is_proven,
            fork,
        })
    }

    /// What is stored of a block that is here.
    fn as_stored(&self, index: u64) -> Result<Option<Found>, CoreError> {
        let computed = |block: Bytes| node::leaf(index, &block);
        Ok(match self.unchecked(index) {
            Ok(None) => None,
            Ok(Some((block, leaf))) => {
                let block = computed(block);
                Some(Found { block: Some(block), leaf: leaf.or(Some(block)) })
            }
            Err(CoreError::MissingNode(_)) if self.inner.file.is_none() => {
                Some(Found { block: self.inner.storage.block(index)?.map(computed), leaf: None })
            }
            Err(CoreError::MissingBlock(_) | CoreError::FileChanged) => {
                Some(Found { block: None, leaf: self.inner.node(2 * index)? })
            }
            Err(error) => return Err(error),
        })
    }

    /// Whether the leaf of a block, and all nodes above it, lead to a root.
    fn is_leaf_proven(&self, index: u64, roots: &Roots) -> Result<bool, CoreError> {
        let Some(mut at) = self.inner.node(2 * index)? else { return Ok(false) };
        loop {
            if let Some(root) = roots.nodes.iter().find(|root| root.index == at.index) {
                return Ok(*root == at);
            }
            let above = flat_tree::parent(at.index);
            let Some(sibling) = self.inner.node(flat_tree::sibling(at.index))? else {
                return Ok(false);
            };
            let (left, right) =
                if sibling.index < at.index { (sibling, at) } else { (at, sibling) };
            let parent = node::parent(above, &left, &right);
            if parent.is_none() || self.inner.node(above)? != parent {
                return Ok(false);
            }
            at = parent.ok_or(CoreError::TooLong)?;
        }
    }

    /// Stores nodes of the tree anew, as [`Core::check`] found that they must be, unless the log is another
    /// fork by now.
    pub async fn mend_tree(&self, found: &Verified) -> Result<(), CoreError> {
        if found.nodes.is_empty() {
            return Ok(());
        }
        {
            let mut state = lock(&self.inner.state);
            state.check()?;
            if state.fork != found.fork {
                return Ok(());
            }
            found.nodes.iter().for_each(|node| state.pending.put_node(*node));
        }
        self.flush().await
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

/// What is stored of a block.
struct Found {
    /// The leaf that its bytes make, if they can be read.
    block: Option<Node>,
    /// Its leaf, if one is stored.
    leaf: Option<Node>,
}

/// A tree made anew, as far as its leaves come one after the other.
#[derive(Clone)]
struct Rebuilt {
    tree: Batch,
    /// Blocks that do not have the leaf that was believed.
    bad: Vec<u64>,
    /// Nodes that are stored as something else.
    wrong: Vec<Node>,
}

impl Default for Rebuilt {
    fn default() -> Self {
        Self { tree: Batch::new(Roots::default()), bad: Vec::new(), wrong: Vec::new() }
    }
}

impl Rebuilt {
    /// Adds a leaf, if one is known, for a block.
    fn add(
        &mut self,
        index: u64,
        leaf: Option<Node>,
        block: Option<Node>,
        stored: &Inner,
    ) -> Result<(), CoreError> {
        if block.is_none() || hash_of(block) != hash_of(leaf) {
            self.bad.push(index);
        }
        let Some(leaf) = leaf.filter(|_| index == self.tree.roots.length) else { return Ok(()) };
        self.tree.append_root(leaf).ok_or(CoreError::TooLong)?;
        for found in self.tree.found.drain(..) {
            if stored.node(found.node.index)? != Some(found.node) && self.wrong.len() < MAX_WRONG {
                self.wrong.push(found.node);
            }
        }
        Ok(())
    }

    fn leads_to(&self, roots: &Roots) -> bool {
        let tree = &self.tree.roots;
        tree.length == roots.length
            && tree.byte_length == roots.byte_length
            && tree.hash() == roots.hash()
            && self.wrong.len() < MAX_WRONG
    }
}

fn hash_of(node: Option<Node>) -> Option<Hash> {
    node.map(|node| node.hash)
}

/// Tells a blocking thread that nobody waits for it any more.
#[derive(Default)]
pub(in crate::hypercore) struct CancelOnDrop(pub(in crate::hypercore) Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{
        block, download, memory, proof, reader, request, upgrade, written,
    };
    use super::*;
    use crate::hypercore::memory::Damage;

    #[tokio::test]
    async fn a_damaged_node_anywhere_is_made_anew_from_the_blocks() {
        let storage = memory();
        let core = written(&storage, 13).await;
        let key = *core.discovery_key();
        for index in (0..26).filter(|index| flat_tree::is_within(*index, 13)) {
            let before = core.inner.storage.node(index).unwrap();
            let damages =
                [Damage::ChangeNode(index), Damage::ChangeSize(index), Damage::RemoveNode(index)];
            for damage in damages {
                storage.damage(&key, damage);
                let checked = core.check(None).await.unwrap();
                assert_eq!((checked.bad.len(), checked.nodes.len()), (0, 1), "node {index}");
                assert!(checked.whole && checked.is_proven);
                assert_ne!(core.inner.storage.node(index).unwrap(), before);
                core.mend_tree(&checked).await.unwrap();
                assert_eq!(core.inner.storage.node(index).unwrap(), before);
            }
        }
        assert!(core.verify(None).await.unwrap().nodes.is_empty());
    }

    #[tokio::test]
    async fn damaged_blocks_and_damaged_nodes_are_told_apart() {
        let storage = memory();
        let core = written(&storage, 13).await;
        let key = *core.discovery_key();
        storage.damage(&key, Damage::ChangeBlock(3, b"other".as_slice().into()));
        storage.damage(&key, Damage::RemoveBlock(12));
        for node in [3, 5, 16] {
            storage.damage(&key, Damage::ChangeSize(node));
        }
        let checked = core.check(None).await.unwrap();
        assert_eq!((checked.good, &checked.bad[..]), (11, &[3, 12][..]));
        assert_eq!((checked.nodes.len(), checked.whole, checked.is_proven), (3, false, true));
    }

    #[tokio::test]
    async fn a_block_and_its_leaf_that_are_both_damaged_are_not_proven() {
        let storage = memory();
        let core = written(&storage, 13).await;
        let key = *core.discovery_key();
        storage.damage(&key, Damage::ChangeBlock(3, b"other".as_slice().into()));
        assert!(core.check(None).await.unwrap().is_proven);
        storage.damage(&key, Damage::ChangeNode(6));
        let checked = core.check(None).await.unwrap();
        assert_eq!((&checked.bad[..], checked.nodes.len()), (&[3][..], 0));
        assert!(!checked.whole && !checked.is_proven);
    }

    #[tokio::test]
    async fn in_a_part_of_a_log_each_damaged_block_is_proven_by_itself() {
        let source = written(&memory(), 30).await;
        let storage = memory();
        let copy = reader(&storage, &source);
        copy.apply(&proof(&source, &upgrade(0, 30))).unwrap();
        for index in [4, 5, 20] {
            copy.apply(&proof(&source, &request(&copy, index))).unwrap();
        }
        copy.flush().await.unwrap();
        let key = *copy.discovery_key();
        storage.damage(&key, Damage::RemoveBlock(5));
        let checked = copy.check(None).await.unwrap();
        assert_eq!((checked.good, &checked.bad[..], checked.is_proven), (2, &[5][..], true));
        storage.damage(&key, Damage::ChangeNode(11));
        assert!(!copy.check(None).await.unwrap().is_proven);
    }

    #[tokio::test]
    async fn what_is_appended_during_a_check_is_not_missing() {
        let core = written(&memory(), 1).await;
        core.append(vec![vec![7; 1 << 20].into(); 3]).await.unwrap();
        let (appending, runtime) = (core.clone(), tokio::runtime::Handle::current());
        let append: Progress = Arc::new(move |_, _| {
            runtime.block_on(appending.append(vec![block(1)])).unwrap();
        });
        let checked = core.check(Some(append)).await.unwrap();
        assert!(checked.whole && checked.good == 4 && core.length() > 4, "{checked:?}");
        let copy = reader(&memory(), &core);
        download(&copy, &core);
        assert!(copy.verify(None).await.unwrap().whole);
    }
}
