//! The `alex/p2p` channel of one connection: hello, then messages both ways until either end goes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::conduct::{Conduct, hello_limit};
use super::engine::Engine;
use super::line::{Letter, Line, Link, Tells};
use super::message::{Cancel, Done, Hello, MAX_MESSAGE_BYTES, Message, PROTOCOL, Request};
use super::receiving::RETRY;
use super::requests::Answered;
use super::state::Direction;
use super::turns::Turns;
use crate::crypto::PublicKey;
use crate::protomux::{Channel, ChannelOptions, Protomux};
use crate::sync::lock;
use crate::tasks::Spawn;

/// How many of our messages may wait for a peer. More than all open transfers can have to say.
const OUTBOX: usize = 512;
/// How many bytes of a peer's messages may wait for us.
const INBOX_BYTES: usize = 4 * MAX_MESSAGE_BYTES;
/// How long one message may take to leave.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// How many of a peer's messages are acted upon at a time; nothing more is read until one of them is done.
const UNDER_WAY: usize = 32;

/// How many requests that could not be answered are kept; a peer repeats the others.
const MAX_OWED: usize = 64;

/// Numbers links, so that an old one's end is not taken for the new one's.
static NEXT_LINK: AtomicU64 = AtomicU64::new(1);

/// Requests that the disk kept from being answered: it is tried again soon.
#[derive(Default)]
struct Owed {
    requests: Vec<Request>,
    due: Option<Instant>,
}

impl Owed {
    fn note(&mut self, request: Option<Request>) {
        let Some(request) = request.filter(|_| self.requests.len() < MAX_OWED) else { return };
        self.requests.push(request);
        self.due.get_or_insert_with(|| Instant::now() + RETRY);
    }

    /// What a message is about is not owed any more.
    fn forget(&mut self, message: &Message) {
        let id = message.request_id();
        self.requests.retain(|request| Some(request.id.as_str()) != id);
    }

    /// Returns when it is time to try again. Cancel safe.
    async fn due(&self) {
        match self.due {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    fn take(&mut self) -> Vec<Request> {
        self.due = None;
        std::mem::take(&mut self.requests)
    }
}

/// The channel that a peer opened last, until it is served; one that it opened before and has left is dropped.
#[derive(Default)]
struct Reopened {
    channel: Mutex<Option<Channel>>,
    put: Notify,
}

impl Reopened {
    fn put(&self, channel: Channel) {
        let left = lock(&self.channel).replace(channel);
        self.put.notify_one();
        drop(left);
    }

    /// Waits for a channel. Cancel safe.
    async fn take(&self) -> Channel {
        loop {
            if let Some(channel) = lock(&self.channel).take() {
                return channel;
            }
            self.put.notified().await;
        }
    }
}

/// The requests about which something is being done.
#[derive(Default)]
struct Busy {
    turns: Turns,
    with: Arc<Mutex<HashMap<String, usize>>>,
}

/// Something is being done about a request until this is dropped.
struct BusyWith {
    with: Arc<Mutex<HashMap<String, usize>>>,
    id: String,
}

impl Busy {
    fn is_about(&self, message: &Message) -> bool {
        message.request_id().is_some_and(|id| lock(&self.with).contains_key(id))
    }

    fn with(&self, id: &str) -> BusyWith {
        *lock(&self.with).entry(id.to_owned()).or_default() += 1;
        BusyWith { with: Arc::clone(&self.with), id: id.to_owned() }
    }
}

impl Drop for BusyWith {
    fn drop(&mut self) {
        let mut with = lock(&self.with);
        if let Some(count) = with.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                with.remove(&self.id);
            }
        }
    }
}

/// What came of a message.
struct Heard {
    /// A request that the disk kept from being answered.
    owed: Option<Request>,
    answered: Answered,
}

impl Engine {
    /// Speaks `alex/p2p` on a connection until it closes. Needs a tokio runtime.
    pub(super) fn attach(self: &Arc<Self>, mux: &Protomux) {
        // A peer that sets its channel up later, or again, opens it then.
        let reopened = Arc::new(Reopened::default());
        let options = self.channel_options();
        let weak = Arc::downgrade(self);
        let (handler_mux, opened) = (mux.clone(), Arc::clone(&reopened));
        let hellos = Mutex::new(hello_limit());
        mux.on_open(
            PROTOCOL,
            Arc::new(move |remote| {
                let Some(engine) = weak.upgrade() else { return };
                if !remote.id.is_empty() {
                    return;
                }
                if !lock(&hellos).allow() {
                    return handler_mux.close_with("the peer says hello too often".to_owned());
                }
                if let Ok(channel) = handler_mux.open(engine.channel_options()) {
                    opened.put(channel);
                }
            }),
        );
        let first = mux.open(options).ok();
        let (engine, mux) = (Arc::clone(self), mux.clone());
        self.spawn(async move { engine.serve_connection(mux, first, &reopened).await });
    }

    fn channel_options(&self) -> ChannelOptions {
        ChannelOptions {
            protocol: PROTOCOL.to_owned(),
            handshake: (self.options.hello)().encode(),
            inbox: INBOX_BYTES,
            ..ChannelOptions::default()
        }
    }

    async fn serve_connection(
        self: Arc<Self>,
        mux: Protomux,
        mut next: Option<Channel>,
        reopened: &Reopened,
    ) {
        let peer = mux.remote_public_key();
        let mut conduct = Conduct::default();
        loop {
            let channel = match next.take() {
                Some(channel) => channel,
                None => tokio::select! {
                    channel = reopened.take() => channel,
                    _ = mux.closed() => return,
                    () = self.closing.cancelled() => return,
                },
            };
            if let Err(violation) = self.serve_channel(peer, &channel, &mut conduct).await {
                mux.close_with(violation);
                return;
            }
        }
    }

    /// Serves one channel to its end. The error is how the peer broke the protocol.
    async fn serve_channel(
        self: &Arc<Self>,
        peer: PublicKey,
        channel: &Channel,
        conduct: &mut Conduct,
    ) -> Result<(), String> {
        let handshake = tokio::select! {
            opened = channel.opened() => match opened {
                Ok(handshake) => handshake,
                Err(_) => return Ok(()),
            },
            () = self.closing.cancelled() => return Ok(()),
        };
        let hello = Hello::decode(&handshake).map_err(|error| error.to_string())?;
        if !self.options.peers.is_approved(&peer) {
            return Ok(());
        }
        (self.options.on_hello)(peer, hello);
        let (outbox, letters) = mpsc::channel(OUTBOX);
        let link = Link {
            number: NEXT_LINK.fetch_add(1, Ordering::Relaxed),
            outbox,
            hang_up: self.closing.child_token(),
        };
        let line = self.line(&peer);
        self.link_up(peer, &line, link.clone()).await;
        let mut heard = JoinSet::new();
        let ended = tokio::select! {
            result = self.read(peer, channel, link.number, &mut heard, conduct) => result,
            () = self.write(peer, channel, letters) => Ok(()),
            () = self.keep_asking(peer) => Ok(()),
            () = link.hang_up.cancelled() => Ok(()),
        };
        // Nothing moves a transfer on once it has heard that the connection is gone.
        heard.shutdown().await;
        self.link_down(peer, &line, link.number).await;
        channel.close();
        ended
    }

    /// Acts on the peer's messages, in the order in which they come for each request; those about others
    /// do not wait for each other's writes to disk. What needs no disk is done here.
    async fn read(
        self: &Arc<Self>,
        peer: PublicKey,
        channel: &Channel,
        link: u64,
        heard: &mut JoinSet<Heard>,
        conduct: &mut Conduct,
    ) -> Result<(), String> {
        let busy = Busy::default();
        let mut owed = Owed::default();
        loop {
            let message = tokio::select! {
                Some(heard) = heard.join_next() => {
                    let Ok(heard) = heard else { continue };
                    owed.note(heard.owed);
                    match heard.answered {
                        Answered::Useful => {}
                        Answered::Useless => conduct.useless()?,
                        Answered::UnknownBook => {
                            tokio::time::sleep(conduct.unknown_book()).await;
                        }
                    }
                    continue;
                }
                message = channel.recv(), if heard.len() < UNDER_WAY => match message {
                    Some(message) => message,
                    None => return Ok(()),
                },
                () = owed.due(), if heard.len() < UNDER_WAY => {
                    for request in owed.take() {
                        let message = Message::Request(request);
                        self.spawn_hear(peer, link, message, &busy, heard).await;
                    }
                    continue;
                }
            };
            match Message::decode(message.kind, &message.data) {
                Ok(message) => {
                    owed.forget(&message);
                    // What is said of a request right after it comes before it is known.
                    if !busy.is_about(&message) && !self.concerns_us(&peer, &message) {
                        conduct.useless()?;
                    } else {
                        self.spawn_hear(peer, link, message, &busy, heard).await;
                    }
                }
                Err(error) => {
                    tracing::debug!(peer = peer.short(), %error, "ignored a message");
                    conduct.nonsense(&error.to_string())?;
                }
            }
        }
    }

    /// Whether a message is about anything that is going on.
    fn concerns_us(&self, peer: &PublicKey, message: &Message) -> bool {
        match message {
            Message::Request(_) => true,
            Message::Cancel(Cancel { id }) | Message::Done(Done { id }) => {
                self.asked_as(peer, id).is_some()
            }
            Message::Reply(reply) => {
                self.live(&reply.id).is_some_and(|live| live.is_of(peer, Direction::Incoming))
            }
            Message::Unknown(_) => false,
        }
    }

    async fn spawn_hear(
        self: &Arc<Self>,
        peer: PublicKey,
        link: u64,
        message: Message,
        busy: &Busy,
        heard: &mut JoinSet<Heard>,
    ) {
        let Some(id) = message.request_id() else { return };
        let turn = (busy.with(id), busy.turns.of(id).await);
        // What the peer asks for next counts on it.
        let ending = self.ending(&peer, &message);
        let engine = Arc::clone(self);
        heard.spawn_task(async move {
            let heard = engine.hear(peer, link, message).await;
            drop((turn, ending));
            heard
        });
    }

    /// Acts on a message.
    async fn hear(self: &Arc<Self>, peer: PublicKey, link: u64, message: Message) -> Heard {
        let (owed, answered) = match message {
            Message::Request(request) => self.on_request(peer, request, link).await,
            Message::Cancel(cancel) => (None, self.on_cancel(peer, &cancel.id).await),
            Message::Done(done) => (None, self.on_done(peer, &done.id).await),
            Message::Reply(reply) => (None, self.on_reply(peer, reply).await),
            Message::Unknown(_) => (None, Answered::Useless),
        };
        Heard { owed, answered }
    }

    async fn write(&self, peer: PublicKey, channel: &Channel, mut letters: mpsc::Receiver<Letter>) {
        while let Some(Letter { message, tells }) = letters.recv().await {
            let (kind, bytes) = message.encode();
            match tokio::time::timeout(SEND_TIMEOUT, channel.send(kind, &bytes)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return,
                Err(_) => {
                    tracing::warn!(peer = peer.short(), "a peer does not read its messages");
                    return;
                }
            }
            match tells {
                Some(Tells::End(id)) => self.note_told(id),
                Some(Tells::Whole(live)) => live.is_told.store(true, Ordering::Relaxed),
                None => {}
            }
        }
    }

    async fn link_up(self: &Arc<Self>, peer: PublicKey, line: &Line, link: Link) {
        let _turn = line.turn.lock().await;
        if let Some(before) = line.connect(link) {
            before.hang_up.cancel();
            self.unlinked(peer).await;
        }
        self.tell_ends(&peer);
        self.ask_all(peer, true).await;
    }

    async fn link_down(self: &Arc<Self>, peer: PublicKey, line: &Line, number: u64) {
        let _turn = line.turn.lock().await;
        if line.disconnect(number) {
            self.unlinked(peer).await;
        }
    }

    /// Every transfer with the peer hears that the connection is gone.
    async fn unlinked(self: &Arc<Self>, peer: PublicKey) {
        for live in self.with_peer(&peer, Direction::Incoming) {
            self.incoming_unlinked(&live).await;
        }
        for live in self.with_peer(&peer, Direction::Outgoing) {
            self.outgoing_unlinked(&live).await;
        }
    }
}
