//! The key pair's seed under a passphrase, for backups.
//!
//! Argon2id makes the key, XChaCha20-Poly1305 encrypts. In front stand a version and the costs, so that
//! they can rise later; they and the public key are authenticated.
//!
//! `1 | memory in KiB, u32 | passes, u32 | salt, 16 | nonce, 24 | seed and tag, 48`, little-endian.

use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};

use crate::crypto::{Hash, KeyPair, keyed_hash, random};
use crate::error::{Error, ErrorCode, Result};

const VERSION: u8 = 1;
/// 64 MiB and 3 passes: a quarter of a second on a small server.
const MEMORY_KIB: u32 = 64 * 1024;
const PASSES: u32 = 3;
/// The most that is spent on opening a seal, whatever it asks for.
const MAX_MEMORY_KIB: u32 = 1024 * 1024;
const MAX_PASSES: u32 = 32;
/// The shortest passphrase, in characters.
const MIN_PASSPHRASE_CHARS: usize = 8;
const HEADER: usize = 1 + 4 + 4 + 16;
const NONCE: usize = 24;

/// Encrypts the key pair's seed. Takes a quarter of a second and 64 MiB.
///
/// # Errors
///
/// `ERR_INVALID_ARGUMENT` for a passphrase of less than 8 characters.
pub(crate) fn seal(pair: &KeyPair, passphrase: &str) -> Result<Vec<u8>> {
    if passphrase.chars().count() < MIN_PASSPHRASE_CHARS {
        let message = format!("the passphrase must have {MIN_PASSPHRASE_CHARS} characters or more");
        return Err(Error::new(ErrorCode::InvalidArgument, message));
    }
    let mut out = vec![VERSION];
    out.extend(MEMORY_KIB.to_le_bytes());
    out.extend(PASSES.to_le_bytes());
    out.extend(random::<16>());
    let cipher = cipher(&out, passphrase).ok_or_else(defect)?;
    let nonce = random::<NONCE>();
    let aad = [&out[..], pair.public_key().as_bytes()].concat();
    let payload = Payload { msg: &pair.seed(), aad: &aad };
    let sealed = cipher.encrypt(&XNonce::from(nonce), payload).map_err(|_| defect())?;
    out.extend(nonce);
    out.extend(sealed);
    Ok(out)
}

/// Decrypts what [`seal`] made for the pair with this public key.
///
/// # Errors
///
/// `ERR_DENIED` when the passphrase is wrong, or the seal damaged: they cannot be told apart.
pub(crate) fn unseal(sealed: &[u8], public_key: &[u8; 32], passphrase: &str) -> Result<KeyPair> {
    let wrong = || {
        let message = "the passphrase is not the one of this backup; nothing was changed";
        Error::new(ErrorCode::Denied, message)
    };
    let (header, rest) = sealed.split_at_checked(HEADER).ok_or_else(wrong)?;
    let (nonce, text) = rest.split_first_chunk::<NONCE>().ok_or_else(wrong)?;
    let cipher = cipher(header, passphrase).ok_or_else(wrong)?;
    let aad = [header, public_key].concat();
    let seed = cipher.decrypt(&XNonce::from(*nonce), Payload { msg: text, aad: &aad });
    let seed: [u8; 32] = seed.ok().and_then(|seed| seed.try_into().ok()).ok_or_else(wrong)?;
    let pair = KeyPair::from_seed(&seed);
    if pair.public_key().as_bytes() == public_key { Ok(pair) } else { Err(wrong()) }
}

/// The key with which a backup is authenticated: it follows from the pair's seed, so that whoever has the
/// identity can tell whether the backup is what was made, and says nothing about the seed.
pub(crate) fn backup_key(pair: &KeyPair) -> Hash {
    keyed_hash(&pair.seed(), &[b"alex/p2p: authenticates backups, version 1"])
}

fn defect() -> Error {
    Error::new(ErrorCode::Internal, "the identity could not be encrypted")
}

/// The cipher that a header and a passphrase give; `None` for a header that cannot be meant.
fn cipher(header: &[u8], passphrase: &str) -> Option<XChaCha20Poly1305> {
    let (version, rest) = header.split_first()?;
    let (memory, rest) = rest.split_first_chunk::<4>()?;
    let (passes, salt) = rest.split_first_chunk::<4>()?;
    let (memory, passes) = (u32::from_le_bytes(*memory), u32::from_le_bytes(*passes));
    if *version != VERSION || memory > MAX_MEMORY_KIB || passes > MAX_PASSES {
        return None;
    }
    let params = Params::new(memory, passes, 1, Some(32)).ok()?;
    let mut key = [0; 32];
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.as_bytes(), salt, &mut key)
        .ok()?;
    Some(XChaCha20Poly1305::new(&key.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_passphrase_opens_the_seal_and_a_flipped_bit_closes_it() {
        let pair = KeyPair::generate();
        let public_key = *pair.public_key().as_bytes();
        let sealed = seal(&pair, "correct horse").unwrap();
        assert_eq!(unseal(&sealed, &public_key, "correct horse").unwrap().seed(), pair.seed());
        assert!(!sealed.windows(32).any(|window| window == pair.seed()));
        let wrong = unseal(&sealed, &public_key, "correct horsf").unwrap_err();
        assert_eq!(wrong.code, ErrorCode::Denied);
        assert!(unseal(&sealed, &[1; 32], "correct horse").is_err());
        for at in [0, 8, 20, 40, sealed.len() - 1] {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert!(unseal(&damaged, &public_key, "correct horse").is_err(), "{at}");
        }
        for length in 0..sealed.len() {
            let cut = &sealed[..length];
            assert!(length > HEADER + NONCE || unseal(cut, &public_key, "correct horse").is_err());
        }
    }

    #[test]
    fn costs_that_cannot_be_meant_are_not_paid() {
        let pair = KeyPair::generate();
        let mut sealed = seal(&pair, "correct horse").unwrap();
        sealed[1..5].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(unseal(&sealed, pair.public_key().as_bytes(), "correct horse").is_err());
    }

    #[test]
    fn a_short_passphrase_is_refused() {
        let refused = seal(&KeyPair::generate(), "1234567").unwrap_err();
        assert_eq!(refused.code, ErrorCode::InvalidArgument);
    }
}
