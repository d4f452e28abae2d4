//! The encrypted stream of messages over a raw stream, and its two halves.

use std::fmt;
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::{Instant, timeout};

use super::cipher::{HEADER, OVERHEAD, Pull, Push};
use super::frame::{Frames, LENGTH, length_prefix};
use super::raw::Raw;
use super::{MAX_MESSAGE, Result, SecretStreamError, Session};
use crate::crypto::PublicKey;

/// How long the remote may take to send each part of its header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

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
        self.out.push(0); // for the tag
        for part in parts {
            self.out.extend_from_slice(part);
        }
        self.push.encrypt(&mut self.out, start);
        Ok(())
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
            let header_limit = self.pull.is_none().then_some(HEADER_TIMEOUT);
            let read = match self.timeout.or(header_limit) {
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

#[cfg(test)]
mod tests {
    use super::super::{Handshake, Pattern};
    use super::*;
    use crate::crypto::KeyPair;
    use tokio::io::{DuplexStream, duplex};

    async fn sessions() -> (Session, Session) {
        let (a, b) = (KeyPair::from_seed(&[1; 32]), KeyPair::from_seed(&[2; 32]));
        let remote = b.public_key();
        let mut a = Handshake::new(Pattern::IK, true, &a, Some(&remote), b"").unwrap();
        let mut b = Handshake::new(Pattern::IK, false, &b, None, b"").unwrap();
        b.read(&a.write(b"").unwrap()).unwrap();
        a.read(&b.write(b"").unwrap()).unwrap();
        (a.finish().unwrap(), b.finish().unwrap())
    }

    async fn streams(buffer: usize) -> (SecretStream, SecretStream) {
        let ((a, b), (session_a, session_b)) = (duplex(buffer), sessions().await);
        (SecretStream::new(a, session_a), SecretStream::new(b, session_b))
    }

    /// A stream whose remote is raw.
    async fn against_raw(options: StreamOptions) -> (SecretReceiver, SecretSender, DuplexStream) {
        let ((a, b), (session, _)) = (duplex(1 << 20), sessions().await);
        let (sender, receiver) = SecretStream::with_options(a, session, options).split();
        (receiver, sender, b)
    }

    #[tokio::test]
    async fn messages_of_every_size_arrive_whole_and_in_order() {
        let (a, b) = streams(10_000).await;
        assert_eq!(a.remote_public_key(), b.public_key());
        let ((mut sender, _receiver), (_sender, mut receiver)) = (a.split(), b.split());
        let sizes = [1, 2, 1000, 65_536, 65_600, 8191, 8192, 300_000, 5, 1 << 21, 3];
        let send = async {
            for (i, &size) in sizes.iter().enumerate() {
                sender
                    .feed_parts(&[&vec![i as u8; size / 2], &vec![i as u8; size - size / 2]])
                    .unwrap();
                if i % 3 == 0 {
                    sender.flush().await.unwrap();
                }
            }
            sender.shutdown().await.unwrap();
        };
        let receive = async {
            for (i, &size) in sizes.iter().enumerate() {
                let message = receiver.recv().await.unwrap().unwrap();
                assert_eq!(message.len(), size);
                assert!(message.iter().all(|&byte| byte == i as u8));
            }
            assert!(receiver.recv().await.unwrap().is_none());
        };
        tokio::join!(send, receive);
    }

    #[tokio::test]
    async fn a_side_that_only_receives_sends_its_header() {
        let (a, b) = streams(100).await;
        let ((mut sender, mut receiver_a), (_sender, mut receiver)) = (a.split(), b.split());
        let (sent, received) = tokio::join!(sender.send(b"hi"), receiver.recv());
        sent.unwrap();
        assert_eq!(received.unwrap().unwrap(), "hi");
        // The header of b has been sent while it received: a waits for messages, not for it.
        let waited = timeout(Duration::from_millis(50), receiver_a.recv()).await;
        assert!(waited.is_err());
        assert!(receiver_a.pull.is_some());
    }

    #[tokio::test]
    async fn keep_alives_are_not_delivered() {
        let (a, b) = streams(10_000).await;
        let ((mut sender, _receiver), (_sender, mut receiver)) = (a.split(), b.split());
        assert!(sender.keep_alive_at().is_some());
        sender.keep_alive().await.unwrap();
        sender.send(b"x").await.unwrap();
        assert_eq!(receiver.recv().await.unwrap().unwrap(), "x");
    }

    #[tokio::test]
    async fn an_end_inside_a_message_is_truncation() {
        let (a, mut b) = duplex(1 << 20);
        let (session, other) = sessions().await;
        let (_sender, mut receiver) = SecretStream::new(a, session).split();
        let (raw, mut copy) = duplex(1 << 20);
        let (mut sender, _keep) = SecretStream::new(raw, other).split();
        sender.send(b"a message").await.unwrap();
        sender.send(b"another message").await.unwrap();
        drop((sender, _keep));
        let mut wire = Vec::new();
        copy.read_to_end(&mut wire).await.unwrap();
        b.write_all(&wire[..wire.len() - 1]).await.unwrap();
        drop(b);
        assert_eq!(receiver.recv().await.unwrap().unwrap(), "a message");
        assert!(matches!(receiver.recv().await, Err(SecretStreamError::Truncated)));
        assert!(receiver.recv().await.is_err());
    }

    #[tokio::test]
    async fn an_end_before_the_header_is_truncation() {
        let (mut receiver, _sender, raw) = against_raw(StreamOptions::default()).await;
        drop(raw);
        assert!(receiver.recv().await.is_err());
    }

    #[tokio::test]
    async fn a_wrong_header_a_forged_and_a_long_message_are_refused() {
        let (mut receiver, _sender, mut raw) = against_raw(StreamOptions::default()).await;
        raw.write_all(&length_prefix(56)).await.unwrap();
        raw.write_all(&[7; 56]).await.unwrap();
        assert!(matches!(receiver.recv().await, Err(SecretStreamError::InvalidHeader)));

        let options = StreamOptions { max_message: 1000, ..StreamOptions::default() };
        let (mut receiver, _sender, mut raw) = against_raw(options.clone()).await;
        raw.write_all(&length_prefix(1018)).await.unwrap();
        assert!(matches!(receiver.recv().await, Err(SecretStreamError::TooLong { .. })));

        let (mut receiver, _sender, mut raw) = against_raw(options).await;
        let id = receiver.session.stream_id(false);
        raw.write_all(&[&length_prefix(56)[..], &id, &[1; 24]].concat()).await.unwrap();
        raw.write_all(&[&length_prefix(20)[..], &[1; 20]].concat()).await.unwrap();
        assert!(matches!(receiver.recv().await, Err(SecretStreamError::Decrypt)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_remote_times_out_when_asked_for() {
        let receive_timeout = Some(Duration::from_secs(20));
        let options = StreamOptions { receive_timeout, ..StreamOptions::default() };
        let (mut receiver, _sender, _raw) = against_raw(options).await;
        assert!(matches!(receiver.recv().await, Err(SecretStreamError::Timeout)));
    }
}
