//! Going over approved peers that relay, when there is no direct path to another.
//!
//! A relay is asked for on the connection that there is to it; none is made for that. It is named when we
//! know to be behind a NAT that hardly anybody gets through, or after dialing failed without.

use std::sync::{Arc, Weak};

use super::connections::Inner;
use crate::crypto::PublicKey;
use crate::hyperdht::{RelayPeers, RelayThrough};
use crate::sync::lock;

impl Inner {
    /// The first of our relays that is connected.
    fn relay(&self) -> Option<PublicKey> {
        let relays = lock(&self.relays);
        relays.iter().copied().find(|relay| self.registry.get(relay).is_some())
    }

    /// Names a relay to a peer that we dial; in any case when `is_needed`.
    pub(super) fn relay_to_dial(self: &Arc<Self>, is_needed: bool) -> RelayThrough {
        let inner = Arc::downgrade(self);
        Arc::new(move |_| {
            let inner = inner.upgrade()?;
            if is_needed || inner.dht.status().randomized { inner.relay() } else { None }
        })
    }
}

/// Names a relay to a peer that dials us. One that it names itself is good, if we reach that.
pub(super) fn relay_to_listen(inner: Weak<Inner>) -> RelayThrough {
    Arc::new(move |named| {
        let inner = inner.upgrade()?;
        if named.is_some_and(|named| inner.registry.get(named).is_some()) {
            return None;
        }
        if named.is_some() || inner.dht.status().randomized { inner.relay() } else { None }
    })
}

/// Has relays reached over the connections that there are.
pub(super) fn relay_peers(inner: Weak<Inner>) -> RelayPeers {
    Arc::new(move |relay| {
        let connection = inner.upgrade()?.registry.get(relay)?;
        Some((connection.mux, connection.udx))
    })
}
