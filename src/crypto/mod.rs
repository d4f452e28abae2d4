//! Keys, signatures and hashes that every layer above shares.
//!
//! Everything is as in npm `hypercore-crypto`: ed25519 keys, unkeyed and keyed BLAKE2b with 32-byte
//! digests, and namespaces derived from a name.

use std::fmt;

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};

/// The length in bytes of public keys, seeds, hashes and discovery keys.
pub const KEY_LENGTH: usize = 32;

/// A 32-byte BLAKE2b digest.
pub type Hash = [u8; KEY_LENGTH];

/// An ed25519 public key: the name of a server, or of whoever signs a core.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; KEY_LENGTH]);

impl PublicKey {
    /// The key with these bytes. Whether they are a point on the curve is checked when it is used.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; KEY_LENGTH]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the key.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; KEY_LENGTH] {
        &self.0
    }

    /// The key as 52 z32 characters, the form people see.
    #[must_use]
    pub fn to_z32(&self) -> String {
        z32::encode(&self.0)
    }

    /// Reads 52 z32 characters. Anything else is `None`; `identity::parse_key` explains to a person.
    #[must_use]
    pub fn from_z32(text: &str) -> Option<Self> {
        if text.len() != 52 {
            return None;
        }
        let bytes = z32::decode(text.as_bytes()).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }

    /// The first 8 z32 characters: enough to tell peers apart in a log, too little to be a key.
    #[must_use]
    pub fn short(&self) -> String {
        let mut text = self.to_z32();
        text.truncate(8);
        text
    }

    /// Whether `signature` is this key's over `message`. False for keys that are not on the curve.
    #[must_use]
    pub fn verify(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        let signature = ed25519_dalek::Signature::from_bytes(signature);
        VerifyingKey::from_bytes(&self.0)
            .is_ok_and(|key| key.verify_strict(message, &signature).is_ok())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({}…)", self.short())
    }
}

/// An ed25519 key pair. `Debug` shows the public half only.
#[derive(Clone)]
pub struct KeyPair {
    signing: SigningKey,
}

impl KeyPair {
    /// A new pair from the operating system's randomness.
    #[must_use]
    pub fn generate() -> Self {
        Self::from_seed(&random())
    }

    /// The pair that a 32-byte seed gives.
    #[must_use]
    pub fn from_seed(seed: &[u8; KEY_LENGTH]) -> Self {
        Self { signing: SigningKey::from_bytes(seed) }
    }

    /// The public half.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        PublicKey(self.signing.verifying_key().to_bytes())
    }

    /// The seed: the first half of libsodium's 64-byte secret key.
    #[must_use]
    pub fn seed(&self) -> [u8; KEY_LENGTH] {
        self.signing.to_bytes()
    }

    /// libsodium's secret key: seed, then public key.
    #[must_use]
    pub fn secret_key(&self) -> [u8; 64] {
        self.signing.to_keypair_bytes()
    }

    /// The scalar that ed25519 derives from the seed, for Diffie-Hellman on the same curve.
    #[must_use]
    pub fn scalar_bytes(&self) -> [u8; KEY_LENGTH] {
        self.signing.to_scalar_bytes()
    }

    /// A detached signature over `message`.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.signing.sign(message).to_bytes()
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair").field("public_key", &self.public_key()).finish_non_exhaustive()
    }
}

/// `N` bytes from the operating system's randomness (through a seeded generator).
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    use rand::Rng;
    let mut bytes = [0; N];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}

/// BLAKE2b-256 over the parts, one after the other.
#[must_use]
pub fn hash(parts: &[&[u8]]) -> Hash {
    digest(blake2b_simd::Params::new().hash_length(KEY_LENGTH), parts)
}

/// BLAKE2b-256 keyed with `key` (at most 64 bytes) over the parts.
#[must_use]
pub fn keyed_hash(key: &[u8], parts: &[&[u8]]) -> Hash {
    digest(blake2b_simd::Params::new().hash_length(KEY_LENGTH).key(key), parts)
}

fn digest(params: &blake2b_simd::Params, parts: &[&[u8]]) -> Hash {
    let mut state = params.to_state();
    for part in parts {
        state.update(part);
    }
    let mut out = [0; KEY_LENGTH];
    out.copy_from_slice(state.finalize().as_bytes());
    out
}

/// The `index`th namespace of `name`: `hash(hash(name) || index)` (`hypercore-crypto` `namespace`).
#[must_use]
pub fn namespace(name: &str, index: u8) -> Hash {
    hash(&[&hash(&[name.as_bytes()]), &[index]])
}

/// How a core or a topic is named in public without giving its key away.
#[must_use]
pub fn discovery_key(key: &[u8; KEY_LENGTH]) -> Hash {
    keyed_hash(key, &[b"hypercore"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_verifies_only_for_its_message_and_key() {
        let pair = KeyPair::generate();
        let signature = pair.sign(b"a book");
        assert!(pair.public_key().verify(b"a book", &signature));
        assert!(!pair.public_key().verify(b"a boot", &signature));
        assert!(!KeyPair::generate().public_key().verify(b"a book", &signature));
    }

    #[test]
    fn z32_takes_52_characters_and_reads_back() {
        let key = KeyPair::from_seed(&[7; 32]).public_key();
        let text = key.to_z32();
        assert_eq!(text.len(), 52);
        assert_eq!(PublicKey::from_z32(&text), Some(key));
        assert_eq!(PublicKey::from_z32(&text[1..]), None);
    }

    #[test]
    fn debug_shows_no_secret() {
        let pair = KeyPair::from_seed(&[7; 32]);
        assert!(!format!("{pair:?}").contains("7, 7"));
    }
}
