//! What every transfer shares: the live ones, the lines to peers, and the one way to change a state:
//! written down first, then shown, then acted upon.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rusqlite::Connection;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::held::WholeBook;
use super::lander::Landing;
use super::line::{Letter, Line, Tells};
use super::lives::Lives;
use super::message::Message;
use super::part::Parts;
use super::permission::Published;
use super::progress::Progress;
use super::record::{Record, TransferInfo};
use super::shelf::{Shelf, Ticket};
use super::space::{Reservation, Space};
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

/// One transfer that is not finished.
pub(super) struct Live {
    pub(super) id: String,
    peer: PublicKey,
    direction: Direction,
    request_id: String,
    created_at: u64,
    /// Held while the state changes.
    pub(super) record: tokio::sync::Mutex<Record>,
    pub(super) info: watch::Sender<TransferInfo>,
    /// Incoming: the download or verification. Outgoing: the preparation or what watches the reader.
    pub(super) job: Mutex<Option<Job>>,
    /// Outgoing: the open core.
    pub(super) ticket: Mutex<Option<Ticket>>,
    /// Outgoing: the book in the catalog, as it was looked up last.
    pub(super) published: Mutex<Option<Published>>,
    /// Outgoing: the number of the link on which the peer asked for it last; 0 for none.
    pub(super) asked_on: AtomicU64,
    /// Outgoing: what was sent before it was granted.
    pub(super) baseline: Mutex<Baseline>,
    /// Outgoing: one that is over is being opened again.
    pub(super) is_reopening: AtomicBool,
    /// Incoming: room for it on the disk.
    pub(super) room: Mutex<Option<Reservation>>,
    /// Incoming: every block of the file was verified and written in this run of the program.
    pub(super) is_verified: AtomicBool,
    /// Incoming: a small book that is whole.
    pub(super) whole: Mutex<Option<WholeBook>>,
    /// Incoming: the peer is being told that the book is whole, and has been told.
    pub(super) is_done: AtomicBool,
    pub(super) is_told: AtomicBool,
    /// There is an [`Ending`] of it.
    is_ending: AtomicBool,
}

/// From where the bytes that are sent for a transfer are counted.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Baseline {
    /// Those of the transfer's earlier grants.
    pub(super) before: u64,
    /// Those of the core to this peer when it was granted: for this transfer, or for others.
    pub(super) of_core: u64,
}

impl Baseline {
    /// How many bytes of a book were sent for the transfer when the core has sent so many to the peer.
    pub(super) fn sent(self, of_core: u64, byte_length: u64) -> u64 {
        self.before.saturating_add(of_core.saturating_sub(self.of_core)).min(byte_length)
    }
}

/// Held while it is written down that the peer ended an outgoing transfer.
pub(super) struct Ending(Arc<Live>);

impl Ending {
    pub(super) fn of(live: Arc<Live>) -> Self {
        live.is_ending.store(true, Ordering::Relaxed);
        Self(live)
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.is_ending.store(false, Ordering::Relaxed);
    }
}

/// A task that can be told to stop.
pub(super) struct Job {
    pub(super) stop: CancellationToken,
    pub(super) done: JoinHandle<()>,
}

impl Live {
    pub(super) fn new(record: Record) -> Self {
        Self {
            id: record.id.clone(),
            peer: record.peer,
            direction: record.direction,
            request_id: record.request_id.clone(),
            created_at: record.created_at,
            info: watch::Sender::new(record.info()),
            record: tokio::sync::Mutex::new(record),
            job: Mutex::default(),
            ticket: Mutex::default(),
            published: Mutex::default(),
            asked_on: AtomicU64::new(0),
            baseline: Mutex::default(),
            is_reopening: AtomicBool::new(false),
            room: Mutex::default(),
            is_verified: AtomicBool::new(false),
            whole: Mutex::default(),
            is_done: AtomicBool::new(false),
            is_told: AtomicBool::new(false),
            is_ending: AtomicBool::new(false),
        }
    }

    /// Tells the running job to stop; whoever starts the next one waits for its end.
    pub(super) fn stop_job(&self) {
        if let Some(job) = &*lock(&self.job) {
            job.stop.cancel();
        }
    }

    pub(super) fn peer(&self) -> PublicKey {
        self.peer
    }

    pub(super) fn direction(&self) -> Direction {
        self.direction
    }

    /// Whether the peer's request counts as open.
    pub(super) fn is_open_for(&self, peer: &PublicKey) -> bool {
        (self.is_with(peer, Direction::Outgoing) && !self.is_ending.load(Ordering::Relaxed))
            || (self.is_of(peer, Direction::Outgoing) && self.is_reopening.load(Ordering::Relaxed))
    }

    /// Whether it is an unfinished transfer with this peer.
    fn is_with(&self, peer: &PublicKey, direction: Direction) -> bool {
        self.is_of(peer, direction) && !self.info.borrow().state.is_terminal()
    }

    /// Whether it is, or was, a transfer with this peer.
    pub(super) fn is_of(&self, peer: &PublicKey, direction: Direction) -> bool {
        self.direction == direction && self.peer == *peer
    }

    /// Does not count on the peer to know that an incoming one is whole.
    pub(super) fn forget_told(&self) {
        self.is_done.store(false, Ordering::Relaxed);
        self.is_told.store(false, Ordering::Relaxed);
    }

    /// What the peer calls an outgoing one.
    pub(super) fn asked_as(&self) -> Option<(PublicKey, String)> {
        (self.direction == Direction::Outgoing).then(|| (self.peer, self.request_id.clone()))
    }

    /// Orders transfers by when they began.
    pub(super) fn age(&self) -> (u64, &str) {
        (self.created_at, &self.id)
    }

    /// Stops the job, and gives it to be waited for.
    pub(super) fn take_job(&self) -> Option<Job> {
        self.stop_job();
        lock(&self.job).take()
    }
}

impl Job {
    /// Waits for the end of a job that was told to stop.
    pub(super) async fn ended(job: Option<Self>) {
        if let Some(job) = job
            && let Err(error) = job.done.await
            && error.is_panic()
        {
            tracing::error!("a transfer's task panicked");
        }
    }
}

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
        found.sort_unstable_by(|a, b| a.age().cmp(&b.age()));
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
