//! Peers' requests for books of this node: hearing them, and answering in words that are meant for peers.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::engine::Engine;
use super::live::Ending;
use super::message::{Cancel, Done, Message, Reply, Request, Status};
use super::outgoing::Outgoing;
use super::record::Record;
use super::state::State;
use super::table;
use crate::crypto::PublicKey;
use crate::error::{ErrorCode, Result};
use crate::sync::lock;

/// What a peer's message came to.
pub(super) enum Answered {
    /// A transfer moved, or an answer that costs no disk was given for the first time.
    Useful,
    /// Nothing changed by it.
    Useless,
    /// It asked for a book that is not in the catalog.
    UnknownBook,
}

impl Engine {
    /// A peer asks for a book of ours on the link with that number, for the first time or again. Gives the request
    /// back when the disk keeps it from being answered.
    pub(super) async fn on_request(
        self: &Arc<Self>,
        peer: PublicKey,
        request: Request,
        link: u64,
    ) -> (Option<Request>, Answered) {
        let id = request.id.clone();
        let error = match self.answer(peer, &request, link).await {
            Ok(answered) => return (None, answered),
            Err(error) => error,
        };
        tracing::warn!(peer = peer.short(), %error, "a request could not be answered");
        let is_disk = error.code.is_disk();
        let (status, reason) = match is_disk {
            true => (Status::Pending, "its disk failed"),
            false => (Status::Unavailable, "internal error"),
        };
        self.reply(&peer, id, status, Some(reason.into()));
        (is_disk.then_some(request), Answered::Useful)
    }

    async fn answer(
        self: &Arc<Self>,
        peer: PublicKey,
        request: &Request,
        link: u64,
    ) -> Result<Answered> {
        if !self.options.peers.is_approved(&peer) {
            return Ok(Answered::Useless);
        }
        let known = match self.asked_as(&peer, &request.id) {
            Some(live) => Some(live),
            None => self.find(|c| table::by_request(c, &peer, &request.id))?,
        };
        let limit = self.options.limits.open_requests;
        let live = match known {
            Some(live) => live,
            None => {
                let Some(published) = self.look_up(&request.book_id)? else {
                    self.reply(&peer, request.id.clone(), Status::Unavailable, None);
                    return Ok(Answered::UnknownBook);
                };
                let (id, book_id) = (request.id.clone(), request.book_id.clone());
                let record = Record::outgoing(peer, id, book_id, published.book.clone());
                let Some(live) = self.adopt_within(limit, record).await? else {
                    return Ok(self.too_many(&peer, request));
                };
                *lock(&live.published) = Some(published);
                live
            }
        };
        {
            let record = live.record.lock().await;
            if record.book_id != request.book_id {
                let reason = "this id was used for another book".to_owned();
                self.reply(&peer, request.id.clone(), Status::Denied, Some(reason));
                self.settle(&record);
                return Ok(Answered::Useless);
            }
            let is_over = matches!(record.state, State::Completed | State::Failed);
            if is_over && !self.may_reopen(&live, limit) {
                self.settle(&record);
                return Ok(self.too_many(&peer, request));
            }
        }
        live.asked_on.store(link, Ordering::Release);
        let before = live.info.borrow().state;
        let asked = self.outgoing_step(&live, Outgoing::Asked, |_| {}).await;
        live.is_reopening.store(false, Ordering::Relaxed);
        asked?;
        let is_moved = live.info.borrow().state != before;
        Ok(if is_moved { Answered::Useful } else { Answered::Useless })
    }

    fn too_many(&self, peer: &PublicKey, request: &Request) -> Answered {
        let reason = "too many open requests; ask again later".to_owned();
        self.reply(peer, request.id.clone(), Status::Pending, Some(reason));
        Answered::Useless
    }

    /// Tells the peer how its request stands, in words that are meant for peers: what went wrong here is told the
    /// owner alone.
    pub(super) fn reply_state(&self, record: &Record) {
        let status = match record.state {
            State::Transferring => Status::Granted,
            State::Denied | State::Cancelled => Status::Denied,
            State::Failed => Status::Unavailable,
            _ => Status::Pending,
        };
        let book = record.core.filter(|_| status == Status::Granted);
        let reason = words_for_peer(record);
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
    pub(super) async fn on_cancel(self: &Arc<Self>, peer: PublicKey, id: &str) -> Answered {
        let change = |record: &mut Record| record.reason = Some("cancelled by the peer".into());
        self.on_end(peer, id, Outgoing::RemoteCancel, change).await
    }

    /// The peer says that it has a whole book.
    pub(super) async fn on_done(self: &Arc<Self>, peer: PublicKey, id: &str) -> Answered {
        self.on_end(peer, id, Outgoing::RemoteDone, |_| {}).await
    }

    async fn on_end(
        self: &Arc<Self>,
        peer: PublicKey,
        id: &str,
        event: Outgoing,
        change: impl Fn(&mut Record),
    ) -> Answered {
        let Some(live) = self.asked_as(&peer, id) else { return Answered::Useless };
        self.outgoing_hear(&live, event, change).await
    }
}

/// Why a request stands as it does, as far as the peer is told. A person's own words go to the peer; what this
/// node or its program says of a failure may name files, and stays here.
fn words_for_peer(record: &Record) -> Option<String> {
    let fixed = match (record.state, record.error) {
        (State::Cancelled, _) => "cancelled by the sender",
        (State::Paused, _) => "paused by the sender",
        (State::Failed, Some(ErrorCode::LimitExceeded)) => {
            "the book is larger than books may be there"
        }
        (State::Failed, Some(error)) if error.is_disk() => "its disk failed",
        (State::Failed, Some(ErrorCode::NotFound)) => "the book is not in the catalog any more",
        (State::Failed, _) => "the sender does not have the book's bytes now",
        _ => return record.reason.clone(),
    };
    Some(fixed.to_owned())
}
