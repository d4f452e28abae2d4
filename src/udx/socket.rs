//! UDP sockets that carry streams and plain datagrams.
//!
//! `quinn-udp` batches what the kernel lets it batch (GSO, GRO, `recvmmsg`): one packet a system call
//! is what limits everything else.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

use super::driver::Shared;
use super::header;
use super::table::Udx;

/// Kernel buffers asked for, in bytes, largest first: some systems refuse what they cannot give.
const KERNEL_BUFFERS: [usize; 4] = [4 << 20, 1 << 20, 512 << 10, 208 << 10];
/// Datagrams that wait for [`DatagramReceiver::recv`]; more are dropped, as the kernel would.
const DATAGRAM_QUEUE: usize = 1024;
/// Longer datagrams (bytes) belong to no protocol that shares the socket.
const MAX_DATAGRAM: usize = 4096;
/// The most a UDP datagram, and so one offloaded batch, can hold.
const MAX_BATCH: usize = 65_000;
/// Batches read before other tasks get a turn.
const READS_PER_TURN: usize = 16;

/// A bound UDP socket. Clones share it; it closes with [`UdxSocket::close`] or with the last clone
/// (a stream connected over it counts as one).
#[derive(Clone)]
pub struct UdxSocket {
    handle: Arc<Handle>,
}

struct Handle {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    io: tokio::net::UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
    udx: Udx,
    runtime: tokio::runtime::Handle,
    /// Written while a datagram with its own time to live goes out: the kernel keeps that per socket.
    ttl: RwLock<()>,
    closed: CancellationToken,
    datagrams: std::sync::Mutex<Option<DatagramReceiver>>,
    /// Dropped last, when the port is free.
    released: DropGuard,
}

/// A datagram that was not for a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// Its bytes, at most 4096.
    pub payload: Bytes,
    /// Who sent it, as far as UDP can tell. IPv4-mapped addresses are given as IPv4.
    pub from: SocketAddr,
}

/// The datagrams of a socket that were not for a stream, at most 1024 waiting.
#[derive(Debug)]
pub struct DatagramReceiver {
    queue: mpsc::Receiver<Datagram>,
}

impl DatagramReceiver {
    /// The next datagram; `None` once the socket is closed. Cancel safe.
    pub async fn recv(&mut self) -> Option<Datagram> {
        self.queue.recv().await
    }
}

impl UdxSocket {
    pub(super) fn bind(udx: Udx, addr: SocketAddr) -> io::Result<Self> {
        let runtime = tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        if addr.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
            socket.set_only_v6(false)?;
        }
        socket.set_nonblocking(true)?;
        let _ = KERNEL_BUFFERS.iter().any(|&size| socket.set_recv_buffer_size(size).is_ok());
        let _ = KERNEL_BUFFERS.iter().any(|&size| socket.set_send_buffer_size(size).is_ok());
        socket.bind(&addr.into())?;

        let io = tokio::net::UdpSocket::from_std(socket.into())?;
        let state = UdpSocketState::new((&io).into())?;
        let local = io.local_addr()?;
        let (sender, queue) = mpsc::channel(DATAGRAM_QUEUE);
        let inner = Arc::new(Inner {
            io,
            state,
            local,
            udx,
            runtime: runtime.clone(),
            ttl: RwLock::new(()),
            closed: CancellationToken::new(),
            datagrams: std::sync::Mutex::new(Some(DatagramReceiver { queue })),
            released: CancellationToken::new().drop_guard(),
        });
        let handle = Arc::new(Handle { inner: Arc::clone(&inner) });
        runtime.spawn(receive(inner, Arc::downgrade(&handle), sender));
        Ok(Self { handle })
    }

    /// The address the socket is bound to.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.inner().local
    }

    /// Sends `payload` as one datagram, without waiting.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when the kernel's buffer is full, `NotConnected` once the socket is closed,
    /// `InvalidInput` for an IPv6 address on an IPv4 socket, and what the operating system says.
    pub fn send_datagram(&self, payload: &[u8], to: SocketAddr) -> io::Result<()> {
        self.transmit(to, payload, None)
    }

    /// Like [`Self::send_datagram`], with its own time to live (hops): a hole punch need not arrive.
    ///
    /// # Errors
    ///
    /// Those of [`Self::send_datagram`].
    pub fn send_datagram_ttl(&self, payload: &[u8], to: SocketAddr, ttl: u8) -> io::Result<()> {
        let inner = self.inner();
        let to = inner.destination(to)?;
        let _alone = inner.ttl.write().unwrap_or_else(PoisonError::into_inner);
        let socket = SockRef::from(&inner.io);
        // An IPv4 packet leaves a dual-stack socket with the IPv4 time to live.
        let v4 = to.is_ipv4() || is_mapped(to.ip());
        let set = |ttl: u32| match v4 {
            true => socket.set_ttl_v4(ttl),
            false => socket.set_unicast_hops_v6(ttl),
        };
        let before = if v4 { socket.ttl_v4() } else { socket.unicast_hops_v6() }?;
        set(u32::from(ttl.max(1)))?;
        let sent = inner.send(to, payload, None);
        set(before)?;
        sent
    }

    /// The datagrams that are not for a stream. Given once; later calls get `None`.
    #[must_use]
    pub fn take_datagrams(&self) -> Option<DatagramReceiver> {
        crate::sync::lock(&self.inner().datagrams).take()
    }

    /// Closes the socket and ends the streams connected over it. Closing twice is fine.
    pub fn close(&self) {
        self.inner().close();
    }

    /// Waits until nobody has the socket any more, so that its port is free: after [`UdxSocket::close`] that
    /// is when all clones are gone, and what was about to read or write has seen that it is closed.
    pub fn released(&self) -> impl Future<Output = ()> + Send + use<> {
        self.inner().released.token().clone().cancelled_owned()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.inner().closed.is_cancelled()
    }

    /// Whether both are the same bound socket.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.handle, &other.handle)
    }

    /// Sends one datagram, or a batch of datagrams of `segment` bytes each (the last may be shorter).
    pub(super) fn transmit(
        &self,
        to: SocketAddr,
        contents: &[u8],
        segment: Option<usize>,
    ) -> io::Result<()> {
        let inner = self.inner();
        let to = inner.destination(to)?;
        let _shared = inner.ttl.read().unwrap_or_else(PoisonError::into_inner);
        inner.send(to, contents, segment)
    }

    /// How many packets of `size` bytes one [`Self::transmit`] takes.
    pub(super) fn batch(&self, size: usize) -> usize {
        self.inner().state.max_gso_segments().min(MAX_BATCH / size.max(1)).max(1)
    }

    /// Waits until the kernel takes packets again, or the socket closes.
    pub(super) async fn writable(&self) {
        let inner = self.inner();
        tokio::select! {
            () = inner.closed.cancelled() => {}
            _ = inner.io.writable() => {}
        }
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.handle.inner
    }

    pub(super) fn runtime(&self) -> &tokio::runtime::Handle {
        &self.inner().runtime
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.inner.close();
    }
}

impl Inner {
    fn close(&self) {
        if self.closed.is_cancelled() {
            return;
        }
        let end_streams = || self.udx.all().iter().for_each(|stream| stream.socket_closed(self));
        // Before, so that they can still say so; and those that were connected meanwhile.
        end_streams();
        self.closed.cancel();
        end_streams();
    }

    /// `to` as this socket's family writes it.
    fn destination(&self, to: SocketAddr) -> io::Result<SocketAddr> {
        match (self.local, to) {
            (SocketAddr::V6(_), SocketAddr::V4(v4)) => {
                Ok(SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()))
            }
            (SocketAddr::V4(_), SocketAddr::V6(_)) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "an IPv4 socket cannot send to an IPv6 address",
            )),
            _ => Ok(to),
        }
    }

    fn send(&self, to: SocketAddr, contents: &[u8], segment: Option<usize>) -> io::Result<()> {
        if self.closed.is_cancelled() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let send = |contents: &[u8], segment_size: Option<usize>| {
            let transmit =
                Transmit { destination: to, ecn: None, contents, segment_size, src_ip: None };
            let attempt = || self.state.try_send((&self.io).into(), &transmit);
            match attempt() {
                // Through tokio only now: it then knows that `writable` has to wait, and before its
                // first look at a new socket it would refuse to try at all.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.io.try_io(Interest::WRITABLE, attempt)
                }
                result => result,
            }
        };
        match (send(contents, segment), segment) {
            // The device does no segmentation after all: quinn-udp has noted it, this batch goes singly.
            (Err(error), Some(size)) if size > 0 && error.kind() != io::ErrorKind::WouldBlock => {
                contents.chunks(size).try_for_each(|packet| send(packet, None))
            }
            (result, _) => result,
        }
    }
}

/// Reads the socket until it is closed.
async fn receive(inner: Arc<Inner>, handle: Weak<Handle>, datagrams: mpsc::Sender<Datagram>) {
    // With GRO one buffer holds up to 64 packets.
    let (count, size) = if inner.state.gro_segments() > 1 {
        (4, 1 << 16)
    } else {
        (quinn_udp::BATCH_SIZE, 1 << 12)
    };
    let mut storage = vec![0; count * size];
    let mut touched = Vec::new();
    let mut failures = 0u32;
    loop {
        tokio::select! {
            biased;
            () = inner.closed.cancelled() => break,
            ready = inner.io.readable() => if ready.is_err() { failures += 1 },
        }
        let mut is_drained = false;
        for _ in 0..READS_PER_TURN {
            let mut metas = [RecvMeta::default(); quinn_udp::BATCH_SIZE];
            let mut buffers: Vec<_> = storage.chunks_mut(size).map(IoSliceMut::new).collect();
            let read = inner.io.try_io(Interest::READABLE, || {
                inner.state.recv((&inner.io).into(), &mut buffers, &mut metas)
            });
            drop(buffers);
            match read {
                Ok(read) => {
                    failures = 0;
                    for (buffer, meta) in storage.chunks(size).zip(metas).take(read) {
                        let batch = buffer.get(..meta.len).unwrap_or_default();
                        let from = canonical(meta.addr);
                        deliver(
                            &inner,
                            &handle,
                            &datagrams,
                            batch,
                            meta.stride,
                            from,
                            &mut touched,
                        );
                    }
                    // Once a read, not once a packet: acknowledgements are batched like the packets.
                    for stream in touched.drain(..) {
                        stream.drive();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    is_drained = true;
                    break;
                }
                // Windows reports an unreachable earlier destination here: no reason to stop.
                Err(error) => {
                    debug!(%error, "reading a UDP socket");
                    failures += 1;
                    break;
                }
            }
        }
        if failures > 0 {
            tokio::time::sleep(Duration::from_millis(u64::from(failures.min(100)))).await;
        } else if !is_drained {
            tokio::task::yield_now().await;
        }
    }
}

/// Hands the packets of one read, `stride` bytes each, to their streams or to the datagram queue.
fn deliver(
    inner: &Inner,
    handle: &Weak<Handle>,
    datagrams: &mpsc::Sender<Datagram>,
    mut batch: &[u8],
    stride: usize,
    from: SocketAddr,
    touched: &mut Vec<Arc<Shared>>,
) {
    let stride = stride.max(1);
    while !batch.is_empty() {
        let packet = batch.get(..stride).unwrap_or(batch);
        let id = header::stream_id(packet);
        let Some(stream) = id.and_then(|id| inner.udx.find(id)) else {
            if let Some((link, side)) = id.and_then(|id| inner.udx.find_relayed(id)) {
                let Some(handle) = handle.upgrade() else { return };
                link.forward(side, &UdxSocket { handle }, from, packet);
            } else if packet.len() <= MAX_DATAGRAM {
                // Full: dropped, as the kernel drops what nobody reads.
                let payload = Bytes::copy_from_slice(packet);
                let _ = datagrams.try_send(Datagram { payload, from });
            }
            batch = batch.get(stride..).unwrap_or_default();
            continue;
        };
        // The run of packets for the same stream is taken under one lock.
        let mut run = packet.len();
        while let Some(next) = batch.get(run..).filter(|rest| !rest.is_empty()) {
            if header::stream_id(next.get(..stride).unwrap_or(next)) != id {
                break;
            }
            run = (run + stride).min(batch.len());
        }
        let (packets, rest) = batch.split_at(run);
        batch = rest;
        let Some(handle) = handle.upgrade() else { return };
        stream.receive(&UdxSocket { handle }, from, packets.chunks(stride));
        if !touched.iter().any(|known| Arc::ptr_eq(known, &stream)) {
            touched.push(stream);
        }
    }
}

fn is_mapped(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// IPv4 addresses as IPv4, whichever family the socket has. (IPv6 keeps its scope.)
pub(super) fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, addr.port()),
        IpAddr::V6(_) => addr,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn loopback() -> UdxSocket {
        Udx::new().bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap()
    }

    async fn next(receiver: &mut DatagramReceiver) -> Option<Datagram> {
        tokio::time::timeout(Duration::from_secs(5), receiver.recv()).await.unwrap()
    }

    #[tokio::test]
    async fn datagrams_and_packets_of_unknown_streams_reach_the_receiver() {
        let (a, b) = (loopback(), loopback());
        let mut receiver = b.take_datagrams().unwrap();
        assert!(b.take_datagrams().is_none());
        let packet = header::Header { stream_id: 7, ..Default::default() }.encode();
        for payload in [&b"hello"[..], &packet] {
            a.send_datagram(payload, b.local_addr()).unwrap();
            let got = next(&mut receiver).await.unwrap();
            assert_eq!((&got.payload[..], got.from), (payload, a.local_addr()));
        }
    }

    #[tokio::test]
    async fn a_time_to_live_of_one_reaches_this_machine_and_is_put_back() {
        let (a, b) = (loopback(), loopback());
        let mut receiver = b.take_datagrams().unwrap();
        let before = SockRef::from(&a.inner().io).ttl_v4().unwrap();
        a.send_datagram_ttl(b"near", b.local_addr(), 1).unwrap();
        assert_eq!(&next(&mut receiver).await.unwrap().payload[..], b"near");
        assert_eq!(SockRef::from(&a.inner().io).ttl_v4().unwrap(), before);
    }

    #[tokio::test]
    async fn a_dual_stack_socket_gives_ipv4_addresses_as_ipv4() {
        let Ok(b) = Udx::new().bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))) else {
            return; // no IPv6 on this machine
        };
        let a = loopback();
        let mut receiver = b.take_datagrams().unwrap();
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, b.local_addr().port()));
        a.send_datagram(b"four", to).unwrap();
        let got = next(&mut receiver).await.unwrap();
        assert_eq!(got.from, a.local_addr());
        let mut back = a.take_datagrams().unwrap();
        b.send_datagram(b"back", got.from).unwrap();
        assert_eq!(next(&mut back).await.unwrap().from, to);
    }

    #[tokio::test]
    async fn closing_twice_is_fine_and_ends_the_receiver() {
        let a = loopback();
        let mut receiver = a.take_datagrams().unwrap();
        a.close();
        a.close();
        assert_eq!(next(&mut receiver).await, None);
        let error = a.send_datagram(b"late", a.local_addr()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotConnected);
    }

    #[tokio::test]
    async fn the_last_clone_closes_the_socket() {
        let a = loopback();
        let mut receiver = a.take_datagrams().unwrap();
        let b = a.clone();
        drop(a);
        b.send_datagram(b"still here", b.local_addr()).unwrap();
        assert!(next(&mut receiver).await.is_some());
        drop(b);
        assert_eq!(next(&mut receiver).await, None);
    }
}
