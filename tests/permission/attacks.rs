//! What approved peers tried with requests, approvals and messages, each with its opposite.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alex_p2p::catalog::Book;
use alex_p2p::crypto::KeyPair;
use alex_p2p::node::{Limits, Node, NodeOptions};
use alex_p2p::peers::PeerStatus;
use alex_p2p::transfer::{BookSource, Policy, State, TransferInfo};
use serde_json::json;

use crate::friend::{Friend, Server, noise, open, soon};

/// A server with one book, and an approved peer that is connected.
async fn pair(policy: Policy) -> (Server, KeyPair, Friend) {
    let server = Server::start(policy).await;
    let keys = KeyPair::generate();
    server.add(&keys).await;
    let friend = server.connect(&keys).await;
    (server, keys, friend)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_is_for_these_bytes_and_this_transfer() {
    let (server, keys, friend) = pair(Policy::ManualApprove).await;
    let tree = server.publish("a", "a.epub", &noise(1, 100_000)).await;
    assert_eq!(friend.ask("1", "a").await, "pending");
    friend.cannot_read(&tree).await;
    let transfer = server.transfer(&server.outgoing()[0].id);
    transfer.approve().await.unwrap();
    friend.until("1", "granted").await;
    friend.reads(&tree).await;
    // What goes on stays approved: over a lost connection, and a restart of neither bytes nor book.
    friend.mux.close();
    let friend = server.connect(&keys).await;
    friend.ask_until("1", "a", "granted").await;
    friend.reads(&tree).await;
    friend.send(3, json!({"id": "1"})).await;
    assert_eq!(soon(transfer.done()).await.unwrap().state, State::Completed);
    // Over, it is asked like any other.
    assert_eq!(friend.ask("1", "a").await, "pending");
    friend.cannot_read(&tree).await;
    // Approved again, it is for what is there, and not for what comes in its place.
    transfer.approve().await.unwrap();
    friend.until("1", "granted").await;
    let other = server.publish("a", "b.epub", &noise(2, 90_000)).await;
    friend.until("1", "pending").await;
    friend.cannot_read(&tree).await;
    friend.cannot_read(&other).await;
    assert_eq!(transfer.info().unwrap().state, State::AwaitingApproval);
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_only_touched_stays_approved() {
    let (server, keys, friend) = pair(Policy::ManualApprove).await;
    let tree = server.publish("a", "a.epub", &noise(1, 100_000)).await;
    friend.ask("1", "a").await;
    server.transfer(&server.outgoing()[0].id).approve().await.unwrap();
    friend.until("1", "granted").await;
    friend.mux.close();
    server.publish("a", "a.epub", &noise(1, 100_000)).await;
    let friend = server.connect(&keys).await;
    friend.ask_until("1", "a", "granted").await;
    friend.reads(&tree).await;
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_was_removed_and_added_again_begins_anew() {
    let (server, keys, friend) = pair(Policy::ManualApprove).await;
    let tree = server.publish("a", "a.epub", &noise(1, 100_000)).await;
    for id in ["1", "2", "3"] {
        friend.ask(id, "a").await;
        server.transfer(&server.outgoing()[0].id).approve().await.unwrap();
        friend.until(id, "granted").await;
    }
    friend.send(3, json!({"id": "1"})).await;
    friend.send(2, json!({"id": "2"})).await;
    friend.drain().await;
    server.node.peers().remove(&keys.public_key()).await.unwrap();
    let over = [State::Completed, State::Cancelled, State::Cancelled];
    let mut states: Vec<_> = server.outgoing().iter().map(|info| info.state).collect();
    states.reverse();
    assert_eq!(states, over);
    friend.is_hung_up_on().await;
    server.add(&keys).await;
    let friend = server.connect(&keys).await;
    assert_eq!(friend.ask("1", "a").await, "pending");
    assert_eq!(friend.ask("2", "a").await, "denied");
    assert_eq!(friend.ask("3", "a").await, "denied");
    assert_eq!(friend.ask("4", "a").await, "pending");
    friend.cannot_read(&tree).await;
    server.close().await;
}

/// A server that sends slowly, with a large book on its way.
async fn streaming() -> (Server, KeyPair, Friend, alex_p2p::hypercore::StaticTree) {
    let mut server = Server::start(Policy::AutoAccept).await;
    server.node.close().await;
    let bootstrap = server.testnet.bootstrap().iter().map(ToString::to_string).collect();
    let limits = Limits { upload_bytes_per_second: NonZeroU32::new(400_000), ..Limits::default() };
    let options = NodeOptions {
        bootstrap: Some(bootstrap),
        host: Some("127.0.0.1".into()),
        port: Some(0),
        policy: Policy::AutoAccept,
        limits,
        ..NodeOptions::new(server.dir.path().join("data"))
    };
    server.node = Node::open(options).await.unwrap();
    let tree = server.publish("a", "a.epub", &noise(1, 8_000_000)).await;
    let keys = KeyPair::generate();
    server.add(&keys).await;
    let friend = server.connect(&keys).await;
    friend.ask_until("1", "a", "granted").await;
    (server, keys, friend, tree)
}

/// Fetches until the stream flows, does `decide`, and expects the reply's status and that no more comes.
async fn stops_in_the_middle(
    decide: impl AsyncFnOnce(&Server, &KeyPair),
    status: &str,
    reason: &str,
) {
    let (server, keys, friend, tree) = streaming().await;
    let core = friend.fetch(&tree);
    soon(core.subscribe().wait_for(|state| state.blocks >= 2)).await.unwrap();
    decide(&server, &keys).await;
    let reply = friend.until("1", status).await;
    assert!(reply["reason"].as_str().unwrap().contains(reason), "{reply}");
    // What was on the wire arrives; then nothing more does.
    friend.drain().await;
    let before = core.state().blocks;
    assert!(before < tree.length, "it was too fast to be stopped");
    friend.cannot_read(&tree).await;
    assert_eq!(core.state().blocks, before);
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_ends_what_flows() {
    let decide = async |server: &Server, keys: &KeyPair| {
        server.set_policy(keys, Policy::MetadataOnly).await;
    };
    stops_in_the_middle(decide, "denied", "catalog only").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_asks_a_person_holds_what_flows() {
    let decide = async |server: &Server, keys: &KeyPair| {
        server.set_policy(keys, Policy::ManualApprove).await;
    };
    stops_in_the_middle(decide, "pending", "approve").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_book_that_is_withdrawn_stops_in_the_middle() {
    let decide = async |server: &Server, _: &KeyPair| server.unpublish("a").await;
    stops_in_the_middle(decide, "unavailable", "not in the catalog").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_book_that_is_left_out_of_a_sync_stops_in_the_middle() {
    let decide = async |server: &Server, _: &KeyPair| {
        server.node.catalog().sync(Vec::new()).await.unwrap();
    };
    stops_in_the_middle(decide, "unavailable", "not in the catalog").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_book_that_is_replaced_goes_on_with_the_new_bytes() {
    let (server, _, friend, tree) = streaming().await;
    let core = friend.fetch(&tree);
    soon(core.subscribe().wait_for(|state| state.blocks >= 2)).await.unwrap();
    let other = server.publish("a", "b.epub", &noise(2, 90_000)).await;
    let reply = friend.until("1", "pending").await;
    assert!(reply["reason"].as_str().unwrap().contains("replaced"), "{reply}");
    let reply = friend.until("1", "granted").await;
    assert_eq!(reply["byteLength"], 90_000);
    friend.reads(&other).await;
    friend.cannot_read(&tree).await;
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_book_whose_title_changes_flows_on() {
    let (server, _, friend, tree) = streaming().await;
    let core = friend.fetch(&tree);
    let mut changes = core.subscribe();
    soon(changes.wait_for(|state| state.blocks >= 2)).await.unwrap();
    let entry = json!({"id": "a", "title": "Another title", "format": "epub"});
    let path = server.dir.path().join("a.epub");
    let book = Book {
        entry: serde_json::from_value(entry).unwrap(),
        source: Some(BookSource::Path(path)),
    };
    assert_eq!(server.node.catalog().publish(vec![book]).await.unwrap().updated, 1);
    let before = core.state().blocks;
    soon(changes.wait_for(|state| state.blocks >= before + 2)).await.unwrap();
    assert_eq!(server.outgoing()[0].state, State::Transferring);
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_asked_again_when_its_turn_comes() {
    let (server, keys, friend) = pair(Policy::AutoAccept).await;
    let mut trees = Vec::new();
    for n in 0..10 {
        let id = format!("book {n}");
        trees.push(server.publish(&id, &format!("{n}.epub"), &noise(n + 1, 600_000)).await);
    }
    for n in 0..10 {
        friend.request(&n.to_string(), &format!("book {n}")).await;
    }
    let waits = |info: &TransferInfo| info.state == State::Queued && info.reason.is_some();
    let waiting = || server.outgoing().into_iter().filter(waits);
    while waiting().count() < 2 {
        friend.drain().await;
    }
    // The owner changes his mind about both that wait, and about one person.
    let books: Vec<_> = waiting().map(|info| info.book_id).collect();
    server.unpublish(&books[0]).await;
    assert_eq!(waiting().count(), 1);
    let number: usize = books[1].trim_start_matches("book ").parse().unwrap();
    server.set_policy(&keys, Policy::ManualApprove).await;
    for n in 0..10 {
        friend.send(3, json!({"id": n.to_string()})).await;
    }
    friend.cannot_read(&trees[number]).await;
    assert!(server.outgoing().iter().all(|info| info.state != State::Transferring));
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_to_auto_accept_grants_what_waits() {
    let (server, keys, friend) = pair(Policy::ManualApprove).await;
    let tree = server.publish("a", "a.epub", &noise(1, 100_000)).await;
    assert_eq!(friend.ask("1", "a").await, "pending");
    server.set_policy(&keys, Policy::AutoAccept).await;
    friend.until("1", "granted").await;
    friend.reads(&tree).await;
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn finished_ids_open_no_more_requests_than_new_ones() {
    let (server, keys, friend) = pair(Policy::AutoAccept).await;
    server.publish("a", "a.epub", &noise(1, 10_000)).await;
    for n in 0..100 {
        friend.ask_until(&n.to_string(), "a", "granted").await;
        friend.send(3, json!({"id": n.to_string()})).await;
    }
    friend.drain().await;
    // Held back by a person, none of them ends by itself.
    server.set_policy(&keys, Policy::ManualApprove).await;
    for n in 0..100 {
        friend.request(&n.to_string(), "a").await;
    }
    friend.drain().await;
    let open = server.outgoing().iter().filter(|info| !info.state.is_terminal()).count();
    assert_eq!(open, 16);
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_right_after_a_request_counts() {
    let (server, _, friend) = pair(Policy::AutoAccept).await;
    server.publish("a", "a.epub", &noise(1, 10_000)).await;
    for n in 0..10 {
        friend.request(&n.to_string(), "a").await;
        friend.send(2 + n % 2, json!({"id": n.to_string()})).await;
    }
    friend.drain().await;
    for (n, info) in server.outgoing().iter().rev().enumerate() {
        let info = soon(server.transfer(&info.id).done()).await.unwrap();
        let expected = if n % 2 == 0 { State::Cancelled } else { State::Completed };
        assert_eq!(info.state, expected, "{n}");
    }
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_program_says_of_a_failure_stays_here() {
    let (server, _, friend) = pair(Policy::AutoAccept).await;
    let secret = "ENOENT: no such file, open '/srv/books/private shelf/a diary.epub'";
    let provider = Arc::new(move |_| {
        let failed: std::pin::Pin<Box<dyn Future<Output = _> + Send>> =
            Box::pin(async move { Err(secret.to_owned()) });
        failed
    });
    let entry = serde_json::from_value(json!({"id": "a", "title": "A"})).unwrap();
    let book = Book { entry, source: Some(BookSource::OnDemand(provider)) };
    server.node.catalog().publish(vec![book]).await.unwrap();
    server.publish_file("b", server.dir.path().join("not here.epub")).await.unwrap();
    for id in ["a", "b"] {
        let reply = friend.ask_until(id, id, "unavailable").await;
        assert_eq!(reply["reason"], "the sender does not have the book's bytes now");
    }
    let told = server.outgoing().into_iter().find(|info| info.book_id == "a").unwrap();
    assert!(told.reason.unwrap().contains(secret), "its owner reads it all");
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_done_without_a_byte_is_not_shown_as_sent() {
    let (server, _, friend) = pair(Policy::AutoAccept).await;
    let tree = server.publish("a", "a.epub", &noise(1, 100_000)).await;
    friend.ask_until("1", "a", "granted").await;
    friend.send(3, json!({"id": "1"})).await;
    friend.ask_until("2", "a", "granted").await;
    friend.reads(&tree).await;
    friend.send(3, json!({"id": "2"})).await;
    friend.drain().await;
    let mut sent = Vec::new();
    for info in server.outgoing() {
        let info = soon(server.transfer(&info.id).done()).await.unwrap();
        assert_eq!(info.state, State::Completed);
        sent.push(info.progress.bytes);
    }
    assert_eq!(sent, [100_000, 0]);
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hellos_without_end_hold_up_nobody_and_end_the_connection() {
    let (server, keys, friend) = pair(Policy::ManualApprove).await;
    let Friend { mux, channel, .. } = friend;
    channel.close();
    let flood = tokio::spawn(async move {
        let mut said = 0;
        while !mux.is_closed() {
            let key = KeyPair::generate().public_key().to_z32();
            let hello = json!({"version": 1, "nickname": format!("evil {said}"), "feedKey": key});
            let Some(channel) = open(&mux, &hello) else { break };
            if channel.opened().await.is_ok() {
                said += 1;
            }
            channel.close();
        }
        said
    });
    let began = Instant::now();
    server.node.peers().block(&keys.public_key()).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(soon(flood).await.unwrap() <= 32);
    assert_eq!(server.node.peers().get(&keys.public_key()).unwrap().status, PeerStatus::Blocked);
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_of_several_hellos_is_learned() {
    let (server, keys, friend) = pair(Policy::ManualApprove).await;
    let mut channel = friend.channel;
    for n in 0..5 {
        channel.close();
        let hello = json!({"version": 1, "nickname": format!("name {n}")});
        channel = open(&friend.mux, &hello).unwrap();
        // A reject is no error: the server has not let go of the one before.
        while soon(channel.opened()).await.is_err() {
            channel = open(&friend.mux, &hello).unwrap();
        }
    }
    let mut events = server.node.events().subscribe(None);
    let name = || server.node.peers().get(&keys.public_key()).unwrap().name;
    soon(async {
        while name().as_deref() != Some("name 4") {
            events.next().await;
        }
    })
    .await;
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_lead_nowhere_end_the_connection() {
    for kind in [0, 1, 2, 3, 99] {
        let (server, keys, friend) = pair(Policy::AutoAccept).await;
        server.publish("a", "a.epub", &noise(1, 10_000)).await;
        friend.request("known", "a").await;
        friend.until("known", "granted").await;
        let mut sent = 0u64;
        while !friend.mux.is_closed() && sent < 1_000_000 {
            let message = match kind {
                // A request that is repeated, with nothing new in it.
                0 => json!({"id": "known", "bookId": "a"}),
                1 => json!({"id": format!("{sent}"), "status": "pending"}),
                _ => json!({"id": format!("{sent}")}),
            };
            friend.send(kind, message).await;
            sent += 1;
            while let Some(Some(_)) = now(friend.channel.recv()) {}
        }
        assert!(friend.mux.is_closed(), "kind {kind}");
        // It may come back, and is served as before.
        let friend = server.connect(&keys).await;
        friend.ask_until("again", "a", "granted").await;
        server.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_with_an_old_catalog_may_ask_for_all_of_it() {
    let (server, _, friend) = pair(Policy::AutoAccept).await;
    for n in 0..2000 {
        friend.request(&n.to_string(), "a book that is gone").await;
        if n % 16 == 15 {
            friend.reply(&n.to_string()).await;
        }
    }
    assert!(!friend.mux.is_closed());
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_counted_over_all_channels_of_a_connection() {
    let (server, _, friend) = pair(Policy::AutoAccept).await;
    let mut channel = friend.channel;
    for _ in 0..8 {
        for _ in 0..8 {
            let _ = channel.send(0, b"nonsense").await;
        }
        channel.close();
        let Some(next) = open(&friend.mux, &json!({"version": 1})) else { break };
        channel = next;
        if channel.opened().await.is_err() {
            break;
        }
    }
    soon(friend.mux.closed()).await;
    server.close().await;
}

/// What a cancel-safe future gives without waiting.
fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match future.as_mut().poll(&mut context) {
        std::task::Poll::Ready(value) => Some(value),
        std::task::Poll::Pending => None,
    }
}
