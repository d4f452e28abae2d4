//! Reading blocks, and answering requests.

use std::ops::Range;

use bytes::Bytes;

use super::state::Inner;
use super::{Core, FileAccess, Position};
use crate::hypercore::error::CoreError;
use crate::hypercore::messages::{Data, Node, Request};
use crate::hypercore::proof::Proven;
use crate::hypercore::storage::MAX_BLOCK_BYTES;
use crate::hypercore::tree::{Nodes, Roots};
use crate::hypercore::{flat_tree, node, seek};
use crate::sync::lock;

use std::sync::Arc;

impl Core {
    /// A block, or `None` when it is not here. It is checked against the tree, so damage is an error:
    /// [`CoreError::MissingBlock`], [`CoreError::CorruptBlock`] or [`CoreError::FileChanged`].
    pub fn get(&self, index: u64) -> Result<Option<Bytes>, CoreError> {
        self.steady(|| {
            let Some((block, leaf)) = self.unchecked(index)? else { return Ok(None) };
            if let Some(leaf) = leaf {
                self.inner.check_leaf(index, &block, &leaf)?;
            }
            Ok(Some(block))
        })
    }

    /// Reads again when the log was cut meanwhile: what was read may be half of one fork and half of
    /// the other.
    pub(super) fn steady<T>(
        &self,
        read: impl Fn() -> Result<T, CoreError>,
    ) -> Result<T, CoreError> {
        let look = || self.locked(|state| (state.fork, state.truncating));
        let mut before = look();
        loop {
            let outcome = read();
            let now = look();
            if now == before || outcome.is_ok() && now.0 == before.0 {
                return outcome;
            }
            before = now;
        }
    }

    /// Blocks from the start of `range`, up to the first that is not here, its end, or `max_bytes`
    /// (but at least one). Checked as in [`Core::get`].
    pub fn range(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<Bytes>, CoreError> {
        self.steady(|| self.range_now(range.clone(), max_bytes))
    }

    fn range_now(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<Bytes>, CoreError> {
        let end = self.locked(|state| {
            state.check()?;
            let end = range.end.min(state.bits.next_missing(range.start));
            Ok::<_, CoreError>(end.min(state.truncating.unwrap_or(end)))
        })?;
        let mut out: Vec<Bytes> = Vec::new();
        let mut left = max_bytes;
        let mut at = range.start;
        while at < end && (left > 0 || out.is_empty()) {
            let (unsaved, stored_end) = self.locked(|state| (state.block(at), state.stored_end()));
            let blocks = match unsaved {
                Some(block) => vec![(at, block)],
                None if self.inner.file.is_some() => vec![(at, self.inner.stored(at)?.0)],
                None => self.inner.storage.blocks(at, end.min(stored_end), left)?,
            };
            let before = at;
            for (index, block) in blocks {
                if index != at {
                    break;
                }
                if block.len() > left && !out.is_empty() {
                    return Ok(out);
                }
                self.inner.check_block(index, &block)?;
                left = left.saturating_sub(block.len());
                out.push(block);
                at += 1;
            }
            if at == before {
                return Err(CoreError::MissingBlock(at));
            }
        }
        Ok(out)
    }

    /// Answers a request, or `None` when what it asks for is not here (npm: `noData`). The answer's
    /// `request` is the request's `id`.
    ///
    /// [`CoreError::InvalidRequest`] means that no honest peer asks this. Other errors are local
    /// damage, or a file that changed.
    pub fn prove(&self, request: &Request) -> Result<Option<Data>, CoreError> {
        let answer = self.prove_all(std::slice::from_ref(request)).pop();
        answer.unwrap_or(Ok(None))
    }

    /// [`Core::prove`] for many requests; their blocks are read together and hashed side by side.
    pub fn prove_all(&self, requests: &[Request]) -> Vec<Result<Option<Data>, CoreError>> {
        let fork = self.fork();
        let answers = self.prove_now(requests);
        // Cut meanwhile, a proof may be half of one fork and half of the other.
        if self.fork() == fork { answers } else { requests.iter().map(|_| Ok(None)).collect() }
    }

    fn prove_now(&self, requests: &[Request]) -> Vec<Result<Option<Data>, CoreError>> {
        let mut answers: Vec<_> = requests.iter().map(|request| self.outline(request)).collect();
        let mut stored = Vec::new();
        for (at, answer) in answers.iter_mut().enumerate() {
            let Ok(Some(data)) = answer else { continue };
            let Some(block) = &mut data.block else { continue };
            match self.found(block.index) {
                Ok(Some((value, leaf, is_sure))) => {
                    block.value = value;
                    stored.extend(leaf.filter(|_| !is_sure).map(|leaf| (at, leaf)));
                }
                Ok(None) => *answer = Ok(only_manifest(data)),
                Err(error) => *answer = Err(error),
            }
        }
        let read = |(at, leaf): &(usize, Node)| {
            let data = answers.get(*at)?.as_ref().ok()?.as_ref()?;
            Some((leaf.index / 2, &data.block.as_ref()?.value[..]))
        };
        let blocks: Vec<(u64, &[u8])> = stored.iter().filter_map(read).collect();
        let hashed = node::leaves(&blocks);
        for ((at, leaf), hashed) in stored.iter().zip(hashed) {
            if let Some(answer) = answers.get_mut(*at)
                && hashed != *leaf
            {
                *answer = Err(self.inner.mismatch(leaf.index / 2));
            }
        }
        answers
    }

    /// The answer to a request, still without the bytes of its block.
    fn outline(&self, request: &Request) -> Result<Option<Data>, CoreError> {
        let inner = &*self.inner;
        let (fork, roots, signature, known, has, whole) = {
            let state = lock(&inner.state);
            state.check()?;
            let has = request.block.is_none_or(|block| state.bits.has(block.index))
                && state.truncating.is_none();
            let whole = state.bits.contiguous() >= state.roots.length;
            let roots = Arc::clone(&state.roots);
            (state.fork, roots, state.signature.clone(), state.manifest.clone(), has, whole)
        };
        let compat = known.as_ref().is_some_and(|known| known.manifest.is_compat(&inner.key));
        let manifest =
            known.as_ref().filter(|_| request.manifest && !compat).map(|known| known.bytes.clone());
        let least = Data { request: request.id, fork, manifest, ..Data::default() };
        if request.fork != fork || !has {
            return Ok(only_manifest(&least));
        }
        let proven = Proven {
            fork,
            roots: &roots,
            signature: signature.as_ref(),
            prologue: known.as_ref().and_then(|known| known.manifest.prologue.as_ref()),
            nodes: inner,
        };
        let mut data = match proven.prove(request) {
            Ok(data) => data,
            // What is known of the tree is not all of it.
            Err(CoreError::MissingNode(_)) if !whole && request.block.is_none() => {
                return Ok(only_manifest(&least));
            }
            Err(error) => return Err(error),
        };
        data.manifest = least.manifest;
        let empty = data.block.is_none()
            && data.hash.is_none()
            && data.seek.is_none()
            && data.upgrade.is_none()
            && data.manifest.is_none();
        Ok((!empty).then_some(data))
    }

    /// A block that is here; one from disk with the leaf that it must have.
    pub(super) fn unchecked(&self, index: u64) -> Result<Option<(Bytes, Option<Node>)>, CoreError> {
        Ok(self.found(index)?.map(|(block, leaf, _)| (block, leaf)))
    }

    /// [`Core::unchecked`], and whether the block surely is what was hashed.
    fn found(&self, index: u64) -> Result<Option<(Bytes, Option<Node>, bool)>, CoreError> {
        let pending = {
            let state = lock(&self.inner.state);
            state.check()?;
            if !state.has(index) {
                return Ok(None);
            }
            state.block(index)
        };
        match pending {
            Some(block) => Ok(Some((block, None, true))),
            None => {
                let (block, leaf, is_sure) = self.inner.stored(index)?;
                // What is in memory was hashed when it came there.
                let leaf = (!self.is_in_memory()).then_some(leaf);
                Ok(Some((block, leaf, is_sure)))
            }
        }
    }

    /// How many levels above tree node `index` nothing is known: `nodes` of a request for it. 0 when
    /// it is behind the end.
    pub fn missing_nodes(&self, index: u64) -> Result<u64, CoreError> {
        let head = self.locked(|state| 2 * state.roots.length);
        if index >= head || flat_tree::right_span(index) >= head {
            return Ok(0);
        }
        let mut missing = 0;
        let mut at = index;
        while !flat_tree::contains(at, head) && self.inner.node(at)?.is_none() {
            missing += 1;
            at = flat_tree::parent(at);
        }
        Ok(missing)
    }

    /// Whether an upgrade from `length` can be proven.
    pub fn can_upgrade_from(&self, length: u64) -> Result<bool, CoreError> {
        if length > self.length() {
            return Ok(false);
        }
        for index in flat_tree::roots(length) {
            if self.inner.node(index)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Where the byte at `offset` is.
    pub fn seek(&self, offset: u64) -> Result<Position, CoreError> {
        let roots = self.locked(|state| Arc::clone(&state.roots));
        Ok(match seek::position(&roots, offset, &*self.inner)? {
            None => Position::End,
            Some((at, offset)) if at & 1 == 0 => Position::Block { index: at / 2, offset },
            Some((at, _)) => Position::Between {
                start: flat_tree::left_span(at) / 2,
                end: flat_tree::length_through(at),
            },
        })
    }

    /// How many bytes are in the blocks before `index`, which must be here or be the length.
    pub fn byte_offset(&self, index: u64) -> Result<u64, CoreError> {
        let roots = self.locked(|state| Arc::clone(&state.roots));
        let index = index.checked_mul(2).ok_or(CoreError::InvalidRequest("position"))?;
        seek::byte_offset(&roots, index, &*self.inner)
    }

    /// The tree hash.
    #[must_use]
    pub fn tree_hash(&self) -> crate::crypto::Hash {
        self.locked(|state| Arc::clone(&state.roots)).hash()
    }

    /// The signature over the tree, as on the wire; an empty log and a static one have none.
    #[must_use]
    pub fn signature(&self) -> Option<Bytes> {
        self.locked(|state| state.signature.clone())
    }

    /// The roots of the tree, left to right.
    #[must_use]
    pub fn roots(&self) -> Vec<Node> {
        Roots::clone(&self.locked(|state| Arc::clone(&state.roots))).nodes
    }
}

impl Inner {
    /// A block from disk, the leaf that it must have, and whether it surely is what was hashed.
    fn stored(&self, index: u64) -> Result<(Bytes, Node, bool), CoreError> {
        let leaf = self.expect(2 * index)?;
        let (block, is_sure) = match &self.file {
            None => (self.storage.block(index)?.ok_or(CoreError::MissingBlock(index))?, false),
            Some(file) => {
                let size = usize::try_from(leaf.size).ok().filter(|size| *size <= MAX_BLOCK_BYTES);
                let size = size.ok_or(CoreError::Corrupt("size of a block"))?;
                file.read(index, size)?
            }
        };
        Ok((block, leaf, is_sure))
    }

    fn check_block(&self, index: u64, block: &[u8]) -> Result<(), CoreError> {
        self.check_leaf(index, block, &self.expect(2 * index)?)
    }

    fn check_leaf(&self, index: u64, block: &[u8], leaf: &Node) -> Result<(), CoreError> {
        if node::leaf(index, block).hash == leaf.hash { Ok(()) } else { Err(self.mismatch(index)) }
    }

    /// What it means that a block on disk does not have its hash.
    fn mismatch(&self, index: u64) -> CoreError {
        match &self.file {
            Some(file) if file.access() == FileAccess::Read => CoreError::FileChanged,
            _ => CoreError::CorruptBlock(index),
        }
    }
}

/// What is left of an answer without its proof.
fn only_manifest(data: &Data) -> Option<Data> {
    let Data { request, fork, manifest, .. } = data;
    let manifest = Some(manifest.clone()?);
    Some(Data { request: *request, fork: *fork, manifest, ..Data::default() })
}

#[cfg(test)]
mod tests {
    use super::super::OpenOptions;
    use super::super::fixture::{
        block, download, memory, proof, reader, request, upgrade, written,
    };
    use super::*;
    use crate::hypercore::memory::Damage;
    use crate::hypercore::messages::{MAX_INDEX, RequestNode, RequestSeek, RequestUpgrade};

    #[tokio::test]
    async fn a_range_ends_where_a_block_is_missing_or_enough_was_read() {
        let source = written(&memory(), 30).await;
        let blocks: Vec<_> = (0..30).map(block).collect();
        assert_eq!(source.range(0..99, usize::MAX).unwrap(), blocks);
        assert_eq!(source.range(4..9, usize::MAX).unwrap(), blocks[4..9]);
        assert_eq!(source.range(4..9, 0).unwrap(), blocks[4..5]);
        let five: usize = blocks[..5].iter().map(Bytes::len).sum();
        assert_eq!(source.range(0..30, five).unwrap(), blocks[..5]);
        assert!(source.range(30..40, 1000).unwrap().is_empty());
        let copy = reader(&memory(), &source);
        copy.apply(&proof(&source, &upgrade(0, 30))).unwrap();
        for index in [0, 1, 2, 4] {
            copy.apply(&proof(&source, &request(&copy, index))).unwrap();
        }
        assert_eq!(copy.range(0..30, usize::MAX).unwrap(), blocks[..3]);
        copy.flush().await.unwrap();
        copy.apply(&proof(&source, &request(&copy, 3))).unwrap();
        assert_eq!(copy.range(1..30, usize::MAX).unwrap(), blocks[1..5], "half of it on disk");
    }

    #[tokio::test]
    async fn a_copy_of_a_part_serves_that_part() {
        let source = written(&memory(), 30).await;
        let middle = reader(&memory(), &source);
        middle.apply(&proof(&source, &upgrade(0, 30))).unwrap();
        middle.apply(&proof(&source, &request(&middle, 17))).unwrap();
        let copy = reader(&memory(), &source);
        assert!(copy.apply(&proof(&middle, &upgrade(0, 30))).unwrap().manifest);
        let asked = request(&copy, 17);
        assert_eq!(copy.apply(&proof(&middle, &asked)).unwrap().block, Some(17));
        assert_eq!(middle.prove(&request(&copy, 18)).unwrap(), None);
        let hash = Some(RequestNode { index: 5, nodes: 0 });
        assert_eq!(middle.prove(&Request { hash, ..Request::default() }).unwrap(), None);
        assert!(!middle.can_upgrade_from(5).unwrap() && middle.can_upgrade_from(16).unwrap());
    }

    #[tokio::test]
    async fn requests_that_no_honest_peer_makes_are_errors_and_never_panics() {
        let source = written(&memory(), 30).await;
        let numbers = [0, 1, 2, 29, 30, 58, 59, 60, 61, 63, 1 << 40, MAX_INDEX, u64::MAX];
        let mut requests = Vec::new();
        for a in numbers {
            for b in numbers {
                let node = Some(RequestNode { index: a, nodes: b });
                let upgrade = Some(RequestUpgrade { start: a, length: b });
                let seek = Some(RequestSeek { bytes: a, padding: b });
                requests.push(Request { block: node, ..Request::default() });
                requests.push(Request { hash: node, ..Request::default() });
                requests.push(Request { upgrade, ..Request::default() });
                requests.push(Request { seek, upgrade, ..Request::default() });
                requests.push(Request { seek, hash: node, ..Request::default() });
                let all = Some(RequestUpgrade { start: 0, length: 30 });
                requests.push(Request { seek, upgrade: all, ..Request::default() });
                requests.push(Request { seek, hash: node, upgrade: all, ..Request::default() });
                requests.push(Request { block: node, upgrade: all, ..Request::default() });
            }
        }
        let (mut answered, mut invalid) = (0, 0);
        for request in requests {
            match source.prove(&request) {
                Ok(Some(_)) => answered += 1,
                Ok(None) => {}
                Err(CoreError::InvalidRequest(_)) => invalid += 1,
                Err(error) => panic!("{error} {request:?}"),
            }
        }
        assert!(answered > 20 && invalid > 200, "{answered} {invalid}");
        let empty = reader(&memory(), &source);
        assert_eq!(empty.prove(&upgrade(0, 0)).unwrap(), None);
        for index in numbers {
            assert!(source.missing_nodes(index).is_ok());
            let _ = source.byte_offset(index);
            assert_eq!(source.get(index).unwrap().is_some(), index < 30);
        }
    }

    #[tokio::test]
    async fn every_byte_is_found() {
        let source = written(&memory(), 30).await;
        let mut at = 0;
        for index in 0..30 {
            assert_eq!(source.byte_offset(index).unwrap(), at);
            for offset in 0..block(index).len() as u64 {
                assert_eq!(source.seek(at + offset).unwrap(), Position::Block { index, offset });
            }
            at += block(index).len() as u64;
        }
        assert_eq!(source.seek(at).unwrap(), Position::End);
        let copy = reader(&memory(), &source);
        copy.apply(&proof(&source, &upgrade(0, 30))).unwrap();
        assert_eq!(copy.seek(5).unwrap(), Position::Between { start: 0, end: 16 });
        let seek = Some(RequestSeek { bytes: 100, padding: 0 });
        // As npm asks: beside some leaf of the range.
        let nodes = copy.missing_nodes(24).unwrap();
        let hash = Some(RequestNode { index: 24, nodes });
        copy.apply(&proof(&source, &Request { seek, hash, ..Request::default() })).unwrap();
        assert_eq!(copy.seek(100).unwrap(), source.seek(100).unwrap());
    }

    #[tokio::test]
    async fn local_damage_is_an_error_and_never_reaches_a_peer() {
        let storage = memory();
        let source = written(&storage, 30).await;
        let key = *source.discovery_key();
        storage.damage(&key, Damage::ChangeBlock(3, b"other".as_slice().into()));
        storage.damage(&key, Damage::RemoveBlock(5));
        storage.damage(&key, Damage::RemoveNode(14));
        let copy = reader(&memory(), &source);
        copy.apply(&proof(&source, &upgrade(0, 30))).unwrap();
        assert!(matches!(source.get(3), Err(CoreError::CorruptBlock(3))));
        assert!(matches!(source.prove(&request(&copy, 3)), Err(CoreError::CorruptBlock(3))));
        assert!(matches!(source.prove(&request(&copy, 5)), Err(CoreError::MissingBlock(5))));
        assert!(matches!(source.prove(&request(&copy, 6)), Err(CoreError::MissingNode(14))));
        assert!(matches!(source.get(7), Err(CoreError::MissingNode(14))));
        assert!(matches!(source.range(3..9, 999), Err(CoreError::CorruptBlock(3))));
        assert_eq!(source.range(0..3, 999).unwrap().len(), 3);
        let verified = source.verify(None).await.unwrap();
        assert_eq!((verified.bad, verified.nodes.len(), verified.is_proven), (vec![3, 5], 1, true));
        assert_eq!(source.get(7).unwrap(), Some(block(7)), "the node was made anew");
    }

    #[tokio::test]
    async fn damaged_blocks_are_forgotten_by_a_check_and_fetched_again() {
        let source = written(&memory(), 30).await;
        let storage = memory();
        let copy = reader(&storage, &source);
        download(&copy, &source);
        copy.flush().await.unwrap();
        assert!(copy.verify(None).await.unwrap().whole);
        let key = *copy.discovery_key();
        storage.damage(&key, Damage::ChangeBlock(3, b"other".as_slice().into()));
        storage.damage(&key, Damage::RemoveBlock(5));
        let verified = copy.verify(None).await.unwrap();
        assert_eq!((verified.good, verified.bad, verified.whole), (28, vec![3, 5], false));
        assert_eq!(copy.contiguous_length(), 3);
        download(&copy, &source);
        copy.flush().await.unwrap();
        assert!(copy.verify(None).await.unwrap().whole);
        let again =
            Core::open(&storage.after_crash(), *copy.key(), OpenOptions::default()).unwrap();
        assert_eq!(again.state(), source.state());
    }
}
