//! Looking for a byte: which block it is in, found with hashes that peers send.
//!
//! As `ByteSeeker` and `_requestSeek` in npm hypercore: the deepest known tree node that the byte is
//! below gives a range of blocks; a peer that has any of them sends the hashes from that block up to
//! the node, and those on the way to the byte. That may take several rounds.

use std::collections::BTreeMap;
use std::time::Instant;

use super::local::LocalCore;
use super::peer::Peer;
use super::requests::{Asked, Downloads, PeerId};

/// The bytes that somebody looks for.
#[derive(Debug, Default)]
pub(super) struct Seeks {
    open: BTreeMap<u64, Seek>,
    last_id: u64,
}

#[derive(Debug)]
struct Seek {
    bytes: u64,
    /// Who was asked; one at a time, as each answer makes the range smaller.
    asked_of: Option<PeerId>,
}

impl Seeks {
    /// Looks for a byte until the id that is returned is removed.
    pub(super) fn add(&mut self, bytes: u64) -> u64 {
        self.last_id += 1;
        self.open.insert(self.last_id, Seek { bytes, asked_of: None });
        self.last_id
    }

    /// Looks for a byte no more.
    pub(super) fn remove(&mut self, id: u64) {
        self.open.remove(&id);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// The bytes that are looked for, with their ids.
    pub(super) fn bytes(&self) -> impl Iterator<Item = (u64, u64)> {
        self.open.iter().map(|(id, seek)| (*id, seek.bytes))
    }

    fn unasked(&self) -> Vec<(u64, u64)> {
        let open = self.open.iter().filter(|(_, seek)| seek.asked_of.is_none());
        open.map(|(id, seek)| (*id, seek.bytes)).collect()
    }

    fn ask(&mut self, id: u64, peer: PeerId) {
        if let Some(seek) = self.open.get_mut(&id) {
            seek.asked_of = Some(peer);
        }
    }

    /// The peer has answered, or will not; whether it was asked.
    pub(super) fn answered(&mut self, id: u64, peer: PeerId) -> bool {
        self.open.get_mut(&id).is_some_and(|seek| seek.asked_of.take_if(|of| *of == peer).is_some())
    }

    /// The peer is gone; whether it was asked for anything.
    pub(super) fn release(&mut self, peer: PeerId) -> bool {
        let released =
            self.open.values_mut().filter_map(|seek| seek.asked_of.take_if(|of| *of == peer));
        released.count() > 0
    }
}

impl Peer {
    /// Asks for the way to bytes that nobody was asked for.
    pub(super) fn seek(
        &mut self,
        core: &impl LocalCore,
        downloads: &mut Downloads,
        end: u64,
        now: Instant,
    ) {
        for (seek, bytes) in downloads.seeks.unasked() {
            let Some(range) = core.seek(bytes) else { continue };
            if self.refused_seeks.contains(&seek) {
                continue;
            }
            let mut at = range.start;
            let last = range.end.min(end);
            let found = loop {
                match self.bits.next_set(core.next_missing(at), last) {
                    Some(index) if core.has(index) => at = index + 1,
                    found => break found,
                }
            };
            let Some(index) = found else { continue };
            downloads.seeks.ask(seek, self.id);
            let nodes = u64::from((range.end - range.start).ilog2());
            self.ask(Asked::Seek { seek, bytes, index, nodes }, None, false, core, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seek_is_asked_of_one_peer_until_it_answers_or_leaves() {
        let mut seeks = Seeks::default();
        let id = seeks.add(70);
        assert_eq!(seeks.unasked(), [(id, 70)]);
        seeks.ask(id, PeerId(1));
        assert!(seeks.unasked().is_empty());
        assert!(!seeks.answered(id, PeerId(2)) && seeks.answered(id, PeerId(1)));
        seeks.ask(id, PeerId(2));
        assert!(!seeks.release(PeerId(1)) && seeks.release(PeerId(2)));
        assert_eq!(seeks.unasked(), [(id, 70)]);
        seeks.remove(id);
        assert!(seeks.is_empty());
    }
}
