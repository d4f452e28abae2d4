//! Transfers as a program sees them.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::engine::Engine;
use super::library::BookReaders;
use super::live::Live;
use super::message::MAX_REASON_CHARS;
use super::options::TransferOptions;
use super::outgoing::Outgoing;
use super::permission::Touched;
use super::record::{Record, TransferInfo};
use super::state::{Direction, Incoming, State};
use super::table::{self, Filter};
use crate::crypto::PublicKey;
use crate::error::{Error, ErrorCode, Result};
use crate::protomux::Protomux;
use crate::tasks::{Task, task};
use crate::text;

/// A book that is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BookRequest {
    /// Whose book, z32.
    pub peer: String,
    /// The book's id in the peer's catalog.
    pub book_id: String,
    /// A folder (an existing one, or with a separator at its end) or the file's whole path. Without it
    /// the book goes to the node's folder for books, under a name made of title and author.
    #[serde(default)]
    pub save_to: Option<PathBuf>,
}

/// All transfers of a node. Clones share them.
#[derive(Clone)]
pub struct Transfers {
    engine: Arc<Engine>,
}

/// One transfer. A handle: it can be dropped and got again by its id.
#[derive(Clone)]
pub struct Transfer {
    engine: Arc<Engine>,
    id: String,
}

impl Transfers {
    /// Takes up what an earlier run left unfinished. Needs a tokio runtime.
    pub async fn open(options: TransferOptions) -> Result<Self> {
        let engine = Arc::new(Engine::new(options)?);
        engine.load().await?;
        engine.spawn_guard();
        Ok(Self { engine })
    }

    /// Speaks `alex/p2p` on a connection to an approved peer, until it closes. Needs a tokio runtime.
    pub fn attach(&self, mux: &Protomux) {
        self.engine.attach(mux);
    }

    /// Asks a peer for a book, now or when it is online. It is written down when this returns.
    ///
    /// Asking again for a book that is under way gives the same transfer; one that failed goes on.
    ///
    /// Fails with `ERR_INVALID_KEY`, `ERR_INVALID_ARGUMENT`, or `ERR_NOT_APPROVED` when the peer is not
    /// approved here. Cancelled, it may or may not have asked.
    pub async fn request(&self, request: BookRequest) -> Result<Transfer> {
        let peer = peer_key(&request.peer)?;
        let live = self.engine.request(peer, request.book_id, request.save_to).await?;
        Ok(Transfer { engine: Arc::clone(&self.engine), id: live.id.clone() })
    }

    /// Lists transfers, the newest first.
    pub fn list(&self, filter: &Filter) -> Result<Vec<TransferInfo>> {
        self.engine.check_open()?;
        let peer = filter.peer.as_deref().map(peer_key).transpose()?;
        let records = self.engine.options.database.read(|c| table::list(c, filter, peer))?;
        Ok(records.iter().map(|record| self.shown(record)).collect())
    }

    /// The transfer with that id, also a finished one.
    pub fn get(&self, id: &str) -> Result<Option<Transfer>> {
        self.engine.check_open()?;
        let record = self.engine.options.database.read(|c| table::get(c, id))?;
        let engine = Arc::clone(&self.engine);
        Ok(record.map(|record| Transfer { engine, id: record.id }))
    }

    /// Ends every transfer with a peer that could go on, those that failed and can be resumed among them: called
    /// when the peer is removed or blocked. All are ended, also when one cannot be written down; the first such
    /// error is returned.
    pub async fn cancel_all_with(&self, peer: &PublicKey) -> Result<()> {
        let mut ids: HashSet<String> =
            self.engine.options.database.read(|c| table::endable(c, peer))?.into_iter().collect();
        // In the database they have ended already, with the decision.
        for direction in [Direction::Incoming, Direction::Outgoing] {
            let live = self.engine.with_peer(peer, direction);
            ids.extend(live.iter().map(|live| live.id.clone()));
        }
        let mut outcome = Ok(());
        for id in ids {
            let transfer = Transfer { engine: Arc::clone(&self.engine), id };
            match transfer.cancel().await {
                // It has ended otherwise in the meantime.
                Err(error) if error.code == ErrorCode::InvalidState => {}
                cancelled => outcome = outcome.and(cancelled),
            }
        }
        outcome
    }

    /// Asks of every transfer to a peer whether it may go on: called when the peer's policy has changed. What it
    /// may no longer read has stopped before this is called.
    pub async fn reconsider_peer(&self, peer: PublicKey) -> Result<()> {
        self.engine.reconsider(Touched::Peer(peer)).await
    }

    /// What has the catalog's changes bind the transfers of its books; see
    /// [`crate::catalog::Catalog::on_change`].
    #[must_use]
    pub fn readers(&self) -> Arc<dyn BookReaders> {
        Arc::new(Readers(Arc::clone(&self.engine)))
    }

    /// Stops all transfers; unfinished ones go on at the next start. A second call does nothing.
    pub async fn close(&self) {
        self.engine.close().await;
    }

    fn shown(&self, record: &Record) -> TransferInfo {
        match self.engine.live(&record.id) {
            Some(live) => live.info.borrow().clone(),
            None => record.info(),
        }
    }
}

impl Transfer {
    /// The transfer's id on this node.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where it stands now.
    pub fn info(&self) -> Result<TransferInfo> {
        if let Some(live) = self.engine.live(&self.id) {
            return Ok(live.info.borrow().clone());
        }
        self.engine.check_open()?;
        let record = self.engine.options.database.read(|c| table::get(c, &self.id))?;
        record.map(|record| record.info()).ok_or_else(not_found)
    }

    /// Lets the peer have the book. Approving what is approved already does nothing.
    ///
    /// Fails with `ERR_INVALID_STATE` for incoming transfers and those that are over.
    pub async fn approve(&self) -> Result<()> {
        self.act("approved", Action::Approve).await
    }

    /// Tells the peer no, with a reason for a person. Also ends an outgoing transfer that is flowing.
    ///
    /// Fails with `ERR_INVALID_STATE` for incoming transfers and those that are over.
    pub async fn deny(&self, reason: Option<String>) -> Result<()> {
        let reason = reason.map(|reason| text::clean(&reason, MAX_REASON_CHARS));
        self.act("denied", Action::Deny(reason)).await
    }

    /// Stops the bytes; those that were verified stay. Works on either side, also across restarts.
    pub async fn pause(&self) -> Result<()> {
        self.act("paused", Action::Pause).await
    }

    /// Goes on with a transfer that was paused here, or that failed.
    pub async fn resume(&self) -> Result<()> {
        self.act("resumed", Action::Resume).await
    }

    /// Ends the transfer on both sides and deletes what was received. Cancelling twice does nothing.
    ///
    /// Fails with `ERR_INVALID_STATE` when it is completed or denied.
    pub async fn cancel(&self) -> Result<()> {
        self.act("cancelled", Action::Cancel).await
    }

    /// Waits until the transfer is completed, denied, cancelled or failed, and says which. Can be
    /// cancelled at any time.
    ///
    /// Fails with `ERR_CLOSED` when the node closes first.
    pub async fn done(&self) -> Result<TransferInfo> {
        let Some(live) = self.engine.live(&self.id) else { return self.info() };
        let mut info = live.info.subscribe();
        let over = tokio::select! {
            over = info.wait_for(|info| info.state.is_terminal()) => over,
            () = self.engine.closing.cancelled() => return Err(Error::closed()),
        };
        over.map(|info| info.clone()).map_err(|_| Error::closed())
    }

    /// Waits for the next change of the state or the progress, for showing it. Can be cancelled.
    pub async fn changed(&self, since: &TransferInfo) -> Result<TransferInfo> {
        let Some(live) = self.engine.live(&self.id) else { return self.info() };
        let mut info = live.info.subscribe();
        let next = tokio::select! {
            next = info.wait_for(|info| info != since) => next,
            () = self.engine.closing.cancelled() => return Err(Error::closed()),
        };
        next.map(|info| info.clone()).map_err(|_| Error::closed())
    }

    async fn act(&self, what: &str, action: Action) -> Result<()> {
        self.engine.check_open()?;
        let live = self.engine.find(|c| table::get(c, &self.id))?.ok_or_else(not_found)?;
        let (direction, state) = {
            let record = live.record.lock().await;
            (record.direction, record.state)
        };
        let moved = match direction {
            Direction::Incoming => self.act_incoming(&live, &action).await,
            Direction::Outgoing => self.act_outgoing(&live, &action).await,
        };
        let record = live.record.lock().await;
        self.engine.settle(&record);
        if moved? || action.is_fulfilled(&record, state) {
            return Ok(());
        }
        let (direction, state) = (direction.as_str(), record.state.as_str());
        let message = format!("an {direction} transfer that is {state} cannot be {what}");
        Err(Error::new(ErrorCode::InvalidState, message))
    }

    async fn act_incoming(&self, live: &Arc<Live>, action: &Action) -> Result<bool> {
        if matches!(action, Action::Resume) && !self.engine.options.peers.is_approved(&live.peer) {
            let message = "the peer is not approved here; add or approve it, then resume";
            return Err(Error::new(ErrorCode::NotApproved, message));
        }
        let event = match action {
            Action::Pause => Incoming::Pause,
            Action::Resume => Incoming::Resume,
            Action::Cancel => Incoming::Cancel,
            Action::Approve | Action::Deny(_) => return Ok(false),
        };
        self.engine.incoming_step(live, event, |_| {}).await
    }

    async fn act_outgoing(&self, live: &Arc<Live>, action: &Action) -> Result<bool> {
        let engine = &self.engine;
        let event = match (action, engine.is_asked_now(live)) {
            (Action::Approve, true) => Outgoing::Approve,
            (Action::Approve, false) => Outgoing::ApproveOffline,
            (Action::Deny(_), _) => Outgoing::Deny,
            (Action::Pause, _) => Outgoing::Pause,
            (Action::Resume, true) => Outgoing::Resume,
            (Action::Resume, false) => Outgoing::ResumeOffline,
            (Action::Cancel, _) => Outgoing::Cancel,
        };
        let approval = match action {
            Action::Approve => {
                let book_id = live.info.borrow().book_id.clone();
                engine.approval(live, &book_id).await?
            }
            _ => None,
        };
        let change = |record: &mut Record| match action {
            Action::Approve if record.approval.is_none() => record.approval = approval,
            Action::Deny(reason) => record.reason.clone_from(reason),
            _ => {}
        };
        let moved = engine.outgoing_step(live, event, change).await?;
        let info = live.info.borrow().clone();
        if matches!(action, Action::Approve) && moved && info.state.is_terminal() {
            // It cannot be had any more, whatever a person says.
            info.outcome()?;
        }
        Ok(moved)
    }
}

/// Binds the readers of this node's books to what the catalog says.
struct Readers(Arc<Engine>);

impl BookReaders for Readers {
    fn withhold(&self, books: &[String]) {
        self.0.shelf.grants.withhold(books);
    }

    fn restore(&self, books: &[String]) {
        self.0.shelf.grants.restore(books);
    }

    fn reconsider(&self, books: Option<Vec<String>>) -> Task<bool> {
        let engine = Arc::clone(&self.0);
        task(async move {
            let outcome = engine.reconsider(Touched::Books(books)).await;
            if let Err(error) = &outcome {
                tracing::warn!(%error, "not every transfer was asked whether it may go on");
            }
            outcome.is_ok()
        })
    }
}

enum Action {
    Approve,
    Deny(Option<String>),
    Pause,
    Resume,
    Cancel,
}

impl Action {
    /// Whether things are already as they should be. `before` is the state when it was asked for.
    fn is_fulfilled(&self, record: &Record, before: State) -> bool {
        match self {
            Self::Approve => {
                let was_approved = !before.is_terminal() && before != State::AwaitingApproval;
                was_approved && record.direction == Direction::Outgoing
            }
            Self::Deny(_) => before == State::Denied && record.direction == Direction::Outgoing,
            Self::Pause => before == State::Paused,
            Self::Resume => !before.is_terminal() && before != State::Paused,
            Self::Cancel => before == State::Cancelled,
        }
    }
}

fn peer_key(text: &str) -> Result<PublicKey> {
    PublicKey::from_z32(text).ok_or_else(|| {
        Error::new(ErrorCode::InvalidKey, "a peer is named by its key of 52 z32 characters")
    })
}

fn not_found() -> Error {
    Error::new(ErrorCode::NotFound, "there is no transfer with this id")
}
