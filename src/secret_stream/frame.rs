//! Cutting the raw bytes of a connection into messages, without a socket.
//!
//! A message has its length in front, 3 bytes little-endian. Memory grows with the bytes that arrive
//! and never by the announced length alone; large messages are cut out of the buffer without a copy,
//! small ones are copied so that they do not keep a large buffer alive.

use bytes::{Buf, BytesMut};

use super::{Result, SecretStreamError};

/// The bytes of a length.
pub(super) const LENGTH: usize = 3;

/// How much is read when no long message is under way.
const READ: usize = 16 * 1024;

/// How much is read beyond a long message: what the next one may already have sent.
const LOOKAHEAD: usize = 4 * 1024;

/// A message up to this length is worth allocating for before its bytes arrive: four 64 KiB blocks with
/// their proofs.
const EAGER: usize = 160 * 1024;

/// Messages from this length on are cut out of the buffer, shorter ones are copied.
const CUT: usize = 8 * 1024;

/// Writes the length of a message.
pub(super) fn length_prefix(length: usize) -> [u8; LENGTH] {
    debug_assert!(length <= 0xff_ffff, "the sender checks lengths");
    let [a, b, c, ..] = (length as u32).to_le_bytes();
    [a, b, c]
}

/// Collects bytes and gives whole messages.
#[derive(Debug)]
pub(super) struct Frames {
    bytes: BytesMut,
    limit: usize,
}

impl Frames {
    /// Refuses messages longer than `limit` bytes on the wire.
    pub(super) fn new(limit: usize) -> Self {
        Self { bytes: BytesMut::new(), limit }
    }

    /// The next whole message.
    ///
    /// # Errors
    /// `TooLong` as soon as a length above the limit is seen.
    pub(super) fn next(&mut self) -> Result<Option<BytesMut>> {
        let Some(length) = self.announced() else { return Ok(None) };
        if length > self.limit {
            return Err(SecretStreamError::TooLong { length, limit: self.limit });
        }
        if self.bytes.len() < LENGTH + length {
            return Ok(None);
        }
        self.bytes.advance(LENGTH);
        if length >= CUT {
            let message = self.bytes.split_to(length);
            if length > 2 * EAGER {
                // Otherwise the next read would take over the large buffer and keep it.
                self.bytes = BytesMut::from(&self.bytes[..]);
            }
            return Ok(Some(message));
        }
        let message = BytesMut::from(&self.bytes[..length]);
        self.bytes.advance(length);
        Ok(Some(message))
    }

    /// Where to read to: returns the buffer with room, and how many bytes may be appended to it.
    /// To be called when [`next`](Self::next) has no message.
    pub(super) fn room(&mut self) -> (&mut BytesMut, usize) {
        let missing = match self.announced() {
            Some(length) => (LENGTH + length).saturating_sub(self.bytes.len()),
            None => 0,
        };
        let want = if missing > READ { missing + LOOKAHEAD } else { READ };
        // Grow at most to double of what arrived, so that a claimed length allocates little.
        let want = want.min(self.bytes.len().max(EAGER));
        if self.bytes.capacity() - self.bytes.len() < want {
            if want <= READ {
                self.bytes.reserve(want);
            } else {
                // Just what it takes: growing by doubling would leave half of the buffer unused for as
                // long as the message lives.
                let mut exact = BytesMut::with_capacity(self.bytes.len() + want);
                exact.extend_from_slice(&self.bytes);
                self.bytes = exact;
            }
        }
        (&mut self.bytes, want)
    }

    /// Whether the bytes end between two messages.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn announced(&self) -> Option<usize> {
        let &[a, b, c] = self.bytes.first_chunk::<LENGTH>()?;
        Some(u32::from_le_bytes([a, b, c, 0]) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn feed(frames: &mut Frames, mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        loop {
            while let Some(message) = frames.next().unwrap() {
                out.push(message.to_vec());
            }
            if bytes.is_empty() {
                return out;
            }
            let (buffer, want) = frames.room();
            let count = want.min(bytes.len());
            buffer.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
        }
    }

    #[test]
    fn an_announced_length_allocates_little() {
        let mut frames = Frames::new(0xff_ffff);
        let (buffer, _) = frames.room();
        buffer.extend_from_slice(&[0xff, 0xff, 0xff, 1]);
        assert!(frames.next().unwrap().is_none());
        let (buffer, want) = frames.room();
        assert!(want <= EAGER && buffer.capacity() <= 2 * EAGER);
    }

    #[test]
    fn a_length_above_the_limit_is_refused_at_once() {
        let mut frames = Frames::new(1000);
        frames.room().0.extend_from_slice(&length_prefix(1001));
        assert!(matches!(frames.next(), Err(SecretStreamError::TooLong { length: 1001, .. })));
    }

    proptest! {
        #[test]
        fn messages_survive_any_cutting(
            lengths in proptest::collection::vec(0usize..40_000, 0..12),
            cuts in proptest::collection::vec(1usize..30_000, 1..40),
        ) {
            let mut wire = Vec::new();
            let messages: Vec<Vec<u8>> =
                lengths.iter().enumerate().map(|(i, &n)| vec![i as u8; n]).collect();
            for message in &messages {
                wire.extend_from_slice(&length_prefix(message.len()));
                wire.extend_from_slice(message);
            }
            let mut frames = Frames::new(0xff_ffff);
            let mut out = Vec::new();
            let mut rest = &wire[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let count = (*cut).min(rest.len());
                out.extend(feed(&mut frames, &rest[..count]));
                rest = &rest[count..];
            }
            prop_assert_eq!(out, messages);
            prop_assert!(frames.is_empty());
        }
    }
}
