//! The transfers that are not finished, by their ids and by what peers call them.

use std::collections::HashMap;
use std::sync::Arc;

use super::live::Live;
use super::record::Record;
use super::state::{Direction, State};
use crate::crypto::PublicKey;

/// Transfers that are not finished.
#[derive(Default)]
pub(super) struct Lives {
    by_id: HashMap<String, Arc<Live>>,
    /// Outgoing ones, by the peer and its id of the request.
    asked: HashMap<(PublicKey, String), Arc<Live>>,
}

impl Lives {
    pub(super) fn get(&self, id: &str) -> Option<Arc<Live>> {
        self.by_id.get(id).cloned()
    }

    /// The outgoing one that `peer` asked for as `request_id`.
    pub(super) fn asked_as(&self, peer: PublicKey, request_id: String) -> Option<Arc<Live>> {
        self.asked.get(&(peer, request_id)).cloned()
    }

    /// The one of a record, which is added if it is not there.
    pub(super) fn adopt(&mut self, record: Record) -> Arc<Live> {
        match self.get(&record.id) {
            Some(live) => live,
            None => {
                let live = Arc::new(Live::new(record));
                self.insert(&live);
                live
            }
        }
    }

    /// Adds one, unless there is one with its id.
    pub(super) fn insert(&mut self, live: &Arc<Live>) {
        if self.by_id.contains_key(&live.id) {
            return;
        }
        self.by_id.insert(live.id.clone(), Arc::clone(live));
        if let Some(asked) = live.asked_as() {
            self.asked.insert(asked, Arc::clone(live));
        }
    }

    pub(super) fn remove(&mut self, id: &str) {
        if let Some(asked) = self.by_id.remove(id).and_then(|live| live.asked_as()) {
            self.asked.remove(&asked);
        }
    }

    /// How many requests of a peer are open.
    pub(super) fn open_for(&self, peer: &PublicKey) -> usize {
        self.all().filter(|live| live.is_open_for(peer)).count()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Live>> {
        self.by_id.values()
    }

    /// The unfinished transfers from a peer, in no order: those that are queued, and the others.
    pub(super) fn queued_and_open(&self, peer: &PublicKey) -> (Vec<Arc<Live>>, Vec<Arc<Live>>) {
        let (mut queued, mut open) = (Vec::new(), Vec::new());
        for live in self.all().filter(|live| live.is_of(peer, Direction::Incoming)) {
            // Once, for it is asked about all of them at every book that is whole.
            match live.info.borrow().state {
                State::Queued => queued.push(Arc::clone(live)),
                state if state.is_terminal() => {}
                _ => open.push(Arc::clone(live)),
            }
        }
        (queued, open)
    }

    /// Removes all.
    pub(super) fn take(&mut self) -> Vec<Arc<Live>> {
        std::mem::take(self).by_id.into_values().collect()
    }
}
