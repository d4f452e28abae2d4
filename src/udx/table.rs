//! The stream table: which stream a packet's id belongs to.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::socket::UdxSocket;
use super::stream::{Shared, StreamOptions, UdxStream};

/// A set of streams and the sockets that carry them. Clones share the set.
#[derive(Clone, Default)]
pub struct Udx {
    streams: Arc<RwLock<HashMap<u32, Arc<Shared>>>>,
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
    pub fn create_stream(&self, options: StreamOptions) -> UdxStream {
        let mut streams = self.write();
        let mut id = random_id();
        while streams.contains_key(&id) {
            id = random_id();
        }
        let shared = Shared::new(self.clone(), id, options);
        streams.insert(id, Arc::clone(&shared));
        drop(streams);
        UdxStream::new(shared)
    }

    pub(super) fn find(&self, id: u32) -> Option<Arc<Shared>> {
        self.read().get(&id).cloned()
    }

    pub(super) fn remove(&self, id: u32) {
        self.write().remove(&id);
    }

    pub(super) fn all(&self) -> Vec<Arc<Shared>> {
        self.read().values().cloned().collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<u32, Arc<Shared>>> {
        self.streams.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<u32, Arc<Shared>>> {
        self.streams.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Ids are random so that nobody off the path can guess a live one.
fn random_id() -> u32 {
    u32::from_le_bytes(crate::crypto::random())
}
