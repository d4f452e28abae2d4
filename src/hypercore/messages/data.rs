//! Requests, and the proofs that answer them (`wire.request`, `wire.data` in npm
//! `hypercore/lib/messages.js`).
//!
//! Decoding takes the message as `Bytes`, so that a block's value is a slice of what came off the
//! socket and is never copied.

use bytes::Bytes;

use crate::crypto::Hash;
use crate::encoding::{DecodeError, Reader, Result, Writer};

/// The most tree nodes one part of a proof may carry. A tree over 2^53 blocks is 53 levels deep and
/// has at most 53 roots; an upgrade that joins the two needs at most both.
pub const MAX_PROOF_NODES: usize = 128;

/// The longest signature: room for a quorum of 255 signers with indexes and patches.
pub const MAX_SIGNATURE_BYTES: usize = 64 * 1024;

/// The longest manifest.
pub const MAX_MANIFEST_BYTES: usize = 64 * 1024;

/// Blocks of at least so many bytes are a part of their own when a message is encoded.
const OWN_PART: usize = 4096;

const BLOCK: u64 = 1;
const HASH: u64 = 2;
const SEEK: u64 = 4;
const UPGRADE: u64 = 8;
const MANIFEST: u64 = 16;
const PRIORITY: u64 = 32;

/// A node of the merkle tree as it travels: index in flat-tree order, bytes below it, hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// Position in flat-tree numbering; even numbers are leaves.
    pub index: u64,
    /// How many bytes the blocks below it have.
    pub size: u64,
    /// The node's hash.
    pub hash: Hash,
}

/// Asks for a block, or for the tree node at `index` when it stands in [`Request::hash`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestNode {
    /// Block index in [`Request::block`], tree index in [`Request::hash`].
    pub index: u64,
    /// How many levels above it the asker has no node for.
    pub nodes: u64,
}

/// Asks which block holds the byte at an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestSeek {
    /// The offset in bytes.
    pub bytes: u64,
    /// How many bytes of every block do not count.
    pub padding: u64,
}

/// Asks for the proof that the log grew from `start` by `length` blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestUpgrade {
    /// The length the asker has.
    pub start: u64,
    /// How many more blocks it wants to know of.
    pub length: u64,
}

/// Message 1: asks for any of a block, a hash, a seek, an upgrade and the manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// Chosen by the asker; 0 is reserved for pushes and conflict checks.
    pub id: u64,
    /// The fork it is about.
    pub fork: u64,
    /// A block and the hashes that prove it.
    pub block: Option<RequestNode>,
    /// A tree node and the hashes that prove it.
    pub hash: Option<RequestNode>,
    /// The position of a byte.
    pub seek: Option<RequestSeek>,
    /// A longer log.
    pub upgrade: Option<RequestUpgrade>,
    /// The manifest.
    pub manifest: bool,
    /// 0 is normal, higher is sooner.
    pub priority: u64,
}

impl Request {
    /// Appends the message.
    pub fn encode(&self, writer: &mut Writer) {
        let flags = flag(self.block.is_some(), BLOCK)
            | flag(self.hash.is_some(), HASH)
            | flag(self.seek.is_some(), SEEK)
            | flag(self.upgrade.is_some(), UPGRADE)
            | flag(self.manifest, MANIFEST)
            | flag(self.priority != 0, PRIORITY);
        writer.uint(flags).uint(self.id).uint(self.fork);
        if let Some(block) = &self.block {
            writer.uint(block.index).uint(block.nodes);
        }
        if let Some(hash) = &self.hash {
            writer.uint(hash.index).uint(hash.nodes);
        }
        if let Some(seek) = &self.seek {
            writer.uint(seek.bytes).uint(seek.padding);
        }
        if let Some(upgrade) = &self.upgrade {
            writer.uint(upgrade.start).uint(upgrade.length);
        }
        if self.priority != 0 {
            writer.uint(self.priority);
        }
    }

    /// Reads the message.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let flags = reader.uint()?;
        Ok(Self {
            id: index(reader)?,
            fork: index(reader)?,
            block: optional(flags, BLOCK, || request_node(reader))?,
            hash: optional(flags, HASH, || request_node(reader))?,
            seek: optional(flags, SEEK, || {
                Ok(RequestSeek { bytes: index(reader)?, padding: index(reader)? })
            })?,
            upgrade: optional(flags, UPGRADE, || {
                Ok(RequestUpgrade { start: index(reader)?, length: index(reader)? })
            })?,
            manifest: flags & MANIFEST != 0,
            priority: optional(flags, PRIORITY, || reader.uint())?.unwrap_or(0),
        })
    }
}

/// A block and the hashes from it up to a node the asker has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataBlock {
    /// Block index.
    pub index: u64,
    /// The block's bytes.
    pub value: Bytes,
    /// Siblings, bottom up.
    pub nodes: Vec<Node>,
}

/// A tree node and the hashes from it up to a node the asker has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataHash {
    /// Tree index.
    pub index: u64,
    /// The node itself, then siblings, bottom up.
    pub nodes: Vec<Node>,
}

/// The nodes around a sought byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataSeek {
    /// The offset that was asked for.
    pub bytes: u64,
    /// The node below which it lies, then siblings, bottom up.
    pub nodes: Vec<Node>,
}

/// The roots of a longer log and the signature over them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataUpgrade {
    /// The length the asker has.
    pub start: u64,
    /// How many blocks were asked for.
    pub length: u64,
    /// What joins the asker's roots with those at `start + length`.
    pub nodes: Vec<Node>,
    /// What joins those with the roots the signature is over, when the log is longer.
    pub additional_nodes: Vec<Node>,
    /// The signature; a static core has none.
    pub signature: Option<Bytes>,
}

/// Message 3: the answer to a request, everything in it provable against the core's key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Data {
    /// The request's id; 0 when nobody asked.
    pub request: u64,
    /// The fork it is about.
    pub fork: u64,
    /// A block.
    pub block: Option<DataBlock>,
    /// A tree node.
    pub hash: Option<DataHash>,
    /// A seek's outcome.
    pub seek: Option<DataSeek>,
    /// A longer log.
    pub upgrade: Option<DataUpgrade>,
    /// The manifest, encoded (`manifest` in npm's `messages.js`): its hash is what the key is, so it
    /// stays the bytes that came.
    pub manifest: Option<Bytes>,
}

impl Data {
    /// Appends the message.
    pub fn encode(&self, writer: &mut Writer) {
        self.encode_head(writer);
        if let Some(block) = &self.block {
            writer.raw(&block.value);
        }
        self.encode_tail(writer);
    }

    /// The message in parts, of which a large block's value is one and is not copied.
    #[must_use]
    pub fn encode_parts(&self) -> Vec<Bytes> {
        match &self.block {
            Some(block) if block.value.len() >= OWN_PART => {
                let (mut head, mut tail) = (Writer::with_capacity(48), Writer::with_capacity(512));
                self.encode_head(&mut head);
                self.encode_tail(&mut tail);
                vec![head.into_vec().into(), block.value.clone(), tail.into_vec().into()]
            }
            _ => {
                let mut writer = Writer::with_capacity(self.encoded_bound());
                self.encode(&mut writer);
                vec![writer.into_vec().into()]
            }
        }
    }

    /// Everything in front of the block's value.
    fn encode_head(&self, writer: &mut Writer) {
        let flags = flag(self.block.is_some(), BLOCK)
            | flag(self.hash.is_some(), HASH)
            | flag(self.seek.is_some(), SEEK)
            | flag(self.upgrade.is_some(), UPGRADE)
            | flag(self.manifest.is_some(), MANIFEST);
        writer.uint(flags).uint(self.request).uint(self.fork);
        if let Some(block) = &self.block {
            writer.uint(block.index).uint(block.value.len() as u64);
        }
    }

    /// Everything behind the block's value.
    fn encode_tail(&self, writer: &mut Writer) {
        if let Some(block) = &self.block {
            encode_nodes(writer, &block.nodes);
        }
        if let Some(hash) = &self.hash {
            writer.uint(hash.index);
            encode_nodes(writer, &hash.nodes);
        }
        if let Some(seek) = &self.seek {
            writer.uint(seek.bytes);
            encode_nodes(writer, &seek.nodes);
        }
        if let Some(upgrade) = &self.upgrade {
            writer.uint(upgrade.start).uint(upgrade.length);
            encode_nodes(writer, &upgrade.nodes);
            encode_nodes(writer, &upgrade.additional_nodes);
            writer.buffer(upgrade.signature.as_deref().unwrap_or_default());
        }
        if let Some(manifest) = &self.manifest {
            writer.raw(manifest);
        }
    }

    /// An upper bound of what [`Data::encode`] appends, in bytes.
    #[must_use]
    pub fn encoded_bound(&self) -> usize {
        let nodes = self.block.as_ref().map_or(0, |block| block.nodes.len())
            + self.hash.as_ref().map_or(0, |hash| hash.nodes.len())
            + self.seek.as_ref().map_or(0, |seek| seek.nodes.len())
            + self.upgrade.as_ref().map_or(0, |u| u.nodes.len() + u.additional_nodes.len());
        let bytes = self.block.as_ref().map_or(0, |block| block.value.len())
            + self.upgrade.as_ref().and_then(|u| u.signature.as_ref()).map_or(0, Bytes::len)
            + self.manifest.as_ref().map_or(0, Bytes::len);
        128 + nodes * 50 + bytes
    }

    /// Reads the message; block values, signatures and manifests are slices of `message`.
    pub fn decode(message: &Bytes) -> Result<Self> {
        let reader = &mut Reader::new(message);
        let flags = reader.uint()?;
        Ok(Self {
            request: index(reader)?,
            fork: index(reader)?,
            block: optional(flags, BLOCK, || {
                Ok(DataBlock {
                    index: index(reader)?,
                    value: message.slice_ref(reader.buffer()?),
                    nodes: decode_nodes(reader)?,
                })
            })?,
            hash: optional(flags, HASH, || {
                Ok(DataHash { index: index(reader)?, nodes: decode_nodes(reader)? })
            })?,
            seek: optional(flags, SEEK, || {
                Ok(DataSeek { bytes: index(reader)?, nodes: decode_nodes(reader)? })
            })?,
            upgrade: optional(flags, UPGRADE, || {
                Ok(DataUpgrade {
                    start: index(reader)?,
                    length: index(reader)?,
                    nodes: decode_nodes(reader)?,
                    additional_nodes: decode_nodes(reader)?,
                    signature: match bounded(reader.buffer()?, MAX_SIGNATURE_BYTES)? {
                        [] => None,
                        signature => Some(message.slice_ref(signature)),
                    },
                })
            })?,
            manifest: optional(flags, MANIFEST, || {
                Ok(message.slice_ref(bounded(reader.rest(), MAX_MANIFEST_BYTES)?))
            })?,
        })
    }
}

/// An index, length, id or fork: JavaScript counts exactly to 2^53 only, so nothing larger is meant.
pub(super) fn index(reader: &mut Reader<'_>) -> Result<u64> {
    let value = reader.uint()?;
    if value > super::MAX_INDEX {
        return Err(DecodeError::TooLong { got: value, limit: super::MAX_INDEX });
    }
    Ok(value)
}

fn bounded(bytes: &[u8], limit: usize) -> Result<&[u8]> {
    if bytes.len() > limit {
        return Err(DecodeError::TooLong { got: bytes.len() as u64, limit: limit as u64 });
    }
    Ok(bytes)
}

fn request_node(reader: &mut Reader<'_>) -> Result<RequestNode> {
    Ok(RequestNode { index: index(reader)?, nodes: index(reader)? })
}

fn encode_nodes(writer: &mut Writer, nodes: &[Node]) {
    writer.uint(nodes.len() as u64);
    for node in nodes {
        writer.uint(node.index).uint(node.size).raw(&node.hash);
    }
}

fn decode_nodes(reader: &mut Reader<'_>) -> Result<Vec<Node>> {
    reader.vec(MAX_PROOF_NODES, |reader| {
        Ok(Node { index: index(reader)?, size: index(reader)?, hash: reader.fixed32()? })
    })
}

fn flag(set: bool, flag: u64) -> u64 {
    if set { flag } else { 0 }
}

fn optional<T>(flags: u64, flag: u64, read: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
    if flags & flag == 0 { Ok(None) } else { read().map(Some) }
}
