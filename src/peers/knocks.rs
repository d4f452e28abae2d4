//! Keys that tried to connect: few enough to read, whoever knocks how often.
//!
//! Anybody can make keys by the million and knock with each. So the book is bounded, new keys come in
//! at a bounded rate, and one network cannot push the keys of others out.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use super::record::Knock;
use crate::crypto::PublicKey;

/// How many keys are remembered.
pub(super) const CAPACITY: usize = 256;
/// How many of them may come from one network; the network's own oldest gives way to more.
const PER_NETWORK: usize = 32;
/// How many new keys may come at once, and in the long run one each [`NEW_KEY_MS`].
const BURST: u64 = 64;
const NEW_KEY_MS: u64 = 1000;
/// The shortest time between two reports of one key.
const REPORT_MS: u64 = 60_000;

/// What is remembered of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) first_at: u64,
    pub(super) last_at: u64,
    pub(super) count: u64,
    pub(super) address: Option<SocketAddr>,
    reported_at: u64,
}

impl Entry {
    pub(super) const fn new(
        first_at: u64,
        last_at: u64,
        count: u64,
        address: Option<SocketAddr>,
    ) -> Self {
        Self { first_at, last_at, count, address, reported_at: 0 }
    }
}

/// The bounded book of knocks. Takes the time, has no clock.
#[derive(Debug, Default)]
pub(super) struct Knocks {
    entries: HashMap<PublicKey, Entry>,
    /// Rows of the database that are not as the book says.
    dirty: HashSet<PublicKey>,
    /// When the next new key would be admitted if none had been spared (a leaky bucket's level).
    next_new_at: u64,
}

impl Knocks {
    /// Takes a row that an earlier run left.
    pub(super) fn restore(&mut self, key: PublicKey, entry: Entry) {
        if self.entries.len() < CAPACITY {
            self.entries.insert(key, entry);
        } else {
            self.dirty.insert(key);
        }
    }

    /// Notes a try. Gives the entry when a person should hear of it now.
    pub(super) fn record(
        &mut self,
        key: PublicKey,
        address: Option<SocketAddr>,
        now: u64,
    ) -> Option<Knock> {
        if !self.entries.contains_key(&key) {
            if !self.admit_new(now) {
                return None;
            }
            self.make_room(network(address));
            self.entries.insert(key, Entry::new(now, now, 0, address));
        }
        let entry = self.entries.get_mut(&key)?;
        entry.last_at = now;
        entry.count = entry.count.saturating_add(1);
        entry.address = address.or(entry.address);
        self.dirty.insert(key);
        let report = entry.count == 1 || now.saturating_sub(entry.reported_at) >= REPORT_MS;
        report.then(|| {
            entry.reported_at = now;
            shown(&key, entry)
        })
    }

    /// Forgets a key; whether it was there.
    pub(super) fn remove(&mut self, key: &PublicKey) -> bool {
        let there = self.entries.remove(key).is_some();
        if there {
            self.dirty.insert(*key);
        }
        there
    }

    pub(super) fn get(&self, key: &PublicKey) -> Option<Knock> {
        self.entries.get(key).map(|entry| shown(key, entry))
    }

    /// All, the latest first.
    pub(super) fn list(&self) -> Vec<Knock> {
        let mut knocks: Vec<_> =
            self.entries.iter().map(|(key, entry)| shown(key, entry)).collect();
        knocks.sort_by(|a, b| b.last_at.cmp(&a.last_at).then_with(|| a.key.cmp(&b.key)));
        knocks
    }

    /// The rows to write (or to delete, without an entry) since the last call.
    pub(super) fn take_dirty(&mut self) -> Vec<(PublicKey, Option<Entry>)> {
        self.dirty.drain().map(|key| (key, self.entries.get(&key).cloned())).collect()
    }

    fn admit_new(&mut self, now: u64) -> bool {
        let level = self.next_new_at.max(now);
        if level - now > BURST * NEW_KEY_MS {
            return false;
        }
        self.next_new_at = level + NEW_KEY_MS;
        true
    }

    /// Makes room for one more key from `from`.
    fn make_room(&mut self, from: Option<IpAddr>) {
        let mut sizes: HashMap<Option<IpAddr>, usize> = HashMap::new();
        for entry in self.entries.values() {
            *sizes.entry(network(entry.address)).or_default() += 1;
        }
        let crowded = if sizes.get(&from).is_some_and(|size| *size >= PER_NETWORK) {
            from
        } else if self.entries.len() >= CAPACITY {
            match sizes.into_iter().max_by_key(|(_, size)| *size) {
                Some((network, _)) => network,
                None => return,
            }
        } else {
            return;
        };
        let oldest = self
            .entries
            .iter()
            .filter(|(_, entry)| network(entry.address) == crowded)
            .min_by_key(|(_, entry)| entry.last_at)
            .map(|(key, _)| *key);
        if let Some(key) = oldest {
            self.remove(&key);
        }
    }
}

fn shown(key: &PublicKey, entry: &Entry) -> Knock {
    Knock {
        key: key.to_z32(),
        first_at: entry.first_at,
        last_at: entry.last_at,
        count: entry.count,
        address: entry.address.map(|address| address.to_string()),
    }
}

/// What one household or attacker has: a /24, or a /48 of IPv6.
fn network(address: Option<SocketAddr>) -> Option<IpAddr> {
    Some(match address?.ip().to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            IpAddr::from([a, b, c, 0])
        }
        IpAddr::V6(ip) => {
            let [a, b, c, ..] = ip.segments();
            IpAddr::from([a, b, c, 0, 0, 0, 0, 0])
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> PublicKey {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&n.to_le_bytes());
        PublicKey::from_bytes(bytes)
    }

    fn from(ip: &str) -> Option<SocketAddr> {
        Some(SocketAddr::new(ip.parse().unwrap(), 1))
    }

    #[test]
    fn tries_of_one_key_are_counted_and_reported_once_a_minute() {
        let mut knocks = Knocks::default();
        assert!(knocks.record(key(1), from("1.2.3.4"), 1000).is_some());
        assert!(knocks.record(key(1), from("1.2.3.4"), 2000).is_none());
        let knock = knocks.record(key(1), from("1.2.3.5"), 1000 + REPORT_MS).unwrap();
        assert_eq!((knock.count, knock.first_at, knock.last_at), (3, 1000, 1000 + REPORT_MS));
        assert_eq!(knock.address.as_deref(), Some("1.2.3.5:1"));
        assert_eq!(knocks.list(), [knock]);
    }

    #[test]
    fn new_keys_come_in_at_a_bounded_rate() {
        let mut knocks = Knocks::default();
        let admitted = |knocks: &mut Knocks, from: u32, now| {
            (from..from + 1000).filter(|n| knocks.record(key(*n), None, now).is_some()).count()
        };
        assert_eq!(admitted(&mut knocks, 0, 1_000_000), BURST as usize + 1);
        assert_eq!(admitted(&mut knocks, 2000, 1_000_000), 0);
        assert_eq!(admitted(&mut knocks, 3000, 1_010_000), 10);
    }

    #[test]
    fn a_flood_from_one_network_leaves_other_knocks_alone() {
        let mut knocks = Knocks::default();
        knocks.record(key(0), from("10.0.0.1"), 0);
        for n in 1..2000 {
            knocks.record(key(n), from("66.6.6.6"), u64::from(n) * NEW_KEY_MS);
        }
        assert_eq!(knocks.list().len(), PER_NETWORK + 1);
        assert!(knocks.get(&key(0)).is_some());
    }

    #[test]
    fn the_book_is_bounded_and_the_most_crowded_network_gives_way() {
        let mut knocks = Knocks::default();
        knocks.record(key(0), from("10.0.0.1"), 0);
        for n in 1..5000_u32 {
            let address = format!("66.6.{}.6", n / 30 % 100);
            knocks.record(key(n), from(&address), u64::from(n) * NEW_KEY_MS);
        }
        assert_eq!(knocks.list().len(), CAPACITY);
        assert!(knocks.get(&key(0)).is_some());
    }

    #[test]
    fn only_what_changed_is_written() {
        let mut knocks = Knocks::default();
        knocks.restore(key(1), Entry::new(1, 2, 3, None));
        assert!(knocks.take_dirty().is_empty());
        knocks.record(key(1), None, 9);
        let dirty = knocks.take_dirty();
        assert_eq!((dirty.len(), dirty[0].1.as_ref().unwrap().count), (1, 4));
        knocks.remove(&key(1));
        assert_eq!(knocks.take_dirty(), [(key(1), None)]);
    }
}
