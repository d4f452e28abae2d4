//! What a peer is asked for: an upgrade when it is longer, then blocks, many in flight.

use std::time::{Duration, Instant};

use super::hotswap::Pace;
use super::local::LocalCore;
use super::peer::{Peer, head_of};
use super::requests::{Asked, Downloads, Outstanding};
use crate::hypercore::messages::{
    Message, Request, RequestNode, RequestSeek, RequestUpgrade, Want,
};

/// How many requests may be in flight at least, at most, and at most over a long distance.
const WINDOW: std::ops::RangeInclusive<u64> = 4..=512;
const WINDOW_FAR: u64 = 2048;
/// From this round trip on, `WINDOW` grows with the distance.
const NEAR: Duration = Duration::from_millis(50);
/// Without any answer for so long, what was asked is taken back and asked of others.
pub(super) const STALL: Duration = Duration::from_secs(15);
/// How long a peer that stalled rests, doubled with every time.
const REST: Duration = Duration::from_secs(5);
/// Blocks a want covers, as in npm hypercore.
const WANT_BLOCKS: u64 = 2_097_152;
/// The most wants that stand at once, as in npm hypercore.
const MAX_WANTED: usize = 512;

impl Peer {
    /// Lets time pass, asks for what is missing and tells what is new. The messages are to be sent in
    /// this order.
    pub(super) fn poll(
        &mut self,
        core: &impl LocalCore,
        downloads: &mut Downloads,
        now: Instant,
    ) -> Vec<Message> {
        self.check_stall(downloads, now);
        self.cancel_beaten(downloads);
        self.announce(core);
        self.schedule(core, downloads, now);
        std::mem::take(&mut self.out)
    }

    /// When [`Self::poll`] has something to do though no message came.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let stall = (!self.outstanding.is_empty()).then(|| self.last_progress + STALL);
        stall.into_iter().chain(self.resting_until).chain(self.next_swap).min()
    }

    /// Whether another [`Self::poll`] has something to put out at once.
    pub(super) fn has_more(&self) -> bool {
        self.role.uploading && !self.wants.is_empty()
    }

    fn check_stall(&mut self, downloads: &mut Downloads, now: Instant) {
        if self.resting_until.is_some_and(|until| until <= now) {
            self.resting_until = None;
        }
        let since = now.saturating_duration_since(self.last_progress);
        if self.outstanding.is_empty() || since < STALL {
            return;
        }
        for (request, outstanding) in std::mem::take(&mut self.outstanding) {
            self.cancels += 1;
            self.out.push(Message::Cancel(request));
            self.settle(request, outstanding.asked, false, downloads);
        }
        self.resting_until = Some(now + REST * (1 << self.stalls.min(4)));
        self.stalls += 1;
        self.scan.restart();
    }

    fn schedule(&mut self, core: &impl LocalCore, downloads: &mut Downloads, now: Instant) {
        self.next_swap = self.next_swap.filter(|next| now < *next);
        let Some(remote) = self.remote else { return };
        self.notice_fork(core, downloads);
        if remote.fork > core.fork() {
            return self.follow_fork(remote, core, downloads, now);
        }
        let willing = remote.uploading && remote.fork == core.fork();
        let proof_wanted = self.proof_wanted == head_of(&remote);
        let doubtful = core.is_writer() || self.suspicion.is_some() || proof_wanted;
        if willing && doubtful && remote.length > 0 && !self.checked {
            self.checked = true;
            let (ours, theirs) = (core.length(), remote.length);
            if theirs <= ours || self.suspicion.is_some() {
                self.ask(Asked::Check { length: theirs.min(ours) }, None, false, core, now);
            } else if downloads.claim_upgrade(self.id) {
                let beyond = Asked::Upgrade { start: ours, length: theirs - ours, block: None };
                self.ask(beyond, None, false, core, now);
            }
        }
        if !self.role.downloading || !willing || self.is_refusing() || self.resting_until.is_some()
        {
            return;
        }
        let length = core.length();
        if remote.length == 0
            && remote.has_manifest
            && core.needs_manifest()
            && !self.manifest_asked
        {
            self.manifest_asked = true;
            self.ask(Asked::Manifest, None, true, core, now);
        }
        if remote.length > length
            && remote.can_upgrade
            && remote.remote_length == length
            && !self.upgrade_refused
            && downloads.claim_upgrade(self.id)
        {
            // The first new block comes along: for a live append, one round trip instead of two.
            let comes_along = self.bits.has(length) && downloads.claim(self.id, core, length, now);
            let block = comes_along.then_some(length);
            let upgrade = Asked::Upgrade { start: length, length: remote.length - length, block };
            let manifest = core.needs_manifest() && remote.has_manifest;
            self.ask(upgrade, None, manifest, core, now);
        }
        // A peer that is behind proves blocks by its own, shorter tree.
        let end = match remote.length {
            ahead if ahead >= length => length,
            behind if core.can_upgrade_from(behind) => behind,
            _ => 0,
        };
        if !downloads.seeks.is_empty() {
            self.seek(core, downloads, end, now);
        }
        let pace = Pace { rate: self.pipeline.rate(), answered_at: self.last_progress };
        downloads.note_pace(self.id, pace);
        let window = self.window(core);
        loop {
            let room = window.saturating_sub(self.outstanding.len() as u64);
            if room == 0 {
                break;
            }
            let next = downloads.claim_next(self.id, core, &self.bits, &mut self.scan, end, now);
            let Some(index) = next else {
                self.hotswap(core, downloads, end, room, now);
                break;
            };
            let (nodes, depends_on) = self.expected.plan(core, index);
            self.ask(Asked::Block { index, nodes }, depends_on, false, core, now);
            if downloads.is_urgent(index) {
                self.hurry();
            }
        }
        self.want_unknown(core, downloads, end);
        self.bits.forget_below(core.contiguous_length());
    }

    pub(super) fn ask(
        &mut self,
        asked: Asked,
        depends_on: Option<u64>,
        manifest: bool,
        core: &impl LocalCore,
        now: Instant,
    ) {
        let id = self.next_id;
        self.next_id += 1;
        let fork = match (asked, &self.remote) {
            (Asked::Fork { .. } | Asked::Path { .. }, Some(remote)) => remote.fork,
            _ => core.fork(),
        };
        let mut request = Request { id, fork, manifest, ..Request::default() };
        match asked {
            Asked::Block { index, nodes } => {
                request.block = Some(RequestNode { index, nodes });
                self.expected.add(id, index, nodes);
            }
            Asked::Upgrade { start, length, block } => {
                request.upgrade = Some(RequestUpgrade { start, length });
                request.block = block.map(|index| RequestNode { index, nodes: 0 });
            }
            Asked::Check { length } | Asked::Fork { length } => {
                request.upgrade = Some(RequestUpgrade { start: 0, length });
            }
            Asked::Path { index, levels } => {
                request.hash = Some(RequestNode { index: 2 * index, nodes: levels });
            }
            Asked::Seek { bytes, index, nodes, .. } => {
                request.hash = Some(RequestNode { index: 2 * index, nodes });
                request.seek = self.seeks.then_some(RequestSeek { bytes, padding: 0 });
            }
            Asked::Manifest => {}
        }
        if self.outstanding.is_empty() {
            self.last_progress = now;
        }
        let sent = self.pipeline.on_sent(now);
        self.outstanding
            .insert(id, Outstanding { asked, fork, depends_on, sent, is_hotswap: false });
        self.out.push(Message::Request(request));
    }

    /// Lets the request that was put out last be answered before others.
    fn hurry(&mut self) {
        if let Some(Message::Request(request)) = self.out.last_mut() {
            request.priority = 1;
        }
    }

    /// How many requests may be in flight: as many as fill the byte budget by the core's average
    /// block, within bounds that grow with the distance.
    fn window(&self, core: &impl LocalCore) -> u64 {
        let average = core.byte_length() / core.length().max(1);
        let by_bytes = self.pipeline.window() / average.max(1);
        let far = self.pipeline.distance().as_millis() / NEAR.as_millis();
        let most = WINDOW.end().saturating_mul(far.clamp(1, 4) as u64).min(WINDOW_FAR);
        by_bytes.clamp(*WINDOW.start(), most)
    }

    /// Asks which of the blocks that are wanted the peer has, where it has not said that it has all.
    fn want_unknown(&mut self, core: &impl LocalCore, downloads: &Downloads, end: u64) {
        let known = self.bits.contiguous().max(core.contiguous_length());
        let mut at = known;
        while let Some(next) = downloads.wanted().next(at).filter(|next| *next < end) {
            let segment = next / WANT_BLOCKS;
            if !self.want_segment(segment, downloads, known) {
                return;
            }
            at = (segment + 1) * WANT_BLOCKS;
        }
        for (_, bytes) in downloads.seeks.bytes() {
            let Some(range) = core.seek(bytes).filter(|range| range.end > known) else { continue };
            if range.start < end && !self.want_segment(range.start / WANT_BLOCKS, downloads, known)
            {
                return;
            }
        }
    }

    /// Asks which blocks of a segment the peer has; false when there are too many to ask for.
    fn want_segment(&mut self, segment: u64, downloads: &Downloads, known: u64) -> bool {
        if self.wanted.contains(&segment) {
            return true;
        }
        if self.wanted.len() >= MAX_WANTED {
            let needless = |segment: &u64| {
                let (start, end) = (segment * WANT_BLOCKS, (segment + 1) * WANT_BLOCKS);
                let next = downloads.wanted().next(start.max(known));
                next.is_none_or(|next| next >= end)
            };
            let Some(other) = self.wanted.iter().copied().find(needless) else { return false };
            self.wanted.remove(&other);
            self.out.push(Message::Unwant(segment_want(other)));
        }
        self.wanted.insert(segment);
        self.out.push(Message::Want(segment_want(segment)));
        true
    }
}

fn segment_want(segment: u64) -> Want {
    Want { start: segment * WANT_BLOCKS, length: WANT_BLOCKS, any: false }
}
