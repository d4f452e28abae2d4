//! What peers say of themselves when a connection opens: learned one at a time for each peer, the latest word
//! counting, and no more often than once a second, however often a peer says it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::catalog::Catalog;
use crate::crypto::PublicKey;
use crate::error::Result;
use crate::events::{EventKind, Events};
use crate::peers::Peers;
use crate::sync::lock;
use crate::tasks::Spawn;
use crate::transfer::message::Hello;

/// The shortest time between two lessons from one peer.
const PAUSE: Duration = Duration::from_secs(1);
/// How often a disk that refused to save what a peer says is tried.
const RETRY: Duration = Duration::from_secs(2);

/// Learns what peers say of themselves.
pub(super) struct Learner {
    peers: Peers,
    catalog: Catalog,
    events: Events,
    /// The peers that are being learned from, each with its latest word if that waits.
    waiting: Mutex<HashMap<PublicKey, Option<Hello>>>,
    tracker: TaskTracker,
    cancel: CancellationToken,
}

impl Learner {
    pub(super) fn new(
        peers: &Peers,
        catalog: &Catalog,
        events: &Events,
        tracker: &TaskTracker,
        cancel: &CancellationToken,
    ) -> Self {
        Self {
            peers: peers.clone(),
            catalog: catalog.clone(),
            events: events.clone(),
            waiting: Mutex::default(),
            tracker: tracker.clone(),
            cancel: cancel.clone(),
        }
    }

    /// Notes what a peer says, in place of what it said before. Does not wait.
    pub(super) fn hear(self: &Arc<Self>, peer: PublicKey, hello: Hello) {
        match lock(&self.waiting).entry(peer) {
            Entry::Occupied(mut waiting) => {
                waiting.insert(Some(hello));
                return;
            }
            Entry::Vacant(vacant) => vacant.insert(Some(hello)),
        };
        let (learner, cancel) = (Arc::clone(self), self.cancel.clone());
        self.tracker.spawn_task(async move {
            cancel.run_until_cancelled(learner.learn_all(peer)).await;
        });
    }

    /// Learns until the peer has nothing new to say.
    async fn learn_all(&self, peer: PublicKey) {
        let mut was_refused = false;
        loop {
            let hello = {
                let mut waiting = lock(&self.waiting);
                match waiting.get_mut(&peer).and_then(Option::take) {
                    Some(hello) => hello,
                    None => {
                        waiting.remove(&peer);
                        return;
                    }
                }
            };
            let outcome = self.learn(peer, &hello).await;
            if let Err(error) = &outcome {
                tracing::warn!(peer = peer.short(), %error, "what a peer says was not learned");
            }
            match outcome {
                Err(error) if error.code.is_disk() => {
                    if !std::mem::replace(&mut was_refused, true) {
                        let peer = peer.to_z32();
                        let why = format!("what the server {peer} shares is not saved: {error}");
                        self.tell(false, why);
                    }
                    self.put_back(peer, hello);
                    tokio::time::sleep(RETRY).await;
                }
                _ => {
                    if std::mem::replace(&mut was_refused, false) {
                        self.tell(true, "what peers share can be saved again".to_owned());
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Has what the disk refused tried again, unless the peer has said something else.
    fn put_back(&self, peer: PublicKey, hello: Hello) {
        if let Some(waiting) = lock(&self.waiting).get_mut(&peer) {
            waiting.get_or_insert(hello);
        }
    }

    async fn learn(&self, peer: PublicKey, hello: &Hello) -> Result<()> {
        self.peers.learn(&peer, hello.nickname.as_deref(), hello.feed_key)?;
        match hello.feed_key {
            Some(feed_key) => self.catalog.set_feed(peer, feed_key).await,
            None => Ok(()),
        }
    }

    fn tell(&self, ok: bool, message: String) {
        let layer = "catalog".to_owned();
        self.events.emit(EventKind::Status { layer, ok, message });
    }
}
