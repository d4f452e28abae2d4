//! Keys that were found and are no peers: bounded, and forgotten when they are not seen again.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::addresses::AddressSource;
use super::record::Discovered;
use crate::crypto::PublicKey;
use crate::time::Moment;

/// How many keys are kept; the one seen longest ago gives way.
const CAPACITY: usize = 256;
/// How many addresses of one key are kept.
const ADDRESSES: usize = 8;
/// How long a key is listed after it was last seen.
const KEPT: Duration = Duration::from_secs(60 * 60);

/// The list. Takes the time, has no clock.
#[derive(Debug, Default)]
pub(super) struct DiscoveredList {
    entries: HashMap<PublicKey, Entry>,
}

#[derive(Debug)]
struct Entry {
    source: AddressSource,
    addresses: Vec<SocketAddr>,
    seen: Moment,
}

impl DiscoveredList {
    /// Notes a key; whether it is news.
    pub(super) fn insert(
        &mut self,
        key: PublicKey,
        source: AddressSource,
        addresses: &[SocketAddr],
        now: Moment,
    ) -> bool {
        let addresses = addresses.iter().copied().take(ADDRESSES).collect();
        let entry = Entry { source, addresses, seen: now };
        let earlier = self.entries.insert(key, entry);
        if self.entries.len() > CAPACITY {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.seen.at);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                self.entries.remove(&oldest);
            }
        }
        earlier.is_none_or(|earlier| is_over(&earlier, now.at))
    }

    /// Forgets a key. Gives where it was found last.
    pub(super) fn remove(&mut self, key: &PublicKey) -> Option<(AddressSource, Vec<SocketAddr>)> {
        self.entries.remove(key).map(|entry| (entry.source, entry.addresses))
    }

    /// The keys that pass `wanted` and were seen within the hour, the latest first.
    pub(super) fn list(
        &self,
        now: Instant,
        wanted: impl Fn(&PublicKey) -> bool,
    ) -> Vec<Discovered> {
        let current =
            self.entries.iter().filter(|(key, entry)| !is_over(entry, now) && wanted(key));
        let mut current: Vec<_> = current.collect();
        current.sort_by(|a, b| b.1.seen.at.cmp(&a.1.seen.at).then_with(|| a.0.cmp(b.0)));
        let shown = |(key, entry): (&PublicKey, &Entry)| Discovered {
            key: key.to_z32(),
            source: entry.source.as_str().to_owned(),
            addresses: entry.addresses.iter().map(ToString::to_string).collect(),
            seen_at: entry.seen.wall_ms,
        };
        current.into_iter().map(shown).collect()
    }
}

fn is_over(entry: &Entry, now: Instant) -> bool {
    now.saturating_duration_since(entry.seen.at) > KEPT
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u16) -> PublicKey {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&n.to_le_bytes());
        PublicKey::from_bytes(bytes)
    }

    const HOUR: u64 = 60 * 60;

    fn after(start: Instant, seconds: u64, wall_ms: u64) -> Moment {
        Moment { at: start + Duration::from_secs(seconds), wall_ms }
    }

    #[test]
    fn a_key_is_news_once_and_is_forgotten_after_an_hour() {
        let (mut list, start) = (DiscoveredList::default(), Instant::now());
        let mut insert = |now| list.insert(key(1), AddressSource::Topic, &[], now);
        assert!(insert(after(start, 0, 0)));
        // Whatever the wall clock says meanwhile.
        assert!(!insert(after(start, 1, u64::MAX)));
        assert!(!insert(after(start, HOUR, 0)));
        assert_eq!(list.list(after(start, HOUR * 2, 0).at, |_| true).len(), 1);
        assert!(list.list(after(start, HOUR * 2 + 1, 0).at, |_| true).is_empty());
        assert!(list.insert(key(1), AddressSource::Topic, &[], after(start, HOUR * 3, 0)));
    }

    #[test]
    fn the_list_is_bounded_and_drops_the_oldest() {
        let (mut list, start) = (DiscoveredList::default(), Instant::now());
        for n in 0..1000 {
            // The clock goes backwards all the time.
            let now = after(start, u64::from(n), 10_000 - u64::from(n));
            list.insert(key(n), AddressSource::Topic, &[], now);
        }
        let kept = list.list(after(start, 1000, 0).at, |_| true);
        assert_eq!(kept.len(), CAPACITY);
        assert_eq!(kept[0].key, key(999).to_z32());
    }
}
