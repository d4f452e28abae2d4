//! What happens in a node, numbered, so that a page that was away can go on where it was.
//!
//! The last [`CAPACITY`] events are kept. A [`Subscription`] is a position in them and nothing more, so a
//! slow subscriber costs no memory: what it missed becomes one [`EventKind::Gap`]. Numbers grow over
//! restarts, too: a block of them is reserved in the database ahead of use.

mod kind;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

pub use kind::{EventKind, NodeEvent, PeerChange};

use crate::store::{Database, Durability, StoreError};
use crate::sync::lock;
use crate::time::now_ms;

/// How many events are kept for subscribers that come back.
pub const CAPACITY: usize = 1024;
/// The shortest time between two progress events of one transfer.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);
/// How many transfers' progress is held back at once at most.
const PROGRESS_LIMIT: usize = 1024;
/// How many numbers are reserved at once. JavaScript's numbers are exact for 2^33 such blocks.
const RESERVATION: u64 = 1 << 20;
/// The row of `meta` with the first number that is not reserved.
const META: &str = "events_reserved";

/// The events of one node; clones share them.
#[derive(Clone)]
pub struct Events {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    /// The last number given out; `None` once closed.
    newest: watch::Sender<Option<u64>>,
    database: Option<Database>,
}

struct State {
    ring: VecDeque<Arc<NodeEvent>>,
    next: u64,
    /// Numbers from here on may have been given out by nobody: reserve before using them up.
    reserved: u64,
    reserving: bool,
    /// The highest number that fell out of the ring, or belongs to an earlier run.
    lost: u64,
    progress: HashMap<String, Progress>,
}

/// A transfer's progress since its last event.
struct Progress {
    shown: Instant,
    held: Option<EventKind>,
}

impl Events {
    /// Events numbered after all that an earlier run of the same database gave out.
    pub async fn open(database: &Database) -> Result<Self, StoreError> {
        let first = reserve(database).await?;
        Ok(Self::starting_at(first, Some(database.clone())))
    }

    /// Events that no database backs: numbers start at 1.
    #[must_use]
    pub fn in_memory() -> Self {
        Self::starting_at(1, None)
    }

    fn starting_at(first: u64, database: Option<Database>) -> Self {
        let state = State {
            ring: VecDeque::new(),
            next: first,
            reserved: first + RESERVATION,
            reserving: false,
            lost: first - 1,
            progress: HashMap::new(),
        };
        Self {
            inner: Arc::new(Inner {
                state: Mutex::new(state),
                newest: watch::Sender::new(Some(first - 1)),
                database,
            }),
        }
    }

    /// Records an event and wakes the subscribers; never waits.
    ///
    /// [`EventKind::TransferProgress`] within 250 ms of the same transfer's last is held back and shown
    /// when that time is over (inside a tokio runtime) or with the transfer's next event.
    pub fn emit(&self, kind: EventKind) {
        let mut state = lock(&self.inner.state);
        match &kind {
            EventKind::TransferProgress { id, .. } => {
                let id = id.clone();
                let now = Instant::now();
                if let Some(progress) = state.progress.get_mut(&id) {
                    let due = progress.shown + PROGRESS_INTERVAL;
                    if now < due {
                        if progress.held.replace(kind).is_none() {
                            self.show_later(id, due);
                        }
                        return;
                    }
                    progress.shown = now;
                    progress.held = None;
                } else if state.progress.len() < PROGRESS_LIMIT {
                    state.progress.insert(id.clone(), Progress { shown: now, held: None });
                }
                self.push_progress(&mut state, &id, kind);
            }
            EventKind::TransferState { id, .. } => {
                let id = id.clone();
                if let Some(held) = state.progress.remove(&id).and_then(|progress| progress.held) {
                    self.push_progress(&mut state, &id, held);
                }
                self.push(&mut state, kind);
            }
            _ => self.push(&mut state, kind),
        }
    }

    /// The events after number `after`; without it, those from now on.
    #[must_use]
    pub fn subscribe(&self, after: Option<u64>) -> Subscription {
        let newest = self.inner.newest.subscribe();
        let state = lock(&self.inner.state);
        let last = state.next - 1;
        // A number that was never given out, from another database perhaps: what it saw is unknown.
        let (seen, strange) = match after {
            Some(after) if after > last => (last, Some(last)),
            Some(after) => (after, None),
            None => (last, None),
        };
        Subscription { events: self.clone(), newest, seen, strange }
    }

    /// Ends all subscriptions once they have read what is there. Later events are dropped.
    pub fn close(&self) {
        self.inner.newest.send_replace(None);
    }

    fn show_later(&self, id: String, due: Instant) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let inner = Arc::downgrade(&self.inner);
        runtime.spawn(async move {
            tokio::time::sleep_until(due).await;
            let Some(inner) = inner.upgrade() else { return };
            let events = Self { inner };
            let mut state = lock(&events.inner.state);
            let Some(progress) = state.progress.get_mut(&id) else { return };
            progress.shown = Instant::now();
            if let Some(held) = progress.held.take() {
                events.push_progress(&mut state, &id, held);
            }
        });
    }

    /// Like `push`, and takes the transfer's earlier progress out of the ring, so that progress cannot
    /// push out what matters.
    fn push_progress(&self, state: &mut State, transfer: &str, kind: EventKind) {
        let earlier = state.ring.iter().rposition(
            |event| matches!(&event.kind, EventKind::TransferProgress { id, .. } if id == transfer),
        );
        if let Some(index) = earlier {
            state.ring.remove(index);
        }
        self.push(state, kind);
    }

    fn push(&self, state: &mut State, kind: EventKind) {
        if self.inner.newest.borrow().is_none() {
            return;
        }
        let id = state.next;
        state.next += 1;
        if state.ring.len() == CAPACITY
            && let Some(oldest) = state.ring.pop_front()
        {
            state.lost = oldest.id;
        }
        state.ring.push_back(Arc::new(NodeEvent { id, at: now_ms(), kind }));
        if state.next + RESERVATION / 2 > state.reserved && !state.reserving {
            state.reserving = true;
            self.reserve_more();
        }
        self.inner.newest.send_replace(Some(id));
    }

    /// Reserves the next block long before this one is used up.
    fn reserve_more(&self) {
        let (Some(database), Ok(runtime)) =
            (self.inner.database.clone(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let inner = Arc::downgrade(&self.inner);
        runtime.spawn(async move {
            let outcome = reserve(&database).await;
            let Some(inner) = inner.upgrade() else { return };
            let mut state = lock(&inner.state);
            state.reserving = false;
            match outcome {
                Ok(first) => state.reserved = first + RESERVATION,
                Err(error) => tracing::warn!(%error, "event numbers could not be reserved"),
            }
        });
    }
}

/// Takes the next block of numbers for this run; gives its first.
async fn reserve(database: &Database) -> Result<u64, StoreError> {
    database
        .write_with(Durability::Power, |transaction| {
            let found =
                transaction.query_row("SELECT value FROM meta WHERE name = ?1", [META], |row| {
                    row.get::<_, i64>(0)
                });
            let first = match found {
                Ok(first) => u64::try_from(first).unwrap_or(1).max(1),
                Err(rusqlite::Error::QueryReturnedNoRows) => 1,
                // Numbers begin again, which readers of events hear as a gap.
                Err(error) if StoreError::is_unreadable(&error) => 1,
                Err(error) => return Err(error.into()),
            };
            let next = i64::try_from(first + RESERVATION).unwrap_or(i64::MAX);
            transaction.execute(
                "INSERT INTO meta (name, value) VALUES (?1, ?2)
                 ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                rusqlite::params![META, next],
            )?;
            Ok(first)
        })
        .await
}

/// A reader's position in the events of a node.
pub struct Subscription {
    events: Events,
    newest: watch::Receiver<Option<u64>>,
    seen: u64,
    /// A gap to report first, for a reader whose number is unknown here.
    strange: Option<u64>,
}

impl Subscription {
    /// The next event, as soon as there is one; `None` once the node is closed and all was read.
    ///
    /// Cancel-safe.
    pub async fn next(&mut self) -> Option<NodeEvent> {
        loop {
            let closed = self.newest.borrow_and_update().is_none();
            if let Some(event) = self.try_next() {
                return Some(event);
            }
            if closed || self.newest.changed().await.is_err() {
                return None;
            }
        }
    }

    /// The next event if there is one already.
    pub fn try_next(&mut self) -> Option<NodeEvent> {
        let state = lock(&self.events.inner.state);
        if let Some(after) = self.strange.take() {
            return Some(gap(after, after));
        }
        if self.seen < state.lost {
            let after = std::mem::replace(&mut self.seen, state.lost);
            return Some(gap(state.lost, after));
        }
        let index = state.ring.partition_point(|event| event.id <= self.seen);
        let event = NodeEvent::clone(state.ring.get(index)?);
        self.seen = event.id;
        Some(event)
    }
}

/// A gap carries the number of the last event that is lost, so that resuming after it goes on right.
fn gap(id: u64, after: u64) -> NodeEvent {
    NodeEvent { id, at: now_ms(), kind: EventKind::Gap { after } }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(message: impl ToString) -> EventKind {
        EventKind::Status { layer: "test".into(), ok: true, message: message.to_string() }
    }

    fn progress(id: &str, bytes: u64) -> EventKind {
        EventKind::TransferProgress { id: id.into(), bytes, total: 100, rate: 1, eta_ms: None }
    }

    fn bytes_of(event: &NodeEvent) -> Option<u64> {
        match event.kind {
            EventKind::TransferProgress { bytes, .. } => Some(bytes),
            _ => None,
        }
    }

    fn drain(subscription: &mut Subscription) -> Vec<NodeEvent> {
        std::iter::from_fn(|| subscription.try_next()).collect()
    }

    #[tokio::test]
    async fn a_subscriber_goes_on_after_the_event_it_saw_last() {
        let events = Events::in_memory();
        for n in 0..5 {
            events.emit(status(n));
        }
        let seen: Vec<_> = drain(&mut events.subscribe(Some(2))).iter().map(|e| e.id).collect();
        assert_eq!(seen, [3, 4, 5]);
        assert!(events.subscribe(None).try_next().is_none());
    }

    #[tokio::test]
    async fn a_waiting_subscriber_is_woken_and_ends_at_close() {
        let events = Events::in_memory();
        let mut subscription = events.subscribe(None);
        let waiter = tokio::spawn(async move {
            let first = subscription.next().await;
            (first.map(|event| event.id), subscription.next().await)
        });
        tokio::task::yield_now().await;
        events.emit(status("a"));
        tokio::task::yield_now().await;
        events.close();
        events.emit(status("too late"));
        assert_eq!(waiter.await.unwrap(), (Some(1), None));
    }

    #[test]
    fn what_fell_out_of_the_buffer_is_one_gap_to_resume_after() {
        let events = Events::in_memory();
        let mut slow = events.subscribe(Some(0));
        for n in 0..CAPACITY + 10 {
            events.emit(status(n));
        }
        let first = slow.try_next().unwrap();
        assert_eq!((first.id, first.kind), (10, EventKind::Gap { after: 0 }));
        assert_eq!(slow.try_next().unwrap().id, 11);
        assert_eq!(drain(&mut events.subscribe(Some(10))).len(), CAPACITY);
    }

    #[test]
    fn an_unknown_number_gets_a_gap_and_then_the_present() {
        let events = Events::in_memory();
        events.emit(status("a"));
        let mut subscription = events.subscribe(Some(999));
        assert_eq!(subscription.try_next().unwrap().kind, EventKind::Gap { after: 1 });
        events.emit(status("b"));
        assert_eq!(subscription.try_next().unwrap().id, 2);
    }

    #[tokio::test]
    async fn numbers_grow_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p2p.db");
        let mut last = 0;
        for run in 0..3 {
            let database = Database::open(&path).unwrap();
            let events = Events::open(&database).await.unwrap();
            let mut subscription = events.subscribe(Some(last));
            events.emit(status(run));
            let seen = drain(&mut subscription);
            if run > 0 {
                assert_eq!(seen[0].kind, EventKind::Gap { after: last });
            }
            assert!(seen[seen.len() - 1].id > last);
            last = seen[seen.len() - 1].id;
            database.close();
        }
    }

    #[tokio::test]
    async fn more_numbers_are_reserved_before_a_block_is_used_up() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&dir.path().join("p2p.db")).unwrap();
        let events = Events::open(&database).await.unwrap();
        lock(&events.inner.state).next = RESERVATION - 1;
        events.emit(status("a"));
        while lock(&events.inner.state).reserving {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let last = lock(&events.inner.state).next - 1;
        let again = Events::open(&database).await.unwrap();
        assert!(lock(&again.inner.state).next > last + RESERVATION);
    }

    #[tokio::test(start_paused = true)]
    async fn progress_is_shown_four_times_a_second_and_the_last_is_not_lost() {
        let events = Events::in_memory();
        let mut subscription = events.subscribe(None);
        let mut shown = Vec::new();
        for bytes in 0..=100 {
            events.emit(progress("t", bytes));
            tokio::time::sleep(Duration::from_millis(10)).await;
            shown.extend(drain(&mut subscription));
        }
        tokio::time::sleep(PROGRESS_INTERVAL * 2).await;
        shown.extend(drain(&mut subscription));
        assert!(shown.len() <= 6, "{}", shown.len());
        assert_eq!(shown.last().and_then(bytes_of), Some(100));
    }

    #[tokio::test(start_paused = true)]
    async fn held_progress_comes_before_the_state_that_ends_the_transfer() {
        let events = Events::in_memory();
        let mut subscription = events.subscribe(None);
        events.emit(progress("t", 1));
        events.emit(progress("t", 100));
        events.emit(EventKind::TransferState {
            id: "t".into(),
            peer: "p".into(),
            direction: "incoming".into(),
            state: "completed".into(),
            reason: None,
        });
        let seen = drain(&mut subscription);
        assert_eq!(bytes_of(&seen[0]), Some(100), "the older one gave way");
        assert!(matches!(seen[1].kind, EventKind::TransferState { .. }));
        assert_eq!(seen.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn progress_does_not_push_other_events_out() {
        let events = Events::in_memory();
        events.emit(status("kept"));
        for bytes in 0..CAPACITY as u64 * 2 {
            events.emit(progress("t", bytes));
            tokio::time::advance(PROGRESS_INTERVAL).await;
        }
        let seen = drain(&mut events.subscribe(Some(0)));
        assert_eq!(seen.len(), 2);
        assert_eq!(seen[0].id, 1);
    }
}
