//! Who is there: the firewall's answer, who is online, and writing both down.
//!
//! Presence and knocks change by what others do, so they are written in bulk, shortly after: at most ten
//! times a second, and in a way that survives the end of the process but need not survive power loss.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use super::directory::{Inner, Peers, State, display_name};
use super::record::{ConnectionInfo, Knock, PeerProblem, PeerStatus};
use super::table;
use crate::crypto::PublicKey;
use crate::error::ErrorCode;
use crate::events::EventKind;
use crate::store::{Durability, StoreError};
use crate::sync::lock;
use crate::time::{Moment, now_ms};

/// How often `last_seen_at` of a connected peer is written, in case this process is killed.
const SEEN_INTERVAL: Duration = Duration::from_secs(60);
/// The shortest time between two writes of presence and knocks.
const WRITE_INTERVAL: Duration = Duration::from_millis(100);

/// How long a decision that the disk refused waits before it is written again.
const RETRY: Duration = Duration::from_secs(1);

/// What a connection says of itself each time a person looks.
pub(super) type Live = Arc<dyn Fn() -> ConnectionInfo + Send + Sync>;

/// What the firewall does with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    Approved,
    /// Refused, and the knock was noted unless the key is blocked.
    Refused,
}

impl Peers {
    /// Marks everybody offline and writes what is unsaved. A second call does nothing.
    pub async fn close(&self) {
        {
            let mut state = lock(&self.inner.state);
            if std::mem::replace(&mut state.closed, true) {
                return;
            }
            let State { peers, unsaved, .. } = &mut *state;
            for (key, entry) in peers.iter_mut() {
                if entry.live.take().is_some() {
                    entry.stored.last_seen_at = Some(now_ms());
                    unsaved.insert(*key);
                }
            }
        }
        if let Err(error) = self.inner.save().await {
            tracing::warn!(%error, "presence could not be written");
        }
        self.inner.unsaved.notify_one();
    }

    /// The firewall's question. Notes a knock of an unknown key.
    pub(super) fn admission(&self, key: &PublicKey, address: SocketAddr) -> Admission {
        let mut state = lock(&self.inner.state);
        if let Some(entry) = state.peers.get(key) {
            return match entry.stored.status {
                PeerStatus::Approved => Admission::Approved,
                _ => Admission::Refused,
            };
        }
        if state.closed || *key == self.inner.own {
            return Admission::Refused;
        }
        let report = state.knocks.record(*key, Some(address), Moment::now());
        drop(state);
        self.inner.unsaved.notify_one();
        if let Some(knock) = report {
            tracing::info!(
                peer = key.short(),
                count = knock.count,
                "a key that is not approved knocks"
            );
            let Knock { key: peer, count, address, .. } = knock;
            self.inner.events.emit(EventKind::PeerKnock { peer, count, address });
        }
        Admission::Refused
    }

    /// The peer is connected now; `live` tells how. Replacing one connection by another is no news.
    pub(super) fn online(&self, key: &PublicKey, live: Live) {
        let mut state = lock(&self.inner.state);
        if state.closed {
            return;
        }
        let Some(entry) = state.peers.get_mut(key) else { return };
        entry.problem = None;
        entry.stored.last_seen_at = Some(now_ms());
        let news = entry.live.replace(live).is_none();
        if news {
            let (peer, nickname) = (key.to_z32(), display_name(&entry.stored));
            state.unsaved.insert(*key);
            drop(state);
            self.inner.unsaved.notify_one();
            self.inner.events.emit(EventKind::PeerOnline { peer, nickname });
        }
    }

    /// The peer is not connected any more.
    pub(super) fn offline(&self, key: &PublicKey, reason: &str) {
        let mut state = lock(&self.inner.state);
        // Gone from the list: whoever removed it has said so.
        let Some(entry) = state.peers.get_mut(key) else { return };
        if entry.live.take().is_none() {
            return;
        }
        entry.stored.last_seen_at = Some(now_ms());
        let (peer, nickname) = (key.to_z32(), display_name(&entry.stored));
        state.unsaved.insert(*key);
        drop(state);
        self.inner.unsaved.notify_one();
        self.inner.events.emit(EventKind::PeerOffline {
            peer,
            nickname,
            reason: reason.to_owned(),
        });
    }

    /// Why the last try to connect failed.
    pub(super) fn set_problem(&self, key: &PublicKey, code: ErrorCode, message: String) {
        let mut state = lock(&self.inner.state);
        if let Some(entry) = state.peers.get_mut(key).filter(|entry| entry.live.is_none()) {
            let problem = PeerProblem { code: code.as_str().to_owned(), message, at: now_ms() };
            entry.problem = Some(problem);
        }
    }
}

impl Inner {
    /// Writes presence and knocks that changed.
    async fn save(self: &Arc<Self>) -> Result<(), StoreError> {
        let (knocks, presence, owed) = {
            let mut state = lock(&self.state);
            let unsaved = std::mem::take(&mut state.unsaved);
            let rows: Vec<_> = unsaved
                .into_iter()
                .filter_map(|key| {
                    let entry = state.peers.get_mut(&key)?;
                    let addresses = entry.addresses.take_unsaved();
                    let is_online = entry.live.is_some();
                    Some((key, is_online, entry.stored.clone(), addresses))
                })
                .collect();
            (state.knocks.take_dirty(), rows, std::mem::take(&mut state.owed))
        };
        if knocks.is_empty() && presence.is_empty() && owed.is_empty() {
            return Ok(());
        }
        let (inner, owing) = (Arc::clone(self), owed.clone());
        let survives = if owed.is_empty() { Durability::Process } else { Durability::Power };
        let written = self
            .database
            .write_with(survives, move |transaction| {
                owing.iter().try_for_each(|key| inner.write_standing(transaction, key))?;
                for (key, entry) in &knocks {
                    table::put_knock(transaction, key, entry.as_ref())?;
                }
                for (key, is_online, stored, addresses) in &presence {
                    table::put_presence(transaction, key, *is_online, stored)?;
                    if let Some(addresses) = addresses {
                        table::put_addresses(transaction, key, addresses)?;
                    }
                }
                Ok(())
            })
            .await;
        if written.is_err() {
            lock(&self.state).owed.extend(owed);
        }
        written
    }

    fn touch_online(&self) {
        let now = now_ms();
        let State { peers, unsaved, .. } = &mut *lock(&self.state);
        for (key, entry) in peers.iter_mut().filter(|(_, entry)| entry.live.is_some()) {
            entry.stored.last_seen_at = Some(now);
            unsaved.insert(*key);
        }
    }
}

/// Saves soon after each change, and once a minute; ends at close, or when nobody has the peers any more.
pub(super) async fn save_when_needed(inner: Weak<Inner>, unsaved: Arc<Notify>) {
    loop {
        let idle = tokio::time::timeout(SEEN_INTERVAL, unsaved.notified()).await.is_err();
        let Some(inner) = inner.upgrade() else { return };
        if lock(&inner.state).closed {
            return;
        }
        if idle {
            inner.touch_online();
        }
        let mut pause = WRITE_INTERVAL;
        if let Err(error) = inner.save().await {
            tracing::warn!(%error, "presence and knocks could not be written");
            if !lock(&inner.state).owed.is_empty() {
                unsaved.notify_one();
                pause = RETRY;
            }
        }
        drop(inner);
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::directory::new_peer;
    use super::super::directory::tests::{address, key, kinds, setup};
    use super::super::table::Stored;
    use super::*;
    use crate::events::EventKind;
    use crate::hyperdht::PathKind;

    #[tokio::test]
    async fn a_knock_is_pending_until_it_is_approved() {
        let setup = setup().await;
        let peers = &setup.peers;
        let mut events = setup.events.subscribe(None);
        assert_eq!(peers.admission(&key(1), address()), Admission::Refused);
        assert_eq!(peers.admission(&key(1), address()), Admission::Refused);
        let pending = peers.pending();
        assert_eq!((pending.len(), pending[0].count), (1, 2));
        assert_eq!(peers.get(&key(1)).unwrap().status, PeerStatus::Pending);
        assert!(peers.list().is_empty() && !peers.is_approved(&key(1)));
        assert!(matches!(&kinds(&mut events)[..], [EventKind::PeerKnock { count: 1, .. }]));

        let mut approvals = peers.approvals();
        peers.approve(&key(1)).await.unwrap();
        assert!(approvals.has_changed().unwrap());
        approvals.mark_unchanged();
        assert_eq!(peers.admission(&key(1), address()), Admission::Approved);
        assert!(peers.pending().is_empty());
    }

    #[tokio::test]
    async fn a_knock_is_there_after_a_restart_unless_it_was_dismissed() {
        let setup = setup().await;
        setup.peers.admission(&key(1), address());
        setup.peers.admission(&key(2), address());
        setup.peers.close().await;
        let again = Peers::open(&setup.database, key(0), &setup.events).await.unwrap();
        assert_eq!(again.pending().len(), 2);
        assert!(again.remove(&key(1)).await.unwrap());
        assert!(!again.remove(&key(1)).await.unwrap());
        let again = Peers::open(&setup.database, key(0), &setup.events).await.unwrap();
        assert_eq!(again.pending().len(), 1);
    }

    #[tokio::test]
    async fn presence_is_told_once_and_written() {
        let setup = setup().await;
        let peers = &setup.peers;
        peers.approve(&key(1)).await.unwrap();
        let mut events = setup.events.subscribe(None);
        let live: Live = Arc::new(|| super::super::ConnectionInfo {
            path: PathKind::Direct,
            address: "192.0.2.1:1".into(),
            initiator: true,
            since: 1,
            round_trip_ms: 2.5,
            bytes_per_second: 0,
            bytes_sent: 0,
            bytes_received: 0,
        });
        peers.set_problem(&key(1), ErrorCode::PeerOffline, "away".into());
        assert_eq!(peers.get(&key(1)).unwrap().problem.unwrap().code, "ERR_PEER_OFFLINE");
        peers.online(&key(1), Arc::clone(&live));
        peers.online(&key(1), live);
        let peer = peers.get(&key(1)).unwrap();
        assert!(peer.is_online && peer.problem.is_none() && peer.last_seen_at.is_some());
        let row = || {
            setup.database.read(|c| {
                let sql = "SELECT is_online, last_seen_at IS NOT NULL FROM peers";
                let row =
                    |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
                Ok::<_, StoreError>(c.query_row(sql, [], row)?)
            })
        };
        while row().unwrap() != (1, 1) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        peers.offline(&key(1), "gone");
        peers.offline(&key(1), "gone");
        assert!(!peers.get(&key(1)).unwrap().is_online);
        let kinds = kinds(&mut events);
        assert!(matches!(
            &kinds[..],
            [EventKind::PeerOnline { .. }, EventKind::PeerOffline { .. }]
        ));
        peers.close().await;
        assert_eq!(row().unwrap(), (0, 1));
        assert_eq!(peers.approve(&key(2)).await.unwrap_err().code, ErrorCode::Closed);
    }

    #[tokio::test]
    async fn nobody_is_online_after_a_crash() {
        let setup = setup().await;
        setup.peers.approve(&key(1)).await.unwrap();
        let stored = Stored { last_seen_at: Some(5), ..new_peer(PeerStatus::Approved) };
        let online =
            move |t: &rusqlite::Transaction<'_>| table::put_presence(t, &key(1), true, &stored);
        setup.database.write::<_, StoreError, _>(online).await.unwrap();
        let again = Peers::open(&setup.database, key(0), &setup.events).await.unwrap();
        assert!(!again.get(&key(1)).unwrap().is_online);
        let count = |c: &rusqlite::Connection| {
            let sql = "SELECT count(*) FROM peers WHERE is_online";
            Ok::<_, StoreError>(c.query_row(sql, [], |row| row.get::<_, i64>(0))?)
        };
        assert_eq!(setup.database.read(count).unwrap(), 0);
    }
}
