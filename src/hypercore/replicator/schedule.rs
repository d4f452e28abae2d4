//! What a peer is asked for: an upgrade when it is longer, then blocks, many in flight.

use std::time::{Duration, Instant};

use super::local::LocalCore;
use super::peer::Peer;
use super::requests::{Asked, Downloads, Outstanding};
use crate::hypercore::messages::{Message, Request, RequestNode, RequestUpgrade, Want};

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
/// The most wants that are sent over the life of a channel.
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
        self.announce(core);
        self.schedule(core, downloads, now);
        std::mem::take(&mut self.out)
    }

    /// When [`Self::poll`] has something to do though no message came.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let stall = (!self.outstanding.is_empty()).then(|| self.last_progress + STALL);
        stall.into_iter().chain(self.resting_until).min()
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
            self.out.push(Message::Cancel(request));
            self.settle(request, outstanding.asked, false, downloads);
        }
        self.resting_until = Some(now + REST * (1 << self.stalls.min(4)));
        self.stalls += 1;
        self.scan.restart();
    }

    fn schedule(&mut self, core: &impl LocalCore, downloads: &mut Downloads, now: Instant) {
        let Some(remote) = self.remote else { return };
        let willing = remote.uploading && remote.fork == core.fork();
        let proof_wanted = self.proof_wanted == remote.length;
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
            let block =
                (self.bits.has(length) && downloads.claim(self.id, core, length)).then_some(length);
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
        let window = self.window(core);
        while (self.outstanding.len() as u64) < window {
            let next = downloads.claim_next(self.id, core, &self.bits, &mut self.scan, end);
            let Some(index) = next else { break };
            let (nodes, depends_on) = self.expected.plan(core, index);
            self.ask(Asked::Block { index, nodes }, depends_on, false, core, now);
        }
        self.want_unknown(core, end);
        self.bits.forget_below(core.contiguous_length());
    }

    fn ask(
        &mut self,
        asked: Asked,
        depends_on: Option<u64>,
        manifest: bool,
        core: &impl LocalCore,
        now: Instant,
    ) {
        let id = self.next_id;
        self.next_id += 1;
        let mut request = Request { id, fork: core.fork(), manifest, ..Request::default() };
        match asked {
            Asked::Block { index, nodes } => {
                request.block = Some(RequestNode { index, nodes });
                self.expected.add(id, index, nodes);
            }
            Asked::Upgrade { start, length, block } => {
                request.upgrade = Some(RequestUpgrade { start, length });
                request.block = block.map(|index| RequestNode { index, nodes: 0 });
            }
            Asked::Check { length } => {
                request.upgrade = Some(RequestUpgrade { start: 0, length });
            }
            Asked::Manifest => {}
        }
        if self.outstanding.is_empty() {
            self.last_progress = now;
        }
        self.outstanding
            .insert(id, Outstanding { asked, depends_on, sent: self.pipeline.on_sent(now) });
        self.out.push(Message::Request(request));
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

    /// Asks which blocks the peer has where it has not said that it has all.
    fn want_unknown(&mut self, core: &impl LocalCore, end: u64) {
        let known = self.bits.contiguous().max(core.contiguous_length());
        let mut segment = known / WANT_BLOCKS;
        while known < end && segment * WANT_BLOCKS < end && self.wanted.len() < MAX_WANTED {
            if self.wanted.insert(segment) {
                self.out.push(Message::Want(Want {
                    start: segment * WANT_BLOCKS,
                    length: WANT_BLOCKS,
                    any: false,
                }));
            }
            segment += 1;
        }
    }
}
