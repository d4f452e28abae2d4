//! PEER_HOLEPUNCH: what both ends of a hole punch send each other through a node that both reach.
//!
//! Nodes pass these messages on without reading the payload, which is encrypted with a secret of the
//! handshake.

use std::net::SocketAddrV4;

use super::{Mode, flag, present};
use crate::encoding::{Reader, Result, Writer};

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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Holepunch::decode(&bytes);
        }
    }
}
