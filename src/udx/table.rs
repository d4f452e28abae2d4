//! The stream table: which stream a packet's id belongs to.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock, Weak};

use super::budget::WindowBudget;
use super::driver::Shared;
use super::relay::{Link, RelayLimit, RelayedStreams};
use super::socket::UdxSocket;
use super::stream::{StreamOptions, UdxStream};

type Relayed = HashMap<u32, (Weak<Link>, usize)>;
type Streams = HashMap<u32, Weak<Shared>>;

/// A set of streams and the sockets that carry them. Clones share the set.
#[derive(Clone, Default)]
pub struct Udx {
    streams: Arc<RwLock<Streams>>,
    budget: WindowBudget,
    /// Streams of others: which side of which link.
    relayed: Arc<RwLock<Relayed>>,
}

impl Udx {
    /// A new, empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Binds a UDP socket whose packets are for the streams of this set.
    ///
    /// An IPv6 wildcard address is bound for IPv4 too.
    ///
    /// # Errors
    ///
    /// What the operating system says, or that there is no tokio runtime.
    pub fn bind(&self, addr: SocketAddr) -> io::Result<UdxSocket> {
        UdxSocket::bind(self.clone(), addr)
    }

    /// Creates a stream under a random id, not yet connected.
    #[must_use]
    pub fn create_stream(&self, mut options: StreamOptions) -> UdxStream {
        options.budget = self.budget.clone();
        let mut streams = self.streams.write().unwrap_or_else(PoisonError::into_inner);
        let mut id = random_id();
        while streams.contains_key(&id) {
            id = random_id();
        }
        let shared = Shared::new(self.clone(), id, &options);
        streams.insert(id, Arc::downgrade(&shared));
        UdxStream::new(shared)
    }

    /// Passes packets on between two streams of others, which have these ids, as long as `limit`
    /// lets them.
    #[must_use]
    pub fn relay(&self, remote_ids: [u32; 2], limit: RelayLimit) -> RelayedStreams {
        RelayedStreams::new(self, remote_ids, limit)
    }

    pub(super) fn insert_relayed(&self, link: &Arc<Link>, index: usize) -> u32 {
        let streams = self.streams.read().unwrap_or_else(PoisonError::into_inner);
        let mut relayed = self.relayed.write().unwrap_or_else(PoisonError::into_inner);
        let mut id = random_id();
        while streams.contains_key(&id) || relayed.contains_key(&id) {
            id = random_id();
        }
        relayed.insert(id, (Arc::downgrade(link), index));
        id
    }

    pub(super) fn remove_relayed(&self, id: u32) {
        self.relayed.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    pub(super) fn find_relayed(&self, id: u32) -> Option<(Arc<Link>, usize)> {
        let relayed = self.relayed.read().unwrap_or_else(PoisonError::into_inner);
        let (link, index) = relayed.get(&id)?;
        Some((link.upgrade()?, *index))
    }

    pub(super) fn find(&self, id: u32) -> Option<Arc<Shared>> {
        self.streams.read().unwrap_or_else(PoisonError::into_inner).get(&id)?.upgrade()
    }

    pub(super) fn remove(&self, id: u32) {
        self.streams.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    pub(super) fn all(&self) -> Vec<Arc<Shared>> {
        let streams = self.streams.read().unwrap_or_else(PoisonError::into_inner);
        streams.values().filter_map(Weak::upgrade).collect()
    }
}

/// Ids are random so that nobody off the path can guess a live one.
fn random_id() -> u32 {
    u32::from_le_bytes(crate::crypto::random())
}
