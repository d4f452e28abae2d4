//! Replication of cores with peers: `hypercore/alpha` as npm hypercore 11 speaks it.
//!
//! | file | idea |
//! |---|---|
//! | `peer.rs`, `announce.rs`, `schedule.rs` | one core with one peer: messages in, messages out |
//! | `requests.rs` | what is being downloaded, and from whom |
//! | `remote_bitfield.rs` | what a peer says it has |
//! | `upload.rs` | what a peer asked for |
//! | `capability.rs` | that a peer knows the core's key |
//! | `local.rs` | what all of these see of a core |

mod announce;
mod capability;
mod local;
mod peer;
mod remote_bitfield;
mod requests;
mod schedule;
#[cfg(test)]
mod simulation;
mod upload;

use crate::encoding::DecodeError;

/// How a peer broke the protocol. Each closes the connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// A message could not be read.
    #[error("sent a malformed message: {0}")]
    Malformed(#[from] DecodeError),
    /// The open's capability is not the core's.
    #[error("opened a core whose key it does not know")]
    Capability,
    /// More requests wait than a peer may have.
    #[error("asks for too much at once")]
    TooManyRequests,
    /// Too many requests that make no sense.
    #[error("keeps asking for what cannot exist")]
    InvalidRequests,
    /// Data that was not asked for.
    #[error("sent data that nobody asked for")]
    Unasked,
    /// An answer to another question.
    #[error("answered another question than it was asked")]
    WrongAnswer,
    /// A block, hash, signature or manifest that does not verify.
    #[error("sent data that does not verify: {0}")]
    Unverified(String),
    /// Answers that never fit what is here.
    #[error("keeps sending data that fits nothing")]
    NeverFits,
}
