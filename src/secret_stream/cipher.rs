//! libsodium's secretstream over one direction of a connection, encrypted and decrypted in place.

use bytes::{Buf, BytesMut};
use crypto_secretstream::aead::rand_core::{CryptoRng, Error as RngError, RngCore};
use crypto_secretstream::aead::{self, Buffer};
use crypto_secretstream::{Header, Key, PullStream, PushStream, Tag};

use super::{Result, SecretStreamError};
use crate::crypto::{KEY_LENGTH, random};

/// What encryption adds to a message: a tag byte in front and 16 bytes of authentication behind.
pub(super) const OVERHEAD: usize = 17;

/// The length of the header that starts a direction.
pub(super) const HEADER: usize = Header::BYTES;

/// Encrypts what we send.
pub(super) struct Push(PushStream);

impl Push {
    /// Starts the direction; the header goes to the remote in plain text.
    pub(super) fn new(key: &[u8; KEY_LENGTH]) -> (Self, [u8; HEADER]) {
        let (header, stream) = PushStream::init(SystemRandom, &Key::from(*key));
        (Self(stream), *header.as_ref())
    }

    /// Encrypts everything in `out` after `start`, which grows by [`OVERHEAD`] bytes.
    pub(super) fn encrypt(&mut self, out: &mut Vec<u8>, start: usize) -> Result<()> {
        self.0
            .push(&mut Tail { bytes: out, start }, &[], Tag::Message)
            .map_err(|_| SecretStreamError::Decrypt)
    }
}

/// Decrypts what the remote sends.
pub(super) struct Pull(PullStream);

impl Pull {
    /// Starts the direction with the remote's header.
    pub(super) fn new(key: &[u8; KEY_LENGTH], header: [u8; HEADER]) -> Self {
        Self(PullStream::init(Header::from(header), &Key::from(*key)))
    }

    /// Decrypts a whole message in place; it gets [`OVERHEAD`] bytes shorter.
    pub(super) fn decrypt(&mut self, message: &mut BytesMut) -> Result<()> {
        self.0.pull(&mut Whole(message), &[]).map_err(|_| SecretStreamError::Decrypt)?;
        Ok(())
    }
}

/// The end of a vector as the buffer of one message.
struct Tail<'a> {
    bytes: &'a mut Vec<u8>,
    start: usize,
}

impl AsRef<[u8]> for Tail<'_> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

impl AsMut<[u8]> for Tail<'_> {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..]
    }
}

impl Buffer for Tail<'_> {
    fn extend_from_slice(&mut self, other: &[u8]) -> aead::Result<()> {
        self.bytes.extend_from_slice(other);
        Ok(())
    }

    fn truncate(&mut self, length: usize) {
        self.bytes.truncate(self.start.saturating_add(length));
    }
}

/// A received message as a buffer.
struct Whole<'a>(&'a mut BytesMut);

impl AsRef<[u8]> for Whole<'_> {
    fn as_ref(&self) -> &[u8] {
        self.0.chunk()
    }
}

impl AsMut<[u8]> for Whole<'_> {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0[..]
    }
}

impl Buffer for Whole<'_> {
    fn extend_from_slice(&mut self, other: &[u8]) -> aead::Result<()> {
        self.0.extend_from_slice(other);
        Ok(())
    }

    fn truncate(&mut self, length: usize) {
        self.0.truncate(length);
    }
}

/// The crate's randomness in the form that this version of the cipher asks for.
struct SystemRandom;

impl RngCore for SystemRandom {
    fn next_u32(&mut self) -> u32 {
        u32::from_le_bytes(random())
    }

    fn next_u64(&mut self) -> u64 {
        u64::from_le_bytes(random())
    }

    fn fill_bytes(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(32) {
            chunk.copy_from_slice(&random::<32>()[..chunk.len()]);
        }
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), RngError> {
        self.fill_bytes(out);
        Ok(())
    }
}

impl CryptoRng for SystemRandom {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_pushed_is_pulled_and_damage_is_noticed() {
        let (mut push, header) = Push::new(&[1; 32]);
        let mut pull = Pull::new(&[1; 32], header);
        let mut out = b"front".to_vec();
        out.extend_from_slice(b"a message");
        push.encrypt(&mut out, 5).unwrap();
        assert_eq!(&out[..5], b"front");
        assert_eq!(out.len(), 5 + 9 + OVERHEAD);
        let mut message = BytesMut::from(&out[5..]);
        pull.decrypt(&mut message).unwrap();
        assert_eq!(&message[..], b"a message");

        let mut out = b"another".to_vec();
        push.encrypt(&mut out, 0).unwrap();
        out[3] ^= 1;
        assert!(pull.decrypt(&mut BytesMut::from(&out[..])).is_err());
        assert!(pull.decrypt(&mut BytesMut::from(&b"short"[..])).is_err());
    }
}
