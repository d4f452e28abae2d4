//! The local network: who is on it, found without internet and without the DHT.
//!
//! What is heard proves nothing, and anybody on the network may say anything, as often as he likes. So a
//! key that nobody approved is only listed, an approved one is dialed (and has to prove itself), and both
//! happen at a bounded rate. A flood ends the search for a while, not the node.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::mdns::{Announced, Mdns, News, Sighting};
use crate::crypto::PublicKey;
use crate::peers::{AddressSource, Connections, Peers};
use crate::rate_limit::RateLimit;
use crate::sync::lock;

/// The port of multicast DNS.
pub(super) const MDNS_PORT: u16 = 5353;
/// How often memory is looked at, and how much news there may be from one time to the next.
const LOOK: Duration = Duration::from_secs(1);
const MAX_NEWS: usize = 500;
/// The pause after a flood or a failure, doubled each time up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);
/// A search that lasted this long was a good one: the next pause is short again.
const GOOD: Duration = Duration::from_secs(10 * 60);
/// Sightings of one approved key, and of all other keys together: a second, and at once.
const APPROVED_RATE: (u32, u32) = (1, 8);
const STRANGER_RATE: (u32, u32) = (1, 64);
/// Keys that are counted as present.
const MAX_PRESENT: usize = 256;
/// Approved keys whose sightings are counted.
const MAX_COUNTED: usize = 1024;

/// What is known of the local network, for a person.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LanStatus {
    /// Whether this server's own announcement was heard on a network: multicast works, as far as this
    /// machine goes.
    pub is_heard: bool,
    /// How many other servers are on it.
    pub others: usize,
    /// What went wrong last.
    pub trouble: Option<String>,
    /// Whether the search pauses because somebody floods the network.
    pub is_flooded: bool,
    /// For how long it has been looked at.
    pub since: Option<Instant>,
}

/// The search on the local network.
pub(super) struct Lan {
    announced: Announced,
    peers: Peers,
    connections: Connections,
    status: Mutex<LanStatus>,
}

impl Lan {
    pub(super) fn new(
        key: PublicKey,
        address: SocketAddr,
        mdns_port: u16,
        peers: Peers,
        connections: Connections,
    ) -> Arc<Self> {
        let announced = Announced { key, address, mdns_port };
        let status = Mutex::new(LanStatus::default());
        Arc::new(Self { announced, peers, connections, status })
    }

    pub(super) fn status(&self) -> LanStatus {
        lock(&self.status).clone()
    }

    /// Announces and searches until cancelled; then says goodbye.
    pub(super) async fn run(self: Arc<Self>, cancel: CancellationToken) {
        let mut pause = FIRST_PAUSE;
        loop {
            let began = Instant::now();
            *lock(&self.status) = LanStatus { since: Some(began), ..LanStatus::default() };
            match Mdns::start(&self.announced) {
                Ok(mdns) => {
                    let ended = cancel.run_until_cancelled(self.follow(&mdns)).await;
                    mdns.close().await;
                    if ended.is_none() {
                        return;
                    }
                    lock(&self.status).is_flooded = true;
                    tracing::warn!(
                        "too much is said on the local network: the search there pauses"
                    );
                }
                Err(error) => {
                    tracing::warn!(%error, "the local network cannot be searched");
                    lock(&self.status).trouble = Some(error.to_string());
                }
            }
            if began.elapsed() >= GOOD {
                pause = FIRST_PAUSE;
            }
            if cancel.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Follows what is said until it is too much.
    async fn follow(&self, mdns: &Mdns) {
        let mut ear = Ear::new(self);
        let mut heard = 0;
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                news = mdns.next() => match news {
                    News::Sighting(sighting) => {
                        heard += 1;
                        if heard > MAX_NEWS {
                            return;
                        }
                        ear.hear(sighting);
                    }
                    News::Trouble(trouble) => {
                        tracing::debug!(trouble, "the local network");
                        lock(&self.status).trouble = Some(trouble);
                    }
                    News::Over => return,
                },
                _ = look.tick() => {
                    heard = 0;
                    if mdns.is_flooded().await {
                        return;
                    }
                }
            }
        }
    }
}

/// Hears everything, and passes on what there is time for.
struct Ear<'a> {
    lan: &'a Lan,
    present: HashSet<PublicKey>,
    approved: HashMap<PublicKey, RateLimit>,
    strangers: RateLimit,
}

impl<'a> Ear<'a> {
    fn new(lan: &'a Lan) -> Self {
        Self {
            lan,
            present: HashSet::new(),
            approved: HashMap::new(),
            strangers: limit(STRANGER_RATE),
        }
    }

    fn hear(&mut self, sighting: Sighting) {
        let key = match &sighting {
            Sighting::Here { key, .. } | Sighting::Gone { key } => *key,
        };
        if key == self.lan.announced.key {
            lock(&self.lan.status).is_heard |= self.is_heard_outside(&sighting);
            return;
        }
        let is_approved = self.lan.peers.is_approved(&key);
        if !self.has_time_for(key, is_approved) {
            return;
        }
        match sighting {
            Sighting::Here { addresses, .. } => {
                if self.present.len() < MAX_PRESENT {
                    self.present.insert(key);
                }
                if self.lan.peers.found(key, AddressSource::Lan, &addresses) {
                    tracing::debug!(peer = key.short(), is_approved, "found on the local network");
                }
                // Also at an address that is no news: it is there now.
                self.lan.connections.wake(&key);
            }
            Sighting::Gone { .. } => {
                self.present.remove(&key);
                self.lan.peers.left_lan(&key);
            }
        }
        lock(&self.lan.status).others = self.present.len();
    }

    /// Whether this server was heard on a network, not only within this machine, unless it is bound to
    /// that: a firewall may take what does not leave, and nothing else.
    fn is_heard_outside(&self, sighting: &Sighting) -> bool {
        let Sighting::Here { addresses, .. } = sighting else { return false };
        let is_within = self.lan.announced.address.ip().is_loopback();
        addresses.iter().any(|address| is_within || !address.ip().is_loopback())
    }

    fn has_time_for(&mut self, key: PublicKey, is_approved: bool) -> bool {
        if !is_approved {
            return self.strangers.allow();
        }
        if self.approved.len() >= MAX_COUNTED && !self.approved.contains_key(&key) {
            self.approved.clear();
        }
        self.approved.entry(key).or_insert_with(|| limit(APPROVED_RATE)).allow()
    }
}

fn limit((rate, burst): (u32, u32)) -> RateLimit {
    RateLimit::new(rate, burst)
}

#[cfg(test)]
mod tests;
