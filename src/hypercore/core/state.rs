//! What a core holds in memory, and reads that see what is not on disk yet.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::{Notify, oneshot, watch};

use super::{Core, CoreChange};
use crate::crypto::{Hash, KeyPair};
use crate::hypercore::bitfield::Bitfield;
use crate::hypercore::block_file::BlockFile;
use crate::hypercore::error::CoreError;
use crate::hypercore::manifest::Manifest;
use crate::hypercore::messages::Node;
use crate::hypercore::storage::{CoreStorage, Header, Survives};
use crate::hypercore::tree::{Nodes, Roots};
use crate::sync::lock;

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
    /// Counts commits, whether or not they worked.
    pub(super) commits: watch::Sender<u64>,
    pub(super) appends: Mutex<Appends>,
}

/// Appends that wait for their turn.
#[derive(Default)]
pub(super) struct Appends {
    pub(super) queue: Vec<Append>,
    pub(super) running: bool,
}

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
}

/// A manifest and its bytes.
#[derive(Clone)]
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

    /// Puts back what a failed commit had taken; what came since is newer.
    pub(super) fn restore(&mut self, failed: &Self) {
        for (index, node) in &failed.nodes {
            self.nodes.entry(*index).or_insert(*node);
        }
        for (index, block) in &failed.blocks {
            if !self.removed.contains(index) {
                self.blocks.entry(*index).or_insert_with(|| block.clone());
            }
        }
        self.removed.extend(failed.removed.iter().filter(|index| !self.blocks.contains_key(index)));
        self.pages.extend(&failed.pages);
        self.header |= failed.header;
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

    fn node(&self, index: u64) -> Option<Node> {
        let flushing = || self.flushing.as_ref().and_then(|pending| pending.nodes.get(&index));
        self.pending.nodes.get(&index).or_else(flushing).copied()
    }

    pub(super) fn block(&self, index: u64) -> Option<Bytes> {
        let flushing = || self.flushing.as_ref().and_then(|pending| pending.blocks.get(&index));
        self.pending.blocks.get(&index).or_else(flushing).cloned()
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
        let pending = lock(&self.state).node(index);
        match pending {
            Some(node) => Ok(Some(node)),
            None => Ok(self.storage.node(index)?),
        }
    }
}
