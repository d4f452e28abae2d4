//! The two threads behind [`Database::write`](super::Database::write): one runs transactions, the other
//! syncs the log.

use std::fs::File;
use std::path::Path;
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::{Durability, StoreError};

/// How many writes one transaction takes at most.
const GROUP_LIMIT: usize = 512;

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
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        // Windows syncs only what is open for writing.
        let log = File::options().write(true).open(Path::new(&log)).map_err(cannot_start)?;
        let (jobs, queue) = mpsc::channel();
        let (unsynced, waiting) = mpsc::channel();
        let syncs = thread("alex-p2p-sync", move || sync_log(&log, &waiting))?;
        let transactions =
            thread("alex-p2p-db", move || run_transactions(connection, &queue, &unsynced))?;
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
    rusqlite::Error::ToSqlConversionFailure(Box::new(error)).into()
}

fn run_transactions(
    mut connection: Connection,
    queue: &mpsc::Receiver<Job>,
    unsynced: &mpsc::Sender<Vec<Finish>>,
) {
    while let Ok(first) = queue.recv() {
        let mut group = vec![first];
        while group.len() < GROUP_LIMIT {
            let Ok(job) = queue.try_recv() else { break };
            group.push(job);
        }
        let (finishes, committed) = run_group(&mut connection, group);
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
    }
    if let Err((_, error)) = connection.close() {
        tracing::warn!(%error, "the database did not close cleanly");
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
            begun = begun.and_then(|transaction| run(transaction, "ROLLBACK TO job"));
        }
        begun = begun.and_then(|transaction| run(transaction, "RELEASE job"));
    }
    (finishes, begun.and_then(Transaction::commit))
}

fn run<'c>(transaction: Transaction<'c>, sql: &str) -> Result<Transaction<'c>, rusqlite::Error> {
    transaction.prepare_cached(sql)?.execute([])?;
    Ok(transaction)
}

/// Syncs the log, once for all that came since the last time.
fn sync_log(log: &File, waiting: &mpsc::Receiver<Vec<Finish>>) {
    while let Ok(mut finishes) = waiting.recv() {
        finishes.extend(waiting.try_iter().flatten());
        let synced = log.sync_data().map_err(|error| {
            tracing::error!(%error, "the database could not be synced to disk");
            let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR_FSYNC);
            rusqlite::Error::SqliteFailure(code, Some(error.to_string()))
        });
        for finish in finishes {
            finish(synced.as_ref().copied());
        }
    }
}
