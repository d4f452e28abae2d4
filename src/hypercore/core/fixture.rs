//! Cores for the tests of this folder.

use bytes::Bytes;

use super::{Core, CreateOptions, OpenOptions};
use crate::crypto::KeyPair;
use crate::hypercore::manifest::Manifest;
use crate::hypercore::memory::MemoryStorage;
use crate::hypercore::messages::{Data, Request, RequestNode, RequestUpgrade};
use crate::hypercore::storage::Storage;

pub(super) fn pair() -> KeyPair {
    KeyPair::from_seed(&[3; 32])
}

/// A block of a size of its own; number 9 is empty.
pub(super) fn block(index: u64) -> Bytes {
    if index == 9 {
        return Bytes::new();
    }
    format!("{index}:{}", "x".repeat((index * 7 % 40) as usize)).into()
}

/// A new writable core with blocks in `storage`.
pub(super) async fn written(storage: &dyn Storage, length: u64) -> Core {
    let core = create(storage);
    core.append((0..length).map(block).collect()).await.unwrap();
    core
}

pub(super) fn create(storage: &dyn Storage) -> Core {
    let manifest = Manifest::single(pair().public_key());
    let options = CreateOptions { manifest, writer: Some(pair()), compat: false };
    Core::create(storage, options).unwrap()
}

/// The place of a core elsewhere.
pub(super) fn reader(storage: &dyn Storage, source: &Core) -> Core {
    Core::open(storage, *source.key(), OpenOptions::default()).unwrap()
}

pub(super) fn upgrade(start: u64, length: u64) -> Request {
    let upgrade = Some(RequestUpgrade { start, length });
    Request { id: 1, manifest: true, upgrade, ..Request::default() }
}

/// Asks for a block as `reader` would.
pub(super) fn request(reader: &Core, index: u64) -> Request {
    let nodes = reader.missing_nodes(2 * index).unwrap();
    let (fork, block) = (reader.fork(), Some(RequestNode { index, nodes }));
    Request { id: 1, fork, block, ..Request::default() }
}

pub(super) fn proof(source: &Core, request: &Request) -> Data {
    source.prove(request).unwrap().unwrap()
}

/// Downloads everything.
pub(super) fn download(reader: &Core, source: &Core) {
    let missing = source.length() - reader.length();
    if missing > 0 {
        let asked = Request { fork: reader.fork(), ..upgrade(reader.length(), missing) };
        reader.apply(&proof(source, &asked)).unwrap();
    }
    for index in 0..source.length() {
        if !reader.has(index) {
            reader.apply(&proof(source, &request(reader, index))).unwrap();
        }
    }
}

/// A fresh storage.
pub(super) fn memory() -> MemoryStorage {
    MemoryStorage::new()
}
