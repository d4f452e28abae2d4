//! Parts of a core: blocks and bytes that are fetched when somebody needs them, and given up again.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::CoreHandle;
use super::swarm::Swarm;
use crate::hypercore::{CoreError, Position};

/// Blocks that are being fetched, until this is dropped.
#[must_use = "dropped, the blocks are not fetched any more"]
pub struct Fetching {
    swarm: Arc<Swarm>,
    id: u64,
    blocks: Range<u64>,
}

impl Fetching {
    /// Returns when all the blocks are here; blocks beyond the end are waited for. Fails as the storage
    /// does, and with [`CoreError::Closed`] when the core or its replication ends. Cancel safe.
    pub async fn done(&self) -> Result<(), CoreError> {
        let core = &self.swarm.core;
        let is_here = || {
            let here = core.next_missing(self.blocks.start) >= self.blocks.end;
            Ok((here || self.blocks.is_empty()).then_some(()))
        };
        wait(&self.swarm, is_here).await
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        self.swarm.change_waits(|downloads| downloads.unwant(self.id, &self.blocks));
    }
}

/// A byte that is looked for, until this is dropped.
struct Seeking<'a> {
    swarm: &'a Swarm,
    id: u64,
}

impl Drop for Seeking<'_> {
    fn drop(&mut self) {
        self.swarm.change_waits(|downloads| downloads.seeks.remove(self.id));
    }
}

impl CoreHandle {
    /// Fetches blocks that are not here from the peers that have them, whatever [`super::Download`] says,
    /// until the result is dropped. `blocks` may end beyond the log: then what is appended is fetched,
    /// too. Single blocks go before longer ranges.
    pub fn download(&self, blocks: Range<u64>) -> Fetching {
        let id = self.swarm.change_waits(|downloads| downloads.want(blocks.clone()));
        self.replicator.open_everywhere(&self.swarm);
        Fetching { swarm: Arc::clone(&self.swarm), id, blocks }
    }

    /// A block, fetched if it is not here; one beyond the end is waited for. Fails as
    /// [`crate::hypercore::Core::get`] and [`Fetching::done`] do. Cancel safe.
    pub async fn get(&self, index: u64) -> Result<Bytes, CoreError> {
        let core = &self.swarm.core;
        if let Some(block) = core.get(index)? {
            return Ok(block);
        }
        let _fetching = self.download(index..index.saturating_add(1));
        wait(&self.swarm, || core.get(index)).await
    }

    /// The block that the byte at `offset` is in, and how many bytes into it, found with peers' help
    /// where the tree is not known here. A byte beyond the end is waited for, as in npm hypercore.
    /// Fails as [`Fetching::done`] does. Cancel safe.
    pub async fn seek(&self, offset: u64) -> Result<(u64, u64), CoreError> {
        let core = &self.swarm.core;
        let look = || match core.seek(offset)? {
            Position::Block { index, offset } => Ok(Some((index, offset))),
            Position::Between { .. } | Position::End => Ok(None),
        };
        if let Some(position) = look()? {
            return Ok(position);
        }
        let id = self.swarm.change_waits(|downloads| downloads.seeks.add(offset));
        let _seeking = Seeking { swarm: &self.swarm, id };
        self.replicator.open_everywhere(&self.swarm);
        wait(&self.swarm, look).await
    }

    /// Gives up blocks, durably, and tells the peers; how many were here. Blocks that something still
    /// waits for are fetched again, and so are all when the core is opened anew with
    /// [`super::Download::All`]. Fails as [`crate::hypercore::Core::clear`] does.
    pub async fn clear(&self, blocks: Range<u64>) -> Result<u64, CoreError> {
        let cleared = self.swarm.core.clear(blocks.clone()).await?;
        let end = blocks.end.min(self.swarm.core.length());
        if blocks.start < end {
            self.swarm.tell_dropped(blocks.start, end - blocks.start);
        }
        Ok(cleared)
    }

    /// Waits until `look` finds something, looking whenever the core changes, or what peers say of it. Fails
    /// as [`Fetching::done`] does. Cancel safe.
    pub(crate) async fn until<T>(
        &self,
        look: impl Fn() -> Result<Option<T>, CoreError>,
    ) -> Result<T, CoreError> {
        wait(&self.swarm, look).await
    }
}

/// Waits until `look` finds something, looking whenever it may.
async fn wait<T>(
    swarm: &Swarm,
    look: impl Fn() -> Result<Option<T>, CoreError>,
) -> Result<T, CoreError> {
    let mut changes = swarm.core.subscribe();
    let mut progress = swarm.progress.subscribe();
    loop {
        changes.mark_unchanged();
        progress.mark_unchanged();
        if let Some(found) = look()? {
            return Ok(found);
        }
        if let Some(failure) = swarm.failure() {
            return Err(failure);
        }
        if swarm.core.state().closed {
            return Err(CoreError::Closed);
        }
        tokio::select! {
            changed = changes.changed() => changed.map_err(|_| CoreError::Closed)?,
            _ = progress.changed() => {}
            () = swarm.closed.cancelled() => return Err(CoreError::Closed),
        }
    }
}
