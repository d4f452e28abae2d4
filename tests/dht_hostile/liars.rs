//! A DHT in which half of the nodes lie, each in its own way, or say nothing.

use std::net::{SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use alex_p2p::crypto::{self, KeyPair, PublicKey};
use alex_p2p::encoding::Writer;
use alex_p2p::hyperdht::{ConnectOptions, Firewall, HyperDht, Testnet};
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::wire::{
    ANNOUNCE, FIND_NODE, FIND_PEER, ID, INTERNAL, Id, LOOKUP, PEER_HANDSHAKE, Request, Response,
    TARGET, attacker, id_of, nowhere, request, v4,
};

/// Nodes of each kind.
const HONEST: usize = 20;
const LIARS: usize = 20;
/// Pairs of peers that connect, and how many of these do at once.
const PAIRS: usize = 100;
const AT_ONCE: usize = 10;
/// How many have to.
const ENOUGH: usize = 95;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    /// Says nothing, once it is known.
    Silence,
    /// Names nodes that do not exist, as close to every target as can be wished.
    Nowhere,
    /// Names itself and its own kind only; takes announcements, finds everybody, passes nothing on.
    Swallows,
    /// Answers handshakes itself, and lookups with peers that it made up.
    Forges,
    /// Answers with bytes.
    Garbage,
}

const LIES: [Lie; 5] = [Lie::Silence, Lie::Nowhere, Lie::Swallows, Lie::Forges, Lie::Garbage];

/// What all liars know.
struct Gang {
    members: Mutex<Vec<SocketAddrV4>>,
    /// Nodes that do not exist.
    nowhere: Vec<(Id, SocketAddrV4)>,
    /// Keys by their hash, learned from announcements.
    keys: Mutex<std::collections::HashMap<Id, [u8; 32]>>,
}

/// One liar, which makes itself known to `victims` as a persistent node and then does its worst.
async fn liar(lie: Lie, socket: UdpSocket, victims: Vec<SocketAddr>, gang: Arc<Gang>) {
    let id = id_of(socket.local_addr().unwrap());
    for victim in victims {
        let mut hello = request(ID | INTERNAL | TARGET, 1);
        hello.raw(&id).uint(FIND_NODE).raw(&id);
        socket.send_to(hello.as_slice(), victim).await.unwrap();
    }
    let mut buffer = [0; 4096];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        let Some(request) = Request::read(&buffer[..length]) else { continue };
        if let Some(packet) = lie.answer(&request, from, id, &gang) {
            let _ = socket.send_to(&packet, from).await;
        }
    }
}

impl Lie {
    fn answer(self, request: &Request, from: SocketAddr, id: Id, gang: &Gang) -> Option<Vec<u8>> {
        let honest = Response { id: Some(id), token: Some([6; 32]), ..Response::default() };
        let target = request.target.unwrap_or_default();
        let response = match self {
            Self::Silence => return None,
            Self::Garbage => {
                let mut packet = crypto::random::<300>().to_vec();
                packet[0] = 0x13;
                packet[2..4].copy_from_slice(&request.tid.to_le_bytes());
                packet.truncate(4 + usize::from(packet[10]));
                return Some(packet);
            }
            Self::Nowhere => {
                let mut nodes = gang.nowhere.clone();
                nodes.sort_unstable_by_key(|(id, _)| {
                    u64::from_be_bytes(std::array::from_fn(|at| id[at] ^ target[at]))
                });
                let closer = nodes.into_iter().take(20).map(|(_, node)| node).collect();
                Response { closer, ..honest }
            }
            Self::Swallows | Self::Forges if request.is_internal => {
                Response { closer: gang.members.lock().unwrap().clone(), ..honest }
            }
            Self::Swallows => match request.command {
                PEER_HANDSHAKE => return None,
                ANNOUNCE => {
                    let key = request.value.get(1..33).and_then(|key| key.try_into().ok());
                    gang.keys.lock().unwrap().extend(key.map(|key| (target, key)));
                    honest
                }
                _ => {
                    let key = gang.keys.lock().unwrap().get(&target).copied();
                    let value = key.map(|key| [&key[..], &[0]].concat());
                    Response { closer: gang.members.lock().unwrap().clone(), value, ..honest }
                }
            },
            Self::Forges => {
                let made_up = KeyPair::generate().public_key();
                let record = [&made_up.as_bytes()[..], &[0]].concat();
                let value = match request.command {
                    PEER_HANDSHAKE => {
                        let noise = crypto::random::<96>();
                        let mut reply = Writer::new();
                        reply.uint(1).uint(4).buffer(&noise).ipv4_address(v4(from));
                        Some(reply.into_vec())
                    }
                    FIND_PEER => Some(record),
                    LOOKUP => Some([&[1][..], &record, &[0]].concat()),
                    _ => None,
                };
                Response { value, closer: gang.members.lock().unwrap().clone(), ..honest }
            }
        };
        Some(response.write(request.tid, from))
    }
}

/// A socket whose id is closer to the target than those of all honest nodes.
async fn closest(testnet: &Testnet, target: Id) -> UdpSocket {
    let distance = |address| -> Id {
        let id = id_of(address);
        std::array::from_fn(|at| id[at] ^ target[at])
    };
    let honest = testnet.nodes().iter().map(|node| distance(node.local_addr())).min().unwrap();
    // Those that are too far stay open until one is close enough: the system does not give their ports again.
    let mut sockets = Vec::new();
    loop {
        let socket = attacker().await;
        if distance(socket.local_addr().unwrap()) < honest {
            return socket;
        }
        sockets.push(socket);
    }
}

/// Starts liars of these kinds beside an honest network, whose nodes have heard of all of them.
async fn corrupt(testnet: &Testnet, lies: &[Lie]) -> (JoinSet<()>, Arc<Gang>) {
    let mut sockets = Vec::new();
    for _ in 0..LIARS {
        sockets.push(attacker().await);
    }
    corrupt_with(testnet, lies, sockets).await
}

async fn corrupt_with(
    testnet: &Testnet,
    lies: &[Lie],
    sockets: Vec<UdpSocket>,
) -> (JoinSet<()>, Arc<Gang>) {
    let nowhere = |index| (id_of(nowhere(index).into()), nowhere(index));
    let gang = Arc::new(Gang {
        members: Mutex::default(),
        nowhere: (0..2000).map(nowhere).collect(),
        keys: Mutex::default(),
    });
    let victims: Vec<SocketAddr> = testnet.nodes().iter().map(HyperDht::local_addr).collect();
    let mut tasks = JoinSet::new();
    for (index, socket) in sockets.into_iter().enumerate() {
        gang.members.lock().unwrap().push(v4(socket.local_addr().unwrap()));
        tasks.spawn(liar(lies[index % lies.len()], socket, victims.clone(), Arc::clone(&gang)));
    }
    (tasks, gang)
}

/// A server whose four closest nodes take its announcement, find it, and pass no handshake on.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_closest_nodes_pass_nothing_on_is_reached_over_others() {
    const PASSING_NOTHING_ON: usize = 4;
    let testnet = Testnet::start(HONEST).await.expect("testnet");
    let keys = KeyPair::generate();
    let target = crypto::hash(&[keys.public_key().as_bytes()]);
    let mut sockets = Vec::new();
    for index in 0..LIARS {
        let is_near = index < PASSING_NOTHING_ON;
        sockets.push(if is_near { closest(&testnet, target).await } else { attacker().await });
    }
    let (mut liars, _) = corrupt_with(&testnet, &[Lie::Swallows], sockets).await;
    let [node, client] = [(); 2].map(|()| HyperDht::bind(testnet.options()).expect("bind"));
    node.bootstrapped().await;
    client.bootstrapped().await;
    let server = node.listen(&keys, Arc::new(|_: &PublicKey, _| true)).expect("listen");
    server.announced().await;
    let connection = client.connect(&keys.public_key(), ConnectOptions::default()).await;
    assert_eq!(connection.expect("connect").remote_public_key(), keys.public_key());
    liars.abort_all();
    node.close().await;
    client.close().await;
    testnet.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_connect_although_half_of_the_network_lies() {
    let testnet = Testnet::start(HONEST).await.expect("testnet");
    let (mut liars, _) = corrupt(&testnet, &LIES).await;
    let (mut listening, mut calling) = (Vec::new(), Vec::new());
    for _ in 0..AT_ONCE {
        listening.push(HyperDht::bind(testnet.options()).expect("bind"));
        calling.push(HyperDht::bind(testnet.options()).expect("bind"));
    }
    for node in listening.iter().chain(&calling) {
        node.bootstrapped().await;
    }
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut pairs = JoinSet::new();
    for pair in 0..PAIRS {
        let (node, client) =
            (listening[pair % AT_ONCE].clone(), calling[(pair + 3) % AT_ONCE].clone());
        let turns = Arc::clone(&turns);
        pairs.spawn(async move {
            let _turn = turns.acquire().await.unwrap();
            let (keys, own) = (KeyPair::generate(), KeyPair::generate());
            let approved = own.public_key();
            let admit: Firewall = Arc::new(move |key: &PublicKey, _| *key == approved);
            let server = node.listen(&keys, admit).expect("listen");
            let began = Instant::now();
            server.announced().await;
            let announced = began.elapsed();
            let timeout = Duration::from_secs(30);
            let options =
                ConnectOptions { key_pair: Some(own), timeout, ..ConnectOptions::default() };
            let began = Instant::now();
            let outcome = client.connect(&keys.public_key(), options).await;
            if let Ok(connection) = &outcome {
                assert_eq!(connection.remote_public_key(), keys.public_key());
            }
            (announced, began.elapsed(), outcome.map(drop))
        });
    }
    let (mut times, mut announcing, mut failures) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(outcome) = pairs.join_next().await {
        let (announced, time, outcome) = outcome.unwrap();
        announcing.push(announced);
        match outcome {
            Ok(()) => times.push(time),
            Err(error) => failures.push(error),
        }
    }
    times.sort_unstable();
    announcing.sort_unstable();
    println!(
        "{} of {PAIRS} connected, median {:?}, slowest {:?}; announced median {:?}, slowest {:?}; {failures:?}",
        times.len(),
        times.get(times.len() / 2),
        times.last(),
        announcing[PAIRS / 2],
        announcing[PAIRS - 1],
    );
    assert!(times.len() >= ENOUGH, "{} of {PAIRS} connected: {failures:?}", times.len());
    liars.abort_all();
    for node in listening.iter().chain(&calling) {
        node.close().await;
    }
    testnet.close().await;
}
