//! A JavaScript `ReadableStream` of bytes as `AsyncRead`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_core::Stream;
use napi::bindgen_prelude::{FromNapiValue, Reader, Uint8Array};
use tokio::io::{AsyncRead, ReadBuf};

/// A copy of one chunk: JavaScript may change its own as soon as it runs again.
pub struct Chunk(Bytes);

impl FromNapiValue for Chunk {
    unsafe fn from_napi_value(
        env: napi::sys::napi_env,
        value: napi::sys::napi_value,
    ) -> napi::Result<Self> {
        // SAFETY: napi's own contract, handed on.
        let array = unsafe { Uint8Array::from_napi_value(env, value) }?;
        Ok(Self(Bytes::copy_from_slice(&array)))
    }
}

/// Reads a stream chunk by chunk; dropped before the end, it cancels the stream.
pub struct ChunkReader {
    reader: Reader<Chunk>,
    chunk: Bytes,
    ended: bool,
}

impl ChunkReader {
    /// Reads from the start.
    pub fn new(reader: Reader<Chunk>) -> Self {
        Self { reader, chunk: Bytes::new(), ended: false }
    }
}

impl AsyncRead for ChunkReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.chunk.is_empty() && !self.ended {
            match ready!(Pin::new(&mut self.reader).poll_next(context)) {
                Some(Ok(chunk)) => self.chunk = chunk.0,
                Some(Err(error)) => {
                    self.ended = true;
                    return Poll::Ready(Err(io::Error::other(error.reason.clone())));
                }
                None => self.ended = true,
            }
        }
        let length = self.chunk.len().min(buffer.remaining());
        buffer.put_slice(&self.chunk[..length]);
        self.chunk.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl Drop for ChunkReader {
    fn drop(&mut self) {
        if !self.ended {
            // The call is queued at once; how it ends is of no interest.
            drop(self.reader.cancel(Some("the book is not needed any more".to_owned())));
        }
    }
}
