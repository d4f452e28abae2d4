//! Replication of cores with peers: `hypercore/alpha` as npm hypercore 11 speaks it.
//!
//! | file | idea |
//! |---|---|
//! | `peer.rs`, `announce.rs`, `schedule.rs` | one core with one peer: messages in, messages out |
//! | `forks.rs` | following a peer to a later fork |
//! | `requests.rs`, `expected.rs`, `pipeline.rs` | what is being downloaded, from whom, and how much at once |
//! | `wanted.rs`, `seeks.rs` | which blocks and bytes somebody waits for |
//! | `hotswap.rs` | asking a quicker peer for what a slow one was asked for |
//! | `remote_bitfield.rs`, `remote_wants.rs` | what a peer says it has, and wants to hear of |
//! | `upload.rs` | what a peer asked for |
//! | `capability.rs` | that a peer knows the core's key |
//! | `local.rs` | what all of these see of a core |
//! | `swarm.rs` | one core with all its peers |
//! | `registry.rs` | all cores with all connections |
//! | `fetch.rs` | reading, fetching and clearing parts of a core |
//! | `driver.rs` | the state machine on a protomux channel |

mod announce;
mod capability;
mod driver;
mod expected;
mod fetch;
mod forks;
mod hotswap;
mod local;
mod peer;
mod pipeline;
mod registry;
mod remote_bitfield;
mod remote_wants;
mod requests;
mod schedule;
mod seeks;
#[cfg(test)]
mod simulation;
mod swarm;
mod upload;
mod wanted;

use std::num::NonZeroU32;
use std::sync::Arc;

use tokio::sync::broadcast;

use super::{Core, CoreError};
use crate::crypto::{Hash, PublicKey};
use crate::encoding::DecodeError;
use crate::protomux::Protomux;
use crate::rate_limit::RateLimit;

pub use fetch::Fetching;
use swarm::Swarm;

/// The protocol's name on protomux.
pub const PROTOCOL: &str = "hypercore/alpha";

/// A question about a peer that policy answers. It must not block or wait.
pub type PeerFilter = Arc<dyn Fn(&PublicKey) -> bool + Send + Sync>;

/// How much of a core is fetched from peers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Download {
    /// All of it, and all that is appended later.
    All,
    /// Its length, now and later; its blocks only as they are asked for with [`CoreHandle::get`],
    /// [`CoreHandle::download`] and [`CoreHandle::seek`].
    OnDemand,
    /// Nothing but what is asked for, while somebody waits for it: the core is served.
    #[default]
    None,
}

/// What is done with a core, and with whom.
#[derive(Clone)]
pub struct Policy {
    /// What is fetched.
    pub download: Download,
    /// Whether a peer may have what it asks for; asked for every single request.
    pub upload: PeerFilter,
    /// With whom the core is opened at all; `None` is everybody. To anybody else it does not exist.
    pub peers: Option<PeerFilter>,
}

impl Policy {
    /// Serves everybody and fetches nothing by itself: for a log that is written here.
    #[must_use]
    pub fn serve() -> Self {
        Self { download: Download::None, upload: Arc::new(|_| true), peers: None }
    }

    /// Fetches everything and serves everybody.
    #[must_use]
    pub fn fetch() -> Self {
        Self { download: Download::All, ..Self::serve() }
    }

    /// Fetches blocks as they are asked for, and serves everybody.
    #[must_use]
    pub fn on_demand() -> Self {
        Self { download: Download::OnDemand, ..Self::serve() }
    }

    /// The same, only with the peers that `admits` says yes to.
    #[must_use]
    pub fn only_with(self, admits: impl Fn(&PublicKey) -> bool + Send + Sync + 'static) -> Self {
        Self { peers: Some(Arc::new(admits)), ..self }
    }
}

/// How far a log goes. Of two heads the greater is the later: a log that was cut goes on at another fork.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Head {
    /// The fork.
    pub fork: u64,
    /// The length in blocks.
    pub length: u64,
}

/// How one peer of a core does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerInfo {
    /// The peer.
    pub public_key: PublicKey,
    /// What it says it has.
    pub remote: Head,
    /// What it has proven with a signature, last; nothing when it was never asked for a proof.
    pub proven: Head,
    /// It says that it has all blocks below.
    pub remote_contiguous_length: u64,
    /// Blocks it sent that verified, on this channel.
    pub downloaded_blocks: u64,
    /// Their bytes.
    pub downloaded_bytes: u64,
    /// Blocks it was sent, on this channel.
    pub uploaded_blocks: u64,
    /// Their bytes.
    pub uploaded_bytes: u64,
    /// Blocks that it was asked for because the peer that was asked before was slow.
    pub hotswaps: u64,
}

/// Something that happened to a core with a peer.
#[derive(Debug, Clone)]
pub struct Event {
    /// The core's key.
    pub key: Hash,
    /// The peer.
    pub peer: PublicKey,
    /// What happened.
    pub kind: EventKind,
}

/// What happened to a core with a peer.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum EventKind {
    /// The peer proved that it knows the key; replication has begun.
    PeerJoined,
    /// Replication with the peer has ended.
    PeerLeft,
    /// The peer broke the protocol; its connection was closed.
    Violation {
        /// How.
        violation: Violation,
    },
    /// The peer proved a validly signed log that contradicts ours, or that continues a log only we
    /// should write. Nothing more is asked of it.
    WrittenElsewhere {
        /// The length it proved, in blocks.
        length: u64,
    },
    /// Blocks could not be stored. Nothing more is fetched until the core is added anew.
    Failed {
        /// Why.
        error: CoreError,
    },
    /// A block that a peer asked for could not be read.
    Unreadable {
        /// Why.
        error: CoreError,
    },
}

/// Replicates cores over connections. Clones share both.
#[derive(Clone)]
pub struct Replicator {
    inner: Arc<registry::Inner>,
}

impl Replicator {
    /// A replicator without cores and connections.
    #[must_use]
    pub fn new() -> Self {
        Self { inner: Arc::new(registry::Inner::new(None)) }
    }

    /// A replicator that sends all peers together at most so many bytes of blocks a second.
    #[must_use]
    pub fn with_upload_limit(bytes_per_second: NonZeroU32) -> Self {
        let rate = bytes_per_second.get();
        // Short bursts, so that even small books come at the rate.
        let limit = RateLimit::new(rate, (rate / 8).max(1));
        Self { inner: Arc::new(registry::Inner::new(Some(limit))) }
    }

    /// Replicates a core over all connections, now and later, as far as the policy says. One that was
    /// added before with the same key is replaced. Needs a tokio runtime.
    pub fn add(&self, core: Core, policy: Policy) -> CoreHandle {
        self.add_swarm(Swarm::new(core, policy, false))
    }

    /// As [`Replicator::add`], beside any other core with the same key: neither replaces the other, and each
    /// is open with other peers. A peer that several of them admit has to do with the one that was added with
    /// [`Replicator::add`], and then with the oldest. For what a peer says of a key and has not proven.
    pub fn add_beside(&self, core: Core, policy: Policy) -> CoreHandle {
        self.add_swarm(Swarm::new(core, policy, true))
    }

    fn add_swarm(&self, swarm: Swarm) -> CoreHandle {
        let swarm = Arc::new(swarm);
        self.insert(Arc::clone(&swarm));
        CoreHandle { replicator: self.clone(), swarm }
    }

    /// Replicates over a connection until it closes: opens every core that policy admits its peer to,
    /// and answers what the peer opens. Needs a tokio runtime.
    pub fn attach(&self, mux: &Protomux) {
        self.attach_mux(mux);
    }

    /// What happens from now on; a slow reader loses the oldest events (1,024 are kept).
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.inner.events.subscribe()
    }
}

impl Default for Replicator {
    fn default() -> Self {
        Self::new()
    }
}

/// A core among those of a [`Replicator`]. Dropping it changes nothing; see [`CoreHandle::close`].
#[derive(Clone)]
pub struct CoreHandle {
    replicator: Replicator,
    swarm: Arc<Swarm>,
}

impl CoreHandle {
    /// The core.
    #[must_use]
    pub fn core(&self) -> &Core {
        &self.swarm.core
    }

    /// Changes what is fetched, at once.
    pub fn set_download(&self, download: Download) {
        self.swarm.set_download(download);
        if download != Download::None {
            // Channels may have been closed because neither side wanted anything.
            self.replicator.open_everywhere(&self.swarm);
        }
    }

    /// Lets a policy whose answers have changed take effect: opens the core with peers that are
    /// admitted now, closes it with those that are not any more, and tells the others whether they
    /// may ask.
    pub fn refresh(&self) {
        self.swarm.wake_all();
        self.replicator.open_everywhere(&self.swarm);
    }

    /// The peers the core is replicated with now.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerInfo> {
        self.swarm.peers()
    }

    /// Why blocks could not be stored, if so: what [`EventKind::Failed`] says, for those who may have missed it.
    #[must_use]
    pub fn failure(&self) -> Option<CoreError> {
        self.swarm.failure()
    }

    /// Why a block that this peer asked for could not be read, once: what [`EventKind::Unreadable`] says, for those
    /// who may have missed it.
    #[must_use]
    pub fn take_unreadable(&self, peer: &PublicKey) -> Option<CoreError> {
        self.swarm.take_unreadable(peer)
    }

    /// How many bytes of blocks this peer was sent since the core was added, also on channels that are closed.
    #[must_use]
    pub fn uploaded_bytes(&self, peer: &PublicKey) -> u64 {
        self.swarm.uploaded_to(peer)
    }

    /// Has the peers that say they have as much as this core prove it, once for each head; see
    /// [`PeerInfo::proven`].
    pub fn ask_for_proofs(&self) {
        self.swarm.ask_for_proofs();
    }

    /// Ends the replication of this core; the core itself stays open. A second call does nothing.
    pub fn close(&self) {
        self.replicator.remove(&self.swarm);
    }
}

/// How a peer broke the protocol. Each closes the connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// A message could not be read.
    #[error("sent a malformed message: {0}")]
    Malformed(#[from] DecodeError),
    /// The open's capability is not the core's.
    #[error("opened a core whose key it does not know")]
    Capability,
    /// More requests wait than a peer may have.
    #[error("asks for too much at once")]
    TooManyRequests,
    /// Too many requests that make no sense.
    #[error("keeps asking for what cannot exist")]
    InvalidRequests,
    /// Data that was not asked for.
    #[error("sent data that nobody asked for")]
    Unasked,
    /// An answer to another question.
    #[error("answered another question than it was asked")]
    WrongAnswer,
    /// A block, hash, signature or manifest that does not verify.
    #[error("sent data that does not verify: {0}")]
    Unverified(String),
    /// Answers that never fit what is here.
    #[error("keeps sending data that fits nothing")]
    NeverFits,
}
