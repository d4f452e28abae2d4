//! Another program that holds the database for longer than anybody waits.

use std::time::Duration;

use alex_p2p::error::ErrorCode;
use alex_p2p::transfer::{Policy, State};

use crate::book;
use crate::support::{Disk, Server, connect_slow, soon, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_held_database_is_named_and_a_transfer_outlives_it() {
    let (senders, receivers) = (Disk::new(), Disk::new());
    let sender = Server::start(&senders, Policy::AutoAccept).await;
    let receiver = Server::start(&receivers, Policy::AutoAccept).await;
    sender.publish("a", &senders.file("a.epub", 12 << 20, 1)).await;
    let _connection = connect_slow(&sender, &receiver).await;
    let transfer = receiver.request(&sender, "a").await;
    until(&transfer, |info| info.progress.bytes > 1 << 20).await;

    let path = receivers.path("p2p.db");
    let (held, is_held) = tokio::sync::oneshot::channel();
    let (let_go, is_let_go) = std::sync::mpsc::channel::<()>();
    let holder = std::thread::spawn(move || {
        let other = rusqlite::Connection::open(path).unwrap();
        other.busy_timeout(Duration::from_secs(30)).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        held.send(()).unwrap();
        is_let_go.recv().unwrap();
        other.execute_batch("ROLLBACK").unwrap();
    });
    is_held.await.unwrap();
    let refused = receiver.catalog.publish(vec![book(1)]).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Busy, "{refused}");
    assert!(refused.message.contains("another program"), "{refused}");
    let_go.send(()).unwrap();
    tokio::task::spawn_blocking(move || holder.join().unwrap()).await.unwrap();
    let info = soon(transfer.done()).await.unwrap();
    assert_eq!(info.state, State::Completed, "{info:?}");
    assert_eq!(receiver.catalog.publish(vec![book(1)]).await.unwrap().added, 1);
}
