//! What a peer says of its own copy of a log: how far it goes, which blocks it has, and what it wants to
//! hear of ours.

use super::MAX_BITFIELD_WORDS;
use super::data::index;
use crate::encoding::{DecodeError, Reader, Result, Writer};

/// Message 0: what the sender has and does, sent at first and whenever it changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sync {
    /// The sender's fork.
    pub fork: u64,
    /// The sender's length in blocks.
    pub length: u64,
    /// The receiver's length as the sender knows it, or 0 on another fork. A JavaScript reader asks
    /// for an upgrade only when this is its own length.
    pub remote_length: u64,
    /// Whether the sender can prove an upgrade from `remote_length`.
    pub can_upgrade: bool,
    /// Whether the sender answers requests.
    pub uploading: bool,
    /// Whether the sender makes requests.
    pub downloading: bool,
    /// Whether the sender can send the manifest.
    pub has_manifest: bool,
    /// Whether the sender takes data it did not ask for.
    pub allow_push: bool,
}

/// Messages 5 and 6: tell me (no longer) which blocks of a range you have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// The first block.
    pub start: u64,
    /// How many blocks.
    pub length: u64,
    /// One block of the range is enough of an answer.
    pub any: bool,
}

/// Message 7: which blocks the sender has from `start` on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitfield {
    /// The first block; a multiple of 32.
    pub start: u64,
    /// A bit a block, the lowest first, in little-endian words of 32.
    pub words: Vec<u32>,
}

/// Message 8: the sender has, or no longer has, a range of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Whether the blocks are gone.
    pub drop: bool,
    /// The first block.
    pub start: u64,
    /// How many blocks.
    pub length: u64,
}

impl Sync {
    pub(super) fn encode(&self, writer: &mut Writer) {
        let flags = [
            self.can_upgrade,
            self.uploading,
            self.downloading,
            self.has_manifest,
            self.allow_push,
        ]
        .iter()
        .enumerate()
        .fold(0, |flags, (bit, set)| flags | u64::from(*set) << bit);
        writer.uint(flags).uint(self.fork).uint(self.length).uint(self.remote_length);
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let flags = reader.uint()?;
        Ok(Self {
            fork: index(reader)?,
            length: index(reader)?,
            remote_length: index(reader)?,
            can_upgrade: flags & 1 != 0,
            uploading: flags & 2 != 0,
            downloading: flags & 4 != 0,
            has_manifest: flags & 8 != 0,
            allow_push: flags & 16 != 0,
        })
    }
}

impl Want {
    pub(super) fn encode(&self, writer: &mut Writer) {
        writer.uint(self.start).uint(self.length);
        if self.any {
            writer.uint(1);
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            start: index(reader)?,
            length: index(reader)?,
            any: !reader.is_empty() && reader.uint()? & 1 != 0,
        })
    }
}

impl Bitfield {
    pub(super) fn encode(&self, writer: &mut Writer) {
        writer.uint(self.start).uint(self.words.len() as u64);
        for word in &self.words {
            writer.u32(*word);
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let start = index(reader)?;
        if !start.is_multiple_of(32) {
            return Err(DecodeError::Invalid("start of a bitfield"));
        }
        Ok(Self { start, words: reader.vec(MAX_BITFIELD_WORDS, Reader::u32)? })
    }
}

impl Range {
    pub(super) fn encode(&self, writer: &mut Writer) {
        let one = self.length == 1;
        writer.uint(u64::from(self.drop) | u64::from(one) << 1).uint(self.start);
        if !one {
            writer.uint(self.length);
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let flags = reader.uint()?;
        Ok(Self {
            drop: flags & 1 != 0,
            start: index(reader)?,
            length: if flags & 2 != 0 { 1 } else { index(reader)? },
        })
    }
}
