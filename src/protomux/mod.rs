//! Many channels on one encrypted connection.
//!
//! The reference is npm `protomux` 3. A channel has a protocol name and an id; it is open once both
//! sides have opened it, and carries typed messages until either side closes it. Messages may be sent
//! before the other side has opened: they wait there. A channel that the remote opens and we have
//! not goes to the handler of its protocol ([`Protomux::on_open`]), or is rejected.
//!
//! `wire` is the byte format and `table` the rules of opening and closing, both without a socket;
//! `connection` joins them with `outbox` and the channels' inboxes; `tasks` moves the bytes. All that
//! a peer can fill is bounded (`limits`): when an inbox is full, the connection is not read any more.

mod channel;
mod connection;
mod limits;
mod outbox;
mod pending;
mod table;
mod tasks;
mod wire;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

pub use channel::{Channel, Message};

use crate::crypto::PublicKey;
use crate::secret_stream::SecretStream;
use connection::{Connection, Handle, RefuseGuard};

/// Why a channel could not be opened or used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MuxError {
    /// A channel with this protocol and id is open already.
    #[error("this channel is open already")]
    AlreadyOpen,
    /// The remote does not have this channel (now).
    #[error("the remote rejected the channel")]
    Rejected,
    /// The channel or its connection is closed.
    #[error("the channel is closed")]
    Closed,
    /// There are too many channels, or something is too long.
    #[error("{0} exceeds its limit")]
    LimitExceeded(&'static str),
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CloseReason {
    /// We closed it, or dropped its last handle.
    #[error("closed here")]
    Local,
    /// The remote ended it in good order.
    #[error("closed by the remote")]
    Remote,
    /// The remote broke the protocol.
    #[error("protocol violation: {0}")]
    Violation(String),
    /// The stream below failed.
    #[error("connection failed: {0}")]
    Failed(String),
}

/// How a connection with channels starts.
#[derive(Debug, Clone, Default)]
pub struct MuxOptions {
    /// Neither reads nor sends anything before [`Protomux::start`]: all handlers are in place before the
    /// remote's first open is seen, and the remote sees nothing of a connection that is not taken yet.
    pub paused: bool,
}

/// What a channel is opened with.
#[derive(Debug, Clone, Default)]
pub struct ChannelOptions {
    /// The protocol's name, at most 255 bytes.
    pub protocol: String,
    /// Tells channels of one protocol apart, at most 255 bytes; empty for none.
    pub id: Vec<u8>,
    /// What the remote's side gets from [`Channel::opened`], already encoded, at most 64 KiB.
    pub handshake: Vec<u8>,
    /// How many received bytes may wait to be taken; 0 for the default of 1 MiB. A message that is
    /// larger than that still arrives, alone.
    pub inbox: usize,
    /// Other protocol names under which the remote may open this channel.
    pub aliases: Vec<String>,
}

/// A channel that the remote opened and we have not. It is rejected when this is dropped and the
/// channel was not opened in the meantime; at the latest after 5 s.
pub struct RemoteOpen {
    /// The protocol's name.
    pub protocol: String,
    /// The channel's id.
    pub id: Vec<u8>,
    /// What the remote sent along.
    pub handshake: Bytes,
    _guard: RefuseGuard,
}

impl fmt::Debug for RemoteOpen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteOpen").field("protocol", &self.protocol).finish_non_exhaustive()
    }
}

/// Called for every channel that the remote opens and we have not, on the task that reads the
/// connection: it must not block. To accept, it opens the same protocol and id, at once or, keeping
/// the [`RemoteOpen`], soon.
pub type OpenHandler = Arc<dyn Fn(RemoteOpen) + Send + Sync>;

/// A handle to a connection with channels. The connection ends when it is closed, or when all its
/// handles and channels are dropped.
#[derive(Clone, Debug)]
pub struct Protomux {
    handle: Arc<Handle>,
}

impl Protomux {
    /// Takes over an encrypted connection. Must be called within a tokio runtime.
    #[must_use]
    pub fn new(stream: SecretStream, options: MuxOptions) -> Self {
        let connection = Arc::new(Connection::new(
            stream.remote_public_key(),
            *stream.handshake_hash(),
            stream.is_initiator(),
        ));
        if !options.paused {
            connection.started.cancel();
        }
        tasks::spawn(stream, Arc::clone(&connection));
        Self { handle: Arc::new(Handle(connection)) }
    }

    /// Begins to read and to write on a connection that was made paused.
    pub fn start(&self) {
        self.connection().started.cancel();
    }

    /// The remote's authenticated key.
    #[must_use]
    pub fn remote_public_key(&self) -> PublicKey {
        self.connection().remote_public_key
    }

    /// The hash of the connection's handshake: the same on both sides.
    #[must_use]
    pub fn handshake_hash(&self) -> &[u8; 64] {
        &self.connection().handshake_hash
    }

    /// Whether this side began the handshake.
    #[must_use]
    pub fn is_initiator(&self) -> bool {
        self.connection().is_initiator
    }

    /// Whether both are handles to the same connection.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.handle, &other.handle)
    }

    /// Opens a channel on our side. Messages may be sent at once; [`Channel::opened`] tells when the
    /// remote has it too.
    ///
    /// # Errors
    /// `AlreadyOpen`, `LimitExceeded`, or `Closed` when the connection is.
    pub fn open(&self, options: ChannelOptions) -> Result<Channel, MuxError> {
        self.connection().open(&self.handle, options)
    }

    /// Sets what happens when the remote opens a channel of `protocol` that we have not opened.
    /// Without a handler such channels are rejected. A handler that keeps a `Protomux` keeps the
    /// connection open until it is closed; [`remove_handler`](Self::remove_handler) ends that.
    pub fn on_open(&self, protocol: &str, handler: OpenHandler) {
        self.connection().set_handler(protocol, Some(handler));
    }

    /// Forgets the handler of `protocol`.
    pub fn remove_handler(&self, protocol: &str) {
        self.connection().set_handler(protocol, None);
    }

    /// Closes all channels and the connection, after sending what waits to be sent (for at most
    /// 5 s). Returns at once; [`finished`](Self::finished) waits. Closing again does nothing.
    pub fn close(&self) {
        self.connection().end(CloseReason::Local);
    }

    /// Ends the connection at once because the remote broke the protocol of a channel. The reason is
    /// logged and becomes the [`CloseReason::Violation`].
    pub fn close_with(&self, violation: impl Into<String>) {
        self.connection().end(CloseReason::Violation(violation.into()));
    }

    /// Whether the connection is closed, by whomever.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.connection().close_reason().is_some()
    }

    /// Waits until the connection is closed: no channel can be opened or used any more. Cancel safe.
    pub async fn closed(&self) -> CloseReason {
        self.connection().closed().await
    }

    /// Waits until the connection's tasks have ended and the stream below is gone, at most about
    /// 7 s after it was closed. Cancel safe.
    pub async fn finished(&self) {
        self.connection().finished.cancelled().await;
    }

    fn connection(&self) -> &Connection {
        &self.handle.0
    }
}

#[cfg(test)]
mod tests {
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

    #[tokio::test]
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

    #[tokio::test]
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
}
