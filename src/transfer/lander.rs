//! Small books that are whole go to their places together: all that are ready at one time share the ways to
//! the disk and the waits for it.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::engine::{Engine, Live};
use super::held::WholeBook;
use super::landing;
use super::record::Record;
use super::state::State;
use crate::error::{Error, Result};
use crate::sync::lock;

/// The books that are about to land.
#[derive(Default)]
pub(super) struct Landings {
    waiting: Vec<Landing>,
    /// Whether somebody takes them.
    is_running: bool,
}

struct Landing {
    live: Arc<Live>,
    book: WholeBook,
    part: PathBuf,
    folder: PathBuf,
    name: String,
    /// Where it is; `None` when the transfer has ended otherwise.
    told: oneshot::Sender<Result<Option<PathBuf>>>,
}

impl Engine {
    /// Puts a small book in its place. `None` when it is not to be there any more. Dropped, it goes on.
    pub(super) async fn land(
        self: &Arc<Self>,
        live: &Arc<Live>,
        record: &Record,
        book: WholeBook,
    ) -> Result<Option<PathBuf>> {
        let (told, outcome) = oneshot::channel();
        let ((folder, name), part) = (self.target(record), self.parts.path(&record.id));
        let starts = {
            let mut landings = lock(&self.landings);
            landings.waiting.push(Landing {
                live: Arc::clone(live),
                book,
                part,
                folder,
                name,
                told,
            });
            !std::mem::replace(&mut landings.is_running, true)
        };
        if starts {
            let engine = Arc::clone(self);
            self.spawn(async move { engine.land_all().await });
        }
        outcome.await.unwrap_or_else(|_| Err(Error::closed()))
    }

    async fn land_all(&self) {
        loop {
            let books = {
                let mut landings = lock(&self.landings);
                if landings.waiting.is_empty() {
                    landings.is_running = false;
                    return;
                }
                std::mem::take(&mut landings.waiting)
            };
            self.land_together(books).await;
        }
    }

    async fn land_together(&self, books: Vec<Landing>) {
        let Ok(written) = crate::tasks::blocking(move || write(books)).await else { return };
        let mut ready = Vec::with_capacity(written.len());
        for (landing, path) in written {
            match path {
                Ok(path) => ready.push((landing, path)),
                Err(error) => landing.tell(Err(error.into())),
            }
        }
        // The locks are held: nobody cancels a book that is just being put in its place.
        let (mut locked, mut moves) = (Vec::new(), Vec::new());
        for (landing, path) in &ready {
            let mut record = landing.live.record.lock().await;
            if record.state == State::Verifying {
                record.path = Some(path.clone());
                moves.push(Some((landing.part.clone(), path.clone())));
                locked.push(record);
            } else {
                moves.push(None);
            }
        }
        let records = locked.iter().map(|record| Record::clone(record)).collect();
        let saved = self.save_all(records).await;
        let outcomes = match &saved {
            Ok(()) => crate::tasks::blocking(move || place(&moves)).await,
            Err(_) => Ok(Vec::new()),
        };
        drop(locked);
        let mut outcomes = outcomes.unwrap_or_default().into_iter();
        for (landing, path) in ready {
            let outcome = match (&saved, outcomes.next()) {
                (Err(error), _) => Err(error.clone()),
                (Ok(()), None) => Err(Error::closed()),
                (Ok(()), Some(None)) => {
                    forget(&landing.part);
                    Ok(None)
                }
                (Ok(()), Some(Some(Ok(())))) => Ok(Some(path)),
                (Ok(()), Some(Some(Err(error))))
                    if error.kind() == io::ErrorKind::AlreadyExists =>
                {
                    // Somebody was faster with that name.
                    lock(&self.landings).waiting.push(landing);
                    continue;
                }
                (Ok(()), Some(Some(Err(error)))) => Err(error.into()),
            };
            landing.tell(outcome);
        }
    }
}

impl Landing {
    fn tell(self, outcome: Result<Option<PathBuf>>) {
        // Who asked may have been told to stop.
        let _ = self.told.send(outcome);
    }
}

/// Writes each book into its partial file, syncs them, and finds names that are free.
fn write(books: Vec<Landing>) -> Vec<(Landing, io::Result<PathBuf>)> {
    let files: Vec<_> = books.iter().map(written).collect();
    let mut taken = HashSet::new();
    let paths: Vec<_> = books
        .iter()
        .zip(files)
        .map(|(landing, file)| {
            file?.sync_all()?;
            let path = landing::free_path(&landing.folder, &landing.name, &taken)?;
            taken.insert(path.clone());
            Ok(path)
        })
        .collect();
    books.into_iter().zip(paths).collect()
}

fn written(landing: &Landing) -> io::Result<File> {
    let mut file = File::create(&landing.part)?;
    landing.book.file.blocks().iter().try_for_each(|block| file.write_all(block))?;
    Ok(file)
}

/// Moves files to their places and syncs the folders.
fn place(moves: &[Option<(PathBuf, PathBuf)>]) -> Vec<Option<io::Result<()>>> {
    let moved = |(part, path): &(PathBuf, PathBuf)| landing::move_to(part, path);
    let mut outcomes: Vec<_> = moves.iter().map(|pair| pair.as_ref().map(moved)).collect();
    let folder = |pair: &Option<(PathBuf, PathBuf)>| {
        pair.as_ref().and_then(|(_, path)| path.parent()).map(Path::to_owned)
    };
    let folders: BTreeSet<_> = moves.iter().filter_map(folder).collect();
    for synced in folders {
        let Err(error) = landing::sync_folder(&synced) else { continue };
        for (pair, outcome) in moves.iter().zip(&mut outcomes) {
            if let Some(Ok(())) = outcome
                && folder(pair).as_ref() == Some(&synced)
            {
                *outcome = Some(Err(io::Error::new(error.kind(), error.to_string())));
            }
        }
    }
    outcomes
}

fn forget(part: &Path) {
    match std::fs::remove_file(part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, "a partial book was not deleted");
        }
        _ => {}
    }
}
