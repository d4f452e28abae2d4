//! One transfer that is not finished: its record, its job, and what it holds while it goes on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::held::WholeBook;
use super::permission::Published;
use super::record::{Record, TransferInfo};
use super::shelf::Ticket;
use super::space::Reservation;
use super::state::Direction;
use crate::crypto::PublicKey;
use crate::sync::lock;

static NEXT_LIVE: AtomicU64 = AtomicU64::new(0);

/// One transfer that is not finished.
pub(super) struct Live {
    pub(super) id: String,
    pub(super) peer: PublicKey,
    pub(super) direction: Direction,
    request_id: String,
    /// Orders transfers by when they came up here, whatever the clock says.
    number: u64,
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
            number: NEXT_LIVE.fetch_add(1, Ordering::Relaxed),
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

    /// Whether the peer's request counts as open.
    pub(super) fn is_open_for(&self, peer: &PublicKey) -> bool {
        (self.is_with(peer, Direction::Outgoing) && !self.is_ending.load(Ordering::Relaxed))
            || (self.is_of(peer, Direction::Outgoing) && self.is_reopening.load(Ordering::Relaxed))
    }

    /// Whether it is an unfinished transfer with this peer.
    pub(super) fn is_with(&self, peer: &PublicKey, direction: Direction) -> bool {
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

    /// Orders transfers by when they began, or were taken up again.
    pub(super) fn age(&self) -> u64 {
        self.number
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
