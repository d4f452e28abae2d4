//! A stream as programs use it: `AsyncRead` and `AsyncWrite`.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::budget::WindowBudget;
use super::driver::{Shared, State};
use super::socket::UdxSocket;

/// How a stream behaves.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StreamOptions {
    /// The most received bytes that may wait for the reader. The window that is advertised begins with
    /// 1 MiB at most and grows for a reader that keeps up.
    pub receive_window: u32,
    /// Written bytes that may wait for acknowledgement.
    pub send_buffer: usize,
    /// What the receive window grows from. [`super::Udx::create_stream`] sets that of its set.
    pub budget: WindowBudget,
}

impl Default for StreamOptions {
    fn default() -> Self {
        // Long paths that lose packets need it: 80 MB/s where a round trip takes 50 ms and a loss four of
        // them.
        Self { receive_window: 24 << 20, send_buffer: 24 << 20, budget: WindowBudget::default() }
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

impl CloseReason {
    /// The error that reads and writes give after it.
    fn error(self) -> io::Error {
        let (kind, text) = match self {
            Self::Ended => (io::ErrorKind::BrokenPipe, "the stream has ended"),
            Self::Destroyed => (io::ErrorKind::ConnectionAborted, "the stream was destroyed"),
            Self::Reset => (io::ErrorKind::ConnectionReset, "the other side destroyed the stream"),
            Self::TimedOut => (io::ErrorKind::TimedOut, "the other side no longer answers"),
            Self::SocketClosed => (io::ErrorKind::NotConnected, "the socket was closed"),
        };
        io::Error::new(kind, text)
    }
}

/// A stream: `AsyncRead` and `AsyncWrite`.
///
/// Reads give what arrived before the stream ended, also after the other side destroyed it; then
/// nothing more, or the reason as an error. Writes are buffered and sent by a task of the stream, so
/// that several small ones share a packet; `flush()` does not wait for them. `shutdown()` sends END and
/// waits until everything has arrived. Dropping a stream without it sends DESTROY; what was ended
/// before still arrives. Reads and writes are cancel safe.
pub struct UdxStream {
    shared: Arc<Shared>,
}

/// A view of a stream that outlives its boxing. It does not keep the stream open.
#[derive(Clone)]
pub struct StreamHandle {
    shared: Arc<Shared>,
}

impl UdxStream {
    pub(super) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The random id under which the other side addresses this stream.
    #[must_use]
    pub fn local_id(&self) -> u32 {
        self.shared.id
    }

    /// Connects the stream, once; later calls change nothing. What was written before goes out now.
    ///
    /// From here on only packets from `remote` count. When its address changes (a NAT forgot it, its network
    /// is another), the stream follows once `remote` is silent and only the newcomer answers.
    pub fn connect(&self, socket: &UdxSocket, remote_id: u32, remote: SocketAddr) {
        self.shared.connect(socket, remote_id, remote);
    }

    /// Waits for the first packet with this stream's id while it is not connected, and says over which
    /// socket and from where it came. The packet is kept (with a bounded number of later ones) and
    /// processed after `connect()`. `None` when the stream is connected or closed first. Cancel safe.
    pub fn on_first_packet(
        &self,
    ) -> impl Future<Output = Option<(UdxSocket, SocketAddr)>> + Send + 'static {
        Arc::clone(&self.shared).first_packet()
    }

    /// Where the other side is, once connected.
    #[must_use]
    pub fn remote_addr(&self) -> Option<SocketAddr> {
        self.shared.with(|state| state.machine.remote_addr())
    }

    /// The smoothed round-trip time; zero before the first measurement.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.shared.with(|state| state.machine.rtt())
    }

    /// The stream's counters.
    #[must_use]
    pub fn stats(&self) -> StreamStats {
        self.shared.with(|state| state.machine.stats())
    }

    /// A handle that stays useful after the stream itself was boxed.
    #[must_use]
    pub fn handle(&self) -> StreamHandle {
        StreamHandle { shared: Arc::clone(&self.shared) }
    }
}

impl Drop for UdxStream {
    fn drop(&mut self) {
        self.shared.detach();
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
        self.shared.with(|state| state.machine.remote_addr())
    }

    /// The smoothed round-trip time; zero before the first measurement.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.shared.with(|state| state.machine.rtt())
    }

    /// The stream's counters.
    #[must_use]
    pub fn stats(&self) -> StreamStats {
        self.shared.with(|state| state.machine.stats())
    }

    /// Moves a connected stream to another socket, address or id of the other side, which does the same:
    /// from a relay to the direct path, for example. Nothing that is on its way is lost by it.
    /// False when the stream is not connected.
    ///
    /// The way before is used until a packet came over the new one, and packets that still come over it
    /// count for 10 s after the last. A way that does not answer for half a minute is forgotten.
    pub fn change_remote(&self, socket: &UdxSocket, remote_id: u32, remote: SocketAddr) -> bool {
        self.shared.change_remote(socket, remote_id, remote)
    }

    /// Waits for a packet with this stream's id over a socket that the stream is not connected over: the
    /// other side may have found another way. The packet itself is not processed. `None` once the stream is
    /// closed. For one caller at a time; cancel safe.
    pub fn other_path(
        &self,
    ) -> impl Future<Output = Option<(UdxSocket, SocketAddr)>> + Send + 'static {
        Arc::clone(&self.shared).other_path()
    }

    /// Waits until packets go the way that [`StreamHandle::change_remote`] gave last; false when the stream
    /// is closed before. A way that never answers is waited for until then. Cancel safe.
    pub async fn moved(&self) -> bool {
        self.shared.moved().await
    }

    /// The socket and the address that packets go to now, once connected.
    #[must_use]
    pub fn path(&self) -> Option<(UdxSocket, SocketAddr)> {
        self.shared.path()
    }

    /// Whether the other side does not answer, although it was asked.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        *self.shared.silent.borrow()
    }

    /// Waits until [`StreamHandle::is_silent`] is as wanted: for 1 s, or a retransmission timeout, a question
    /// was not answered; or something was heard again. A stream that is closed stays as it was. Cancel safe.
    pub async fn silent(&self, wanted: bool) {
        // The sender lives as long as this handle.
        let _ = self.shared.silent.subscribe().wait_for(|is| *is == wanted).await;
    }

    /// Ends the stream at once, with a DESTROY to the other side.
    pub fn destroy(&self) {
        self.shared.destroy();
    }

    /// Waits until the stream is closed. Cancel safe.
    pub async fn closed(&self) -> CloseReason {
        let mut closed = self.shared.closed.subscribe();
        match closed.wait_for(Option::is_some).await.map(|reason| *reason) {
            Ok(Some(reason)) => reason,
            // The sender lives as long as this handle.
            _ => CloseReason::Destroyed,
        }
    }
}

impl AsyncRead for UdxStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.shared.with(|state| {
            let State { machine, reader, .. } = state;
            if buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if machine.available() == 0 {
                return match machine.closed() {
                    _ if machine.has_ended() => Poll::Ready(Ok(())),
                    Some(reason) => Poll::Ready(Err(reason.error())),
                    None => {
                        *reader = Some(cx.waker().clone());
                        Poll::Pending
                    }
                };
            }
            // Not into `initialize_unfilled()`, which would fill it with zeros first.
            machine.read_with(buf.remaining(), |part| buf.put_slice(part));
            if machine.has_news() {
                self.shared.wake(state);
            }
            Poll::Ready(Ok(()))
        })
    }
}

impl AsyncWrite for UdxStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.shared.with(|state| {
            if let Some(reason) = state.machine.closed() {
                return Poll::Ready(Err(reason.error()));
            }
            if state.machine.is_finished() {
                return Poll::Ready(Err(CloseReason::Ended.error()));
            }
            let written = state.machine.write(buf);
            if written == 0 && !buf.is_empty() {
                state.writer = Some(cx.waker().clone());
                return Poll::Pending;
            }
            self.shared.wake(state);
            Poll::Ready(Ok(written))
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.with(|state| {
            if state.machine.is_flushed() {
                return Poll::Ready(Ok(()));
            }
            if let Some(reason) = state.machine.closed() {
                return Poll::Ready(Err(reason.error()));
            }
            state.machine.finish();
            state.finisher = Some(cx.waker().clone());
            self.shared.wake(state);
            Poll::Pending
        })
    }
}
