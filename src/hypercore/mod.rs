//! Append-only logs that anybody can verify: the merkle tree, its proofs, and replication.
//!
//! A [`Core`] is one log, wire and hash compatible with npm hypercore 11. Where its bytes are kept is
//! behind [`Storage`]; the implementation over the node's database is `store::cores`.

pub mod bitfield;
mod block_file;
mod core;
mod disk_file;
mod error;
pub mod flat_tree;
mod hashing;
pub mod manifest;
mod memory;
pub mod messages;
mod node;
mod proof;
pub mod replicator;
mod seek;
pub mod static_core;
pub mod storage;
mod tree;
mod verifier;
mod verify;

pub use self::core::{
    Applied, BlockSource, Core, CoreChange, CreateOptions, OpenOptions, Position, Snapshot,
    Verified,
};
pub use block_file::MemoryFile;
pub use disk_file::{FileAccess, FileStamp};
pub use error::{ApplyError, CoreError};
pub use manifest::{Manifest, Prologue, Signer};
pub use memory::{Damage, MemoryStorage};
pub use messages::{Data, Node, Request};
pub use static_core::{BLOCK_SIZE, StaticSource, StaticTree};
pub use storage::{Storage, StorageError};
