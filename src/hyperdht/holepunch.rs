//! The place of hole punching: getting packets through the NATs of both sides.
//!
//! Nodes pass PEER_HOLEPUNCH on for others ([`super::router`]). As an end of a punch we stay silent
//! for now, which a client takes as the end of its attempts, and not as the end of a direct
//! connection that it tries at the same time.

use std::net::SocketAddrV4;

use super::messages::handshake::HolepunchInfo;
use super::rpc::Incoming;
use super::server::ServerShared;

impl ServerShared {
    /// A client wants to punch a hole for handshake `id`. Returns the encrypted answer.
    pub(crate) fn on_holepunch(
        &self,
        id: u64,
        payload: &[u8],
        client: SocketAddrV4,
        _incoming: &Incoming,
    ) -> Option<Vec<u8>> {
        tracing::debug!(id, bytes = payload.len(), %client, "a client wants to punch a hole");
        None
    }

    /// What to tell a client about punching. Without it, a client sends to the address from which
    /// our reply reached its relay. A client behind our own NAT gets it, because only then does the
    /// reference try the addresses of the local network.
    pub(crate) fn holepunch_info(&self, is_same_network: bool) -> Option<HolepunchInfo> {
        let relays = self.announcer.relays();
        (is_same_network && !relays.is_empty()).then_some(HolepunchInfo { id: 0, relays })
    }
}
