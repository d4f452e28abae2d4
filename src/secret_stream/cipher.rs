//! libsodium's `crypto_secretstream_xchacha20poly1305` over one direction of a connection, encrypted
//! and decrypted in place.
//!
//! A message is a tag byte, the text and 16 bytes of authentication. Its keystream is one run of
//! ChaCha20: a block for the Poly1305 key, a block that encrypts the tag, then the text's. Written on
//! the ciphers themselves, and not on the `crypto_secretstream` crate, because it moves no bytes and
//! can use AVX-512, with which ChaCha20 is four times as fast.

use bytes::{Buf, BytesMut};
use chacha20::cipher::{KeyIvInit, StreamCipher};
use chacha20::{ChaCha20, R20, hchacha};
use poly1305::Poly1305;
use poly1305::universal_hash::{KeyInit, UniversalHash};
use subtle::ConstantTimeEq;

use super::{Result, SecretStreamError};
use crate::crypto::{KEY_LENGTH, random};

/// What encryption adds to a message: a tag byte in front and 16 bytes of authentication behind.
pub(super) const OVERHEAD: usize = 1 + MAC;

/// The length of the header that starts a direction.
pub(super) const HEADER: usize = 24;

const MAC: usize = 16;
const BLOCK: usize = 64;

/// The tag of an ordinary message, the only one that the JavaScript stack sends.
const TAG_MESSAGE: u8 = 0;

/// The bit of a tag after which both sides change keys.
const TAG_REKEY: u8 = 2;

/// The state that both ends of a direction share.
struct State {
    key: [u8; KEY_LENGTH],
    /// Counts messages; 0 is never used.
    counter: u32,
    nonce: [u8; 8],
}

impl State {
    fn new(key: &[u8; KEY_LENGTH], header: &[u8; HEADER]) -> Self {
        let mut input = [0; 16];
        input.copy_from_slice(&header[..16]);
        let mut nonce = [0; 8];
        nonce.copy_from_slice(&header[16..]);
        Self { key: hchacha::<R20>(&(*key).into(), &input.into()).into(), counter: 1, nonce }
    }

    fn cipher(&self) -> ChaCha20 {
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&self.counter.to_le_bytes());
        nonce[4..].copy_from_slice(&self.nonce);
        ChaCha20::new(&self.key.into(), &nonce.into())
    }

    /// The cipher at the start of the text, the key for authentication, and the block that starts
    /// with `tag` after encryption.
    fn start(&self, tag: u8) -> (ChaCha20, Poly1305, [u8; BLOCK]) {
        let mut cipher = self.cipher();
        let mut blocks = [0; 2 * BLOCK];
        blocks[BLOCK] = tag;
        cipher.apply_keystream(&mut blocks);
        let (mut key, mut block) = ([0; 32], [0; BLOCK]);
        key.copy_from_slice(&blocks[..32]);
        block.copy_from_slice(&blocks[BLOCK..]);
        (cipher, Poly1305::new(&key.into()), block)
    }

    /// Goes on to the next message.
    fn advance(&mut self, mac: &[u8; MAC], tag: u8) {
        for (byte, other) in self.nonce.iter_mut().zip(mac) {
            *byte ^= other;
        }
        self.counter = self.counter.wrapping_add(1);
        if tag & TAG_REKEY != 0 || self.counter == 0 {
            let mut both = [0; KEY_LENGTH + 8];
            both[..KEY_LENGTH].copy_from_slice(&self.key);
            both[KEY_LENGTH..].copy_from_slice(&self.nonce);
            self.cipher().apply_keystream(&mut both);
            self.key.copy_from_slice(&both[..KEY_LENGTH]);
            self.nonce.copy_from_slice(&both[KEY_LENGTH..]);
            self.counter = 1;
        }
    }
}

/// Authenticates the tag's block and the ciphertext, with the padding that libsodium has.
fn authenticate(mut mac: Poly1305, block: &[u8; BLOCK], ciphertext: &[u8]) -> [u8; MAC] {
    let rest = ciphertext.len() % MAC;
    let (whole, partial) = ciphertext.split_at(ciphertext.len() - rest);
    mac.update_padded(block);
    mac.update_padded(whole);
    // libsodium pads with as many zeros as the last block has bytes, instead of up to its end.
    let mut end = [0; 3 * MAC];
    end[..rest].copy_from_slice(partial);
    let lengths = 2 * rest;
    end[lengths + 8..lengths + MAC]
        .copy_from_slice(&((BLOCK + ciphertext.len()) as u64).to_le_bytes());
    mac.compute_unpadded(&end[..lengths + MAC]).into()
}

/// Encrypts what we send.
pub(super) struct Push(State);

impl Push {
    /// Starts the direction; the header goes to the remote in plain text.
    pub(super) fn new(key: &[u8; KEY_LENGTH]) -> (Self, [u8; HEADER]) {
        let header = random();
        (Self(State::new(key, &header)), header)
    }

    /// Encrypts the text at the end of `out`, which starts at `start` with a byte to spare for the
    /// tag. `out` grows by the authentication.
    pub(super) fn encrypt(&mut self, out: &mut Vec<u8>, start: usize) {
        let Some((tag, text)) = out[start..].split_first_mut() else { return };
        let (mut cipher, mac, block) = self.0.start(TAG_MESSAGE);
        *tag = block[0];
        cipher.apply_keystream(text);
        let mac = authenticate(mac, &block, text);
        out.extend_from_slice(&mac);
        self.0.advance(&mac, TAG_MESSAGE);
    }
}

/// Decrypts what the remote sends.
pub(super) struct Pull(State);

impl Pull {
    /// Starts the direction with the remote's header.
    pub(super) fn new(key: &[u8; KEY_LENGTH], header: [u8; HEADER]) -> Self {
        Self(State::new(key, &header))
    }

    /// Decrypts a whole message in place; it gets [`OVERHEAD`] bytes shorter.
    pub(super) fn decrypt(&mut self, message: &mut BytesMut) -> Result<()> {
        let failed = || SecretStreamError::Decrypt;
        let (body, mac) = message.split_last_chunk_mut::<MAC>().ok_or_else(failed)?;
        let (tag, text) = body.split_first_mut().ok_or_else(failed)?;
        // The block as it was authenticated: the encrypted tag, then keystream.
        let (mut cipher, expected, mut block) = self.0.start(0);
        let tag_byte = block[0] ^ *tag;
        block[0] = *tag;
        let expected = authenticate(expected, &block, text);
        if !bool::from(expected.ct_eq(mac)) {
            return Err(failed());
        }
        cipher.apply_keystream(text);
        self.0.advance(&expected, tag_byte);
        message.truncate(message.len() - MAC);
        message.advance(1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crypto_secretstream::{Header, Key, PullStream, PushStream, Tag};

    fn pushed(push: &mut Push, text: &[u8]) -> Vec<u8> {
        let mut out = vec![0];
        out.extend_from_slice(text);
        push.encrypt(&mut out, 0);
        out
    }

    #[test]
    fn what_was_pushed_is_pulled_and_damage_is_noticed() {
        let (mut push, header) = Push::new(&[1; 32]);
        let mut pull = Pull::new(&[1; 32], header);
        let mut out = b"front\0a message".to_vec();
        push.encrypt(&mut out, 5);
        assert_eq!(&out[..5], b"front");
        assert_eq!(out.len(), 5 + 9 + OVERHEAD);
        let mut message = BytesMut::from(&out[5..]);
        pull.decrypt(&mut message).unwrap();
        assert_eq!(&message[..], b"a message");

        let out = pushed(&mut push, b"another");
        for position in 0..out.len() {
            let mut damaged = BytesMut::from(&out[..]);
            damaged[position] ^= 1;
            assert!(pull.decrypt(&mut damaged).is_err());
        }
        for length in 0..OVERHEAD + 1 {
            assert!(pull.decrypt(&mut BytesMut::from(&out[..length])).is_err());
        }
        assert!(pull.decrypt(&mut BytesMut::from(&out[..])).is_ok());
    }

    #[test]
    fn another_implementation_reads_what_we_push() {
        let (mut push, header) = Push::new(&[1; 32]);
        let mut theirs = PullStream::init(Header::from(header), &Key::from([1; 32]));
        for length in (0..300).chain([1000, 65_536, 65_537]) {
            let text: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let mut message = pushed(&mut push, &text);
            assert_eq!(theirs.pull(&mut message, &[]).unwrap(), Tag::Message);
            assert_eq!(message, text);
        }
    }

    #[test]
    fn we_read_what_another_implementation_pushes_also_after_a_change_of_keys() {
        let random = crypto_secretstream_random::Random;
        let (header, mut theirs) = PushStream::init(random, &Key::from([1; 32]));
        let mut pull = Pull::new(&[1; 32], *header.as_ref());
        for length in (0..200).chain([65_536]) {
            let text: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let tag = [Tag::Message, Tag::Push, Tag::Rekey][length % 3];
            let mut message = text.clone();
            theirs.push(&mut message, &[], tag).unwrap();
            let mut message = BytesMut::from(&message[..]);
            pull.decrypt(&mut message).unwrap();
            assert_eq!(&message[..], &text[..]);
        }
    }

    #[test]
    fn keys_change_when_the_counter_is_used_up() {
        let (mut push, header) = Push::new(&[1; 32]);
        let mut pull = Pull::new(&[1; 32], header);
        push.0.counter = u32::MAX;
        pull.0.counter = u32::MAX;
        let key = push.0.key;
        for _ in 0..2 {
            let mut message = BytesMut::from(&pushed(&mut push, b"x")[..]);
            pull.decrypt(&mut message).unwrap();
        }
        assert_ne!(push.0.key, key);
        assert_eq!(push.0.counter, 2);
    }

    /// Randomness in the form that the other implementation asks for.
    mod crypto_secretstream_random {
        use crypto_secretstream::aead::rand_core::{CryptoRng, Error, RngCore};

        pub(super) struct Random;

        impl CryptoRng for Random {}

        impl RngCore for Random {
            fn next_u32(&mut self) -> u32 {
                u32::from_le_bytes(crate::crypto::random())
            }

            fn next_u64(&mut self) -> u64 {
                u64::from_le_bytes(crate::crypto::random())
            }

            fn fill_bytes(&mut self, out: &mut [u8]) {
                out.fill_with(|| crate::crypto::random::<1>()[0]);
            }

            fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Error> {
                self.fill_bytes(out);
                Ok(())
            }
        }
    }
}
