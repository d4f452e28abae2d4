//! Two replicators over connections in memory: whole logs, live ones, many at once, several peers,
//! disconnects, refusals, and peers that break the protocol.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod replicas;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alex_p2p::crypto::{Hash, KeyPair, PublicKey, keyed_hash, namespace};
use alex_p2p::hypercore::messages::{Handshake, Message, NoData, NoDataReason, Range, Sync, kind};
use alex_p2p::hypercore::replicator::{Download, EventKind, PROTOCOL, Policy, Violation};
use alex_p2p::hypercore::{Core, CreateOptions, Manifest};
use alex_p2p::protomux::{Channel, ChannelOptions, CloseReason, Protomux};
use bytes::Bytes;
use tokio::time::timeout;

use replicas::{Node, PATIENCE, append, block, connect, link};

async fn whole(core: &Core, length: u64) {
    let mut changes = core.subscribe();
    let done = changes.wait_for(|state| state.contiguous_length >= length);
    timeout(PATIENCE, done).await.unwrap_or_else(|_| panic!("{:?}", core.state())).unwrap();
    for i in 0..length {
        assert_eq!(core.get(i).unwrap(), Some(block(i)));
    }
}

#[tokio::test]
async fn a_log_arrives_whole_and_then_live_and_after_a_reconnect() {
    let (writer, reader) = (Node::new(), Node::new());
    let core = writer.writer(3000).await;
    writer.serve(&core);
    let copy = reader.fetch(core.key());
    let (_, right) = link(&writer, &reader).await;
    whole(copy.core(), 3000).await;
    for _ in 0..50 {
        append(&core, 1).await;
    }
    whole(copy.core(), 3050).await;
    right.close();
    append(&core, 10).await;
    link(&writer, &reader).await;
    whole(copy.core(), 3060).await;
}

#[tokio::test]
async fn forty_cores_go_both_ways_on_one_connection() {
    let (a, b) = (Node::new(), Node::new());
    let mut copies = Vec::new();
    for i in 0..40 {
        let (from, to) = if i % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let core = from.writer(20 + i).await;
        from.serve(&core);
        copies.push((to.fetch(core.key()), core));
    }
    link(&a, &b).await;
    for (copy, core) in &copies {
        whole(copy.core(), core.length()).await;
    }
    for (_, core) in &copies {
        append(core, 1).await;
    }
    for (copy, core) in &copies {
        whole(copy.core(), core.length()).await;
    }
}

#[tokio::test]
async fn a_core_added_after_the_connection_is_opened_on_it() {
    let (a, b) = (Node::new(), Node::new());
    link(&a, &b).await;
    let core = a.writer(10).await;
    let copy = b.fetch(core.key());
    // b's open is rejected; a's comes when a has it.
    tokio::task::yield_now().await;
    a.serve(&core);
    whole(copy.core(), 10).await;
}

#[tokio::test]
async fn two_peers_share_the_work_and_no_block_comes_twice() {
    let (first, second, reader) = (Node::new(), Node::new(), Node::new());
    let core = first.writer(2000).await;
    first.serve(&core);
    let mirror = second.fetch(core.key());
    link(&first, &second).await;
    whole(mirror.core(), 2000).await;
    let copy = reader.fetch(core.key());
    link(&first, &reader).await;
    link(&second, &reader).await;
    whole(copy.core(), 2000).await;
    let blocks: u64 = copy.peers().iter().map(|peer| peer.downloaded_blocks).sum();
    assert_eq!(blocks, 2000);
}

#[tokio::test]
async fn a_reader_passes_on_what_it_has() {
    let (writer, middle, reader) = (Node::new(), Node::new(), Node::new());
    let core = writer.writer(100).await;
    writer.serve(&core);
    middle.fetch(core.key());
    let copy = reader.fetch(core.key());
    link(&middle, &reader).await;
    link(&writer, &middle).await;
    whole(copy.core(), 100).await;
    append(&core, 5).await;
    whole(copy.core(), 105).await;
}

#[tokio::test]
async fn a_peer_that_leaves_in_the_middle_hands_over_to_another() {
    let (first, second, reader) = (Node::new(), Node::new(), Node::new());
    let core = first.writer(20_000).await;
    first.serve(&core);
    let mirror = second.fetch(core.key());
    let (left, _) = link(&first, &second).await;
    whole(mirror.core(), 20_000).await;
    left.close();
    let copy = reader.fetch(core.key());
    let (_, first_link) = link(&first, &reader).await;
    let mut changes = copy.core().subscribe();
    changes.wait_for(|state| state.blocks > 100).await.unwrap();
    first_link.close();
    link(&second, &reader).await;
    whole(copy.core(), 20_000).await;
}

#[tokio::test]
async fn upload_is_asked_for_every_request_and_can_change() {
    let (writer, reader) = (Node::new(), Node::new());
    let core = writer.writer(50).await;
    let (allowed, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(HashSet::new())));
    let (allow, ask) = (Arc::clone(&allowed), Arc::clone(&asked));
    let upload = Arc::new(move |peer: &PublicKey| {
        ask.lock().unwrap().insert(*peer);
        allow.load(Ordering::SeqCst)
    });
    let handle = writer.replicator.add(core.clone(), Policy { upload, ..Policy::serve() });
    let copy = reader.fetch(core.key());
    link(&writer, &reader).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(copy.core().state().blocks, 0);
    assert!(asked.lock().unwrap().contains(&reader.keys.public_key()));
    allowed.store(true, Ordering::SeqCst);
    handle.refresh();
    whole(copy.core(), 50).await;
}

#[tokio::test]
async fn a_core_does_not_exist_for_peers_it_is_not_meant_for() {
    let (writer, reader, stranger) = (Node::new(), Node::new(), Node::new());
    let core = writer.writer(5).await;
    let friend = reader.keys.public_key();
    let policy = Policy::serve().only_with(move |peer| *peer == friend);
    writer.replicator.add(core.clone(), policy);
    let (for_friend, for_stranger) = (reader.fetch(core.key()), stranger.fetch(core.key()));
    link(&writer, &stranger).await;
    link(&writer, &reader).await;
    whole(for_friend.core(), 5).await;
    assert_eq!(for_stranger.peers(), []);
    assert_eq!(for_stranger.core().length(), 0);
}

#[tokio::test]
async fn downloading_can_be_switched_on_and_the_core_removed() {
    let (writer, reader) = (Node::new(), Node::new());
    let core = writer.writer(5).await;
    writer.serve(&core);
    let copy = reader.replicator.add(reader.reader(core.key()), Policy::serve());
    link(&writer, &reader).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(copy.core().length(), 0);
    copy.set_download(Download::All);
    whole(copy.core(), 5).await;
    copy.close();
    copy.close();
    append(&core, 1).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(copy.core().length(), 5);
}

/// Two nodes that write one log, which they got by copying a key pair.
async fn written_twice(first: u64, second: u64) -> (Node, Core, Node, Core) {
    let (a, b, keys) = (Node::new(), Node::new(), KeyPair::generate());
    let mut cores = Vec::new();
    let other = |index| Bytes::from(format!("other {index}"));
    for (node, blocks) in
        [(&a, (0..first).map(block).collect()), (&b, (0..second).map(other).collect::<Vec<_>>())]
    {
        let manifest = Manifest::single(keys.public_key());
        let options = CreateOptions { manifest, writer: Some(keys.clone()), compat: false };
        let core = Core::create(&node.storage, options).unwrap();
        core.append(blocks).await.unwrap();
        node.serve(&core);
        cores.push(core);
    }
    let second = cores.pop().unwrap();
    (a, cores.pop().unwrap(), b, second)
}

async fn written_elsewhere(node: &Node, link: impl Future<Output = (Protomux, Protomux)>) -> u64 {
    let mut events = node.replicator.events();
    let _link = link.await;
    loop {
        let event = timeout(PATIENCE, events.recv()).await.unwrap().unwrap();
        match event.kind {
            EventKind::WrittenElsewhere { length } => return length,
            EventKind::Violation { violation } => panic!("{violation}"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_log_written_twice_is_noticed_at_first_contact_by_whoever_can() {
    // A reader of the first meets the second writer, which is shorter, as long, and longer.
    for second in [3, 5, 9] {
        let (a, core, b, _other) = written_twice(5, second).await;
        let reader = Node::new();
        let copy = reader.fetch(core.key());
        link(&a, &reader).await;
        whole(copy.core(), 5).await;
        let (noticed_by, peer) = if second <= 5 { (&b, &reader) } else { (&reader, &b) };
        let proven = written_elsewhere(noticed_by, link(noticed_by, peer)).await;
        assert_eq!(proven, second.min(5));
        whole(copy.core(), 5).await;
    }
}

#[tokio::test]
async fn a_writer_set_back_to_before_a_cut_hears_of_the_later_fork() {
    let (a, core, b, older) = written_twice(5, 5).await;
    core.truncate(3, None).await.unwrap();
    append(&core, 4).await;
    let reader = Node::new();
    let copy = reader.fetch(core.key());
    link(&a, &reader).await;
    at_fork(copy.core(), 1, 7).await;
    assert_eq!(written_elsewhere(&b, link(&b, &reader)).await, 7);
    assert_eq!((older.fork(), older.length()), (0, 5));
}

/// Waits until a copy is whole at a fork.
async fn at_fork(core: &Core, fork: u64, length: u64) {
    let mut changes = core.subscribe();
    let done = changes.wait_for(|state| {
        (state.fork, state.length, state.contiguous_length) == (fork, length, length)
    });
    timeout(PATIENCE, done).await.unwrap_or_else(|_| panic!("{:?}", core.state())).unwrap();
}

#[tokio::test]
async fn readers_follow_forks_with_several_peers_and_pass_them_on() {
    let (writer, middle, end) = (Node::new(), Node::new(), Node::new());
    let core = writer.writer(200).await;
    writer.serve(&core);
    let (copy, last) = (middle.fetch(core.key()), end.fetch(core.key()));
    for (a, b) in [(&writer, &middle), (&middle, &end), (&end, &writer)] {
        link(a, b).await;
    }
    whole(last.core(), 200).await;
    for (fork, cut) in (1..).zip([199, 64, 63, 100, 100, 0, 7]) {
        let cut = core.length().min(cut);
        core.truncate(cut, None).await.unwrap();
        append(&core, 90).await;
        for copy in [&copy, &last] {
            at_fork(copy.core(), fork, cut + 90).await;
            assert_eq!(copy.core().tree_hash(), core.tree_hash());
            whole(copy.core(), cut + 90).await;
        }
    }
}

#[tokio::test]
async fn an_honest_reader_is_no_second_writer() {
    let (writer, reader) = (Node::new(), Node::new());
    let core = writer.writer(7).await;
    writer.serve(&core);
    let copy = reader.fetch(core.key());
    let (_, right) = link(&writer, &reader).await;
    whole(copy.core(), 7).await;
    right.close();
    append(&core, 6).await;
    let mut events = writer.replicator.events();
    link(&writer, &reader).await;
    whole(copy.core(), 13).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    while let Ok(event) = events.try_recv() {
        assert!(matches!(event.kind, EventKind::PeerJoined | EventKind::PeerLeft), "{event:?}");
    }
}

/// A peer that speaks by hand: the channel of `key` on a connection to `node`.
async fn by_hand(node: &Node, key: &Hash, capable: bool) -> (Protomux, Channel) {
    let (ours, theirs) = connect(&KeyPair::generate(), &node.keys).await;
    node.replicator.attach(&theirs);
    let right = keyed_hash(ours.handshake_hash(), &[&namespace("hypercore", 1), key]);
    let capability = if capable { right } else { [0; 32] };
    let channel = ours
        .open(ChannelOptions {
            protocol: PROTOCOL.into(),
            id: keyed_hash(key, &[b"hypercore"]).to_vec(),
            handshake: Handshake { seeks: true, capability }.encode(),
            ..ChannelOptions::default()
        })
        .unwrap();
    ours.start();
    theirs.start();
    (ours, channel)
}

async fn put(channel: &Channel, message: Message) {
    channel.send(message.kind(), &message.encode()).await.unwrap();
}

/// The violation that closes the connection of a peer that does this to a reader of 10 blocks.
async fn violation(messages: Vec<(u32, Bytes)>) -> Violation {
    let (writer, reader) = (Node::new(), Node::new());
    let core = writer.writer(10).await;
    reader.fetch(core.key());
    violation_of(&reader, core.key(), messages).await
}

async fn violation_of(node: &Node, key: &Hash, messages: Vec<(u32, Bytes)>) -> Violation {
    let mut events = node.replicator.events();
    let (mux, channel) = by_hand(node, key, true).await;
    for (kind, bytes) in messages {
        let _ = channel.send(kind, &bytes).await;
    }
    let closed = timeout(PATIENCE, mux.closed()).await.unwrap();
    assert_ne!(closed, CloseReason::Local);
    loop {
        if let EventKind::Violation { violation } = events.recv().await.unwrap().kind {
            return violation;
        }
    }
}

#[tokio::test]
async fn malformed_messages_close_the_connection() {
    for (kind, bytes) in [
        (kind::SYNC, &[1][..]),
        (kind::DATA, &[1, 1, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255]),
        (kind::BITFIELD, &[0, 255, 0, 0, 0, 0, 0, 1, 0, 0]),
        (kind::RANGE, &[0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1]),
        (kind::REQUEST, &[]),
    ] {
        let violation = violation(vec![(kind, Bytes::copy_from_slice(bytes))]).await;
        assert!(matches!(violation, Violation::Malformed(_)), "{kind}: {violation}");
    }
}

#[tokio::test]
async fn requests_without_end_close_the_connection() {
    let nonsense = (0..10_000u64).map(|id| {
        let request = alex_p2p::hypercore::Request {
            id: id + 1,
            upgrade: Some(alex_p2p::hypercore::messages::RequestUpgrade { start: 9, length: 0 }),
            ..Default::default()
        };
        (kind::REQUEST, Message::Request(request).encode())
    });
    let node = Node::new();
    let core = node.writer(10).await;
    node.serve(&core);
    let violation = violation_of(&node, core.key(), nonsense.collect()).await;
    let expected = [Violation::InvalidRequests, Violation::TooManyRequests];
    assert!(expected.contains(&violation), "{violation}");
}

#[tokio::test]
async fn data_nobody_asked_for_closes_the_connection() {
    let data = alex_p2p::hypercore::Data { request: 99, ..Default::default() };
    let sent = vec![(kind::DATA, Message::Data(data).encode())];
    assert_eq!(violation(sent).await, Violation::Unasked);
}

#[tokio::test]
async fn a_wrong_capability_closes_the_connection_and_learns_nothing() {
    let node = Node::new();
    let core = node.writer(10).await;
    node.serve(&core);
    let mut events = node.replicator.events();
    let (mux, channel) = by_hand(&node, core.key(), false).await;
    timeout(PATIENCE, mux.closed()).await.unwrap();
    assert!(channel.recv().await.is_none());
    let kind = events.recv().await.unwrap().kind;
    assert!(matches!(kind, EventKind::Violation { violation: Violation::Capability }), "{kind:?}");
}

#[tokio::test]
async fn claims_of_everything_cost_nothing_and_are_survived() {
    let (writer, reader) = (Node::new(), Node::new());
    let core = writer.writer(10).await;
    writer.serve(&core);
    let copy = reader.fetch(core.key());
    let (_mux, liar) = by_hand(&reader, core.key(), true).await;
    timeout(PATIENCE, liar.opened()).await.unwrap().unwrap();
    let length = (1 << 53) - 1;
    let sync = Sync { length, uploading: true, can_upgrade: true, ..Sync::default() };
    put(&liar, Message::Sync(sync)).await;
    for start in 0..2000 {
        put(&liar, Message::Range(Range { drop: start % 2 == 1, start, length })).await;
    }
    // It is asked for the upgrade, says no, and the writer gets the next turn.
    loop {
        let message = timeout(PATIENCE, liar.recv()).await.unwrap().unwrap();
        if let Some(Message::Request(request)) =
            Message::decode(message.kind, &message.data).unwrap()
        {
            assert!(request.upgrade.is_some());
            let reason = NoDataReason::NotAvailable;
            put(&liar, Message::NoData(NoData { request: request.id, reason })).await;
            break;
        }
    }
    link(&writer, &reader).await;
    whole(copy.core(), 10).await;
}
