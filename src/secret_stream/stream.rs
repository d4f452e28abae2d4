//! The encrypted stream of messages over a raw stream, and its two halves.

use std::fmt;
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::{Instant, timeout};

use super::cipher::{HEADER, OVERHEAD, Pull, Push};
use super::frame::{Frames, LENGTH, length_prefix};
use super::handshake::MAX_HANDSHAKE_MESSAGE;
use super::raw::Raw;
use super::{Handshake, MAX_MESSAGE, Pattern, Result, SecretStreamError, Session};
use crate::crypto::{KeyPair, PublicKey};

/// How long a handshake on a plain stream may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A send buffer larger than this is given back after it was written.
const KEEP_CAPACITY: usize = 512 * 1024;

/// How an encrypted stream behaves.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StreamOptions {
    /// How long the sender may be silent before [`SecretSender::keep_alive`] sends an empty message,
    /// 5 s as HyperDHT has it. When set, received empty messages are keep-alives and never delivered;
    /// when `None`, they are messages (npm's `filterZeroByteMessages`).
    pub keep_alive: Option<Duration>,
    /// Fails receiving when nothing at all arrives for this long. Only sensible when the remote keeps
    /// alive. `None`, the default, waits for the raw stream to notice.
    pub receive_timeout: Option<Duration>,
    /// The longest message accepted, in bytes; at most (and by default) [`MAX_MESSAGE`].
    pub max_message: usize,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self {
            keep_alive: Some(Duration::from_secs(5)),
            receive_timeout: None,
            max_message: MAX_MESSAGE,
        }
    }
}

/// An authenticated, encrypted connection that carries messages.
pub struct SecretStream {
    sender: SecretSender,
    receiver: SecretReceiver,
}

impl SecretStream {
    /// Goes on after a handshake, with the default options. The raw stream must stand right after
    /// the handshake's last message (for HyperDHT: at its very start). The header is sent by the
    /// first operation on either half.
    pub fn new(
        raw: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        session: Session,
    ) -> Self {
        Self::with_options(raw, session, StreamOptions::default())
    }

    /// [`new`](Self::new) with options.
    pub fn with_options(
        raw: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        session: Session,
        options: StreamOptions,
    ) -> Self {
        let (push, header) = Push::new(&session.tx);
        let mut first = BytesMut::with_capacity(LENGTH + 32 + HEADER);
        first.extend_from_slice(&length_prefix(32 + HEADER));
        first.extend_from_slice(&session.stream_id(session.is_initiator));
        first.extend_from_slice(&header);
        let (read, write) = tokio::io::split(Raw::new(raw, first.freeze()));
        let limit = options.max_message.min(MAX_MESSAGE).saturating_add(OVERHEAD);
        Self {
            sender: SecretSender {
                raw: write,
                push,
                out: Vec::new(),
                keep_alive: options.keep_alive,
                last_sent: Instant::now(),
            },
            receiver: SecretReceiver {
                raw: read,
                frames: Frames::new(limit.max(32 + HEADER)),
                pull: None,
                swallow_empty: options.keep_alive.is_some(),
                timeout: options.receive_timeout,
                failed: false,
                session,
            },
        }
    }

    /// The remote's authenticated key.
    #[must_use]
    pub fn remote_public_key(&self) -> PublicKey {
        self.receiver.session.remote_public_key
    }

    /// Our key on this connection.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        self.receiver.session.public_key
    }

    /// The handshake's hash: the same on both sides, different for every connection.
    #[must_use]
    pub fn handshake_hash(&self) -> &[u8; 64] {
        &self.receiver.session.handshake_hash
    }

    /// Whether this side began the handshake.
    #[must_use]
    pub fn is_initiator(&self) -> bool {
        self.receiver.session.is_initiator
    }

    /// The two halves, for two tasks.
    #[must_use]
    pub fn split(self) -> (SecretSender, SecretReceiver) {
        (self.sender, self.receiver)
    }
}

impl fmt::Debug for SecretStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SecretStream").field(&self.receiver.session).finish()
    }
}

/// The sending half. Messages are encrypted into one buffer, which is written as a whole.
pub struct SecretSender {
    raw: WriteHalf<Raw>,
    push: Push,
    out: Vec<u8>,
    keep_alive: Option<Duration>,
    last_sent: Instant,
}

impl SecretSender {
    /// Sends one message of at most [`MAX_MESSAGE`] bytes, and whatever was fed before. Not cancel
    /// safe: when dropped halfway, the stream must not be used further.
    ///
    /// # Errors
    /// `TooLong`, or the raw stream's failure.
    pub async fn send(&mut self, message: &[u8]) -> Result<()> {
        self.feed(message)?;
        self.flush().await
    }

    /// Encrypts a message into the buffer without sending it. Several messages fed and then
    /// [flushed](Self::flush) leave in one write. The caller bounds how much it feeds.
    ///
    /// # Errors
    /// `TooLong`; the stream stays usable.
    pub fn feed(&mut self, message: &[u8]) -> Result<()> {
        self.feed_parts(&[message])
    }

    /// [`feed`](Self::feed) of one message that is given in parts.
    ///
    /// # Errors
    /// `TooLong`; the stream stays usable.
    pub fn feed_parts(&mut self, parts: &[&[u8]]) -> Result<()> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if length > MAX_MESSAGE {
            return Err(SecretStreamError::TooLong { length, limit: MAX_MESSAGE });
        }
        self.out.reserve(LENGTH + length + OVERHEAD);
        self.out.extend_from_slice(&length_prefix(length + OVERHEAD));
        let start = self.out.len();
        for part in parts {
            self.out.extend_from_slice(part);
        }
        self.push.encrypt(&mut self.out, start)
    }

    /// How many encrypted bytes wait to be flushed.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.out.len()
    }

    /// Writes everything that was fed; with nothing fed, makes sure that the header has left.
    /// Not cancel safe.
    ///
    /// # Errors
    /// The raw stream's failure.
    pub async fn flush(&mut self) -> Result<()> {
        if !self.out.is_empty() {
            self.raw.write_all(&self.out).await?;
            self.last_sent = Instant::now();
            self.out.clear();
            if self.out.capacity() > KEEP_CAPACITY {
                self.out = Vec::new();
            }
        }
        Ok(self.raw.flush().await?)
    }

    /// When the next keep-alive is due if nothing is sent until then; `None` without keep-alive.
    #[must_use]
    pub fn keep_alive_at(&self) -> Option<Instant> {
        self.keep_alive.map(|interval| self.last_sent + interval)
    }

    /// Sends an empty message now, as the remote's receive timeout may expect. A task that owns the
    /// sender calls this at [`keep_alive_at`](Self::keep_alive_at); `protomux` does. Not cancel safe.
    ///
    /// # Errors
    /// The raw stream's failure.
    pub async fn keep_alive(&mut self) -> Result<()> {
        self.send(&[]).await
    }

    /// Flushes and ends our direction; the remote can still send. Not cancel safe.
    ///
    /// # Errors
    /// The raw stream's failure.
    pub async fn shutdown(&mut self) -> Result<()> {
        self.flush().await?;
        Ok(self.raw.shutdown().await?)
    }
}

impl fmt::Debug for SecretSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretSender").field("buffered", &self.out.len()).finish_non_exhaustive()
    }
}

/// The receiving half.
pub struct SecretReceiver {
    raw: ReadHalf<Raw>,
    frames: Frames,
    pull: Option<Pull>,
    swallow_empty: bool,
    timeout: Option<Duration>,
    failed: bool,
    session: Session,
}

impl SecretReceiver {
    /// The next message; `None` when the remote ended its direction between two messages. Cancel
    /// safe. After an error, every later call fails.
    ///
    /// # Errors
    /// Whatever is wrong with what the remote sent, or the raw stream's failure.
    pub async fn recv(&mut self) -> Result<Option<Bytes>> {
        if self.failed {
            return Err(SecretStreamError::Io(io::ErrorKind::BrokenPipe.into()));
        }
        let outcome = self.receive().await;
        self.failed = outcome.is_err();
        outcome
    }

    async fn receive(&mut self) -> Result<Option<Bytes>> {
        loop {
            while let Some(message) = self.frames.next()? {
                if let Some(message) = self.open(message)? {
                    return Ok(Some(message));
                }
            }
            let read = match self.timeout {
                Some(limit) => {
                    timeout(limit, self.read()).await.map_err(|_| SecretStreamError::Timeout)??
                }
                None => self.read().await?,
            };
            if read == 0 {
                let clean = self.frames.is_empty() && self.pull.is_some();
                return if clean { Ok(None) } else { Err(SecretStreamError::Truncated) };
            }
        }
    }

    /// One read of the raw stream: cancel safe, for what was read is in the buffer at once.
    async fn read(&mut self) -> io::Result<usize> {
        let (buffer, want) = self.frames.room();
        self.raw.read_buf(&mut bytes::BufMut::limit(buffer, want)).await
    }

    /// Decrypts a message; the first one is the header.
    fn open(&mut self, mut message: BytesMut) -> Result<Option<Bytes>> {
        let Some(pull) = &mut self.pull else {
            let expected = self.session.stream_id(!self.session.is_initiator);
            let header = message
                .strip_prefix(&expected[..])
                .and_then(|header| <[u8; HEADER]>::try_from(header).ok())
                .ok_or(SecretStreamError::InvalidHeader)?;
            self.pull = Some(Pull::new(&self.session.rx, header));
            return Ok(None);
        };
        pull.decrypt(&mut message)?;
        let keep_alive = message.is_empty() && self.swallow_empty;
        Ok((!keep_alive).then(|| message.freeze()))
    }
}

impl fmt::Debug for SecretReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretReceiver").field("session", &self.session).finish_non_exhaustive()
    }
}

/// Shakes hands on a plain stream with Noise XX, as npm's `new NoiseSecretStream(isInitiator, raw)`
/// does, within 10 s. The remote's key is whatever it proves to have: the caller decides about it.
///
/// # Errors
/// `Handshake`, `Timeout`, `Truncated`, or the raw stream's failure.
pub async fn connect_xx<S>(raw: S, initiator: bool, keys: &KeyPair) -> Result<SecretStream>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    timeout(HANDSHAKE_TIMEOUT, shake_hands(raw, initiator, keys))
        .await
        .map_err(|_| SecretStreamError::Timeout)?
}

async fn shake_hands<S>(mut raw: S, initiator: bool, keys: &KeyPair) -> Result<SecretStream>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut handshake = Handshake::new(Pattern::XX, initiator, keys, None, &[])?;
    let mut ours = initiator;
    while !handshake.is_complete() {
        if ours {
            let message = handshake.write(&[])?;
            let mut framed = length_prefix(message.len()).to_vec();
            framed.extend_from_slice(&message);
            raw.write_all(&framed).await?;
            raw.flush().await?;
        } else {
            handshake.read(&read_frame(&mut raw).await?)?;
        }
        ours = !ours;
    }
    Ok(SecretStream::new(raw, handshake.finish()?))
}

/// Exactly one message, so that nothing behind the handshake is read.
async fn read_frame(raw: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>> {
    let mut length = [0; 4];
    let truncated = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => SecretStreamError::Truncated,
        _ => SecretStreamError::Io(error),
    };
    raw.read_exact(&mut length[..LENGTH]).await.map_err(truncated)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_HANDSHAKE_MESSAGE {
        return Err(SecretStreamError::TooLong { length, limit: MAX_HANDSHAKE_MESSAGE });
    }
    let mut message = vec![0; length];
    raw.read_exact(&mut message).await.map_err(truncated)?;
    Ok(message)
}
