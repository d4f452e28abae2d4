//! Tree nodes, packed: a page is 96 neighbours, and the pages used last are kept.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::crypto::KEY_LENGTH;
use crate::hypercore::Node;

/// Nodes a page: as many as fill a page of SQLite.
pub(super) const PAGE_NODES: u64 = 96;
/// How many pages are kept, for all cores together: 0.4 MB at most.
const CACHED_PAGES: usize = 96;
const NODE_BYTES: usize = 8 + KEY_LENGTH;

/// A page's nodes. Bytes that are missing at the end are zeros, which are no nodes.
#[derive(Debug, Clone, Default)]
pub(super) struct NodePage(Arc<[u8]>);

impl NodePage {
    pub(super) fn new(bytes: impl Into<Arc<[u8]>>) -> Self {
        Self(bytes.into())
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The node at tree index `index`, which must be on this page.
    pub(super) fn node(&self, index: u64) -> Option<Node> {
        let start = (index % PAGE_NODES) as usize * NODE_BYTES;
        let (size, hash) = self.0.get(start..start + NODE_BYTES)?.split_first_chunk::<8>()?;
        let hash: [u8; KEY_LENGTH] = hash.try_into().ok()?;
        (hash != [0; KEY_LENGTH]).then(|| Node { index, size: u64::from_le_bytes(*size), hash })
    }

    /// The page with these nodes put in.
    pub(super) fn with(&self, nodes: &[Node]) -> Self {
        let mut bytes = self.0.to_vec();
        for node in nodes {
            let start = (node.index % PAGE_NODES) as usize * NODE_BYTES;
            if bytes.len() < start + NODE_BYTES {
                bytes.resize(start + NODE_BYTES, 0);
            }
            if let Some(slot) = bytes.get_mut(start..start + NODE_BYTES) {
                let (size, hash) = slot.split_at_mut(8);
                size.copy_from_slice(&node.size.to_le_bytes());
                hash.copy_from_slice(&node.hash);
            }
        }
        Self(bytes.into())
    }

    /// Page `number` without these nodes and without those from tree index `end` on.
    pub(super) fn without(&self, nodes: &[u64], number: u64, end: u64) -> Self {
        let first = number * PAGE_NODES;
        let mut bytes = self.0.to_vec();
        let kept = usize::try_from(end.saturating_sub(first)).unwrap_or(usize::MAX);
        bytes.truncate(kept.saturating_mul(NODE_BYTES));
        for index in nodes.iter().filter(|index| **index / PAGE_NODES == number) {
            let start = (index - first) as usize * NODE_BYTES;
            if let Some(slot) = bytes.get_mut(start..start + NODE_BYTES) {
                slot.fill(0);
            }
        }
        Self(bytes.into())
    }
}

/// The pages used last, by core and number; the oldest goes first.
#[derive(Default)]
pub(super) struct PageCache {
    pages: HashMap<(i64, u64), NodePage>,
    order: VecDeque<(i64, u64)>,
    /// Counts changes of what is on disk, so that a read that a write overtook is not kept.
    generation: u64,
}

impl PageCache {
    pub(super) fn get(&self, core: i64, number: u64) -> Option<NodePage> {
        self.pages.get(&(core, number)).cloned()
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Keeps a page that was read when the generation was `generation`.
    pub(super) fn insert_read(&mut self, core: i64, number: u64, page: NodePage, generation: u64) {
        if generation == self.generation {
            self.insert((core, number), page);
        }
    }

    /// Keeps pages that were written.
    pub(super) fn insert_written(&mut self, core: i64, pages: Vec<(u64, NodePage)>) {
        self.generation += 1;
        for (number, page) in pages {
            self.insert((core, number), page);
        }
    }

    /// Forgets a core that was removed.
    pub(super) fn forget(&mut self, core: i64) {
        self.generation += 1;
        self.pages.retain(|(id, _), _| *id != core);
        self.order.retain(|(id, _)| *id != core);
    }

    fn insert(&mut self, key: (i64, u64), page: NodePage) {
        if self.pages.insert(key, page).is_some() {
            return;
        }
        self.order.push_back(key);
        while self.order.len() > CACHED_PAGES {
            if let Some(oldest) = self.order.pop_front() {
                self.pages.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(index: u64) -> Node {
        Node { index, size: index + 1, hash: [7; 32] }
    }

    #[test]
    fn a_page_has_the_nodes_that_were_put_in_and_no_others() {
        let page = NodePage::default().with(&[node(96 + 5), node(96)]).with(&[node(96 + 9)]);
        for index in 96..192 {
            let put = [96, 101, 105].contains(&index);
            assert_eq!(page.node(index), put.then(|| node(index)), "{index}");
        }
        assert_eq!(page.as_bytes().len(), 10 * NODE_BYTES);
    }

    #[test]
    fn a_read_that_a_write_overtook_is_not_kept() {
        let mut cache = PageCache::default();
        let before = cache.generation();
        cache.insert_written(1, vec![(0, NodePage::default().with(&[node(3)]))]);
        cache.insert_read(1, 0, NodePage::default(), before);
        assert_eq!(cache.get(1, 0).and_then(|page| page.node(3)), Some(node(3)));
    }

    #[test]
    fn the_cache_is_bounded_and_forgets_removed_cores() {
        let mut cache = PageCache::default();
        for number in 0..2_000 {
            let generation = cache.generation();
            cache.insert_read(1, number, NodePage::default(), generation);
        }
        assert_eq!(cache.pages.len(), CACHED_PAGES);
        assert!(cache.get(1, 1_999).is_some() && cache.get(1, 0).is_none());
        cache.forget(1);
        assert!(cache.pages.is_empty() && cache.order.is_empty());
    }
}
