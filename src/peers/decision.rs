//! What a person decides about a peer: in force at once, and on disk before the call returns.
//!
//! A decision changes the memory first. Neither a slow disk nor anything that peers make this node do stands
//! before it: there is no queue that both wait in. What is written then is the row as memory has it when its turn
//! comes, so decisions that follow each other closely cannot be written in the wrong order.
//!
//! When the disk refuses a decision, one that takes rights away stays in force and is written as soon as the disk
//! works; any other is taken back. The error says which.

use std::future::Future;
use std::sync::Arc;

use rusqlite::Transaction;

use super::directory::{Entry, Inner, Peers};
use super::lookup::shown;
use super::record::{Peer, PeerStatus, Policy};
use super::table::{self, Stored};
use crate::crypto::PublicKey;
use crate::error::{Error, ErrorCode, Result};
use crate::events::{EventKind, PeerChange};
use crate::identity::KeyError;
use crate::store::StoreError;
use crate::sync::lock;
use crate::tasks::Task;
use crate::time::now_ms;

/// How many peers there may be, blocked ones included.
const LIMIT: usize = 10_000;

/// Where a key stands after a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It may connect, and have what policy lets it have.
    Approved,
    /// It is refused, and what is known of it is kept.
    Blocked,
    /// It is nobody to this node any more.
    Removed,
}

/// What a decision about a peer entails in other layers. The node joins them with this; nothing of it hangs on
/// an event that may be missed.
pub trait Consequences: Send + Sync + 'static {
    /// Written in the transaction that writes the decision. Blocks on disk.
    ///
    /// # Errors
    ///
    /// When the database fails; then the decision is not written either.
    fn write(
        &self,
        transaction: &Transaction<'_>,
        key: &PublicKey,
        standing: Standing,
    ) -> Result<(), StoreError>;

    /// Ends what goes on. The call that decided returns when this is done; it runs to its end also when the
    /// caller goes.
    fn carry_out(&self, key: PublicKey, standing: Standing) -> Task<Result<()>>;
}

/// What was decided, as memory has it now.
struct Decided {
    before: Option<Stored>,
    after: Option<Stored>,
}

impl Decided {
    fn standing(&self) -> Standing {
        match &self.after {
            None => Standing::Removed,
            Some(stored) if stored.status == PeerStatus::Approved => Standing::Approved,
            Some(_) => Standing::Blocked,
        }
    }

    /// Whether it takes a right away.
    fn is_restriction(&self) -> bool {
        let Some(after) = &self.after else { return true };
        let policy_before = self.before.as_ref().and_then(|before| before.policy);
        let narrows = match after.policy {
            Some(Policy::MetadataOnly) => true,
            Some(Policy::ManualApprove) => policy_before != Some(Policy::MetadataOnly),
            Some(Policy::AutoAccept) | None => false,
        };
        after.status == PeerStatus::Blocked || (narrows && after.policy != policy_before)
    }
}

impl Peers {
    /// Says what decisions entail, from now on.
    pub fn on_decision(&self, consequences: Arc<dyn Consequences>) {
        // Once, when the node opens.
        let _ = self.inner.consequences.set(consequences);
    }

    /// One decision: `make` turns the peer into what it is from now on.
    pub(super) async fn decide(
        &self,
        key: PublicKey,
        change: PeerChange,
        make: impl FnOnce(Option<Stored>) -> Result<Stored> + Send + 'static,
    ) -> Result<Peer> {
        if key == self.inner.own {
            return Err(KeyError::Own.into());
        }
        let (decided, peer, is_new_address) = self.inner.put_in_force(&key, make)?;
        let is_same = decided.before == decided.after;
        let same_status = decided.before.as_ref().map(|before| before.status)
            == decided.after.as_ref().map(|after| after.status);
        if !same_status {
            self.approvals_changed();
        }
        if is_new_address {
            self.inner.wake(&key);
        }
        let change = match (is_same, same_status) {
            (true, _) => None,
            (false, true) => Some(PeerChange::Updated),
            (false, false) => Some(change),
        };
        self.clone().write_down(key, decided, change).await?;
        Ok(peer)
    }

    /// Forgets a key, approved, blocked or knocking; its connection is closed, and everything that it asked for
    /// or that was asked of it ends. Whether it was known.
    ///
    /// # Errors
    ///
    /// When the database fails. The key is removed all the same, until the node is opened again: the error says
    /// so.
    pub async fn remove(&self, key: &PublicKey) -> Result<bool> {
        let (before, knocked) = {
            let mut state = lock(&self.inner.state);
            if state.closed {
                return Err(Error::closed());
            }
            let before = state.peers.remove(key).map(|entry| entry.stored);
            (before, state.knocks.remove(key))
        };
        let is_known = before.is_some() || knocked;
        if before.is_some() {
            self.approvals_changed();
        }
        let decided = Decided { before, after: None };
        self.clone().write_down(*key, decided, is_known.then_some(PeerChange::Removed)).await?;
        Ok(is_known)
    }

    /// Whoever watches who is approved looks again.
    fn approvals_changed(&self) {
        self.inner.approvals.send_modify(|count| *count += 1);
    }

    /// Writes what is in force, ends what it ends, and tells everybody.
    async fn write_down(
        self,
        key: PublicKey,
        decided: Decided,
        change: Option<PeerChange>,
    ) -> Result<()> {
        uncancelled(async move {
            let standing = decided.standing();
            let written = self.inner.write_decision(key).await;
            let stays = written.is_ok() || decided.is_restriction();
            if let (Err(_), true) = (&written, stays) {
                lock(&self.inner.state).owed.insert(key);
                self.inner.unsaved.notify_one();
            } else if written.is_err() {
                self.take_back(&key, decided);
            }
            let carried_out = match self.inner.consequences.get() {
                Some(consequences) if stays => consequences.carry_out(key, standing).await,
                _ => Ok(()),
            };
            if let Some(change) = change.filter(|_| stays) {
                tracing::info!(peer = key.short(), ?change, "the list of peers changed");
                self.inner.events.emit(EventKind::PeerChanged { peer: key.to_z32(), change });
            }
            written.map_err(|error| not_written(error, stays))?;
            carried_out
        })
        .await
    }

    /// Undoes a decision that could not be written, unless there is a later one.
    fn take_back(&self, key: &PublicKey, decided: Decided) {
        let Decided { before, after } = decided;
        {
            let mut state = lock(&self.inner.state);
            if state.peers.get(key).map(|entry| &entry.stored) != after.as_ref() {
                return;
            }
            match before {
                Some(before) => {
                    if let Some(entry) = state.peers.get_mut(key) {
                        entry.stored = before;
                    }
                }
                None => {
                    state.peers.remove(key);
                }
            }
        }
        self.approvals_changed();
    }
}

impl Inner {
    /// Changes the memory. Whoever asks from now on gets the new answer.
    fn put_in_force(
        &self,
        key: &PublicKey,
        make: impl FnOnce(Option<Stored>) -> Result<Stored>,
    ) -> Result<(Decided, Peer, bool)> {
        let mut state = lock(&self.state);
        if state.closed {
            return Err(Error::closed());
        }
        let before = state.peers.get(key).map(|entry| entry.stored.clone());
        if before.is_none() && state.peers.len() >= LIMIT {
            let message = format!("there are {LIMIT} peers already: remove some first");
            return Err(Error::new(ErrorCode::LimitExceeded, message));
        }
        let after = make(before.clone())?;
        state.knocks.remove(key);
        let discovered = state.discovered.remove(key);
        let entry = state.peers.entry(*key).or_insert_with(|| Entry::new(after.clone()));
        if let Some((source, addresses)) = discovered {
            entry.addresses.note(source, &addresses, now_ms());
        }
        entry.stored = after.clone();
        if after.status != PeerStatus::Approved {
            entry.problem = None;
        }
        let address_before = before.as_ref().and_then(|before| before.address.as_ref());
        let is_new_address = after.address.is_some() && after.address.as_ref() != address_before;
        let peer = shown(key, entry);
        Ok((Decided { before, after: Some(after) }, peer, is_new_address))
    }

    /// Writes where a key stands now, with all that follows from it.
    async fn write_decision(self: &Arc<Self>, key: PublicKey) -> Result<(), StoreError> {
        let inner = Arc::clone(self);
        self.database.write(move |transaction| inner.write_standing(transaction, &key)).await
    }

    /// [`Inner::write_decision`] in a transaction.
    pub(super) fn write_standing(
        &self,
        transaction: &Transaction<'_>,
        key: &PublicKey,
    ) -> Result<(), StoreError> {
        let row = lock(&self.state).peers.get(key).map(|entry| entry.stored.clone());
        let standing = match &row {
            Some(stored) if stored.status == PeerStatus::Approved => Standing::Approved,
            Some(_) => Standing::Blocked,
            None => Standing::Removed,
        };
        match &row {
            Some(row) => table::put(transaction, key, row)?,
            None => table::delete(transaction, key)?,
        }
        table::put_knock(transaction, key, None)?;
        match self.consequences.get() {
            Some(consequences) => consequences.write(transaction, key, standing),
            None => Ok(()),
        }
    }
}

fn not_written(error: StoreError, stays: bool) -> Error {
    let error = Error::from(error);
    if error.code == ErrorCode::Closed {
        return error;
    }
    let what = match stays {
        true => {
            "this is in force now, but it could not be saved, and would be forgotten if the program ended; it is \
             saved as soon as the disk works"
        }
        false => "nothing was changed, because it could not be saved",
    };
    Error::new(error.code, format!("{what}: {}", error.message))
}

/// Runs work to its end also when the caller goes: memory and table stay the same.
async fn uncancelled<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    match crate::tasks::spawn(work).await {
        Ok(outcome) => outcome,
        Err(error) if error.is_cancelled() => Err(Error::closed()),
        Err(error) => Err(Error::new(ErrorCode::Internal, format!("a decision failed: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::directory::tests::{key, setup};
    use super::*;
    use crate::peers::{AddOptions, PeerUpdate};
    use crate::store::Database;

    /// Has the writer busy until the returned sender is dropped.
    fn busy(database: &Database) -> std::sync::mpsc::Sender<()> {
        let (free, wait) = std::sync::mpsc::channel();
        let database = database.clone();
        tokio::spawn(async move {
            let wait = move |_: &Transaction<'_>| {
                // Until the sender is gone.
                let _ = wait.recv();
                Ok(())
            };
            let _ = database.write::<(), StoreError, _>(wait).await;
        });
        free
    }

    #[tokio::test]
    async fn a_decision_is_in_force_while_the_disk_is_busy_and_saved_when_the_call_returns() {
        let setup = setup().await;
        let peers = setup.peers.clone();
        peers.approve(&key(1)).await.unwrap();
        peers.approve(&key(2)).await.unwrap();
        let free = busy(&setup.database);
        tokio::task::yield_now().await;
        let mut approvals = peers.approvals();
        let blocking = tokio::spawn({
            let peers = peers.clone();
            async move { peers.block(&key(1)).await }
        });
        let removing = tokio::spawn({
            let peers = peers.clone();
            async move { peers.remove(&key(2)).await }
        });
        approvals.wait_for(|_| !peers.is_approved(&key(1))).await.unwrap();
        approvals.wait_for(|_| peers.get(&key(2)).is_none()).await.unwrap();
        assert!(!blocking.is_finished() && !removing.is_finished());
        drop(free);
        blocking.await.unwrap().unwrap();
        assert!(removing.await.unwrap().unwrap());
        let again = Peers::open(&setup.database, key(0), &setup.events).await.unwrap();
        assert_eq!(again.get(&key(1)).unwrap().status, PeerStatus::Blocked);
        assert!(again.get(&key(2)).is_none());
    }

    #[tokio::test]
    async fn the_last_of_several_decisions_is_the_one_that_is_written() {
        let setup = setup().await;
        let free = busy(&setup.database);
        let decisions: Vec<_> = (0..50)
            .map(|n| {
                let peers = setup.peers.clone();
                tokio::spawn(async move {
                    match n % 3 {
                        0 => drop(peers.approve(&key(1)).await.unwrap()),
                        1 => drop(peers.block(&key(1)).await.unwrap()),
                        _ => drop(peers.remove(&key(1)).await.unwrap()),
                    }
                })
            })
            .collect();
        drop(free);
        for decision in decisions {
            decision.await.unwrap();
        }
        let again = Peers::open(&setup.database, key(0), &setup.events).await.unwrap();
        let status = |peers: &Peers| peers.get(&key(1)).map(|peer| peer.status);
        assert_eq!(status(&again), status(&setup.peers));
    }

    /// Fails every write that it is asked about.
    struct Refusing(Mutex<bool>, Mutex<Vec<Standing>>);

    impl Consequences for Refusing {
        fn write(&self, _: &Transaction<'_>, _: &PublicKey, _: Standing) -> Result<(), StoreError> {
            match *lock(&self.0) {
                true => Err(StoreError::Sqlite(rusqlite::Error::InvalidQuery)),
                false => Ok(()),
            }
        }

        fn carry_out(&self, _: PublicKey, standing: Standing) -> Task<Result<()>> {
            lock(&self.1).push(standing);
            crate::tasks::task(async { Ok(()) })
        }
    }

    #[tokio::test]
    async fn what_cannot_be_saved_takes_rights_away_but_gives_none() {
        let setup = setup().await;
        let peers = &setup.peers;
        peers.approve(&key(1)).await.unwrap();
        let refusing = Arc::new(Refusing(Mutex::new(true), Mutex::default()));
        peers.on_decision(Arc::clone(&refusing) as _);
        let auto = PeerUpdate { policy: Some(Some(Policy::AutoAccept)), ..PeerUpdate::default() };
        assert!(peers.update(&key(1), auto).await.is_err());
        assert_eq!(peers.policy(&key(1)), None);
        assert!(peers.add(&key(2).to_z32(), AddOptions::default()).await.is_err());
        assert!(peers.get(&key(2)).is_none() && lock(&refusing.1).is_empty());
        let none = PeerUpdate { policy: Some(Some(Policy::MetadataOnly)), ..PeerUpdate::default() };
        assert!(peers.update(&key(1), none).await.unwrap_err().message.contains("in force"));
        assert_eq!(peers.policy(&key(1)), Some(Policy::MetadataOnly));
        assert!(peers.block(&key(1)).await.is_err());
        assert!(!peers.is_approved(&key(1)));
        assert_eq!(*lock(&refusing.1), [Standing::Approved, Standing::Blocked]);
        // The disk works again: it is saved without another word.
        *lock(&refusing.0) = false;
        let saved = || {
            setup.database.read(|connection| {
                let sql = "SELECT status FROM peers WHERE public_key = ?1";
                let row = connection.query_row(sql, [key(1).to_z32()], |row| row.get(0));
                Ok::<String, StoreError>(row?)
            })
        };
        while saved().unwrap() != "blocked" {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}
