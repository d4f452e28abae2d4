//! The sending side: hearing requests, deciding, preparing books, granting, and moving outgoing
//! transfers on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::engine::Engine;
use super::held::SMALL_BOOK;
use super::live::{Baseline, Live};
use super::outgoing::{self, Outgoing, Verdict};
use super::progress::Meter;
use super::receiving::RETRY;
use super::record::Record;
use super::requests::Answered;
use super::shelf::{Ticket, Wanted};
use super::state::{Action, Direction, State};
use crate::crypto::PublicKey;
use crate::error::{Error, ErrorCode, Result};
use crate::events::EventKind;
use crate::hypercore::replicator;
use crate::sync::lock;

/// How often an outgoing transfer's progress is looked at.
const WATCH: Duration = Duration::from_millis(500);
/// How long a reader that has every block may take to say so, before it is taken as said.
const DONE_GRACE: Duration = Duration::from_secs(5);

impl Engine {
    /// Moves an outgoing transfer on. False when the event does not apply to its state.
    ///
    /// Whatever can lead to the peer reading the book is here, and asks whether it may.
    pub(super) async fn outgoing_step(
        self: &Arc<Self>,
        live: &Arc<Live>,
        event: Outgoing,
        change: impl Fn(&mut Record),
    ) -> Result<bool> {
        let ticket = *lock(&live.ticket);
        let ready = ticket.filter(|_| event == Outgoing::Ready);
        let mut record = live.record.lock().await;
        let verdict = match event.needs_verdict() {
            true => {
                let mut changed = record.clone();
                change(&mut changed);
                self.verdict(live, &changed, ready.as_ref()).await
            }
            false => Ok(Verdict::Allowed),
        };
        let verdict = match verdict {
            Ok(verdict) => verdict,
            Err(error) => {
                self.settle(&record);
                return Err(error);
            }
        };
        let Some((next, actions)) = outgoing::step(record.state, event, verdict) else {
            self.settle(&record);
            return Ok(false);
        };
        // A person is shown what is asked for now.
        let shown = lock(&live.published).as_ref().map(|published| published.book.clone());
        let shown = shown.filter(|book| event.needs_verdict() && *book != record.book);
        let asks_person =
            next == State::AwaitingApproval && (record.state != next || shown.is_some());
        let sent = self.sent_bytes(live, &record).await;
        let change = |record: &mut Record| {
            record.bytes = record.bytes.max(sent);
            if let Some(book) = &shown {
                record.book.clone_from(book);
            }
            if event.needs_verdict() {
                explain(record, event, verdict);
            }
            if let (Some(ready), Some(approval)) = (&ready, &mut record.approval) {
                approval.hash = Some(ready.book.hash);
            }
            if verdict == Verdict::AskPerson {
                record.approval = None;
            }
            change(record);
        };
        if actions.contains(&Action::Revoke) {
            // At once, and before the disk: it is not given back when the disk fails.
            self.withdraw(live, &record);
        }
        self.move_to(live, &mut record, next, event.survives(next), change, |_| {}).await?;
        self.keep(live, &record);
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
    pub(super) async fn outgoing_hear(
        self: &Arc<Self>,
        live: &Arc<Live>,
        event: Outgoing,
        change: impl Fn(&mut Record),
    ) -> Answered {
        match self.outgoing_step(live, event, change).await {
            Ok(true) => Answered::Useful,
            Ok(false) => Answered::Useless,
            Err(error) => {
                tracing::warn!(transfer = live.id, %error, "a transfer could not be moved on");
                Answered::Useful
            }
        }
    }

    /// Hashes and opens the book, then lets it flow or wait for a slot. Small books need none: they are on
    /// their way to the disk over there longer than they flow.
    fn spawn_preparation(self: &Arc<Self>, live: &Arc<Live>, record: &Record) {
        let (peer, book_id) = (record.peer, record.book_id.clone());
        let seems_small = (1..=SMALL_BOOK).contains(&record.total());
        self.start_job(live, move |engine, live, stop| async move {
            let at_once = engine.options.limits.transfers_at_once;
            let takes_slot = || engine.line(&peer).take_slot(&live.id, at_once);
            if !seems_small && !takes_slot() {
                return engine.wait_for_slot(&live, peer).await;
            }
            let prepared = tokio::select! {
                prepared = engine.prepare(&live, &book_id) => prepared,
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
    async fn prepare(&self, live: &Live, book_id: &str) -> Result<Ticket> {
        let published = self.published(live, book_id)?.ok_or_else(|| {
            Error::new(ErrorCode::Unavailable, "the book is not in the catalog any more")
        })?;
        let source = published.source.ok_or_else(|| {
            Error::new(
                ErrorCode::Unavailable,
                "where the book's bytes are is not known; publish it again with its path",
            )
        })?;
        self.shelf.prepare(Wanted { book_id, book: &published.book, source }).await
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
        let moved = self.outgoing_end(live, Outgoing::Ready, ready, stop).await;
        // It may have been refused at the last moment, and then the ticket was given back already.
        let is_flowing = moved && live.info.borrow().state == State::Transferring;
        if !is_flowing && lock(&live.ticket).take_if(|own| *own == ticket).is_some() {
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
        let reader = (record.peer, ticket.book.key);
        let is_approved = record.approval.is_some();
        self.shelf.grants.add(reader, &record.id, &record.book_id, is_approved);
        self.shelf.refresh(&ticket.book.key).await;
        let reader = self.shelf.reader(&ticket.book.key, &record.peer).await;
        let of_core = reader.map_or(0, |reader| reader.sent_bytes);
        *lock(&live.baseline) = Baseline { before: record.bytes, of_core };
        self.spawn_watch(live, record, ticket);
    }

    /// Takes the grant back: no further block is sent.
    fn withdraw(&self, live: &Live, record: &Record) {
        let ticket = *lock(&live.ticket);
        for key in record.core.iter().chain(ticket.iter().map(|t| &t.book)).map(|book| book.key) {
            self.shelf.grants.remove((record.peer, key), &record.id);
        }
    }

    /// Ends the reading whose grant was taken back, and closes what is not needed any more.
    fn revoke(self: &Arc<Self>, live: &Arc<Live>, record: &Record) {
        live.stop_job();
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
            // One that the peer has not asked for since it came back is not wanted, as far as is known.
            let queued = live.info.borrow().state == State::Queued && self.is_asked_now(&live);
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
        let baseline = *lock(&live.baseline);
        self.start_job(live, move |engine, live, stop| async move {
            let mut meter = Meter::new(before, book.byte_length);
            let (mut whole_since, mut shown) = (None, before);
            loop {
                let now = Instant::now();
                if let Some(reader) = engine.shelf.reader(&book.key, &peer).await {
                    // What it says it has is a claim; what was sent is not.
                    let bytes = baseline.sent(reader.sent_bytes, book.byte_length);
                    let has = reader.claimed_blocks;
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

    /// How many bytes of the book were sent to the peer, over all its connections.
    async fn sent_bytes(&self, live: &Live, record: &Record) -> u64 {
        let ticket = *lock(&live.ticket);
        let Some(ticket) = ticket.filter(|_| record.state == State::Transferring) else {
            return record.bytes;
        };
        let reader = self.shelf.reader(&ticket.book.key, &record.peer).await;
        let baseline = *lock(&live.baseline);
        reader.map_or(record.bytes, |reader| {
            baseline.sent(reader.sent_bytes, ticket.book.byte_length)
        })
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
                match event {
                    Ok(event) => {
                        if let replicator::EventKind::Unreadable { .. } = event.kind {
                            let lives = engine.with_peer(&event.peer, Direction::Outgoing);
                            engine.guard(lives).await;
                        }
                    }
                    // Whatever was missed is noted at the cores.
                    Err(RecvError::Lagged(_)) => engine.guard(engine.all_live()).await,
                    Err(RecvError::Closed) => return,
                }
            }
        });
    }

    /// Ends those of the transfers whose file could not be read.
    async fn guard(self: &Arc<Self>, lives: Vec<Arc<Live>>) {
        for live in lives {
            let ticket = *lock(&live.ticket);
            let Some(ticket) = ticket else { continue };
            let error = self.shelf.take_unreadable(&ticket.book.key, &live.peer).await;
            if let Some(error) = error {
                self.unreadable(live, format!("the book cannot be read: {error}")).await;
            }
        }
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

/// Why a transfer is where a verdict has put it, for both sides.
fn explain(record: &mut Record, event: Outgoing, verdict: Verdict) {
    let (reason, error) = match verdict {
        Verdict::Allowed if event == Outgoing::Replaced => {
            ("the book was replaced by another file", None)
        }
        Verdict::Allowed => return,
        Verdict::AskPerson => ("a person has to approve it first", None),
        Verdict::Refused => ("this server shares its catalog only", Some(ErrorCode::Denied)),
        Verdict::NotPublished => {
            ("the book is not in the catalog any more", Some(ErrorCode::NotFound))
        }
    };
    if record.reason.is_none() {
        record.reason = Some(reason.to_owned());
    }
    record.error = record.error.or(error);
}
