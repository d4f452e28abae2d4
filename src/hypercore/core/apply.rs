//! Taking over what peers prove.

use super::commit::GROUP_BYTES;
use super::state::{Inner, Known, State};
use super::{Applied, Core, FileAccess};
use crate::crypto::PublicKey;
use crate::hypercore::bitfield::PAGE_BITS;
use crate::hypercore::error::{ApplyError, CoreError};
use crate::hypercore::manifest::Manifest;
use crate::hypercore::messages::{Data, DataBlock, Node};
use crate::hypercore::node;
use crate::hypercore::storage::{MAX_BLOCK_BYTES, MAX_LENGTH};
use crate::hypercore::tree::{Batch, Found, Nodes, Roots};
use crate::hypercore::verifier::Verifier;
use crate::hypercore::verify::verify;
use crate::sync::lock;

use std::sync::Arc;

impl Core {
    /// Verifies what a peer sent and takes it over. Reads see it at once; it is on disk within about
    /// 50 ms or 256 KiB, see [`Core::flush`]. Needs a tokio runtime.
    ///
    /// Nothing changes when it fails. [`ApplyError::is_violation`] tells whose fault it was.
    pub fn apply(&self, data: &Data) -> Result<Applied, ApplyError> {
        self.apply_hashed(data, None)
    }

    /// [`Core::apply`] when the leaf of the block in `data` is known already, from [`Core::leaves`].
    pub(in crate::hypercore) fn apply_hashed(
        &self,
        data: &Data,
        leaf: Option<Node>,
    ) -> Result<Applied, ApplyError> {
        let inner = &*self.inner;
        // Upgrades one at a time; blocks of a known tree need not wait for each other.
        let _upgrading = data.upgrade.as_ref().map(|_| lock(&inner.upgrading));
        let (fork, roots, known, failure) = self.locked(|state| {
            state.check()?;
            let failure = state.failure.clone();
            Ok::<_, CoreError>((
                state.fork,
                Arc::clone(&state.roots),
                state.manifest.clone(),
                failure,
            ))
        })?;
        if data.fork != fork {
            return Err(ApplyError::Fork { ours: fork, theirs: data.fork });
        }
        if let Some(failure) = failure {
            return Err(failure.into());
        }
        let prologue = known.as_ref().and_then(|known| known.manifest.prologue);
        let batch = verify(data, leaf, Roots::clone(&roots), prologue.as_ref(), inner);
        // Cut meanwhile, it may have been compared with the nodes of another fork.
        let batch = batch.map_err(|error| match self.fork() {
            ours if ours == fork => error,
            ours => ApplyError::Fork { ours, theirs: data.fork },
        })?;
        let manifest = self.check_manifest(data, known.as_ref(), batch.upgraded)?;
        if batch.upgraded {
            let manifest = manifest.as_ref().or(known.as_ref()).ok_or(ApplyError::Manifest)?;
            self.check_upgrade(data, &batch, manifest)?;
        }
        let block = data.block.as_ref().filter(|block| !self.has(block.index));
        if let Some(block) = block {
            self.check_block(block, &batch)?;
        }
        let found = self.new_nodes(&batch.found)?;
        let mut state = lock(&inner.state);
        state.check()?;
        if state.fork != fork {
            return Err(ApplyError::Fork { ours: state.fork, theirs: data.fork });
        }
        Ok(self.take_over(&mut state, data, batch, &found, manifest, block))
    }

    /// The leaves of the blocks in `data`, hashed side by side.
    pub(in crate::hypercore) fn leaves<'a>(
        data: impl Iterator<Item = &'a Data> + Clone,
    ) -> Vec<Option<Node>> {
        let blocks = data.clone().filter_map(|data| data.block.as_ref());
        let blocks: Vec<(u64, &[u8])> =
            blocks.map(|block| (block.index, &block.value[..])).collect();
        let mut leaves = node::leaves(&blocks).into_iter();
        data.map(|data| data.block.as_ref().and_then(|_| leaves.next())).collect()
    }

    /// The manifest that becomes known with `data`, if any.
    pub(super) fn check_manifest(
        &self,
        data: &Data,
        known: Option<&Known>,
        upgraded: bool,
    ) -> Result<Option<Known>, ApplyError> {
        if known.is_some() {
            return Ok(None);
        }
        let manifest = match &data.manifest {
            Some(bytes) => Manifest::decode(bytes).map_err(|_| ApplyError::Manifest)?,
            // A core from before manifests has none to send: its key is its signer's.
            None if upgraded => Manifest::single(PublicKey::from_bytes(self.inner.key)),
            None => return Ok(None),
        };
        if manifest.is_of(&self.inner.key) {
            Ok(Some(Known::new(manifest)))
        } else {
            Err(ApplyError::Manifest)
        }
    }

    fn check_upgrade(&self, data: &Data, batch: &Batch, known: &Known) -> Result<(), ApplyError> {
        let (key, roots) = (&self.inner.key, &batch.roots);
        let signature = data.upgrade.as_ref().and_then(|upgrade| upgrade.signature.as_deref());
        if !Verifier::new(key, &known.manifest).verify(batch, data.fork, signature) {
            // A static core that an upgrade does not lead to is a bad signature to its peer.
            return Err(ApplyError::Signature);
        }
        if roots.length > MAX_LENGTH {
            return Err(CoreError::TooLong.into());
        }
        if self.inner.writer.is_some() {
            return Err(ApplyError::WrittenElsewhere { length: roots.length });
        }
        if let Some(file) = &self.inner.file
            && !file.fits(roots.length, roots.byte_length)
        {
            return Err(ApplyError::Layout(roots.length - 1));
        }
        Ok(())
    }

    fn check_block(&self, block: &DataBlock, batch: &Batch) -> Result<(), ApplyError> {
        // Both follow from the proof; without them a block could never be read again.
        if block.index >= batch.roots.length {
            return Err(ApplyError::Malformed("a block beyond the end"));
        }
        if block.value.len() > MAX_BLOCK_BYTES {
            return Err(ApplyError::Malformed("size of a block"));
        }
        if let Some(file) = &self.inner.file {
            if file.access() == FileAccess::Read {
                return Err(CoreError::NotWritable.into());
            }
            let size = file.size_of(block.index, batch.roots.byte_length);
            if block.value.len() as u64 != size {
                return Err(ApplyError::Layout(block.index));
            }
        }
        Ok(())
    }

    /// The nodes to store: those whose size is not proven only where nothing is known.
    fn new_nodes(&self, found: &[Found]) -> Result<Vec<Found>, CoreError> {
        let mut new = Vec::with_capacity(found.len());
        for found in found {
            if found.sized || self.inner.node(found.node.index)?.is_none() {
                new.push(*found);
            }
        }
        Ok(new)
    }

    fn take_over(
        &self,
        state: &mut State,
        data: &Data,
        batch: Batch,
        found: &[Found],
        manifest: Option<Known>,
        block: Option<&DataBlock>,
    ) -> Applied {
        let mut applied = Applied { manifest: manifest.is_some(), ..Applied::default() };
        if let Some(manifest) = manifest {
            state.manifest.get_or_insert(manifest);
            state.pending.header = true;
        }
        if batch.upgraded {
            applied.upgraded = Some(batch.roots.length);
            state.signature = data.upgrade.as_ref().and_then(|upgrade| upgrade.signature.clone());
            state.roots = Arc::new(batch.roots);
            state.pending.header = true;
        }
        for found in found {
            state.pending.put_node(found.node);
        }
        if let Some(block) = block
            && state.bits.insert(block.index)
        {
            applied.block = Some(block.index);
            state.applied_here += 1;
            state.pending.removed.remove(&block.index);
            state.pending.put_block(block.index, block.value.clone());
            state.pending.pages.insert(block.index / PAGE_BITS);
        }
        applied.full = state.pending.bytes >= GROUP_BYTES;
        self.inner.announce(state);
        self.schedule(state);
        applied
    }

    /// Whether a proof of an upgrade from 0, at most as long as this log, is validly signed and says
    /// something else: the log was written twice (`checkConflict` in npm `hypercore/lib/core.js`).
    pub fn contradicts(&self, data: &Data) -> Result<bool, ApplyError> {
        let (fork, length, known) = self.locked(|state| {
            state.check()?;
            Ok::<_, CoreError>((state.fork, state.roots.length, state.manifest.clone()))
        })?;
        let (Some(upgrade), Some(known)) = (&data.upgrade, known) else { return Ok(false) };
        if data.fork != fork || upgrade.start != 0 || upgrade.length > length {
            return Ok(false);
        }
        let prologue = known.manifest.prologue;
        let mut asked = upgrade.clone();
        asked.additional_nodes.clear();
        let mut theirs = Batch::new(Roots::default());
        theirs.upgrade(&asked, prologue.as_ref(), None)?;
        let mut signed = Batch::new(Roots::default());
        signed.upgrade(upgrade, prologue.as_ref(), None)?;
        let verifier = Verifier::new(&self.inner.key, &known.manifest);
        if !verifier.verify(&signed, fork, upgrade.signature.as_deref()) {
            return Err(ApplyError::Signature);
        }
        let ours = Roots::load(upgrade.length, &*self.inner as &Inner)?;
        Ok(ours.hash() != theirs.roots.hash())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{
        block, download, memory, pair, proof, reader, request, upgrade, written,
    };
    use super::super::{CreateOptions, OpenOptions};
    use super::*;
    use crate::hypercore::messages::{Request, RequestNode, RequestSeek};
    use bytes::Bytes;

    #[tokio::test]
    async fn a_log_of_any_length_is_downloaded_in_any_order() {
        for length in 1..40u64 {
            let source = written(&memory(), length).await;
            let copy = reader(&memory(), &source);
            let applied = copy.apply(&proof(&source, &upgrade(0, length))).unwrap();
            assert_eq!(applied.upgraded, Some(length));
            assert!(applied.manifest);
            for step in 0..length {
                let index = (step * 17 + length / 2) % length;
                let applied = copy.apply(&proof(&source, &request(&copy, index))).unwrap();
                let new = !(0..step).any(|s| (s * 17 + length / 2) % length == index);
                assert_eq!(applied.block, new.then_some(index));
                assert_eq!(copy.get(index).unwrap(), Some(block(index)));
            }
            download(&copy, &source);
            assert_eq!(copy.state(), source.state());
            assert_eq!(copy.tree_hash(), source.tree_hash());
        }
    }

    #[tokio::test]
    async fn a_block_and_an_upgrade_come_together_from_and_to_every_length() {
        let source = written(&memory(), 23).await;
        for from in 0..23u64 {
            for to in from + 1..=23 {
                for index in 0..to {
                    let copy = reader(&memory(), &source);
                    if from > 0 {
                        copy.apply(&proof(&source, &upgrade_to(from))).unwrap();
                    }
                    let nodes = copy.missing_nodes(2 * index).unwrap();
                    let block = Some(RequestNode { index, nodes });
                    let asked = Request { block, ..upgrade(copy.length(), 1) };
                    if copy.length() == 23 {
                        continue;
                    }
                    let Ok(Some(data)) = source.prove(&asked) else { continue };
                    let applied = copy.apply(&data).unwrap();
                    assert_eq!((applied.upgraded, applied.block), (Some(23), Some(index)));
                }
            }
        }
    }

    /// An upgrade from nothing to some length; the signature is over a longer log.
    fn upgrade_to(length: u64) -> Request {
        upgrade(0, length)
    }

    #[tokio::test]
    async fn a_log_grows_while_it_is_read() {
        let source = written(&memory(), 1).await;
        let copy = reader(&memory(), &source);
        for length in 2..70 {
            download(&copy, &source);
            source.append(vec![block(length - 1)]).await.unwrap();
        }
        download(&copy, &source);
        assert_eq!(copy.state(), source.state());
    }

    #[tokio::test]
    async fn a_flipped_bit_anywhere_is_refused_and_changes_nothing() {
        let source = written(&memory(), 11).await;
        let block = Some(RequestNode { index: 4, nodes: 0 });
        let seek = Some(RequestSeek { bytes: 30, padding: 0 });
        let all = [
            Request { block, ..upgrade(0, 9) },
            Request { hash: Some(RequestNode { index: 5, nodes: 0 }), ..upgrade(0, 11) },
            Request { seek, ..upgrade(0, 11) },
        ];
        for asked in all {
            let good = proof(&source, &asked);
            for data in flips(&good) {
                let copy = reader(&memory(), &source);
                let before = copy.state();
                let refused = copy.apply(&data).expect_err(&format!("{data:?}"));
                assert!(refused.is_violation(), "{refused} {data:?}");
                assert_eq!(copy.state(), before);
            }
            assert!(reader(&memory(), &source).apply(&good).is_ok());
        }
        let copy = reader(&memory(), &source);
        copy.apply(&proof(&source, &upgrade(0, 11))).unwrap();
        for asked in [request(&copy, 4), Request { hash: asked_hash(5, 1), ..Request::default() }] {
            for data in flips(&proof(&source, &asked)) {
                let refused = copy.apply(&data).expect_err(&format!("{data:?}"));
                // Without its last node a proof is as good as one for a nearer ancestor.
                let short = matches!(refused, ApplyError::Unconnected(_));
                assert!(refused.is_violation() || short, "{refused} {data:?}");
            }
        }
        assert_eq!(copy.state().blocks, 0);
    }

    fn asked_hash(index: u64, nodes: u64) -> Option<RequestNode> {
        Some(RequestNode { index, nodes })
    }

    /// Copies of `data` with one bit flipped in a value, a node, the signature or the manifest.
    fn flips(data: &Data) -> Vec<Data> {
        fn flip(bytes: &Bytes, at: usize) -> Bytes {
            let mut bytes = bytes.to_vec();
            bytes[at] ^= 4;
            bytes.into()
        }
        let mut out = Vec::new();
        let mut push = |change: &dyn Fn(&mut Data)| {
            let mut copy = data.clone();
            change(&mut copy);
            out.push(copy);
        };
        fn lists(data: &mut Data) -> Vec<&mut Vec<crate::hypercore::messages::Node>> {
            let mut lists = Vec::new();
            lists.extend(data.block.as_mut().map(|block| &mut block.nodes));
            lists.extend(data.hash.as_mut().map(|hash| &mut hash.nodes));
            lists.extend(data.seek.as_mut().map(|seek| &mut seek.nodes));
            if let Some(upgrade) = &mut data.upgrade {
                lists.push(&mut upgrade.nodes);
                lists.push(&mut upgrade.additional_nodes);
            }
            lists
        }
        let counts: Vec<usize> = lists(&mut data.clone()).iter().map(|list| list.len()).collect();
        for (list, count) in counts.into_iter().enumerate() {
            for node in 0..count {
                push(&|data| lists(data)[list][node].hash[7] ^= 4);
                push(&|data| lists(data)[list][node].size ^= 1 << 40);
                push(&|data| lists(data)[list][node].index ^= 4);
                push(&|data| {
                    lists(data)[list].remove(node);
                });
            }
        }
        if let Some(block) = &data.block {
            push(&|data| data.block.as_mut().unwrap().value = flip(&block.value, 0));
            push(&|data| data.block.as_mut().unwrap().value = Bytes::new());
        }
        if let Some(signature) =
            data.upgrade.as_ref().and_then(|upgrade| upgrade.signature.as_ref())
        {
            for at in [0, 1, 2, 40, 65] {
                push(&|data| data.upgrade.as_mut().unwrap().signature = Some(flip(signature, at)));
            }
            push(&|data| data.upgrade.as_mut().unwrap().signature = None);
        }
        if let Some(manifest) = &data.manifest {
            for at in 0..manifest.len() {
                push(&|data| data.manifest = Some(flip(manifest, at)));
            }
            push(&|data| data.manifest = None);
        }
        out
    }

    #[tokio::test]
    async fn an_upgrade_that_was_overtaken_is_no_violation() {
        let source = written(&memory(), 5).await;
        let copy = reader(&memory(), &source);
        let late = proof(&source, &upgrade(0, 5));
        source.append(vec![block(5); 9]).await.unwrap();
        let later = proof(&source, &upgrade(0, 14));
        copy.apply(&late).unwrap();
        assert_eq!(copy.apply(&late).unwrap(), Applied::default());
        let refused = copy.apply(&later).unwrap_err();
        assert!(matches!(refused, ApplyError::Stale) && !refused.is_violation());
    }

    #[tokio::test]
    async fn other_forks_are_refused_without_blame() {
        let source = written(&memory(), 5).await;
        let copy = reader(&memory(), &source);
        let data = Data { fork: 1, ..proof(&source, &upgrade(0, 5)) };
        let refused = copy.apply(&data).unwrap_err();
        assert!(matches!(refused, ApplyError::Fork { ours: 0, theirs: 1 }));
        assert!(!refused.is_violation());
    }

    #[tokio::test]
    async fn a_block_whose_tree_is_unknown_is_asked_for_again() {
        let source = written(&memory(), 8).await;
        let copy = reader(&memory(), &source);
        copy.apply(&proof(&source, &upgrade(0, 8))).unwrap();
        let asked =
            Request { block: Some(RequestNode { index: 3, nodes: 1 }), ..Request::default() };
        let refused = copy.apply(&proof(&source, &asked)).unwrap_err();
        assert!(matches!(refused, ApplyError::Unconnected(5)), "{refused}");
    }

    #[tokio::test]
    async fn a_second_writer_with_our_key_is_noticed() {
        let (here, there) = (memory(), memory());
        let ours = written(&here, 4).await;
        let theirs = written(&there, 6).await;
        let refused = ours.apply(&proof(&theirs, &upgrade(4, 2))).unwrap_err();
        assert!(matches!(refused, ApplyError::WrittenElsewhere { length: 6 }), "{refused}");
        assert_eq!(ours.length(), 4);
        ours.append(vec![b"another".as_slice().into(); 5]).await.unwrap();
        assert!(ours.contradicts(&proof(&theirs, &upgrade(0, 6))).unwrap());
        assert!(!ours.contradicts(&proof(&theirs, &upgrade(0, 4))).unwrap());
        let mut forged = proof(&theirs, &upgrade(0, 6));
        forged.upgrade.as_mut().unwrap().nodes[0].size += 1;
        assert!(matches!(ours.contradicts(&forged), Err(ApplyError::Signature)));
    }

    #[tokio::test]
    async fn a_compat_core_needs_no_manifest() {
        let manifest = Manifest::single(pair().public_key());
        let options = CreateOptions { manifest, writer: Some(pair()), compat: true };
        let source = Core::create(&memory(), options).unwrap();
        assert_eq!(source.key(), pair().public_key().as_bytes());
        source.append((0..9).map(block).collect()).await.unwrap();
        let storage = memory();
        let copy = reader(&storage, &source);
        let data = proof(&source, &upgrade(0, 9));
        assert_eq!(data.manifest, None);
        copy.apply(&data).unwrap();
        download(&copy, &source);
        copy.close().await.unwrap();
        let options = OpenOptions { writer: Some(pair()), ..OpenOptions::default() };
        assert_eq!(Core::open(&storage, *source.key(), options).unwrap().contiguous_length(), 9);
    }

    #[tokio::test]
    async fn sizes_that_a_sibling_only_claims_never_replace_stored_ones() {
        let source = written(&memory(), 8).await;
        let copy = reader(&memory(), &source);
        download(&copy, &source);
        let mut data = proof(&source, &Request { hash: asked_hash(1, 1), ..Request::default() });
        let nodes = &mut data.hash.as_mut().unwrap().nodes;
        nodes[0].size += 1;
        nodes[1].size -= 1;
        copy.apply(&data).unwrap();
        assert_eq!(copy.byte_offset(4).unwrap(), source.byte_offset(4).unwrap());
        assert_eq!(copy.byte_offset(2).unwrap(), source.byte_offset(2).unwrap());
    }
}
