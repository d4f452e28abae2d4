//! Passing packets on between two streams of others (libudx: `udx_stream_relay_to`).
//!
//! Each side gets a stream id of ours to send to. A packet to it goes on to the other side under the id
//! of the other's stream, unread and otherwise unchanged, so that both ends have one stream with each
//! other. Where a side is shows with its first packet.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::header::{HEADER_SIZE, Packet, flags};
use super::socket::UdxSocket;
use super::table::Udx;
use crate::sync::lock;

/// Packets that wait for a side to show where it is: what the other sends at first, which would be sent
/// again only after a second.
const MAX_HELD: usize = 8;

/// Asked for each packet of so many bytes whether it may go on.
pub type RelayLimit = Arc<dyn Fn(usize) -> bool + Send + Sync>;

/// One side of a relayed stream.
struct Side {
    /// The id of the side's own stream.
    remote_id: u32,
    /// Where its packets come from.
    path: OnceLock<(UdxSocket, SocketAddr)>,
    /// For this side, from before that was known.
    held: Mutex<Vec<Vec<u8>>>,
}

/// What both ids lead to.
pub(super) struct Link {
    sides: [Side; 2],
    limit: RelayLimit,
    since: Instant,
    /// When the last packet went on, in milliseconds after `since`.
    last: AtomicU64,
    ended: CancellationToken,
}

impl Link {
    /// Passes on a packet of side `index`. What cannot go on is lost, as on any path.
    pub(super) fn forward(
        &self,
        index: usize,
        socket: &UdxSocket,
        from: SocketAddr,
        packet: &[u8],
    ) {
        let (Some(side), Some(other)) = (self.sides.get(index), self.sides.get(1 - index)) else {
            return;
        };
        let Some(decoded) = Packet::decode(packet) else { return };
        let (_, known) = side.path.get_or_init(|| (socket.clone(), from));
        if *known != from {
            return;
        }
        let held = std::mem::take(&mut *lock(&side.held));
        held.iter().for_each(|packet| side.send(packet));
        if !(self.limit)(packet.len()) {
            return;
        }
        let mut header = decoded.header;
        header.stream_id = other.remote_id;
        let mut out = Vec::with_capacity(packet.len());
        out.extend_from_slice(&header.encode());
        out.extend_from_slice(packet.get(HEADER_SIZE..).unwrap_or_default());
        other.pass(out);
        let now = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
        if decoded.has(flags::DESTROY) {
            self.ended.cancel();
        }
    }
}

impl Side {
    fn pass(&self, packet: Vec<u8>) {
        if self.path.get().is_some() {
            return self.send(&packet);
        }
        let mut held = lock(&self.held);
        if held.len() < MAX_HELD {
            held.push(packet);
        }
    }

    fn send(&self, packet: &[u8]) {
        let Some((socket, to)) = self.path.get() else { return };
        // A packet that cannot be sent is a lost one.
        let _ = socket.transmit(*to, packet, None);
    }
}

/// Two streams that are passed on to each other, until this is dropped.
pub struct RelayedStreams {
    udx: Udx,
    ids: [u32; 2],
    link: Arc<Link>,
}

impl RelayedStreams {
    pub(super) fn new(udx: &Udx, remote_ids: [u32; 2], limit: RelayLimit) -> Self {
        let side = |remote_id| Side { remote_id, path: OnceLock::new(), held: Mutex::default() };
        let link = Arc::new(Link {
            sides: remote_ids.map(side),
            limit,
            since: Instant::now(),
            last: AtomicU64::new(0),
            ended: CancellationToken::new(),
        });
        let ids = [0, 1].map(|index| udx.insert_relayed(&link, index));
        Self { udx: udx.clone(), ids, link }
    }

    /// The ids that the two sides send to, in the order in which theirs were given.
    #[must_use]
    pub fn ids(&self) -> [u32; 2] {
        self.ids
    }

    /// Waits until a side destroyed its stream. Cancel safe.
    pub async fn ended(&self) {
        self.link.ended.cancelled().await;
    }

    /// For how long nothing went on.
    #[must_use]
    pub fn idle(&self) -> Duration {
        let last = Duration::from_millis(self.link.last.load(Ordering::Relaxed));
        self.link.since.elapsed().saturating_sub(last)
    }
}

impl Drop for RelayedStreams {
    fn drop(&mut self) {
        self.ids.iter().for_each(|id| self.udx.remove_relayed(*id));
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::udx::{StreamOptions, UdxStream};

    struct End {
        _udx: Udx,
        socket: UdxSocket,
        stream: UdxStream,
    }

    fn end() -> End {
        let udx = Udx::new();
        let socket = udx.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let stream = udx.create_stream(StreamOptions::default());
        End { _udx: udx, socket, stream }
    }

    #[tokio::test]
    async fn two_streams_talk_over_a_third_party_until_one_is_destroyed() {
        let (mut a, mut b, udx) = (end(), end(), Udx::new());
        let middle = udx.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let ids = [a.stream.local_id(), b.stream.local_id()];
        let relayed = udx.relay(ids, Arc::new(|_| true));
        let [for_a, for_b] = relayed.ids();
        a.stream.connect(&a.socket, for_a, middle.local_addr());
        b.stream.connect(&b.socket, for_b, middle.local_addr());
        a.stream.write_all(b"from a").await.unwrap();
        b.stream.write_all(b"from b").await.unwrap();
        let mut text = [0; 6];
        b.stream.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"from a");
        a.stream.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"from b");
        drop(a.stream);
        tokio::time::timeout(Duration::from_secs(5), relayed.ended()).await.unwrap();
    }

    #[tokio::test]
    async fn nobody_else_sends_in_the_name_of_a_side() {
        let udx = Udx::new();
        let middle = udx.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let relayed = udx.relay([7, 8], Arc::new(|_| true));
        let destroy = [[0xff, 1, flags::DESTROY, 0].as_slice(), &[0; 16]].concat();
        let [a, b, other] = [1, 2, 3].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let heartbeat = [[0xff, 1, flags::HEARTBEAT, 0].as_slice(), &[0; 16]].concat();
        relayed.link.forward(0, &middle, a, &heartbeat);
        relayed.link.forward(1, &middle, b, &heartbeat);
        relayed.link.forward(0, &middle, other, &destroy);
        assert!(!relayed.link.ended.is_cancelled());
        relayed.link.forward(0, &middle, a, &destroy);
        assert!(relayed.link.ended.is_cancelled());
    }
}
