//! A program that has protomux and hypercore, and nothing of this library above them: what it is told,
//! what it gets, and what it does not get.

use std::sync::Arc;

use alex_p2p::crypto::KeyPair;
use alex_p2p::hypercore::replicator::{Policy as CorePolicy, Replicator};
use alex_p2p::hypercore::{Core, MemoryStorage, OpenOptions};
use alex_p2p::protomux::{Channel, ChannelOptions, CloseReason, Protomux};
use alex_p2p::transfer::{Policy, State};
use serde_json::{Value, json};

use crate::support::{Disk, Server, connect_stranger, soon, until_state};

struct Program {
    mux: Protomux,
    channel: Channel,
    hello: Value,
}

impl Program {
    async fn connect(server: &Server, keys: &KeyPair) -> Self {
        let mux = connect_stranger(server, keys).await;
        let channel = open(&mux, br#"{"version":1,"feedKey":"none","future":true}"#);
        let hello = serde_json::from_slice(&soon(channel.opened()).await.unwrap()).unwrap();
        Self { mux, channel, hello }
    }

    async fn send(&self, kind: u32, message: Value) {
        self.channel.send(kind, message.to_string().as_bytes()).await.unwrap();
    }

    async fn reply(&self) -> Value {
        let message = soon(self.channel.recv()).await.unwrap();
        assert_eq!(message.kind, 1);
        serde_json::from_slice(&message.data).unwrap()
    }
}

fn open(mux: &Protomux, hello: &[u8]) -> Channel {
    mux.open(ChannelOptions {
        protocol: "alex/p2p".into(),
        handshake: hello.to_vec(),
        ..Default::default()
    })
    .unwrap()
}

async fn server(policy: Policy) -> (Disk, Server) {
    let disk = Disk::new();
    let file = disk.file("book.epub", 200_000, 5);
    let server = Server::start(&disk, policy).await;
    server.publish("book", &file).await;
    (disk, server)
}

fn key_of(reply: &Value) -> [u8; 32] {
    *alex_p2p::crypto::PublicKey::from_z32(reply["key"].as_str().unwrap()).unwrap().as_bytes()
}

#[tokio::test]
async fn a_program_with_plain_hypercore_reads_a_granted_book() {
    let (disk, server) = server(Policy::AutoAccept).await;
    let program = Program::connect(&server, &KeyPair::generate()).await;
    assert_eq!(program.hello["version"], 1);
    assert_eq!(program.hello["feedKey"].as_str().unwrap().len(), 52);
    program.send(99, json!("a message of the future")).await;
    program.send(0, json!({"id": "1", "bookId": "book", "future": [1]})).await;
    let reply = program.reply().await;
    assert_eq!((&reply["id"], &reply["status"]), (&json!("1"), &json!("granted")));
    assert_eq!((&reply["byteLength"], &reply["length"]), (&json!(200_000), &json!(4)));
    let storage = MemoryStorage::new();
    let core = Core::open(&storage, key_of(&reply), OpenOptions::default()).unwrap();
    let replicator = Replicator::new();
    replicator.attach(&program.mux);
    replicator.add(core.clone(), CorePolicy::fetch());
    soon(core.subscribe().wait_for(|state| state.contiguous_length == 4)).await.unwrap();
    let bytes: Vec<u8> = (0..4).flat_map(|i| core.get(i).unwrap().unwrap()).collect();
    assert!(bytes == std::fs::read(disk.path("book.epub")).unwrap());
    program.send(3, json!({"id": "1"})).await;
    until_state(&server.only_transfer(), State::Completed).await;
}

#[tokio::test]
async fn without_a_grant_no_block_is_served_even_to_who_knows_the_key() {
    let (_disk, server) = server(Policy::AutoAccept).await;
    let friend = Program::connect(&server, &KeyPair::generate()).await;
    friend.send(0, json!({"id": "1", "bookId": "book"})).await;
    let key = key_of(&friend.reply().await);
    // The core is open for the friend; somebody else asks for it.
    let other = Program::connect(&server, &KeyPair::generate()).await;
    let storage = MemoryStorage::new();
    let core = Core::open(&storage, key, OpenOptions::default()).unwrap();
    let replicator = Replicator::new();
    replicator.attach(&other.mux);
    replicator.add(core.clone(), CorePolicy::fetch());
    // A request that is answered afterwards shows that the server has had its time.
    *server.rules.0.lock().unwrap() = Policy::MetadataOnly;
    other.send(0, json!({"id": "1", "bookId": "book"})).await;
    let reply = other.reply().await;
    assert_eq!(reply["status"], "denied");
    assert!(reply.get("key").is_none() && reply.get("hash").is_none());
    assert_eq!((core.length(), core.state().blocks), (0, 0));
}

#[tokio::test]
async fn a_cancelled_grant_ends_the_serving() {
    let (_disk, server) = server(Policy::AutoAccept).await;
    let program = Program::connect(&server, &KeyPair::generate()).await;
    program.send(0, json!({"id": "1", "bookId": "book"})).await;
    let key = key_of(&program.reply().await);
    program.send(2, json!({"id": "1"})).await;
    until_state(&server.only_transfer(), State::Cancelled).await;
    let storage = MemoryStorage::new();
    let core = Core::open(&storage, key, OpenOptions::default()).unwrap();
    let replicator = Replicator::new();
    replicator.attach(&program.mux);
    replicator.add(core.clone(), CorePolicy::fetch());
    program.send(0, json!({"id": "1", "bookId": "book"})).await;
    assert_eq!(program.reply().await["status"], "denied", "an id is used once");
    assert_eq!(core.state().blocks, 0);
}

#[tokio::test]
async fn the_same_request_again_gets_the_same_answer() {
    let (_disk, server) = server(Policy::ManualApprove).await;
    let program = Program::connect(&server, &KeyPair::generate()).await;
    for _ in 0..3 {
        program.send(0, json!({"id": "1", "bookId": "book"})).await;
        assert_eq!(program.reply().await["status"], "pending");
    }
    server.only_transfer().approve().await.unwrap();
    assert_eq!(program.reply().await["status"], "granted");
    program.send(0, json!({"id": "1", "bookId": "other"})).await;
    assert_eq!(program.reply().await["status"], "denied");
}

#[tokio::test]
async fn a_peer_cannot_fill_the_table_of_requests() {
    let (_disk, server) = server(Policy::ManualApprove).await;
    let program = Program::connect(&server, &KeyPair::generate()).await;
    for n in 0..100 {
        program.send(0, json!({"id": n.to_string(), "bookId": "book"})).await;
        assert_eq!(program.reply().await["status"], "pending");
    }
    assert_eq!(server.transfers.list(&Default::default()).unwrap().len(), 16);
}

#[tokio::test]
async fn a_channel_that_is_closed_may_be_opened_again() {
    let (_disk, server) = server(Policy::ManualApprove).await;
    let keys = KeyPair::generate();
    let mut program = Program::connect(&server, &keys).await;
    program.send(0, json!({"id": "1", "bookId": "book"})).await;
    assert_eq!(program.reply().await["status"], "pending");
    program.channel.close();
    program.channel = open(&program.mux, br#"{"version":1}"#);
    soon(program.channel.opened()).await.unwrap();
    program.send(0, json!({"id": "1", "bookId": "book"})).await;
    assert_eq!(program.reply().await["status"], "pending");
    assert_eq!(server.transfers.list(&Default::default()).unwrap().len(), 1);
}

#[tokio::test]
async fn a_program_that_talks_nonsense_is_hung_up_on() {
    let (_disk, server) = server(Policy::AutoAccept).await;
    let program = Program::connect(&server, &KeyPair::generate()).await;
    for _ in 0..100 {
        if program.channel.send(0, b"{not json").await.is_err() {
            break;
        }
    }
    soon(program.mux.closed()).await;

    let mux = connect_stranger(&server, &KeyPair::generate()).await;
    let _channel = open(&mux, b"hello");
    assert_ne!(soon(mux.closed()).await, CloseReason::Local);
    drop(Arc::new(server));
}
