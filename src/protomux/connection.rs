//! What the handles, channels and tasks of one connection share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::channel::{Channel, Message, Shared};
use super::limits::{
    MAX_CONTROL, MAX_HANDSHAKE, MAX_ID, MAX_PENDING, MAX_PROTOCOL, MAX_STRAYS, OPEN_BURST,
    OPENS_A_SECOND,
};
use super::outbox::{Frame, Outbox, Room};
use super::pending::Name;
use super::table::{RemoteClosed, RemoteOpened, Table, Target};
use super::wire::{self, Item};
use super::{ChannelOptions, CloseReason, MuxError, OpenHandler, RemoteOpen};
use crate::crypto::PublicKey;
use crate::rate_limit::RateLimit;
use crate::sync::lock;

/// Keeps a connection open: the last handle to go closes it.
#[derive(Debug)]
pub(super) struct Handle(pub(super) Arc<Connection>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.end(CloseReason::Local);
    }
}

struct State {
    table: Table<Arc<Shared>>,
    outbox: Outbox,
    handlers: HashMap<String, OpenHandler>,
    strays: u32,
    /// How often the remote opens channels.
    opens: RateLimit,
}

impl State {
    /// Counts a message that no implementation sends. A few are ignored, as the reference does.
    fn stray(&mut self) -> Result<(), &'static str> {
        self.strays += 1;
        if self.strays > MAX_STRAYS {
            return Err("messages on channels that were never opened");
        }
        Ok(())
    }
}

/// What the handles, channels and tasks of one connection share.
pub(super) struct Connection {
    pub(super) remote_public_key: PublicKey,
    pub(super) handshake_hash: [u8; 64],
    pub(super) is_initiator: bool,
    state: Mutex<State>,
    room: Room,
    /// The writer has something to do.
    pub(super) to_write: Notify,
    /// The reader may go on: an inbox, the waiting opens or the control messages got smaller.
    to_read: Notify,
    /// Reading may begin.
    pub(super) started: CancellationToken,
    /// Stop at once, without sending what waits.
    pub(super) stopped: CancellationToken,
    /// Both tasks have ended and the stream below is gone.
    pub(super) finished: CancellationToken,
    closed: watch::Sender<Option<CloseReason>>,
}

impl Connection {
    pub(super) fn new(
        remote_public_key: PublicKey,
        handshake_hash: [u8; 64],
        is_initiator: bool,
    ) -> Self {
        let state = State {
            table: Table::new(),
            outbox: Outbox::default(),
            handlers: HashMap::new(),
            strays: 0,
            opens: RateLimit::new(OPENS_A_SECOND, OPEN_BURST),
        };
        Self {
            remote_public_key,
            handshake_hash,
            is_initiator,
            state: Mutex::new(state),
            room: Room::new(),
            to_write: Notify::new(),
            to_read: Notify::new(),
            started: CancellationToken::new(),
            stopped: CancellationToken::new(),
            finished: CancellationToken::new(),
            closed: watch::Sender::new(None),
        }
    }

    /// Why the connection is closed, if it is.
    pub(super) fn close_reason(&self) -> Option<CloseReason> {
        self.closed.borrow().clone()
    }

    /// Waits until the connection is closed.
    pub(super) async fn closed(&self) -> CloseReason {
        let mut closed = self.closed.subscribe();
        match closed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or(CloseReason::Local),
            Err(_) => CloseReason::Local,
        }
    }

    /// Closes the connection. In good order what waits is still sent; after a failure it is not.
    pub(super) fn end(&self, reason: CloseReason) {
        let graceful = matches!(reason, CloseReason::Local | CloseReason::Remote);
        let (channels, handlers) = {
            let mut state = lock(&self.state);
            if self.closed.borrow().is_some() {
                drop(state);
                if !graceful {
                    self.stopped.cancel();
                }
                return;
            }
            self.closed.send_replace(Some(reason.clone()));
            if !graceful {
                state.outbox = Outbox::default();
            }
            (state.table.clear(), std::mem::take(&mut state.handlers))
        };
        self.room.close();
        let keep_inbox = reason != CloseReason::Local;
        for channel in channels {
            channel.set_closed(MuxError::Closed, keep_inbox);
        }
        if !graceful {
            self.stopped.cancel();
        }
        self.to_write.notify_one();
        self.to_read.notify_one();
        drop(handlers);
        match &reason {
            CloseReason::Violation(what) => {
                tracing::warn!(peer = %self.remote_public_key.short(), what, "protocol violation");
            }
            reason => {
                tracing::debug!(peer = %self.remote_public_key.short(), %reason, "connection closed");
            }
        }
    }

    pub(super) fn set_handler(&self, protocol: &str, handler: Option<OpenHandler>) {
        let mut state = lock(&self.state);
        let old = match handler {
            Some(handler) if self.closed.borrow().is_none() => {
                state.handlers.insert(protocol.to_owned(), handler)
            }
            _ => state.handlers.remove(protocol),
        };
        drop(state);
        drop(old); // outside the lock: it may own handles of this connection
    }

    pub(super) fn open(
        &self,
        handle: &Arc<Handle>,
        options: ChannelOptions,
    ) -> Result<Channel, MuxError> {
        let ChannelOptions { protocol, id, handshake, inbox, aliases } = options;
        if protocol.len() > MAX_PROTOCOL || id.len() > MAX_ID || handshake.len() > MAX_HANDSHAKE {
            return Err(MuxError::LimitExceeded("a channel's name or handshake"));
        }
        let mut state = lock(&self.state);
        if self.closed.borrow().is_some() {
            return Err(MuxError::Closed);
        }
        let name = Name { protocol, id };
        let make = |local| Arc::new(Shared::new(local, inbox));
        let (shared, pending) = state.table.open(&name, &aliases, make)?;
        let opening = wire::open(shared.local, &name.protocol, &name.id, &handshake);
        state.outbox.push(Frame::control(opening));
        if let Some(pending) = pending {
            shared.set_open(pending.handshake, pending.messages);
        }
        drop(state);
        self.to_write.notify_one();
        self.to_read.notify_one();
        Ok(Channel::new(shared, Arc::clone(handle)))
    }

    pub(super) fn close_channel(&self, channel: &Shared) {
        let mut state = lock(&self.state);
        let wire_close = !channel.is_closed() && state.table.close(channel.local);
        if wire_close {
            state.outbox.push(Frame::control(wire::close(channel.local)));
        }
        channel.set_closed(MuxError::Closed, false);
        drop(state);
        if wire_close {
            self.to_write.notify_one();
        }
        self.to_read.notify_one();
    }

    /// Waits for the room that a frame takes.
    pub(super) async fn reserve(&self, frame: &Frame) -> Result<(), MuxError> {
        self.room.take(frame).await
    }

    /// Takes the room for a frame if it is there.
    pub(super) fn try_reserve(&self, frame: &Frame) -> Result<bool, MuxError> {
        self.room.try_take(frame)
    }

    /// Queues a channel's frame, for which room was reserved.
    pub(super) fn queue(&self, channel: &Shared, frame: Frame) -> Result<(), MuxError> {
        let mut state = lock(&self.state);
        if channel.is_closed() {
            drop(state);
            self.room.give_back(frame.cost());
            return Err(MuxError::Closed);
        }
        state.outbox.push(frame);
        drop(state);
        self.to_write.notify_one();
        Ok(())
    }

    /// An inbox has room again.
    pub(super) fn room_to_read(&self) {
        self.to_read.notify_one();
    }

    /// What the writer sends next, and the room it gives back when it has.
    pub(super) fn take_outgoing(&self) -> (Vec<Frame>, u32) {
        let taken = lock(&self.state).outbox.take();
        if !taken.0.is_empty() {
            self.to_read.notify_one();
        }
        taken
    }

    /// Frames that were taken have been written.
    pub(super) fn sent(&self, cost: u32) {
        self.room.give_back(cost);
    }

    /// Rejects what has waited for too long, and says when to ask again.
    pub(super) fn refuse_expired(&self, now: Instant) -> Option<Instant> {
        let mut state = lock(&self.state);
        for remote in state.table.refuse_expired(now) {
            state.outbox.push(Frame::control(wire::reject(remote)));
            self.to_write.notify_one();
            self.to_read.notify_one();
        }
        state.table.next_deadline()
    }

    /// Rejects a channel that still waits for us.
    fn refuse(&self, remote: u64, serial: u64) {
        let mut state = lock(&self.state);
        if state.table.refuse(remote, serial) {
            state.outbox.push(Frame::control(wire::reject(remote)));
            drop(state);
            self.to_write.notify_one();
            self.to_read.notify_one();
        }
    }

    /// Does what the remote said, waiting while something is full.
    ///
    /// # Errors
    /// What the remote did wrong.
    pub(super) async fn take_item(self: &Arc<Self>, item: Item) -> Result<(), String> {
        match item {
            Item::Message { remote, kind, data } => {
                let Ok(kind) = u32::try_from(kind) else {
                    return Ok(lock(&self.state).stray()?);
                };
                self.take_message(remote, Message { kind, data }).await?;
            }
            Item::Open { remote, protocol, id, handshake } => {
                self.take_open(remote, Name { protocol, id }, handshake)?;
            }
            Item::Reject { local } => {
                // Closed under the lock: the id may be another channel's right after it.
                let mut state = lock(&self.state);
                if let Some(channel) = state.table.remote_reject(local)? {
                    channel.set_closed(MuxError::Rejected, false);
                }
            }
            Item::Close { remote } => {
                let mut state = lock(&self.state);
                match state.table.remote_close(remote) {
                    RemoteClosed::Closed(channel) => channel.set_closed(MuxError::Closed, true),
                    RemoteClosed::Refused => {
                        state.outbox.push(Frame::control(wire::reject(remote)));
                        self.to_write.notify_one();
                    }
                    RemoteClosed::Ignored => {}
                }
            }
        }
        self.until(|| lock(&self.state).outbox.control() < MAX_CONTROL).await;
        Ok(())
    }

    fn take_open(
        self: &Arc<Self>,
        remote: u64,
        name: Name,
        handshake: Bytes,
    ) -> Result<(), String> {
        let mut state = lock(&self.state);
        if self.closed.borrow().is_some() {
            return Ok(());
        }
        if !state.opens.allow() {
            return Err("opens channels too often".to_owned());
        }
        match state.table.remote_open(remote, &name, handshake.clone(), Instant::now())? {
            RemoteOpened::Paired(channel) => channel.set_open(handshake, Vec::new()),
            RemoteOpened::Ignored => {}
            RemoteOpened::Refused => {
                state.outbox.push(Frame::control(wire::reject(remote)));
                self.to_write.notify_one();
            }
            RemoteOpened::Pending { serial } => {
                let handler = state.handlers.get(&name.protocol).cloned();
                drop(state);
                self.to_write.notify_one(); // it keeps the deadline
                let connection = Arc::clone(self);
                let guard = RefuseGuard { connection, remote, serial };
                if let Some(handler) = handler {
                    let Name { protocol, id } = name;
                    handler(RemoteOpen { protocol, id, handshake, _guard: guard });
                }
            }
        }
        Ok(())
    }

    async fn take_message(&self, remote: u64, message: Message) -> Result<(), &'static str> {
        let channel = {
            let mut state = lock(&self.state);
            match state.table.target(remote) {
                Target::Channel(channel) => Some(Arc::clone(channel)),
                Target::Pending(waiting) => {
                    waiting.push(message.clone());
                    None
                }
                Target::Closed => return Ok(()),
                Target::Nobody => return state.stray(),
            }
        };
        match channel {
            Some(channel) => {
                let mut message = Some(message);
                self.until(|| {
                    message = message.take().and_then(|message| channel.offer(message));
                    message.is_none()
                })
                .await;
            }
            None => self.until(|| lock(&self.state).table.pending_cost() <= MAX_PENDING).await,
        }
        Ok(())
    }

    /// Waits until `ready`, asking again whenever something got smaller. Only the reader waits here.
    async fn until(&self, mut ready: impl FnMut() -> bool) {
        while !ready() && self.closed.borrow().is_none() {
            self.to_read.notified().await;
        }
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("remote", &self.remote_public_key)
            .finish_non_exhaustive()
    }
}

/// Rejects a channel that the remote opened, unless it was opened here in the meantime.
#[derive(Debug)]
pub(super) struct RefuseGuard {
    connection: Arc<Connection>,
    remote: u64,
    serial: u64,
}

impl Drop for RefuseGuard {
    fn drop(&mut self) {
        self.connection.refuse(self.remote, self.serial);
    }
}
