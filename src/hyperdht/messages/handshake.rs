//! PEER_HANDSHAKE, and what its Noise messages carry.

use std::net::{SocketAddrV4, SocketAddrV6};

use super::{FirewallKind, Mode, flag, present, read_addresses, read_addresses6, write_addresses};
use crate::encoding::{Reader, Result, Writer};

/// The version of the Noise payload that we speak.
pub(crate) const VERSION: u64 = 1;

/// How many relays of a hole punch are read.
const MAX_RELAYS: usize = 32;

/// The value of a PEER_HANDSHAKE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Handshake {
    pub mode: Mode,
    /// One Noise message.
    pub noise: Vec<u8>,
    /// The other end, as the node that passes this on sees it.
    pub peer_address: Option<SocketAddrV4>,
    /// The node through which the answer goes.
    pub relay_address: Option<SocketAddrV4>,
}

impl Handshake {
    /// A client's first message, as it leaves the client.
    pub(crate) fn from_client(noise: Vec<u8>) -> Self {
        Self { mode: Mode::FromClient, noise, peer_address: None, relay_address: None }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_capacity(self.noise.len() + 32);
        let flags = flag(self.peer_address.is_some(), 1) | flag(self.relay_address.is_some(), 2);
        writer.uint(flags).uint(self.mode.encode()).buffer(&self.noise);
        for address in self.peer_address.iter().chain(&self.relay_address) {
            writer.ipv4_address(*address);
        }
        writer.into_vec()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        let flags = reader.uint()?;
        let mode = Mode::decode(reader.uint()?);
        let noise = reader.buffer()?.to_vec();
        let peer_address = present(flags, 1, || reader.ipv4_address())?;
        let relay_address = present(flags, 2, || reader.ipv4_address())?;
        Ok(Self { mode, noise, peer_address, relay_address })
    }
}

/// A node that passes on messages to a server, and where it sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RelayInfo {
    pub relay_address: SocketAddrV4,
    /// The server's address as the relay sees it.
    pub peer_address: SocketAddrV4,
}

/// How to punch a hole to a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HolepunchInfo {
    /// The server's number for this handshake.
    pub id: u64,
    pub relays: Vec<RelayInfo>,
}

/// The UDX stream to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UdxInfo {
    pub reusable_socket: bool,
    pub id: u32,
    pub seq: u64,
}

/// A relay that carries the connection itself (npm `blind-relay`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RelayThrough {
    pub public_key: [u8; 32],
    pub token: [u8; 32],
}

/// What both sides tell each other inside the Noise handshake.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct NoisePayload {
    pub version: u64,
    /// 0, or why the other side does not continue.
    pub error: u64,
    pub firewall: FirewallKind,
    pub holepunch: Option<HolepunchInfo>,
    pub addresses4: Vec<SocketAddrV4>,
    pub addresses6: Vec<SocketAddrV6>,
    pub udx: Option<UdxInfo>,
    pub has_secret_stream: bool,
    pub relay_through: Option<RelayThrough>,
    /// Nodes that pass handshakes on to the sender.
    pub relay_addresses: Vec<SocketAddrV4>,
}

impl NoisePayload {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_capacity(128);
        let flags = flag(self.holepunch.is_some(), 1)
            | flag(!self.addresses4.is_empty(), 2)
            | flag(!self.addresses6.is_empty(), 4)
            | flag(self.udx.is_some(), 8)
            | flag(self.has_secret_stream, 16)
            | flag(self.relay_through.is_some(), 32)
            | flag(!self.relay_addresses.is_empty(), 64);
        writer.uint(self.version).uint(flags).uint(self.error).uint(self.firewall.encode());
        if let Some(holepunch) = &self.holepunch {
            writer.uint(holepunch.id).uint(holepunch.relays.len() as u64);
            for relay in &holepunch.relays {
                writer.ipv4_address(relay.relay_address).ipv4_address(relay.peer_address);
            }
        }
        if !self.addresses4.is_empty() {
            write_addresses(&mut writer, &self.addresses4);
        }
        if !self.addresses6.is_empty() {
            writer.uint(self.addresses6.len() as u64);
            for address in &self.addresses6 {
                writer.ipv6_address(*address);
            }
        }
        if let Some(udx) = &self.udx {
            let features = u64::from(udx.reusable_socket);
            writer.uint(1).uint(features).uint(u64::from(udx.id)).uint(udx.seq);
        }
        if self.has_secret_stream {
            writer.uint(1);
        }
        if let Some(relay) = &self.relay_through {
            writer.uint(1).uint(0).raw(&relay.public_key).raw(&relay.token);
        }
        if !self.relay_addresses.is_empty() {
            write_addresses(&mut writer, &self.relay_addresses);
        }
        writer.into_vec()
    }

    /// Reads a payload. Of another version only that is read.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        let version = reader.uint()?;
        if version != VERSION {
            return Ok(Self { version, ..Self::default() });
        }
        let flags = reader.uint()?;
        let error = reader.uint()?;
        let firewall = FirewallKind::decode(reader.uint()?);
        let holepunch = present(flags, 1, || {
            let id = reader.uint()?;
            let relays = reader.vec(MAX_RELAYS, |reader| {
                let relay_address = reader.ipv4_address()?;
                Ok(RelayInfo { relay_address, peer_address: reader.ipv4_address()? })
            })?;
            Ok(HolepunchInfo { id, relays })
        })?;
        let addresses4 = present(flags, 2, || read_addresses(&mut reader))?.unwrap_or_default();
        let addresses6 = present(flags, 4, || read_addresses6(&mut reader))?.unwrap_or_default();
        let udx = present(flags, 8, || UdxInfo::decode(&mut reader))?;
        let secret_stream = present(flags, 16, || reader.uint())?;
        let relay_through = present(flags, 32, || {
            let (_version, _flags) = (reader.uint()?, reader.uint()?);
            Ok(RelayThrough { public_key: reader.fixed32()?, token: reader.fixed32()? })
        })?;
        let relay_addresses =
            present(flags, 64, || read_addresses(&mut reader))?.unwrap_or_default();
        Ok(Self {
            version,
            error,
            firewall,
            holepunch,
            addresses4,
            addresses6,
            udx,
            has_secret_stream: secret_stream.is_some(),
            relay_through,
            relay_addresses,
        })
    }
}

impl UdxInfo {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let _version = reader.uint()?;
        let features = reader.uint()?;
        let id = reader.uint()?;
        let seq = reader.uint()?;
        let id = u32::try_from(id)
            .map_err(|_| crate::encoding::DecodeError::Invalid("UDX stream id"))?;
        Ok(Self { reusable_socket: features & 1 != 0, id, seq })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn full() -> NoisePayload {
        let address: SocketAddrV4 = "1.2.3.4:5".parse().unwrap();
        NoisePayload {
            version: VERSION,
            error: 0,
            firewall: FirewallKind::Open,
            holepunch: Some(HolepunchInfo {
                id: 3,
                relays: vec![RelayInfo { relay_address: address, peer_address: address }],
            }),
            addresses4: vec![address; 2],
            addresses6: vec!["[::1]:9".parse().unwrap()],
            udx: Some(UdxInfo { reusable_socket: true, id: 0xdead_beef, seq: 0 }),
            has_secret_stream: true,
            relay_through: Some(RelayThrough { public_key: [1; 32], token: [2; 32] }),
            relay_addresses: vec![address],
        }
    }

    #[test]
    fn every_field_of_a_noise_payload_reads_back() {
        let payload = full();
        assert_eq!(NoisePayload::decode(&payload.encode()), Ok(payload));
    }

    #[test]
    fn a_small_payload_takes_the_bytes_of_the_reference() {
        let payload = NoisePayload {
            version: VERSION,
            udx: Some(UdxInfo { reusable_socket: false, id: 7, seq: 0 }),
            has_secret_stream: true,
            ..NoisePayload::default()
        };
        assert_eq!(payload.encode(), [1, 24, 0, 0, 1, 0, 7, 0, 1]);
    }

    #[test]
    fn of_another_version_nothing_else_is_read() {
        let payload = NoisePayload::decode(&[2, 255, 255]).unwrap();
        assert_eq!(payload, NoisePayload { version: 2, ..NoisePayload::default() });
    }

    #[test]
    fn a_handshake_reads_back() {
        let handshake = Handshake {
            mode: Mode::FromSecondRelay,
            noise: vec![1, 2, 3],
            peer_address: Some("1.2.3.4:5".parse().unwrap()),
            relay_address: Some("6.7.8.9:10".parse().unwrap()),
        };
        assert_eq!(Handshake::decode(&handshake.encode()), Ok(handshake));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, flags: u8) {
            let _ = Handshake::decode(&bytes);
            let mut payload = vec![1, flags];
            payload.extend(bytes);
            let _ = NoisePayload::decode(&payload);
        }
    }
}
