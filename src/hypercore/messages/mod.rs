//! The messages of `hypercore/alpha`, byte for byte as npm `hypercore/lib/messages.js` (`wire`) has
//! them, and the handshake in a channel's open.
//!
//! Every length and count is checked before anything is allocated by it. Bytes after a message are
//! ignored, as in the reference, so that later versions can add fields.

mod data;
mod state;

use bytes::Bytes;

pub use data::{
    Data, DataBlock, DataHash, DataSeek, DataUpgrade, MAX_MANIFEST_BYTES, MAX_PROOF_NODES,
    MAX_SIGNATURE_BYTES, Node, Request, RequestNode, RequestSeek, RequestUpgrade,
};
pub use state::{Bitfield, Range, Sync, Want};

use crate::crypto::Hash;
use crate::encoding::{Reader, Result, Writer};

use data::index;

/// JavaScript's largest exact integer; no index, length or id on this wire is larger.
pub const MAX_INDEX: u64 = (1 << 53) - 1;

/// The most 32-bit words a bitfield message carries: one want of 2,097,152 blocks.
pub const MAX_BITFIELD_WORDS: usize = 65_536;

/// The number that stands before each message of the protocol.
pub mod kind {
    /// [`super::Sync`]
    pub const SYNC: u32 = 0;
    /// [`super::Request`]
    pub const REQUEST: u32 = 1;
    /// [`super::Message::Cancel`]
    pub const CANCEL: u32 = 2;
    /// [`super::Data`]
    pub const DATA: u32 = 3;
    /// [`super::NoData`]
    pub const NO_DATA: u32 = 4;
    /// [`super::Want`]
    pub const WANT: u32 = 5;
    /// [`super::Want`], taken back
    pub const UNWANT: u32 = 6;
    /// [`super::Bitfield`]
    pub const BITFIELD: u32 = 7;
    /// [`super::Range`]
    pub const RANGE: u32 = 8;
    /// [`super::Message::Extension`]
    pub const EXTENSION: u32 = 9;
}

/// What a channel's open carries: proof that the opener knows the core's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handshake {
    /// Whether the opener answers seeks that come with a block request.
    pub seeks: bool,
    /// See `replicator::capability`.
    pub capability: Hash,
}

impl Handshake {
    /// The handshake's 33 bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_capacity(33);
        writer.uint(u64::from(self.seeks)).raw(&self.capability);
        writer.into_vec()
    }

    /// Reads a handshake.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        Ok(Self { seeks: reader.uint()? & 1 != 0, capability: reader.fixed32()? })
    }
}

/// Message 4: there is no answer to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoData {
    /// The request's id.
    pub request: u64,
    /// Why.
    pub reason: NoDataReason,
}

/// Why a request has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoDataReason {
    /// Not said (also what is sent by peers that know no reasons).
    Unspecified,
    /// The sender does not have it, or does not give it.
    NotAvailable,
    /// The request makes no sense to the sender.
    InvalidRequest,
}

/// Any message of the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Message 0.
    Sync(Sync),
    /// Message 1.
    Request(Request),
    /// Message 2: the request with this id needs no answer any more.
    Cancel(u64),
    /// Message 3.
    Data(Data),
    /// Message 4.
    NoData(NoData),
    /// Message 5.
    Want(Want),
    /// Message 6.
    Unwant(Want),
    /// Message 7.
    Bitfield(Bitfield),
    /// Message 8.
    Range(Range),
    /// Message 9: something between applications. Not used here; read and dropped.
    Extension,
}

impl Message {
    /// The number that stands before the message.
    #[must_use]
    pub const fn kind(&self) -> u32 {
        match self {
            Self::Sync(_) => kind::SYNC,
            Self::Request(_) => kind::REQUEST,
            Self::Cancel(_) => kind::CANCEL,
            Self::Data(_) => kind::DATA,
            Self::NoData(_) => kind::NO_DATA,
            Self::Want(_) => kind::WANT,
            Self::Unwant(_) => kind::UNWANT,
            Self::Bitfield(_) => kind::BITFIELD,
            Self::Range(_) => kind::RANGE,
            Self::Extension => kind::EXTENSION,
        }
    }

    /// The message's bytes, without its number.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut writer = match self {
            Self::Data(data) => Writer::with_capacity(data.encoded_bound()),
            _ => Writer::with_capacity(24),
        };
        match self {
            Self::Sync(sync) => sync.encode(&mut writer),
            Self::Request(request) => request.encode(&mut writer),
            Self::Cancel(request) => {
                writer.uint(*request);
            }
            Self::Data(data) => data.encode(&mut writer),
            Self::NoData(no_data) => no_data.encode(&mut writer),
            Self::Want(want) | Self::Unwant(want) => want.encode(&mut writer),
            Self::Bitfield(bitfield) => bitfield.encode(&mut writer),
            Self::Range(range) => range.encode(&mut writer),
            Self::Extension => {
                writer.string("");
            }
        }
        writer.into_vec().into()
    }

    /// The message's bytes in parts: [`Data::encode_parts`].
    #[must_use]
    pub fn encode_parts(&self) -> Vec<Bytes> {
        match self {
            Self::Data(data) => data.encode_parts(),
            _ => vec![self.encode()],
        }
    }

    /// Reads message number `kind`; `None` for numbers that later versions may use.
    pub fn decode(kind: u32, message: &Bytes) -> Result<Option<Self>> {
        let reader = &mut Reader::new(message);
        Ok(Some(match kind {
            kind::SYNC => Self::Sync(Sync::decode(reader)?),
            kind::REQUEST => Self::Request(Request::decode(reader)?),
            kind::CANCEL => Self::Cancel(index(reader)?),
            kind::DATA => Self::Data(Data::decode(message)?),
            kind::NO_DATA => Self::NoData(NoData::decode(reader)?),
            kind::WANT => Self::Want(Want::decode(reader)?),
            kind::UNWANT => Self::Unwant(Want::decode(reader)?),
            kind::BITFIELD => Self::Bitfield(Bitfield::decode(reader)?),
            kind::RANGE => Self::Range(Range::decode(reader)?),
            kind::EXTENSION => Self::Extension,
            _ => return Ok(None),
        }))
    }
}

impl NoData {
    fn encode(&self, writer: &mut Writer) {
        writer.uint(self.request);
        match self.reason {
            NoDataReason::Unspecified => writer.uint(0),
            NoDataReason::NotAvailable => writer.uint(1).uint(1),
            NoDataReason::InvalidRequest => writer.uint(1).uint(2),
        };
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let request = index(reader)?;
        let flags = if reader.is_empty() { 0 } else { reader.uint()? };
        let reason = match if flags & 1 == 0 { 0 } else { reader.uint()? } {
            1 => NoDataReason::NotAvailable,
            2 => NoDataReason::InvalidRequest,
            _ => NoDataReason::Unspecified,
        };
        Ok(Self { request, reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding::DecodeError;
    use proptest::prelude::*;

    fn hex(text: &str) -> Bytes {
        (0..text.len() / 2)
            .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
            .collect::<Vec<_>>()
            .into()
    }

    fn node(index: u64, size: u64, fill: u8) -> Node {
        Node { index, size, hash: [fill; 32] }
    }

    /// Bytes that npm hypercore 11.37.1 encodes, and what they are.
    fn vectors() -> Vec<(String, Message)> {
        let want = Want { start: 2_097_152, length: 2_097_152, any: false };
        let sync = Sync {
            fork: 1,
            length: 70_000,
            remote_length: 300,
            can_upgrade: true,
            uploading: true,
            has_manifest: true,
            ..Sync::default()
        };
        let request = Request {
            id: 5,
            fork: 0,
            block: Some(RequestNode { index: 1000, nodes: 3 }),
            hash: Some(RequestNode { index: 7, nodes: 2 }),
            seek: Some(RequestSeek { bytes: 70_000, padding: 1 }),
            upgrade: Some(RequestUpgrade { start: 10, length: 20 }),
            manifest: true,
            priority: 2,
        };
        let manifest = format!("0102000000{}04", "06".repeat(32));
        let data = Data {
            request: 5,
            fork: 0,
            block: Some(DataBlock {
                index: 3,
                value: Bytes::from_static(b"a book"),
                nodes: vec![node(4, 9, 1)],
            }),
            hash: Some(DataHash { index: 7, nodes: vec![node(7, 1, 2)] }),
            seek: Some(DataSeek { bytes: 12, nodes: vec![node(0, 6, 3)] }),
            upgrade: Some(DataUpgrade {
                start: 0,
                length: 4,
                nodes: vec![node(3, 30, 4)],
                additional_nodes: vec![node(8, 2, 5)],
                signature: Some(Bytes::from_static(&[9; 4])),
            }),
            manifest: Some(hex(&manifest)),
        };
        let upgrade = Data {
            request: 1,
            upgrade: Some(DataUpgrade {
                start: 0,
                length: 1,
                nodes: vec![node(0, 3, 1)],
                additional_nodes: vec![],
                signature: None,
            }),
            ..Data::default()
        };
        let fill = |byte: &str| byte.repeat(32);
        let data_hex = format!(
            "1f050003066120626f6f6b010409{}07010701{}0c010006{}000401031e{}010802{}0409090909{}",
            fill("01"),
            fill("02"),
            fill("03"),
            fill("04"),
            fill("05"),
            manifest,
        );
        let no_data = |reason| Message::NoData(NoData { request: 9, reason });
        vec![
            ("0b01fe70110100fd2c01".into(), Message::Sync(sync)),
            ("3f0500fde803030702fe70110100010a1402".into(), Message::Request(request)),
            ("fdfd00".into(), Message::Cancel(253)),
            (data_hex, Message::Data(data)),
            (format!("0801000001010003{}0000", "01".repeat(32)), Message::Data(upgrade)),
            ("090101".into(), no_data(NoDataReason::NotAvailable)),
            ("0900".into(), no_data(NoDataReason::Unspecified)),
            ("fe00002000fe00002000".into(), Message::Want(want)),
            ("002001".into(), Message::Want(Want { start: 0, length: 32, any: true })),
            ("fe00002000fe00002000".into(), Message::Unwant(want)),
            ("0209".into(), Message::Range(Range { drop: false, start: 9, length: 1 })),
            ("0109fde803".into(), Message::Range(Range { drop: true, start: 9, length: 1000 })),
            (
                "40020100000000000080".into(),
                Message::Bitfield(Bitfield { start: 64, words: vec![1, 0x8000_0000] }),
            ),
        ]
    }

    #[test]
    fn every_message_has_the_bytes_of_npm_hypercore() {
        for (bytes, message) in vectors() {
            assert_eq!(message.encode(), hex(&bytes), "{message:?}");
            assert_eq!(message.encode_parts().concat(), message.encode(), "{message:?}");
            assert_eq!(Message::decode(message.kind(), &hex(&bytes)), Ok(Some(message)));
        }
    }

    #[test]
    fn the_handshake_is_a_flag_and_the_capability() {
        let handshake = Handshake { seeks: true, capability: [7; 32] };
        assert_eq!(handshake.encode(), hex(&format!("01{}", "07".repeat(32))));
        assert_eq!(Handshake::decode(&handshake.encode()), Ok(handshake));
        assert!(Handshake::decode(&[1; 32]).is_err());
    }

    #[test]
    fn counts_above_the_limits_are_refused_before_anything_is_allocated() {
        let mut bitfield = Writer::new();
        bitfield.uint(0).uint(1 << 40);
        let refused = Message::decode(kind::BITFIELD, &bitfield.into_vec().into());
        assert!(matches!(refused, Err(DecodeError::TooLong { .. })), "{refused:?}");
        let mut data = Writer::new();
        data.uint(1).uint(1).uint(0).uint(0).uint(0).uint(1 << 36);
        let refused = Message::decode(kind::DATA, &data.into_vec().into());
        assert!(matches!(refused, Err(DecodeError::TooLong { .. })), "{refused:?}");
        let mut range = Writer::new();
        range.uint(0).uint(0).uint(1 << 53);
        assert!(Message::decode(kind::RANGE, &range.into_vec().into()).is_err());
    }

    #[test]
    fn messages_of_later_versions_are_ignored() {
        assert_eq!(Message::decode(10, &Bytes::from_static(&[1, 2, 3])), Ok(None));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            kind in 0u32..12,
            bytes in prop::collection::vec(any::<u8>(), 0..400),
        ) {
            let bytes = Bytes::from(bytes);
            if let Ok(Some(message)) = Message::decode(kind, &bytes) {
                prop_assert_eq!(message.encode_parts().concat(), message.encode());
                let again = Message::decode(message.kind(), &message.encode());
                prop_assert_eq!(again, Ok(Some(message)));
            }
            let _ = Handshake::decode(&bytes);
        }

        #[test]
        fn a_message_cut_short_never_panics(which in 0usize..13, cut in 0usize..200) {
            let (bytes, message) = vectors().swap_remove(which);
            let bytes = hex(&bytes);
            let _ = Message::decode(message.kind(), &bytes.slice(..cut.min(bytes.len())));
        }
    }
}
