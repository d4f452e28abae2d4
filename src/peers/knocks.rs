//! Keys that tried to connect: few enough to read, whoever knocks how often.
//!
//! Anybody can make keys by the million and knock with each. So the book is bounded, new keys come in
//! at a bounded rate, and one network cannot push the keys of others out. The rate and the order are those in
//! which knocks come, whatever the wall clock says.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::Instant;

use super::record::Knock;
use crate::crypto::PublicKey;
use crate::time::Moment;

/// How many keys are remembered.
pub(super) const CAPACITY: usize = 256;
/// How many of them may come from one network; the network's own oldest gives way to more.
const PER_NETWORK: usize = 32;
/// How many new keys may come at once, and in the long run one each [`NEW_KEY`].
const BURST: u32 = 64;
const NEW_KEY: Duration = Duration::from_secs(1);
/// The shortest time between two reports of one key.
const REPORT: Duration = Duration::from_secs(60);

/// What is remembered of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// On the wall clock, as the next one.
    pub(super) first_at: u64,
    pub(super) last_at: u64,
    pub(super) count: u64,
    pub(super) address: Option<SocketAddr>,
    reported: Option<Instant>,
    /// Larger than that of any knock before it.
    order: i64,
}

impl Entry {
    pub(super) const fn new(
        first_at: u64,
        last_at: u64,
        count: u64,
        address: Option<SocketAddr>,
    ) -> Self {
        Self { first_at, last_at, count, address, reported: None, order: 0 }
    }
}

/// The bounded book of knocks. Takes the time, has no clock.
#[derive(Debug, Default)]
pub(super) struct Knocks {
    entries: HashMap<PublicKey, Entry>,
    /// Rows of the database that are not as the book says.
    dirty: HashSet<PublicKey>,
    /// When the next new key would be admitted if none had been spared (a leaky bucket's level).
    next_new: Option<Instant>,
    /// The order of the latest knock of this run.
    latest: i64,
}

impl Knocks {
    /// Takes a row that an earlier run left; the latest comes first.
    pub(super) fn restore(&mut self, key: PublicKey, entry: Entry) {
        if self.entries.len() < CAPACITY {
            let order = -1 - self.entries.len() as i64;
            self.entries.insert(key, Entry { order, ..entry });
        } else {
            self.dirty.insert(key);
        }
    }

    /// Notes a try. Gives the entry when a person should hear of it now.
    pub(super) fn record(
        &mut self,
        key: PublicKey,
        address: Option<SocketAddr>,
        now: Moment,
    ) -> Option<Knock> {
        let Moment { at, wall_ms } = now;
        if !self.entries.contains_key(&key) {
            if !self.admit_new(at) {
                return None;
            }
            self.make_room(network(address));
            self.entries.insert(key, Entry::new(wall_ms, wall_ms, 0, address));
        }
        self.latest += 1;
        let entry = self.entries.get_mut(&key)?;
        entry.order = self.latest;
        entry.last_at = wall_ms;
        entry.count = entry.count.saturating_add(1);
        entry.address = address.or(entry.address);
        self.dirty.insert(key);
        let is_due = |reported: Instant| at.saturating_duration_since(reported) >= REPORT;
        let report = entry.count == 1 || entry.reported.is_none_or(is_due);
        report.then(|| {
            entry.reported = Some(at);
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
        let mut entries: Vec<_> = self.entries.iter().collect();
        entries.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.order));
        entries.into_iter().map(|(key, entry)| shown(key, entry)).collect()
    }

    /// The rows to write (or to delete, without an entry) since the last call.
    pub(super) fn take_dirty(&mut self) -> Vec<(PublicKey, Option<Entry>)> {
        self.dirty.drain().map(|key| (key, self.entries.get(&key).cloned())).collect()
    }

    fn admit_new(&mut self, now: Instant) -> bool {
        let level = self.next_new.map_or(now, |next| next.max(now));
        if level.saturating_duration_since(now) > BURST * NEW_KEY {
            return false;
        }
        self.next_new = Some(level + NEW_KEY);
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
            .min_by_key(|(_, entry)| entry.order)
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

    /// The days of three years, in milliseconds.
    const YEARS: u64 = 3 * 365 * 24 * 60 * 60 * 1000;

    fn key(n: u32) -> PublicKey {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&n.to_le_bytes());
        PublicKey::from_bytes(bytes)
    }

    fn from(ip: &str) -> Option<SocketAddr> {
        Some(SocketAddr::new(ip.parse().unwrap(), 1))
    }

    /// A moment so many seconds after the test began, when the wall clock says `wall_ms`.
    struct Clock(Instant);

    impl Clock {
        fn start() -> Self {
            Self(Instant::now())
        }

        fn at(&self, seconds: u64, wall_ms: u64) -> Moment {
            Moment { at: self.0 + Duration::from_secs(seconds), wall_ms }
        }
    }

    #[test]
    fn tries_of_one_key_are_counted_and_reported_once_a_minute() {
        let (mut knocks, clock) = (Knocks::default(), Clock::start());
        assert!(knocks.record(key(1), from("1.2.3.4"), clock.at(0, 1000)).is_some());
        assert!(knocks.record(key(1), from("1.2.3.4"), clock.at(1, 2000)).is_none());
        let knock = knocks.record(key(1), from("1.2.3.5"), clock.at(60, 61_000)).unwrap();
        assert_eq!((knock.count, knock.first_at, knock.last_at), (3, 1000, 61_000));
        assert_eq!(knock.address.as_deref(), Some("1.2.3.5:1"));
        assert_eq!(knocks.list(), [knock]);
    }

    #[test]
    fn new_keys_come_in_at_a_bounded_rate() {
        let (mut knocks, clock) = (Knocks::default(), Clock::start());
        let admitted = |knocks: &mut Knocks, from: u32, now| {
            (from..from + 1000).filter(|n| knocks.record(key(*n), None, now).is_some()).count()
        };
        assert_eq!(admitted(&mut knocks, 0, clock.at(0, 0)), BURST as usize + 1);
        assert_eq!(admitted(&mut knocks, 2000, clock.at(0, YEARS)), 0, "nor when the clock jumps");
        assert_eq!(admitted(&mut knocks, 3000, clock.at(10, 10_000)), 10);
    }

    #[test]
    fn a_clock_that_jumps_takes_no_knock_away() {
        for wall in [[YEARS, YEARS * 2, 5, 6], [5, 6, YEARS, 7]] {
            let (mut knocks, clock) = (Knocks::default(), Clock::start());
            for (n, wall) in (0..).zip(wall) {
                let now = clock.at(u64::from(n), wall);
                assert!(knocks.record(key(n), from("1.2.3.4"), now).is_some());
                assert!(knocks.record(key(n), from("1.2.3.4"), now).is_none());
            }
            // An hour later each is told again.
            for (n, wall) in (0..).zip(wall) {
                assert!(knocks.record(key(n), from("1.2.3.4"), clock.at(3600, wall)).is_some());
            }
            let keys: Vec<_> = knocks.list().into_iter().map(|knock| knock.key).collect();
            let latest_first: Vec<_> = (0..4).rev().map(|n| key(n).to_z32()).collect();
            assert_eq!(keys, latest_first);
        }
    }

    #[test]
    fn the_earliest_knock_gives_way_whatever_the_clock_said() {
        let (mut knocks, clock) = (Knocks::default(), Clock::start());
        for n in 0..PER_NETWORK as u32 + 1 {
            // The first came when the clock was years ahead.
            let now = clock.at(n.into(), if n < 8 { YEARS } else { 5 });
            knocks.record(key(n), from("1.2.3.4"), now);
        }
        assert!(knocks.get(&key(0)).is_none());
        assert!((1..PER_NETWORK as u32 + 1).all(|n| knocks.get(&key(n)).is_some()));
    }

    #[test]
    fn what_an_earlier_run_left_is_earlier_than_all_that_comes() {
        let (mut knocks, clock) = (Knocks::default(), Clock::start());
        knocks.restore(key(1), Entry::new(YEARS, YEARS, 1, None));
        knocks.restore(key(2), Entry::new(7, 7, 1, None));
        knocks.record(key(3), None, clock.at(0, 5));
        let keys: Vec<_> = knocks.list().into_iter().map(|knock| knock.key).collect();
        assert_eq!(keys, [3, 1, 2].map(|n| key(n).to_z32()));
    }

    #[test]
    fn a_flood_from_one_network_leaves_other_knocks_alone() {
        let (mut knocks, clock) = (Knocks::default(), Clock::start());
        knocks.record(key(0), from("10.0.0.1"), clock.at(0, 0));
        for n in 1..2000 {
            knocks.record(key(n), from("66.6.6.6"), clock.at(n.into(), 0));
        }
        assert_eq!(knocks.list().len(), PER_NETWORK + 1);
        assert!(knocks.get(&key(0)).is_some());
    }

    #[test]
    fn the_book_is_bounded_and_the_most_crowded_network_gives_way() {
        let (mut knocks, clock) = (Knocks::default(), Clock::start());
        knocks.record(key(0), from("10.0.0.1"), clock.at(0, 0));
        for n in 1..5000_u32 {
            let address = format!("66.6.{}.6", n / 30 % 100);
            knocks.record(key(n), from(&address), clock.at(n.into(), 0));
        }
        assert_eq!(knocks.list().len(), CAPACITY);
        assert!(knocks.get(&key(0)).is_some());
    }

    #[test]
    fn only_what_changed_is_written() {
        let (mut knocks, clock) = (Knocks::default(), Clock::start());
        knocks.restore(key(1), Entry::new(1, 2, 3, None));
        assert!(knocks.take_dirty().is_empty());
        knocks.record(key(1), None, clock.at(0, 9));
        let dirty = knocks.take_dirty();
        assert_eq!((dirty.len(), dirty[0].1.as_ref().unwrap().count), (1, 4));
        knocks.remove(&key(1));
        assert_eq!(knocks.take_dirty(), [(key(1), None)]);
    }
}
