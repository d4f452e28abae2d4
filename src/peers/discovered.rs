//! Keys that were found and are no peers: bounded, and forgotten when they are not seen again.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::addresses::AddressSource;
use super::record::Discovered;
use crate::crypto::PublicKey;

/// How many keys are kept; the one seen longest ago gives way.
const CAPACITY: usize = 256;
/// How many addresses of one key are kept.
const ADDRESSES: usize = 8;
/// How long a key is listed after it was last seen.
const KEPT_MS: u64 = 60 * 60 * 1000;

/// The list. Takes the time, has no clock.
#[derive(Debug, Default)]
pub(super) struct DiscoveredList {
    entries: HashMap<PublicKey, Entry>,
}

#[derive(Debug)]
struct Entry {
    source: AddressSource,
    addresses: Vec<SocketAddr>,
    seen_at: u64,
}

impl DiscoveredList {
    /// Notes a key; whether it is news.
    pub(super) fn insert(
        &mut self,
        key: PublicKey,
        source: AddressSource,
        addresses: &[SocketAddr],
        now: u64,
    ) -> bool {
        let addresses = addresses.iter().copied().take(ADDRESSES).collect();
        let entry = Entry { source, addresses, seen_at: now };
        let earlier = self.entries.insert(key, entry);
        if self.entries.len() > CAPACITY {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.seen_at);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                self.entries.remove(&oldest);
            }
        }
        earlier.is_none_or(|earlier| is_over(&earlier, now))
    }

    /// Forgets a key. Gives where it was found last.
    pub(super) fn remove(&mut self, key: &PublicKey) -> Option<(AddressSource, Vec<SocketAddr>)> {
        self.entries.remove(key).map(|entry| (entry.source, entry.addresses))
    }

    /// The keys that pass `wanted` and were seen within the hour, the latest first.
    pub(super) fn list(&self, now: u64, wanted: impl Fn(&PublicKey) -> bool) -> Vec<Discovered> {
        let current =
            self.entries.iter().filter(|(key, entry)| !is_over(entry, now) && wanted(key));
        let mut list: Vec<_> = current
            .map(|(key, entry)| Discovered {
                key: key.to_z32(),
                source: entry.source.as_str().to_owned(),
                addresses: entry.addresses.iter().map(ToString::to_string).collect(),
                seen_at: entry.seen_at,
            })
            .collect();
        list.sort_by(|a, b| b.seen_at.cmp(&a.seen_at).then_with(|| a.key.cmp(&b.key)));
        list
    }
}

fn is_over(entry: &Entry, now: u64) -> bool {
    now.saturating_sub(entry.seen_at) > KEPT_MS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u16) -> PublicKey {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&n.to_le_bytes());
        PublicKey::from_bytes(bytes)
    }

    #[test]
    fn a_key_is_news_once_and_is_forgotten_after_an_hour() {
        let mut list = DiscoveredList::default();
        assert!(list.insert(key(1), AddressSource::Topic, &[], 0));
        assert!(!list.insert(key(1), AddressSource::Topic, &[], KEPT_MS));
        assert_eq!(list.list(KEPT_MS * 2, |_| true).len(), 1);
        assert!(list.list(KEPT_MS * 2 + 1, |_| true).is_empty());
        assert!(list.insert(key(1), AddressSource::Topic, &[], KEPT_MS * 3));
    }

    #[test]
    fn the_list_is_bounded_and_drops_the_oldest() {
        let mut list = DiscoveredList::default();
        for n in 0..1000 {
            list.insert(key(n), AddressSource::Topic, &[], u64::from(n));
        }
        let kept = list.list(1000, |_| true);
        assert_eq!(kept.len(), CAPACITY);
        assert_eq!(kept[0].key, key(999).to_z32());
    }
}
