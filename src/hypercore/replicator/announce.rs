//! What a peer is told about our side of a core: length, blocks, and answers to its wants.

use super::local::LocalCore;
use super::peer::Peer;
use crate::hypercore::messages::{Bitfield, MAX_BITFIELD_WORDS, Message, Range, Sync};

/// The most runs of blocks beyond the contiguous ones that wait to be announced.
const MAX_HAVES: usize = 64;
/// The last blocks of a log are told of to everybody, as in npm hypercore.
const LAST_BLOCKS: u64 = 256;

impl Peer {
    /// Blocks that arrived beyond the contiguous ones, to be announced.
    pub(super) fn have(&mut self, start: u64, length: u64) {
        if let Some((last, count)) = self.haves.last_mut()
            && *last + *count == start
        {
            *count += length;
        } else if self.haves.len() < MAX_HAVES {
            self.haves.push((start, length));
        } else {
            // Too many to tell one by one: what the peer wants to know is answered anew.
            self.haves.clear();
            self.wants = self.remote_wants.iter().collect();
        }
    }

    /// Blocks that are not here any more.
    pub(super) fn dropped(&mut self, start: u64, length: u64) {
        let announced = self.announced;
        self.announced = announced.min(start);
        self.haves.retain(|(at, count)| at + count <= start || *at >= start + length);
        if self.role.uploading && self.sent_sync.is_some() {
            self.out.push(Message::Range(Range { drop: true, start, length }));
            // A JavaScript peer forgets what was contiguous and lies behind the gap.
            if announced > start + length {
                self.put_range(start + length, announced - start - length);
            }
        }
    }

    /// Puts out what the peer does not know of us yet.
    pub(super) fn announce(&mut self, core: &impl LocalCore) {
        if let Some(sent) = self.sent_sync
            && sent.fork != core.fork()
        {
            self.announce_cut(core.common_since(sent.fork));
        }
        let sync = self.sync(core);
        if self.must_send(&sync) {
            self.have_behind_gap(core);
            self.sent_sync = Some(sync);
            self.out.push(Message::Sync(sync));
        }
        if !self.role.uploading {
            self.announced = 0;
            self.haves.clear();
            self.wants.clear();
            return;
        }
        let contiguous = core.contiguous_length().min(core.length());
        if contiguous > self.announced {
            self.announced = contiguous;
            // A peer that has them all is told only when we have the whole log, as in the reference.
            if contiguous == core.length() || self.bits.contiguous() < contiguous {
                self.put_range(0, contiguous);
            }
        }
        for (start, length) in std::mem::take(&mut self.haves) {
            let is_of_use = start + length > contiguous
                && self.remote.is_none_or(|remote| remote.downloading)
                && (start + LAST_BLOCKS >= core.length()
                    || self.remote_wants.covers(start, length));
            if is_of_use {
                self.put_range(start, length);
            }
        }
        // One at a time: each may take as long as a bitfield is.
        if let Some(want) = self.wants.pop_front() {
            self.answer_want(want.start, want.length, want.any, core);
        }
    }

    /// What was appended since the last message is not told by the contiguous length when blocks before it
    /// were cleared.
    fn have_behind_gap(&mut self, core: &impl LocalCore) {
        let Some(sent) = self.sent_sync.filter(|sent| sent.fork == core.fork()) else { return };
        if core.contiguous_length() >= sent.length {
            return;
        }
        let mut at = sent.length;
        while let Some(block) = core.next_present(at).filter(|block| *block < core.length()) {
            self.have(block, 1);
            at = block + 1;
        }
    }

    fn sync(&self, core: &impl LocalCore) -> Sync {
        let known = self.remote.filter(|remote| remote.fork == core.fork());
        let remote_length = known.map_or(0, |remote| remote.length);
        let same_fork = self.remote.is_none() || known.is_some();
        Sync {
            fork: core.fork(),
            length: core.length(),
            remote_length,
            can_upgrade: same_fork && core.can_upgrade_from(remote_length),
            uploading: self.role.uploading,
            downloading: self.role.downloading,
            has_manifest: core.has_manifest(),
            allow_push: false,
        }
    }

    /// A peer that is as long as we are or longer has no use for hearing its own length.
    fn must_send(&self, now: &Sync) -> bool {
        let Some(sent) = self.sent_sync else { return true };
        let told = Sync { remote_length: now.remote_length, can_upgrade: now.can_upgrade, ..sent };
        told != *now || now.length > now.remote_length && sent != *now
    }

    /// What was said of blocks from `common` on is not so any more.
    fn announce_cut(&mut self, common: u64) {
        if self.told > common {
            let length = self.told - common;
            self.out.push(Message::Range(Range { drop: true, start: common, length }));
        }
        self.told = self.told.min(common);
        self.announced = self.announced.min(common);
        self.haves.retain(|(start, length)| start + length <= common);
    }

    fn put_range(&mut self, start: u64, length: u64) {
        self.told = self.told.max(start + length);
        self.out.push(Message::Range(Range { drop: false, start, length }));
    }

    fn answer_want(&mut self, start: u64, length: u64, any: bool, core: &impl LocalCore) {
        let contiguous = core.contiguous_length().min(core.length());
        let end = start.saturating_add(length).min(core.length());
        if contiguous == core.length() || end <= contiguous || any && start < contiguous {
            if contiguous > 0 {
                self.put_range(0, contiguous);
            }
            return;
        }
        if any {
            if let Some(first) = core.next_present(start).filter(|first| *first < end) {
                self.put_range(first, 1);
            }
            return;
        }
        let start = start / 32 * 32;
        let end = end.min(start + MAX_BITFIELD_WORDS as u64 * 32);
        let count = end.saturating_sub(start).div_ceil(32) as usize;
        let words = core.bitfield_words(start, count);
        self.told = self.told.max(start + words.len() as u64 * 32);
        if words.iter().any(|word| *word != 0) {
            self.out.push(Message::Bitfield(Bitfield { start, words }));
        }
    }
}
