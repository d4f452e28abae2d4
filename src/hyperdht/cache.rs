//! Maps that others fill and that stay small: bounded in number, and each entry in time.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

/// A key of 32 bytes: a target, a token, a hash.
pub(crate) type Key = [u8; 32];

struct Entry<V> {
    value: V,
    since: Instant,
    serial: u64,
}

/// At most `capacity` entries, none older than `max_age`. The oldest make room for new ones.
pub(crate) struct ExpiringMap<V> {
    entries: HashMap<Key, Entry<V>>,
    /// Keys in the order in which they were set, with those set again in between.
    order: VecDeque<(Key, u64)>,
    capacity: usize,
    max_age: Duration,
    serial: u64,
}

impl<V> ExpiringMap<V> {
    pub(crate) fn new(capacity: usize, max_age: Duration) -> Self {
        Self { entries: HashMap::new(), order: VecDeque::new(), capacity, max_age, serial: 0 }
    }

    /// Sets a value and starts its time anew.
    pub(crate) fn insert(&mut self, key: Key, value: V) {
        self.serial += 1;
        let serial = self.serial;
        self.entries.insert(key, Entry { value, since: Instant::now(), serial });
        self.order.push_back((key, serial));
        while self.entries.len() > self.capacity || self.order.len() > 2 * self.capacity {
            let Some((key, serial)) = self.order.pop_front() else { break };
            let is_latest = self.entries.get(&key).is_some_and(|entry| entry.serial == serial);
            if is_latest && self.entries.len() > self.capacity {
                self.entries.remove(&key);
            } else if is_latest {
                // Still valid: it only gave up its place in an order that was mostly stale.
                self.order.push_back((key, serial));
            }
        }
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&V> {
        let entry = self.entries.get(key)?;
        (entry.since.elapsed() < self.max_age).then_some(&entry.value)
    }

    /// Changes a value without starting its time anew.
    pub(crate) fn get_mut(&mut self, key: &Key) -> Option<&mut V> {
        let entry = self.entries.get_mut(key)?;
        (entry.since.elapsed() < self.max_age).then_some(&mut entry.value)
    }

    pub(crate) fn remove(&mut self, key: &Key) -> Option<V> {
        let entry = self.entries.remove(key)?;
        (entry.since.elapsed() < self.max_age).then_some(entry.value)
    }

    /// Drops what is over age.
    pub(crate) fn sweep(&mut self) {
        while let Some((key, serial)) = self.order.front().copied() {
            match self.entries.get(&key) {
                Some(entry) if entry.serial == serial && entry.since.elapsed() < self.max_age => {
                    return;
                }
                Some(entry) if entry.serial == serial => _ = self.entries.remove(&key),
                _ => {}
            }
            self.order.pop_front();
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(index: u32) -> Key {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&index.to_le_bytes());
        key
    }

    #[tokio::test(start_paused = true)]
    async fn entries_end_with_their_age() {
        let mut map = ExpiringMap::new(8, Duration::from_secs(10));
        map.insert(key(1), 1);
        tokio::time::advance(Duration::from_secs(6)).await;
        map.insert(key(2), 2);
        tokio::time::advance(Duration::from_secs(6)).await;
        assert_eq!(map.get(&key(1)), None);
        assert_eq!(map.get(&key(2)), Some(&2));
        map.sweep();
        assert_eq!(map.len(), 1);
    }

    #[tokio::test]
    async fn the_oldest_make_room() {
        let mut map = ExpiringMap::new(4, Duration::from_secs(10));
        (0..5).for_each(|index| map.insert(key(index), index));
        assert_eq!(map.get(&key(0)), None);
        assert_eq!(map.get(&key(4)), Some(&4));
    }

    #[tokio::test]
    async fn setting_the_same_key_again_and_again_takes_no_room() {
        let mut map = ExpiringMap::new(4, Duration::from_secs(10));
        map.insert(key(7), 7);
        (0..1000).for_each(|value| map.insert(key(1), value));
        assert!(map.order.len() <= 8);
        assert_eq!(map.get(&key(7)), Some(&7));
        assert_eq!(map.get(&key(1)), Some(&999));
    }
}
