//! What a peer says of a book that it sends, against what its bytes prove.

use alex_p2p::crypto::KeyPair;
use alex_p2p::error::ErrorCode;
use alex_p2p::hypercore::replicator::Policy as CorePolicy;
use alex_p2p::hypercore::{Core, MemoryStorage, StaticTree};
use alex_p2p::transfer::{BookRequest, Policy, State, Transfer, TransferInfo};
use serde_json::{Value, json};

use crate::friend::{Friend, Server, noise, soon};

/// Serves the core of these bytes to whoever asks.
async fn serve(friend: &Friend, dir: &std::path::Path, bytes: &[u8]) -> StaticTree {
    let path = dir.join("lie.epub");
    std::fs::write(&path, bytes).unwrap();
    let tree = StaticTree::build(&path, None).await.unwrap();
    let core = Core::open_static(&MemoryStorage::new(), &tree).await.unwrap();
    friend.replicator.add(core, CorePolicy::serve());
    tree
}

/// Has the server ask for a book, grants it with what `claim` makes of the truth, and gives how that ends.
async fn granted(size: usize, claim: impl Fn(&mut Value)) -> (Server, KeyPair, TransferInfo) {
    let server = Server::start(Policy::AutoAccept).await;
    let keys = KeyPair::generate();
    server.add(&keys).await;
    let friend = server.connect(&keys).await;
    let tree = serve(&friend, server.dir.path(), &noise(1, size)).await;
    let request =
        BookRequest { peer: keys.public_key().to_z32(), book_id: "b".into(), save_to: None };
    let transfer = server.node.transfers().request(request).await.unwrap();
    let message = soon(friend.channel.recv()).await.unwrap();
    assert_eq!(message.kind, 0);
    let asked: Value = serde_json::from_slice(&message.data).unwrap();
    let mut reply = truth(&asked, &tree);
    claim(&mut reply);
    friend.send(1, reply).await;
    let info = soon(transfer.done()).await.unwrap();
    drop(friend);
    (server, keys, info)
}

/// Has the server ask `friend` for a book, and grants it with this core.
async fn ask_and_grant(
    server: &Server,
    (keys, friend): (&KeyPair, &Friend),
    tree: &StaticTree,
) -> Transfer {
    let (peer, book_id) = (keys.public_key().to_z32(), "b".into());
    let request = BookRequest { peer, book_id, save_to: None };
    let transfer = server.node.transfers().request(request).await.unwrap();
    let message = soon(friend.channel.recv()).await.unwrap();
    let asked: Value = serde_json::from_slice(&message.data).unwrap();
    friend.send(1, truth(&asked, tree)).await;
    transfer
}

/// The grant that an honest server sends.
fn truth(asked: &Value, tree: &StaticTree) -> Value {
    json!({
        "id": asked["id"], "status": "granted", "key": z32::encode(&tree.key),
        "hash": tree.hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
        "length": tree.length, "byteLength": tree.byte_length,
    })
}

fn landed(server: &Server) -> usize {
    std::fs::read_dir(server.dir.path().join("data/books")).map_or(0, Iterator::count)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_book_that_is_what_its_sender_says_lands() {
    for size in [1, 65_536, 200_000, 1_000_000] {
        let (server, _, info) = granted(size, |_| {}).await;
        assert_eq!((info.state, info.progress.bytes), (State::Completed, size as u64), "{info:?}");
        assert_eq!(landed(&server), 1);
        server.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_size_that_the_bytes_do_not_have_is_the_peers_fault_and_lands_nothing() {
    let lies: [(usize, u64); 6] = [
        (65_536, 1),
        (100, 65_536),
        (200_000, 262_144),
        (200_000, 196_609),
        (1_000_000, 1_048_576),
        (1_048_576, 983_041),
    ];
    for (size, claimed) in lies {
        let (server, keys, info) =
            granted(size, |reply| reply["byteLength"] = json!(claimed)).await;
        assert_eq!(info.state, State::Failed, "{size} {claimed}");
        assert_eq!(info.error.as_deref(), Some(ErrorCode::Protocol.as_str()), "{info:?}");
        assert!(info.reason.unwrap().contains(&keys.public_key().to_z32()), "the peer is named");
        assert_eq!(landed(&server), 0);
        let left = std::fs::read_dir(server.dir.path().join("data/incoming")).unwrap().count();
        assert_eq!(left, 0, "what came from a liar is not kept");
        server.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_contradicts_itself_is_refused_before_a_byte() {
    for claim in [
        |reply: &mut Value| reply["length"] = json!(9),
        |reply: &mut Value| reply["byteLength"] = json!(0),
        |reply: &mut Value| reply["hash"] = json!("00".repeat(32)),
        |reply: &mut Value| reply["byteLength"] = json!(u64::MAX),
    ] {
        let (server, _, info) = granted(100_000, claim).await;
        assert_eq!((info.state, info.progress.bytes), (State::Failed, 0), "{info:?}");
        server.close().await;
    }
}

/// Somebody grants a book and never sends it; somebody else sends the same one, and a third reads it here.
#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_leads_nowhere_holds_up_nobody_who_sends_the_same_book() {
    for size in [100_000, 2_000_000] {
        let server = Server::start(Policy::AutoAccept).await;
        let tree = server.publish("own", "own.epub", &noise(1, size)).await;
        let [mallory, vera, reader] = [(); 3].map(|()| KeyPair::generate());
        for keys in [&mallory, &vera, &reader] {
            server.add(keys).await;
        }
        let third = server.connect(&reader).await;
        third.ask_until("1", "own", "granted").await;
        let silent = server.connect(&mallory).await;
        let stalled = ask_and_grant(&server, (&mallory, &silent), &tree).await;
        let friend = server.connect(&vera).await;
        serve(&friend, server.dir.path(), &noise(1, size)).await;
        let transfer = ask_and_grant(&server, (&vera, &friend), &tree).await;
        assert_eq!(soon(transfer.done()).await.unwrap().state, State::Completed);
        assert_eq!(stalled.info().unwrap().state, State::Transferring);
        assert_eq!(stalled.info().unwrap().progress.bytes, 0, "nothing came from there");
        third.reads(&tree).await;
        server.close().await;
    }
}
