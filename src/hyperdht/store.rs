//! What a persistent node keeps for others (`hyperdht` `lib/persistent.js`).
//!
//! Everything is bounded in number and in time, and signed by its owner. Values travel in one packet,
//! so their size is bounded by the socket's. Who has one network block gets a share of it only.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::cache::{ExpiringMap, Key};
use super::messages::commands;
use super::messages::records::{Announce, LookupReply, MutablePut, MutableValue, PeerRecord};
use super::quota::Quota;
use super::rpc::message::{NodeId, Token};
use super::rpc::table::NetworkBlock;
use super::tuning::Tuning;
use crate::crypto::{self, PublicKey};
use crate::encoding::Reader;

const MAX_PEERS: usize = 16_384;
const MAX_TOPICS: usize = 2_048;
const MAX_RECORDS_PER_TOPIC: usize = 64;
/// Records of one network block among those of a topic.
const MAX_RECORDS_PER_BLOCK: usize = MAX_RECORDS_PER_TOPIC / 4;
const MAX_REFRESHES: usize = 4_096;
const MAX_VALUES: usize = 4_096;

/// How many peers one lookup reply names.
const LOOKUP_PEERS: usize = 20;
/// How many relays of a peer are kept.
const MAX_RELAYS: usize = 3;
/// How far in the future a bump may lie, in milliseconds.
const MAX_BUMP_DRIFT: u64 = 60_000;

/// Errors of mutable values.
const SEQ_REUSED: u64 = 16;
const SEQ_TOO_LOW: u64 = 17;

/// A peer that announced itself here under the hash of its key.
#[derive(Debug, Clone)]
pub(crate) struct AnnouncedPeer {
    /// Where handshakes for it are passed on to.
    pub relay: SocketAddr,
    pub record: Bytes,
}

#[derive(Debug, Clone)]
struct Record {
    public_key: PublicKey,
    bytes: Bytes,
    block: Option<NetworkBlock>,
    since: tokio::time::Instant,
}

#[derive(Debug, Default)]
struct Topic {
    records: Vec<Record>,
    bump: u64,
}

#[derive(Debug, Clone)]
struct Refresh {
    target: NodeId,
    record: PeerRecord,
}

/// What came of a request to store something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    /// Done; say so.
    Yes,
    /// Malformed, unsigned or unauthorised: no answer.
    Ignored,
    /// Refused with this error code.
    Error(u64),
}

/// The records of a node.
pub(crate) struct Store {
    record_age: Duration,
    peers: ExpiringMap<AnnouncedPeer>,
    topics: ExpiringMap<Topic>,
    refreshes: ExpiringMap<Refresh>,
    mutables: ExpiringMap<MutableValue>,
    immutables: ExpiringMap<Bytes>,
    peer_quota: Quota,
    topic_quota: Quota,
    refresh_quota: Quota,
    value_quota: Quota,
}

impl Store {
    pub(crate) fn new(tuning: Tuning) -> Self {
        let Tuning { record_age, value_age, .. } = tuning;
        Self {
            record_age,
            peers: ExpiringMap::new(MAX_PEERS, record_age),
            topics: ExpiringMap::new(MAX_TOPICS, record_age),
            refreshes: ExpiringMap::new(MAX_REFRESHES, record_age),
            mutables: ExpiringMap::new(MAX_VALUES, value_age),
            immutables: ExpiringMap::new(MAX_VALUES, value_age),
            peer_quota: Quota::new(MAX_PEERS, record_age),
            topic_quota: Quota::new(MAX_TOPICS, record_age),
            refresh_quota: Quota::new(MAX_REFRESHES, record_age),
            value_quota: Quota::new(MAX_VALUES, value_age),
        }
    }

    /// The peer that announced itself under `target`.
    pub(crate) fn peer(&self, target: &NodeId) -> Option<&AnnouncedPeer> {
        self.peers.get(target)
    }

    /// The answer to LOOKUP. `own` is the record of a server of this node under that target.
    pub(crate) fn lookup(&self, target: &NodeId, own: Option<Bytes>) -> Option<Vec<u8>> {
        let mut records: Vec<Bytes> = Vec::new();
        let mut bump = 0;
        if let Some(topic) = self.topics.get(target) {
            let fresh =
                topic.records.iter().filter(|record| record.since.elapsed() < self.record_age);
            records.extend(fresh.map(|record| record.bytes.clone()));
            bump = topic.bump;
        }
        while records.len() > LOOKUP_PEERS {
            let index = super::rpc::maintain::random_below(records.len() as u64) as usize;
            records.swap_remove(index);
        }
        let announced = self.peers.get(target).map(|peer| peer.record.clone());
        if records.len() < LOOKUP_PEERS {
            records.extend(own.or(announced));
        }
        (!records.is_empty()).then(|| LookupReply::encode_raw(&records, bump))
    }

    /// ANNOUNCE from `from`, which showed `token` to the node `id`.
    pub(crate) fn announce(
        &mut self,
        from: SocketAddr,
        target: &NodeId,
        id: &NodeId,
        token: &Token,
        value: &[u8],
    ) -> Stored {
        let Ok(announce) = Announce::decode(value) else { return Stored::Ignored };
        if announce.peer.is_none() {
            let Some(refresh) = announce.refresh else { return Stored::Ignored };
            return self.refresh(from, refresh);
        }
        let Some(peer) = announce.verify(commands::ANNOUNCE, target, id, token) else {
            return Stored::Ignored;
        };
        let mut peer = peer.clone();
        peer.relay_addresses.truncate(MAX_RELAYS);
        if !self.put(from, target, &peer) {
            return Stored::Ignored;
        }
        if let Some(topic) = self.topics.get_mut(target) {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let limit = now.as_millis() as u64 + MAX_BUMP_DRIFT;
            if announce.bump > topic.bump && announce.bump <= limit {
                topic.bump = announce.bump;
            }
        }
        if let Some(refresh) = announce.refresh
            && (self.refreshes.get(&refresh).is_some() || self.refresh_quota.allow(from))
        {
            self.refreshes.insert(refresh, Refresh { target: *target, record: peer });
        }
        Stored::Yes
    }

    /// Whoever shows the preimage of an announcement's refresh token made that announcement.
    fn refresh(&mut self, from: SocketAddr, token: [u8; 32]) -> Stored {
        let Some(refresh) = self.refreshes.remove(&crypto::hash(&[&token])) else {
            return Stored::Ignored;
        };
        let is_put = self.put(from, &refresh.target, &refresh.record);
        self.refreshes.insert(token, refresh);
        if is_put { Stored::Yes } else { Stored::Ignored }
    }

    /// Whether there was room for it.
    fn put(&mut self, from: SocketAddr, target: &NodeId, peer: &PeerRecord) -> bool {
        let bytes = Bytes::from(peer.encode());
        if crypto::hash(&[peer.public_key.as_bytes()]) == *target {
            if self.peers.get(target).is_none() && !self.peer_quota.allow(from) {
                return false;
            }
            self.peers.insert(*target, AnnouncedPeer { relay: from, record: bytes });
            return true;
        }
        if self.topics.get(target).is_none() && !self.topic_quota.allow(from) {
            return false;
        }
        let record_age = self.record_age;
        let mut topic = self.topics.remove(target).unwrap_or_default();
        topic.records.retain(|record| {
            record.public_key != peer.public_key && record.since.elapsed() < record_age
        });
        let block = match from {
            SocketAddr::V4(v4) => NetworkBlock::of(*v4.ip()),
            SocketAddr::V6(_) => None,
        };
        let of_block = |record: &Record| block.is_some() && record.block == block;
        if topic.records.iter().filter(|record| of_block(record)).count() >= MAX_RECORDS_PER_BLOCK {
            // The oldest of its own block makes room.
            topic.records.iter().position(of_block).map(|oldest| topic.records.remove(oldest));
        } else if topic.records.len() >= MAX_RECORDS_PER_TOPIC {
            topic.records.remove(0);
        }
        let since = tokio::time::Instant::now();
        topic.records.push(Record { public_key: peer.public_key, bytes, block, since });
        self.topics.insert(*target, topic);
        true
    }

    /// UNANNOUNCE, as [`Store::announce`].
    pub(crate) fn unannounce(
        &mut self,
        target: &NodeId,
        id: &NodeId,
        token: &Token,
        value: &[u8],
    ) -> Stored {
        let Ok(announce) = Announce::decode(value) else { return Stored::Ignored };
        match announce.verify(commands::UNANNOUNCE, target, id, token) {
            Some(peer) => {
                self.forget(target, &peer.public_key);
                Stored::Yes
            }
            None => Stored::Ignored,
        }
    }

    /// Forgets that `public_key` was announced under `target`.
    pub(crate) fn forget(&mut self, target: &NodeId, public_key: &PublicKey) {
        if crypto::hash(&[public_key.as_bytes()]) == *target {
            self.peers.remove(target);
        }
        if let Some(topic) = self.topics.get_mut(target) {
            topic.records.retain(|record| record.public_key != *public_key);
        }
    }

    /// MUTABLE_GET: the value, when it is at least as new as the sequence number asked for.
    pub(crate) fn mutable(&self, target: &NodeId, value: &[u8]) -> Result<Option<Vec<u8>>, ()> {
        let seq = Reader::new(value).uint().map_err(|_| ())?;
        Ok(self.mutables.get(target).filter(|known| known.seq >= seq).map(MutableValue::encode))
    }

    /// MUTABLE_PUT.
    pub(crate) fn put_mutable(
        &mut self,
        from: SocketAddr,
        target: &NodeId,
        value: &[u8],
    ) -> Stored {
        let Ok(put) = MutablePut::decode(value) else { return Stored::Ignored };
        if crypto::hash(&[put.public_key.as_bytes()]) != *target || !put.is_valid() {
            return Stored::Ignored;
        }
        match self.mutables.get(target) {
            Some(known) if known.seq == put.value.seq && known.value != put.value.value => {
                return Stored::Error(SEQ_REUSED);
            }
            Some(known) if known.seq > put.value.seq => return Stored::Error(SEQ_TOO_LOW),
            None if !self.value_quota.allow(from) => return Stored::Ignored,
            _ => {}
        }
        self.mutables.insert(*target, put.value);
        Stored::Yes
    }

    /// IMMUTABLE_GET.
    pub(crate) fn immutable(&self, target: &NodeId) -> Option<Bytes> {
        self.immutables.get(target).cloned()
    }

    /// IMMUTABLE_PUT.
    pub(crate) fn put_immutable(
        &mut self,
        from: SocketAddr,
        target: &NodeId,
        value: &[u8],
    ) -> Stored {
        if crypto::hash(&[value]) != *target {
            return Stored::Ignored;
        }
        if self.immutables.get(target).is_none() && !self.value_quota.allow(from) {
            return Stored::Ignored;
        }
        self.immutables.insert(*target, Bytes::copy_from_slice(value));
        Stored::Yes
    }

    /// Drops what is over age.
    pub(crate) fn sweep(&mut self) {
        self.peers.sweep();
        self.topics.sweep();
        self.refreshes.sweep();
        self.mutables.sweep();
        self.immutables.sweep();
    }
}

/// The key of a peer's own announcement.
pub(crate) fn target_of(public_key: &PublicKey) -> Key {
    crypto::hash(&[public_key.as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::KeyPair;

    const ID: NodeId = [2; 32];
    const TOKEN: Token = [3; 32];

    fn from() -> SocketAddr {
        "10.0.0.1:1".parse().unwrap()
    }

    fn announce(store: &mut Store, keys: &KeyPair, target: &NodeId) -> Stored {
        announce_from(store, from(), keys, target)
    }

    fn announce_from(
        store: &mut Store,
        from: SocketAddr,
        keys: &KeyPair,
        target: &NodeId,
    ) -> Stored {
        let value =
            Announce::signed(commands::ANNOUNCE, keys, Vec::new(), target, &ID, &TOKEN).encode();
        store.announce(from, target, &ID, &TOKEN, &value)
    }

    /// Everybody of one block of the public network.
    fn flooder(index: usize) -> SocketAddr {
        SocketAddr::from(([20, 6, 6, index as u8], 1))
    }

    #[tokio::test]
    async fn one_network_block_does_not_push_others_out_of_a_topic() {
        let mut store = Store::new(Tuning::default());
        let honest: SocketAddr = "20.1.0.1:1".parse().unwrap();
        let keys = KeyPair::generate();
        assert_eq!(announce_from(&mut store, honest, &keys, &[1; 32]), Stored::Yes);
        for index in 0..300 {
            announce_from(&mut store, flooder(index), &KeyPair::generate(), &[1; 32]);
        }
        let records = &store.topics.get(&[1; 32]).unwrap().records;
        assert!(records.iter().any(|record| record.public_key == keys.public_key()));
        assert_eq!(records.len(), 1 + MAX_RECORDS_PER_BLOCK);
    }

    #[tokio::test]
    async fn one_network_block_does_not_push_out_topics_of_others() {
        let mut store = Store::new(Tuning::default());
        let keys = KeyPair::generate();
        let honest: SocketAddr = "20.1.0.1:1".parse().unwrap();
        announce_from(&mut store, honest, &keys, &[0; 32]);
        for index in 1..=MAX_TOPICS {
            let target = crypto::hash(&[&index.to_le_bytes()]);
            announce_from(&mut store, flooder(index), &keys, &target);
        }
        assert!(store.lookup(&[0; 32], None).is_some());
        assert_eq!(store.topics.len(), 1 + MAX_TOPICS / 16);
        // What it has it may still renew.
        let target = crypto::hash(&[&1usize.to_le_bytes()]);
        assert_eq!(announce_from(&mut store, flooder(1), &keys, &target), Stored::Yes);
    }

    #[tokio::test]
    async fn one_network_block_does_not_push_out_values_of_others() {
        let mut store = Store::new(Tuning::default());
        let honest: SocketAddr = "20.1.0.1:1".parse().unwrap();
        let target = crypto::hash(&[b"value"]);
        assert_eq!(store.put_immutable(honest, &target, b"value"), Stored::Yes);
        for index in 0..=MAX_VALUES {
            let value = index.to_le_bytes();
            store.put_immutable(flooder(index), &crypto::hash(&[&value]), &value);
        }
        assert!(store.immutable(&target).is_some());
        assert_eq!(store.immutables.len(), 1 + MAX_VALUES / 16);
    }

    #[tokio::test]
    async fn a_peer_under_its_own_key_is_found_with_its_address() {
        let mut store = Store::new(Tuning::default());
        let keys = KeyPair::generate();
        let target = target_of(&keys.public_key());
        assert_eq!(announce(&mut store, &keys, &target), Stored::Yes);
        assert_eq!(store.peer(&target).unwrap().relay, from());
        store.forget(&target, &keys.public_key());
        assert!(store.peer(&target).is_none());
    }

    #[tokio::test]
    async fn a_topic_names_at_most_twenty_of_those_announced() {
        let mut store = Store::new(Tuning::default());
        for _ in 0..100 {
            assert_eq!(announce(&mut store, &KeyPair::generate(), &[1; 32]), Stored::Yes);
        }
        let reply = LookupReply::decode(&store.lookup(&[1; 32], None).unwrap()).unwrap();
        assert_eq!(reply.peers.len(), LOOKUP_PEERS);
        assert_eq!(store.topics.get(&[1; 32]).unwrap().records.len(), MAX_RECORDS_PER_TOPIC);
        assert_eq!(store.lookup(&[9; 32], None), None);
    }

    #[tokio::test(start_paused = true)]
    async fn announcements_end_after_twenty_minutes() {
        let mut store = Store::new(Tuning::default());
        announce(&mut store, &KeyPair::generate(), &[1; 32]);
        tokio::time::advance(Duration::from_secs(15 * 60)).await;
        announce(&mut store, &KeyPair::generate(), &[1; 32]);
        tokio::time::advance(Duration::from_secs(6 * 60)).await;
        let reply = LookupReply::decode(&store.lookup(&[1; 32], None).unwrap()).unwrap();
        assert_eq!(reply.peers.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn announcements_end_when_the_node_is_told_that_they_do() {
        let mut store =
            Store::new(Tuning { record_age: Duration::from_secs(60), ..Tuning::default() });
        let keys = KeyPair::generate();
        let target = target_of(&keys.public_key());
        announce(&mut store, &keys, &target);
        announce(&mut store, &keys, &[1; 32]);
        tokio::time::advance(Duration::from_secs(61)).await;
        assert!(store.peer(&target).is_none());
        assert_eq!(store.lookup(&[1; 32], None), None);
    }

    #[tokio::test]
    async fn a_forged_announcement_is_ignored() {
        let mut store = Store::new(Tuning::default());
        let keys = KeyPair::generate();
        let mut announce =
            Announce::signed(commands::ANNOUNCE, &keys, Vec::new(), &[1; 32], &ID, &TOKEN);
        announce.peer.as_mut().unwrap().public_key = KeyPair::generate().public_key();
        let stored = store.announce(from(), &[1; 32], &ID, &TOKEN, &announce.encode());
        assert_eq!(stored, Stored::Ignored);
        assert_eq!(store.lookup(&[1; 32], None), None);
    }

    #[tokio::test]
    async fn only_the_owner_unannounces() {
        let mut store = Store::new(Tuning::default());
        let keys = KeyPair::generate();
        announce(&mut store, &keys, &[1; 32]);
        let stranger = KeyPair::generate();
        for (who, left) in [(&stranger, true), (&keys, false)] {
            let value =
                Announce::signed(commands::UNANNOUNCE, who, Vec::new(), &[1; 32], &ID, &TOKEN);
            assert_eq!(store.unannounce(&[1; 32], &ID, &TOKEN, &value.encode()), Stored::Yes);
            assert_eq!(store.lookup(&[1; 32], None).is_some(), left);
        }
    }

    #[tokio::test]
    async fn an_immutable_value_is_found_by_its_hash_only() {
        let mut store = Store::new(Tuning::default());
        assert_eq!(store.put_immutable(from(), &crypto::hash(&[b"value"]), b"value"), Stored::Yes);
        assert_eq!(store.put_immutable(from(), &[0; 32], b"value"), Stored::Ignored);
        assert_eq!(store.immutable(&crypto::hash(&[b"value"])).unwrap(), "value");
    }
}
