//! The sending side: hearing requests, deciding, preparing books, granting, and moving outgoing
//! transfers on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::engine::{Ending, Engine, Live};
use super::held::SMALL_BOOK;
use super::library::BookSource;
use super::message::{Cancel, Done, Message, Reply, Request, Status};
use super::policy::Policy;
use super::progress::Meter;
use super::receiving::RETRY;
use super::record::Record;
use super::shelf::Ticket;
use super::state::{self, Action, Direction, Outgoing, State};
use super::table;
use crate::crypto::PublicKey;
use crate::error::{Error, ErrorCode, Result};
use crate::events::EventKind;
use crate::hypercore::{BLOCK_SIZE, replicator};
use crate::sync::lock;

/// How often an outgoing transfer's progress is looked at.
const WATCH: Duration = Duration::from_millis(500);
/// How long a reader that has every block may take to say so, before it is taken as said.
const DONE_GRACE: Duration = Duration::from_secs(5);

impl Engine {
    /// A peer asks for a book of ours, for the first time or again. Gives the request back when the disk
    /// keeps it from being answered.
    pub(super) async fn on_request(
        self: &Arc<Self>,
        peer: PublicKey,
        request: Request,
    ) -> Option<Request> {
        let id = request.id.clone();
        let Err(error) = self.answer(peer, request.clone()).await else { return None };
        tracing::warn!(peer = peer.short(), %error, "a request could not be answered");
        let is_disk = matches!(error.code, ErrorCode::DiskFull | ErrorCode::Io);
        let (status, reason) = match is_disk {
            true => (Status::Pending, "its disk failed"),
            false => (Status::Unavailable, "internal error"),
        };
        self.reply(&peer, id, status, Some(reason.into()));
        is_disk.then_some(request)
    }

    async fn answer(self: &Arc<Self>, peer: PublicKey, request: Request) -> Result<()> {
        if !self.options.peers.is_approved(&peer) {
            return Ok(());
        }
        let known = match self.asked_as(&peer, &request.id) {
            Some(live) => Some(live),
            None => self.find(|c| table::by_request(c, &peer, &request.id))?,
        };
        let (live, found) = match known {
            Some(live) => (live, None),
            None => {
                let Some((book, source)) = self.options.library.own(&request.book_id)? else {
                    self.reply(&peer, request.id, Status::Unavailable, None);
                    return Ok(());
                };
                let (id, book_id) = (request.id.clone(), request.book_id.clone());
                let record = Record::outgoing(peer, id, book_id, book);
                let limit = self.options.limits.open_requests;
                let Some(live) = self.adopt_within(limit, record).await? else {
                    let reason = "too many open requests; ask again later".to_owned();
                    self.reply(&peer, request.id, Status::Pending, Some(reason));
                    return Ok(());
                };
                (live, source)
            }
        };
        let approved = {
            let record = live.record.lock().await;
            if record.book_id != request.book_id {
                let reason = "this id was used for another book".to_owned();
                self.reply(&peer, request.id, Status::Denied, Some(reason));
                self.settle(&record);
                return Ok(());
            }
            record.approved
        };
        let event = match self.options.peers.policy(&peer) {
            Policy::MetadataOnly if !approved => Outgoing::AskedRefused,
            Policy::ManualApprove if !approved => Outgoing::AskedManual,
            _ => Outgoing::AskedAllowed,
        };
        if event == Outgoing::AskedAllowed {
            *lock(&live.source) = found;
        }
        self.outgoing_step(&live, event, |record| {
            if event == Outgoing::AskedRefused && record.reason.is_none() {
                record.reason = Some("this server shares its catalog only".into());
            }
        })
        .await?;
        Ok(())
    }

    /// Moves an outgoing transfer on. False when the event does not apply to its state.
    pub(super) async fn outgoing_step(
        self: &Arc<Self>,
        live: &Arc<Live>,
        event: Outgoing,
        change: impl FnOnce(&mut Record),
    ) -> Result<bool> {
        let mut record = live.record.lock().await;
        let Some((next, actions)) = state::outgoing(record.state, event) else {
            self.settle(&record);
            return Ok(false);
        };
        let asks_person = next == State::AwaitingApproval && record.state != next;
        self.move_to(live, &mut record, next, event.survives(), change, |_| {}).await?;
        if asks_person {
            self.options.events.emit(EventKind::TransferRequested {
                id: record.id.clone(),
                peer: record.peer.to_z32(),
                book_id: record.book_id.clone(),
                title: Some(record.book.title.clone()),
                size_bytes: record.book.size_bytes,
            });
        }
        for action in actions {
            match action {
                Action::Prepare => self.spawn_preparation(live, &record),
                Action::Grant => self.grant(live, &record).await,
                Action::Revoke => self.revoke(live, &record),
                Action::Reply => self.reply_state(&record),
                _ => {}
            }
        }
        Ok(true)
    }

    /// [`Engine::outgoing_step`] for what nobody waits for.
    async fn outgoing_hear(
        self: &Arc<Self>,
        live: &Arc<Live>,
        event: Outgoing,
        change: impl FnOnce(&mut Record),
    ) {
        if let Err(error) = self.outgoing_step(live, event, change).await {
            tracing::warn!(transfer = live.id, %error, "a transfer could not be moved on");
        }
    }

    /// Hashes and opens the book, then lets it flow or wait for a slot. Small books need none: they are on
    /// their way to the disk over there longer than they flow.
    fn spawn_preparation(self: &Arc<Self>, live: &Arc<Live>, record: &Record) {
        let (peer, book_id) = (record.peer, record.book_id.clone());
        let found = lock(&live.source).take();
        let seems_small = (1..=SMALL_BOOK).contains(&record.total());
        self.start_job(live, move |engine, live, stop| async move {
            let at_once = engine.options.limits.transfers_at_once;
            let takes_slot = || engine.line(&peer).take_slot(&live.id, at_once);
            if !seems_small && !takes_slot() {
                return engine.wait_for_slot(&live, peer).await;
            }
            let prepared = tokio::select! {
                prepared = engine.prepare(&book_id, found) => prepared,
                () = stop.cancelled() => return engine.give_slot_back(&live, peer),
            };
            match prepared {
                Ok(ticket) if ticket.book.byte_length > SMALL_BOOK && !takes_slot() => {
                    engine.shelf.release(ticket).await;
                    engine.wait_for_slot(&live, peer).await;
                }
                Ok(ticket) => engine.prepared(&live, peer, ticket, &stop).await,
                Err(error) => {
                    engine.give_slot_back(&live, peer);
                    let gone = |record: &mut Record| {
                        record.reason = Some(error.message.clone());
                        record.error = Some(error.code);
                    };
                    engine.outgoing_end(&live, Outgoing::Unavailable, gone, &stop).await;
                }
            }
        });
    }

    async fn wait_for_slot(self: &Arc<Self>, live: &Arc<Live>, peer: PublicKey) {
        let waits = |record: &mut Record| {
            record.reason = Some("waiting for other transfers to end".into());
        };
        self.outgoing_hear(live, Outgoing::NoSlot, waits).await;
        // One may have become free before this transfer was seen to wait for it.
        if self.line(&peer).has_free_slot(self.options.limits.transfers_at_once) {
            self.spawn_next(peer);
        }
    }

    /// Hashes and opens a book, whose source may have been `found` a moment ago.
    async fn prepare(&self, book_id: &str, found: Option<BookSource>) -> Result<Ticket> {
        let gone = || Error::new(ErrorCode::Unavailable, "the book is not in the catalog any more");
        let source = match found {
            Some(source) => Some(source),
            None => self.options.library.own(book_id)?.ok_or_else(gone)?.1,
        };
        let source = source.ok_or_else(|| {
            Error::new(
                ErrorCode::Unavailable,
                "where the book's bytes are is not known; publish it again with its path",
            )
        })?;
        self.shelf.prepare(book_id, source).await
    }

    /// Lets the book flow, over the slot that was taken before.
    async fn prepared(
        self: &Arc<Self>,
        live: &Arc<Live>,
        peer: PublicKey,
        ticket: Ticket,
        stop: &CancellationToken,
    ) {
        *lock(&live.ticket) = Some(ticket);
        let ready = |record: &mut Record| record.core = Some(ticket.book);
        if !self.outgoing_end(live, Outgoing::Ready, ready, stop).await {
            lock(&live.ticket).take();
            self.shelf.release(ticket).await;
            self.give_slot_back(live, peer);
        }
    }

    /// [`Engine::outgoing_step`] for the end of a job, tried until it is written down or the job is to
    /// stop: nobody else would move the transfer on.
    async fn outgoing_end(
        self: &Arc<Self>,
        live: &Arc<Live>,
        event: Outgoing,
        change: impl Fn(&mut Record),
        stop: &CancellationToken,
    ) -> bool {
        loop {
            match self.outgoing_step(live, event, &change).await {
                Ok(moved) => return moved,
                Err(error) => {
                    tracing::warn!(transfer = live.id, %error, "a transfer could not be moved on");
                }
            }
            if stop.run_until_cancelled(tokio::time::sleep(RETRY)).await.is_none() {
                return false;
            }
        }
    }

    fn give_slot_back(self: &Arc<Self>, live: &Live, peer: PublicKey) {
        if self.line(&peer).free_slot(&live.id) {
            self.spawn_next(peer);
        }
    }

    async fn grant(self: &Arc<Self>, live: &Arc<Live>, record: &Record) {
        let ticket = *lock(&live.ticket);
        let Some(ticket) = ticket else { return };
        self.shelf.grant(ticket, record.peer, &record.id).await;
        self.spawn_watch(live, record, ticket);
    }

    /// Takes the grant back at once, and then closes what is not needed any more.
    fn revoke(self: &Arc<Self>, live: &Arc<Live>, record: &Record) {
        live.stop_job();
        if let Some(core) = record.core {
            self.shelf.revoke(core.key, record.peer, &record.id);
        }
        let ticket = lock(&live.ticket).take();
        let (engine, peer) = (Arc::clone(self), record.peer);
        let freed = self.line(&peer).free_slot(&record.id);
        self.spawn(async move {
            if let Some(ticket) = ticket {
                engine.shelf.release(ticket).await;
            }
            if freed {
                engine.next(peer).await;
            }
        });
    }

    /// Lets the next transfer that waits for a slot go on.
    fn spawn_next(self: &Arc<Self>, peer: PublicKey) {
        let engine = Arc::clone(self);
        self.spawn(async move { engine.next(peer).await });
    }

    async fn next(self: &Arc<Self>, peer: PublicKey) {
        if !self.is_linked(&peer) {
            return;
        }
        for live in self.with_peer(&peer, Direction::Outgoing) {
            let queued = live.info.borrow().state == State::Queued;
            if queued
                && matches!(self.outgoing_step(&live, Outgoing::SlotFree, |_| {}).await, Ok(true))
            {
                return;
            }
        }
    }

    /// Follows a reader: its progress, and that it has everything.
    fn spawn_watch(self: &Arc<Self>, live: &Arc<Live>, record: &Record, ticket: Ticket) {
        let (peer, book, before) = (record.peer, ticket.book, record.bytes);
        self.start_job(live, move |engine, live, stop| async move {
            let mut meter = Meter::new(before, book.byte_length);
            let (mut whole_since, mut shown) = (None, before);
            loop {
                let now = Instant::now();
                if let Some(reader) = engine.shelf.reader(&book.key, &peer).await {
                    let has = reader.remote_contiguous_length;
                    let bytes = (has.saturating_mul(BLOCK_SIZE))
                        .max(before.saturating_add(reader.uploaded_bytes))
                        .min(book.byte_length);
                    meter.sample(bytes, now);
                    if bytes != shown {
                        shown = bytes;
                        engine.show_progress(&live, meter.progress(now));
                    }
                    if has >= book.length && whole_since.is_none() {
                        whole_since = Some(now);
                    }
                }
                if whole_since.is_some_and(|since: Instant| now.duration_since(since) > DONE_GRACE)
                {
                    engine.outgoing_hear(&live, Outgoing::RemoteDone, |_| {}).await;
                    return;
                }
                tokio::select! {
                    () = tokio::time::sleep(WATCH) => {}
                    () = stop.cancelled() => return,
                }
            }
        });
    }

    /// Tells the peer how its request stands.
    fn reply_state(&self, record: &Record) {
        let (status, reason) = match record.state {
            State::Transferring => (Status::Granted, None),
            State::Denied => (Status::Denied, record.reason.clone()),
            State::Cancelled => (Status::Denied, Some("cancelled by the sender".to_owned())),
            State::Failed => (Status::Unavailable, record.reason.clone()),
            State::Paused => (Status::Pending, Some("paused by the sender".to_owned())),
            _ => (Status::Pending, record.reason.clone()),
        };
        let book = record.core.filter(|_| status == Status::Granted);
        let reply = Reply { id: record.request_id.clone(), status, reason, book };
        self.send(&record.peer, Message::Reply(reply), None);
    }

    fn reply(&self, peer: &PublicKey, id: String, status: Status, reason: Option<String>) {
        self.send(peer, Message::Reply(Reply { id, status, reason, book: None }), None);
    }

    /// The transfer that a message ends.
    pub(super) fn ending(&self, peer: &PublicKey, message: &Message) -> Option<Ending> {
        match message {
            Message::Cancel(Cancel { id }) | Message::Done(Done { id }) => {
                self.asked_as(peer, id).map(Ending::of)
            }
            _ => None,
        }
    }

    /// The peer withdrew a request.
    pub(super) async fn on_cancel(self: &Arc<Self>, peer: PublicKey, request_id: &str) {
        if let Some(live) = self.asked_as(&peer, request_id) {
            self.outgoing_hear(&live, Outgoing::RemoteCancel, |record| {
                record.reason = Some("cancelled by the peer".into());
            })
            .await;
        }
    }

    /// The peer has a whole book.
    pub(super) async fn on_done(self: &Arc<Self>, peer: PublicKey, request_id: &str) {
        if let Some(live) = self.asked_as(&peer, request_id) {
            self.outgoing_hear(&live, Outgoing::RemoteDone, |_| {}).await;
        }
    }

    /// A file that cannot be served any more (it changed, or is gone) ends its transfers.
    pub(super) fn spawn_guard(self: &Arc<Self>) {
        use tokio::sync::broadcast::error::RecvError;
        let (engine, mut events) = (Arc::clone(self), self.options.replicator.events());
        self.spawn(async move {
            loop {
                let event = tokio::select! {
                    event = events.recv() => event,
                    () = engine.closing.cancelled() => return,
                };
                let event = match event {
                    Ok(event) => event,
                    Err(RecvError::Lagged(_)) => continue,
                    Err(RecvError::Closed) => return,
                };
                let replicator::EventKind::Unreadable { error } = event.kind else { continue };
                for live in engine.with_peer(&event.peer, Direction::Outgoing) {
                    let core = live.record.lock().await.core;
                    if core.is_some_and(|core| core.key == event.key) {
                        engine.unreadable(live, format!("the book cannot be read: {error}")).await;
                    }
                }
            }
        });
    }

    /// Ends a transfer whose file cannot be read. When the database fails, too, that is tried until it
    /// works: the peer waits for blocks.
    async fn unreadable(self: &Arc<Self>, live: Arc<Live>, reason: String) {
        let gone = move |record: &mut Record| {
            record.reason = Some(reason.clone());
            record.error = Some(ErrorCode::Unavailable);
        };
        if let Err(error) = self.outgoing_step(&live, Outgoing::Unavailable, &gone).await {
            tracing::warn!(transfer = live.id, %error, "a transfer could not be moved on");
            let engine = Arc::clone(self);
            self.spawn(async move {
                engine.outgoing_end(&live, Outgoing::Unavailable, gone, &engine.closing).await;
            });
        }
    }

    /// The connection is gone.
    pub(super) async fn outgoing_unlinked(self: &Arc<Self>, live: &Arc<Live>) {
        self.outgoing_hear(live, Outgoing::LinkDown, |_| {}).await;
    }
}
