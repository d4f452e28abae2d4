//! A queue of bytes that is read by absolute position: what is written stays until it is released.

use std::collections::VecDeque;
use std::sync::Mutex;

use crate::sync::lock;

/// Bytes a chunk. All chunks but the last are full, so that a position gives its chunk.
const CHUNK: usize = 64 << 10;

/// After how many chunks given back those are freed that nobody needed meanwhile: 16 MiB of a stream.
const REVIEW: usize = 256;

/// Chunks to use again. The allocator would give them back to the system and get them anew, page by page,
/// whenever a queue has run empty: an eighth of the processor time of a fast stream.
struct Spare {
    chunks: Vec<Vec<u8>>,
    /// The fewest that were there since the last review.
    fewest: usize,
    given_back: usize,
}

static SPARE: Mutex<Spare> = Mutex::new(Spare { chunks: Vec::new(), fewest: 0, given_back: 0 });

impl Spare {
    fn take(&mut self) -> Vec<u8> {
        let chunk = self.chunks.pop().unwrap_or_else(|| Vec::with_capacity(CHUNK));
        self.fewest = self.fewest.min(self.chunks.len());
        chunk
    }

    /// Takes chunks as long as there are fewer than `most`.
    fn give_back(&mut self, most: usize, chunks: impl Iterator<Item = Vec<u8>>) {
        for mut chunk in chunks.filter(|chunk| chunk.capacity() == CHUNK) {
            self.given_back += 1;
            if self.chunks.len() < most {
                chunk.clear();
                self.chunks.push(chunk);
            }
        }
        if self.given_back >= REVIEW {
            self.given_back = 0;
            self.chunks.truncate(self.chunks.len() - self.fewest);
            self.fewest = self.chunks.len();
        }
    }
}

/// Bytes `start..end` of a stream, counted from its beginning.
#[derive(Debug)]
pub(super) struct ByteQueue {
    /// Its chunks are kept for later while there are fewer than this.
    spare: usize,
    chunks: VecDeque<Vec<u8>>,
    /// The position of the first byte of the first chunk.
    base: u64,
    /// The position of the first byte that is not released.
    start: u64,
    /// The position after the last byte.
    end: u64,
}

impl ByteQueue {
    /// An empty queue, whose chunks are used again as long as there are no more than `spare`, in the whole
    /// process, that nobody uses.
    pub(super) const fn new(spare: usize) -> Self {
        Self { spare, chunks: VecDeque::new(), base: 0, start: 0, end: 0 }
    }

    /// Bytes held.
    pub(super) const fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.end == self.start
    }

    /// The position after the last byte held.
    pub(super) const fn end(&self) -> u64 {
        self.end
    }

    /// Appends `data`.
    pub(super) fn push(&mut self, mut data: &[u8]) {
        self.end += data.len() as u64;
        while !data.is_empty() {
            let continued = !self.chunks.is_empty();
            if self.chunks.back().is_none_or(|chunk| chunk.len() == CHUNK) {
                // A stream of many bytes gets whole chunks, a small one only what it needs.
                self.chunks.push_back(if continued { lock(&SPARE).take() } else { Vec::new() });
            }
            let Some(last) = self.chunks.back_mut() else { return };
            let (fits, rest) = data.split_at(data.len().min(CHUNK - last.len()));
            last.extend_from_slice(fits);
            data = rest;
        }
    }

    /// Calls `take` with the bytes of `position..position + length` that are held, in order.
    pub(super) fn visit(&self, position: u64, length: usize, mut take: impl FnMut(&[u8])) {
        let mut at = position.max(self.start);
        let end = position.saturating_add(length as u64).min(self.end);
        while at < end {
            let offset = (at - self.base) as usize;
            let (index, within) = (offset / CHUNK, offset % CHUNK);
            let wanted = ((end - at) as usize).min(CHUNK - within);
            let chunk = self.chunks.get(index).and_then(|c| c.get(within..within + wanted));
            let Some(part) = chunk else { return };
            take(part);
            at += wanted as u64;
        }
    }

    /// Moves the first bytes out to `take`, in order and `most` at most, and returns how many.
    pub(super) fn read(&mut self, most: usize, mut take: impl FnMut(&[u8])) -> usize {
        let mut taken = 0;
        self.visit(self.start, most, |part| {
            take(part);
            taken += part.len();
        });
        self.release(self.start + taken as u64);
        taken
    }

    /// Lets go of everything before `position`.
    pub(super) fn release(&mut self, position: u64) {
        self.start = position.clamp(self.start, self.end);
        let passed = ((self.start - self.base) as usize / CHUNK).min(self.chunks.len());
        if passed > 0 {
            self.base += (passed * CHUNK) as u64;
            lock(&SPARE).give_back(self.spare, self.chunks.drain(..passed));
        }
        if self.is_empty() {
            self.base = self.start;
            self.chunks.truncate(1);
            if let Some(chunk) = self.chunks.front_mut() {
                chunk.clear();
            }
        }
    }
}

impl Drop for ByteQueue {
    fn drop(&mut self) {
        if !self.chunks.is_empty() {
            lock(&SPARE).give_back(self.spare, self.chunks.drain(..));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in_across_chunks() {
        let data: Vec<u8> = (0..400_000u32).map(|n| (n % 251) as u8).collect();
        let mut queue = ByteQueue::new(4);
        let mut out = Vec::new();
        for piece in data.chunks(17_003) {
            queue.push(piece);
            if out.len() < queue.end() as usize / 2 {
                queue.read(30_011, |part| out.extend_from_slice(part));
            }
        }
        while !queue.is_empty() {
            queue.read(30_011, |part| out.extend_from_slice(part));
        }
        assert!(out == data);
    }

    #[test]
    fn bytes_are_found_by_position_until_they_are_released() {
        let data: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
        let mut queue = ByteQueue::new(4);
        queue.push(&data);
        queue.release(70_000);
        let mut found = Vec::new();
        queue.visit(60_000, 100_000, |part| found.extend_from_slice(part));
        assert!(found == data[70_000..160_000]);
    }

    #[test]
    fn chunks_are_used_again_and_those_that_nobody_needs_are_freed() {
        let chunks = |count| (0..count).map(|_| Vec::with_capacity(CHUNK));
        let mut spare = Spare { chunks: Vec::new(), fewest: 0, given_back: 0 };
        spare.give_back(20, chunks(30).chain([vec![1; 5]]));
        assert_eq!(spare.chunks.len(), 20);
        for _ in 0..2 * REVIEW {
            let mut taken: Vec<_> = (0..6).map(|_| spare.take()).collect();
            taken.iter_mut().for_each(|chunk| chunk.extend_from_slice(b"used"));
            spare.give_back(20, taken.into_iter());
        }
        assert_eq!(spare.chunks.len(), 6);
        assert!(spare.take().is_empty());
    }

    #[test]
    fn released_chunks_are_freed() {
        let mut queue = ByteQueue::new(4);
        queue.push(&vec![1; 10 * CHUNK]);
        queue.release(9 * CHUNK as u64 + 5);
        assert_eq!((queue.chunks.len(), queue.len()), (1, CHUNK - 5));
        queue.release(u64::MAX);
        assert!(queue.is_empty());
        queue.push(b"on");
        let mut out = Vec::new();
        assert_eq!(queue.read(4, |part| out.extend_from_slice(part)), 2);
        assert_eq!(out, b"on");
    }
}
