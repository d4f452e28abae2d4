//! The hashes of the tree (npm `hypercore-crypto`: `data`, `parent`, `tree`).

use blake2b_simd::Params;
use blake2b_simd::many::{HashManyJob, hash_many, update_many};

use super::flat_tree;
use super::messages::Node;
use crate::crypto::{Hash, KEY_LENGTH, hash};

const LEAF: &[u8] = &[0];
const PARENT: &[u8] = &[1];
const ROOTS: &[u8] = &[2];

/// The leaf of a block.
pub(super) fn leaf(block: u64, data: &[u8]) -> Node {
    let size = data.len() as u64;
    Node { index: block.wrapping_mul(2), size, hash: hash(&[LEAF, &size.to_le_bytes(), data]) }
}

/// Blocks from so many bytes on are hashed where they are; shorter ones are copied together first.
const WIDE: usize = 2048;
/// How many short inputs are copied together: few enough to stay in the processor's first cache.
const TOGETHER: usize = 64;

/// The leaves of several blocks, hashed side by side in the processor's lanes: with AVX2 three times as
/// fast as one after the other.
pub(super) fn leaves(blocks: &[(u64, &[u8])]) -> Vec<Node> {
    let is_wide = |data: &[u8]| data.len() >= WIDE;
    let (wide, narrow): (Vec<_>, Vec<_>) =
        blocks.iter().map(|(_, data)| *data).partition(|data| is_wide(data));
    let (mut wide, mut narrow) =
        (wide_leaves(&wide).into_iter(), short_leaves(&narrow).into_iter());
    let each = |(block, data): &(u64, &[u8])| {
        let hash = if is_wide(data) { wide.next() } else { narrow.next() };
        let (index, size) = (block.wrapping_mul(2), data.len() as u64);
        hash.map_or_else(|| leaf(*block, data), |hash| Node { index, size, hash })
    };
    blocks.iter().map(each).collect()
}

fn wide_leaves(blocks: &[&[u8]]) -> Vec<Hash> {
    let params = params();
    let start = |data: &&[u8]| {
        let mut state = params.to_state();
        state.update(LEAF).update(&(data.len() as u64).to_le_bytes());
        state
    };
    let mut states: Vec<_> = blocks.iter().map(start).collect();
    update_many(states.iter_mut().zip(blocks));
    states.iter().map(|state| hash_of(&state.finalize())).collect()
}

fn short_leaves(blocks: &[&[u8]]) -> Vec<Hash> {
    let put = |bytes: &mut Vec<u8>, data: &&[u8]| {
        bytes.extend_from_slice(LEAF);
        bytes.extend_from_slice(&(data.len() as u64).to_le_bytes());
        bytes.extend_from_slice(data);
    };
    hash_together(blocks, put)
}

/// The hashes of short inputs, each of which `put` appends to the bytes.
fn hash_together<T>(inputs: &[T], put: impl Fn(&mut Vec<u8>, &T)) -> Vec<Hash> {
    let params = params();
    let mut hashes = Vec::with_capacity(inputs.len());
    let mut bytes = Vec::new();
    for inputs in inputs.chunks(TOGETHER) {
        bytes.clear();
        let end = |input| {
            put(&mut bytes, input);
            bytes.len()
        };
        let ends: Vec<usize> = inputs.iter().map(end).collect();
        let mut start = 0;
        let job = |end: &usize| {
            let input = bytes.get(std::mem::replace(&mut start, *end)..*end);
            HashManyJob::new(&params, input.unwrap_or_default())
        };
        let mut jobs: Vec<_> = ends.iter().map(job).collect();
        hash_many(&mut jobs);
        hashes.extend(jobs.iter().map(|job| hash_of(&job.to_hash())));
    }
    hashes
}

fn params() -> Params {
    let mut params = Params::new();
    params.hash_length(KEY_LENGTH);
    params
}

fn hash_of(hash: &blake2b_simd::Hash) -> Hash {
    let mut out = [0; KEY_LENGTH];
    out.copy_from_slice(hash.as_bytes());
    out
}

/// The parents of neighbours, of which there must be an even number: of the first two, of the next two and
/// so on. `None` when their sizes are absurd.
pub(super) fn parents(nodes: &[Node]) -> Option<Vec<Node>> {
    let (pairs, _) = nodes.as_chunks::<2>();
    let parent = |[left, right]: &[Node; 2]| {
        let size = left.size.checked_add(right.size)?;
        Some(Node { index: flat_tree::parent(left.index), size, hash: [0; KEY_LENGTH] })
    };
    let mut parents = pairs.iter().map(parent).collect::<Option<Vec<_>>>()?;
    let hashes = hash_together(pairs, |bytes, [left, right]| {
        bytes.extend_from_slice(PARENT);
        bytes.extend_from_slice(&(left.size.wrapping_add(right.size)).to_le_bytes());
        bytes.extend_from_slice(&left.hash);
        bytes.extend_from_slice(&right.hash);
    });
    for (parent, hash) in parents.iter_mut().zip(hashes) {
        parent.hash = hash;
    }
    Some(parents)
}

/// The parent at `index` of two nodes, in whichever order; `None` when their sizes are absurd.
pub(super) fn parent(index: u64, a: &Node, b: &Node) -> Option<Node> {
    let (left, right) = if a.index <= b.index { (a, b) } else { (b, a) };
    let size = left.size.checked_add(right.size)?;
    let hash = hash(&[PARENT, &size.to_le_bytes(), &left.hash, &right.hash]);
    Some(Node { index, size, hash })
}

/// The hash of a whole tree.
pub(super) fn tree(roots: &[Node]) -> Hash {
    let mut bytes = Vec::with_capacity(1 + roots.len() * 48);
    bytes.extend_from_slice(ROOTS);
    for root in roots {
        bytes.extend_from_slice(&root.hash);
        bytes.extend_from_slice(&root.index.to_le_bytes());
        bytes.extend_from_slice(&root.size.to_le_bytes());
    }
    hash(&[&bytes])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn hashes_are_those_of_npm_hypercore_crypto() {
        let (left, right) = (leaf(0, b"hello"), leaf(1, b"world!"));
        let up = parent(1, &right, &left).unwrap();
        let tree = tree(&[up, Node { index: 4, ..left }]);
        assert_eq!(
            hex(&left.hash),
            "f2391083cfaa8043205fed76cdff843902146ca92aebcd7a196814ec45d8c8f8"
        );
        assert_eq!(
            hex(&leaf(0, b"").hash),
            "5187b7a8021bf4f2c004ea3a54cfece1754f11c7624d2363c7f4cf4fddd1441e"
        );
        assert_eq!(
            hex(&up.hash),
            "39b5bdb783bd95d59af7446800d3a5bd1a83169d94e1527de039049a9a704967"
        );
        assert_eq!(hex(&tree), "bf0931beaa4a7ecdfe7c98b12011cc99b08a1390042e752d61dde67c3485ee4a");
        assert_eq!((right.index, up.size), (2, 11));
    }

    #[test]
    fn many_leaves_at_once_are_the_same_as_one_by_one() {
        let sizes =
            [0, 1, 119, 120, 2047, 2048, 2167, 2168, 2169, 65_536, 65_535, 70_000, 5, 65_536];
        let data: Vec<Vec<u8>> = sizes
            .iter()
            .map(|size| (0..*size).map(|n: usize| (n * 7 + size) as u8).collect())
            .collect();
        let blocks: Vec<(u64, &[u8])> =
            data.iter().zip(3..).map(|(data, index)| (index, &data[..])).collect();
        for count in 0..blocks.len() {
            let expected: Vec<Node> =
                blocks[..count].iter().map(|(index, data)| leaf(*index, data)).collect();
            assert_eq!(leaves(&blocks[..count]), expected);
        }
    }

    #[test]
    fn sizes_that_overflow_have_no_parent() {
        let huge = Node { index: 0, size: u64::MAX, hash: [0; 32] };
        assert!(parent(1, &huge, &leaf(1, b"x")).is_none());
    }
}
