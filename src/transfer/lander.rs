//! Small books that are whole go to their places together: all that are ready at one time share the ways to
//! the disk and the waits for it.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::engine::Engine;
use super::held::WholeBook;
use super::landing;
use super::live::Live;
use super::record::Record;
use super::state::State;
use crate::error::{Error, Result};
use crate::store::Durability;
use crate::sync::lock;

/// A book that is about to land.
pub(super) struct Landing {
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
        let landing = Landing { live: Arc::clone(live), book, part, folder, name, told };
        if lock(&self.landings).add(landing) {
            let engine = Arc::clone(self);
            self.spawn(async move { engine.land_all().await });
        }
        outcome.await.unwrap_or_else(|_| Err(Error::closed()))
    }

    async fn land_all(&self) {
        loop {
            let Some(books) = lock(&self.landings).next() else { return };
            self.land_together(books).await;
        }
    }

    async fn land_together(&self, books: Vec<Landing>) {
        let Ok(written) = crate::tasks::blocking(move || write(books)).await else { return };
        let mut ready = Vec::with_capacity(written.len());
        for (landing, path) in written {
            match path {
                Ok(path) => ready.push((landing, path)),
                Err(error) => landing.tell(Err(error)),
            }
        }
        let lives: Vec<_> = ready.iter().map(|(landing, _)| Arc::clone(&landing.live)).collect();
        // The locks are held: nobody cancels a book that is just being put in its place.
        let (mut locked, mut landings, mut moves) = (Vec::new(), Vec::new(), Vec::new());
        for (live, (landing, path)) in lives.iter().zip(ready) {
            let mut record = live.record.lock().await;
            if record.state != State::Verifying {
                self.parts.delete(&live.id);
                landing.tell(Ok(None));
                continue;
            }
            record.path = Some(path.clone());
            locked.push(record);
            moves.push((landing.part.clone(), path));
            landings.push(landing);
        }
        let records = locked.iter().map(|record| Record::clone(record)).collect();
        if let Err(error) = self.save_all(records, Durability::Power).await {
            drop(locked);
            landings.into_iter().for_each(|landing| landing.tell(Err(error.clone())));
            return;
        }
        let placed = crate::tasks::blocking(move || place(moves)).await;
        drop(locked);
        for (landing, placed) in landings.into_iter().zip(placed.unwrap_or_default()) {
            match placed {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    // Somebody was faster with that name. This worker takes it next.
                    lock(&self.landings).add(landing);
                }
                placed => landing.tell(placed.map(Some).map_err(Error::from)),
            }
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
fn write(books: Vec<Landing>) -> Vec<(Landing, Result<PathBuf>)> {
    let files: Vec<_> = books.iter().map(written).collect();
    files.iter().flatten().for_each(landing::begin_writing);
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

/// Moves files to their places, and syncs the folders once all are there; gives the places.
fn place(moves: Vec<(PathBuf, PathBuf)>) -> Vec<io::Result<PathBuf>> {
    let moved = |(part, path): (PathBuf, PathBuf)| landing::move_to(&part, &path).map(|()| path);
    let mut placed: Vec<_> = moves.into_iter().map(moved).collect();
    let folder = |path: &PathBuf| path.parent().map(Path::to_owned);
    let folders: BTreeSet<_> = placed.iter().flatten().filter_map(folder).collect();
    for synced in folders {
        let Err(error) = landing::sync_folder(&synced) else { continue };
        for place in &mut placed {
            if place.as_ref().is_ok_and(|path| path.parent() == Some(&synced)) {
                *place = Err(io::Error::new(error.kind(), error.to_string()));
            }
        }
    }
    placed
}
