//! The receiving side: asking, hearing the answer, and moving incoming transfers on.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::engine::Engine;
use super::library::Description;
use super::line::Tells;
use super::live::Live;
use super::message::{BookCore, Cancel, Done, MAX_BOOK_ID_BYTES, Message, Reply, Request, Status};
use super::record::Record;
use super::requests::Answered;
use super::space::Reservation;
use super::state::{self, Action, Direction, Incoming, State};
use super::{landing, table};
use crate::crypto::PublicKey;
use crate::error::{Error, ErrorCode, Result};
use crate::hypercore::{BLOCK_SIZE, Manifest};
use crate::store::Durability;
use crate::sync::lock;

/// How often a peer is asked again for what waits for its answer.
const ASK_AGAIN: Duration = Duration::from_secs(20);
/// How many books of a peer may be on their way to the disk beside the requests that are open there.
const MAX_LANDING: usize = 32;
/// How often the end of a job is written down again while the database fails.
pub(super) const RETRY: Duration = Duration::from_secs(2);

impl Engine {
    /// Asks for a book. The same book of the same peer that is under way is the same transfer; one
    /// that failed is taken up again.
    pub(super) async fn request(
        self: &Arc<Self>,
        peer: PublicKey,
        book_id: String,
        save_to: Option<PathBuf>,
    ) -> Result<Arc<Live>> {
        self.check_open()?;
        if book_id.is_empty() || book_id.len() > MAX_BOOK_ID_BYTES {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                format!("a book id has 1 to {MAX_BOOK_ID_BYTES} bytes"),
            ));
        }
        if !self.options.peers.is_approved(&peer) {
            return Err(Error::new(
                ErrorCode::NotApproved,
                "books can only be asked of peers that are approved here; add the peer first",
            ));
        }
        let save_to = save_to.map(std::path::absolute).transpose()?;
        if save_to.as_ref().is_some_and(|path| path.to_str().is_none()) {
            return Err(Error::new(ErrorCode::InvalidArgument, "saveTo is not valid Unicode"));
        }
        let _turn = self.requesting.of((peer.as_bytes(), &book_id)).await;
        let live = match self.find(|c| table::open_incoming(c, &peer, &book_id))? {
            Some(live) => {
                self.resume_failed(&live, save_to).await?;
                live
            }
            None => {
                let known = self.options.library.of(&peer, &book_id)?;
                let book = known.unwrap_or_else(|| Description {
                    title: crate::text::clean(&book_id, 200),
                    ..Description::default()
                });
                let record = Record::incoming(peer, book_id, book, save_to);
                self.save(&record, Durability::Power).await?;
                self.announce(&record);
                self.adopt(record)
            }
        };
        self.spawn_ask_all(peer, false);
        Ok(live)
    }

    /// A request for a book whose transfer failed takes it up again.
    async fn resume_failed(
        self: &Arc<Self>,
        live: &Arc<Live>,
        save_to: Option<PathBuf>,
    ) -> Result<()> {
        let failed = live.record.lock().await.state == State::Failed;
        if !failed {
            return Ok(());
        }
        self.incoming_step(live, Incoming::Resume, |record| {
            if save_to.is_some() {
                record.save_to = save_to;
            }
        })
        .await?;
        Ok(())
    }

    /// Moves an incoming transfer on. False when the event does not apply to its state.
    pub(super) async fn incoming_step(
        self: &Arc<Self>,
        live: &Arc<Live>,
        event: Incoming,
        change: impl FnOnce(&mut Record),
    ) -> Result<bool> {
        let mut record = live.record.lock().await;
        let Some((next, actions)) = state::incoming(record.state, event) else {
            self.settle(&record);
            return Ok(false);
        };
        let ends = next.is_terminal() && next != State::Failed;
        let change = |record: &mut Record| {
            if ends && next != State::Denied {
                record.told = next == State::Completed && live.is_told.load(Ordering::Relaxed);
            }
            change(record);
        };
        // The peer hears of this end before it is asked for the next book.
        let (first, then): (Vec<Action>, Vec<Action>) = actions
            .iter()
            .partition(|action| matches!(action, Action::SendDone | Action::SendCancel));
        let tell = |record: &Record| {
            let first =
                first.into_iter().filter(|action| *action != Action::SendDone || !record.told);
            first.for_each(|action| self.incoming_act(live, record, action));
        };
        self.move_to(live, &mut record, next, event.survives(), change, tell).await?;
        self.keep(live, &record);
        if !matches!(next, State::Transferring | State::Verifying) {
            lock(&live.room).take();
        }
        for action in then {
            self.incoming_act(live, &record, action);
        }
        if ends || matches!(next, State::Paused | State::Failed | State::Queued) {
            // A turn became free, or this one may ask now.
            self.spawn_ask_all(record.peer, false);
        }
        Ok(true)
    }

    /// [`Engine::incoming_step`] for what nobody waits for.
    pub(super) async fn incoming_hear(
        self: &Arc<Self>,
        live: &Arc<Live>,
        event: Incoming,
        change: impl FnOnce(&mut Record),
    ) {
        if let Err(error) = self.incoming_step(live, event, change).await {
            tracing::warn!(transfer = live.id, %error, "a transfer could not be moved on");
        }
    }

    /// [`Engine::incoming_step`] for the end of a job, tried until it is written down or the job is to
    /// stop: nobody else would move the transfer on.
    pub(super) async fn incoming_end(
        self: &Arc<Self>,
        live: &Arc<Live>,
        event: Incoming,
        error: Option<Error>,
        stop: &CancellationToken,
    ) {
        let note = |record: &mut Record| {
            if let Some(error) = &error {
                fail(record, error);
            }
        };
        while let Err(error) = self.incoming_step(live, event, note).await {
            tracing::warn!(transfer = live.id, %error, "how a transfer ended is not written down");
            if stop.run_until_cancelled(tokio::time::sleep(RETRY)).await.is_none() {
                return;
            }
        }
    }

    fn incoming_act(self: &Arc<Self>, live: &Arc<Live>, record: &Record, action: Action) {
        let id = record.request_id.clone();
        match action {
            Action::SendRequest => {
                live.forget_told();
                let book_id = record.book_id.clone();
                self.send(&record.peer, Message::Request(Request { id, book_id }), None);
            }
            Action::SendCancel => {
                let tells = Some(Tells::End(record.id.clone()));
                self.send(&record.peer, Message::Cancel(Cancel { id }), tells);
            }
            Action::SendDone => {
                let tells = Some(Tells::End(record.id.clone()));
                self.send(&record.peer, Message::Done(Done { id }), tells);
            }
            Action::Start => self.spawn_download(live, record),
            Action::Stop => live.stop_job(),
            Action::Verify => self.spawn_verification(live, record),
            Action::Discard => self.spawn_discard(live, record),
            Action::Prepare | Action::Grant | Action::Revoke | Action::Reply => {}
        }
    }

    /// The peer answered a request of ours.
    pub(super) async fn on_reply(self: &Arc<Self>, peer: PublicKey, reply: Reply) -> Answered {
        let live = self.live(&reply.id).filter(|live| live.is_of(&peer, Direction::Incoming));
        let Some(live) = live else { return Answered::Useless };
        let (before, reason) = (live.info.borrow().state, reply.reason);
        match (reply.status, reply.book) {
            (Status::Granted, Some(book)) => self.on_granted(&live, book).await,
            (Status::Granted, None) => {}
            (Status::Pending, _) => {
                self.incoming_hear(&live, Incoming::Pending, |record| record.reason = reason).await;
            }
            (Status::Denied, _) => {
                self.incoming_hear(&live, Incoming::Denied, |record| {
                    record.reason = reason;
                    record.error = Some(ErrorCode::Denied);
                })
                .await;
            }
            (Status::Unavailable, _) => {
                self.incoming_hear(&live, Incoming::Unavailable, |record| {
                    let default = || "the peer does not have this book any more".to_owned();
                    record.reason = Some(reason.unwrap_or_else(default));
                    record.error = Some(ErrorCode::Unavailable);
                })
                .await;
            }
        }
        let is_moved = live.info.borrow().state != before;
        if is_moved { Answered::Useful } else { Answered::Useless }
    }

    async fn on_granted(self: &Arc<Self>, live: &Arc<Live>, book: BookCore) {
        let before = live.record.lock().await.clone();
        if !matches!(before.state, State::Requested | State::AwaitingApproval) {
            return;
        }
        // Its own room from before is free again.
        lock(&live.room).take();
        match self.check_grant(&before, &book) {
            Ok(room) => *lock(&live.room) = Some(room),
            Err(error) => {
                self.incoming_hear(live, Incoming::Broke, |record| fail(record, &error)).await;
                return;
            }
        }
        if before.core.is_some_and(|core| core != book) {
            // The sender's file is another one now: what is here is of no use.
            self.discard(live.take_job(), &before).await;
        }
        // A book may be asked for before its catalog has arrived.
        let described = match before.book.size_bytes {
            Some(_) => None,
            None => self.options.library.of(&before.peer, &before.book_id).ok().flatten(),
        };
        self.incoming_hear(live, Incoming::Granted, |record| {
            if let Some(book) = described {
                record.book = book;
            }
            if record.core != Some(book) {
                record.core = Some(book);
                record.bytes = 0;
            }
        })
        .await;
    }

    /// Whether a granted core makes sense, is allowed, and fits on the disk, where room is reserved for it.
    fn check_grant(&self, record: &Record, book: &BookCore) -> Result<Reservation> {
        if book.byte_length > self.options.limits.book_bytes {
            return Err(Error::new(
                ErrorCode::LimitExceeded,
                format!("the book has {} bytes, more than books may have here", book.byte_length),
            ));
        }
        let makes_sense = book.byte_length > 0
            && book.length == book.byte_length.div_ceil(BLOCK_SIZE)
            && Manifest::fixed(book.hash, book.length).key() == book.key;
        if !makes_sense {
            let message = "the peer granted a book whose key does not match its description";
            return Err(Error::new(ErrorCode::Protocol, message));
        }
        let part = self.parts.path(&record.id);
        let here = std::fs::metadata(&part).map_or(0, |file| file.len().min(record.bytes));
        let (folder, _) = self.target(record);
        let missing = book.byte_length.saturating_sub(here);
        let incoming = part.parent().unwrap_or(&part);
        landing::prepare(&folder)?;
        self.space.reserve(&[(incoming, missing), (&folder, book.byte_length)])
    }

    /// The folder and the name that the book goes to.
    pub(super) fn target(&self, record: &Record) -> (PathBuf, String) {
        let book = &record.book;
        let name =
            super::filename::build(&book.title, book.author.as_deref(), book.format.as_deref());
        landing::target(record.save_to.as_deref(), &self.options.books_dir, name)
    }

    /// Asks for every book whose turn it is, the oldest first, as far as the limit of open requests
    /// allows. With `again`, also for those that are waiting for an answer: the peer may have answered
    /// while we were away, have had too many open requests, or a disk that failed.
    pub(super) async fn ask_all(self: &Arc<Self>, peer: PublicKey, again: bool) {
        if !self.is_linked(&peer) {
            return;
        }
        // The sender may hold a paused one open, too, and one that is being verified until it hears.
        let (queued, open) = self.queued_and_open(&peer);
        let landing = open.iter().filter(|live| live.is_done.load(Ordering::Relaxed)).count();
        let open_there = open.len() - landing.min(MAX_LANDING);
        let free = self.options.limits.open_requests.saturating_sub(open_there);
        let is_unanswered = |live: &Arc<Live>| {
            matches!(live.info.borrow().state, State::AwaitingApproval | State::Requested)
        };
        let unanswered = open.into_iter().filter(|live| again && is_unanswered(live));
        // Together, for the database writes in one go what comes at one time.
        let mut asking = JoinSet::new();
        for live in unanswered.chain(oldest(queued, free)) {
            let engine = Arc::clone(self);
            asking
                .spawn(async move { engine.incoming_hear(&live, Incoming::LinkUp, |_| {}).await });
        }
        asking.join_all().await;
    }

    /// [`Engine::ask_all`], soon.
    pub(super) fn spawn_ask_all(self: &Arc<Self>, peer: PublicKey, again: bool) {
        let line = self.line(&peer);
        if !again && line.is_to_ask.swap(true, Ordering::AcqRel) {
            return;
        }
        let engine = Arc::clone(self);
        self.spawn(async move {
            let _turn = line.turn.lock().await;
            if !again {
                line.is_to_ask.store(false, Ordering::Release);
            }
            engine.ask_all(peer, again).await;
        });
    }

    /// Asks again from time to time: a peer with lower limits than ours forgets what is too much, and does
    /// not say when it has room. Never ends.
    pub(super) async fn keep_asking(self: &Arc<Self>, peer: PublicKey) {
        loop {
            tokio::time::sleep(ASK_AGAIN).await;
            self.spawn_ask_all(peer, true);
        }
    }

    /// Tells the peer of transfers that ended while it was away.
    pub(super) fn tell_ends(&self, peer: &PublicKey) {
        let untold = self.options.database.read(|c| table::untold(c, peer));
        for record in untold.unwrap_or_default() {
            let id = record.request_id.clone();
            let message = if record.state == State::Completed {
                Message::Done(Done { id })
            } else {
                Message::Cancel(Cancel { id })
            };
            self.send(peer, message, Some(Tells::End(record.id)));
        }
    }

    /// Tells the peer that a book is whole, which is in memory until it lands. The peer has no more to do
    /// with it then, and others can be asked for.
    pub(super) fn tell_whole(self: &Arc<Self>, live: &Arc<Live>, record: &Record) {
        let done = Done { id: record.request_id.clone() };
        live.is_done.store(true, Ordering::Relaxed);
        self.send(&record.peer, Message::Done(done), Some(Tells::Whole(Arc::clone(live))));
        self.spawn_ask_all(record.peer, false);
    }

    /// The connection is gone.
    pub(super) async fn incoming_unlinked(self: &Arc<Self>, live: &Arc<Live>) {
        live.forget_told();
        self.incoming_hear(live, Incoming::LinkDown, |_| {}).await;
    }
}

/// The oldest transfers, in order. Of thousands that wait, only a few are looked for at a time.
fn oldest(mut transfers: Vec<Arc<Live>>, count: usize) -> Vec<Arc<Live>> {
    if count < transfers.len() {
        transfers.select_nth_unstable_by_key(count, |live| live.age());
        transfers.truncate(count);
    }
    transfers.sort_unstable_by_key(|live| live.age());
    transfers
}

/// Notes an error in a record.
pub(super) fn fail(record: &mut Record, error: &Error) {
    record.reason = Some(error.message.clone());
    record.error = Some(error.code);
}
