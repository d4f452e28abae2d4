//! A whole node of the DHT, with a server that listens on it, and a foe that sends it anything: whatever it
//! is, the node lives, its answers are ones that can be read, and what it holds stays bounded.
//!
//! The input is a program: packets as they are, requests of every command with targets, tokens and values
//! that may be right, answers to what the node asks, and time that passes. Time is simulated. The sockets
//! are real ones on the loopback interface, so nothing leaves this machine.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use alex_p2p::crypto::{self, KeyPair, PublicKey};
use alex_p2p::encoding::Writer;
use alex_p2p::hyperdht::fuzzing::{self, Decoder};
use alex_p2p::hyperdht::{BootstrapNode, DhtOptions, HyperDht};

/// Flags of requests and responses.
const ID: u8 = 1;
const TOKEN: u8 = 2;
const TARGET: u8 = 8;
const VALUE: u8 = 16;

const ANNOUNCE: u8 = 4;
const UNANNOUNCE: u8 = 5;

/// Tasks of an idle node and its server, and those that packets may cause besides: delayed pings, checks of
/// nodes, punches.
const MAX_TASKS: usize = 1024;

/// Two sockets of somebody's, and what was learned with them.
struct Foe {
    sockets: [UdpSocket; 2],
    /// The token that the node gave last.
    token: [u8; 32],
    /// The id of the last request that the node sent, and by which of the sockets it came.
    asked: Option<(u16, usize)>,
}

struct World {
    node: HyperDht,
    keys: KeyPair,
    foe: Foe,
}

/// One input is one program.
pub fn run(data: &[u8]) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(play(data));
}

async fn play(data: &[u8]) {
    let Some((mode, mut program)) = data.split_first() else { return };
    let foe = Foe { sockets: [socket(), socket()], token: [0; 32], asked: None };
    let bootstrap = vec![BootstrapNode::from(v4(&foe.sockets[0]))];
    let node = HyperDht::bind(DhtOptions {
        bootstrap: if mode & 1 == 0 { bootstrap } else { Vec::new() },
        host: IpAddr::V4(Ipv4Addr::LOCALHOST),
        port: 0,
        ephemeral: if mode & 2 == 0 { Some(false) } else { None },
        firewalled: mode & 4 != 0,
        public_address: (mode & 8 == 0).then(|| SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)),
        key_pair: KeyPair::from_seed(&[1; 32]),
        ..DhtOptions::default()
    })
    .unwrap();
    let keys = KeyPair::from_seed(&[2; 32]);
    let admits = mode & 16 == 0;
    let _server = node.listen(&keys, Arc::new(move |_: &PublicKey, _| admits)).unwrap();
    let mut world = World { node, keys, foe };
    world.settle().await;
    while world.step(&mut program).await.is_some() {}
    pass(Duration::from_secs(60)).await;
    world.settle().await;
    world.node.close().await;
}

impl World {
    /// One instruction.
    async fn step(&mut self, program: &mut &[u8]) -> Option<()> {
        let (step, who) = (byte(program)?, byte(program)?);
        let from = self.sender(who);
        let to_client = who & 16 != 0;
        let packet = match step & 7 {
            0 => {
                let length = usize::from(byte(program)?) * 4;
                bytes(program, length)
            }
            1..=4 => self.request(step >> 3, program)?,
            5 => self.response(program)?,
            6 => {
                pass(Duration::from_millis(u64::from(byte(program)?) * 40)).await;
                self.settle().await;
                return Some(());
            }
            _ if step & 8 == 0 => self.announcement(step >> 4, program)?,
            _ => {
                let (tid, _) = self.foe.asked?;
                let mut writer = Writer::new();
                writer.u8(0x13).u8(byte(program)?).u16(tid).raw(&bytes(program, 128));
                writer.into_vec()
            }
        };
        fuzzing::receive(&self.node, to_client, from, &packet);
        self.settle().await;
        Some(())
    }

    /// Who sends: the foe, mostly, or somebody else who is made up.
    fn sender(&self, who: u8) -> SocketAddr {
        match who & 7 {
            0..=3 => address(&self.foe.sockets[0]),
            4 | 5 => address(&self.foe.sockets[1]),
            6 => SocketAddr::from(([10, 0, 0, who >> 5], 1 + u16::from(who >> 5))),
            _ => SocketAddr::from(([0x20, 1, 0xd, 0xb8, 0, 0, 0, u16::from(who >> 5)], 1000)),
        }
    }

    /// A request of any command, right in most things.
    fn request(&self, flags: u8, program: &mut &[u8]) -> Option<Vec<u8>> {
        let (command, how) = (byte(program)?, byte(program)?);
        let mut writer = Writer::new();
        writer.u8(3).u8(flags).u16(u16::from(how)).ipv4_address(v4_of(self.node.local_addr()));
        if flags & ID != 0 {
            let own = v4(&self.foe.sockets[usize::from(how & 1)]);
            writer.raw(&crypto::hash(&[Writer::new().ipv4_address(own).as_slice()]));
        }
        if flags & TOKEN != 0 {
            writer.raw(if how & 2 == 0 { &self.foe.token } else { &[9; 32] });
        }
        writer.u8(command & 15);
        if flags & TARGET != 0 {
            writer.raw(&match how & 12 {
                0 => crypto::hash(&[self.keys.public_key().as_bytes()]),
                4 => crypto::hash(&[KeyPair::from_seed(&[3; 32]).public_key().as_bytes()]),
                8 => [7; 32],
                _ => crypto::hash(&[&program[..program.len().min(8)]]),
            });
        }
        if flags & VALUE != 0 {
            let length = usize::from(byte(program)?);
            writer.buffer(&bytes(program, length));
        }
        Some(writer.into_vec())
    }

    /// An announcement of the foe's own key or the taking back of one, signed as it must be.
    fn announcement(&self, flags: u8, program: &mut &[u8]) -> Option<Vec<u8>> {
        let how = byte(program)?;
        let command = if flags & 1 == 0 { ANNOUNCE } else { UNANNOUNCE };
        let keys = KeyPair::from_seed(&[3; 32]);
        let own = crypto::hash(&[keys.public_key().as_bytes()]);
        let target = if flags & 2 == 0 { own } else { [7; 32] };
        let mut peer = Writer::new();
        peer.raw(keys.public_key().as_bytes()).uint(u64::from(how & 7));
        for port in 0..how & 7 {
            peer.ipv4_address(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port.into()));
        }
        let refresh = crypto::hash(&[&[5; 32]]);
        let refresh: &[u8] = if flags & 4 == 0 { &[] } else { &refresh };
        let address = v4_of(self.node.local_addr());
        let id = crypto::hash(&[Writer::new().ipv4_address(address).as_slice()]);
        let hash = crypto::hash(&[&target, &id, &self.foe.token, peer.as_slice(), refresh]);
        let signed = [crypto::namespace("hyperswarm/dht", command), hash].concat();
        let mut value = Writer::new();
        value.u8(1 | flags >> 1 & 2 | 4).raw(peer.as_slice()).raw(refresh).raw(&keys.sign(&signed));
        let mut writer = Writer::new();
        writer.u8(3).u8(TOKEN | TARGET | VALUE).u16(u16::from(how)).ipv4_address(address);
        writer.raw(&self.foe.token).u8(command).raw(&target).buffer(value.as_slice());
        Some(writer.into_vec())
    }

    /// An answer to what the node asked last, with closer nodes, a token and a value.
    fn response(&self, program: &mut &[u8]) -> Option<Vec<u8>> {
        let (tid, socket) = self.foe.asked?;
        let (flags, how) = (byte(program)? & 31, byte(program)?);
        let mut writer = Writer::new();
        writer.u8(0x13).u8(flags).u16(tid);
        writer.ipv4_address(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1 + u16::from(how & 3)));
        let own = v4(&self.foe.sockets[socket]);
        if flags & ID != 0 {
            writer.raw(&crypto::hash(&[Writer::new().ipv4_address(own).as_slice()]));
        }
        if flags & TOKEN != 0 {
            writer.raw(&[8; 32]);
        }
        if flags & 4 != 0 {
            let other = v4(&self.foe.sockets[1 - socket]);
            writer.u8(how & 15);
            for index in 0..how & 15 {
                let port = u16::from(index) * 251;
                let made_up = SocketAddrV4::new(Ipv4Addr::new(10, how, 0, index), port);
                writer.ipv4_address(if index == 0 { other } else { made_up });
            }
        }
        if flags & 8 != 0 {
            writer.u8(how >> 4);
        }
        if flags & VALUE != 0 {
            let length = usize::from(byte(program)?);
            writer.buffer(&bytes(program, length));
        }
        Some(writer.into_vec())
    }

    /// Lets the node do what it has to, and looks at what it sent and holds.
    async fn settle(&mut self) {
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        let mut buffer = [0; 4096];
        for (index, socket) in self.foe.sockets.iter().enumerate() {
            while let Ok((length, _)) = socket.recv_from(&mut buffer) {
                let packet = &buffer[..length];
                if length <= 1 || packet[0] == 0xff {
                    continue; // of a hole punch, or of a stream
                }
                let read = Decoder::Rpc.again(packet);
                assert_eq!(read.as_deref(), Some(packet), "what a node sends is what we would write");
                let tid = u16::from_le_bytes([packet[2], packet[3]]);
                let fields = &packet[10..];
                match packet[0] {
                    3 => self.foe.asked = Some((tid, index)),
                    _ if packet[1] & TOKEN != 0 => {
                        let at = if packet[1] & ID != 0 { 32 } else { 0 };
                        self.foe.token.copy_from_slice(&fields[at..at + 32]);
                    }
                    _ => {}
                }
            }
        }
        let held = fuzzing::held(&self.node);
        assert!(held.in_flight <= 4096 && held.nodes <= 256 * 20 && held.tasks <= MAX_TASKS, "{held:?}");
    }
}

async fn pass(time: Duration) {
    tokio::time::advance(time).await;
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

fn address(socket: &UdpSocket) -> SocketAddr {
    socket.local_addr().unwrap()
}

fn v4(socket: &UdpSocket) -> SocketAddrV4 {
    v4_of(address(socket))
}

fn v4_of(address: SocketAddr) -> SocketAddrV4 {
    match address {
        SocketAddr::V4(v4) => v4,
        SocketAddr::V6(_) => unreachable!("all is bound to 127.0.0.1"),
    }
}

fn byte(program: &mut &[u8]) -> Option<u8> {
    let (first, rest) = program.split_first()?;
    *program = rest;
    Some(*first)
}

fn bytes(program: &mut &[u8], length: usize) -> Vec<u8> {
    let (taken, rest) = program.split_at(length.min(program.len()));
    *program = rest;
    taken.to_vec()
}
