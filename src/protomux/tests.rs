//! Connections with channels in memory: both sides ours, or one raw.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::crypto::KeyPair;
use crate::secret_stream::{SecretReceiver, SecretSender, connect_xx};

async fn streams(buffer: usize) -> (SecretStream, SecretStream) {
    let (a, b) = tokio::io::duplex(buffer);
    let (keys_a, keys_b) = (KeyPair::generate(), KeyPair::generate());
    let (a, b) = tokio::join!(connect_xx(a, true, &keys_a), connect_xx(b, false, &keys_b));
    (a.unwrap(), b.unwrap())
}

async fn pair() -> (Protomux, Protomux) {
    let (a, b) = streams(64 * 1024).await;
    (Protomux::new(a, MuxOptions::default()), Protomux::new(b, MuxOptions::default()))
}

/// One side with channels, the other one raw.
async fn against_raw() -> (Protomux, SecretSender, SecretReceiver) {
    let (a, b) = streams(1 << 20).await;
    let (sender, receiver) = b.split();
    (Protomux::new(a, MuxOptions::default()), sender, receiver)
}

fn named(protocol: &str, id: &[u8], handshake: &[u8]) -> ChannelOptions {
    ChannelOptions {
        protocol: protocol.into(),
        id: id.into(),
        handshake: handshake.into(),
        ..Default::default()
    }
}

/// Opens whatever the remote opens, and hands the channels out.
fn accept(mux: &Protomux, protocol: &str) -> mpsc::UnboundedReceiver<Channel> {
    let (give, take) = mpsc::unbounded_channel();
    let opener = mux.clone();
    let handler = move |opened: RemoteOpen| {
        let channel = opener.open(named(&opened.protocol, &opened.id, b"accepted")).unwrap();
        let _ = give.send(channel);
    };
    mux.on_open(protocol, Arc::new(handler));
    take
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(10), future).await.unwrap()
}

#[tokio::test]
async fn both_sides_open_and_messages_keep_their_order() {
    let (a, b) = pair().await;
    let ours = a.open(named("test", b"1", b"from a")).unwrap();
    let theirs = b.open(named("test", b"1", b"from b")).unwrap();
    assert_eq!(soon(ours.opened()).await.unwrap(), "from b");
    assert_eq!(soon(theirs.opened()).await.unwrap(), "from a");
    for number in 0..100u32 {
        ours.send(number, &vec![7; number as usize * 1000]).await.unwrap();
        let message = soon(theirs.recv()).await.unwrap();
        assert_eq!((message.kind, message.data.len()), (number, number as usize * 1000));
    }
}

#[tokio::test]
async fn messages_sent_before_the_remote_opens_arrive_after_it_did() {
    let (a, b) = pair().await;
    let mut accepted = accept(&b, "test");
    let ours = a.open(named("test", b"1", b"hello")).unwrap();
    ours.send(0, b"first").await.unwrap();
    ours.send_batch(&[(1, vec![Bytes::from_static(b"second")]), (2, vec![])]).await.unwrap();
    let theirs = soon(accepted.recv()).await.unwrap();
    assert_eq!(soon(theirs.opened()).await.unwrap(), "hello");
    for (kind, data) in [(0, "first"), (1, "second"), (2, "")] {
        let message = soon(theirs.recv()).await.unwrap();
        assert_eq!((message.kind, &message.data[..]), (kind, data.as_bytes()));
    }
}

#[tokio::test]
async fn a_channel_that_nobody_takes_is_rejected_and_can_be_opened_later() {
    let (a, b) = pair().await;
    let refused = a.open(named("test", b"1", b"")).unwrap();
    assert_eq!(soon(refused.opened()).await, Err(MuxError::Rejected));
    assert_eq!(refused.send(0, b"x").await, Err(MuxError::Closed));
    assert!(soon(refused.recv()).await.is_none());
    let mut accepted = accept(&a, "test");
    let theirs = b.open(named("test", b"1", b"")).unwrap();
    assert_eq!(soon(theirs.opened()).await.unwrap(), "accepted");
    soon(accepted.recv()).await.unwrap();
}

#[tokio::test]
async fn a_kept_open_waits_until_it_is_dropped() {
    let (a, b) = pair().await;
    let (give, mut take) = mpsc::unbounded_channel();
    b.on_open("test", Arc::new(move |opened| drop(give.send(opened))));
    let first = a.open(named("test", b"1", b"")).unwrap();
    let second = a.open(named("test", b"2", b"")).unwrap();
    first.send(5, b"waits").await.unwrap();
    let opened = soon(take.recv()).await.unwrap();
    drop(soon(take.recv()).await.unwrap());
    assert_eq!(soon(second.opened()).await, Err(MuxError::Rejected));
    let theirs = b.open(named(&opened.protocol, &opened.id, b"")).unwrap();
    drop(opened);
    assert_eq!(soon(theirs.recv()).await.unwrap().kind, 5);
    assert!(!theirs.is_closed());
}

#[tokio::test]
async fn a_close_delivers_what_was_sent_and_the_name_can_be_opened_again() {
    let (a, b) = pair().await;
    let mut accepted = accept(&b, "test");
    for round in 0..50u32 {
        let ours = a.open(named("test", b"1", b"")).unwrap();
        assert!(matches!(a.open(named("test", b"1", b"")), Err(MuxError::AlreadyOpen)));
        ours.send(round, b"last words").await.unwrap();
        if round % 2 == 0 {
            soon(ours.opened()).await.unwrap();
        }
        drop(ours);
        // Closed before it was taken, it may have been given up without being seen.
        if round % 2 == 0 {
            let theirs = soon(accepted.recv()).await.unwrap();
            assert_eq!(soon(theirs.recv()).await.unwrap().kind, round);
            assert!(soon(theirs.recv()).await.is_none());
        } else {
            let theirs = soon(accepted.recv()).await.unwrap();
            soon(theirs.closed()).await;
        }
    }
}

#[tokio::test]
async fn a_reader_that_stops_halts_the_remotes_sending() {
    let (a, b) = pair().await;
    let mut accepted = accept(&b, "test");
    let ours = a.open(named("test", b"1", b"")).unwrap();
    soon(ours.opened()).await.unwrap();
    let block = vec![1; 64 * 1024];
    let mut sent = 0u32;
    while timeout(Duration::from_millis(300), ours.send(sent, &block)).await.is_ok() {
        sent += 1;
        assert!(sent < 100, "6.4 MB were taken though nobody reads");
    }
    assert_eq!(ours.try_send(0, &block), Ok(false));
    let theirs = soon(accepted.recv()).await.unwrap();
    for number in 0..sent {
        assert_eq!(soon(theirs.recv()).await.unwrap().kind, number);
    }
    soon(ours.send(1000, &block)).await.unwrap();
    assert_eq!(soon(theirs.recv()).await.unwrap().kind, 1000);
}

#[tokio::test]
async fn closing_sends_what_waits_and_ends_both_sides() {
    let (a, b) = pair().await;
    let mut accepted = accept(&b, "test");
    let ours = a.open(named("test", b"1", b"")).unwrap();
    for number in 0..20 {
        ours.send(number, &[0; 30_000]).await.unwrap();
    }
    a.close();
    assert_eq!(a.closed().await, CloseReason::Local);
    assert!(ours.recv().await.is_none());
    assert!(matches!(a.open(named("test", b"2", b"")), Err(MuxError::Closed)));
    let theirs = soon(accepted.recv()).await.unwrap();
    for number in 0..20 {
        assert_eq!(soon(theirs.recv()).await.unwrap().kind, number);
    }
    assert!(soon(theirs.recv()).await.is_none());
    assert_eq!(soon(b.closed()).await, CloseReason::Remote);
    soon(a.finished()).await;
    soon(b.finished()).await;
}

#[tokio::test]
async fn dropping_the_last_handle_closes_and_a_channel_counts_as_one() {
    let (a, b) = pair().await;
    let channel = a.open(named("test", b"1", b"")).unwrap();
    drop(a);
    assert!(!channel.is_closed() || channel.opened().await == Err(MuxError::Rejected));
    assert!(timeout(Duration::from_millis(50), b.closed()).await.is_err());
    drop(channel);
    assert_eq!(soon(b.closed()).await, CloseReason::Remote);
}

#[tokio::test(start_paused = true)]
async fn a_paused_connection_misses_no_open() {
    let (a, b) = streams(64 * 1024).await;
    let a = Protomux::new(a, MuxOptions::default());
    let b = Protomux::new(b, MuxOptions { paused: true });
    let ours = a.open(named("test", b"1", b"")).unwrap();
    assert!(timeout(Duration::from_millis(50), ours.opened()).await.is_err());
    let _accepted = accept(&b, "test");
    b.start();
    soon(ours.opened()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_paused_connection_sends_nothing() {
    let (stream, remote) = streams(64 * 1024).await;
    let (_sender, mut receiver) = remote.split();
    let mux = Protomux::new(stream, MuxOptions { paused: true });
    let _ours = mux.open(named("test", b"1", b"")).unwrap();
    assert!(timeout(Duration::from_millis(50), receiver.recv()).await.is_err());
    mux.start();
    soon(receiver.recv()).await.unwrap();
}

#[tokio::test]
async fn hostile_opens_and_floods_to_unknown_channels_end_the_connection() {
    let (mux, mut sender, _receiver) = against_raw().await;
    for _ in 0..=limits::MAX_STRAYS {
        sender.send(&[77, 0, 1, 2, 3]).await.unwrap();
    }
    assert!(matches!(soon(mux.closed()).await, CloseReason::Violation(_)));
    let (mux, mut sender, _receiver) = against_raw().await;
    sender.send(&[255, 0, 0, 0, 0, 16, 0, 0, 0, 1, 2, 3]).await.unwrap();
    sender.send(&[0, 3, 77]).await.unwrap();
    assert!(timeout(Duration::from_millis(50), mux.closed()).await.is_err());
    // An open with the id 2^36.
    sender.send(&[0, 1, 255, 0, 0, 0, 0, 16, 0, 0, 0, 1, b'p', 0]).await.unwrap();
    assert!(matches!(soon(mux.closed()).await, CloseReason::Violation(_)));
    soon(mux.finished()).await;
}

#[tokio::test]
async fn a_flood_of_opens_is_answered_with_rejects_and_stays_bounded() {
    let (mux, mut sender, mut receiver) = against_raw().await;
    let flood = async {
        for id in 1..=5000u64 {
            sender.send(&wire::open(id, "unknown", &id.to_le_bytes(), b"")).await.unwrap();
        }
    };
    let answers = async {
        for id in 1..=5000u64 {
            let answer = receiver.recv().await.unwrap().unwrap();
            assert_eq!(answer, wire::reject(id));
        }
    };
    soon(async { tokio::join!(flood, answers) }).await;
    assert!(!mux.is_closed());
}

#[tokio::test]
async fn messages_for_a_channel_that_waits_are_bounded() {
    let (mux, mut sender, _receiver) = against_raw().await;
    let kept = Arc::new(std::sync::Mutex::new(Vec::new()));
    let keep = Arc::clone(&kept);
    mux.on_open("test", Arc::new(move |opened| keep.lock().unwrap().push(opened)));
    sender.send(&wire::open(1, "test", b"", b"")).await.unwrap();
    let flood = async {
        for _ in 0..10_000 {
            sender.send(&[&[1, 0][..], &[0; 1000]].concat()).await.unwrap();
        }
    };
    assert!(timeout(Duration::from_millis(300), flood).await.is_err());
    assert!(!mux.is_closed());
}

#[tokio::test]
async fn garbage_ends_the_connection_and_no_task_panics() {
    for seed in 0..64u8 {
        let (mux, mut sender, _receiver) = against_raw().await;
        let _accepted = accept(&mux, "p");
        let _ = sender.send(&wire::open(1, "p", b"", b"")).await;
        for round in 0..20 {
            let hash = crate::crypto::hash(&[&[seed, round]]);
            let mut garbage = hash[..usize::from(hash[0] % 32)].to_vec();
            if let Some(first) = garbage.first_mut() {
                *first %= 3;
            }
            if sender.send(&garbage).await.is_err() {
                break;
            }
        }
        drop(sender);
        drop(_receiver);
        let reason = soon(mux.closed()).await;
        assert!(!reason.to_string().contains("panicked"), "{reason}");
        soon(mux.finished()).await;
    }
}
