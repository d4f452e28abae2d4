//! One core with one peer, as a state machine: messages go in, messages come out, time is passed in.
//!
//! Nothing here waits, reads storage or verifies a proof: answers that may be applied are handed out
//! as [`Delivery`], and requests that are to be answered wait in [`Peer::uploads`]. What is said about
//! ourselves is in `announce.rs`, what is asked for in `schedule.rs`.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Instant;

use super::expected::ExpectedNodes;
use super::forks::Following;
use super::local::LocalCore;
use super::pipeline::Pipeline;
use super::remote_bitfield::RemoteBitfield;
use super::remote_wants::RemoteWants;
use super::requests::{Asked, Downloads, Outstanding, PeerId, Scan};
use super::upload::UploadQueue;
use super::{Head, Violation};
use crate::hypercore::messages::{Data, Message, NoData, NoDataReason, Sync, Want};

/// After so many refusals in a row a peer is asked for nothing until it says something new.
const MAX_REFUSALS: u32 = 64;
/// How many answers in a row may be of no use, because what they build on did not come.
const MAX_RETRIES: u32 = 4096;
/// The most wants of a peer that wait for an answer (npm hypercore has at most 512).
const MAX_WANTS: usize = 512;

/// An answer that is to be verified and applied, in the order in which they are handed out.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) request: u64,
    pub(super) outstanding: Outstanding,
    pub(super) data: Data,
}

/// What became of a [`Delivery`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Verified and stored.
    Applied,
    /// It could not be applied, through nobody's fault: ask again.
    Retry,
    /// It is of no use here, and asking again would not help.
    Useless,
}

/// What this side does with the core and this peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Role {
    pub(super) downloading: bool,
    pub(super) uploading: bool,
}

/// Counters of one core with one peer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counters {
    pub(super) downloaded_blocks: u64,
    pub(super) downloaded_bytes: u64,
    pub(super) uploaded_blocks: u64,
    pub(super) uploaded_bytes: u64,
    pub(super) hotswaps: u64,
}

/// The state machine.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) id: PeerId,
    pub(super) role: Role,
    /// False once this peer contradicts us, or nothing can be stored.
    pub(super) may_download: bool,
    pub(super) uploads: UploadQueue,
    pub(super) counters: Counters,
    /// What the peer said last of itself.
    pub(super) remote: Option<Sync>,
    pub(super) bits: RemoteBitfield,

    // announce.rs
    pub(super) sent_sync: Option<Sync>,
    pub(super) announced: u64,
    /// The end of all that was ever said to be here.
    pub(super) told: u64,
    pub(super) haves: Vec<(u64, u64)>,
    pub(super) wants: VecDeque<Want>,
    pub(super) remote_wants: RemoteWants,

    // schedule.rs
    pub(super) outstanding: HashMap<u64, Outstanding>,
    pub(super) expected: ExpectedNodes,
    pub(super) scan: Scan,
    pub(super) next_id: u64,
    pub(super) wanted: BTreeSet<u64>,
    pub(super) upgrade_refused: bool,
    pub(super) manifest_asked: bool,
    pub(super) checked: bool,
    /// Of what a proof was wanted last, though nothing is doubted.
    pub(super) proof_wanted: Head,
    /// What the peer has proven with a signature, last.
    pub(super) proven: Head,
    /// An upgrade did not verify: that is a violation unless the log was written twice, for which
    /// the peer is asked for a proof from the start.
    pub(super) suspicion: Option<Violation>,
    /// The proof did not come.
    pub(super) convicted: bool,
    pub(super) refusals: u32,
    pub(super) stalls: u32,
    pub(super) resting_until: Option<Instant>,
    pub(super) last_progress: Instant,
    pub(super) pipeline: Pipeline,
    /// How many requests were taken back: so many answers may come that nobody waits for.
    pub(super) cancels: u64,

    // hotswap.rs
    pub(super) next_swap: Option<Instant>,

    // seeks.rs
    /// Whether the peer understands seeks.
    pub(super) seeks: bool,
    /// What the peer knows no way to, until it has more.
    pub(super) refused_seeks: HashSet<u64>,

    // forks.rs
    pub(super) following: Following,
    /// Our fork when it was last looked at.
    pub(super) fork: u64,

    /// Answers that arrived before the one they build on, by that one's request.
    deferred: HashMap<u64, Vec<Delivery>>,
    unasked: u64,
    retries: u32,
    pub(super) out: Vec<Message>,
}

/// What a peer says it has.
pub(super) fn head_of(sync: &Sync) -> Head {
    Head { fork: sync.fork, length: sync.length }
}

impl Peer {
    /// A peer of which nothing is known yet.
    pub(super) fn new(id: PeerId, role: Role, now: Instant) -> Self {
        Self {
            id,
            role,
            may_download: true,
            uploads: UploadQueue::default(),
            counters: Counters::default(),
            remote: None,
            bits: RemoteBitfield::default(),
            sent_sync: None,
            announced: 0,
            told: 0,
            haves: Vec::new(),
            wants: VecDeque::new(),
            remote_wants: RemoteWants::default(),
            outstanding: HashMap::new(),
            expected: ExpectedNodes::default(),
            scan: Scan::default(),
            next_id: 1,
            wanted: BTreeSet::new(),
            upgrade_refused: false,
            manifest_asked: false,
            checked: false,
            proof_wanted: Head::default(),
            proven: Head::default(),
            suspicion: None,
            convicted: false,
            refusals: 0,
            stalls: 0,
            resting_until: None,
            last_progress: now,
            pipeline: Pipeline::new(now),
            cancels: 0,
            next_swap: None,
            seeks: true,
            refused_seeks: HashSet::new(),
            following: Following::default(),
            fork: 0,
            deferred: HashMap::new(),
            unasked: 0,
            retries: 0,
            out: Vec::new(),
        }
    }

    /// Takes a message; what it delivers must be applied and then passed to [`Self::finish`].
    pub(super) fn receive(
        &mut self,
        message: Message,
        core: &impl LocalCore,
        downloads: &mut Downloads,
        now: Instant,
    ) -> Result<Vec<Delivery>, Violation> {
        match message {
            Message::Sync(sync) => self.on_sync(sync),
            Message::Request(request) => self.uploads.push(request)?,
            Message::Cancel(request) => self.uploads.cancel(request),
            Message::Data(data) => return self.on_data(data, core, downloads, now),
            Message::NoData(no_data) => self.on_no_data(no_data, core, downloads, now),
            Message::Want(want) => {
                self.remote_wants.add(&want);
                if self.wants.len() < MAX_WANTS && !self.wants.contains(&want) {
                    self.wants.push_back(want);
                }
            }
            Message::Unwant(want) => {
                self.remote_wants.remove(&want);
                self.wants.retain(|other| other != &want);
            }
            Message::Bitfield(bitfield) => {
                self.bits.insert(bitfield.start, &bitfield.words);
                self.on_more();
            }
            Message::Range(range) => {
                self.bits.set_range(range.start, range.length, !range.drop);
                if !range.drop {
                    self.on_more();
                }
            }
            Message::Extension => {}
        }
        Ok(Vec::new())
    }

    /// Takes note of what became of a delivery.
    pub(super) fn finish(
        &mut self,
        delivery: &Delivery,
        outcome: Outcome,
        downloads: &mut Downloads,
    ) -> Result<(), Violation> {
        let applied = outcome == Outcome::Applied;
        if applied {
            (self.refusals, self.stalls, self.retries) = (0, 0, 0);
            self.note_proof(delivery);
            if let Some(block) = &delivery.data.block {
                self.counters.downloaded_blocks += 1;
                self.counters.downloaded_bytes += block.value.len() as u64;
            }
        } else {
            self.retries += 1;
        }
        if outcome == Outcome::Useless {
            self.refuse_fork(&delivery.outstanding);
        }
        self.settle(delivery.request, delivery.outstanding.asked, applied, downloads);
        if self.retries > MAX_RETRIES { Err(Violation::NeverFits) } else { Ok(()) }
    }

    /// Has the peer prove that it has this much, if it says that it has.
    pub(super) fn want_proof(&mut self, head: Head) {
        let says = self.remote.as_ref().map(head_of) == Some(head);
        if says && self.proof_wanted != head && self.proven != head {
            (self.proof_wanted, self.checked) = (head, false);
        }
    }

    fn note_proof(&mut self, delivery: &Delivery) {
        let Some(upgrade) = &delivery.data.upgrade else { return };
        let length = upgrade.start.saturating_add(upgrade.length);
        let is_proof = match delivery.outstanding.asked {
            Asked::Check { length: asked } => upgrade.start == 0 && length == asked,
            Asked::Upgrade { .. } | Asked::Fork { .. } => true,
            _ => false,
        };
        if is_proof {
            self.proven = Head { fork: delivery.outstanding.fork, length };
        }
    }

    /// An upgrade did not verify. False when that needs no further look.
    pub(super) fn suspect(&mut self, violation: Violation) -> bool {
        if self.suspicion.is_some() {
            return false;
        }
        self.suspicion = Some(violation);
        (self.checked, self.may_download) = (false, false);
        true
    }

    /// Whether neither side wants anything of the other, as each has said.
    pub(super) fn is_idle(&self) -> bool {
        !self.role.downloading
            && self.outstanding.is_empty()
            && self.sent_sync.is_some_and(|sync| !sync.downloading)
            && self.remote.is_some_and(|remote| !remote.downloading)
    }

    /// Gives back all that was asked of this peer.
    pub(super) fn close(&mut self, downloads: &mut Downloads) {
        for (request, outstanding) in std::mem::take(&mut self.outstanding) {
            self.settle(request, outstanding.asked, false, downloads);
        }
        for delivery in std::mem::take(&mut self.deferred).into_values().flatten() {
            self.settle(delivery.request, delivery.outstanding.asked, false, downloads);
        }
        self.uploads.clear();
    }

    fn on_sync(&mut self, sync: Sync) {
        if self.remote.is_some_and(|remote| remote.fork != sync.fork) {
            // What is gone with the old fork was dropped by ranges before.
            self.wanted.clear();
        }
        self.remote = Some(sync);
        self.upgrade_refused = false;
        self.following.refused = None;
        self.on_more();
    }

    /// The peer has something that it had not, or did not say before.
    fn on_more(&mut self) {
        self.refusals = 0;
        self.resting_until = None;
        self.refused_seeks.clear();
        self.scan.restart();
    }

    fn on_data(
        &mut self,
        mut data: Data,
        core: &impl LocalCore,
        downloads: &mut Downloads,
        now: Instant,
    ) -> Result<Vec<Delivery>, Violation> {
        let request = data.request;
        let Some(outstanding) = self.outstanding.remove(&request) else {
            self.unasked += 1;
            let allowed = request < self.next_id && self.unasked <= self.cancels;
            return if allowed { Ok(Vec::new()) } else { Err(Violation::Unasked) };
        };
        let bytes = data.block.as_ref().map_or(0, |block| block.value.len() as u64);
        self.on_answer(&outstanding, bytes, now);
        if self.is_stale(&outstanding, core) {
            self.settle(request, outstanding.asked, false, downloads);
            return Ok(Vec::new());
        }
        let asked_block = match outstanding.asked {
            Asked::Block { index, .. } => Some(index),
            Asked::Upgrade { block, .. } => block,
            Asked::Manifest
            | Asked::Check { .. }
            | Asked::Seek { .. }
            | Asked::Fork { .. }
            | Asked::Path { .. } => None,
        };
        let (asked_hash, asked_bytes) = match outstanding.asked {
            Asked::Seek { index, bytes, .. } => (Some(2 * index), Some(bytes)),
            Asked::Path { index, .. } => (Some(2 * index), None),
            _ => (None, None),
        };
        let is_upgrade = matches!(
            outstanding.asked,
            Asked::Upgrade { .. } | Asked::Check { .. } | Asked::Fork { .. }
        );
        let wrong = data.block.as_ref().is_some_and(|block| Some(block.index) != asked_block)
            || data.hash.as_ref().is_some_and(|hash| Some(hash.index) != asked_hash)
            || data.seek.as_ref().is_some_and(|seek| Some(seek.bytes) != asked_bytes)
            || data.upgrade.is_some() && !is_upgrade;
        if wrong {
            return Err(Violation::WrongAnswer);
        }
        let complete = data.fork == outstanding.fork
            && match outstanding.asked {
                Asked::Block { .. } => data.block.is_some(),
                Asked::Upgrade { .. } | Asked::Check { .. } | Asked::Fork { .. } => {
                    data.upgrade.is_some()
                }
                Asked::Path { .. } | Asked::Seek { .. } => data.hash.is_some(),
                Asked::Manifest => data.manifest.is_some(),
            };
        if !complete {
            self.refuse(request, &outstanding, downloads);
            return Ok(Vec::new());
        }
        if !is_upgrade && outstanding.asked != Asked::Manifest {
            data.manifest = None;
        }
        let delivery = Delivery { request, outstanding, data };
        if let Some(first) = outstanding.depends_on
            && self.outstanding.contains_key(&first)
        {
            self.deferred.entry(first).or_default().push(delivery);
            return Ok(Vec::new());
        }
        let mut ready = vec![delivery];
        let mut at = 0;
        while let Some(delivery) = ready.get(at) {
            let more = self.deferred.remove(&delivery.request);
            ready.extend(more.into_iter().flatten());
            at += 1;
        }
        Ok(ready)
    }

    fn on_no_data(
        &mut self,
        no_data: NoData,
        core: &impl LocalCore,
        downloads: &mut Downloads,
        now: Instant,
    ) {
        let Some(outstanding) = self.outstanding.remove(&no_data.request) else { return };
        self.on_answer(&outstanding, 0, now);
        if self.is_stale(&outstanding, core) {
            // It says nothing of the fork that counts now.
            return self.settle(no_data.request, outstanding.asked, false, downloads);
        }
        if no_data.reason == NoDataReason::InvalidRequest {
            // What was asked relied on something that is no longer so.
            self.refusals += 1;
        }
        self.refuse(no_data.request, &outstanding, downloads);
    }

    fn on_answer(&mut self, outstanding: &Outstanding, bytes: u64, now: Instant) {
        self.last_progress = now;
        self.pipeline.on_answer(&outstanding.sent, bytes, now);
    }

    /// The peer has no answer: it is not asked again before it says that it has more.
    fn refuse(&mut self, request: u64, outstanding: &Outstanding, downloads: &mut Downloads) {
        self.refusals += 1;
        match outstanding.asked {
            Asked::Block { index, .. } => self.bits.set_range(index, 1, false),
            Asked::Upgrade { block, .. } => {
                self.upgrade_refused = true;
                if let Some(block) = block {
                    self.bits.set_range(block, 1, false);
                }
            }
            Asked::Fork { .. } | Asked::Path { .. } => self.refuse_fork(outstanding),
            Asked::Seek { seek, .. } => {
                self.refused_seeks.insert(seek);
            }
            Asked::Manifest | Asked::Check { .. } => {}
        }
        self.settle(request, outstanding.asked, false, downloads);
    }

    /// Whether the peer has refused so often that it is left alone.
    pub(super) fn is_refusing(&self) -> bool {
        self.refusals >= MAX_REFUSALS
    }

    /// Ends a request: its claims are over, and what was waiting for its answer is asked for again.
    pub(super) fn settle(
        &mut self,
        request: u64,
        asked: Asked,
        applied: bool,
        downloads: &mut Downloads,
    ) {
        let block = match asked {
            Asked::Block { index, nodes } => {
                self.expected.remove(request, index, nodes);
                Some(index)
            }
            Asked::Upgrade { block, .. } => {
                downloads.upgrade_done(self.id);
                block
            }
            Asked::Fork { .. } | Asked::Path { .. } => {
                self.settle_fork(applied, downloads);
                None
            }
            Asked::Seek { seek, .. } => {
                downloads.seek_done(self.id, seek);
                None
            }
            Asked::Manifest | Asked::Check { .. } => None,
        };
        match block {
            Some(index) if applied => downloads.fulfilled(self.id, index),
            Some(index) => downloads.release(self.id, index),
            None => {}
        }
        self.convicted |= !applied && matches!(asked, Asked::Check { .. });
        if !applied {
            for delivery in self.deferred.remove(&request).into_iter().flatten() {
                self.settle(delivery.request, delivery.outstanding.asked, false, downloads);
            }
        }
    }
}
