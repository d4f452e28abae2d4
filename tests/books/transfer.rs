//! Books from server to server: granted, refused, queued, interrupted, resumed.

use std::path::Path;
use std::sync::Arc;

use alex_p2p::catalog::{Book, BookEntry};
use alex_p2p::error::ErrorCode;
use alex_p2p::events::EventKind;
use alex_p2p::transfer::{BookRequest, BookSource, Policy, Provided, State, TransferLimits};

use crate::support::{Disk, Server, connect, connect_slow, event, soon, until, until_state};

const MIB: usize = 1024 * 1024;

/// A sender with one book of `size` bytes, and a receiver.
async fn pair(policy: Policy, size: usize) -> (Disk, Disk, Server, Server) {
    let (a_disk, b_disk) = (Disk::new(), Disk::new());
    let file = a_disk.file("original.epub", size, 7);
    let a = Server::start(&a_disk, policy).await;
    a.publish("book", &file).await;
    let b = Server::start(&b_disk, Policy::ManualApprove).await;
    (a_disk, b_disk, a, b)
}

fn assert_same(left: &std::path::Path, right: &std::path::Path) {
    assert!(std::fs::read(left).unwrap() == std::fs::read(right).unwrap(), "the files differ");
}

/// Waits until `reader` knows the catalog of `writer`.
async fn browsed(reader: &Server, writer: &Server) {
    let (peer, wanted) = (writer.key.to_z32(), writer.catalog.length());
    event(&reader.events, |kind| {
        matches!(kind, EventKind::CatalogUpdated { peer: whose, length }
            if *whose == peer && *length >= wanted)
    })
    .await;
}

fn incoming_files(disk: &Disk) -> usize {
    std::fs::read_dir(disk.path("incoming")).unwrap().count()
}

#[tokio::test]
async fn a_book_goes_across_and_lands_whole_under_its_name() {
    let (a_disk, b_disk, a, b) = pair(Policy::AutoAccept, 3 * MIB + 17).await;
    let _connection = connect(&a, &b).await;
    let peer = a.key.to_z32();
    event(
        &b.events,
        |kind| matches!(kind, EventKind::CatalogUpdated { peer: p, .. } if *p == peer),
    )
    .await;
    let transfer = b.request(&a, "book").await;
    let info = soon(transfer.done()).await.unwrap();
    assert_eq!(info.state, State::Completed, "{info:?}");
    let path = info.path.unwrap();
    assert_eq!(path, b_disk.path("books").join("Title book - Author.epub"));
    assert_same(&path, &a_disk.path("original.epub"));
    assert_eq!((info.progress.bytes, info.progress.total), (3_145_745, 3_145_745));
    let sent = until_state(&a.only_transfer(), State::Completed).await;
    assert_eq!(sent.peer, b.key.to_z32());
    assert_eq!(incoming_files(&b_disk), 0);
}

#[tokio::test]
async fn the_same_book_again_is_a_new_transfer_and_never_replaces_a_file() {
    let (a_disk, b_disk, a, b) = pair(Policy::AutoAccept, MIB).await;
    let _connection = connect(&a, &b).await;
    browsed(&b, &a).await;
    let first = b.request(&a, "book").await;
    soon(first.done()).await.unwrap();
    let second = b.request(&a, "book").await;
    assert_ne!(first.id(), second.id());
    let info = soon(second.done()).await.unwrap();
    assert_eq!(info.state, State::Completed, "{info:?}");
    let path = info.path.unwrap();
    assert!(path.to_str().unwrap().contains("(2)"), "{path:?}");
    assert_same(&path, &a_disk.path("original.epub"));
    assert_eq!(std::fs::read_dir(b_disk.path("books")).unwrap().count(), 2);
}

#[tokio::test]
async fn the_receiver_chooses_the_path() {
    let (a_disk, b_disk, a, b) = pair(Policy::AutoAccept, 1000).await;
    let _connection = connect(&a, &b).await;
    let chosen = b_disk.path("shelf").join("mine.epub");
    let request =
        BookRequest { peer: a.key.to_z32(), book_id: "book".into(), save_to: Some(chosen.clone()) };
    let transfer = b.transfers.request(request).await.unwrap();
    assert_eq!(soon(transfer.done()).await.unwrap().path.unwrap(), chosen);
    assert_same(&chosen, &a_disk.path("original.epub"));
}

#[tokio::test]
async fn a_person_approves_and_until_then_nothing_flows() {
    let (_a_disk, _b_disk, a, b) = pair(Policy::ManualApprove, MIB).await;
    let _connection = connect(&a, &b).await;
    let transfer = b.request(&a, "book").await;
    until_state(&transfer, State::AwaitingApproval).await;
    let asked = event(&a.events, |kind| matches!(kind, EventKind::TransferRequested { .. })).await;
    let EventKind::TransferRequested { id, book_id, title, .. } = asked else { unreachable!() };
    assert_eq!((book_id.as_str(), title.as_deref()), ("book", Some("Title book")));
    assert_eq!(transfer.info().unwrap().progress.bytes, 0);
    assert_eq!(transfer.approve().await.unwrap_err().code, ErrorCode::InvalidState);
    let outgoing = a.transfers.get(&id).unwrap().unwrap();
    outgoing.approve().await.unwrap();
    outgoing.approve().await.unwrap();
    assert_eq!(soon(transfer.done()).await.unwrap().state, State::Completed);
}

#[tokio::test]
async fn a_person_denies_with_a_reason() {
    let (_a_disk, _b_disk, a, b) = pair(Policy::ManualApprove, MIB).await;
    let _connection = connect(&a, &b).await;
    let transfer = b.request(&a, "book").await;
    until_state(&transfer, State::AwaitingApproval).await;
    a.only_transfer().deny(Some("not\u{1b}[31m this one".into())).await.unwrap();
    let info = soon(transfer.done()).await.unwrap();
    assert_eq!((info.state, info.reason.as_deref()), (State::Denied, Some("not[31m this one")));
    assert_eq!(transfer.resume().await.unwrap_err().code, ErrorCode::InvalidState);
}

#[tokio::test]
async fn a_peer_with_metadata_only_is_told_no() {
    let (_a_disk, _b_disk, a, b) = pair(Policy::MetadataOnly, MIB).await;
    let _connection = connect(&a, &b).await;
    let transfer = b.request(&a, "book").await;
    let info = soon(transfer.done()).await.unwrap();
    assert_eq!(info.state, State::Denied);
    assert_eq!(info.error.as_deref(), Some("ERR_DENIED"));
}

#[tokio::test]
async fn the_receiver_withdraws_a_request() {
    let (_a_disk, b_disk, a, b) = pair(Policy::ManualApprove, MIB).await;
    let _connection = connect(&a, &b).await;
    let transfer = b.request(&a, "book").await;
    until_state(&transfer, State::AwaitingApproval).await;
    transfer.cancel().await.unwrap();
    transfer.cancel().await.unwrap();
    assert_eq!(soon(transfer.done()).await.unwrap().state, State::Cancelled);
    until_state(&a.only_transfer(), State::Cancelled).await;
    assert_eq!(incoming_files(&b_disk), 0);
    // And may ask anew.
    let again = b.request(&a, "book").await;
    assert_ne!(again.id(), transfer.id());
}

#[tokio::test]
async fn an_unknown_book_is_unavailable() {
    let (_a_disk, _b_disk, a, b) = pair(Policy::AutoAccept, 10).await;
    let _connection = connect(&a, &b).await;
    let transfer = b.request(&a, "no such book").await;
    let info = soon(transfer.done()).await.unwrap();
    assert_eq!((info.state, info.error.as_deref()), (State::Failed, Some("ERR_UNAVAILABLE")));
}

#[tokio::test]
async fn a_request_waits_for_the_peer_and_is_asked_once() {
    let (_a_disk, b_disk, a, b) = pair(Policy::AutoAccept, MIB).await;
    let transfer = b.request(&a, "book").await;
    assert_eq!(transfer.info().unwrap().state, State::Queued);
    let same = b.request(&a, "book").await;
    assert_eq!(same.id(), transfer.id());
    let id = transfer.id().to_owned();
    b.stop().await;
    let b = Server::start(&b_disk, Policy::AutoAccept).await;
    let transfer = b.transfers.get(&id).unwrap().unwrap();
    assert_eq!(transfer.info().unwrap().state, State::Queued);
    let _connection = connect(&a, &b).await;
    assert_eq!(soon(transfer.done()).await.unwrap().state, State::Completed);
}

#[tokio::test]
async fn an_approval_while_the_peer_is_away_counts_when_it_is_back_also_after_a_restart() {
    let (a_disk, _b_disk, a, b) = pair(Policy::ManualApprove, MIB).await;
    let connection = connect(&a, &b).await;
    let transfer = b.request(&a, "book").await;
    until_state(&transfer, State::AwaitingApproval).await;
    connection.0.close();
    a.stop().await;
    let a = Server::start(&a_disk, Policy::ManualApprove).await;
    assert_eq!(a.only_transfer().info().unwrap().state, State::AwaitingApproval);
    a.only_transfer().approve().await.unwrap();
    let _connection = connect(&a, &b).await;
    assert_eq!(soon(transfer.done()).await.unwrap().state, State::Completed);
}

#[tokio::test]
async fn a_lost_connection_costs_no_verified_block() {
    let (a_disk, _b_disk, a, b) = pair(Policy::AutoAccept, 8 * MIB).await;
    let mut connection = connect_slow(&a, &b).await;
    let transfer = b.request(&a, "book").await;
    for round in 1..=3u64 {
        let goal = round * 2 * MIB as u64;
        until(&transfer, |info| info.progress.bytes > goal || info.state.is_terminal()).await;
        connection.1.close();
        let waiting = until_state(&transfer, State::Queued).await;
        assert!(waiting.progress.bytes > goal);
        connection = connect_slow(&a, &b).await;
    }
    let info = soon(transfer.done()).await.unwrap();
    assert_eq!(info.state, State::Completed, "{info:?}");
    assert_same(&info.path.unwrap(), &a_disk.path("original.epub"));
}

#[tokio::test]
async fn a_stopped_receiver_goes_on_from_its_verified_blocks() {
    let (a_disk, b_disk, a, b) = pair(Policy::AutoAccept, 8 * MIB).await;
    let connection = connect_slow(&a, &b).await;
    let transfer = b.request(&a, "book").await;
    let id = transfer.id().to_owned();
    until(&transfer, |info| info.progress.bytes > 2 * MIB as u64).await;
    b.stop().await;
    drop(connection);
    let b = Server::start(&b_disk, Policy::AutoAccept).await;
    let transfer = b.transfers.get(&id).unwrap().unwrap();
    let info = transfer.info().unwrap();
    assert_eq!(info.state, State::Queued);
    let before = info.progress.bytes;
    assert!(before > 2 * MIB as u64, "{before}");
    let _connection = connect(&a, &b).await;
    let first =
        until(&transfer, |info| info.state == State::Transferring || info.state.is_terminal())
            .await;
    assert!(first.progress.bytes >= before);
    let info = soon(transfer.done()).await.unwrap();
    assert_same(&info.path.unwrap(), &a_disk.path("original.epub"));
}

#[tokio::test]
async fn what_a_crash_left_of_finished_transfers_is_cleared_away() {
    let (_a_disk, b_disk, _a, b) = pair(Policy::AutoAccept, 10).await;
    b.stop().await;
    std::fs::write(b_disk.path("incoming").join("gone.part"), "x").unwrap();
    let _b = Server::start(&b_disk, Policy::AutoAccept).await;
    assert_eq!(incoming_files(&b_disk), 0);
}

#[tokio::test]
async fn two_peers_send_the_same_content_at_once_and_a_third_offers_it_too() {
    let (a_disk, b_disk, a, b) = pair(Policy::AutoAccept, 4 * MIB).await;
    let c_disk = Disk::new();
    let c = Server::start(&c_disk, Policy::AutoAccept).await;
    c.publish("same", &c_disk.file("other-name.epub", 4 * MIB, 7)).await;
    let _connections = (connect_slow(&a, &b).await, connect_slow(&c, &b).await);
    let (first, second) = (b.request(&a, "book").await, b.request(&c, "same").await);
    for transfer in [first, second] {
        let info = soon(transfer.done()).await.unwrap();
        assert_eq!(info.state, State::Completed, "{info:?}");
        assert_same(&info.path.unwrap(), &a_disk.path("original.epub"));
    }
    assert_eq!(incoming_files(&b_disk), 0);
    // The receiver offers the book itself, to the one it has it from.
    b.publish("mine", &a_disk.path("original.epub")).await;
    *b.rules.0.lock().unwrap() = Policy::AutoAccept;
    let back = a.request(&b, "mine").await;
    assert_eq!(soon(back.done()).await.unwrap().state, State::Completed);
}

#[tokio::test]
async fn the_receiver_pauses_and_resumes() {
    let (a_disk, _b_disk, a, b) = pair(Policy::AutoAccept, 8 * MIB).await;
    let _connection = connect_slow(&a, &b).await;
    let transfer = b.request(&a, "book").await;
    until(&transfer, |info| info.progress.bytes > MIB as u64).await;
    transfer.pause().await.unwrap();
    transfer.pause().await.unwrap();
    assert_eq!(transfer.info().unwrap().state, State::Paused);
    transfer.resume().await.unwrap();
    let info = soon(transfer.done()).await.unwrap();
    assert_eq!(info.state, State::Completed);
    assert_same(&info.path.unwrap(), &a_disk.path("original.epub"));
}

#[tokio::test]
async fn the_sender_pauses_and_resumes_and_the_receiver_sees_why() {
    let (_a_disk, _b_disk, a, b) = pair(Policy::AutoAccept, 8 * MIB).await;
    let _connection = connect_slow(&a, &b).await;
    let transfer = b.request(&a, "book").await;
    until(&transfer, |info| info.progress.bytes > MIB as u64).await;
    a.only_transfer().pause().await.unwrap();
    let waiting = until_state(&transfer, State::AwaitingApproval).await;
    assert_eq!(waiting.reason.as_deref(), Some("paused by the sender"));
    a.only_transfer().resume().await.unwrap();
    assert_eq!(soon(transfer.done()).await.unwrap().state, State::Completed);
}

#[tokio::test]
async fn the_sender_cancels_a_transfer_that_flows() {
    let (_a_disk, b_disk, a, b) = pair(Policy::AutoAccept, 8 * MIB).await;
    let _connection = connect_slow(&a, &b).await;
    let transfer = b.request(&a, "book").await;
    until(&transfer, |info| info.progress.bytes > MIB as u64).await;
    a.only_transfer().cancel().await.unwrap();
    let info = soon(transfer.done()).await.unwrap();
    assert_eq!(info.state, State::Denied);
    assert_eq!(info.reason.as_deref(), Some("cancelled by the sender"));
    b.transfers.close().await;
    assert_eq!(incoming_files(&b_disk), 0);
}

#[tokio::test]
async fn more_books_than_slots_and_open_requests_all_arrive() {
    let (a_disk, b_disk) = (Disk::new(), Disk::new());
    let limits = TransferLimits { open_requests: 4, transfers_at_once: 2, ..Default::default() };
    let a = Server::start_with(&a_disk, Policy::AutoAccept, limits).await;
    for n in 0..10u64 {
        let file = a_disk.file(&format!("{n}.epub"), 600_000 + n as usize, n + 1);
        a.publish(&format!("book {n}"), &file).await;
    }
    // The receiver thinks that it may ask for more at once.
    let b = Server::start(&b_disk, Policy::AutoAccept).await;
    let _connection = connect(&a, &b).await;
    let mut transfers = Vec::new();
    for n in 0..10 {
        transfers.push(b.request(&a, &format!("book {n}")).await);
    }
    for (n, transfer) in transfers.iter().enumerate() {
        let info = soon(transfer.done()).await.unwrap();
        assert_eq!(info.state, State::Completed, "{info:?}");
        assert_same(&info.path.unwrap(), &a_disk.path(&format!("{n}.epub")));
    }
}

#[tokio::test]
async fn small_books_of_one_title_land_together_under_names_of_their_own() {
    let (a_disk, b_disk) = (Disk::new(), Disk::new());
    let a = Server::start(&a_disk, Policy::AutoAccept).await;
    let mut books = Vec::new();
    for n in 0..12u64 {
        let path = a_disk.file(&format!("{n}.epub"), 1_000 + 40_000 * n as usize, n + 1);
        let entry = BookEntry { id: format!("{n}"), title: "One".into(), ..BookEntry::default() };
        books.push(Book { entry, source: Some(BookSource::Path(path)) });
    }
    a.catalog.publish(books).await.unwrap();
    let b = Server::start(&b_disk, Policy::AutoAccept).await;
    let _connection = connect(&a, &b).await;
    let mut transfers = Vec::new();
    for n in 0..12 {
        transfers.push(b.request(&a, &format!("{n}")).await);
    }
    let mut paths = std::collections::HashSet::new();
    for (n, transfer) in transfers.iter().enumerate() {
        let path = soon(transfer.done()).await.unwrap().path.unwrap();
        assert_same(&path, &a_disk.path(&format!("{n}.epub")));
        assert!(paths.insert(path));
    }
    b.transfers.close().await;
    assert_eq!(incoming_files(&b_disk), 0);
}

#[tokio::test]
async fn a_small_book_that_only_was_in_memory_is_fetched_again_after_a_crash() {
    let (a_disk, b_disk, a, b) = pair(Policy::AutoAccept, 100_000).await;
    b.request(&a, "book").await;
    b.stop().await;
    // As it is written down before the file is.
    let database = rusqlite::Connection::open(b_disk.path("p2p.db")).unwrap();
    assert_eq!(database.execute("UPDATE transfers SET state = 'verifying'", []).unwrap(), 1);
    drop(database);
    let b = Server::start(&b_disk, Policy::AutoAccept).await;
    let _connection = connect(&a, &b).await;
    let info = soon(b.only_transfer().done()).await.unwrap();
    assert_eq!(info.state, State::Completed, "{info:?}");
    assert_same(&info.path.unwrap(), &a_disk.path("original.epub"));
}

#[tokio::test]
async fn a_small_book_that_cannot_land_is_asked_for_again_though_the_sender_heard_it_is_whole() {
    let (a_disk, b_disk, a, b) = pair(Policy::AutoAccept, 1000).await;
    let _connection = connect(&a, &b).await;
    // No file can have the name that it is to get.
    let chosen = b_disk.path("shelf").join("mine.epub");
    let too_long = chosen.with_file_name("x".repeat(300));
    let request = |save_to: &Path| BookRequest {
        peer: a.key.to_z32(),
        book_id: "book".into(),
        save_to: Some(save_to.to_owned()),
    };
    let transfer = b.transfers.request(request(&too_long)).await.unwrap();
    assert_eq!(soon(transfer.done()).await.unwrap().state, State::Failed);
    until_state(&a.only_transfer(), State::Completed).await;
    let transfer = b.transfers.request(request(&chosen)).await.unwrap();
    assert_eq!(soon(transfer.done()).await.unwrap().path.unwrap(), chosen);
    assert_same(&chosen, &a_disk.path("original.epub"));
    until_state(&a.only_transfer(), State::Completed).await;
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_said_before_the_book_is_fetched() {
    let (a_disk, b_disk, a, b) = pair(Policy::AutoAccept, MIB).await;
    let _connection = connect(&a, &b).await;
    let file = b_disk.path("shelf");
    std::fs::write(&file, "").unwrap();
    let folder = file.join("books");
    let chosen = folder.join("mine.epub");
    let request =
        BookRequest { peer: a.key.to_z32(), book_id: "book".into(), save_to: Some(chosen.clone()) };
    let transfer = b.transfers.request(request).await.unwrap();
    let failed = soon(transfer.done()).await.unwrap();
    assert_eq!((failed.state, failed.error.as_deref()), (State::Failed, Some("ERR_IO")));
    assert_eq!(failed.progress.bytes, 0);
    let reason = failed.reason.unwrap();
    assert!(reason.contains(folder.to_str().unwrap()) && reason.contains("saveTo"), "{reason}");
    // The peer hears nothing of this disk.
    let told = format!("{:?}", a.only_transfer().info());
    assert!(!told.contains("shelf"), "{told}");
    std::fs::remove_file(&file).unwrap();
    transfer.resume().await.unwrap();
    assert_eq!(soon(transfer.done()).await.unwrap().path.unwrap(), chosen);
    assert_same(&chosen, &a_disk.path("original.epub"));
}

#[tokio::test]
async fn a_streamed_book_is_spooled_sent_and_cleared_away() {
    let (a_disk, b_disk) = (Disk::new(), Disk::new());
    let file = a_disk.file("in-the-cloud", 2 * MIB, 3);
    let a = Server::start(&a_disk, Policy::AutoAccept).await;
    let bytes = std::fs::read(&file).unwrap();
    let provider: alex_p2p::transfer::Provider = Arc::new(move |_id| {
        let bytes = bytes.clone();
        Box::pin(async move { Ok(Provided::Reader(Box::new(std::io::Cursor::new(bytes)))) })
    });
    let entry = BookEntry { id: "s3".into(), title: "Cloud".into(), ..BookEntry::default() };
    let source = Some(BookSource::OnDemand(provider));
    a.catalog.publish(vec![Book { entry, source }]).await.unwrap();
    let b = Server::start(&b_disk, Policy::AutoAccept).await;
    let _connection = connect(&a, &b).await;
    let transfer = b.request(&a, "s3").await;
    let info = soon(transfer.done()).await.unwrap();
    assert_eq!(info.state, State::Completed, "{info:?}");
    assert_same(&info.path.unwrap(), &file);
    until_state(&a.only_transfer(), State::Completed).await;
    a.transfers.close().await;
    assert_eq!(std::fs::read_dir(a_disk.path("outgoing")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_missing_file_is_said_to_be_unavailable_and_a_later_request_finds_it() {
    let (a_disk, b_disk, a, b) = pair(Policy::AutoAccept, MIB).await;
    let (file, away) = (a_disk.path("original.epub"), a_disk.path("away"));
    std::fs::rename(&file, &away).unwrap();
    let _connection = connect(&a, &b).await;
    let transfer = b.request(&a, "book").await;
    assert_eq!(soon(transfer.done()).await.unwrap().error.as_deref(), Some("ERR_UNAVAILABLE"));
    std::fs::rename(&away, &file).unwrap();
    let again = b.request(&a, "book").await;
    assert_eq!(again.id(), transfer.id(), "it is taken up again");
    assert_eq!(soon(again.done()).await.unwrap().state, State::Completed);
    assert_eq!(incoming_files(&b_disk), 0);
}

#[tokio::test]
async fn a_title_cannot_leave_the_folder() {
    let (a_disk, b_disk) = (Disk::new(), Disk::new());
    let file = a_disk.file("x", 1000, 1);
    let a = Server::start(&a_disk, Policy::AutoAccept).await;
    let b = Server::start(&b_disk, Policy::AutoAccept).await;
    let titles =
        ["../../x", "/etc/passwd", "a\0b", "CON", "..", "\u{202e}gpe\u{1b}[2J", "..\\..\\x"];
    let long = "x".repeat(4000);
    for (n, title) in titles.iter().copied().chain([long.as_str()]).enumerate() {
        let entry = BookEntry {
            id: format!("b{n}"),
            title: title.into(),
            format: Some("../sh".into()),
            ..BookEntry::default()
        };
        let source = Some(BookSource::Path(file.clone()));
        a.catalog.publish(vec![Book { entry, source }]).await.unwrap();
    }
    let _connection = connect(&a, &b).await;
    browsed(&b, &a).await;
    for n in 0..=titles.len() {
        let info = soon(b.request(&a, &format!("b{n}")).await.done()).await.unwrap();
        assert_eq!(info.state, State::Completed, "{info:?}");
        let path = info.path.unwrap().canonicalize().unwrap();
        let books = b_disk.path("books").canonicalize().unwrap();
        assert_eq!(path.parent(), Some(books.as_path()), "{path:?}");
    }
}

#[tokio::test]
async fn everything_after_close_says_closed() {
    let (_a_disk, _b_disk, a, b) = pair(Policy::AutoAccept, 1000).await;
    let transfer = b.request(&a, "book").await;
    let waiting = {
        let transfer = transfer.clone();
        tokio::spawn(async move { transfer.done().await })
    };
    tokio::task::yield_now().await;
    b.transfers.close().await;
    b.transfers.close().await;
    assert_eq!(soon(waiting).await.unwrap().unwrap_err().code, ErrorCode::Closed);
    assert_eq!(transfer.pause().await.unwrap_err().code, ErrorCode::Closed);
    let request = BookRequest { peer: a.key.to_z32(), book_id: "book".into(), save_to: None };
    assert_eq!(b.transfers.request(request).await.err().unwrap().code, ErrorCode::Closed);
    assert_eq!(b.transfers.list(&Default::default()).unwrap_err().code, ErrorCode::Closed);
}

#[tokio::test]
async fn a_book_larger_than_allowed_is_refused_before_a_byte_of_it_comes() {
    let (a_disk, b_disk) = (Disk::new(), Disk::new());
    let file = a_disk.file("original.epub", MIB, 7);
    let a = Server::start(&a_disk, Policy::AutoAccept).await;
    a.publish("book", &file).await;
    let limits = TransferLimits { book_bytes: 1000, ..Default::default() };
    let b = Server::start_with(&b_disk, Policy::AutoAccept, limits).await;
    let _connection = connect(&a, &b).await;
    let info = soon(b.request(&a, "book").await.done()).await.unwrap();
    assert_eq!(info.state, State::Failed);
    assert_eq!(info.error.as_deref(), Some("ERR_LIMIT_EXCEEDED"));
    assert_eq!(incoming_files(&b_disk), 0);
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_sent_ends_the_transfer_and_not_the_connection() {
    let (a_disk, _b_disk, a, b) = pair(Policy::AutoAccept, 8 * MIB).await;
    let (_mux, mux) = connect_slow(&a, &b).await;
    let transfer = b.request(&a, "book").await;
    until(&transfer, |info| info.progress.bytes > MIB as u64).await;
    a_disk.file("original.epub", 8 * MIB, 99);
    let info = soon(transfer.done()).await.unwrap();
    assert_eq!(info.error.as_deref(), Some("ERR_UNAVAILABLE"), "{info:?}");
    assert!(!mux.is_closed());
    // The new content is another core; asking again starts with that.
    let again = b.request(&a, "book").await;
    let info = soon(again.done()).await.unwrap();
    assert_eq!(info.state, State::Completed, "{info:?}");
    assert_same(&info.path.unwrap(), &a_disk.path("original.epub"));
}
