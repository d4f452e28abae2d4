//! Logs whose blocks are a file's bytes and whose key is the file's own merkle root.
//!
//! The manifest has a prologue and no signers, so the tree hash is all the authority there is: whoever
//! has the same bytes has the same log. npm hypercore makes the same key of
//! `{ prologue: { hash, length }, signers: [], quorum: 0 }`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;

use super::block_file::MemoryFile;
use super::core::CancelOnDrop;
use super::disk_file::FileStamp;
use super::error::CoreError;
use super::hashing::Hashing;
use super::manifest::Manifest;
use super::messages::Node;
use super::node;
use super::tree::{Batch, Roots};
use crate::crypto::Hash;

/// Bytes a block of a book; the last one is shorter.
pub const BLOCK_SIZE: u64 = 64 * 1024;

/// Told how many bytes of how many are done. Called on a blocking thread, about once a mebibyte.
pub type Progress = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// The tree over a file's blocks.
#[derive(Debug, Clone)]
pub struct StaticTree {
    /// The manifest: a prologue and no signers.
    pub manifest: Manifest,
    /// The key of the core.
    pub key: Hash,
    /// The tree hash.
    pub hash: Hash,
    /// The length in blocks.
    pub length: u64,
    /// The length in bytes.
    pub byte_length: u64,
    /// The hashes of the blocks, from which all of the tree follows.
    pub leaves: Arc<[Hash]>,
    /// What was hashed.
    pub source: StaticSource,
}

/// What a [`StaticTree`] is of.
#[derive(Debug, Clone)]
pub enum StaticSource {
    /// A file on disk.
    File {
        /// Where it is.
        path: PathBuf,
        /// What it was when it was hashed.
        stamp: FileStamp,
    },
    /// Bytes in memory.
    Memory(Arc<MemoryFile>),
}

impl StaticTree {
    /// Hashes bytes in memory, at once: for small books.
    ///
    /// Fails with [`CoreError::BlockSize`] when there are none.
    pub fn of_bytes(bytes: &Bytes) -> Result<Self, CoreError> {
        if bytes.is_empty() {
            return Err(CoreError::BlockSize(0));
        }
        let file = Arc::new(MemoryFile::of(bytes, BLOCK_SIZE));
        let blocks = file.blocks();
        let blocks: Vec<(u64, &[u8])> = (0..).zip(blocks.iter().map(|block| &block[..])).collect();
        let leaves = node::leaves(&blocks).into_iter().map(|leaf| leaf.hash).collect();
        Self::new(leaves, bytes.len() as u64, StaticSource::Memory(file))
    }

    /// Hashes the file at `path` on a blocking thread. Dropping the future ends the work soon.
    ///
    /// Fails with [`CoreError::FileChanged`] when the file changes under it, and with
    /// [`CoreError::BlockSize`] when it is empty.
    pub async fn build(path: &Path, progress: Option<Progress>) -> Result<Self, CoreError> {
        let cancelled = CancelOnDrop::default();
        let flag = Arc::clone(&cancelled.0);
        let path = path.to_owned();
        let work = move || Self::build_now(path, progress.as_ref(), &flag);
        crate::tasks::blocking(work).await.map_err(|_| CoreError::Cancelled)?
    }

    fn build_now(
        path: PathBuf,
        progress: Option<&Progress>,
        cancelled: &AtomicBool,
    ) -> Result<Self, CoreError> {
        let file = File::open(&path)?;
        let stamp = FileStamp::of(&file)?.settled();
        if stamp.size == 0 {
            return Err(CoreError::BlockSize(0));
        }
        let leaves = Hashing::new(&file, stamp.size, progress, cancelled).run()?;
        if stamp.differs(&FileStamp::of(&file)?) {
            return Err(CoreError::FileChanged);
        }
        Self::new(leaves, stamp.size, StaticSource::File { path, stamp })
    }

    fn new(leaves: Vec<Hash>, byte_length: u64, source: StaticSource) -> Result<Self, CoreError> {
        let mut tree = Batch::new(Roots::default());
        for leaf in leaf_nodes(&leaves, byte_length) {
            tree.append_root(leaf).ok_or(CoreError::TooLong)?;
            tree.found.clear();
        }
        let hash = tree.roots.hash();
        let manifest = Manifest::fixed(hash, tree.roots.length);
        Ok(Self {
            key: manifest.key(),
            manifest,
            hash,
            length: tree.roots.length,
            byte_length,
            leaves: leaves.into(),
            source,
        })
    }

    /// All nodes, in groups that are sorted by index. They are made anew from the leaves: all at once they
    /// would take three times as much memory.
    pub(super) fn nodes(&self) -> impl Iterator<Item = Vec<Node>> + '_ {
        let mut tree = Batch::new(Roots::default());
        let mut leaves = leaf_nodes(&self.leaves, self.byte_length);
        std::iter::from_fn(move || {
            // The tree was made of them before.
            leaves.by_ref().take(GROUP).try_for_each(|leaf| tree.append_root(leaf).map(drop))?;
            let mut nodes: Vec<Node> = tree.found.drain(..).map(|found| found.node).collect();
            nodes.sort_unstable_by_key(|node| node.index);
            (!nodes.is_empty()).then_some(nodes)
        })
    }
}

/// How many leaves are in a group of [`StaticTree::nodes`].
const GROUP: usize = 2048;

/// The leaves of a file of so many bytes.
fn leaf_nodes(hashes: &[Hash], byte_length: u64) -> impl Iterator<Item = Node> + '_ {
    (0..).zip(hashes).map(move |(block, hash)| {
        let size = (byte_length - block * BLOCK_SIZE).min(BLOCK_SIZE);
        Node { index: 2 * block, size, hash: *hash }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypercore::memory::MemoryStorage;
    use crate::hypercore::messages::{RequestNode, RequestUpgrade};
    use crate::hypercore::{
        ApplyError, BlockSource, Core, Data, FileAccess, OpenOptions, Request, Storage,
    };
    use std::sync::Mutex;

    fn bytes(size: usize) -> Vec<u8> {
        (0..size).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    async fn built(dir: &Path, size: usize) -> StaticTree {
        let path = dir.join("book");
        std::fs::write(&path, bytes(size)).unwrap();
        StaticTree::build(&path, None).await.unwrap()
    }

    async fn served(dir: &Path, size: usize) -> Core {
        Core::open_static(&MemoryStorage::new(), &built(dir, size).await).await.unwrap()
    }

    fn into_file(storage: &dyn Storage, source: &Core, path: &Path) -> Core {
        let blocks = BlockSource::File {
            path: path.to_owned(),
            block_size: BLOCK_SIZE,
            access: FileAccess::Write,
        };
        let options = OpenOptions { blocks, ..OpenOptions::default() };
        Core::open(storage, *source.key(), options).unwrap()
    }

    fn prove(source: &Core, request: &Request) -> Data {
        source.prove(request).unwrap().unwrap()
    }

    fn whole(length: u64) -> Request {
        let upgrade = Some(RequestUpgrade { start: 0, length });
        Request { upgrade, manifest: true, ..Request::default() }
    }

    fn block(copy: &Core, index: u64) -> Request {
        let nodes = copy.missing_nodes(2 * index).unwrap();
        Request { block: Some(RequestNode { index, nodes }), ..Request::default() }
    }

    #[tokio::test]
    async fn the_tree_is_that_of_the_blocks_hashed_one_by_one() {
        let dir = tempfile::tempdir().unwrap();
        for size in [1, 65_535, 65_536, 65_537, 65_536 * 4, 65_536 * 9 + 5] {
            let tree = built(dir.path(), size).await;
            let mut slow = Batch::new(Roots::default());
            for block in bytes(size).chunks(BLOCK_SIZE as usize) {
                slow.append_root(node::leaf(slow.roots.length, block)).unwrap();
            }
            assert_eq!(tree.hash, slow.roots.hash(), "{size}");
            slow.found.sort_unstable_by_key(|found| found.node.index);
            let nodes: Vec<_> = slow.found.iter().map(|found| found.node).collect();
            assert_eq!(tree.nodes().collect::<Vec<_>>().concat(), nodes);
            assert_eq!((tree.length, tree.byte_length), (slow.roots.length, size as u64));
            assert_eq!(tree.key, Manifest::fixed(tree.hash, tree.length).key());
        }
    }

    #[tokio::test]
    async fn bytes_in_memory_have_the_tree_of_the_file_and_are_served() {
        let dir = tempfile::tempdir().unwrap();
        for size in [1, 65_536, 65_537, 65_536 * 9 + 5] {
            let (file, held) = (built(dir.path(), size).await, Bytes::from(bytes(size)));
            let tree = StaticTree::of_bytes(&held).unwrap();
            assert_eq!((tree.key, tree.hash), (file.key, file.hash));
            assert_eq!((&tree.leaves, tree.length), (&file.leaves, file.length));
            assert_eq!(tree.byte_length, size as u64);
            let source = Core::open_static(&MemoryStorage::new(), &tree).await.unwrap();
            let to = Arc::new(MemoryFile::default());
            let blocks = BlockSource::Memory {
                file: Arc::clone(&to),
                block_size: BLOCK_SIZE,
                access: FileAccess::Write,
            };
            let options = OpenOptions { blocks, ..OpenOptions::default() };
            let copy = Core::open(&MemoryStorage::new(), tree.key, options).unwrap();
            copy.apply(&prove(&source, &whole(1))).unwrap();
            for index in 0..tree.length {
                copy.apply(&prove(&source, &block(&copy, index))).unwrap();
            }
            assert!(copy.is_verified_here());
            copy.close().await.unwrap();
            assert_eq!(to.blocks().concat(), held);
        }
        assert!(matches!(StaticTree::of_bytes(&Bytes::new()), Err(CoreError::BlockSize(0))));
    }

    #[tokio::test]
    async fn progress_is_told_up_to_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let size = 3 << 20;
        std::fs::write(dir.path().join("book"), bytes(size)).unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&told);
        let progress: Progress =
            Arc::new(move |done, total| log.lock().unwrap().push((done, total)));
        StaticTree::build(&dir.path().join("book"), Some(progress)).await.unwrap();
        let told = told.lock().unwrap();
        assert_eq!(told.last(), Some(&(size as u64, size as u64)));
        assert!(told.len() >= 3 && told.is_sorted());
    }

    #[tokio::test]
    async fn an_empty_or_missing_file_has_no_core() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("book");
        assert!(matches!(StaticTree::build(&path, None).await, Err(CoreError::File { .. })));
        std::fs::write(&path, b"").unwrap();
        assert!(matches!(StaticTree::build(&path, None).await, Err(CoreError::BlockSize(0))));
    }

    #[tokio::test]
    async fn a_book_is_fetched_into_a_file_in_any_order_and_continued_after_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let size = 65_536 * 9 + 5;
        let source = served(dir.path(), size).await;
        let path = dir.path().join("copy");
        let storage = MemoryStorage::new();
        let copy = into_file(&storage, &source, &path);
        // An upgrade of a static core is always to its whole length.
        copy.apply(&prove(&source, &whole(1))).unwrap();
        assert_eq!(copy.length(), 10);
        for index in [9, 0, 4] {
            copy.apply(&prove(&source, &block(&copy, index))).unwrap();
        }
        copy.flush().await.unwrap();
        drop(copy);
        let storage = storage.after_crash();
        let copy = into_file(&storage, &source, &path);
        assert_eq!(copy.state().blocks, 3);
        for index in 0..10 {
            if !copy.has(index) {
                copy.apply(&prove(&source, &block(&copy, index))).unwrap();
            }
        }
        copy.sync().await.unwrap();
        assert!(copy.verify(None).await.unwrap().whole);
        assert_eq!(std::fs::read(&path).unwrap(), bytes(size));
        assert_eq!(copy.get(9).unwrap().unwrap(), bytes(size)[65_536 * 9..]);
    }

    #[tokio::test]
    async fn a_file_that_changed_is_not_served() {
        let dir = tempfile::tempdir().unwrap();
        let mut tree = built(dir.path(), 200_000).await;
        let StaticSource::File { path, mut stamp } = tree.source.clone() else {
            panic!("{tree:?}")
        };
        // So old that what is read is not hashed again.
        while cfg!(unix) && !stamp.is_settled() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            tree = StaticTree::build(&path, None).await.unwrap();
            let StaticSource::File { stamp: now, .. } = &tree.source else { panic!("{tree:?}") };
            stamp = *now;
        }
        let storage = MemoryStorage::new();
        let source = Core::open_static(&storage, &tree).await.unwrap();
        let copy = into_file(&MemoryStorage::new(), &source, &dir.path().join("copy"));
        copy.apply(&prove(&source, &whole(4))).unwrap();
        let asked = block(&copy, 2);
        assert!(source.prove(&asked).is_ok());
        // The same size and time, other bytes: only the hash tells.
        let mut changed = bytes(200_000);
        changed[150_000] ^= 1;
        std::fs::write(&path, changed).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        let nanos = u64::try_from(stamp.modified).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_nanos(nanos);
        file.set_modified(time).unwrap();
        assert!(matches!(source.prove(&asked), Err(CoreError::FileChanged)));
        assert!(source.prove(&block(&copy, 0)).is_ok(), "this block is what it was");
        file.set_modified(time + std::time::Duration::from_secs(1)).unwrap();
        assert!(matches!(source.prove(&block(&copy, 0)), Err(CoreError::FileChanged)));
        let verified = source.verify(None).await.unwrap();
        assert_eq!((verified.good, verified.whole, source.state().blocks), (0, false, 4));
        drop(source);
        let open = Core::open_static(&storage, &tree).await.unwrap();
        assert!(matches!(open.get(0), Err(CoreError::FileChanged)));
    }

    #[tokio::test]
    async fn blocks_of_another_size_never_get_into_a_file() {
        use crate::crypto::KeyPair;
        use crate::hypercore::CreateOptions;
        let dir = tempfile::tempdir().unwrap();
        let pair = KeyPair::generate();
        let manifest = Manifest::single(pair.public_key());
        let options = CreateOptions { manifest, writer: Some(pair), compat: false };
        let source = Core::create(&MemoryStorage::new(), options).unwrap();
        let sizes = [65_536, 65_000, 66_000];
        source.append(sizes.map(|size| bytes(size).into()).to_vec()).await.unwrap();
        let copy = into_file(&MemoryStorage::new(), &source, &dir.path().join("copy"));
        let upgraded = copy.apply(&prove(&source, &whole(3))).unwrap().upgraded;
        assert_eq!(upgraded, Some(3), "three blocks are what a file of that size has");
        copy.apply(&prove(&source, &block(&copy, 0))).unwrap();
        let refused = copy.apply(&prove(&source, &block(&copy, 1))).unwrap_err();
        assert!(matches!(refused, ApplyError::Layout(1)), "{refused}");
        source.append(vec![bytes(1).into()]).await.unwrap();
        let upgrade = Some(RequestUpgrade { start: 3, length: 1 });
        let asked = Request { upgrade, ..Request::default() };
        let refused = copy.apply(&prove(&source, &asked)).unwrap_err();
        assert!(matches!(refused, ApplyError::Layout(3)), "{refused}");
    }
}
