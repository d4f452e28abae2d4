//! Entrances for the fuzz targets (`fuzz/`) and tests to what this module keeps to itself. No part of the
//! API.

use std::net::SocketAddr;

use bytes::Bytes;

use super::messages::handshake::{Handshake, NoisePayload};
use super::messages::holepunch::{Holepunch, Payload};
use super::messages::records::{Announce, LookupReply, MutablePut, PeerRecord};
use super::node::HyperDht;
use super::punch::seal::Seal;
use super::rpc::message::Message;
use super::rpc::socket::SocketKind;
use crate::secret_stream::Session;
use crate::udx::Datagram;

/// The decoders of this module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoder {
    /// A request or a response of the RPC.
    Rpc,
    /// The value of a PEER_HANDSHAKE.
    Handshake,
    /// What a Noise message carries.
    NoisePayload,
    /// The value of a PEER_HOLEPUNCH.
    Holepunch,
    /// What is inside of it, decrypted.
    HolepunchPayload,
    /// The value of a reply to FIND_PEER.
    PeerRecord,
    /// The value of an ANNOUNCE or UNANNOUNCE.
    Announce,
    /// The value of a reply to LOOKUP.
    LookupReply,
    /// The value of a MUTABLE_PUT.
    MutablePut,
}

impl Decoder {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Rpc,
        Self::Handshake,
        Self::NoisePayload,
        Self::Holepunch,
        Self::HolepunchPayload,
        Self::PeerRecord,
        Self::Announce,
        Self::LookupReply,
        Self::MutablePut,
    ];

    /// What `bytes` say, encoded as we would; `None` when they say nothing.
    #[must_use]
    pub fn again(self, bytes: &[u8]) -> Option<Vec<u8>> {
        Some(match self {
            Self::Rpc => match Message::decode(&Bytes::copy_from_slice(bytes)).ok()? {
                Message::Request(request) => request.encode(),
                Message::Response(response) => response.encode(),
            },
            Self::Handshake => Handshake::decode(bytes).ok()?.encode(),
            Self::NoisePayload => NoisePayload::decode(bytes).ok()?.encode(),
            Self::Holepunch => Holepunch::decode(bytes).ok()?.encode(),
            Self::HolepunchPayload => Payload::decode(bytes).ok()?.encode(),
            Self::PeerRecord => PeerRecord::decode(bytes).ok()?.encode(),
            Self::Announce => Announce::decode(bytes).ok()?.encode(),
            Self::LookupReply => {
                let reply = LookupReply::decode(bytes).ok()?;
                let records: Vec<Bytes> =
                    reply.peers.iter().map(|peer| peer.encode().into()).collect();
                LookupReply::encode_raw(&records, reply.bump)
            }
            Self::MutablePut => {
                let put = MutablePut::decode(bytes).ok()?;
                assert!(!put.is_valid(), "nobody signed this");
                [&put.public_key.as_bytes()[..], &put.value.encode()].concat()
            }
        })
    }
}

/// A hole punch's payload, sealed for the other end of a handshake; `None` when `payload` is none.
#[must_use]
pub fn seal(session: &Session, payload: &[u8]) -> Option<Vec<u8>> {
    Some(Seal::new(session).encrypt(&Payload::decode(payload).ok()?))
}

/// What the other end of a handshake sealed.
#[must_use]
pub fn open(session: &Session, sealed: &[u8]) -> Option<Vec<u8>> {
    Some(Seal::new(session).decrypt(sealed)?.encode())
}

/// Gives a node a packet as its server socket would, or as its client socket with `to_client`.
pub fn receive(node: &HyperDht, to_client: bool, from: SocketAddr, packet: &[u8]) {
    let inner = node.inner();
    let socket = if to_client { &inner.rpc.io.client } else { &inner.rpc.io.server };
    debug_assert!(matches!(socket.kind, SocketKind::Client) == to_client);
    let datagram = Datagram { payload: Bytes::copy_from_slice(packet), from };
    if let Some(incoming) = inner.rpc.receive(socket, datagram) {
        inner.on_command(&incoming);
    }
}

/// How much a node holds for others and of others: whatever arrives, it stays within bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Requests that wait for an answer.
    pub in_flight: usize,
    /// Nodes in the routing table.
    pub nodes: usize,
    /// Tasks under way.
    pub tasks: usize,
}

/// See [`Held`].
#[must_use]
pub fn held(node: &HyperDht) -> Held {
    let inner = node.inner();
    Held {
        in_flight: inner.rpc.io.stats().in_flight,
        nodes: crate::sync::lock(&inner.rpc.state).table.len(),
        tasks: inner.rpc.tasks.len(),
    }
}

/// How many requests a node has sent, repetitions included.
#[must_use]
pub fn requests_sent(node: &HyperDht) -> u64 {
    node.inner().rpc.io.stats().sent
}
