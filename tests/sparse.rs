//! Parts of cores over connections in memory: single blocks, ranges, bytes, blocks given up, slow peers.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod replicas;

use std::num::NonZeroU32;
use std::ops::Range;
use std::time::Duration;

use alex_p2p::hypercore::replicator::{CoreHandle, Download, EventKind, Policy, Replicator};
use alex_p2p::hypercore::{Core, CoreError, OpenOptions, StorageError};
use tokio::time::timeout;

use replicas::{Node, PATIENCE, block, link};

async fn soon<T>(work: impl Future<Output = T>) -> T {
    timeout(PATIENCE, work).await.unwrap()
}

async fn fetched(handle: &CoreHandle, blocks: Range<u64>) {
    soon(handle.download(blocks.clone()).done()).await.unwrap();
    for index in blocks {
        assert_eq!(handle.core().get(index).unwrap(), Some(block(index)));
    }
}

/// A core that was served in full, or only whose length is followed.
async fn served(length: u64, policy: Policy) -> (Node, Core, Node, CoreHandle) {
    let (writer, reader) = (Node::new(), Node::new());
    let core = writer.writer(length).await;
    writer.replicator.add(core.clone(), Policy::serve());
    let handle = reader.add(core.key(), policy);
    link(&writer, &reader).await;
    (writer, core, reader, handle)
}

#[tokio::test]
async fn blocks_and_ranges_are_fetched_on_demand_and_nothing_else() {
    for policy in [Policy::on_demand(), Policy::serve()] {
        let (_writer, core, _reader, handle) = served(5000, policy).await;
        assert_eq!(soon(handle.get(4321)).await.unwrap(), block(4321));
        fetched(&handle, 100..200).await;
        assert_eq!(handle.core().state().blocks, 101);
        assert_eq!(handle.core().length(), core.length());
        fetched(&handle, 150..250).await;
        assert_eq!(soon(handle.get(7)).await.unwrap(), block(7));
        assert_eq!(handle.core().state().blocks, 152);
    }
}

#[tokio::test]
async fn a_block_that_does_not_exist_yet_is_waited_for() {
    let (_writer, core, _reader, handle) = served(3, Policy::on_demand()).await;
    let waiting = tokio::spawn({
        let handle = handle.clone();
        async move { handle.get(4).await.unwrap() }
    });
    core.append(vec![block(3), block(4), block(5)]).await.unwrap();
    assert_eq!(soon(waiting).await.unwrap(), block(4));
    let all = handle.download(0..u64::MAX);
    core.append((6..100).map(block).collect()).await.unwrap();
    let mut changes = handle.core().subscribe();
    soon(changes.wait_for(|now| now.contiguous_length == 100)).await.unwrap();
    drop(all);
}

#[tokio::test]
async fn a_range_that_nobody_waits_for_any_more_is_not_fetched() {
    let (_writer, _core, _reader, handle) = served(5000, Policy::serve()).await;
    drop(handle.download(0..5000));
    assert_eq!(soon(handle.get(4999)).await.unwrap(), block(4999));
    assert!(handle.core().state().blocks < 2000, "{:?}", handle.core().state());
}

#[tokio::test]
async fn a_byte_is_found_with_hashes_alone() {
    let (_writer, core, _reader, handle) = served(3000, Policy::on_demand()).await;
    for index in [0, 1, 777, 1024, 2047, 2999] {
        let offset = core.byte_offset(index).unwrap();
        assert_eq!(soon(handle.seek(offset)).await.unwrap(), (index, 0));
        assert_eq!(soon(handle.seek(offset + 3)).await.unwrap(), (index, 3));
    }
    assert_eq!(handle.core().state().blocks, 0);
    let end = core.byte_length();
    let beyond = timeout(Duration::from_millis(100), handle.seek(end)).await;
    assert!(beyond.is_err(), "it is waited for");
    let waiting = tokio::spawn({
        let handle = handle.clone();
        async move { handle.seek(end + 1).await.unwrap() }
    });
    core.append(vec![block(3000)]).await.unwrap();
    assert_eq!(soon(waiting).await.unwrap(), (3000, 1));
}

#[tokio::test]
async fn what_peers_have_in_parts_is_put_together() {
    let (writer, core, first, left) = served(1000, Policy::on_demand()).await;
    let (second, reader) = (Node::new(), Node::new());
    let right = second.add(core.key(), Policy::on_demand());
    link(&writer, &second).await;
    fetched(&left, 0..500).await;
    fetched(&right, 500..1000).await;
    drop(writer);
    let copy = reader.add(core.key(), Policy::fetch());
    link(&first, &reader).await;
    link(&second, &reader).await;
    let mut changes = copy.core().subscribe();
    soon(changes.wait_for(|now| now.contiguous_length == 1000)).await.unwrap();
    let shares: Vec<u64> = copy.peers().iter().map(|peer| peer.downloaded_blocks).collect();
    assert_eq!(shares, [500, 500]);
}

#[tokio::test]
async fn blocks_that_were_given_up_are_told_of_and_fetched_again_when_needed() {
    let (writer, core, middle, handle) = served(200, Policy::on_demand()).await;
    fetched(&handle, 0..200).await;
    let reader = Node::new();
    let copy = reader.add(core.key(), Policy::on_demand());
    link(&middle, &reader).await;
    assert_eq!(soon(copy.get(3)).await.unwrap(), block(3));
    assert_eq!(handle.clear(50..150).await.unwrap(), 100);
    assert_eq!(handle.core().contiguous_length(), 50);
    // The peer hears of it, and asks somebody else.
    fetched(&copy, 0..50).await;
    let refused = timeout(Duration::from_millis(200), copy.get(60)).await;
    assert!(refused.is_err());
    link(&writer, &reader).await;
    assert_eq!(soon(copy.get(60)).await.unwrap(), block(60));
    fetched(&handle, 40..160).await;
}

#[tokio::test]
async fn a_slow_peer_does_not_hold_up_what_a_quick_one_has() {
    let slow = Node::with(Replicator::with_upload_limit(NonZeroU32::new(2000).unwrap()));
    let (quick, reader) = (Node::new(), Node::new());
    let core = slow.writer(400).await;
    slow.replicator.add(core.clone(), Policy::serve());
    let copy = Core::open(&quick.storage, *core.key(), OpenOptions::default()).unwrap();
    // The second peer got its copy by other means.
    let helper = Node::new();
    helper.replicator.add(
        Core::open(&slow.storage.after_crash(), *core.key(), OpenOptions::default()).unwrap(),
        Policy::serve(),
    );
    quick.replicator.add(copy.clone(), Policy::fetch());
    link(&helper, &quick).await;
    soon(copy.subscribe().wait_for(|now| now.contiguous_length == 400)).await.unwrap();
    let handle = reader.add(core.key(), Policy::fetch());
    link(&slow, &reader).await;
    let mut changes = handle.core().subscribe();
    soon(changes.wait_for(|now| now.blocks > 0)).await.unwrap();
    link(&quick, &reader).await;
    // Alone, the slow one would take eight seconds.
    let whole = changes.wait_for(|now| now.contiguous_length == 400);
    timeout(Duration::from_secs(6), whole).await.unwrap().unwrap();
    assert!(handle.peers().iter().map(|peer| peer.hotswaps).sum::<u64>() > 0);
}

#[tokio::test]
async fn waiting_ends_with_the_core_its_replication_and_its_storage() {
    let (_writer, core, reader, handle) = served(10, Policy::on_demand()).await;
    let ends = |handle: &CoreHandle| {
        let handle = handle.clone();
        tokio::spawn(async move { handle.get(99).await })
    };
    let waiting = ends(&handle);
    handle.close();
    assert!(matches!(soon(waiting).await.unwrap(), Err(CoreError::Closed)));
    handle.core().close().await.unwrap();
    let handle = reader.add(core.key(), Policy::on_demand());
    let waiting = ends(&handle);
    tokio::task::yield_now().await;
    handle.core().close().await.unwrap();
    assert!(matches!(soon(waiting).await.unwrap(), Err(CoreError::Closed)));

    let handle = reader.add(core.key(), Policy::on_demand());
    let mut events = reader.replicator.events();
    let kind = alex_p2p::hypercore::storage::StorageErrorKind::Full;
    reader.storage.fail_commits(Some(StorageError::new(kind, "no space")));
    assert_eq!(soon(handle.get(0)).await.unwrap(), block(0));
    assert!(handle.core().flush().await.is_err());
    let fetching = handle.download(0..10);
    let failed = soon(fetching.done()).await;
    assert!(matches!(failed, Err(CoreError::Storage(_))), "{failed:?}");
    while !matches!(soon(events.recv()).await.unwrap().kind, EventKind::Failed { .. }) {}
}

#[tokio::test]
async fn switching_between_everything_and_on_demand_takes_effect_while_connected() {
    let (_writer, core, _reader, handle) = served(500, Policy::on_demand()).await;
    assert_eq!(soon(handle.get(9)).await.unwrap(), block(9));
    assert_eq!(handle.core().state().blocks, 1);
    handle.set_download(Download::All);
    let mut changes = handle.core().subscribe();
    soon(changes.wait_for(|now| now.contiguous_length == 500)).await.unwrap();
    handle.set_download(Download::OnDemand);
    core.append(vec![block(500)]).await.unwrap();
    soon(changes.wait_for(|now| now.length == 501)).await.unwrap();
    assert_eq!(soon(handle.get(500)).await.unwrap(), block(500));
}
