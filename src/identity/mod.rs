//! Who this server is: its key pair, and every form in which people pass a key on.
//!
//! The pair lives in `keypair.json` of the data directory, which is never overwritten; a
//! [`DataDirLock`] keeps a second process away from it.

mod fingerprint;
mod keyfile;
mod link;
mod lock;
mod parse;
mod paste;
mod qr;
mod seal;

use std::path::Path;
use std::sync::Arc;

use crate::crypto::{KeyPair, PublicKey};
use crate::error::{Error, ErrorCode};

pub use fingerprint::fingerprint;
pub use keyfile::KeyFileError;
pub use link::{LINK_PREFIX, invite_link};
pub use lock::{DataDirLock, LockError};
pub use parse::{KeyError, ParsedKey, parse_key};
pub use qr::{qr_svg, qr_terminal};
pub(crate) use seal::{backup_key, seal, unseal};

/// This server's identity. Clones share the key pair.
#[derive(Debug, Clone)]
pub struct Identity {
    pair: Arc<KeyPair>,
}

impl Identity {
    /// Reads `keypair.json` in `data_dir`, or creates both with a new key pair when neither the file nor
    /// a database exists. Blocks on disk. Hold the directory's [`DataDirLock`] while calling.
    ///
    /// # Errors
    ///
    /// [`KeyFileError`] as [`Error`]: a damaged, unreadable or missing key file is reported and nothing
    /// is written.
    pub fn open(data_dir: &Path) -> Result<Self, Error> {
        Ok(Self::from_key_pair(keyfile::load_or_create(data_dir)?))
    }

    /// Puts a key pair from a backup into `data_dir`; the same pair may be there already. Blocks on disk.
    ///
    /// # Errors
    ///
    /// `ERR_INVALID_STATE` when another pair is there.
    pub(crate) fn put(data_dir: &Path, pair: &KeyPair) -> Result<(), Error> {
        match keyfile::load_if_there(data_dir)? {
            None => Ok(keyfile::create_new(data_dir, pair)?),
            Some(there) if there.public_key() == pair.public_key() => Ok(()),
            Some(_) => Err(Error::new(
                ErrorCode::InvalidState,
                "keypair.json in the data directory is another server's: restore into a new directory",
            )),
        }
    }

    /// The key pair in `data_dir`, if there is a `keypair.json`. Blocks on disk.
    pub(crate) fn key_pair_in(data_dir: &Path) -> Result<Option<KeyPair>, Error> {
        Ok(keyfile::load_if_there(data_dir)?)
    }

    /// The identity of a key pair that is kept elsewhere.
    #[must_use]
    pub fn from_key_pair(pair: KeyPair) -> Self {
        Self { pair: Arc::new(pair) }
    }

    /// The pair itself, for the handshake and for signing the feed.
    #[must_use]
    pub fn key_pair(&self) -> &KeyPair {
        &self.pair
    }

    /// The public key.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        self.pair.public_key()
    }

    /// The public key as 52 z32 characters.
    #[must_use]
    pub fn public_key_text(&self) -> String {
        self.public_key().to_z32()
    }

    /// The 32 bytes of the public key.
    #[must_use]
    pub fn bytes(&self) -> [u8; 32] {
        *self.public_key().as_bytes()
    }

    /// The key's [`fingerprint`]: 8 groups of 4 characters.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.public_key())
    }

    /// The link that adds this server elsewhere, with a nickname to suggest there.
    #[must_use]
    pub fn invite_link(&self, nickname: Option<&str>) -> String {
        invite_link(&self.public_key(), nickname)
    }

    /// The invite link as a QR code: an SVG document.
    ///
    /// # Errors
    ///
    /// When the nickname makes the link longer than a QR code holds.
    pub fn qr_svg(&self, nickname: Option<&str>) -> Result<String, Error> {
        qr_svg(&self.invite_link(nickname))
    }

    /// The invite link as a QR code: lines of Unicode half blocks, for a terminal.
    ///
    /// # Errors
    ///
    /// When the nickname makes the link longer than a QR code holds.
    pub fn qr_terminal(&self, nickname: Option<&str>) -> Result<String, Error> {
        qr_terminal(&self.invite_link(nickname))
    }

    /// A detached ed25519 signature over `message`.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.pair.sign(message)
    }

    /// Whether `signature` is `key`'s over `message`. Anything but 64 bytes is not.
    #[must_use]
    pub fn verify(key: &PublicKey, message: &[u8], signature: &[u8]) -> bool {
        <&[u8; 64]>::try_from(signature).is_ok_and(|signature| key.verify(message, signature))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_verifies_under_the_public_key_only() {
        let identity = Identity::from_key_pair(KeyPair::from_seed(&[1; 32]));
        let signature = identity.sign(b"a book");
        assert!(Identity::verify(&identity.public_key(), b"a book", &signature));
        assert!(!Identity::verify(&identity.public_key(), b"a boot", &signature));
        assert!(!Identity::verify(&identity.public_key(), b"a book", &signature[1..]));
    }

    #[test]
    fn the_same_directory_gives_the_same_identity() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::open(dir.path()).unwrap();
        let second = Identity::open(dir.path()).unwrap();
        assert_eq!(first.public_key(), second.public_key());
        assert_eq!(first.public_key_text().len(), 52);
    }
}
