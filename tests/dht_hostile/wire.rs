//! Packets of the DHT's RPC, written and read by hand: what a program that is not ours may send.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use alex_p2p::crypto::{self, KeyPair};
use alex_p2p::encoding::{Reader, Writer};
use tokio::net::UdpSocket;

pub const ID: u64 = 1;
pub const TOKEN: u64 = 2;
/// In a request: the command is one of the RPC itself. In a response: closer nodes follow.
pub const INTERNAL: u64 = 4;
pub const CLOSER: u64 = 4;
pub const TARGET: u64 = 8;
/// In a response: an error code follows.
pub const ERROR: u64 = 8;
pub const VALUE: u64 = 16;

pub const PEER_HANDSHAKE: u64 = 0;
pub const FIND_PEER: u64 = 2;
pub const LOOKUP: u64 = 3;
pub const ANNOUNCE: u64 = 4;
pub const UNANNOUNCE: u64 = 5;
pub const FIND_NODE: u64 = 2;

pub const INVALID_TOKEN: u8 = 2;

const RESPONSE: u8 = 0x13;

pub type Id = [u8; 32];

/// The id of the node at `address`.
pub fn id_of(address: SocketAddr) -> Id {
    crypto::hash(&[Writer::new().ipv4_address(v4(address)).as_slice()])
}

pub fn v4(address: SocketAddr) -> SocketAddrV4 {
    match address {
        SocketAddr::V4(v4) => v4,
        SocketAddr::V6(_) => unreachable!("everything here is on IPv4"),
    }
}

/// A socket of somebody's on this machine.
pub async fn attacker() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").await.expect("bind")
}

/// The front of a request: everything before what its flags announce.
pub fn request(flags: u64, tid: u16) -> Writer {
    let mut writer = Writer::new();
    writer.u8(3).uint(flags).u16(tid).raw(&[127, 0, 0, 1, 1, 0]);
    writer
}

pub fn ping(tid: u16) -> Vec<u8> {
    request(INTERNAL, tid).uint(0).as_slice().to_vec()
}

/// A request that arrived.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub tid: u16,
    pub is_internal: bool,
    pub command: u64,
    pub target: Option<Id>,
    pub value: Vec<u8>,
}

impl Request {
    pub fn read(packet: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(packet);
        if reader.u8().ok()? != 3 {
            return None;
        }
        let flags = reader.uint().ok()?;
        let tid = reader.u16().ok()?;
        reader.take(6).ok()?;
        for flag in [ID, TOKEN] {
            if flags & flag != 0 {
                reader.take(32).ok()?;
            }
        }
        let command = reader.uint().ok()?;
        let target = if flags & TARGET == 0 { None } else { Some(reader.fixed32().ok()?) };
        let value = if flags & VALUE == 0 { &[] } else { reader.buffer().ok()? };
        let is_internal = flags & INTERNAL != 0;
        Some(Self { tid, is_internal, command, target, value: value.to_vec() })
    }
}

/// A response.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Response {
    pub id: Option<Id>,
    pub token: Option<Id>,
    pub closer: Vec<SocketAddrV4>,
    pub error: u64,
    pub value: Option<Vec<u8>>,
}

impl Response {
    /// Its packet to `to`.
    pub fn write(&self, tid: u16, to: SocketAddr) -> Vec<u8> {
        let flag = |set: bool, flag: u64| if set { flag } else { 0 };
        let flags = flag(self.id.is_some(), ID)
            | flag(self.token.is_some(), TOKEN)
            | flag(!self.closer.is_empty(), CLOSER)
            | flag(self.error > 0, ERROR)
            | flag(self.value.is_some(), VALUE);
        let mut writer = Writer::new();
        writer.u8(RESPONSE).uint(flags).u16(tid).ipv4_address(v4(to));
        for field in self.id.iter().chain(&self.token) {
            writer.raw(field);
        }
        if !self.closer.is_empty() {
            writer.uint(self.closer.len() as u64);
            self.closer.iter().for_each(|node| _ = writer.ipv4_address(*node));
        }
        if self.error > 0 {
            writer.uint(self.error);
        }
        if let Some(value) = &self.value {
            writer.buffer(value);
        }
        writer.into_vec()
    }

    fn read(packet: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(packet.get(1..)?);
        let flags = reader.uint().ok()?;
        reader.take(8).ok()?;
        let mut response = Self::default();
        if flags & ID != 0 {
            response.id = Some(reader.fixed32().ok()?);
        }
        if flags & TOKEN != 0 {
            response.token = Some(reader.fixed32().ok()?);
        }
        if flags & CLOSER != 0 {
            response.closer = reader.vec(64, Reader::ipv4_address).ok()?;
        }
        if flags & ERROR != 0 {
            response.error = reader.uint().ok()?;
        }
        if flags & VALUE != 0 {
            response.value = Some(reader.buffer().ok()?.to_vec());
        }
        Some(response)
    }
}

/// The next packet that answers `tid`, whatever else is still on its way.
pub async fn answer(socket: &UdpSocket, tid: u16) -> Option<Vec<u8>> {
    let mut buffer = [0; 4096];
    let receive = async {
        loop {
            let (length, _) = socket.recv_from(&mut buffer).await.expect("receive");
            if length >= 4 && buffer[0] == RESPONSE && buffer[2..4] == tid.to_le_bytes() {
                return buffer[..length].to_vec();
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(2), receive).await.ok()
}

/// Asks `node` once: a command about `target`, with a token and a value if there are any.
pub async fn ask(
    socket: &UdpSocket,
    node: SocketAddr,
    command: u64,
    target: &Id,
    token: Option<&Id>,
    value: Option<&[u8]>,
) -> Option<Response> {
    let flag = |set: bool, flag: u64| if set { flag } else { 0 };
    let tid = u16::from_le_bytes(crypto::random());
    let flags = TARGET | flag(token.is_some(), TOKEN) | flag(value.is_some(), VALUE);
    let mut packet = request(flags, tid);
    if let Some(token) = token {
        packet.raw(token);
    }
    packet.uint(command).raw(target);
    if let Some(value) = value {
        packet.buffer(value);
    }
    socket.send_to(packet.as_slice(), node).await.expect("send");
    Response::read(&answer(socket, tid).await?)
}

/// Whether `node` answers a command at all. What is asked after it is answered after it, so there is no need
/// to wait.
pub async fn is_answered(
    socket: &UdpSocket,
    node: SocketAddr,
    command: u64,
    target: &Id,
    token: &Id,
    value: &[u8],
) -> bool {
    let mut packet = request(TOKEN | TARGET | VALUE, 1);
    packet.raw(token).uint(command).raw(target).buffer(value);
    socket.send_to(packet.as_slice(), node).await.expect("send");
    socket.send_to(&ping(2), node).await.expect("send");
    let mut buffer = [0; 4096];
    let receive = async {
        loop {
            let (length, _) = socket.recv_from(&mut buffer).await.expect("receive");
            match buffer[..length] {
                [RESPONSE, _, 1, 0, ..] => return true,
                [RESPONSE, _, 2, 0, ..] => return false,
                _ => {}
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), receive).await.expect("no answer to a ping")
}

/// What an announcement or unannouncement says and is signed for.
pub struct Statement<'a> {
    pub keys: &'a KeyPair,
    pub relays: Vec<SocketAddrV4>,
    pub target: Id,
    pub node: Id,
    pub token: Id,
}

impl Statement<'_> {
    /// The value of the command, signed by `signer` for `signed_for`.
    pub fn value(&self, signed_for: u64, signer: &KeyPair) -> Vec<u8> {
        let mut peer = Writer::new();
        peer.raw(self.keys.public_key().as_bytes()).uint(self.relays.len() as u64);
        self.relays.iter().for_each(|relay| _ = peer.ipv4_address(*relay));
        let hash = crypto::hash(&[&self.target, &self.node, &self.token, peer.as_slice()]);
        let command = u8::try_from(signed_for).expect("a command");
        let signed = [crypto::namespace("hyperswarm/dht", command), hash].concat();
        let mut value = Writer::new();
        value.uint(1 | 4).raw(peer.as_slice()).raw(&signer.sign(&signed));
        value.into_vec()
    }
}

/// The value of a PEER_HANDSHAKE from a client, with a Noise message.
pub fn handshake_value(noise: &[u8]) -> Vec<u8> {
    Writer::new().uint(0).uint(0).buffer(noise).as_slice().to_vec()
}

/// An address on this machine at which nobody is.
pub fn nowhere(index: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(127, 0, 66, (index >> 8) as u8), 1 + (index & 255))
}
