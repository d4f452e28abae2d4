//! Requests and responses of the DHT's RPC (`dht-rpc` `lib/io.js`).
//!
//! A packet is one tag byte (version 3, type in the upper half), a flags byte, the transaction id, the
//! receiver's address as the sender sees it, and whatever the flags announce. All addresses are IPv4;
//! a receiver on IPv6 is written as `0.0.0.0:0`.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use bytes::Bytes;

use crate::crypto;
use crate::encoding::{DecodeError, Reader, Result, Writer};

const REQUEST: u8 = 0x03;
const RESPONSE: u8 = 0x13;

const FLAG_ID: u64 = 1;
const FLAG_TOKEN: u64 = 2;
/// In a request: the command belongs to the RPC layer itself.
const FLAG_INTERNAL: u64 = 4;
/// In a response: nodes closer to the target follow.
const FLAG_CLOSER: u64 = 4;
const FLAG_TARGET: u64 = 8;
const FLAG_ERROR: u64 = 8;
const FLAG_VALUE: u64 = 16;

/// How many closer nodes of one response are read. The reference sends at most 20.
const MAX_CLOSER_NODES: usize = 32;

/// A place in the key space: the id of a node, the hash of a public key, a topic.
pub type NodeId = [u8; 32];

/// A proof that the sender of a request receives at the address it claims.
pub(crate) type Token = [u8; 32];

/// The id of the node that receives at `address`.
#[must_use]
pub(crate) fn node_id(address: SocketAddrV4) -> NodeId {
    crypto::hash(&[Writer::new().ipv4_address(address).as_slice()])
}

/// `address` as the wire writes it.
#[must_use]
pub(crate) fn wire_address(address: SocketAddr) -> SocketAddrV4 {
    match address {
        SocketAddr::V4(v4) => v4,
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(ip) => SocketAddrV4::new(ip, v6.port()),
            None => SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0),
        },
    }
}

/// A command with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub tid: u16,
    /// The receiver's address.
    pub to: SocketAddrV4,
    /// The sender's id, when it is a persistent node. Not yet compared with its address.
    pub id: Option<NodeId>,
    pub token: Option<Token>,
    pub internal: bool,
    pub command: u64,
    pub target: Option<NodeId>,
    pub value: Option<Bytes>,
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Response {
    pub tid: u16,
    pub to: Option<SocketAddrV4>,
    pub id: Option<NodeId>,
    pub token: Option<Token>,
    pub closer_nodes: Vec<SocketAddrV4>,
    /// 0 when all is well.
    pub error: u64,
    pub value: Option<Bytes>,
}

/// One packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    Request(Request),
    Response(Response),
}

impl Message {
    /// Reads a packet. Bytes after its end are ignored, as in the reference.
    pub(crate) fn decode(packet: &Bytes) -> Result<Self> {
        let mut reader = Reader::new(packet);
        match reader.u8()? {
            REQUEST => Request::decode_body(packet, &mut reader).map(Self::Request),
            RESPONSE => Response::decode_body(packet, &mut reader).map(Self::Response),
            _ => Err(DecodeError::Invalid("packet type")),
        }
    }
}

impl Request {
    /// Appends nothing but this request.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let value_length = self.value.as_ref().map_or(0, |value| value.len() + 9);
        let mut writer = Writer::with_capacity(128 + value_length);
        let flags = flag(self.id.is_some(), FLAG_ID)
            | flag(self.token.is_some(), FLAG_TOKEN)
            | flag(self.internal, FLAG_INTERNAL)
            | flag(self.target.is_some(), FLAG_TARGET)
            | flag(self.value.is_some(), FLAG_VALUE);
        writer.u8(REQUEST).uint(flags).u16(self.tid).ipv4_address(self.to);
        optional(&mut writer, self.id.as_ref());
        optional(&mut writer, self.token.as_ref());
        writer.uint(self.command);
        optional(&mut writer, self.target.as_ref());
        if let Some(value) = &self.value {
            writer.buffer(value);
        }
        writer.into_vec()
    }

    fn decode_body(packet: &Bytes, reader: &mut Reader<'_>) -> Result<Self> {
        let flags = reader.uint()?;
        let tid = reader.u16()?;
        let to = reader.ipv4_address()?;
        let id = present(flags, FLAG_ID, || reader.fixed32())?;
        let token = present(flags, FLAG_TOKEN, || reader.fixed32())?;
        let command = reader.uint()?;
        let target = present(flags, FLAG_TARGET, || reader.fixed32())?;
        let value = present(flags, FLAG_VALUE, || Ok(packet.slice_ref(reader.buffer()?)))?;
        let internal = flags & FLAG_INTERNAL != 0;
        Ok(Self { tid, to, id, token, internal, command, target, value })
    }
}

impl Response {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let value_length = self.value.as_ref().map_or(0, |value| value.len() + 9);
        let mut writer = Writer::with_capacity(96 + self.closer_nodes.len() * 6 + value_length);
        let flags = flag(self.id.is_some(), FLAG_ID)
            | flag(self.token.is_some(), FLAG_TOKEN)
            | flag(!self.closer_nodes.is_empty(), FLAG_CLOSER)
            | flag(self.error > 0, FLAG_ERROR)
            | flag(self.value.is_some(), FLAG_VALUE);
        let to = self.to.unwrap_or(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));
        writer.u8(RESPONSE).uint(flags).u16(self.tid).ipv4_address(to);
        optional(&mut writer, self.id.as_ref());
        optional(&mut writer, self.token.as_ref());
        if !self.closer_nodes.is_empty() {
            writer.uint(self.closer_nodes.len() as u64);
            for node in &self.closer_nodes {
                writer.ipv4_address(*node);
            }
        }
        if self.error > 0 {
            writer.uint(self.error);
        }
        if let Some(value) = &self.value {
            writer.buffer(value);
        }
        writer.into_vec()
    }

    fn decode_body(packet: &Bytes, reader: &mut Reader<'_>) -> Result<Self> {
        let flags = reader.uint()?;
        let tid = reader.u16()?;
        let to = reader.ipv4_address()?;
        let id = present(flags, FLAG_ID, || reader.fixed32())?;
        let token = present(flags, FLAG_TOKEN, || reader.fixed32())?;
        let closer_nodes =
            present(flags, FLAG_CLOSER, || reader.vec(MAX_CLOSER_NODES, Reader::ipv4_address))?;
        let error = present(flags, FLAG_ERROR, || reader.uint())?.unwrap_or(0);
        let value = present(flags, FLAG_VALUE, || Ok(packet.slice_ref(reader.buffer()?)))?;
        let closer_nodes = closer_nodes.unwrap_or_default();
        // An address of zeros is how a node on IPv6 is written: it says nothing.
        let to = Some(to).filter(|to| to.port() != 0 && !to.ip().is_unspecified());
        Ok(Self { tid, to, id, token, closer_nodes, error, value })
    }
}

fn flag(set: bool, flag: u64) -> u64 {
    if set { flag } else { 0 }
}

fn optional(writer: &mut Writer, field: Option<&[u8; 32]>) {
    if let Some(bytes) = field {
        writer.raw(bytes);
    }
}

fn present<T>(flags: u64, flag: u64, read: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
    if flags & flag == 0 { Ok(None) } else { read().map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address(text: &str) -> SocketAddrV4 {
        text.parse().unwrap()
    }

    #[test]
    fn a_ping_takes_the_bytes_of_the_reference() {
        let ping = Request {
            tid: 0x0102,
            to: address("127.0.0.1:49737"),
            id: None,
            token: None,
            internal: true,
            command: 0,
            target: None,
            value: None,
        };
        let bytes = ping.encode();
        assert_eq!(bytes, [3, 4, 2, 1, 127, 0, 0, 1, 0x49, 0xc2, 0]);
        assert_eq!(Message::decode(&bytes.into()), Ok(Message::Request(ping)));
    }

    #[test]
    fn every_field_of_a_request_reads_back() {
        let request = Request {
            tid: 9,
            to: address("1.2.3.4:5"),
            id: Some([1; 32]),
            token: Some([2; 32]),
            internal: false,
            command: 4,
            target: Some([3; 32]),
            value: Some(Bytes::from_static(b"value")),
        };
        assert_eq!(Message::decode(&request.encode().into()), Ok(Message::Request(request)));
    }

    #[test]
    fn every_field_of_a_response_reads_back() {
        let response = Response {
            tid: 9,
            to: Some(address("1.2.3.4:5")),
            id: Some([1; 32]),
            token: Some([2; 32]),
            closer_nodes: vec![address("6.7.8.9:10"), address("1.1.1.1:1")],
            error: 2,
            value: Some(Bytes::from_static(b"value")),
        };
        assert_eq!(Message::decode(&response.encode().into()), Ok(Message::Response(response)));
    }

    #[test]
    fn more_closer_nodes_than_anyone_sends_are_refused() {
        let response = Response {
            closer_nodes: vec![address("6.7.8.9:10"); MAX_CLOSER_NODES + 1],
            ..Response::default()
        };
        assert!(Message::decode(&response.encode().into()).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes: Vec<u8>, tag in prop::sample::select(vec![0u8, REQUEST, RESPONSE])) {
            bytes.insert(0, tag);
            let _ = Message::decode(&bytes.into());
        }
    }
}
