//! The encryption of what both ends of a punch tell each other (`hyperdht` `lib/secure-payload.js`):
//! libsodium's `crypto_secretbox` (XSalsa20 and Poly1305) under a secret of the handshake, so that the
//! nodes on the way learn nothing and can change nothing.

use std::net::Ipv4Addr;

use poly1305::Poly1305;
use poly1305::universal_hash::KeyInit;
use salsa20::XSalsa20;
use salsa20::cipher::{KeyIvInit, StreamCipher};
use subtle::ConstantTimeEq;

use super::super::messages::holepunch::Payload;
use super::super::messages::{commands, namespace};
use crate::crypto::{keyed_hash, random};
use crate::secret_stream::Session;

const NONCE: usize = 24;
const MAC: usize = 16;

/// Encrypts and decrypts the payloads of one punch.
pub(crate) struct Seal {
    secret: [u8; 32],
    /// What our tokens are made with; nobody else knows it.
    local_secret: [u8; 32],
}

impl Seal {
    pub(crate) fn new(session: &Session) -> Self {
        Self::with_secret(keyed_hash(
            &session.handshake_hash,
            &[&namespace(commands::PEER_HOLEPUNCH)],
        ))
    }

    fn with_secret(secret: [u8; 32]) -> Self {
        Self { secret, local_secret: random() }
    }

    pub(crate) fn encrypt(&self, payload: &Payload) -> Vec<u8> {
        let nonce: [u8; NONCE] = random();
        let mut text = payload.encode();
        let (mut cipher, mac) = self.start(&nonce);
        cipher.apply_keystream(&mut text);
        let mac: [u8; MAC] = mac.compute_unpadded(&text).into();
        let mut sealed = Vec::with_capacity(NONCE + MAC + text.len());
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(&mac);
        sealed.extend_from_slice(&text);
        sealed
    }

    /// The payload, unless it is not from the other end of the handshake.
    pub(crate) fn decrypt(&self, sealed: &[u8]) -> Option<Payload> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE>()?;
        let (mac, text) = sealed.split_first_chunk::<MAC>()?;
        let (mut cipher, expected) = self.start(nonce);
        let expected: [u8; MAC] = expected.compute_unpadded(text).into();
        if !bool::from(expected.ct_eq(mac)) {
            return None;
        }
        let mut text = text.to_vec();
        cipher.apply_keystream(&mut text);
        Payload::decode(&text).ok()
    }

    /// What somebody at `host` has to send back to prove that they are there.
    pub(crate) fn token(&self, host: Ipv4Addr) -> [u8; 32] {
        keyed_hash(&self.local_secret, &[&host.octets()])
    }

    /// The cipher at the start of the text, and the key for authentication before it.
    fn start(&self, nonce: &[u8; NONCE]) -> (XSalsa20, Poly1305) {
        let mut cipher = XSalsa20::new(&self.secret.into(), &(*nonce).into());
        let mut key = [0; 32];
        cipher.apply_keystream(&mut key);
        (cipher, Poly1305::new(&key.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hyperdht::messages::FirewallKind;

    #[test]
    fn a_payload_opens_only_with_its_secret_and_unchanged() {
        let seal = Seal::with_secret([7; 32]);
        let payload = Payload { round: 3, token: Some([9; 32]), ..Payload::default() };
        let mut sealed = seal.encrypt(&payload);
        assert_eq!(seal.decrypt(&sealed), Some(payload));
        assert_eq!(Seal::with_secret([8; 32]).decrypt(&sealed), None);
        for index in 0..sealed.len() {
            sealed[index] ^= 1;
            assert_eq!(seal.decrypt(&sealed), None, "byte {index}");
            sealed[index] ^= 1;
        }
        assert_eq!(seal.decrypt(&sealed[..39]), None);
        assert_eq!(seal.decrypt(&[]), None);
    }

    #[test]
    fn what_the_reference_encrypted_is_read() {
        // Made with npm hyperdht 6.34 `lib/secure-payload.js`.
        let sealed = "93c90508c802801d6775c83822e7c27152f885dcee553ae4c84d70ab0e6070640ce3cb5ace2ebe1b\
                      b338996bf7f3342d791e35d3262269c0e8ed7c870986fd5a1cc9d9612a69d9db2a0315b1";
        let payload = Payload {
            firewall: FirewallKind::Consistent,
            round: 5,
            token: Some([9; 32]),
            ..Payload::default()
        };
        assert_eq!(Seal::with_secret([7; 32]).decrypt(&unhex(sealed)), Some(payload));
    }

    fn unhex(text: &str) -> Vec<u8> {
        let byte = |index| u8::from_str_radix(&text[index..index + 2], 16).unwrap();
        (0..text.len()).step_by(2).map(byte).collect()
    }

    #[test]
    fn a_token_is_for_one_host_and_one_punch() {
        let (seal, other) = (Seal::with_secret([7; 32]), Seal::with_secret([7; 32]));
        let host = Ipv4Addr::new(1, 2, 3, 4);
        assert_eq!(seal.token(host), seal.token(host));
        assert_ne!(seal.token(host), seal.token(Ipv4Addr::new(1, 2, 3, 5)));
        assert_ne!(seal.token(host), other.token(host));
    }
}
