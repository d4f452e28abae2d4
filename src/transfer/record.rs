//! A transfer as it is written down, and as the API shows it.

use std::path::PathBuf;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::library::Description;
use super::message::BookCore;
use super::progress::Progress;
use super::state::{Direction, State};
use crate::crypto::{Hash, PublicKey, random};
use crate::error::{Error, ErrorCode, Result};
use crate::time::now_ms;

/// A transfer as the API shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TransferInfo {
    /// The transfer's id on this node.
    pub id: String,
    /// Which way the book goes.
    pub direction: Direction,
    /// The other server's key, z32.
    pub peer: String,
    /// The book's id in the sender's catalog.
    pub book_id: String,
    /// The book's title, as far as it is known.
    pub title: String,
    /// Where it stands.
    pub state: State,
    /// Why, for a person; with `failed` and `denied` above all.
    pub reason: Option<String>,
    /// The code of the error that made it fail.
    pub error: Option<String>,
    /// How far it is.
    pub progress: Progress,
    /// Where the file is, once it is whole.
    pub path: Option<PathBuf>,
    /// When it began, in Unix milliseconds.
    pub created_at: u64,
    /// When its state last changed, in Unix milliseconds.
    pub updated_at: u64,
}

impl TransferInfo {
    /// Itself when the book is whole, or on its way still; else what ended it, as an error.
    ///
    /// # Errors
    ///
    /// `ERR_DENIED`, `ERR_CANCELLED`, or the code of what made it fail.
    pub fn outcome(self) -> Result<Self> {
        let (code, default) = match self.state {
            State::Denied => (ErrorCode::Denied, "the other server denied the book"),
            State::Cancelled => (ErrorCode::Cancelled, "the transfer was cancelled"),
            State::Failed => {
                let code = self.error.as_deref().and_then(ErrorCode::parse);
                (code.unwrap_or(ErrorCode::Internal), "the transfer failed")
            }
            _ => return Ok(self),
        };
        Err(Error::new(code, self.reason.unwrap_or_else(|| default.to_owned())))
    }
}

/// What a person approved: one book for one peer, as the book was then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Approval {
    /// The edition that the catalog had.
    pub edition: Hash,
    /// The tree hash of its bytes, once they were read.
    pub hash: Option<Hash>,
}

/// A transfer as the database has it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Record {
    pub id: String,
    pub direction: Direction,
    pub peer: PublicKey,
    /// The id on the wire. Chosen by the receiver: for incoming transfers, our own id.
    pub request_id: String,
    pub book_id: String,
    pub book: Description,
    pub state: State,
    pub reason: Option<String>,
    pub error: Option<ErrorCode>,
    pub core: Option<BookCore>,
    /// Verified bytes when last written down; the core knows better while it is open.
    pub bytes: u64,
    /// Where the person wants the file: a folder or a full path.
    pub save_to: Option<PathBuf>,
    /// Where the file is, once it is whole.
    pub path: Option<PathBuf>,
    /// Outgoing: what a person approved, until the transfer ends.
    pub approval: Option<Approval>,
    /// The peer was told how it ended.
    pub told: bool,
    pub created_at: u64,
    pub updated_at: u64,
}

impl Record {
    /// A new incoming transfer.
    pub fn incoming(
        peer: PublicKey,
        book_id: String,
        book: Description,
        save_to: Option<PathBuf>,
    ) -> Self {
        let id = new_id();
        Self { save_to, ..Self::new(id.clone(), Direction::Incoming, peer, id, book_id, book) }
    }

    /// A new outgoing transfer, asked for as `request_id`.
    pub fn outgoing(
        peer: PublicKey,
        request_id: String,
        book_id: String,
        book: Description,
    ) -> Self {
        Self::new(new_id(), Direction::Outgoing, peer, request_id, book_id, book)
    }

    fn new(
        id: String,
        direction: Direction,
        peer: PublicKey,
        request_id: String,
        book_id: String,
        book: Description,
    ) -> Self {
        let now = now_ms();
        Self {
            id,
            direction,
            peer,
            request_id,
            book_id,
            book,
            state: State::Queued,
            reason: None,
            error: None,
            core: None,
            bytes: 0,
            save_to: None,
            path: None,
            approval: None,
            told: true,
            created_at: now,
            updated_at: now,
        }
    }

    /// The size in bytes: what was granted, else what the catalog claims, else 0.
    pub fn total(&self) -> u64 {
        self.core.map(|core| core.byte_length).or(self.book.size_bytes).unwrap_or(0)
    }

    /// What the API shows.
    pub fn info(&self) -> TransferInfo {
        // What a peer says it has is a claim; what was sent to it is not.
        let is_here = self.state == State::Completed && self.direction == Direction::Incoming;
        let bytes = if is_here { self.total() } else { self.bytes };
        TransferInfo {
            id: self.id.clone(),
            direction: self.direction,
            peer: self.peer.to_z32(),
            book_id: self.book_id.clone(),
            title: self.book.title.clone(),
            state: self.state,
            reason: self.reason.clone(),
            error: self.error.map(|code| code.as_str().to_owned()),
            progress: super::progress::Meter::new(bytes, self.total()).progress(Instant::now()),
            path: self.path.clone(),
            created_at: self.created_at,
            updated_at: self.updated_at,
        }
    }
}

/// 128 random bits as 26 z32 characters: an id that is also a safe file name.
fn new_id() -> String {
    z32::encode(&random::<16>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_that_ended_badly_is_an_error_with_its_code() {
        let peer = crate::crypto::KeyPair::from_seed(&[1; 32]).public_key();
        let record = Record::incoming(peer, "b".into(), Description::default(), None);
        let ended = |state, error| Record { state, error, ..record.clone() }.info().outcome();
        assert_eq!(ended(State::Denied, None).unwrap_err().code, ErrorCode::Denied);
        assert_eq!(ended(State::Cancelled, None).unwrap_err().code, ErrorCode::Cancelled);
        let full = Some(ErrorCode::DiskFull);
        assert_eq!(ended(State::Failed, full).unwrap_err().code, ErrorCode::DiskFull);
        assert!(ended(State::Completed, None).is_ok());
    }
}
