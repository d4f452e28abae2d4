//! The jobs of incoming transfers: fetching the book's core into a file, checking the whole file,
//! putting it in its place, and clearing up.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::engine::Engine;
use super::landing;
use super::live::{Job, Live};
use super::message::BookCore;
use super::part::Part;
use super::progress::Meter;
use super::receiving::RETRY;
use super::record::Record;
use super::state::{Incoming, State};
use crate::crypto::PublicKey;
use crate::error::{Error, ErrorCode, Result};
use crate::hypercore::replicator::{self, CoreHandle, Download, EventKind, Policy};
use crate::hypercore::{BLOCK_SIZE, Core, StaticTree};
use crate::store::Durability;
use crate::sync::lock;

/// How often the rate is looked at while nothing arrives.
const TICK: Duration = Duration::from_secs(1);

/// How a download ended.
enum End {
    Whole,
    Stopped,
    Broke(Error),
}

fn is_busy(end: &Result<End>) -> bool {
    matches!(end, Ok(End::Broke(error)) | Err(error) if error.code == ErrorCode::Busy)
}

impl Engine {
    /// Fetches the book of a transfer whose core was granted.
    pub(super) fn spawn_download(self: &Arc<Self>, live: &Arc<Live>, record: &Record) {
        let Some(book) = record.core else { return };
        let peer = record.peer;
        self.start_job(live, move |engine, live, stop| async move {
            let mut end = engine.download(&live, peer, book, &stop).await;
            // Another program that holds the database lets go of it some time; what was verified is there.
            while is_busy(&end) {
                tracing::warn!(transfer = live.id, "another program holds the database");
                if stop.run_until_cancelled(tokio::time::sleep(RETRY)).await.is_none() {
                    return;
                }
                end = engine.download(&live, peer, book, &stop).await;
            }
            match end {
                Ok(End::Whole) => {
                    engine.incoming_end(&live, Incoming::AllBlocks, None, &stop).await;
                }
                Ok(End::Stopped) => {}
                Ok(End::Broke(error)) | Err(error) => {
                    if error.code == ErrorCode::Protocol {
                        // What came from a peer that does not keep to its word is not worth keeping.
                        let record = live.record.lock().await.clone();
                        engine.forget_part(&record).await;
                    }
                    engine.incoming_end(&live, Incoming::Broke, Some(error), &stop).await;
                }
            }
        });
    }

    async fn download(
        &self,
        live: &Arc<Live>,
        peer: PublicKey,
        book: BookCore,
        stop: &CancellationToken,
    ) -> Result<End> {
        let (core, small) = match self.parts.open(&live.id, &book).await? {
            Part::Core(core) => (core, None),
            Part::Held(core, small) => (core, Some(small)),
        };
        let mut failures = self.options.replicator.events();
        let policy = Policy {
            download: Download::All,
            upload: Arc::new(|_| false),
            peers: Some(Arc::new(move |asking| *asking == peer)),
        };
        // Others may send the same book, or read it here.
        let handle = self.options.replicator.add_beside(core.clone(), policy);
        let mut changes = core.subscribe();
        let mut meter = Meter::new(bytes_here(&core, &book), book.byte_length);
        let end = loop {
            let state = *changes.borrow_and_update();
            let now = Instant::now();
            let here = bytes_here(&core, &book);
            meter.sample(here, now);
            if let Some(room) = &mut *lock(&live.room) {
                room.shrink_to(book.byte_length - here);
            }
            // The tree proves the size with the first block; until then it is what the peer says.
            if state.length == book.length && state.byte_length != book.byte_length {
                break End::Broke(wrong_size(&peer, &book, state.byte_length));
            }
            if state.length == book.length && state.contiguous_length == book.length {
                break End::Whole;
            }
            if meter.is_due(now) {
                self.show_progress(live, meter.progress(now));
            }
            tokio::select! {
                biased;
                // Before the end of the connection, which follows from a lie.
                failure = failed(&mut failures, &handle, &peer, &book) => {
                    break End::Broke(failure);
                }
                changed = changes.changed() => if changed.is_err() { break End::Stopped },
                () = stop.cancelled() => break End::Stopped,
                () = tokio::time::sleep(TICK) => {}
            }
        };
        self.show_progress(live, meter.progress(Instant::now()));
        handle.close();
        let closed = core.close().await;
        let mut record = live.record.lock().await;
        record.bytes = meter.progress(Instant::now()).bytes;
        if let End::Whole = end {
            // What comes next is written down with it.
            closed?;
            live.is_verified.store(core.is_verified_here(), Ordering::Relaxed);
            *lock(&live.whole) = small;
        } else if small.is_some() {
            record.bytes = 0;
        } else if let Err(error) = self.save(&record, Durability::Process).await {
            tracing::warn!(%error, "how much of a book is here could not be written down");
        }
        Ok(end)
    }

    /// Checks the whole file against the book's key and puts it in its place.
    pub(super) fn spawn_verification(self: &Arc<Self>, live: &Arc<Live>, record: &Record) {
        let record = record.clone();
        self.start_job(live, move |engine, live, stop| async move {
            let result = tokio::select! {
                result = engine.verify(&live, &record) => result,
                () = stop.cancelled() => return,
            };
            if let Err(error) = result {
                if error.code == ErrorCode::Corrupt {
                    engine.forget_part(&record).await;
                }
                engine.incoming_end(&live, Incoming::Broke, Some(error), &stop).await;
            }
        });
    }

    async fn verify(self: &Arc<Self>, live: &Arc<Live>, record: &Record) -> Result<()> {
        let Some(book) = record.core else {
            return Err(Error::new(ErrorCode::Internal, "a transfer without a core was verified"));
        };
        let part = self.parts.path(&record.id);
        // A crash between putting the file in its place and writing that down.
        // One that cannot be read may be it: another beside it would be the second.
        if let Some(path) = &record.path
            && is_book(path, &book).await?
        {
            landing::clear(&part, path)?;
            return self.landed(live, path.clone()).await;
        }
        let small = lock(&live.whole).take();
        if let Some(small) = small {
            self.tell_whole(live, record);
            return match self.land(live, record, small).await? {
                Some(path) => self.landed(live, path).await,
                None => Ok(()),
            };
        }
        // Fetched in one go, every block was verified as it was written. After a crash, what the disk has is
        // looked at again.
        let is_verified = live.is_verified.swap(false, Ordering::Relaxed)
            && std::fs::metadata(&part).is_ok_and(|file| file.len() == book.byte_length);
        if !is_verified && !is_book(&part, &book).await? {
            return Err(Error::new(
                ErrorCode::Corrupt,
                "the received file is damaged on this disk; resume to fetch it again",
            ));
        }
        let (folder, name) = self.target(record);
        loop {
            let (folder, name) = (folder.clone(), name.clone());
            let free = move || landing::free_path(&folder, &name, &HashSet::new());
            let path = crate::tasks::blocking(free).await.map_err(std::io::Error::other)??;
            let mut record = live.record.lock().await;
            if record.state != State::Verifying {
                return Ok(());
            }
            record.path = Some(path.clone());
            self.save(&record, Durability::Power).await?;
            // The lock is held: nobody cancels a book that is just being put in its place.
            let (from, to) = (part.clone(), path.clone());
            match blocking(move || landing::place(&from, &to)).await {
                Ok(()) => {
                    drop(record);
                    return self.landed(live, path).await;
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn landed(self: &Arc<Self>, live: &Arc<Live>, path: std::path::PathBuf) -> Result<()> {
        let total = live.record.lock().await.total();
        self.incoming_step(live, Incoming::Landed, |record| {
            record.path = Some(path);
            record.bytes = total;
        })
        .await?;
        Ok(())
    }

    /// Clears up after a transfer that is over, once its job has ended.
    pub(super) fn spawn_discard(self: &Arc<Self>, live: &Arc<Live>, record: &Record) {
        let (engine, record, job) = (Arc::clone(self), record.clone(), live.take_job());
        self.spawn(async move { engine.discard(job, &record).await });
    }

    /// Deletes the partial file and the core's data.
    pub(super) async fn discard(&self, job: Option<Job>, record: &Record) {
        Job::ended(job).await;
        self.forget_part(record).await;
    }

    async fn forget_part(&self, record: &Record) {
        if let Some(path) = &record.path
            && let Err(error) = landing::remove_copy(&self.parts.path(&record.id), path)
        {
            tracing::warn!(%error, "what is left of moving a book was not deleted");
        }
        self.parts.discard(&record.id, record.core.map(|core| core.key)).await;
    }
}

/// Whether the file at `path` is exactly the book.
async fn is_book(path: &Path, book: &BookCore) -> Result<bool> {
    match std::fs::metadata(path) {
        Ok(file) if file.len() != book.byte_length => return Ok(false),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error.into()),
        Ok(_) => {}
    }
    let tree = StaticTree::build(path, None).await?;
    Ok(tree.hash == book.hash && tree.length == book.length)
}

fn bytes_here(core: &Core, book: &BookCore) -> u64 {
    core.state().blocks.saturating_mul(BLOCK_SIZE).min(book.byte_length)
}

/// The peer said that the book has another size than its tree proves.
fn wrong_size(peer: &PublicKey, book: &BookCore, proven: u64) -> Error {
    let message = format!(
        "the server {} said that the book has {} bytes, and it has {proven}: ask its owner to publish the book \
         again",
        peer.to_z32(),
        book.byte_length,
    );
    Error::new(ErrorCode::Protocol, message)
}

/// Waits until blocks of the book cannot be stored any more, or the peer has sent what cannot be part of it.
async fn failed(
    events: &mut tokio::sync::broadcast::Receiver<replicator::Event>,
    handle: &CoreHandle,
    peer: &PublicKey,
    book: &BookCore,
) -> Error {
    use tokio::sync::broadcast::error::RecvError;
    loop {
        match events.recv().await {
            Ok(event) if event.key == book.key && event.peer == *peer => match event.kind {
                EventKind::Failed { error } => return error.into(),
                EventKind::Violation { violation } => {
                    let message = format!(
                        "the server {} {violation}: ask its owner to publish the book again",
                        peer.to_z32()
                    );
                    return Error::new(ErrorCode::Protocol, message);
                }
                _ => {}
            },
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => {
                if let Some(error) = handle.failure() {
                    return error.into();
                }
            }
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    crate::tasks::blocking(work).await.map_err(std::io::Error::other)?
}
