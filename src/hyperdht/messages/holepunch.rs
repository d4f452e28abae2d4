//! PEER_HOLEPUNCH: what both ends of a hole punch send each other through a node that both reach.
//!
//! Nodes pass these messages on without reading the payload, which is encrypted with a secret of the
//! handshake.

use std::net::SocketAddrV4;

use super::{FirewallKind, Mode, flag, present, read_addresses, write_addresses};
use crate::encoding::{Reader, Result, Writer};

/// Errors in a [`Payload`] (`lib/constants.js`).
pub(crate) const ERROR_NONE: u64 = 0;
pub(crate) const ERROR_ABORTED: u64 = 1;
/// The server punches for others just now.
pub(crate) const ERROR_TRY_LATER: u64 = 3;

/// The value of a PEER_HOLEPUNCH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holepunch {
    pub mode: Mode,
    /// The server's number for the handshake.
    pub id: u64,
    /// Encrypted.
    pub payload: Vec<u8>,
    /// The other end, as the node that passes this on sees it.
    pub peer_address: Option<SocketAddrV4>,
}

impl Holepunch {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_capacity(self.payload.len() + 24);
        writer
            .uint(flag(self.peer_address.is_some(), 1))
            .uint(self.mode.encode())
            .uint(self.id)
            .buffer(&self.payload);
        if let Some(address) = self.peer_address {
            writer.ipv4_address(address);
        }
        writer.into_vec()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        let flags = reader.uint()?;
        let mode = Mode::decode(reader.uint()?);
        let id = reader.uint()?;
        let payload = reader.buffer()?.to_vec();
        let peer_address = present(flags, 1, || reader.ipv4_address())?;
        Ok(Self { mode, id, payload, peer_address })
    }
}

/// What is inside of a [`Holepunch`], once decrypted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Payload {
    pub error: u64,
    /// What the sender knows of its NAT.
    pub firewall: FirewallKind,
    /// Counts the client's messages.
    pub round: u64,
    pub connected: bool,
    /// Whether the sender sends, or is ready to send, packets to the other side.
    pub punching: bool,
    /// Where others see the sender. Behind a random NAT, only the host counts.
    pub addresses: Option<Vec<SocketAddrV4>>,
    /// The address at which the client has opened its NAT for the server.
    pub remote_address: Option<SocketAddrV4>,
    /// To be sent back, as a proof of being at the host that it was made for.
    pub token: Option<[u8; 32]>,
    /// The token that the other side gave.
    pub remote_token: Option<[u8; 32]>,
}

impl Payload {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_capacity(112);
        let flags = flag(self.connected, 1)
            | flag(self.punching, 2)
            | flag(self.addresses.is_some(), 4)
            | flag(self.remote_address.is_some(), 8)
            | flag(self.token.is_some(), 16)
            | flag(self.remote_token.is_some(), 32);
        writer.uint(flags).uint(self.error).uint(self.firewall.encode()).uint(self.round);
        if let Some(addresses) = &self.addresses {
            write_addresses(&mut writer, addresses);
        }
        if let Some(address) = self.remote_address {
            writer.ipv4_address(address);
        }
        for token in self.token.iter().chain(&self.remote_token) {
            writer.raw(token);
        }
        writer.into_vec()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        let flags = reader.uint()?;
        let error = reader.uint()?;
        let firewall = FirewallKind::decode(reader.uint()?);
        let round = reader.uint()?;
        Ok(Self {
            error,
            firewall,
            round,
            connected: flags & 1 != 0,
            punching: flags & 2 != 0,
            addresses: present(flags, 4, || read_addresses(&mut reader))?,
            remote_address: present(flags, 8, || reader.ipv4_address())?,
            token: present(flags, 16, || reader.fixed32())?,
            remote_token: present(flags, 32, || reader.fixed32())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_holepunch_takes_the_bytes_of_the_reference() {
        let message = Holepunch {
            mode: Mode::FromRelay,
            id: 300,
            payload: b"abc".to_vec(),
            peer_address: Some("1.2.3.4:5".parse().unwrap()),
        };
        let bytes = [1, 2, 0xfd, 0x2c, 1, 3, 0x61, 0x62, 0x63, 1, 2, 3, 4, 5, 0];
        assert_eq!(message.encode(), bytes);
    }

    #[test]
    fn a_holepunch_reads_back() {
        let message = Holepunch {
            mode: Mode::FromRelay,
            id: 300,
            payload: vec![9; 80],
            peer_address: Some("1.2.3.4:5".parse().unwrap()),
        };
        assert_eq!(Holepunch::decode(&message.encode()), Ok(message));
    }

    #[test]
    fn payloads_take_the_bytes_of_the_reference_and_read_back() {
        // Made with npm hyperdht 6.34 `lib/messages.js`.
        let payload = Payload {
            error: ERROR_TRY_LATER,
            firewall: FirewallKind::Random,
            round: 2,
            connected: true,
            punching: true,
            addresses: Some(vec!["1.2.3.4:0".parse().unwrap(), "5.6.7.8:900".parse().unwrap()]),
            remote_address: Some("6.7.8.9:10".parse().unwrap()),
            token: Some([1; 32]),
            remote_token: Some([2; 32]),
        };
        let mut bytes = vec![0x3f, 3, 3, 2, 2, 1, 2, 3, 4, 0, 0, 5, 6, 7, 8, 0x84, 3];
        bytes.extend([6, 7, 8, 9, 10, 0]);
        bytes.extend([[1; 32], [2; 32]].concat());
        assert_eq!(payload.encode(), bytes);
        assert_eq!(Payload::decode(&bytes), Ok(payload));
        assert_eq!(Payload::default().encode(), [0; 4]);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Payload::decode(&bytes);
            let _ = Holepunch::decode(&bytes);
        }
    }
}
