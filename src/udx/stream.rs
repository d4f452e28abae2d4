//! A stream as programs use it: `AsyncRead` and `AsyncWrite`.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::socket::UdxSocket;
use super::table::Udx;

/// How a stream behaves.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StreamOptions {
    /// Received bytes that may wait for the reader: the advertised window.
    pub receive_window: u32,
    /// Written bytes that may wait for acknowledgement.
    pub send_buffer: usize,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self { receive_window: 4 << 20, send_buffer: 4 << 20 }
    }
}

/// Counters of a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamStats {
    /// Payload bytes sent, without retransmissions.
    pub bytes_sent: u64,
    /// Payload bytes received in order.
    pub bytes_received: u64,
    /// Packets sent again.
    pub retransmits: u64,
}

/// Why a stream is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseReason {
    /// Both sides ended it.
    Ended,
    /// This side destroyed it, or dropped it.
    Destroyed,
    /// The other side destroyed it.
    Reset,
    /// The other side no longer answers.
    TimedOut,
    /// The socket it was connected over was closed.
    SocketClosed,
}

/// A stream. Dropping it without `shutdown()` sends DESTROY; `shutdown()` flushes and sends END.
pub struct UdxStream {
    shared: Arc<Shared>,
}

/// A view of a stream that outlives its boxing.
#[derive(Clone)]
pub struct StreamHandle {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    id: u32,
    udx: Udx,
}

impl Shared {
    pub(super) fn new(udx: Udx, id: u32, _options: StreamOptions) -> Arc<Self> {
        Arc::new(Self { id, udx })
    }
    pub(super) fn socket_closed(&self, _local: SocketAddr) {}
    pub(super) fn drive(&self) {}
    pub(super) fn receive<'a>(
        &self,
        _socket: &UdxSocket,
        _from: SocketAddr,
        _packets: impl Iterator<Item = &'a [u8]>,
    ) {
    }
}

impl UdxStream {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The random id under which the other side addresses this stream.
    #[must_use]
    pub fn local_id(&self) -> u32 {
        self.shared.id
    }

    /// Connects the stream, once; later calls change nothing. What was written before goes out now.
    pub fn connect(&self, _socket: &UdxSocket, _remote_id: u32, _remote: SocketAddr) {}

    /// Waits for the first packet with this stream's id while it is not connected, and says over which
    /// socket and from where it came. The packet is kept (with a bounded number of later ones) and
    /// processed after `connect()`. `None` when the stream is connected or closed first. Cancel safe.
    pub fn on_first_packet(
        &self,
    ) -> impl Future<Output = Option<(UdxSocket, SocketAddr)>> + Send + 'static {
        std::future::pending()
    }

    /// Where the other side is, once connected.
    #[must_use]
    pub fn remote_addr(&self) -> Option<SocketAddr> {
        None
    }

    /// The smoothed round-trip time; zero before the first measurement.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        Duration::ZERO
    }

    /// The stream's counters.
    #[must_use]
    pub fn stats(&self) -> StreamStats {
        StreamStats::default()
    }

    /// A handle that stays useful after the stream itself was boxed.
    #[must_use]
    pub fn handle(&self) -> StreamHandle {
        StreamHandle { shared: Arc::clone(&self.shared) }
    }
}

impl Drop for UdxStream {
    fn drop(&mut self) {
        self.shared.udx.remove(self.shared.id);
    }
}

impl StreamHandle {
    /// The random id under which the other side addresses this stream.
    #[must_use]
    pub fn local_id(&self) -> u32 {
        self.shared.id
    }

    /// Where the other side is, once connected.
    #[must_use]
    pub fn remote_addr(&self) -> Option<SocketAddr> {
        None
    }

    /// The smoothed round-trip time; zero before the first measurement.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        Duration::ZERO
    }

    /// The stream's counters.
    #[must_use]
    pub fn stats(&self) -> StreamStats {
        StreamStats::default()
    }

    /// Ends the stream at once, with a DESTROY to the other side.
    pub fn destroy(&self) {}

    /// Waits until the stream is closed. Cancel safe.
    pub async fn closed(&self) -> CloseReason {
        std::future::pending().await
    }
}

impl AsyncRead for UdxStream {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        _buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for UdxStream {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
