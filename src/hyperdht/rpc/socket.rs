//! A node's UDP sockets: two that it always has, and those of hole punches.

use std::io;
use std::net::SocketAddr;

use crate::udx::{Udx, UdxSocket};

/// What a socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum SocketKind {
    /// Bound to the node's port; persistent and reachable nodes speak through it.
    Server,
    /// Bound to any port; firewalled nodes ask through it, so that packets on the server socket prove
    /// that it is open.
    Client,
    /// Bound to any port for one hole punch.
    Punch,
}

/// A bound socket. All addresses in and out are canonical: IPv4 peers are IPv4, also on IPv6 sockets.
#[derive(Clone)]
pub(crate) struct Socket {
    pub kind: SocketKind,
    pub udx: UdxSocket,
}

impl Socket {
    pub(crate) fn bind(udx: &Udx, address: SocketAddr, kind: SocketKind) -> io::Result<Self> {
        Ok(Self { kind, udx: udx.bind(address)? })
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.udx.local_addr()
    }

    /// Sends a packet, or drops it: senders retry, as with a packet that the network lost.
    pub(crate) fn send(&self, packet: &[u8], to: SocketAddr) {
        if let Err(error) = self.udx.send_datagram(packet, to) {
            tracing::trace!(%to, %error, "a packet was not sent");
        }
    }
}
