//! Append-only logs that anybody can verify: the merkle tree, its proofs, and replication.

pub mod messages;
pub mod replicator;
