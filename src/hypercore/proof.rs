//! Making proofs: what a peer needs to believe a block, a hash, a position or a longer log.
//!
//! The reference is `generateProof` in npm `hypercore/lib/merkle-tree.js`: for a request the same
//! nodes are chosen, in the same order.

use super::error::CoreError;
use super::flat_tree;
use super::manifest::Prologue;
use super::messages::{
    Data, DataBlock, DataHash, DataSeek, DataUpgrade, MAX_INDEX, Node, Request, RequestSeek,
    RequestUpgrade,
};
use super::seek;
use super::tree::{Nodes, Roots};

use bytes::Bytes;

/// What is proven: a log at one moment.
pub(super) struct Proven<'a, N> {
    pub(super) fork: u64,
    pub(super) roots: &'a Roots,
    pub(super) signature: Option<&'a Bytes>,
    pub(super) prologue: Option<&'a Prologue>,
    pub(super) nodes: &'a N,
}

/// The block or tree node that a request names.
#[derive(Clone, Copy)]
struct Target {
    index: u64,
    levels: u64,
    is_block: bool,
}

/// Tree indexes by the part of the answer they go into.
#[derive(Default)]
struct Parts {
    node: Option<Vec<u64>>,
    seek: Option<Vec<u64>>,
    upgrade: Vec<u64>,
    additional: Vec<u64>,
}

impl<N: Nodes> Proven<'_, N> {
    /// The answer to a request, with the block's value empty and no manifest.
    pub(super) fn prove(&self, request: &Request) -> Result<Data, CoreError> {
        let length = self.roots.length;
        let mut data = Data { request: request.id, fork: self.fork, ..Data::default() };
        if length == 0 {
            return Ok(data);
        }
        let upgrade = request.upgrade.map(|upgrade| self.upgrade_of(upgrade)).transpose()?;
        let to = upgrade.map_or(length, |upgrade| upgrade.start + upgrade.length);
        let parts = self.choose(request, upgrade, to)?;
        if let Some(block) = &request.block {
            let nodes = self.load(parts.node)?.ok_or(CoreError::InvalidRequest("block"))?;
            data.block = Some(DataBlock { index: block.index, value: Bytes::new(), nodes });
        } else if let Some(hash) = &request.hash {
            let nodes = self.load(parts.node)?.ok_or(CoreError::InvalidRequest("hash"))?;
            data.hash = Some(DataHash { index: hash.index, nodes });
        }
        if let (Some(seek), Some(nodes)) = (&request.seek, self.load(parts.seek)?) {
            data.seek = Some(DataSeek { bytes: seek.bytes, nodes });
        }
        if let Some(upgrade) = upgrade {
            data.upgrade = Some(DataUpgrade {
                start: upgrade.start,
                length: upgrade.length,
                nodes: self.load(Some(parts.upgrade))?.unwrap_or_default(),
                additional_nodes: self.load(Some(parts.additional))?.unwrap_or_default(),
                signature: self.signature.cloned(),
            });
        }
        Ok(data)
    }

    /// The upgrade as it is answered: never one that ends inside the prologue.
    fn upgrade_of(&self, asked: RequestUpgrade) -> Result<RequestUpgrade, CoreError> {
        let mut upgrade = asked;
        if let Some(prologue) = self.prologue.filter(|prologue| asked.start < prologue.length) {
            upgrade = RequestUpgrade { start: 0, length: prologue.length };
        }
        let valid = upgrade.start <= MAX_INDEX
            && upgrade.length <= MAX_INDEX
            && upgrade.length > 0
            && upgrade.start + upgrade.length <= self.roots.length;
        if valid { Ok(upgrade) } else { Err(CoreError::InvalidRequest("upgrade")) }
    }

    fn choose(
        &self,
        request: &Request,
        upgrade: Option<RequestUpgrade>,
        to: u64,
    ) -> Result<Parts, CoreError> {
        let mut parts = Parts::default();
        let target = target(request)?;
        let seek = request.seek.as_ref();
        // The node that the upgrade's part shows the way to; none when it is 2 * length.
        let mut sub_tree = 2 * self.roots.length;
        match (target, upgrade) {
            (Some(target), upgrade)
                if upgrade.is_none_or(|upgrade| {
                    flat_tree::right_span(target.index) / 2 < upgrade.start
                }) =>
            {
                sub_tree = above(target, to)?;
                let seek_root = match seek {
                    Some(seek) => Some(seek::below(sub_tree, self.roots, seek, self.nodes)?),
                    None => None,
                };
                target_and_seek(target, seek_root, sub_tree, &mut parts)?;
            }
            (Some(target), Some(upgrade)) => {
                if seek.is_some() && target.index >= 2 * upgrade.start {
                    return Err(CoreError::InvalidRequest("a seek and a block in an upgrade"));
                }
                sub_tree = self.seek_or(seek, to, target.index)?;
            }
            (None, Some(_)) => sub_tree = self.seek_or(seek, to, sub_tree)?,
            (None, None) => {}
            (Some(_), None) => return Err(CoreError::InvalidRequest("block")),
        }
        if let Some(upgrade) = upgrade {
            let open = target.is_some() || seek.is_some();
            for root in flat_tree::upgrade_path(upgrade.start, to) {
                let free = open && parts.node.is_none() && parts.seek.is_none();
                if !free || !flat_tree::contains(root, sub_tree) {
                    parts.upgrade.push(root);
                } else if let Some(target) = target {
                    target_and_seek(target, seek.map(|_| sub_tree), root, &mut parts)?;
                } else {
                    parts.seek = Some(climb(sub_tree, root)?);
                }
            }
            if self.roots.length > to {
                parts.additional = flat_tree::upgrade_path(to, self.roots.length);
            }
        }
        Ok(parts)
    }

    fn seek_or(
        &self,
        seek: Option<&RequestSeek>,
        to: u64,
        otherwise: u64,
    ) -> Result<u64, CoreError> {
        seek.map_or(Ok(otherwise), |seek| seek::from_head(to, seek, self.nodes))
    }

    fn load(&self, indexes: Option<Vec<u64>>) -> Result<Option<Vec<Node>>, CoreError> {
        let load =
            |list: Vec<u64>| list.into_iter().map(|index| self.nodes.expect(index)).collect();
        indexes.map(load).transpose()
    }
}

fn target(request: &Request) -> Result<Option<Target>, CoreError> {
    let target = match (&request.block, &request.hash) {
        (Some(block), _) => {
            let index = block.index.checked_mul(2).ok_or(CoreError::InvalidRequest("block"))?;
            Target { index, levels: block.nodes, is_block: true }
        }
        (None, Some(hash)) => Target { index: hash.index, levels: hash.nodes, is_block: false },
        (None, None) => return Ok(None),
    };
    if target.index > 2 * MAX_INDEX {
        return Err(CoreError::InvalidRequest("position"));
    }
    Ok(Some(target))
}

/// The node so many levels above the target; it must end within the first `length` blocks.
fn above(target: Target, length: u64) -> Result<u64, CoreError> {
    let head = 2 * length;
    let mut at = target.index;
    if flat_tree::right_span(at) >= head {
        return Err(CoreError::InvalidRequest("position beyond the end"));
    }
    for _ in 0..target.levels {
        at = flat_tree::parent(at);
        if flat_tree::contains(at, head) {
            return Err(CoreError::InvalidRequest("more levels than the tree has"));
        }
    }
    Ok(at)
}

/// The siblings from the target up to `root`; where one of them leads to the sought byte, the way
/// there instead.
fn target_and_seek(
    target: Target,
    seek_root: Option<u64>,
    root: u64,
    parts: &mut Parts,
) -> Result<(), CoreError> {
    if !flat_tree::contains(root, target.index) {
        return Err(CoreError::InvalidRequest("position outside of its tree"));
    }
    let mut path = if target.is_block { Vec::new() } else { vec![target.index] };
    let mut at = target.index;
    while at != root {
        let sibling = flat_tree::sibling(at);
        match seek_root {
            Some(seek) if seek != sibling && flat_tree::contains(sibling, seek) => {
                parts.seek = Some(climb(seek, sibling)?);
            }
            _ => path.push(sibling),
        }
        at = flat_tree::parent(at);
    }
    parts.node = Some(path);
    Ok(())
}

/// A node and the siblings from it up to `root`.
fn climb(from: u64, root: u64) -> Result<Vec<u64>, CoreError> {
    if !flat_tree::contains(root, from) {
        return Err(CoreError::InvalidRequest("a seek outside of its tree"));
    }
    let mut path = vec![from];
    let mut at = from;
    while at != root {
        path.push(flat_tree::sibling(at));
        at = flat_tree::parent(at);
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypercore::messages::RequestNode;
    use crate::hypercore::tree::Batch;
    use std::collections::HashMap;

    struct Known(HashMap<u64, Node>);

    impl Nodes for Known {
        fn node(&self, index: u64) -> Result<Option<Node>, CoreError> {
            Ok(self.0.get(&index).copied())
        }
    }

    fn prove(
        length: u64,
        prologue: Option<&Prologue>,
        request: &Request,
    ) -> Result<Data, CoreError> {
        let mut batch = Batch::new(Roots::default());
        for index in 0..length {
            batch.append(&index.to_le_bytes()).unwrap();
        }
        let found = batch.found.iter().map(|found| (found.node.index, found.node)).collect();
        let (roots, nodes) = (&batch.roots, &Known(found));
        Proven { fork: 0, roots, signature: None, prologue, nodes }.prove(request)
    }

    fn indexes(nodes: &[Node]) -> Vec<u64> {
        nodes.iter().map(|node| node.index).collect()
    }

    fn upgrade(start: u64, length: u64) -> Option<RequestUpgrade> {
        Some(RequestUpgrade { start, length })
    }

    #[test]
    fn a_block_comes_with_as_many_siblings_as_levels_were_asked_for() {
        for (levels, path) in [(0, &[][..]), (1, &[4]), (2, &[4, 1]), (3, &[4, 1, 11])] {
            let block = Some(RequestNode { index: 3, nodes: levels });
            let data = prove(8, None, &Request { block, ..Request::default() }).unwrap();
            assert_eq!(indexes(&data.block.unwrap().nodes), path);
        }
        let block = Some(RequestNode { index: 3, nodes: 4 });
        let refused = prove(8, None, &Request { block, ..Request::default() });
        assert!(matches!(refused, Err(CoreError::InvalidRequest(_))));
    }

    #[test]
    fn a_block_in_an_upgrade_stands_for_one_of_its_nodes() {
        let block = Some(RequestNode { index: 5, nodes: 0 });
        let request = Request { block, upgrade: upgrade(4, 3), ..Request::default() };
        let data = prove(9, None, &request).unwrap();
        assert_eq!(indexes(&data.block.unwrap().nodes), [8]);
        let found = data.upgrade.unwrap();
        assert_eq!(indexes(&found.nodes), [12]);
        assert_eq!(indexes(&found.additional_nodes), [14, 16]);
    }

    #[test]
    fn an_upgrade_inside_the_prologue_is_answered_with_all_of_it() {
        let prologue = Prologue { hash: [0; 32], length: 6 };
        for asked in [upgrade(0, 1), upgrade(2, 3), upgrade(5, 4), upgrade(0, 1 << 50)] {
            let request = Request { upgrade: asked, ..Request::default() };
            let found = prove(9, Some(&prologue), &request).unwrap().upgrade.unwrap();
            assert_eq!((found.start, found.length), (0, 6));
        }
        let request = Request { upgrade: upgrade(6, 2), ..Request::default() };
        let found = prove(9, Some(&prologue), &request).unwrap().upgrade.unwrap();
        assert_eq!((found.start, found.length), (6, 2));
    }

    #[test]
    fn an_upgrade_must_lie_in_the_log() {
        for asked in [upgrade(0, 0), upgrade(0, 10), upgrade(9, 1), upgrade(u64::MAX, u64::MAX)] {
            let request = Request { upgrade: asked, ..Request::default() };
            let refused = prove(9, None, &request);
            assert!(matches!(refused, Err(CoreError::InvalidRequest(_))), "{asked:?}");
        }
    }
}
