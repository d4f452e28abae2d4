//! Whether a peer may read a book now: approval, policy and publication, asked in one place on every way that
//! leads to reading.
//!
//! An approval names what was approved, this book's bytes for this peer, and ends with its transfer. A decision
//! that takes a right away binds every block at once ([`super::grants`]); [`Engine::reconsider`] then moves the
//! transfers that it touches, and tells the peers why.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::task::JoinSet;

use super::engine::Engine;
use super::library::{BookSource, Description};
use super::live::Live;
use super::outgoing::{Outgoing, Verdict};
use super::policy::Policy;
use super::record::{Approval, Record};
use super::shelf::{Ticket, stamp_of};
use super::state::{Direction, State};
use crate::crypto::{Hash, PublicKey, hash};
use crate::error::Result;
use crate::sync::lock;

/// A book of this node's catalog as transfers found it.
#[derive(Clone)]
pub(super) struct Published {
    /// [`super::Library::changes`] when it was looked up.
    changes: u64,
    pub(super) book: Description,
    pub(super) source: Option<BookSource>,
}

/// Which transfers a decision may touch.
pub(super) enum Touched {
    /// Those with this peer: its policy changed.
    Peer(PublicKey),
    /// Those of these books, or of all: the catalog changed.
    Books(Option<Vec<String>>),
}

impl Engine {
    /// Whether the record's peer may read its book. With `ready`, the bytes are known: they are what is granted.
    pub(super) async fn verdict(
        &self,
        live: &Live,
        record: &Record,
        ready: Option<&Ticket>,
    ) -> Result<Verdict> {
        let peers = &self.options.peers;
        if !peers.is_approved(&record.peer) {
            return Ok(Verdict::Refused);
        }
        let policy = peers.policy(&record.peer);
        if policy == Policy::MetadataOnly {
            return Ok(Verdict::Refused);
        }
        let Some(published) = self.published(live, &record.book_id)? else {
            return Ok(Verdict::NotPublished);
        };
        if policy == Policy::AutoAccept {
            return Ok(Verdict::Allowed);
        }
        let Some(approval) = &record.approval else { return Ok(Verdict::AskPerson) };
        let is_approved = match (ready, approval.hash) {
            (Some(ready), Some(hash)) => ready.book.hash == hash,
            (Some(ready), None) => ready.edition == approval.edition,
            // Compared when the file has been hashed: it may have been touched only.
            (None, Some(_)) => true,
            (None, None) => edition_of(&record.book_id, &published).await == approval.edition,
        };
        Ok(if is_approved { Verdict::Allowed } else { Verdict::AskPerson })
    }

    /// The book in the own catalog, looked up again only when the catalog has changed since.
    pub(super) fn published(&self, live: &Live, book_id: &str) -> Result<Option<Published>> {
        let changes = self.options.library.changes();
        if let Some(published) = &*lock(&live.published)
            && published.changes == changes
        {
            return Ok(Some(published.clone()));
        }
        let published = self.look_up(book_id)?;
        lock(&live.published).clone_from(&published);
        Ok(published)
    }

    /// The book in the own catalog.
    pub(super) fn look_up(&self, book_id: &str) -> Result<Option<Published>> {
        let changes = self.options.library.changes();
        let found = self.options.library.own(book_id)?;
        Ok(found.map(|(book, source)| Published { changes, book, source }))
    }

    /// What a person approves now. `None` when the book is not in the catalog.
    pub(super) async fn approval(&self, live: &Live, book_id: &str) -> Result<Option<Approval>> {
        let Some(published) = self.published(live, book_id)? else { return Ok(None) };
        let edition = edition_of(book_id, &published).await;
        Ok(Some(Approval { edition, hash: None }))
    }

    /// Asks of every outgoing transfer that a decision touches whether it may go on. All of them are asked, also
    /// when one cannot be written down; the first such error is returned.
    pub(super) async fn reconsider(self: &Arc<Self>, touched: Touched) -> Result<()> {
        let mut asking = JoinSet::new();
        for live in self.all_live() {
            if live.direction != Direction::Outgoing || live.info.borrow().state.is_terminal() {
                continue;
            }
            // Waiting for the record, which may be on its way to the disk, keeps no other transfer waiting.
            let is_touched = match &touched {
                Touched::Peer(peer) => live.is_of(peer, Direction::Outgoing),
                Touched::Books(ids) => {
                    ids.as_ref().is_none_or(|ids| ids.contains(&live.info.borrow().book_id))
                }
            };
            if !is_touched {
                continue;
            }
            let (engine, is_catalog) = (Arc::clone(self), matches!(touched, Touched::Books(_)));
            asking.spawn(async move { engine.reconsider_one(&live, is_catalog).await });
        }
        let outcomes = asking.join_all().await;
        outcomes.into_iter().collect()
    }

    async fn reconsider_one(self: &Arc<Self>, live: &Arc<Live>, is_catalog: bool) -> Result<()> {
        let state = live.info.borrow().state;
        let event = match state {
            // A policy that lets it have the book now is as good as a person.
            State::AwaitingApproval if self.is_asked_now(live) => Outgoing::Approve,
            State::AwaitingApproval => Outgoing::ApproveOffline,
            State::Requested | State::Transferring
                if is_catalog && self.is_replaced(live).await? =>
            {
                Outgoing::Replaced
            }
            _ => Outgoing::Reconsider,
        };
        self.outgoing_step(live, event, |_| {}).await?;
        Ok(())
    }

    /// Whether the catalog names other bytes for the book than those that are being read.
    async fn is_replaced(&self, live: &Live) -> Result<bool> {
        let book_id = live.info.borrow().book_id.clone();
        let Some(published) = self.published(live, &book_id)? else { return Ok(false) };
        let edition = edition_of(&book_id, &published).await;
        // Without a ticket it is being prepared, perhaps from what was there before.
        let ticket = *lock(&live.ticket);
        Ok(ticket.is_none_or(|ticket| ticket.edition != edition))
    }

    /// Whether the peer has asked for it on the connection that there is.
    pub(super) fn is_asked_now(&self, live: &Live) -> bool {
        let asked_on = live.asked_on.load(Ordering::Acquire);
        self.line(&live.peer).link().is_some_and(|link| link.number == asked_on)
    }
}

/// Tells one state of a book's bytes from another without reading them.
async fn edition_of(book_id: &str, published: &Published) -> Hash {
    match &published.source {
        Some(BookSource::Path(path)) => {
            let from = path.clone();
            let stamp = crate::tasks::blocking(move || stamp_of(&from)).await;
            edition_of_file(&path.to_string_lossy(), stamp.ok().flatten())
        }
        // Its bytes are not known before the program gives them: what the catalog says of it stands for them.
        Some(BookSource::OnDemand(_)) | None => edition_on_demand(book_id, &published.book),
    }
}

/// The edition of a file by its path, size and time of change.
pub(super) fn edition_of_file(path: &str, stamp: Option<(u64, i64)>) -> Hash {
    let (size, modified) = stamp.unwrap_or_default();
    let (size, modified) = (size.to_le_bytes(), modified.to_le_bytes());
    hash(&[b"alex/p2p edition of a file", &size, &modified, path.as_bytes()])
}

/// The edition of a book that the program gives when it is asked.
pub(super) fn edition_on_demand(book_id: &str, book: &Description) -> Hash {
    // With lengths, so that no two descriptions read the same.
    let fields = [Some(book_id), Some(&book.title), book.author.as_deref(), book.format.as_deref()];
    let mut text = b"alex/p2p edition on demand".to_vec();
    for field in fields {
        text.extend((field.map_or(u64::MAX, |field| field.len() as u64)).to_le_bytes());
        text.extend(field.unwrap_or_default().as_bytes());
    }
    text.extend(book.size_bytes.unwrap_or(u64::MAX).to_le_bytes());
    hash(&[&text])
}
