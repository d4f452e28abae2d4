//! Opening and making cores.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use tokio::sync::{Notify, watch};

use super::state::{Inner, Known, Pending, State};
use super::{BlockSource, Core, CreateOptions, OpenOptions};
use crate::crypto::{Hash, KeyPair, discovery_key};
use crate::hypercore::bitfield::Bitfield;
use crate::hypercore::block_file::BlockFile;
use crate::hypercore::disk_file::FileAccess;
use crate::hypercore::error::CoreError;
use crate::hypercore::manifest::Manifest;
use crate::hypercore::messages::Node;
use crate::hypercore::static_core::{BLOCK_SIZE, StaticSource, StaticTree};
use crate::hypercore::storage::{
    Commit, CoreStorage, Header, MAX_LENGTH, Storage, StorageError, StorageErrorKind, Survives,
};
use crate::hypercore::tree::{Batch, Nodes, Roots};
use crate::hypercore::verifier::Verifier;
use crate::sync::lock;

impl Core {
    /// Makes a new core. Blocks on disk. Nothing is stored before the first append.
    ///
    /// Fails with [`CoreError::Exists`] when the storage has it already.
    pub fn create(storage: &dyn Storage, options: CreateOptions) -> Result<Self, CoreError> {
        let CreateOptions { manifest, writer, compat } = options;
        let key = match manifest.signers.as_slice() {
            [signer] if compat => *signer.public_key.as_bytes(),
            _ if compat => return Err(CoreError::ManifestMismatch),
            _ => manifest.key(),
        };
        let place = open_place(storage, &key)?;
        if place.header()?.is_some() {
            return Err(CoreError::Exists);
        }
        let options =
            OpenOptions { manifest: Some(manifest), writer, blocks: BlockSource::Storage };
        Self::open_in(place, key, options, None)
    }

    /// Opens the core with this key, or makes a place for it. Blocks on disk.
    ///
    /// Fails with [`CoreError::ManifestMismatch`] when a manifest does not hash to the key, with
    /// [`CoreError::NotWritable`] when `writer` is not its signer, and with [`CoreError::MissingNode`]
    /// or [`CoreError::Corrupt`] when what is stored is damaged.
    pub fn open(storage: &dyn Storage, key: Hash, options: OpenOptions) -> Result<Self, CoreError> {
        let file = match &options.blocks {
            BlockSource::Storage => None,
            BlockSource::File { path, block_size, access } => {
                Some(BlockFile::on_disk(path.clone(), *block_size, *access, None))
            }
            BlockSource::Memory { file, block_size, access } => {
                Some(BlockFile::in_memory(Arc::clone(file), *block_size, *access))
            }
        };
        Self::open_in(open_place(storage, &key)?, key, options, file)
    }

    /// Makes or opens the core of a hashed file, with all its blocks, and returns when that is on disk.
    ///
    /// The file is read as long as it is what was hashed; afterwards reads fail with
    /// [`CoreError::FileChanged`]. Cancelled, it may or may not be stored.
    pub async fn open_static(storage: &dyn Storage, tree: &StaticTree) -> Result<Self, CoreError> {
        let file = match &tree.source {
            StaticSource::File { path, stamp } => {
                BlockFile::on_disk(path.clone(), BLOCK_SIZE, FileAccess::Read, Some(*stamp))
            }
            StaticSource::Memory(file) => {
                BlockFile::in_memory(Arc::clone(file), BLOCK_SIZE, FileAccess::Read)
            }
        };
        let place = open_place(storage, &tree.key)?;
        let complete = match place.header()? {
            Some(header) if header.length == tree.length => {
                Bitfield::from_pages(place.pages()?).contiguous() >= tree.length
            }
            _ => false,
        };
        if !complete {
            for commit in commits(tree) {
                place.commit(Arc::new(commit)).await?;
            }
        }
        let options = OpenOptions { manifest: Some(tree.manifest.clone()), ..Default::default() };
        Self::open_in(place, tree.key, options, Some(file))
    }

    fn open_in(
        place: Box<dyn CoreStorage>,
        key: Hash,
        options: OpenOptions,
        file: Option<BlockFile>,
    ) -> Result<Self, CoreError> {
        let OpenOptions { manifest, writer, .. } = options;
        let header = place.header()?;
        let manifest = match header.as_ref().and_then(|header| header.manifest.as_ref()) {
            Some(bytes) => {
                let manifest = Manifest::decode(bytes);
                Some(manifest.map_err(|_| CoreError::Corrupt("the manifest that is stored"))?)
            }
            None => manifest.or_else(|| writer.as_ref().and_then(|pair| compat_of(pair, &key))),
        };
        if let Some(manifest) = &manifest {
            if !manifest.is_of(&key) {
                return Err(CoreError::ManifestMismatch);
            }
            if let Some(pair) = &writer {
                check_writer(manifest, pair)?;
            }
        } else if writer.is_some() {
            return Err(CoreError::NotWritable);
        }
        let state = load(&*place, &key, header, manifest)?;
        let (changes, _) = watch::channel(state.change());
        let (commits, _) = watch::channel(0);
        let inner = Inner {
            key,
            discovery_key: discovery_key(&key),
            writer,
            storage: place,
            file,
            state: Mutex::new(state),
            changes,
            committing: tokio::sync::Mutex::new(()),
            upgrading: Mutex::new(()),
            wake: Notify::new(),
            commits,
            appends: Mutex::default(),
        };
        let core = Self { inner: Arc::new(inner) };
        {
            let mut state = lock(&core.inner.state);
            if !state.pending.is_empty() {
                core.schedule(&mut state);
            }
        }
        Ok(core)
    }
}

fn open_place(storage: &dyn Storage, key: &Hash) -> Result<Box<dyn CoreStorage>, CoreError> {
    storage.open(&discovery_key(key)).map_err(|error| match error.kind {
        StorageErrorKind::AlreadyOpen => CoreError::AlreadyOpen,
        _ => CoreError::Storage(error),
    })
}

/// The manifest of a core from before manifests, which its writer knows.
fn compat_of(pair: &KeyPair, key: &Hash) -> Option<Manifest> {
    let public_key = pair.public_key();
    (public_key.as_bytes() == key).then(|| Manifest::single(public_key))
}

fn check_writer(manifest: &Manifest, pair: &KeyPair) -> Result<(), CoreError> {
    match manifest.signers.as_slice() {
        [signer] if manifest.quorum == 1 && signer.public_key == pair.public_key() => Ok(()),
        _ => Err(CoreError::NotWritable),
    }
}

/// Reads what is stored and checks that it is whole: the roots must be what was signed.
fn load(
    place: &dyn CoreStorage,
    key: &Hash,
    header: Option<Header>,
    manifest: Option<Manifest>,
) -> Result<State, CoreError> {
    let mut state = State {
        fork: 0,
        roots: Arc::default(),
        signature: None,
        manifest: manifest.map(Known::new),
        bits: Bitfield::default(),
        pending: Pending::default(),
        flushing: None,
        committer: false,
        failure: None,
        closed: false,
        applied_here: 0,
        truncating: None,
        cuts: VecDeque::new(),
    };
    let Some(header) = header else { return Ok(state) };
    if header.key != *key {
        return Err(CoreError::Corrupt("another core has this place"));
    }
    if header.length > MAX_LENGTH {
        return Err(CoreError::Corrupt("length"));
    }
    let roots = Roots::load(header.length, &Stored(place))?;
    if roots.byte_length != header.byte_length {
        return Err(CoreError::Corrupt("length in bytes"));
    }
    if roots.length > 0 {
        let Some(known) = &state.manifest else { return Err(CoreError::Corrupt("manifest")) };
        let batch = Batch::new(roots.clone());
        let signature = header.signature.as_deref();
        if !Verifier::new(key, &known.manifest).verify(&batch, header.fork, signature) {
            return Err(CoreError::Corrupt("the tree is not what was signed"));
        }
    }
    state.bits = Bitfield::from_pages(place.pages()?);
    if state.bits.next_present(roots.length).is_some() {
        return Err(CoreError::Corrupt("bitfield"));
    }
    state.fork = header.fork;
    state.signature = header.signature;
    state.roots = Arc::new(roots);
    state.append_notes(place, key)?;
    Ok(state)
}

/// A whole static core, in commits that take little memory. Before the last the core is empty, so that a
/// crash leaves none that is half there.
fn commits(tree: &StaticTree) -> impl Iterator<Item = Commit> + '_ {
    let empty = Header {
        key: tree.key,
        manifest: Some(tree.manifest.encode().into()),
        fork: 0,
        length: 0,
        byte_length: 0,
        signature: None,
    };
    let mut groups = tree.nodes().peekable();
    std::iter::from_fn(move || {
        let nodes = Arc::new(groups.next()?);
        let mut bits = Bitfield::default();
        let mut header = empty.clone();
        if groups.peek().is_none() {
            bits.insert_range(0, tree.length);
            (header.length, header.byte_length) = (tree.length, tree.byte_length);
        }
        Some(Commit {
            header: Some(header),
            nodes,
            truncate: None,
            blocks: Vec::new(),
            removed_blocks: Vec::new(),
            pages: bits.into_pages().collect(),
            // It can be made anew from its file.
            survives: Survives::Process,
        })
    })
}

struct Stored<'a>(&'a dyn CoreStorage);

impl Nodes for Stored<'_> {
    fn node(&self, index: u64) -> Result<Option<Node>, CoreError> {
        self.0.node(index).map_err(|error: StorageError| error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{create, memory, pair, proof, reader, request, upgrade, written};
    use super::*;
    use crate::hypercore::memory::Damage;

    #[tokio::test]
    async fn a_manifest_that_does_not_hash_to_the_key_opens_nothing() {
        let manifest = Some(Manifest::single(pair().public_key()));
        let options = OpenOptions { manifest, ..OpenOptions::default() };
        let refused = Core::open(&memory(), [1; 32], options);
        assert!(matches!(refused, Err(CoreError::ManifestMismatch)), "{refused:?}");
        let options = OpenOptions { writer: Some(pair()), ..OpenOptions::default() };
        let refused = Core::open(&memory(), [1; 32], options);
        assert!(matches!(refused, Err(CoreError::NotWritable)), "{refused:?}");
    }

    #[tokio::test]
    async fn a_static_core_that_a_crash_left_half_stored_is_stored_again() {
        let bytes = bytes::Bytes::from(vec![7; 2049 * BLOCK_SIZE as usize]);
        let tree = StaticTree::of_bytes(&bytes).unwrap();
        let storage = memory();
        let place = open_place(&storage, &tree.key).unwrap();
        let mut commits = commits(&tree);
        place.commit(Arc::new(commits.next().unwrap())).await.unwrap();
        place.close();
        let crashed = storage.after_crash();
        let half = Core::open(&crashed, tree.key, OpenOptions::default()).unwrap();
        assert_eq!((half.length(), half.state().blocks), (0, 0));
        half.close().await.unwrap();
        let whole = Core::open_static(&crashed, &tree).await.unwrap();
        assert_eq!((whole.contiguous_length(), whole.tree_hash()), (2049, tree.hash));
        assert_eq!((commits.count(), storage.commits(whole.discovery_key())), (1, 1));
        let copy = reader(&memory(), &whole);
        copy.apply(&proof(&whole, &upgrade(0, 2049))).unwrap();
        for index in [0, 2047, 2048] {
            let applied = copy.apply(&proof(&whole, &request(&copy, index))).unwrap();
            assert_eq!(applied.block, Some(index));
        }
    }

    #[tokio::test]
    async fn a_place_for_a_remote_core_is_empty_and_leaves_nothing() {
        let source = create(&memory());
        let storage = memory();
        let copy = reader(&storage, &source);
        assert_eq!((copy.length(), copy.has(0), copy.writable()), (0, false, false));
        assert!(copy.manifest().is_none());
        copy.close().await.unwrap();
        assert_eq!(storage.commits(source.discovery_key()), 0);
    }

    #[tokio::test]
    async fn roots_that_were_not_signed_are_noticed_when_the_core_is_opened() {
        let storage = memory();
        let core = written(&storage, 12).await;
        let open = || Core::open(&storage.after_crash(), *core.key(), OpenOptions::default());
        assert!(open().is_ok());
        storage.damage(core.discovery_key(), Damage::RemoveNode(7));
        assert!(matches!(open(), Err(CoreError::MissingNode(7))));
    }
}
