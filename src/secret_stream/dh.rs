//! Diffie-Hellman on ed25519's own curve, as npm `noise-curve-ed` does it, in a form that snow takes.
//!
//! The scalar is the clamped first half of SHA-512 of the seed. libsodium's
//! `crypto_scalarmult_ed25519_noclamp` refuses points that are not canonical, not on the curve, of
//! small order or outside the prime-order subgroup; so does this.

use curve25519_dalek::edwards::{CompressedEdwardsY, EdwardsPoint};
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};

use crate::crypto::{KEY_LENGTH, KeyPair};

/// The point of a public key, if it is one that libsodium would multiply.
pub(super) fn decode_point(key: &[u8; KEY_LENGTH]) -> Option<EdwardsPoint> {
    let point = CompressedEdwardsY(*key).decompress()?;
    let canonical = point.compress().0 == *key;
    (canonical && !point.is_small_order() && point.is_torsion_free()).then_some(point)
}

/// snow's primitives with ed25519 in the place of X25519.
pub(super) struct Resolver;

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        DefaultResolver.resolve_rng()
    }

    fn resolve_dh(&self, _choice: &DHChoice) -> Option<Box<dyn Dh>> {
        Some(Box::new(Ed25519::default()))
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

/// A key pair as snow wants it; the private key is the seed.
#[derive(Default)]
struct Ed25519 {
    seed: [u8; KEY_LENGTH],
    scalar: [u8; KEY_LENGTH],
    public: [u8; KEY_LENGTH],
}

impl Ed25519 {
    fn set_seed(&mut self, seed: [u8; KEY_LENGTH]) {
        let pair = KeyPair::from_seed(&seed);
        self.seed = seed;
        self.scalar = pair.scalar_bytes();
        self.public = *pair.public_key().as_bytes();
    }
}

impl Dh for Ed25519 {
    fn name(&self) -> &'static str {
        "Ed25519"
    }

    fn pub_len(&self) -> usize {
        KEY_LENGTH
    }

    fn priv_len(&self) -> usize {
        KEY_LENGTH
    }

    fn set(&mut self, privkey: &[u8]) {
        let mut seed = [0; KEY_LENGTH];
        let length = privkey.len().min(KEY_LENGTH);
        seed[..length].copy_from_slice(&privkey[..length]);
        self.set_seed(seed);
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), snow::Error> {
        let mut seed = [0; KEY_LENGTH];
        rng.try_fill_bytes(&mut seed)?;
        self.set_seed(seed);
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        &self.seed
    }

    fn dh(&self, pubkey: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        // snow passes a buffer that is as long as the longest key it knows.
        let key = pubkey.first_chunk::<KEY_LENGTH>().ok_or(snow::Error::Dh)?;
        let out = out.first_chunk_mut::<KEY_LENGTH>().ok_or(snow::Error::Dh)?;
        let point = decode_point(key).ok_or(snow::Error::Dh)?;
        *out = point.mul_clamped(self.scalar).compress().0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(seed: u8) -> Ed25519 {
        let mut pair = Ed25519::default();
        pair.set(&[seed; 32]);
        pair
    }

    #[test]
    fn both_sides_compute_the_same_secret() {
        let (a, b) = (pair(1), pair(2));
        let (mut ab, mut ba) = ([0; 32], [0; 32]);
        a.dh(b.pubkey(), &mut ab).unwrap();
        b.dh(a.pubkey(), &mut ba).unwrap();
        assert_eq!(ab, ba);
        assert_ne!(ab, [0; 32]);
    }

    #[test]
    fn points_that_libsodium_refuses_are_refused() {
        let mut identity = [0; 32];
        identity[0] = 1;
        let mut not_canonical = [0xff; 32];
        not_canonical[31] = 0x7f;
        // y = 2 is not on the curve; a good key plus the point of order two leaves the subgroup.
        let mut off_curve = [0; 32];
        off_curve[0] = 2;
        let good = decode_point(pair(1).pubkey().try_into().unwrap()).unwrap();
        let torsion = curve25519_dalek::constants::EIGHT_TORSION[4];
        let mixed = (good + torsion).compress().0;
        for key in [[0; 32], identity, not_canonical, off_curve, mixed] {
            assert!(decode_point(&key).is_none(), "{key:?}");
            assert!(pair(1).dh(&key, &mut [0; 32]).is_err());
        }
    }
}
