//! What every transfer shares: the live ones, the lines to peers, and the one way to change a state:
//! written down first, then shown, then acted upon.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use rusqlite::Connection;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::lander::Landing;
use super::line::{Letter, Line, Tells};
use super::live::{Job, Live};
use super::lives::Lives;
use super::message::Message;
use super::part::Parts;
use super::progress::Progress;
use super::record::Record;
use super::shelf::Shelf;
use super::space::Space;
use super::state::{Direction, State};
use super::turns::Turns;
use super::{TransferOptions, table};
use crate::crypto::PublicKey;
use crate::error::{Error, Result};
use crate::events::EventKind;
use crate::store::{Durability, StoreError};
use crate::sync::{Gathered, lock};
use crate::time::now_ms;

/// Everything that transfers share.
pub(super) struct Engine {
    pub(super) options: TransferOptions,
    pub(super) shelf: Shelf,
    pub(super) parts: Parts,
    pub(super) space: Space,
    unsaved: Arc<Mutex<Unsaved>>,
    pub(super) landings: Mutex<Gathered<Landing>>,
    /// How many transfers have finished; old ones are forgotten once in a while.
    finished: AtomicU32,
    /// Transfers that are not finished.
    live: Mutex<Lives>,
    lines: Mutex<HashMap<PublicKey, Arc<Line>>>,
    /// One new request for a book at a time, so that it is asked for once.
    pub(super) requesting: Turns,
    pub(super) closing: CancellationToken,
    pub(super) tasks: TaskTracker,
}

/// Records that are about to be written down, together.
#[derive(Default)]
struct Unsaved {
    records: HashMap<String, Record>,
    /// Whether the writer was told.
    is_told: bool,
}

/// How often transfers that finished long ago are looked for: each time so many more have finished.
const PRUNE_EVERY: u32 = 32;

impl Engine {
    pub(super) fn new(options: TransferOptions) -> Result<Self> {
        let space = Space::default();
        let shelf = Shelf::new(
            options.database.clone(),
            Arc::clone(&options.storage),
            options.replicator.clone(),
            options.data_dir.join("outgoing"),
            options.limits.book_bytes,
            Arc::clone(&options.peers),
            space.clone(),
        )?;
        let parts = Parts::new(
            options.database.clone(),
            Arc::clone(&options.storage),
            options.data_dir.join("incoming"),
        )?;
        Ok(Self {
            options,
            shelf,
            parts,
            space,
            unsaved: Arc::default(),
            landings: Mutex::default(),
            finished: AtomicU32::new(0),
            live: Mutex::default(),
            lines: Mutex::default(),
            requesting: Turns::default(),
            closing: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })
    }

    /// Takes up what an earlier run left unfinished.
    pub(super) async fn load(self: &Arc<Self>) -> Result<()> {
        self.parts.sweep().await?;
        for mut record in self.options.database.read(table::unfinished)? {
            if !self.options.peers.is_approved(&record.peer) {
                // The peer was removed or blocked, and what follows from that was not written down.
                record.state = State::Cancelled;
                (record.approval, record.told) = (None, true);
                self.save(&record, Durability::Power).await?;
                self.parts.discard(&record.id, record.core.map(|core| core.key)).await;
                continue;
            }
            let is_lost = record.state == State::Verifying && !self.is_here(&record);
            if is_lost || matches!(record.state, State::Requested | State::Transferring) {
                record.state = State::Queued;
                self.save(&record, Durability::Power).await?;
            }
            let verifying = record.state == State::Verifying;
            let live = self.adopt(record);
            if verifying {
                let record = live.record.lock().await.clone();
                self.spawn_verification(&live, &record);
            }
        }
        Ok(())
    }

    /// Whether a file is there of a book that was whole: a small one may have been in memory only.
    fn is_here(&self, record: &Record) -> bool {
        self.parts.path(&record.id).exists() || record.path.as_ref().is_some_and(|p| p.exists())
    }

    pub(super) fn check_open(&self) -> Result<()> {
        if self.closing.is_cancelled() { Err(Error::closed()) } else { Ok(()) }
    }

    /// Writes a record down. Its lock is held, unless nobody else has it yet.
    pub(super) async fn save(&self, record: &Record, survives: Durability) -> Result<()> {
        self.save_all(vec![record.clone()], survives).await
    }

    /// [`Engine::save`] for many at once.
    pub(super) async fn save_all(&self, records: Vec<Record>, survives: Durability) -> Result<()> {
        let mut prunes = Vec::new();
        for record in &records {
            lock(&self.unsaved).records.remove(&record.id);
            if record.state.is_terminal()
                && self.finished.fetch_add(1, Ordering::Relaxed).is_multiple_of(PRUNE_EVERY)
            {
                prunes.push((record.direction, record.peer));
            }
        }
        let write = self.options.database.write_with(survives, move |transaction| {
            records.iter().try_for_each(|record| table::put(transaction, record))?;
            prunes
                .iter()
                .try_for_each(|(direction, peer)| table::prune(transaction, *direction, peer))
        });
        Ok(write.await?)
    }

    /// Writes a record down soon, with all others that changed meanwhile. For steps that are taken anew when
    /// they are forgotten.
    fn save_soon(&self, record: Record) {
        let mut unsaved = lock(&self.unsaved);
        unsaved.records.insert(record.id.clone(), record);
        if std::mem::replace(&mut unsaved.is_told, true) {
            return;
        }
        let (database, shared) = (self.options.database.clone(), Arc::clone(&self.unsaved));
        self.spawn(async move {
            // Taken when its turn comes, so that nothing older is written over something newer.
            let write = database.write_with(Durability::Process, move |transaction| {
                let Unsaved { records, .. } = std::mem::take(&mut *lock(&shared));
                records.values().try_for_each(|record| table::put(transaction, record))
            });
            if let Err(error) = write.await {
                tracing::warn!(%error, "where transfers stand could not be written down");
            }
        });
    }

    /// The live transfer of a record; the one that is there already, if it is.
    pub(super) fn adopt(&self, record: Record) -> Arc<Live> {
        lock(&self.live).adopt(record)
    }

    /// [`Engine::adopt`] and write down, for what a peer asks for. `None` when it has `limit` requests open.
    pub(super) async fn adopt_within(
        &self,
        limit: usize,
        record: Record,
    ) -> Result<Option<Arc<Live>>> {
        let (peer, added) = (record.peer, Arc::new(Live::new(record)));
        // Whoever finds it before it is written down waits.
        let record = added.record.lock().await;
        {
            let mut live = lock(&self.live);
            if live.open_for(&peer) >= limit {
                return Ok(None);
            }
            live.insert(&added);
        }
        if let Err(error) = self.save(&record, Durability::Process).await {
            lock(&self.live).remove(&record.id);
            return Err(error);
        }
        drop(record);
        Ok(Some(added))
    }

    /// Whether the peer may open a request again that is over: it counts as one more from then on, until
    /// [`Live::is_reopening`] is taken back.
    pub(super) fn may_reopen(&self, live: &Live, limit: usize) -> bool {
        let lives = lock(&self.live);
        if live.is_reopening.load(Ordering::Relaxed) {
            return true;
        }
        let may = lives.open_for(&live.peer) < limit;
        live.is_reopening.store(may, Ordering::Relaxed);
        may
    }

    /// All transfers that are not finished, in no order.
    pub(super) fn all_live(&self) -> Vec<Arc<Live>> {
        lock(&self.live).all().cloned().collect()
    }

    /// A transfer that is not finished.
    pub(super) fn live(&self, id: &str) -> Option<Arc<Live>> {
        lock(&self.live).get(id)
    }

    /// The outgoing transfer, not finished, that a peer means by an id of its own.
    pub(super) fn asked_as(&self, peer: &PublicKey, request_id: &str) -> Option<Arc<Live>> {
        lock(&self.live).asked_as(*peer, request_id.to_owned())
    }

    /// The live transfer of the record that `read` finds. Nobody settles it in between.
    pub(super) fn find(
        &self,
        read: impl FnOnce(&Connection) -> Result<Option<Record>, StoreError>,
    ) -> Result<Option<Arc<Live>>> {
        let mut live = lock(&self.live);
        let record = self.options.database.read(read)?;
        Ok(record.map(|record| live.adopt(record)))
    }

    /// Lets go of a transfer that is finished.
    pub(super) fn settle(&self, record: &Record) {
        if record.state.is_terminal() {
            lock(&self.live).remove(&record.id);
        }
    }

    /// Has a transfer that goes on among those that are not finished: it may have been found just before it
    /// was let go of, and then resumed.
    pub(super) fn keep(&self, live: &Arc<Live>, record: &Record) {
        if !record.state.is_terminal() {
            lock(&self.live).insert(live);
        }
    }

    /// The unfinished transfers with a peer, the oldest first.
    pub(super) fn with_peer(&self, peer: &PublicKey, direction: Direction) -> Vec<Arc<Live>> {
        let live = lock(&self.live);
        let is_wanted = |live: &&Arc<Live>| live.is_with(peer, direction);
        let mut found: Vec<_> = live.all().filter(is_wanted).cloned().collect();
        found.sort_unstable_by_key(|live| live.age());
        found
    }

    /// As [`Lives::queued_and_open`].
    pub(super) fn queued_and_open(&self, peer: &PublicKey) -> (Vec<Arc<Live>>, Vec<Arc<Live>>) {
        lock(&self.live).queued_and_open(peer)
    }

    /// Moves a transfer on: first in the database, unless it need not survive, then for everybody to see.
    /// What is sent `before` it is seen comes before whatever follows from it.
    pub(super) async fn move_to(
        &self,
        live: &Live,
        record: &mut Record,
        next: State,
        survives: Option<Durability>,
        change: impl FnOnce(&mut Record),
        before: impl FnOnce(&Record),
    ) -> Result<()> {
        let mut changed = record.clone();
        let moved = changed.state != next;
        changed.state = next;
        if moved {
            changed.updated_at = now_ms();
            (changed.reason, changed.error) = (None, None);
        }
        change(&mut changed);
        if next.is_terminal() {
            // It was for this transfer.
            changed.approval = None;
        }
        if changed != *record {
            match survives {
                Some(survives) => self.save(&changed, survives).await?,
                None => self.save_soon(changed.clone()),
            }
        }
        *record = changed;
        before(record);
        live.info.send_replace(record.info());
        if moved {
            tracing::debug!(
                transfer = record.id,
                peer = record.peer.short(),
                state = record.state.as_str(),
                "a transfer moved on"
            );
            self.announce(record);
        }
        self.settle(record);
        Ok(())
    }

    /// Tells everybody which state a transfer is in.
    pub(super) fn announce(&self, record: &Record) {
        self.options.events.emit(EventKind::TransferState {
            id: record.id.clone(),
            peer: record.peer.to_z32(),
            direction: record.direction.as_str().to_owned(),
            state: record.state.as_str().to_owned(),
            reason: record.reason.clone(),
        });
    }

    /// Shows progress without writing it down.
    pub(super) fn show_progress(&self, live: &Live, progress: Progress) {
        live.info.send_modify(|info| info.progress = progress);
        let Progress { bytes, total, rate, eta_ms } = progress;
        let id = live.id.clone();
        self.options.events.emit(EventKind::TransferProgress { id, bytes, total, rate, eta_ms });
    }

    /// The line to a peer.
    pub(super) fn line(&self, peer: &PublicKey) -> Arc<Line> {
        Arc::clone(lock(&self.lines).entry(*peer).or_default())
    }

    /// Whether the peer's channel is open.
    pub(super) fn is_linked(&self, peer: &PublicKey) -> bool {
        self.line(peer).link().is_some()
    }

    /// Sends a message if the peer is connected. A peer that does not read its messages is hung up on.
    pub(super) fn send(&self, peer: &PublicKey, message: Message, tells: Option<Tells>) {
        let Some(link) = self.line(peer).link() else { return };
        if link.outbox.try_send(Letter { message, tells }).is_err() {
            link.hang_up.cancel();
        }
    }

    /// Notes that the peer was told how a transfer ended; the next message does not wait for that.
    pub(super) fn note_told(&self, id: String) {
        let database = self.options.database.clone();
        self.spawn(async move {
            let write = database.write_with(Durability::Process, move |transaction| {
                transaction
                    .prepare_cached("UPDATE transfers SET told = 1 WHERE id = ?1")?
                    .execute([id])?;
                Ok::<_, StoreError>(())
            });
            if let Err(error) = write.await {
                tracing::debug!(%error, "a finished transfer will be told of again");
            }
        });
    }

    /// Runs a task until the engine closes.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        self.tasks.spawn(crate::tasks::task(task))
    }

    /// Starts a job of a transfer, after the one before it has ended.
    pub(super) fn start_job<F>(
        self: &Arc<Self>,
        live: &Arc<Live>,
        job: impl FnOnce(Arc<Self>, Arc<Live>, CancellationToken) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.closing.child_token();
        let before = live.take_job();
        let work = job(Arc::clone(self), Arc::clone(live), stop.clone());
        let done = self.spawn(async move {
            Job::ended(before).await;
            work.await;
        });
        *lock(&live.job) = Some(Job { stop, done });
    }

    /// Stops everything; unfinished transfers go on at the next start.
    pub(super) async fn close(&self) {
        self.closing.cancel();
        let all = lock(&self.live).take();
        for live in all {
            Job::ended(live.take_job()).await;
        }
        self.tasks.close();
        self.tasks.wait().await;
        self.shelf.close().await;
    }
}
