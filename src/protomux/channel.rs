//! One channel of a connection: what arrived on it, and how to send on it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::Notify;

use super::connection::{Connection, Handle};
use super::limits::{DEFAULT_INBOX, MAX_BATCH, MESSAGE_COST};
use super::outbox::Frame;
use super::{MuxError, wire};
use crate::secret_stream::MAX_MESSAGE;
use crate::sync::lock;

/// The longest message of a channel: what the stream carries, less channel id and type.
const MAX_CHANNEL_MESSAGE: usize = MAX_MESSAGE - 32;

/// A message of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The message's type: its index in the protocol's list.
    pub kind: u32,
    /// The encoded message.
    pub data: Bytes,
}

impl Message {
    /// What the message counts where it waits.
    pub(super) fn cost(&self) -> usize {
        self.data.len() + MESSAGE_COST
    }
}

/// How far a channel is.
#[derive(Debug, Clone)]
enum Phase {
    /// We opened it, the remote has not yet.
    Opening,
    /// Open on both sides; the remote's handshake.
    Open(Bytes),
    /// Over, and why.
    Closed(MuxError),
}

#[derive(Debug)]
struct State {
    phase: Phase,
    inbox: VecDeque<Message>,
    inbox_cost: usize,
}

/// What a channel's handle and its connection share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) local: u64,
    limit: usize,
    state: Mutex<State>,
    /// The phase or the inbox changed.
    changed: Notify,
}

impl Shared {
    pub(super) fn new(local: u64, inbox: usize) -> Self {
        let limit = if inbox == 0 { DEFAULT_INBOX } else { inbox };
        let state = State { phase: Phase::Opening, inbox: VecDeque::new(), inbox_cost: 0 };
        Self { local, limit, state: Mutex::new(state), changed: Notify::new() }
    }

    /// The remote has opened the channel too; `messages` came before we did.
    pub(super) fn set_open(&self, handshake: Bytes, messages: Vec<Message>) {
        let mut state = lock(&self.state);
        if matches!(state.phase, Phase::Opening) {
            state.phase = Phase::Open(handshake);
            state.inbox_cost += messages.iter().map(Message::cost).sum::<usize>();
            state.inbox.extend(messages);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// The channel is over. What arrived before can still be taken, unless we closed it ourselves.
    pub(super) fn set_closed(&self, why: MuxError, keep_inbox: bool) {
        let mut state = lock(&self.state);
        if !matches!(state.phase, Phase::Closed(_)) {
            state.phase = Phase::Closed(why);
        }
        if !keep_inbox {
            state.inbox = VecDeque::new();
            state.inbox_cost = 0;
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Puts a message into the inbox, or gives it back when there is no room now.
    pub(super) fn offer(&self, message: Message) -> Option<Message> {
        let mut state = lock(&self.state);
        if matches!(state.phase, Phase::Closed(_)) {
            return None;
        }
        let cost = message.cost();
        if state.inbox_cost > 0 && state.inbox_cost.saturating_add(cost) > self.limit {
            return Some(message);
        }
        state.inbox_cost += cost;
        state.inbox.push_back(message);
        drop(state);
        self.changed.notify_waiters();
        None
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(lock(&self.state).phase, Phase::Closed(_))
    }

    /// Waits until `check` gives something; it is asked again after every change.
    async fn wait_for<T>(&self, mut check: impl FnMut(&mut State) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(value) = check(&mut lock(&self.state)) {
                return value;
            }
            changed.await;
        }
    }
}

/// One channel of a connection. Dropping it closes it.
///
/// All methods take `&self`, so that it can be shared by a task that receives and others that send.
/// Messages that arrive wait in a bounded inbox; when it is full, nothing more is read from the whole
/// connection, so a channel must be read as long as it is open.
pub struct Channel {
    shared: Arc<Shared>,
    handle: Arc<Handle>,
}

impl Channel {
    pub(super) fn new(shared: Arc<Shared>, handle: Arc<Handle>) -> Self {
        Self { shared, handle }
    }

    /// Waits until the remote has opened the channel too, and gives its handshake. Cancel safe, and
    /// may be called again.
    ///
    /// # Errors
    /// `Rejected` when the remote does not have this channel now, `Closed` when it was closed.
    pub async fn opened(&self) -> Result<Bytes, MuxError> {
        self.shared
            .wait_for(|state| match &state.phase {
                Phase::Opening => None,
                Phase::Open(handshake) => Some(Ok(handshake.clone())),
                Phase::Closed(why) => Some(Err(why.clone())),
            })
            .await
    }

    /// The next message; `None` once the channel is closed and, if the remote closed it, everything
    /// it sent before was taken. Cancel safe.
    pub async fn recv(&self) -> Option<Message> {
        let message = self
            .shared
            .wait_for(|state| match state.inbox.pop_front() {
                Some(message) => {
                    state.inbox_cost = state.inbox_cost.saturating_sub(message.cost());
                    Some(Some(message))
                }
                None => matches!(state.phase, Phase::Closed(_)).then_some(None),
            })
            .await;
        if message.is_some() {
            self.connection().room_to_read();
        }
        message
    }

    /// Sends a message, after waiting for room among what the connection has yet to send. Allowed
    /// before the remote has opened the channel: the messages follow our open. When dropped before
    /// it returns, the message is not sent.
    ///
    /// # Errors
    /// `Closed`; `LimitExceeded` above 16 MiB less 50 bytes.
    pub async fn send(&self, kind: u32, data: &[u8]) -> Result<(), MuxError> {
        self.send_bytes(kind, Bytes::copy_from_slice(data)).await
    }

    /// [`send`](Self::send) without a copy of the message.
    ///
    /// # Errors
    /// As `send`.
    pub async fn send_bytes(&self, kind: u32, data: Bytes) -> Result<(), MuxError> {
        self.send_frame(self.message(kind, &[data])?).await
    }

    /// Sends a message if there is room for it now; `false` when there is not.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn try_send(&self, kind: u32, data: &[u8]) -> Result<bool, MuxError> {
        let frame = self.message(kind, &[Bytes::copy_from_slice(data)])?;
        if self.is_closed() {
            return Err(MuxError::Closed);
        }
        match self.connection().try_reserve(&frame)? {
            true => self.connection().queue(&self.shared, frame).map(|()| true),
            false => Ok(false),
        }
    }

    /// Sends messages as one batch of the wire, which the remote answers with one; above 512 KiB as
    /// several. Each is its kind and its bytes, in parts of which large ones are not copied. When
    /// dropped before it returns, some of the batches may have been sent.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn send_batch(&self, messages: &[(u32, Vec<Bytes>)]) -> Result<(), MuxError> {
        let mut rest = messages;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fitting = rest.iter().take_while(|(_, parts)| {
                bytes += parts.iter().map(Bytes::len).sum::<usize>();
                bytes <= MAX_BATCH
            });
            let count = fitting.count().max(1);
            let (now, later) = rest.split_at(count);
            rest = later;
            let frame = match now {
                [(kind, parts)] => self.message(*kind, parts)?,
                _ => Frame::new(wire::batch(self.shared.local, now)),
            };
            self.send_frame(frame).await?;
        }
        Ok(())
    }

    /// Closes the channel on both sides. What was sent before still arrives; what has not been
    /// received is dropped. Closing again does nothing.
    pub fn close(&self) {
        self.connection().close_channel(&self.shared);
    }

    /// Whether either side has closed the channel.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.is_closed()
    }

    /// Waits until either side has closed the channel; received messages may still wait. Cancel safe.
    pub async fn closed(&self) {
        self.shared.wait_for(|state| matches!(state.phase, Phase::Closed(_)).then_some(())).await;
    }

    fn connection(&self) -> &Connection {
        &self.handle.0
    }

    fn message(&self, kind: u32, parts: &[Bytes]) -> Result<Frame, MuxError> {
        if parts.iter().map(Bytes::len).sum::<usize>() > MAX_CHANNEL_MESSAGE {
            return Err(MuxError::LimitExceeded("the message"));
        }
        let mut all = vec![wire::message_head(self.shared.local, kind)];
        all.extend_from_slice(parts);
        Ok(Frame::new(all))
    }

    async fn send_frame(&self, frame: Frame) -> Result<(), MuxError> {
        if self.is_closed() {
            return Err(MuxError::Closed);
        }
        tokio::select! {
            biased;
            room = self.connection().reserve(&frame) => room?,
            () = self.closed() => return Err(MuxError::Closed),
        }
        self.connection().queue(&self.shared, frame)
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").field("local", &self.shared.local).finish_non_exhaustive()
    }
}
