//! Every address of a peer that is known, and where each comes from.
//!
//! An address proves nothing: whoever answers there has to have the peer's key. So addresses are taken
//! from anybody, few of each source, and a wrong one costs a handshake that is not answered.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::directory::Peers;
use super::record::PeerStatus;
use crate::crypto::PublicKey;
use crate::error::{Error, ErrorCode, Result};
use crate::events::EventKind;
use crate::sync::lock;
use crate::time::{Moment, now_ms};

/// How many addresses are kept of each source. Together they are no more than one dial tries.
const LAN: usize = 4;
const REACHED: usize = 2;
const MANUAL: usize = 2;
/// Nodes of the topic that pass handshakes on.
const RELAYS: usize = 4;
/// How long a given name may take to resolve.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Where an address of a peer comes from. The first are tried first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AddressSource {
    /// It says so itself on the local network, or somebody under its name.
    Lan,
    /// A person gave it here.
    Manual,
    /// It was reached there before.
    Reached,
    /// A node that passes handshakes on to it, from the topic.
    Topic,
}

impl AddressSource {
    /// The source as the API writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Manual => "manual",
            Self::Reached => "reached",
            Self::Topic => "topic",
        }
    }
}

/// An address of a peer, for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerAddress {
    /// The address as `ip:port`, or `name:port` where a person gave a name.
    pub address: String,
    /// Where it comes from.
    pub source: AddressSource,
    /// When it was last seen, given or reached, in Unix milliseconds.
    pub seen_at: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    address: SocketAddr,
    /// On the wall clock.
    at: u64,
    /// When it was in this run.
    now: Option<Instant>,
}

/// The addresses of one peer, but for the one that a person gave.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    lan: Vec<Seen>,
    reached: Vec<Seen>,
    relays: Vec<Seen>,
    /// Whether `reached` differs from what is on disk.
    unsaved: bool,
}

impl Addresses {
    /// What the database says.
    pub(super) fn restored(reached: impl Iterator<Item = (SocketAddr, u64)>) -> Self {
        let mut addresses = Self::default();
        for (address, at) in reached {
            note(&mut addresses.reached, REACHED, &[address], at, None);
        }
        addresses
    }

    /// Notes addresses, the latest in front. Whether one of them is news.
    pub(super) fn note(&mut self, source: AddressSource, found: &[SocketAddr], now: u64) -> bool {
        let note =
            |kept: &mut Vec<Seen>, limit| note(kept, limit, found, now, Some(Instant::now()));
        match source {
            AddressSource::Lan => note(&mut self.lan, LAN),
            AddressSource::Topic => note(&mut self.relays, RELAYS),
            AddressSource::Reached => {
                self.unsaved = true;
                note(&mut self.reached, REACHED)
            }
            // That one is a column of the peer.
            AddressSource::Manual => false,
        }
    }

    /// The peer left the local network.
    pub(super) fn forget_lan(&mut self) {
        self.lan.clear();
    }

    /// Where the peer itself may answer, likeliest first.
    fn direct(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.lan.iter().chain(&self.reached).map(|seen| seen.address)
    }

    /// What is to be written, once.
    pub(super) fn take_unsaved(&mut self) -> Option<Vec<(SocketAddr, u64)>> {
        std::mem::take(&mut self.unsaved)
            .then(|| self.reached.iter().map(|seen| (seen.address, seen.at)).collect())
    }

    pub(super) fn shown(&self, manual: Option<&str>, given_at: u64) -> Vec<PeerAddress> {
        let list = |seen: &[Seen], source| {
            let show = move |seen: &Seen| PeerAddress {
                address: seen.address.to_string(),
                source,
                seen_at: seen.at,
            };
            seen.iter().map(show).collect::<Vec<_>>()
        };
        let mut shown = list(&self.lan, AddressSource::Lan);
        shown.extend(manual.map(|address| PeerAddress {
            address: address.to_owned(),
            source: AddressSource::Manual,
            seen_at: given_at,
        }));
        shown.extend(list(&self.reached, AddressSource::Reached));
        shown.extend(list(&self.relays, AddressSource::Topic));
        shown
    }
}

fn note(
    kept: &mut Vec<Seen>,
    limit: usize,
    found: &[SocketAddr],
    at: u64,
    now: Option<Instant>,
) -> bool {
    let mut is_news = false;
    let found: Vec<_> = found.iter().filter(|address| is_usable(address)).take(limit).collect();
    for &address in found.into_iter().rev() {
        let before = kept.len();
        kept.retain(|seen| seen.address != address);
        is_news |= kept.len() == before;
        kept.insert(0, Seen { address, at, now });
    }
    kept.truncate(limit);
    is_news
}

fn is_usable(address: &SocketAddr) -> bool {
    let ip = address.ip();
    address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast()
}

/// Called when there is news of where an approved peer is.
pub(super) type OnAddress = Box<dyn Fn(&PublicKey) + Send + Sync>;

impl Peers {
    /// Somebody with this key may be at these addresses. An approved peer is dialed there; any other key
    /// is listed in [`Peers::discovered`], and nobody is added by itself. Whether it is news.
    pub fn found(&self, key: PublicKey, source: AddressSource, addresses: &[SocketAddr]) -> bool {
        let inner = &self.inner;
        let mut state = lock(&inner.state);
        if key == inner.own || state.closed {
            return false;
        }
        if let Some(entry) = state.peers.get_mut(&key) {
            let is_news = entry.stored.status == PeerStatus::Approved
                && entry.addresses.note(source, addresses, now_ms());
            drop(state);
            if is_news {
                inner.wake(&key);
            }
            return is_news;
        }
        let is_news = state.discovered.insert(key, source, addresses, Moment::now());
        if is_news {
            let (peer, source) = (key.to_z32(), source.as_str().to_owned());
            inner.events.emit(EventKind::PeerDiscovered { peer, source });
        }
        is_news
    }

    /// A key is not on the local network any more, or somebody says so.
    pub fn left_lan(&self, key: &PublicKey) {
        if let Some(entry) = lock(&self.inner.state).peers.get_mut(key) {
            entry.addresses.forget_lan();
        }
    }

    /// Where peers were reached before, the latest first: ways into the network.
    #[must_use]
    pub fn reached_addresses(&self) -> Vec<SocketAddr> {
        let state = lock(&self.inner.state);
        let mut seen: Vec<Seen> =
            state.peers.values().flat_map(|entry| &entry.addresses.reached).copied().collect();
        // What was reached in this run comes first. Times of earlier runs are those of a clock that may have
        // jumped: one that is still to come says nothing.
        let wall_ms = now_ms();
        let told = |seen: &Seen| if seen.at <= wall_ms { seen.at } else { 0 };
        seen.sort_by_key(|seen| std::cmp::Reverse((seen.now, told(seen))));
        seen.into_iter().map(|seen| seen.address).collect()
    }

    /// The peer answered there.
    pub(super) fn reached(&self, key: &PublicKey, address: SocketAddr) {
        let mut state = lock(&self.inner.state);
        let Some(entry) = state.peers.get_mut(key) else { return };
        entry.addresses.note(AddressSource::Reached, &[address], now_ms());
        state.unsaved.insert(*key);
        drop(state);
        self.inner.unsaved.notify_one();
    }

    /// Where the peer itself may answer, likeliest first, and the address that a person gave.
    pub(super) fn direct_addresses(&self, key: &PublicKey) -> (Vec<SocketAddr>, Option<String>) {
        let state = lock(&self.inner.state);
        let Some(entry) = state.peers.get(key) else { return Default::default() };
        (entry.addresses.direct().collect(), entry.stored.address.clone())
    }

    /// Nodes that pass a handshake on to the peer.
    pub(super) fn relays(&self, key: &PublicKey) -> Vec<SocketAddr> {
        let state = lock(&self.inner.state);
        let entry = state.peers.get(key);
        entry.map_or_else(Vec::new, |e| e.addresses.relays.iter().map(|r| r.address).collect())
    }

    /// Has `call` called with every approved peer of whose address there is news.
    pub(super) fn on_address(&self, call: OnAddress) {
        *lock(&self.inner.on_address) = Some(call);
    }
}

/// A `host:port` that a person gave: an IP address or a name.
///
/// # Errors
///
/// `ERR_INVALID_ARGUMENT` when it is none.
pub(super) fn check_address(text: &str) -> Result<Option<String>> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let is_name = |host: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        !host.is_empty() && host.len() <= 253 && host.bytes().all(allowed)
    };
    let is_valid = match text.parse::<SocketAddr>() {
        Ok(address) => is_usable(&address),
        Err(_) => text.rsplit_once(':').is_some_and(|(host, port)| {
            is_name(host) && port.parse::<u16>().is_ok_and(|port| port != 0)
        }),
    };
    if is_valid {
        return Ok(Some(text.to_owned()));
    }
    let message = format!("{text:?} is no address: write host:port, such as 192.168.1.20:49737");
    Err(Error::new(ErrorCode::InvalidArgument, message))
}

/// The addresses behind a `host:port` that [`check_address`] took, at most two; none when the name is
/// not known, or not within 3 s.
pub(super) async fn resolve(text: &str) -> Vec<SocketAddr> {
    match tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host(text)).await {
        Ok(Ok(found)) => found.take(MANUAL).collect(),
        _ => {
            tracing::debug!("the address given for a peer could not be looked up");
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::directory::tests::{key, setup};
    use super::super::record::{AddOptions, PeerUpdate};
    use super::*;

    fn at(n: u16) -> SocketAddr {
        SocketAddr::from(([192, 168, 1, 1], n))
    }

    #[test]
    fn few_addresses_are_kept_and_liars_do_not_push_out_where_a_peer_was_reached() {
        let mut addresses = Addresses::default();
        assert!(addresses.note(AddressSource::Reached, &[at(1)], 1));
        for n in 2..1000 {
            addresses.note(AddressSource::Lan, &[at(n), at(n + 1000), at(n + 2000)], 2);
        }
        let direct: Vec<_> = addresses.direct().collect();
        assert_eq!(direct.len(), LAN + 1);
        assert!(direct.contains(&at(1)));
        assert!(!addresses.note(AddressSource::Lan, &[at(999)], 3));
    }

    #[test]
    fn what_is_no_address_of_anybody_is_not_kept() {
        let mut addresses = Addresses::default();
        let found = ["0.0.0.0:1", "224.0.0.251:5353", "192.168.1.1:0", "[ff02::fb]:1"];
        let found: Vec<SocketAddr> = found.iter().map(|text| text.parse().unwrap()).collect();
        assert!(!addresses.note(AddressSource::Lan, &found, 1));
        assert_eq!(addresses.direct().count(), 0);
    }

    #[test]
    fn an_address_is_an_ip_or_a_name_with_a_port() {
        for text in ["192.168.1.20:49737", "[fd00::1]:1", "nas.local:49737", " server:1 "] {
            assert!(check_address(text).unwrap().is_some(), "{text}");
        }
        for text in
            ["192.168.1.20", "nas.local:0", "a b:1", ":1", "fd00::1", "http://a:1", "x:65536"]
        {
            assert_eq!(check_address(text).unwrap_err().code, ErrorCode::InvalidArgument, "{text}");
        }
        assert_eq!(check_address("").unwrap(), None);
    }

    #[tokio::test]
    async fn an_unknown_key_on_the_lan_is_listed_and_its_address_is_used_once_it_is_approved() {
        let setup = setup().await;
        let peers = &setup.peers;
        assert!(peers.found(key(1), AddressSource::Lan, &[at(7)]));
        assert!(!peers.found(key(1), AddressSource::Lan, &[at(7)]));
        assert_eq!(peers.discovered()[0].source, "lan");
        assert!(!peers.is_approved(&key(1)));
        peers.approve(&key(1)).await.unwrap();
        assert_eq!(peers.direct_addresses(&key(1)).0, [at(7)]);
        peers.left_lan(&key(1));
        assert!(peers.direct_addresses(&key(1)).0.is_empty());
    }

    #[tokio::test]
    async fn where_a_peer_was_reached_when_the_clock_was_ahead_comes_last_after_a_restart() {
        let setup = setup().await;
        let ahead = now_ms() + 24 * 60 * 60 * 1000;
        for n in 1..4 {
            setup.peers.approve(&key(n)).await.unwrap();
        }
        let rows = [(1, ahead), (2, 5), (3, 6)];
        setup
            .database
            .write::<_, crate::store::StoreError, _>(move |transaction| {
                rows.iter().try_for_each(|(n, reached_at)| {
                    let row = [(at(u16::from(*n)), *reached_at)];
                    super::super::table::put_addresses(transaction, &key(*n), &row)
                })
            })
            .await
            .unwrap();
        let again = Peers::open(&setup.database, key(0), &setup.events).await.unwrap();
        assert_eq!(again.reached_addresses(), [at(3), at(2), at(1)]);
        again.reached(&key(1), at(1));
        assert_eq!(again.reached_addresses(), [at(1), at(3), at(2)]);
    }

    #[tokio::test]
    async fn given_and_reached_addresses_are_there_after_a_restart() {
        let setup = setup().await;
        let peers = &setup.peers;
        let address = Some("nas.local:49737".to_owned());
        let options = AddOptions { address: address.clone(), ..AddOptions::default() };
        peers.add(&key(1).to_z32(), options).await.unwrap();
        peers.reached(&key(1), at(1));
        peers.reached(&key(1), at(2));
        peers.close().await;
        let again = Peers::open(&setup.database, key(0), &setup.events).await.unwrap();
        assert_eq!(again.direct_addresses(&key(1)), (vec![at(2), at(1)], address));
        assert_eq!(again.reached_addresses(), [at(2), at(1)]);
        let update = PeerUpdate { address: Some(None), ..PeerUpdate::default() };
        let peer = again.update(&key(1), update).await.unwrap();
        assert!(peer.addresses.iter().all(|a| a.source == AddressSource::Reached));
        again.remove(&key(1)).await.unwrap();
        let again = Peers::open(&setup.database, key(0), &setup.events).await.unwrap();
        assert!(again.reached_addresses().is_empty());
    }
}
