//! Who may connect: the peers, the knocks, and what is known of each.
//!
//! The tables are read once and kept in memory, so that the DHT's firewall gets its answer without
//! waiting. What a person decides is on disk before the call returns (`decision.rs`); presence, knocks and what
//! peers say of themselves are written shortly after.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, OnceLock};

use tokio::sync::{Notify, watch};

use super::addresses::{Addresses, OnAddress, check_address};
use super::decision::Consequences;
use super::discovered::DiscoveredList;
use super::knocks::Knocks;
use super::presence::{Live, save_when_needed};
use super::record::{
    AddOptions, Peer, PeerProblem, PeerStatus, PeerUpdate, check_nickname, clean_name,
};
use super::table::{self, Stored};
use crate::crypto::PublicKey;
use crate::error::{Error, ErrorCode, Result};
use crate::events::{EventKind, Events, PeerChange};
use crate::identity::parse_key;
use crate::store::{Database, StoreError};
use crate::sync::lock;
use crate::time::now_ms;

/// The peers of a node; clones share them.
#[derive(Clone)]
pub struct Peers {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) own: PublicKey,
    pub(super) database: Database,
    pub(super) events: Events,
    pub(super) state: Mutex<State>,
    /// What decisions entail in other layers.
    pub(super) consequences: OnceLock<Arc<dyn Consequences>>,
    /// Counts changes of who is approved.
    pub(super) approvals: watch::Sender<u64>,
    /// There are rows to write.
    pub(super) unsaved: Arc<Notify>,
    pub(super) on_address: Mutex<Option<OnAddress>>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) peers: HashMap<PublicKey, Entry>,
    pub(super) knocks: Knocks,
    pub(super) discovered: DiscoveredList,
    /// Peers whose presence changed since it was written.
    pub(super) unsaved: HashSet<PublicKey>,
    /// Peers about whom a decision is in force that the disk has refused.
    pub(super) owed: HashSet<PublicKey>,
    pub(super) closed: bool,
}

pub(super) struct Entry {
    pub(super) stored: Stored,
    pub(super) addresses: Addresses,
    pub(super) live: Option<Live>,
    pub(super) problem: Option<PeerProblem>,
}

impl Entry {
    pub(super) fn new(stored: Stored) -> Self {
        Self { stored, addresses: Addresses::default(), live: None, problem: None }
    }
}

impl Inner {
    /// There is news of where this approved peer is.
    pub(super) fn wake(&self, key: &PublicKey) {
        if let Some(call) = &*lock(&self.on_address) {
            call(key);
        }
    }
}

impl Peers {
    /// Reads the tables. Nobody is online yet. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// When the database cannot be read or written.
    pub async fn open(database: &Database, own: PublicKey, events: &Events) -> Result<Self> {
        database.write::<_, StoreError, _>(table::all_offline).await?;
        let mut state = State::default();
        let mut reached = database.read(table::addresses)?;
        for (key, stored) in database.read(table::peers)? {
            let addresses = reached.remove(&key).unwrap_or_default();
            let entry = Entry {
                addresses: Addresses::restored(addresses.into_iter()),
                ..Entry::new(stored)
            };
            state.peers.insert(key, entry);
        }
        for (key, entry) in database.read(table::knocks)? {
            state.knocks.restore(key, entry);
        }
        let unsaved = Arc::new(Notify::new());
        let inner = Arc::new(Inner {
            own,
            database: database.clone(),
            events: events.clone(),
            state: Mutex::new(state),
            consequences: OnceLock::new(),
            approvals: watch::Sender::new(0),
            unsaved: Arc::clone(&unsaved),
            on_address: Mutex::default(),
        });
        crate::tasks::spawn(save_when_needed(Arc::downgrade(&inner), unsaved));
        Ok(Self { inner })
    }

    /// Adds and approves the key that `text` is: z32, hex or an invite link. Both servers have to
    /// approve each other before they connect. Adding a peer again changes its nickname at most.
    ///
    /// # Errors
    ///
    /// `ERR_INVALID_KEY` says what is wrong with the text; `ERR_PEER_BLOCKED` for a blocked key, which
    /// only [`Peers::approve`] unblocks; `ERR_INVALID_ARGUMENT` for a nickname that is too long or an
    /// address that is none.
    pub async fn add(&self, text: &str, options: AddOptions) -> Result<Peer> {
        let parsed = parse_key(text)?;
        let nickname = match &options.nickname {
            Some(nickname) => check_nickname(nickname)?,
            None => parsed.nickname.as_deref().and_then(clean_name),
        };
        let address = options.address.as_deref().map(check_address).transpose()?.flatten();
        let given = options.nickname.is_some();
        self.decide(parsed.key, PeerChange::Approved, move |found| {
            let mut peer = found.unwrap_or_else(|| new_peer(PeerStatus::Approved));
            if peer.status == PeerStatus::Blocked {
                return Err(blocked());
            }
            if given || peer.nickname.is_none() {
                peer.nickname = nickname;
            }
            peer.address = address.or(peer.address);
            Ok(peer)
        })
        .await
    }

    /// Approves a key: one that knocked, one that is blocked, or any other.
    ///
    /// # Errors
    ///
    /// `ERR_INVALID_KEY` for this server's own key.
    pub async fn approve(&self, key: &PublicKey) -> Result<Peer> {
        self.decide(*key, PeerChange::Approved, |found| {
            let peer = found.unwrap_or_else(|| new_peer(PeerStatus::Approved));
            Ok(Stored { status: PeerStatus::Approved, ..peer })
        })
        .await
    }

    /// Blocks a key: its connection is closed, and its knocks are refused without being listed.
    ///
    /// # Errors
    ///
    /// `ERR_INVALID_KEY` for this server's own key.
    pub async fn block(&self, key: &PublicKey) -> Result<Peer> {
        self.decide(*key, PeerChange::Blocked, |found| {
            let peer = found.unwrap_or_else(|| new_peer(PeerStatus::Blocked));
            Ok(Stored { status: PeerStatus::Blocked, ..peer })
        })
        .await
    }

    /// Changes a peer's nickname, policy or address.
    ///
    /// # Errors
    ///
    /// `ERR_NOT_FOUND` for a key that is neither approved nor blocked; `ERR_INVALID_ARGUMENT` for a
    /// nickname that is too long or an address that is none.
    pub async fn update(&self, key: &PublicKey, update: PeerUpdate) -> Result<Peer> {
        let check = |nickname: String| check_nickname(&nickname);
        let nickname = match update.nickname {
            Some(nickname) => Some(nickname.map(check).transpose()?.flatten()),
            None => None,
        };
        let address = match update.address {
            Some(address) => Some(address.as_deref().map(check_address).transpose()?.flatten()),
            None => None,
        };
        self.decide(*key, PeerChange::Updated, move |found| {
            let mut peer = found.ok_or_else(not_found)?;
            if let Some(address) = address {
                peer.address = address;
            }
            if let Some(nickname) = nickname {
                peer.nickname = nickname;
            }
            if let Some(policy) = update.policy {
                peer.policy = policy;
            }
            Ok(peer)
        })
        .await
    }

    /// Remembers what a connected peer says of itself, in memory at once and on disk soon. The name is cleaned and
    /// cut. Whether anything is new.
    ///
    /// # Errors
    ///
    /// `ERR_NOT_FOUND` for a key that is not an approved peer.
    pub fn learn(
        &self,
        key: &PublicKey,
        name: Option<&str>,
        feed_key: Option<[u8; 32]>,
    ) -> Result<bool> {
        let name = name.and_then(clean_name);
        {
            let mut state = lock(&self.inner.state);
            let State { peers, unsaved, .. } = &mut *state;
            let entry = peers.get_mut(key).ok_or_else(not_found)?;
            if entry.stored.status != PeerStatus::Approved {
                return Err(not_found());
            }
            let feed_key = feed_key.or(entry.stored.feed_key);
            if entry.stored.name == name && entry.stored.feed_key == feed_key {
                return Ok(false);
            }
            (entry.stored.name, entry.stored.feed_key) = (name, feed_key);
            unsaved.insert(*key);
        }
        self.inner.unsaved.notify_one();
        let (peer, change) = (key.to_z32(), PeerChange::Updated);
        self.inner.events.emit(EventKind::PeerChanged { peer, change });
        Ok(true)
    }
}

pub(super) fn new_peer(status: PeerStatus) -> Stored {
    Stored {
        nickname: None,
        name: None,
        status,
        added_at: now_ms(),
        last_seen_at: None,
        policy: None,
        feed_key: None,
        address: None,
    }
}

pub(super) fn display_name(stored: &Stored) -> Option<String> {
    stored.nickname.clone().or_else(|| stored.name.clone())
}

fn blocked() -> Error {
    let message = "this peer is blocked here: approve it to unblock it";
    Error::new(ErrorCode::PeerBlocked, message)
}

fn not_found() -> Error {
    let message = "no peer has this key: add or approve it first";
    Error::new(ErrorCode::NotFound, message)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::addresses::AddressSource;
    use super::super::presence::Admission;
    use super::*;
    use crate::crypto::KeyPair;
    use crate::events::Subscription;
    use crate::identity::invite_link;
    use crate::peers::Policy;

    pub(in super::super) struct Setup {
        pub(in super::super) _dir: tempfile::TempDir,
        pub(in super::super) database: Database,
        pub(in super::super) events: Events,
        pub(in super::super) peers: Peers,
    }

    pub(in super::super) fn key(n: u8) -> PublicKey {
        KeyPair::from_seed(&[n; 32]).public_key()
    }

    pub(in super::super) async fn setup() -> Setup {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&dir.path().join("p2p.db")).unwrap();
        let events = Events::in_memory();
        let peers = Peers::open(&database, key(0), &events).await.unwrap();
        Setup { _dir: dir, database, events, peers }
    }

    pub(in super::super) fn address() -> std::net::SocketAddr {
        "192.0.2.1:5000".parse().unwrap()
    }

    pub(in super::super) fn kinds(subscription: &mut Subscription) -> Vec<EventKind> {
        std::iter::from_fn(|| subscription.try_next()).map(|event| event.kind).collect()
    }

    fn changed(n: u8, change: PeerChange) -> EventKind {
        EventKind::PeerChanged { peer: key(n).to_z32(), change }
    }

    #[tokio::test]
    async fn an_added_peer_is_approved_and_there_after_a_restart() {
        let setup = setup().await;
        let link = invite_link(&key(1), Some("Anna\u{202e}"));
        let peer = setup.peers.add(&link, AddOptions::default()).await.unwrap();
        assert_eq!((peer.status, peer.nickname.as_deref()), (PeerStatus::Approved, Some("Anna")));
        assert!(setup.peers.is_approved(&key(1)));
        let policy = PeerUpdate { policy: Some(Some(Policy::AutoAccept)), ..PeerUpdate::default() };
        setup.peers.update(&key(1), policy).await.unwrap();
        setup.peers.learn(&key(1), Some("anna's books"), Some([7; 32])).unwrap();
        setup.peers.close().await;

        let again = Peers::open(&setup.database, key(0), &setup.events).await.unwrap();
        let peer = again.get(&key(1)).unwrap();
        assert_eq!(peer, setup.peers.get(&key(1)).unwrap());
        assert_eq!(peer.policy, Some(Policy::AutoAccept));
        assert_eq!(peer.name.as_deref(), Some("anna's books"));
        assert_eq!(again.feed_key(&key(1)), Some([7; 32]));
        assert_eq!(again.approved(), [key(1)]);
    }

    #[tokio::test]
    async fn adding_again_changes_the_nickname_at_most() {
        let setup = setup().await;
        let mut events = setup.events.subscribe(None);
        let named = AddOptions { nickname: Some("Bo".into()), ..AddOptions::default() };
        setup.peers.add(&key(1).to_z32(), named).await.unwrap();
        let again = setup.peers.add(&key(1).to_z32(), AddOptions::default()).await.unwrap();
        assert_eq!(again.nickname.as_deref(), Some("Bo"));
        assert_eq!(kinds(&mut events), [changed(1, PeerChange::Approved)]);
        assert_eq!(setup.peers.list().len(), 1);
    }

    #[tokio::test]
    async fn the_own_key_and_nonsense_are_refused() {
        let peers = setup().await.peers;
        for text in [key(0).to_z32(), "nonsense".to_owned()] {
            let error = peers.add(&text, AddOptions::default()).await.unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidKey);
        }
        assert!(peers.list().is_empty());
    }

    #[tokio::test]
    async fn a_blocked_key_is_refused_without_a_knock_and_only_approving_unblocks_it() {
        let setup = setup().await;
        let peers = &setup.peers;
        peers.admission(&key(1), address());
        peers.block(&key(1)).await.unwrap();
        assert_eq!(peers.admission(&key(1), address()), Admission::Refused);
        assert!(peers.pending().is_empty());
        let error = peers.add(&key(1).to_z32(), AddOptions::default()).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::PeerBlocked);
        peers.approve(&key(1)).await.unwrap();
        assert!(peers.is_approved(&key(1)));
    }

    #[tokio::test]
    async fn a_discovered_key_is_listed_and_never_a_peer_by_itself() {
        let setup = setup().await;
        let mut events = setup.events.subscribe(None);
        let topic = AddressSource::Topic;
        assert!(setup.peers.found(key(1), topic, &[address()]));
        assert!(!setup.peers.found(key(1), topic, &[address()]));
        assert!(!setup.peers.found(key(0), topic, &[]));
        assert_eq!(setup.peers.discovered().len(), 1);
        assert!(setup.peers.list().is_empty() && !setup.peers.is_approved(&key(1)));
        assert_eq!(kinds(&mut events).len(), 1);
        setup.peers.approve(&key(1)).await.unwrap();
        assert!(setup.peers.discovered().is_empty());
    }
}
