//! What nodes store for others: who is where, signed announcements, small values.

use std::net::SocketAddrV4;

use bytes::Bytes;

use super::{commands, flag, namespace, present, read_addresses, write_addresses};
use crate::crypto::{self, KeyPair, PublicKey};
use crate::encoding::{Reader, Result, Writer};
use crate::hyperdht::rpc::message::{NodeId, Token};

/// How many peers of one lookup reply are read. The reference sends at most 20.
const MAX_PEERS: usize = 64;

/// A peer, and nodes that pass handshakes on to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerRecord {
    pub public_key: PublicKey,
    pub relay_addresses: Vec<SocketAddrV4>,
}

impl PeerRecord {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_capacity(64);
        self.write(&mut writer);
        writer.into_vec()
    }

    fn write(&self, writer: &mut Writer) {
        writer.raw(self.public_key.as_bytes());
        write_addresses(writer, &self.relay_addresses);
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        Self::read(&mut Reader::new(bytes))
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let public_key = PublicKey::from_bytes(reader.fixed32()?);
        Ok(Self { public_key, relay_addresses: read_addresses(reader)? })
    }
}

/// The value of ANNOUNCE and UNANNOUNCE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Announce {
    pub peer: Option<PeerRecord>,
    /// Proves, or in a first announcement prepares, that a later one is a refresh.
    pub refresh: Option<[u8; 32]>,
    pub signature: Option<[u8; 64]>,
    /// A time in milliseconds that moves a topic up.
    pub bump: u64,
}

impl Announce {
    /// An announcement of `peer` under `target`, signed for the node `id` that gave `token`.
    pub(crate) fn signed(
        command: u64,
        keys: &KeyPair,
        relay_addresses: Vec<SocketAddrV4>,
        target: &NodeId,
        id: &NodeId,
        token: &Token,
    ) -> Self {
        let peer = PeerRecord { public_key: keys.public_key(), relay_addresses };
        let signature = keys.sign(&signable(command, &peer, None, target, id, token));
        Self { peer: Some(peer), refresh: None, signature: Some(signature), bump: 0 }
    }

    /// The peer, when its signature is valid for this node and target.
    pub(crate) fn verify(
        &self,
        command: u64,
        target: &NodeId,
        id: &NodeId,
        token: &Token,
    ) -> Option<&PeerRecord> {
        let peer = self.peer.as_ref()?;
        let message = signable(command, peer, self.refresh.as_ref(), target, id, token);
        peer.public_key.verify(&message, self.signature.as_ref()?).then_some(peer)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_capacity(160);
        let flags = flag(self.peer.is_some(), 1)
            | flag(self.refresh.is_some(), 2)
            | flag(self.signature.is_some(), 4)
            | flag(self.bump != 0, 8);
        writer.uint(flags);
        if let Some(peer) = &self.peer {
            peer.write(&mut writer);
        }
        if let Some(refresh) = &self.refresh {
            writer.raw(refresh);
        }
        if let Some(signature) = &self.signature {
            writer.raw(signature);
        }
        if self.bump != 0 {
            writer.uint(self.bump);
        }
        writer.into_vec()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        let flags = reader.uint()?;
        let peer = present(flags, 1, || PeerRecord::read(&mut reader))?;
        let refresh = present(flags, 2, || reader.fixed32())?;
        let signature = present(flags, 4, || reader.array::<64>())?;
        let bump = present(flags, 8, || reader.uint())?.unwrap_or(0);
        Ok(Self { peer, refresh, signature, bump })
    }
}

/// What an announcement's signature covers (`lib/persistent.js` `annSignable`).
fn signable(
    command: u64,
    peer: &PeerRecord,
    refresh: Option<&[u8; 32]>,
    target: &NodeId,
    id: &NodeId,
    token: &Token,
) -> [u8; 64] {
    let refresh = refresh.map_or(&[][..], |refresh| refresh);
    let hash = crypto::hash(&[target, id, token, &peer.encode(), refresh]);
    let mut message = [0; 64];
    let (front, back) = message.split_at_mut(32);
    front.copy_from_slice(&namespace(command));
    back.copy_from_slice(&hash);
    message
}

/// The value of a reply to LOOKUP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LookupReply {
    pub peers: Vec<PeerRecord>,
    pub bump: u64,
}

impl LookupReply {
    /// A reply made of records that are encoded already.
    pub(crate) fn encode_raw(records: &[Bytes], bump: u64) -> Vec<u8> {
        let mut writer = Writer::with_capacity(records.len() * 64 + 16);
        writer.uint(records.len() as u64);
        for record in records {
            writer.raw(record);
        }
        writer.uint(bump).as_slice().to_vec()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        let peers = reader.vec(MAX_PEERS, PeerRecord::read)?;
        let bump = if reader.is_empty() { 0 } else { reader.uint()? };
        Ok(Self { peers, bump })
    }
}

/// The value of MUTABLE_PUT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MutablePut {
    pub public_key: PublicKey,
    pub value: MutableValue,
}

/// A signed value; what MUTABLE_GET replies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MutableValue {
    pub seq: u64,
    pub value: Vec<u8>,
    pub signature: [u8; 64],
}

impl MutablePut {
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        let public_key = PublicKey::from_bytes(reader.fixed32()?);
        Ok(Self { public_key, value: MutableValue::read(&mut reader)? })
    }

    /// Whether the signature is the key's over sequence number and value.
    pub(crate) fn is_valid(&self) -> bool {
        let mut writer = Writer::with_capacity(self.value.value.len() + 16);
        writer.uint(self.value.seq).buffer(&self.value.value);
        let mut message = namespace(commands::MUTABLE_PUT).to_vec();
        message.extend_from_slice(&crypto::hash(&[writer.as_slice()]));
        self.public_key.verify(&message, &self.value.signature)
    }
}

impl MutableValue {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_capacity(self.value.len() + 80);
        writer.uint(self.seq).buffer(&self.value).raw(&self.signature);
        writer.into_vec()
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let seq = reader.uint()?;
        let value = reader.buffer()?.to_vec();
        Ok(Self { seq, value, signature: reader.array()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_signed_announcement_verifies_only_where_it_was_made_for() {
        let keys = KeyPair::generate();
        let relays = vec!["1.2.3.4:5".parse().unwrap()];
        let (target, id, token) = ([1; 32], [2; 32], [3; 32]);
        let announce = Announce::signed(commands::ANNOUNCE, &keys, relays, &target, &id, &token);
        let announce = Announce::decode(&announce.encode()).unwrap();
        let verify = |command, id, token| announce.verify(command, &target, id, token);
        assert_eq!(
            verify(commands::ANNOUNCE, &id, &token).map(|peer| peer.public_key),
            Some(keys.public_key())
        );
        assert_eq!(verify(commands::UNANNOUNCE, &id, &token), None);
        assert_eq!(verify(commands::ANNOUNCE, &[9; 32], &token), None);
        assert_eq!(verify(commands::ANNOUNCE, &id, &[9; 32]), None);
    }

    #[test]
    fn a_lookup_reply_reads_back() {
        let keys = KeyPair::from_seed(&[1; 32]);
        let peer = PeerRecord {
            public_key: keys.public_key(),
            relay_addresses: vec!["1.2.3.4:5".parse().unwrap()],
        };
        let records = vec![Bytes::from(peer.encode()); 3];
        let reply = LookupReply::decode(&LookupReply::encode_raw(&records, 7)).unwrap();
        assert_eq!(reply, LookupReply { peers: vec![peer; 3], bump: 7 });
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Announce::decode(&bytes);
            let _ = LookupReply::decode(&bytes);
            let _ = PeerRecord::decode(&bytes);
            if let Ok(put) = MutablePut::decode(&bytes) {
                assert!(!put.is_valid());
            }
        }
    }
}
