//! One core and all the peers it is replicated with.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::peer::{Counters, Delivery, Outcome, Peer, Role, head_of};
use super::requests::{Downloads, PeerId};
use super::{Download, Head, PeerInfo, Policy, Violation};
use crate::crypto::{Hash, PublicKey};
use crate::hypercore::core::{Path, Reorg};
use crate::hypercore::messages::{Message, Request};
use crate::hypercore::{Core, CoreChange, CoreError, Manifest};
use crate::sync::lock;

/// How many bytes of blocks are read for one batch of answers.
const BATCH_BYTES: u64 = 256 << 10;
/// How many requests are answered in one batch.
const BATCH_REQUESTS: u64 = 256;

/// How long peers are still told that we download after nobody waits for blocks any more: opening a
/// core again for each block that is read would take a round trip each time.
const LINGER: Duration = Duration::from_secs(10);

/// A core that is replicated, with its policy and its peers.
pub(super) struct Swarm {
    pub(super) core: Core,
    pub(super) key: Hash,
    pub(super) discovery_key: Hash,
    /// Whether it was added beside others with the same key.
    pub(super) is_beside: bool,
    /// Ends all channels of this core.
    pub(super) closed: CancellationToken,
    policy: Mutex<Policy>,
    /// How many bytes of blocks each peer was sent, over all its channels.
    uploaded: Mutex<HashMap<PublicKey, u64>>,
    /// What could not be read for a peer last. Whoever misses the event finds it here.
    unreadable: Mutex<HashMap<PublicKey, CoreError>>,
    state: Mutex<State>,
    /// Counts what may let a wait in `fetch.rs` end besides changes of the core: peers that say what they
    /// have or leave, and places of bytes that become known.
    pub(super) progress: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    downloads: Downloads,
    members: HashMap<PeerId, Member>,
    last_id: u64,
    /// Blocks cannot be stored here; nothing is asked for until the core is added anew.
    failed: Option<CoreError>,
    lingers_until: Option<Instant>,
}

struct Member {
    peer: Peer,
    public_key: PublicKey,
    wake: Arc<Notify>,
    /// The fork that this peer is followed to, as far as it is known.
    reorg: Option<Reorg>,
}

/// What a peer is to be sent next.
pub(super) struct Turn {
    pub(super) messages: Vec<Message>,
    pub(super) requests: Vec<Request>,
    pub(super) idle: bool,
    pub(super) deadline: Option<Instant>,
    pub(super) violation: Option<Violation>,
}

impl Swarm {
    pub(super) fn new(core: Core, policy: Policy, is_beside: bool) -> Self {
        let mut state = State::default();
        state.downloads.want_all(policy.download == Download::All);
        Self {
            key: *core.key(),
            discovery_key: *core.discovery_key(),
            is_beside,
            core,
            closed: CancellationToken::new(),
            policy: Mutex::new(policy),
            uploaded: Mutex::default(),
            unreadable: Mutex::default(),
            state: Mutex::new(state),
            progress: watch::channel(0).0,
        }
    }

    /// Adds a peer until the returned membership is dropped.
    /// Whether it understands seeks is what its handshake says.
    pub(super) fn join(self: &Arc<Self>, public_key: PublicKey, seeks: bool) -> Membership {
        let role = self.role(&public_key);
        let wake = Arc::new(Notify::new());
        let mut state = self.state();
        state.last_id += 1;
        let id = PeerId(state.last_id);
        let mut peer = Peer::new(id, role, now());
        peer.seeks = seeks;
        state.members.insert(id, Member { peer, public_key, wake: Arc::clone(&wake), reorg: None });
        drop(state);
        Membership { swarm: Arc::clone(self), id, public_key, wake }
    }

    /// Whether the core may be opened with this peer.
    pub(super) fn admits(&self, peer: &PublicKey) -> bool {
        let filter = lock(&self.policy).peers.clone();
        filter.is_none_or(|admits| admits(peer))
    }

    /// Whether this peer may have blocks now.
    pub(super) fn uploads_to(&self, peer: &PublicKey) -> bool {
        let upload = Arc::clone(&lock(&self.policy).upload);
        upload(peer)
    }

    pub(super) fn is_downloading(&self) -> bool {
        let download = lock(&self.policy).download;
        if download != Download::None && !self.is_whole() {
            return true;
        }
        let state = self.state();
        let lingers = state.lingers_until.is_some_and(|until| now() < until);
        lingers || state.is_waited_for()
    }

    pub(super) fn set_download(&self, download: Download) {
        lock(&self.policy).download = download;
        {
            let mut state = self.state();
            state.downloads.want_all(download == Download::All);
            state.lingers_until = None;
        }
        self.wake_all();
    }

    /// Lets every peer's turn come, so that a changed policy takes effect.
    pub(super) fn wake_all(&self) {
        for member in self.state().members.values() {
            member.wake.notify_one();
        }
    }

    /// Has peers that say they have as much as we have prove that.
    pub(super) fn ask_for_proofs(&self) {
        let CoreChange { fork, length, .. } = self.core.state();
        for member in self.state().members.values_mut() {
            member.peer.want_proof(Head { fork, length });
        }
        self.wake_all();
    }

    /// Stops asking for blocks, because they cannot be stored.
    pub(super) fn fail(&self, error: &CoreError) -> bool {
        let first = self.state().failed.replace(error.clone()).is_none();
        self.wake_all();
        self.progress.send_modify(|count| *count += 1);
        first
    }

    /// Why nothing is asked for any more.
    pub(super) fn failure(&self) -> Option<CoreError> {
        self.state().failed.clone()
    }

    /// Changes what is waited for.
    pub(super) fn change_waits<T>(&self, change: impl FnOnce(&mut Downloads) -> T) -> T {
        let mut state = self.state();
        let was_waited_for = state.is_waited_for();
        let result = change(&mut state.downloads);
        if was_waited_for && !state.is_waited_for() {
            state.lingers_until = Some(now() + LINGER);
        }
        drop(state);
        self.wake_all();
        result
    }

    /// Tells every peer that blocks are not here any more.
    pub(super) fn tell_dropped(&self, start: u64, length: u64) {
        for member in self.state().members.values_mut() {
            member.peer.dropped(start, length);
        }
        self.wake_all();
    }

    /// Notes that a block could not be read for a peer.
    pub(super) fn note_unreadable(&self, peer: PublicKey, error: CoreError) {
        lock(&self.unreadable).insert(peer, error);
    }

    /// Why a block could not be read for a peer, once.
    pub(super) fn take_unreadable(&self, peer: &PublicKey) -> Option<CoreError> {
        lock(&self.unreadable).remove(peer)
    }

    /// How many bytes of blocks a peer was sent, over all its channels.
    pub(super) fn uploaded_to(&self, peer: &PublicKey) -> u64 {
        lock(&self.uploaded).get(peer).copied().unwrap_or_default()
    }

    pub(super) fn peers(&self) -> Vec<PeerInfo> {
        let state = self.state();
        let info = |member: &Member| {
            let Counters {
                downloaded_blocks,
                downloaded_bytes,
                uploaded_blocks,
                uploaded_bytes,
                hotswaps,
            } = member.peer.counters;
            PeerInfo {
                public_key: member.public_key,
                remote: member.peer.remote.as_ref().map(head_of).unwrap_or_default(),
                remote_contiguous_length: member.peer.bits.contiguous(),
                proven: member.peer.proven,
                downloaded_blocks,
                downloaded_bytes,
                uploaded_blocks,
                uploaded_bytes,
                hotswaps,
            }
        };
        state.members.values().map(info).collect()
    }

    /// A static core that is here entirely never wants anything again.
    fn is_whole(&self) -> bool {
        let is_static =
            |manifest: &Manifest| manifest.prologue.is_some() && manifest.signers.is_empty();
        let CoreChange { length, contiguous_length, .. } = self.core.state();
        length > 0
            && contiguous_length == length
            && self.core.manifest().is_some_and(|manifest| is_static(&manifest))
    }

    fn role(&self, peer: &PublicKey) -> Role {
        Role { downloading: self.is_downloading(), uploading: self.uploads_to(peer) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    /// Whether anybody waits for blocks or for the place of a byte.
    fn is_waited_for(&self) -> bool {
        self.downloads.wanted().has_ranges() || !self.downloads.seeks.is_empty()
    }
}

/// The runtime's time, which a test may simulate.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// A peer's place among the peers of a core; leaves it when dropped.
pub(super) struct Membership {
    pub(super) swarm: Arc<Swarm>,
    pub(super) public_key: PublicKey,
    pub(super) wake: Arc<Notify>,
    id: PeerId,
}

impl Membership {
    /// Takes messages; what they deliver is to be applied, in order, and reported with `finish`.
    pub(super) fn receive(&self, messages: Vec<Message>) -> Result<Vec<Delivery>, Violation> {
        let (now, mut deliveries) = (now(), Vec::new());
        let says = |message: &Message| {
            matches!(message, Message::Sync(_) | Message::Range(_) | Message::Bitfield(_))
        };
        let says = messages.iter().any(says);
        let received = self.with(|peer, downloads, core| {
            for message in messages {
                deliveries.extend(peer.receive(message, core, downloads, now)?);
            }
            Ok(deliveries)
        });
        if says {
            self.swarm.progress.send_modify(|count| *count += 1);
        }
        received.unwrap_or_else(|| Ok(Vec::new()))
    }

    /// Reports what became of deliveries.
    pub(super) fn finish(&self, outcomes: &[(Delivery, Outcome)]) -> Result<(), Violation> {
        let result = self
            .with(|peer, downloads, _| {
                outcomes
                    .iter()
                    .try_for_each(|(delivery, outcome)| peer.finish(delivery, *outcome, downloads))
            })
            .unwrap_or(Ok(()));
        self.tell_others(outcomes);
        result
    }

    /// What is to be sent now. `None` when this peer was removed.
    pub(super) fn turn(&self) -> Option<Turn> {
        let role = self.swarm.role(&self.public_key);
        let lingers_until = self.swarm.state().lingers_until;
        let now = now();
        self.with(|peer, downloads, core| {
            peer.role = Role { downloading: role.downloading && peer.may_download, ..role };
            let messages = peer.poll(core, downloads, now);
            let average = core.byte_length() / core.length().max(1);
            let count = (BATCH_BYTES / average.max(1)).clamp(1, BATCH_REQUESTS);
            let requests = (0..count).map_while(|_| peer.uploads.pop()).collect();
            let violation = peer.convicted.then(|| peer.suspicion.clone()).flatten();
            Turn {
                violation,
                messages,
                requests,
                idle: peer.is_idle() && peer.may_download,
                deadline: peer
                    .deadline()
                    .into_iter()
                    .chain(lingers_until.filter(|until| *until > now))
                    .min(),
            }
        })
    }

    /// Lets these requests wait for their answers again.
    pub(super) fn ask_again(&self, requests: Vec<Request>) -> Result<(), Violation> {
        self.with(|peer, _, _| requests.into_iter().try_for_each(|asked| peer.uploads.push(asked)))
            .unwrap_or(Ok(()))
    }

    /// Whether there is something to send without waiting.
    pub(super) fn is_busy(&self) -> bool {
        self.with(|peer, _, _| peer.has_more() || !peer.uploads.is_empty()).unwrap_or(false)
    }

    /// Counts what was sent to the peer.
    pub(super) fn uploaded(&self, blocks: u64, bytes: u64) {
        *lock(&self.swarm.uploaded).entry(self.public_key).or_default() += bytes;
        self.with(|peer, _, _| {
            peer.counters.uploaded_blocks += blocks;
            peer.counters.uploaded_bytes += bytes;
        });
    }

    /// An upgrade of this peer did not verify; false when that is a violation in any case.
    pub(super) fn suspect(&self, violation: Violation) -> bool {
        let can_differ = self.swarm.core.length() > 0;
        can_differ && self.with(|peer, _, _| peer.suspect(violation)).unwrap_or(false)
    }

    /// What this peer is suspected of.
    pub(super) fn suspicion(&self) -> Option<Violation> {
        self.with(|peer, _, _| peer.suspicion.clone()).flatten()
    }

    /// Asks this peer for nothing more; it may still ask us.
    pub(super) fn stop_downloading(&self) {
        self.with(|peer, _, _| peer.may_download = false);
    }

    /// Keeps a fork of which more is to be asked of this peer, as `path` says.
    pub(super) fn keep_reorg(&self, reorg: Reorg, path: Path) {
        let mut state = self.swarm.state();
        if let Some(member) = state.members.get_mut(&self.id) {
            member.peer.ask_path(reorg.fork(), path);
            member.reorg = Some(reorg);
        }
    }

    /// The fork that was kept.
    pub(super) fn take_reorg(&self) -> Option<Reorg> {
        self.swarm.state().members.get_mut(&self.id)?.reorg.take()
    }

    /// Runs `act` on this peer, and wakes the others when it made something free for them.
    fn with<T>(&self, act: impl FnOnce(&mut Peer, &mut Downloads, &Core) -> T) -> Option<T> {
        let mut state = self.swarm.state();
        let State { downloads, members, failed, .. } = &mut *state;
        let before = downloads.version();
        let peer = &mut members.get_mut(&self.id)?.peer;
        peer.may_download &= failed.is_none();
        let result = act(peer, downloads, &self.swarm.core);
        if downloads.version() != before {
            for (id, member) in members {
                if *id != self.id {
                    member.wake.notify_one();
                }
            }
            self.swarm.progress.send_modify(|count| *count += 1);
        }
        Some(result)
    }

    /// Announces blocks beyond the contiguous ones to the other peers. What is contiguous they learn
    /// by watching the core.
    fn tell_others(&self, outcomes: &[(Delivery, Outcome)]) {
        let contiguous = self.swarm.core.contiguous_length();
        let mut state = self.swarm.state();
        if state.members.len() < 2 {
            return;
        }
        for (delivery, outcome) in outcomes {
            let Some(block) = &delivery.data.block else { continue };
            if *outcome != Outcome::Applied || block.index < contiguous {
                continue;
            }
            for (id, member) in &mut state.members {
                if *id != self.id {
                    member.peer.have(block.index, 1);
                }
            }
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut state = self.swarm.state();
        let State { downloads, members, .. } = &mut *state;
        if let Some(mut member) = members.remove(&self.id) {
            member.peer.close(downloads);
        }
        downloads.release_all(self.id);
        for member in members.values() {
            member.wake.notify_one();
        }
        drop(state);
        self.swarm.progress.send_modify(|count| *count += 1);
    }
}
