//! UDX streams over real sockets on this machine.

#![allow(clippy::unwrap_used)] // a failing unwrap is a failing test

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use alex_p2p::udx::header::Header;
use alex_p2p::udx::{CloseReason, StreamOptions, Udx, UdxSocket, UdxStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

struct End {
    udx: Udx,
    socket: UdxSocket,
}

impl End {
    fn new(addr: SocketAddr) -> Self {
        let udx = Udx::new();
        let socket = udx.bind(addr).unwrap();
        Self { udx, socket }
    }

    fn local() -> Self {
        Self::new(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    fn stream(&self) -> UdxStream {
        self.udx.create_stream(StreamOptions::default())
    }
}

fn connect(a: &End, b: &End) -> (UdxStream, UdxStream) {
    let (left, right) = (a.stream(), b.stream());
    left.connect(&a.socket, right.local_id(), b.socket.local_addr());
    right.connect(&b.socket, left.local_id(), a.socket.local_addr());
    (left, right)
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 31 + n / 255) as u8).collect()
}

/// Sends `length` bytes both ways at once, ends both halves and compares.
async fn exchange(left: UdxStream, right: UdxStream, length: usize) {
    let side = |stream: UdxStream| async move {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let write = async {
            writer.write_all(&bytes(length)).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let (read, ()) = tokio::join!(reader.read_to_end(&mut received), write);
        read.unwrap();
        assert!(received == bytes(length), "{} of {length} bytes", received.len());
    };
    let (left, right) = (tokio::spawn(side(left)), tokio::spawn(side(right)));
    timeout(PATIENCE, left).await.unwrap().unwrap();
    timeout(PATIENCE, right).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn megabytes_go_both_ways_over_ipv4_and_ipv6() {
    let (a, b) = (End::local(), End::local());
    let (left, right) = connect(&a, &b);
    exchange(left, right, 20_000_000).await;

    let localhost = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
    if Udx::new().bind(localhost).is_ok() {
        let (a, b) = (End::new(localhost), End::new(localhost));
        let (left, right) = connect(&a, &b);
        exchange(left, right, 5_000_000).await;
    }
}

#[tokio::test]
async fn an_ipv4_peer_reaches_a_dual_stack_socket() {
    let Ok(socket) = Udx::new().bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))) else { return };
    drop(socket);
    let (a, b) = (End::local(), End::new(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))));
    let (left, right) = (a.stream(), b.stream());
    let port = b.socket.local_addr().port();
    left.connect(&a.socket, right.local_id(), SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    right.connect(&b.socket, left.local_id(), a.socket.local_addr());
    exchange(left, right, 500_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_share_one_socket() {
    let (a, b) = (End::local(), End::local());
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let (left, right) = connect(&a, &b);
        tasks.spawn(exchange(left, right, 100_000));
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
}

#[tokio::test]
async fn a_stream_that_connects_is_heard_of_although_it_has_nothing_to_say() {
    let (a, b) = (End::local(), End::local());
    let (left, right) = (a.stream(), b.stream());
    left.connect(&a.socket, right.local_id(), b.socket.local_addr());
    let first = timeout(Duration::from_millis(500), right.on_first_packet()).await;
    assert_eq!(first.unwrap().unwrap().1, a.socket.local_addr());
}

#[tokio::test]
async fn a_stream_connects_to_whoever_sends_the_first_packet() {
    let (a, b) = (End::local(), End::local());
    let (mut left, right) = (a.stream(), b.stream());
    let first = right.on_first_packet();
    left.write_all(b"hello").await.unwrap();
    left.connect(&a.socket, right.local_id(), b.socket.local_addr());
    let (socket, from) = timeout(PATIENCE, first).await.unwrap().unwrap();
    assert!(socket.is_same(&b.socket));
    assert_eq!(from, a.socket.local_addr());
    right.connect(&socket, left.local_id(), from);
    assert!(right.on_first_packet().await.is_none());
    exchange_word(&mut left, right).await;
}

async fn exchange_word(left: &mut UdxStream, mut right: UdxStream) {
    let mut word = [0; 5];
    timeout(PATIENCE, right.read_exact(&mut word)).await.unwrap().unwrap();
    assert_eq!(&word, b"hello");
    right.write_all(b"world").await.unwrap();
    timeout(PATIENCE, left.read_exact(&mut word)).await.unwrap().unwrap();
    assert_eq!(&word, b"world");
}

#[tokio::test]
async fn what_was_written_before_connecting_arrives_without_a_timeout() {
    let (a, b) = (End::local(), End::local());
    let (mut left, mut right) = (a.stream(), b.stream());
    left.write_all(b"early").await.unwrap();
    left.connect(&a.socket, right.local_id(), b.socket.local_addr());
    tokio::task::yield_now().await;
    let start = Instant::now();
    right.connect(&b.socket, left.local_id(), a.socket.local_addr());
    let mut word = [0; 5];
    timeout(PATIENCE, right.read_exact(&mut word)).await.unwrap().unwrap();
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
}

#[tokio::test]
async fn dropping_resets_and_shutting_down_ends() {
    let (a, b) = (End::local(), End::local());
    let (left, mut right) = connect(&a, &b);
    let handle = left.handle();
    drop(left);
    let error = timeout(PATIENCE, right.read_u8()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(right.handle().closed().await, CloseReason::Reset);
    assert_eq!(handle.closed().await, CloseReason::Destroyed);

    let (mut left, mut right) = connect(&a, &b);
    left.write_all(b"last words").await.unwrap();
    timeout(PATIENCE, left.shutdown()).await.unwrap().unwrap();
    let left_handle = left.handle();
    drop(left);
    let mut text = String::new();
    timeout(PATIENCE, right.read_to_string(&mut text)).await.unwrap().unwrap();
    assert_eq!(text, "last words");
    timeout(PATIENCE, right.shutdown()).await.unwrap().unwrap();
    assert_eq!(right.handle().closed().await, CloseReason::Ended);
    assert_eq!(timeout(PATIENCE, left_handle.closed()).await.unwrap(), CloseReason::Ended);
}

#[tokio::test]
async fn one_half_stays_open_after_the_other_has_ended() {
    let (a, b) = (End::local(), End::local());
    let (mut left, mut right) = connect(&a, &b);
    timeout(PATIENCE, left.shutdown()).await.unwrap().unwrap();
    assert_eq!(right.read(&mut [0; 8]).await.unwrap(), 0);
    right.write_all(b"still here").await.unwrap();
    right.shutdown().await.unwrap();
    let mut text = String::new();
    timeout(PATIENCE, left.read_to_string(&mut text)).await.unwrap().unwrap();
    assert_eq!(text, "still here");
}

#[tokio::test]
async fn closing_a_socket_ends_its_streams_and_tells_the_other_side() {
    let (a, b) = (End::local(), End::local());
    let (mut left, mut right) = connect(&a, &b);
    a.socket.close();
    assert_eq!(left.handle().closed().await, CloseReason::SocketClosed);
    assert!(left.read_u8().await.is_err());
    assert!(left.write_all(b"x").await.is_err());
    let error = timeout(PATIENCE, right.read_u8()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_stream_that_is_connected_over_a_closed_socket_is_closed() {
    let (a, b) = (End::local(), End::local());
    a.socket.close();
    let (left, _right) = connect(&a, &b);
    let closed = timeout(Duration::from_secs(1), left.handle().closed()).await;
    assert_eq!(closed.unwrap(), CloseReason::SocketClosed);
}

#[tokio::test]
async fn a_destroy_from_elsewhere_is_ignored() {
    let (a, b, stranger) = (End::local(), End::local(), End::local());
    let (mut left, right) = connect(&a, &b);
    for seq in 0..4u8 {
        let mut packet = vec![0xff, 1, 16, 0];
        packet.extend_from_slice(&right.local_id().to_le_bytes());
        packet.extend_from_slice(&[0, 0, 0, 0, seq, 0, 0, 0, 0, 0, 0, 0]);
        stranger.socket.send_datagram(&packet, b.socket.local_addr()).unwrap();
    }
    left.write_all(b"hello").await.unwrap();
    exchange_word(&mut left, right).await;
}

/// Sends so many forged packets of every kind for the streams `ids` to `victim`.
async fn flood(ids: [u32; 2], victim: SocketAddr, count: u32) {
    let stranger = End::local();
    for sent in 0..count {
        let noise = sent.wrapping_mul(0x9e37_79b9);
        let header = Header {
            kind: [0, 1, 2, 3, 4, 16, 32, 255][sent as usize % 8],
            data_offset: 0,
            stream_id: ids[(sent / 8) as usize % 2],
            window: noise,
            // The numbers of a stream begin at zero: many of these are near.
            seq: noise >> (sent % 32),
            ack: noise.rotate_left(7) >> (sent / 32 % 32),
        };
        let packet = [&header.encode()[..], &noise.to_le_bytes(), &[0; 60]].concat();
        // A full buffer only means that the flood is one.
        let _ = stranger.socket.send_datagram(&packet, victim);
        if sent % 32 == 0 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_goes_on_under_a_flood_of_forged_packets() {
    let (a, b) = (End::local(), End::local());
    let (mut left, mut right) = connect(&a, &b);
    let ids = [right.local_id(), !right.local_id()];
    let flood = tokio::spawn(flood(ids, b.socket.local_addr(), 100_000));
    let block = bytes(100_000);
    let write = async {
        let mut blocks = 0;
        while !flood.is_finished() {
            left.write_all(&block).await.unwrap();
            blocks += 1;
        }
        left.shutdown().await.unwrap();
        blocks
    };
    let read = async {
        let (mut blocks, mut buffer) = (0, vec![0; block.len()]);
        while right.read_exact(&mut buffer).await.is_ok() {
            assert!(buffer == block);
            blocks += 1;
        }
        blocks
    };
    let (written, read) = timeout(PATIENCE, async { tokio::join!(write, read) }).await.unwrap();
    assert_eq!(written, read);
    assert!(written > 10, "{written} blocks are no transfer");
    flood.await.unwrap();
}

/// A NAT: what `inside` sends to `front` goes to `outside` from `mapping`, and back.
async fn translate(
    front: Arc<UdpSocket>,
    mapping: Arc<UdpSocket>,
    inside: SocketAddr,
    outside: SocketAddr,
) {
    let (mut out, mut back) = (vec![0; 2048], vec![0; 2048]);
    loop {
        tokio::select! {
            Ok(length) = front.recv(&mut out) => {
                let _ = mapping.send_to(&out[..length], outside).await;
            }
            Ok(length) = mapping.recv(&mut back) => {
                let _ = front.send_to(&back[..length], inside).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_goes_on_when_a_nat_gives_the_other_side_another_port() {
    let (a, b) = (End::local(), End::local());
    let (left, mut right) = (a.stream(), b.stream());
    let localhost = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (inside, outside) = (a.socket.local_addr(), b.socket.local_addr());
    // What `left` knows as the other side stays; what the other side sees of it changes.
    let [front, first, second] = [(); 3].map(|()| std::net::UdpSocket::bind(localhost).unwrap());
    let [front, first, second] = [front, first, second].map(|socket| {
        socket.set_nonblocking(true).unwrap();
        Arc::new(UdpSocket::from_std(socket).unwrap())
    });
    let (seen, then) = (first.local_addr().unwrap(), second.local_addr().unwrap());
    left.connect(&a.socket, right.local_id(), front.local_addr().unwrap());
    right.connect(&b.socket, left.local_id(), seen);
    let nat = tokio::spawn(translate(Arc::clone(&front), first, inside, outside));

    let (_, mut writer) = tokio::io::split(left);
    let length = 200_000;
    let write = tokio::spawn(async move {
        for part in bytes(length).chunks(2_000) {
            writer.write_all(part).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        writer.shutdown().await.unwrap();
    });
    let mut received = vec![0; length];
    let (before, after) = received.split_at_mut(length / 2);
    timeout(PATIENCE, right.read_exact(before)).await.unwrap().unwrap();
    nat.abort();
    let _ = nat.await;
    let rebound = Instant::now();
    let nat = tokio::spawn(translate(front, second, inside, outside));
    timeout(PATIENCE, right.read_exact(after)).await.unwrap().unwrap();
    assert!(received == bytes(length));
    assert!(rebound.elapsed() < Duration::from_secs(10), "{:?}", rebound.elapsed());
    assert_eq!(right.remote_addr(), Some(then));
    timeout(PATIENCE, write).await.unwrap().unwrap();
    nat.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_moves_to_other_sockets_while_it_carries_bytes() {
    let (a, b) = (End::local(), End::local());
    let (left, right) = connect(&a, &b);
    let localhost = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (new_a, new_b) = (a.udx.bind(localhost).unwrap(), b.udx.bind(localhost).unwrap());
    let (left_handle, right_handle) = (left.handle(), right.handle());
    let carried = tokio::spawn(exchange(left, right, 20_000_000));
    while left_handle.stats().bytes_received < 1_000_000 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (left_id, right_id) = (left_handle.local_id(), right_handle.local_id());
    assert!(left_handle.change_remote(&new_a, right_id, new_b.local_addr()));
    assert!(right_handle.change_remote(&new_b, left_id, new_a.local_addr()));
    carried.await.unwrap();
    assert_eq!(left_handle.remote_addr(), Some(new_b.local_addr()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_leaves_a_relay_when_the_other_side_sends_another_way() {
    let (a, b, middle) = (End::local(), End::local(), End::local());
    let (left, right) = (a.stream(), b.stream());
    let (left_id, right_id) = (left.local_id(), right.local_id());
    let relayed = middle.udx.relay([left_id, right_id], Arc::new(|_| true));
    let [for_left, for_right] = relayed.ids();
    left.connect(&a.socket, for_left, middle.socket.local_addr());
    right.connect(&b.socket, for_right, middle.socket.local_addr());
    let localhost = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (new_a, new_b) = (a.udx.bind(localhost).unwrap(), b.udx.bind(localhost).unwrap());
    let (left_handle, right_handle) = (left.handle(), right.handle());
    let carried = tokio::spawn(exchange(left, right, 20_000_000));
    while left_handle.stats().bytes_received < 1_000_000 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // One side is told of the path; the other hears of it from what comes there.
    let other_path = right_handle.other_path();
    assert!(left_handle.change_remote(&new_a, right_id, new_b.local_addr()));
    let (socket, from) = timeout(PATIENCE, other_path).await.unwrap().unwrap();
    assert!(socket.is_same(&new_b));
    assert_eq!(from, new_a.local_addr());
    assert!(right_handle.change_remote(&socket, left_id, from));
    assert!(timeout(PATIENCE, left_handle.moved()).await.unwrap());
    assert!(timeout(PATIENCE, right_handle.moved()).await.unwrap());
    assert_eq!(right_handle.path().unwrap().1, new_a.local_addr());
    carried.await.unwrap();
}

#[tokio::test]
async fn nobody_waits_for_another_path_of_a_stream_that_ended() {
    let (a, b) = (End::local(), End::local());
    let (left, right) = connect(&a, &b);
    let handle = right.handle();
    let waiting = tokio::spawn(handle.other_path());
    drop(left);
    assert!(timeout(PATIENCE, waiting).await.unwrap().unwrap().is_none());
    assert!(!handle.moved().await);
}

#[tokio::test]
async fn a_handle_destroys_a_stream_that_was_boxed() {
    let (a, b) = (End::local(), End::local());
    let (left, mut right) = connect(&a, &b);
    let handle = left.handle();
    let mut boxed: Box<dyn tokio::io::AsyncRead + Unpin + Send> = Box::new(left);
    handle.destroy();
    assert_eq!(handle.closed().await, CloseReason::Destroyed);
    assert!(boxed.read_u8().await.is_err());
    assert!(timeout(PATIENCE, right.read_u8()).await.unwrap().is_err());
}

#[tokio::test]
async fn a_reader_that_stops_stops_the_writer() {
    let (a, b) = (End::local(), End::local());
    let (mut left, right) = connect(&a, &b);
    let block = vec![7; 1 << 20];
    let mut written = 0u64;
    while timeout(Duration::from_millis(500), left.write_all(&block)).await.is_ok() {
        written += block.len() as u64;
        assert!(written < 64 << 20, "nothing stops it");
    }
    assert!(right.stats().bytes_received <= 6 << 20, "{:?}", right.stats());
}

#[tokio::test]
async fn an_unconnected_stream_that_is_dropped_leaves_nothing() {
    let a = End::local();
    let mut datagrams = a.socket.take_datagrams().unwrap();
    let stream = a.stream();
    let mut packet = vec![0xff, 1, 0, 0];
    packet.extend_from_slice(&stream.local_id().to_le_bytes());
    packet.extend_from_slice(&[0; 12]);
    let first = stream.on_first_packet();
    drop(stream);
    assert!(first.await.is_none());
    a.socket.send_datagram(&packet, a.socket.local_addr()).unwrap();
    assert_eq!(&timeout(PATIENCE, datagrams.recv()).await.unwrap().unwrap().payload[..], packet);
}
