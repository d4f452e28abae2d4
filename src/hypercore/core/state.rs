//! What a core holds in memory, and reads that see what is not on disk yet.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::{Notify, oneshot, watch};

use super::{Core, CoreChange};
use crate::crypto::{Hash, KeyPair};
use crate::hypercore::bitfield::{Bitfield, PAGE_BITS};
use crate::hypercore::block_file::BlockFile;
use crate::hypercore::error::CoreError;
use crate::hypercore::flat_tree;
use crate::hypercore::manifest::Manifest;
use crate::hypercore::messages::Node;
use crate::hypercore::storage::{CoreStorage, Header, Survives};
use crate::hypercore::tree::{Nodes, Roots};
use crate::sync::{Gathered, lock};

pub(super) struct Inner {
    pub(super) key: Hash,
    pub(super) discovery_key: Hash,
    pub(super) writer: Option<KeyPair>,
    pub(super) storage: Box<dyn CoreStorage>,
    /// Where the blocks are, unless in the storage.
    pub(super) file: Option<BlockFile>,
    pub(super) state: Mutex<State>,
    pub(super) changes: watch::Sender<CoreChange>,
    /// Held while something is committed, so that pages on disk never go back in time.
    pub(super) committing: tokio::sync::Mutex<()>,
    /// Held while an upgrade is checked, so that it stands on the roots that it extends.
    pub(super) upgrading: Mutex<()>,
    /// Ends the committer's wait before its time.
    pub(super) wake: Notify,
    /// Counts commits twice: when they begin and when they end, whether or not they worked.
    pub(super) commits: watch::Sender<u64>,
    pub(super) appends: Mutex<Gathered<Append>>,
}

/// An append that waits for its turn.
pub(super) struct Append {
    pub(super) blocks: Vec<Bytes>,
    pub(super) survives: Survives,
    pub(super) done: oneshot::Sender<Result<u64, CoreError>>,
}

pub(super) struct State {
    pub(super) fork: u64,
    pub(super) roots: Arc<Roots>,
    pub(super) signature: Option<Bytes>,
    pub(super) manifest: Option<Known>,
    pub(super) bits: Bitfield,
    /// What no commit has taken yet.
    pub(super) pending: Pending,
    /// What a commit is storing.
    pub(super) flushing: Option<Arc<Pending>>,
    /// Whether the committer's task runs.
    pub(super) committer: bool,
    /// Why the last commit failed; cleared by one that works.
    pub(super) failure: Option<CoreError>,
    pub(super) closed: bool,
    /// Blocks that were verified and taken over since the core was opened.
    pub(super) applied_here: u64,
    /// The log is being cut to this length; what is beyond may be gone from the storage already.
    pub(super) truncating: Option<u64>,
    /// The last times the log was cut, the latest at the end.
    pub(super) cuts: VecDeque<Cut>,
}

/// A change of fork.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    /// The fork before.
    fork: u64,
    /// How many blocks both forks have in common.
    common: u64,
}

/// How many cuts are remembered.
const MAX_CUTS: usize = 16;

/// A manifest and its bytes.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) manifest: Arc<Manifest>,
    pub(super) bytes: Bytes,
}

impl Known {
    pub(super) fn new(manifest: Manifest) -> Self {
        let bytes = manifest.encode().into();
        Self { manifest: Arc::new(manifest), bytes }
    }
}

/// Changes that are not on disk.
#[derive(Default)]
pub(super) struct Pending {
    pub(super) nodes: HashMap<u64, Node>,
    pub(super) blocks: BTreeMap<u64, Bytes>,
    pub(super) removed: BTreeSet<u64>,
    /// Numbers of bitfield pages.
    pub(super) pages: BTreeSet<u64>,
    /// Whether the header changed.
    pub(super) header: bool,
    /// To which length the stored log is cut before anything else is stored.
    pub(super) truncate: Option<u64>,
    /// The length up to which the storage has notes, when these are all that changed the header.
    pub(super) noted: Option<u64>,
    /// Roughly how much memory this takes.
    pub(super) bytes: usize,
}

/// What a block or a node in [`Pending`] takes besides its bytes.
const OVERHEAD: usize = 64;

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        !self.header
            && self.nodes.is_empty()
            && self.blocks.is_empty()
            && self.removed.is_empty()
            && self.pages.is_empty()
            && self.truncate.is_none()
    }

    pub(super) fn put_node(&mut self, node: Node) {
        if self.nodes.insert(node.index, node).is_none() {
            self.bytes += OVERHEAD;
        }
    }

    pub(super) fn put_block(&mut self, index: u64, block: Bytes) {
        self.bytes += OVERHEAD + block.len();
        self.blocks.insert(index, block);
    }

    /// Forgets what is about block `length` or a later one.
    pub(super) fn drop_from(&mut self, length: u64) {
        self.nodes.retain(|index, _| flat_tree::is_within(*index, length));
        self.blocks.split_off(&length);
        self.removed.split_off(&length);
        self.pages.split_off(&length.div_ceil(PAGE_BITS));
        let blocks: usize = self.blocks.values().map(|block| OVERHEAD + block.len()).sum();
        self.bytes = blocks + OVERHEAD * self.nodes.len();
    }

    /// Has the next commit take back what is stored beyond this length.
    pub(super) fn cut_to(&mut self, length: u64) {
        self.truncate = self.truncate.into_iter().chain([length]).min();
        self.header = true;
    }

    /// Whether nothing older than this knows of tree node `index` any more.
    fn hides_node(&self, index: u64) -> bool {
        self.truncate.is_some_and(|length| !flat_tree::is_within(index, length))
    }

    /// Whether nothing older than this has block `index` any more.
    fn hides_block(&self, index: u64) -> bool {
        self.truncate.is_some_and(|length| index >= length)
    }

    /// Whether the storage's notes, with what it has, lead to a log of this length.
    pub(super) fn is_noted(&self, length: u64) -> bool {
        self.truncate.is_none() && (!self.header || self.noted == Some(length))
    }

    /// Puts back what a failed commit had taken; what came since is newer.
    pub(super) fn restore(&mut self, failed: &Self) {
        for (index, node) in &failed.nodes {
            if !self.hides_node(*index) {
                self.nodes.entry(*index).or_insert(*node);
            }
        }
        for (index, block) in &failed.blocks {
            if !self.removed.contains(index) && !self.hides_block(*index) {
                self.blocks.entry(*index).or_insert_with(|| block.clone());
            }
        }
        let removed = failed.removed.iter().copied();
        let removed = removed.filter(|index| !self.blocks.contains_key(index));
        let removed: Vec<u64> = removed.filter(|index| !self.hides_block(*index)).collect();
        self.removed.extend(removed);
        self.pages.extend(&failed.pages);
        self.header |= failed.header;
        self.truncate = self.truncate.into_iter().chain(failed.truncate).min();
        self.bytes += failed.bytes;
    }
}

impl State {
    pub(super) fn check(&self) -> Result<(), CoreError> {
        if self.closed { Err(CoreError::Closed) } else { Ok(()) }
    }

    pub(super) fn header(&self, key: &Hash) -> Header {
        Header {
            key: *key,
            manifest: self.manifest.as_ref().map(|known| known.bytes.clone()),
            fork: self.fork,
            length: self.roots.length,
            byte_length: self.roots.byte_length,
            signature: self.signature.clone(),
        }
    }

    pub(super) fn change(&self) -> CoreChange {
        CoreChange {
            fork: self.fork,
            length: self.roots.length,
            byte_length: self.roots.byte_length,
            contiguous_length: self.bits.contiguous(),
            blocks: self.bits.count(),
            has_manifest: self.manifest.is_some(),
            closed: self.closed,
        }
    }

    /// What is not on disk, the newest first.
    fn unsaved(&self) -> impl Iterator<Item = &Pending> {
        std::iter::once(&self.pending).chain(self.flushing.as_deref())
    }

    /// What is known of a tree node that is not on disk; `None` when the storage is to be asked.
    fn node(&self, index: u64) -> Option<Option<Node>> {
        self.unsaved().find_map(|unsaved| match unsaved.nodes.get(&index) {
            Some(node) => Some(Some(*node)),
            None => unsaved.hides_node(index).then_some(None),
        })
    }

    /// A block that is not on disk.
    pub(super) fn block(&self, index: u64) -> Option<Bytes> {
        let found = self.unsaved().find_map(|unsaved| match unsaved.blocks.get(&index) {
            Some(block) => Some(Some(block.clone())),
            None => unsaved.hides_block(index).then_some(None),
        });
        found.flatten()
    }

    /// From this block on, what is on disk is not the log's any more.
    pub(super) fn stored_end(&self) -> u64 {
        self.unsaved().filter_map(|unsaved| unsaved.truncate).min().unwrap_or(u64::MAX)
    }

    /// Whether a block is here and stays here.
    pub(super) fn has(&self, index: u64) -> bool {
        self.bits.has(index) && self.truncating.is_none_or(|length| index < length)
    }

    /// Becomes another fork, which has the first `common` blocks of the one before.
    pub(super) fn fork_to(&mut self, fork: u64, roots: Roots, signature: Bytes, common: u64) {
        self.cuts.push_back(Cut { fork: self.fork, common });
        if self.cuts.len() > MAX_CUTS {
            self.cuts.pop_front();
        }
        self.fork = fork;
        self.roots = Arc::new(roots);
        self.signature = Some(signature);
        self.bits.truncate(common);
        self.applied_here = 0;
        self.pending.drop_from(common);
    }

    /// How many blocks the log surely has in common with what it was at `fork`.
    pub(super) fn common_since(&self, fork: u64) -> u64 {
        if fork == self.fork {
            return u64::MAX;
        }
        let later = self.cuts.iter().rev().take_while(|cut| cut.fork >= fork);
        let is_known = self.cuts.iter().any(|cut| cut.fork == fork);
        if is_known { later.map(|cut| cut.common).min().unwrap_or(0) } else { 0 }
    }
}

impl Inner {
    /// Tells subscribers what the state is now.
    pub(super) fn announce(&self, state: &State) {
        let now = state.change();
        self.changes.send_if_modified(|change| std::mem::replace(change, now) != now);
    }
}

impl Core {
    pub(super) fn locked<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&lock(&self.inner.state))
    }
}

/// The nodes that are not on disk first, then those that are.
impl Nodes for Inner {
    fn node(&self, index: u64) -> Result<Option<Node>, CoreError> {
        let unsaved = lock(&self.state).node(index);
        match unsaved {
            Some(node) => Ok(node),
            None => Ok(self.storage.node(index)?),
        }
    }
}
