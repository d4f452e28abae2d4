//! A storage in memory, for tests and for cores that need not outlive the process.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::bitfield::{Bitfield, Page};
use super::flat_tree;
use super::messages::Node;
use super::storage::{
    Commit, Committing, CoreStorage, Header, Note, Result, Storage, StorageError, StorageErrorKind,
};
use crate::crypto::Hash;
use crate::sync::lock;

/// A storage in memory. Clones share what is stored.
#[derive(Clone, Default)]
pub struct MemoryStorage {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    cores: HashMap<Hash, Arc<Mutex<Stored>>>,
    open: HashSet<Hash>,
    failure: Option<StorageError>,
    sync_failure: Option<StorageError>,
}

#[derive(Default, Clone)]
struct Stored {
    header: Option<Header>,
    nodes: BTreeMap<u64, Node>,
    blocks: BTreeMap<u64, Bytes>,
    pages: BTreeMap<u64, Box<Page>>,
    notes: Vec<Note>,
    commits: u64,
}

struct Place {
    closed: AtomicBool,
    discovery_key: Hash,
    shared: Arc<Mutex<Shared>>,
    stored: Arc<Mutex<Stored>>,
}

impl MemoryStorage {
    /// An empty storage.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What a crash now would leave: everything that was committed, nothing open.
    #[must_use]
    pub fn after_crash(&self) -> Self {
        let shared = lock(&self.shared);
        let copy = |(key, stored): (&Hash, &Arc<Mutex<Stored>>)| {
            (*key, Arc::new(Mutex::new(lock(stored).clone())))
        };
        let cores = shared.cores.iter().map(copy).collect();
        Self { shared: Arc::new(Mutex::new(Shared { cores, ..Shared::default() })) }
    }

    /// Makes every commit fail from now on, or work again.
    pub fn fail_commits(&self, failure: Option<StorageError>) {
        lock(&self.shared).failure = failure;
    }

    /// Makes every commit fail after it was stored, as one does that cannot be synced, or work again.
    pub fn fail_syncs(&self, failure: Option<StorageError>) {
        lock(&self.shared).sync_failure = failure;
    }

    /// Changes a stored core behind its back, as a damaged disk does.
    pub fn damage(&self, discovery_key: &Hash, damage: Damage) {
        let stored = lock(&self.shared).cores.get(discovery_key).map(Arc::clone);
        let Some(stored) = stored else { return };
        let mut stored = lock(&stored);
        match damage {
            Damage::RemoveNode(index) => {
                stored.nodes.remove(&index);
            }
            Damage::ChangeNode(index) => {
                let node = stored.nodes.get_mut(&index);
                node.into_iter().for_each(|node| node.hash[7] ^= 16);
            }
            Damage::ChangeSize(index) => {
                let node = stored.nodes.get_mut(&index);
                node.into_iter().for_each(|node| node.size ^= 16);
            }
            Damage::RemoveBlock(index) => {
                stored.blocks.remove(&index);
            }
            Damage::ChangeBlock(index, bytes) => {
                stored.blocks.insert(index, bytes);
            }
        }
    }

    /// Changes a core's notes behind its back; `false` when it has none.
    #[cfg(test)]
    pub(crate) fn notes_of(
        &self,
        discovery_key: &Hash,
        change: impl FnOnce(&mut Vec<Note>),
    ) -> bool {
        let stored = lock(&self.shared).cores.get(discovery_key).map(Arc::clone);
        let Some(stored) = stored else { return false };
        let notes = &mut lock(&stored).notes;
        let has_notes = !notes.is_empty();
        change(notes);
        has_notes
    }

    /// How many commits a core has seen.
    #[must_use]
    pub fn commits(&self, discovery_key: &Hash) -> u64 {
        lock(&self.shared).cores.get(discovery_key).map_or(0, |stored| lock(stored).commits)
    }
}

/// How a stored core is damaged.
#[derive(Debug, Clone)]
pub enum Damage {
    /// A tree node is gone.
    RemoveNode(u64),
    /// A tree node has another hash.
    ChangeNode(u64),
    /// A tree node has another size.
    ChangeSize(u64),
    /// A block is gone.
    RemoveBlock(u64),
    /// A block is another.
    ChangeBlock(u64, Bytes),
}

impl Storage for MemoryStorage {
    fn open(&self, discovery_key: &Hash) -> Result<Box<dyn CoreStorage>> {
        let mut shared = lock(&self.shared);
        if !shared.open.insert(*discovery_key) {
            let kind = StorageErrorKind::AlreadyOpen;
            return Err(StorageError::new(kind, "the core is open already"));
        }
        Ok(Box::new(Place {
            closed: AtomicBool::new(false),
            discovery_key: *discovery_key,
            shared: Arc::clone(&self.shared),
            stored: Arc::clone(shared.cores.entry(*discovery_key).or_default()),
        }))
    }

    fn remove(&self, discovery_key: &Hash) -> Committing {
        let mut shared = lock(&self.shared);
        let outcome = if shared.open.contains(discovery_key) {
            Err(StorageError::new(StorageErrorKind::AlreadyOpen, "the core is open"))
        } else {
            shared.cores.remove(discovery_key);
            Ok(())
        };
        Box::pin(std::future::ready(outcome))
    }
}

impl CoreStorage for Place {
    fn header(&self) -> Result<Option<Header>> {
        Ok(lock(&self.stored).header.clone())
    }

    fn node(&self, index: u64) -> Result<Option<Node>> {
        Ok(lock(&self.stored).nodes.get(&index).copied())
    }

    fn block(&self, index: u64) -> Result<Option<Bytes>> {
        Ok(lock(&self.stored).blocks.get(&index).cloned())
    }

    fn blocks(&self, start: u64, end: u64, max_bytes: usize) -> Result<Vec<(u64, Bytes)>> {
        let mut left = max_bytes;
        let mut out = Vec::new();
        for (index, block) in lock(&self.stored).blocks.range(start..end.max(start)) {
            if block.len() > left && !out.is_empty() {
                break;
            }
            left = left.saturating_sub(block.len());
            out.push((*index, block.clone()));
        }
        Ok(out)
    }

    fn pages(&self) -> Result<Vec<(u64, Box<Page>)>> {
        let stored = lock(&self.stored);
        Ok(stored.pages.iter().map(|(number, page)| (*number, page.clone())).collect())
    }

    fn commit(&self, commit: Arc<Commit>) -> Committing {
        let (failure, sync_failure) = {
            let shared = lock(&self.shared);
            (shared.failure.clone(), shared.sync_failure.clone())
        };
        if let Some(failure) = failure {
            return Box::pin(std::future::ready(Err(failure)));
        }
        let mut stored = lock(&self.stored);
        if let Some(header) = &commit.header {
            stored.header = Some(header.clone());
            stored.notes.clear();
        }
        if let Some(length) = commit.truncate {
            stored.nodes.retain(|index, _| flat_tree::is_within(*index, length));
            stored.blocks.retain(|index, _| *index < length);
            let mut bits = Bitfield::from_pages(std::mem::take(&mut stored.pages));
            bits.truncate(length);
            stored.pages.extend(bits.into_pages());
        }
        stored.nodes.extend(commit.nodes.iter().map(|node| (node.index, *node)));
        stored.blocks.extend(commit.blocks.iter().cloned());
        for index in &commit.removed_blocks {
            stored.blocks.remove(index);
        }
        stored.pages.extend(commit.pages.iter().cloned());
        stored.commits += 1;
        Box::pin(std::future::ready(sync_failure.map_or(Ok(()), Err)))
    }

    fn takes_notes(&self) -> bool {
        true
    }

    fn note(&self, note: &Note) -> bool {
        lock(&self.stored).notes.push(note.clone());
        true
    }

    fn notes(&self) -> Result<Vec<Note>> {
        Ok(lock(&self.stored).notes.clone())
    }

    fn close(&self) {
        if !self.closed.swap(true, Ordering::Relaxed) {
            lock(&self.shared).open.remove(&self.discovery_key);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.close();
    }
}
