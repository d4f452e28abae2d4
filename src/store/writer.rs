//! The two threads behind [`Database::write`](super::Database::write): one runs transactions, the other
//! syncs the log.
//!
//! When a sync fails, those who wait for it are told: what they wrote may be there after a restart, or not.
//! No transaction begins any more until the log was brought back ([`Log::bring_back`]), which each further
//! write tries. So nothing is ever acknowledged that stands on something the disk may have lost.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{Builder, JoinHandle};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, Transaction, TransactionBehavior, ffi};

use super::log::{Log, failure};
use super::{Durability, StoreError};

/// How many writes one transaction takes at most.
const GROUP_LIMIT: usize = 512;
/// How many pages the log has before they are put into the file. Pages that many transactions write are
/// put there once, and each time takes two syncs.
const LOG_PAGES: u64 = 4000;

/// A write that waits for its transaction.
pub(super) struct Job {
    pub(super) durability: Durability,
    /// Runs in the transaction, or learns that none could be begun.
    pub(super) run: Box<Run>,
}

type Run = dyn FnOnce(Result<&Transaction<'_>, &rusqlite::Error>) -> Ran + Send;

/// A write that ran in a transaction which is not committed yet.
pub(super) struct Ran {
    /// Whether what it did is to stay.
    pub(super) is_done: bool,
    pub(super) finish: Finish,
}

/// Told whether what the job did is committed, and synced if it asked for that.
pub(super) type Finish = Box<dyn FnOnce(Result<(), &rusqlite::Error>) + Send>;

/// The writer while the database is open.
pub(super) struct Writer {
    jobs: mpsc::Sender<Job>,
    transactions: JoinHandle<()>,
    syncs: JoinHandle<()>,
}

impl Writer {
    /// Starts the threads. The log of the database at `path` exists already.
    pub(super) fn start(connection: Connection, path: &Path) -> Result<Self, StoreError> {
        let log = Log::of(path).map_err(cannot_start)?;
        let own_log = log.reopened().map_err(cannot_start)?;
        let trust = Arc::new(Trust::default());
        let (jobs, queue) = mpsc::channel();
        let (unsynced, waiting) = mpsc::channel();
        let trusts = Arc::clone(&trust);
        let syncs = thread("alex-p2p-sync", move || sync_log(&log, &trusts, &waiting))?;
        let transactions = thread("alex-p2p-db", move || {
            let mut thread = Transactions { connection, log: own_log, trust };
            thread.run(&queue, &unsynced);
            thread.close();
        })?;
        Ok(Self { jobs, transactions, syncs })
    }

    pub(super) fn send(&self, job: Job) -> Result<(), StoreError> {
        self.jobs.send(job).map_err(|_| StoreError::Closed)
    }

    /// Finishes what is queued and closes the file.
    pub(super) fn close(self) {
        let Self { jobs, transactions, syncs } = self;
        drop(jobs);
        if transactions.join().is_err() || syncs.join().is_err() {
            tracing::error!("a database thread panicked");
        }
    }
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StoreError> {
    Builder::new().name(name.into()).spawn(work).map_err(cannot_start)
}

fn cannot_start(error: std::io::Error) -> StoreError {
    failure(ffi::SQLITE_CANTOPEN, &error).into()
}

/// What the thread that writes has.
struct Transactions {
    connection: Connection,
    log: Log,
    trust: Arc<Trust>,
}

/// Whether what is in the log gets to the disk: not when more syncs have failed than were made good.
#[derive(Default)]
struct Trust {
    failed: AtomicU64,
    made_good: AtomicU64,
}

impl Trust {
    fn is_lost(&self) -> bool {
        self.made_good.load(Ordering::SeqCst) != self.failed.load(Ordering::SeqCst)
    }
}

impl Transactions {
    fn run(&mut self, queue: &mpsc::Receiver<Job>, unsynced: &mpsc::Sender<Vec<Finish>>) {
        while let Ok(first) = queue.recv() {
            let mut group = vec![first];
            while group.len() < GROUP_LIMIT {
                let Ok(job) = queue.try_recv() else { break };
                group.push(job);
            }
            if let Err(error) = self.trust_log() {
                for job in group {
                    ((job.run)(Err(&error)).finish)(Err(&error));
                }
                continue;
            }
            let (finishes, committed) = run_group(&mut self.connection, group);
            if let Err(error) = &committed {
                tracing::error!(%error, "a transaction failed");
            }
            let mut unsynced_now = Vec::new();
            for (durability, finish) in finishes {
                if durability == Durability::Power && committed.is_ok() {
                    unsynced_now.push(finish);
                } else {
                    finish(committed.as_ref().copied());
                }
            }
            if !unsynced_now.is_empty() && unsynced.send(unsynced_now).is_err() {
                tracing::error!("the database's sync thread is gone");
            }
            self.checkpoint();
        }
    }

    /// Puts what is in the log into the file when there is much of it. Nobody who waits for a write waits
    /// for this as well; when it fails, all is in the log still, and it is tried after the next write.
    fn checkpoint(&self) {
        if self.trust.is_lost() {
            return;
        }
        let outcome = Log::frames(&self.connection).and_then(|frames| {
            if frames < LOG_PAGES {
                return Ok(());
            }
            self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
        });
        if let Err(error) = outcome {
            tracing::warn!(%error, "the database's log could not be put into its file");
        }
    }

    /// Makes sure that what stands in the log is on disk, or can still get there.
    fn trust_log(&self) -> Result<(), rusqlite::Error> {
        if !self.trust.is_lost() {
            return Ok(());
        }
        let failed = self.trust.failed.load(Ordering::SeqCst);
        if let Err(error) = self.log.bring_back(&self.connection) {
            tracing::error!(%error, "the database's log cannot be brought back to disk");
            return Err(error);
        }
        // A sync that failed meanwhile is not made good.
        self.trust.made_good.store(failed, Ordering::SeqCst);
        tracing::warn!("the database's log was written again after a failed sync");
        Ok(())
    }

    fn close(self) {
        if self.trust_log().is_err() {
            // The log stays, and is checked when it is opened again.
            let keep = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
            if let Err(error) = self.connection.set_db_config(keep, true) {
                tracing::warn!(%error, "the database's log could not be kept");
            }
        }
        if let Err((_, error)) = self.connection.close() {
            tracing::warn!(%error, "the database did not close cleanly");
        }
    }
}

type Finishes = Vec<(Durability, Finish)>;

/// Runs the jobs in one transaction, each in a savepoint.
fn run_group(
    connection: &mut Connection,
    group: Vec<Job>,
) -> (Finishes, Result<(), rusqlite::Error>) {
    let mut finishes = Vec::with_capacity(group.len());
    let mut begun = connection.transaction_with_behavior(TransactionBehavior::Immediate);
    for job in group {
        begun = begun.and_then(|transaction| run(transaction, "SAVEPOINT job"));
        let Ran { is_done, finish } = (job.run)(begun.as_ref());
        finishes.push((job.durability, finish));
        // What a failed write did must not be committed with its neighbours.
        if !is_done {
            begun = begun.and_then(take_back);
        }
        begun = begun.and_then(|transaction| run(transaction, "RELEASE job"));
    }
    (finishes, begun.and_then(Transaction::commit))
}

/// Undoes the last job. When the disk fails, SQLite undoes all of them.
fn take_back(transaction: Transaction<'_>) -> Result<Transaction<'_>, rusqlite::Error> {
    if transaction.is_autocommit() {
        let code = ffi::Error::new(ffi::SQLITE_IOERR);
        let message = "the disk failed another write, and SQLite took back this one with it";
        return Err(rusqlite::Error::SqliteFailure(code, Some(message.to_owned())));
    }
    run(transaction, "ROLLBACK TO job")
}

fn run<'c>(transaction: Transaction<'c>, sql: &str) -> Result<Transaction<'c>, rusqlite::Error> {
    transaction.prepare_cached(sql)?.execute([])?;
    Ok(transaction)
}

/// Syncs the log, once for all that came since the last time.
fn sync_log(log: &Log, trust: &Trust, waiting: &mpsc::Receiver<Vec<Finish>>) {
    while let Ok(mut finishes) = waiting.recv() {
        finishes.extend(waiting.try_iter().flatten());
        let synced = match log.sync() {
            // These were committed while an earlier sync failed: the log has not been brought back since.
            Ok(()) if trust.is_lost() => Err(suspect()),
            Ok(()) => Ok(()),
            Err(error) => {
                // Before anybody is told, and tries again.
                trust.failed.fetch_add(1, Ordering::SeqCst);
                Err(error)
            }
        };
        if let Err(error) = &synced {
            tracing::error!(%error, "the database could not be synced to disk");
        }
        for finish in finishes {
            finish(synced.as_ref().copied());
        }
    }
}

fn suspect() -> rusqlite::Error {
    let message = "an earlier sync of the database failed".to_owned();
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_IOERR_FSYNC), Some(message))
}
