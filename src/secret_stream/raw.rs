//! The raw stream under an encrypted one, with the first bytes that either half sends on its way.
//!
//! The header must leave also when the application only reads: the remote waits for it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Any byte stream that a connection can run over.
pub(super) trait RawStream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> RawStream for T {}

/// A raw stream whose first written bytes are `first`, whichever side is polled.
pub(super) struct Raw {
    stream: Box<dyn RawStream>,
    first: Bytes,
    /// The task that waited to write when the reading task last took the stream's only waker.
    writer: Option<Waker>,
}

impl Raw {
    pub(super) fn new(stream: impl RawStream + 'static, first: Bytes) -> Self {
        Self { stream: Box::new(stream), first, writer: None }
    }

    fn poll_first(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.first.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.first) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => drop(self.first.split_to(written)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_first_as_writer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = self.poll_first(cx);
        if outcome.is_pending() {
            self.writer = Some(cx.waker().clone());
        }
        outcome
    }
}

impl AsyncRead for Raw {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            // An error here is for the writer to meet; what was received is still worth reading.
            if self.poll_first(cx).is_ready() {
                let _ = Pin::new(&mut self.stream).poll_flush(cx);
                if let Some(writer) = self.writer.take() {
                    writer.wake();
                }
            }
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Raw {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.poll_first_as_writer(cx))?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.poll_first_as_writer(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.poll_first_as_writer(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
