//! The messages of HyperDHT's commands (`hyperdht` `lib/messages.js`).

pub(crate) mod handshake;
pub(crate) mod holepunch;
pub(crate) mod records;

use std::net::{SocketAddrV4, SocketAddrV6};

use crate::encoding::{Reader, Result, Writer};

/// How many addresses of one list are read.
pub(crate) const MAX_ADDRESSES: usize = 64;

/// Commands of HyperDHT (`lib/constants.js`).
pub(crate) mod commands {
    pub(crate) const PEER_HANDSHAKE: u64 = 0;
    pub(crate) const PEER_HOLEPUNCH: u64 = 1;
    pub(crate) const FIND_PEER: u64 = 2;
    pub(crate) const LOOKUP: u64 = 3;
    pub(crate) const ANNOUNCE: u64 = 4;
    pub(crate) const UNANNOUNCE: u64 = 5;
    pub(crate) const MUTABLE_PUT: u64 = 6;
    pub(crate) const MUTABLE_GET: u64 = 7;
    pub(crate) const IMMUTABLE_PUT: u64 = 8;
    pub(crate) const IMMUTABLE_GET: u64 = 9;
}

/// The namespace that a command's signatures and hashes are made in.
pub(crate) fn namespace(command: u64) -> crate::crypto::Hash {
    // Commands are single bytes: the table above.
    crate::crypto::namespace("hyperswarm/dht", command as u8)
}

/// How packets for a handshake or a hole punch travel (`lib/router.js`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    FromClient,
    FromServer,
    FromRelay,
    FromSecondRelay,
    Reply,
    /// A mode that we do not know.
    Other(u64),
}

impl Mode {
    fn encode(self) -> u64 {
        match self {
            Self::FromClient => 0,
            Self::FromServer => 1,
            Self::FromRelay => 2,
            Self::FromSecondRelay => 3,
            Self::Reply => 4,
            Self::Other(other) => other,
        }
    }

    fn decode(value: u64) -> Self {
        match value {
            0 => Self::FromClient,
            1 => Self::FromServer,
            2 => Self::FromRelay,
            3 => Self::FromSecondRelay,
            4 => Self::Reply,
            other => Self::Other(other),
        }
    }
}

/// What a peer knows of the NAT in front of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum FirewallKind {
    #[default]
    Unknown,
    /// Anybody can reach it.
    Open,
    /// The same address for each destination.
    Consistent,
    /// Another port for each destination, or something newer that we do not know.
    Random,
}

impl FirewallKind {
    fn encode(self) -> u64 {
        match self {
            Self::Unknown => 0,
            Self::Open => 1,
            Self::Consistent => 2,
            Self::Random => 3,
        }
    }

    fn decode(value: u64) -> Self {
        match value {
            0 => Self::Unknown,
            1 => Self::Open,
            2 => Self::Consistent,
            _ => Self::Random,
        }
    }
}

fn write_addresses(writer: &mut Writer, addresses: &[SocketAddrV4]) {
    writer.uint(addresses.len() as u64);
    for address in addresses {
        writer.ipv4_address(*address);
    }
}

fn read_addresses(reader: &mut Reader<'_>) -> Result<Vec<SocketAddrV4>> {
    reader.vec(MAX_ADDRESSES, Reader::ipv4_address)
}

fn read_addresses6(reader: &mut Reader<'_>) -> Result<Vec<SocketAddrV6>> {
    reader.vec(MAX_ADDRESSES, Reader::ipv6_address)
}

fn present<T>(flags: u64, flag: u64, read: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
    if flags & flag == 0 { Ok(None) } else { read().map(Some) }
}

fn flag(set: bool, flag: u64) -> u64 {
    if set { flag } else { 0 }
}
