//! The file that a backup is: a database, the identity if it is in it, and a footer that proves both.
//!
//! ```text
//! database        n bytes: one moment of p2p.db, an SQLite file
//! identity        m bytes: encrypted (`identity/seal.rs`); none when m is 0
//! public key      32 bytes: whose backup it is
//! n               8 bytes
//! m               4 bytes
//! MAC             32 bytes: keyed BLAKE2b-256 over all other bytes of the file, in their order
//! version         4 bytes: 1
//! magic           16 bytes: "alex/p2p backup\n"
//! ```
//!
//! Numbers are little-endian. The key of the MAC is made of the identity's secret
//! ([`crate::identity::backup_key`]), so whoever has `keypair.json`, or the passphrase of the identity in the
//! backup, can tell whether anything was changed, and nobody else can change anything. The footer stands at
//! the end because SQLite looks at nothing behind its pages: any tool can look into a backup.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use subtle::ConstantTimeEq;

use crate::crypto::{Hash, KEY_LENGTH};
use crate::error::{Error, ErrorCode, Result};

const MAGIC: &[u8; 16] = b"alex/p2p backup\n";
const VERSION: u32 = 1;
/// Public key and the two lengths.
const FACTS: usize = KEY_LENGTH + 8 + 4;
/// Version and magic: in every version, these are the last bytes.
const END: usize = 4 + MAGIC.len();
const FOOTER: usize = FACTS + KEY_LENGTH + END;
/// A sealed identity has some 120 bytes.
pub(super) const MAX_IDENTITY_BYTES: usize = 1024;
const CHUNK: usize = 256 * 1024;

/// What the footer of a backup says. Nothing of it is proven yet.
pub(super) struct Layout {
    pub(super) public_key: [u8; KEY_LENGTH],
    /// The identity, encrypted.
    pub(super) identity: Option<Vec<u8>>,
    database: u64,
    facts: [u8; FACTS],
    mac: Hash,
}

impl Layout {
    /// Reads the footer; `None` when the file has none, as what was made before there were any.
    pub(super) fn read(file: &mut File) -> Result<Option<Self>> {
        let size = file.metadata()?.len();
        let Some(body) = size.checked_sub(FOOTER as u64) else { return Ok(None) };
        let mut footer = [0; FOOTER];
        file.seek(SeekFrom::Start(body))?;
        file.read_exact(&mut footer)?;
        let (facts, rest) = split::<FACTS>(&footer)?;
        let (mac, rest) = split::<KEY_LENGTH>(rest)?;
        let (version, magic) = split::<4>(rest)?;
        if magic != MAGIC {
            return Ok(None);
        }
        if u32::from_le_bytes(version) != VERSION {
            return Err(not_whole("another version of @alex/p2p made it: update @alex/p2p"));
        }
        let (public_key, lengths) = split::<KEY_LENGTH>(&facts)?;
        let (database, sealed) = split::<8>(lengths)?;
        let (sealed, _) = split::<4>(sealed)?;
        let (database, sealed) = (u64::from_le_bytes(database), u32::from_le_bytes(sealed));
        let length = sealed as usize;
        if length > MAX_IDENTITY_BYTES || database.checked_add(sealed.into()) != Some(body) {
            return Err(not_whole("its parts have other lengths than it says"));
        }
        let mut identity = vec![0; length];
        file.seek(SeekFrom::Start(database))?;
        file.read_exact(&mut identity)?;
        let identity = (length > 0).then_some(identity);
        Ok(Some(Self { public_key, identity, database, facts, mac }))
    }

    /// Writes the database part to `to` while all of the file is read once. Whether the file is what was
    /// made with this key: what was written to `to` is to be thrown away otherwise.
    pub(super) fn authenticate(
        &self,
        file: &mut File,
        key: &Hash,
        to: &mut impl Write,
    ) -> Result<bool> {
        file.rewind()?;
        let mut mac = Mac::new(key);
        mac.pass(&mut file.take(self.database), to)?;
        mac.pass(
            &mut file.take(self.identity.as_ref().map_or(0, Vec::len) as u64),
            &mut io::sink(),
        )?;
        Ok(bool::from(mac.finish(&self.facts).ct_eq(&self.mac)))
    }
}

/// Turns a file that is a database so far into a backup, and returns its size in bytes.
pub(super) fn append_footer(
    file: &mut File,
    public_key: &[u8; KEY_LENGTH],
    identity: &[u8],
    key: &Hash,
) -> Result<u64> {
    file.rewind()?;
    let mut mac = Mac::new(key);
    let database = mac.pass(file, &mut io::sink())?;
    let length =
        u32::try_from(identity.len()).map_err(|_| not_whole("the identity is too long"))?;
    let mut facts = public_key.to_vec();
    facts.extend(database.to_le_bytes());
    facts.extend(length.to_le_bytes());
    let mac = mac.pass(&mut &*identity, file).map(|_| mac.finish(&facts))?;
    let mut footer = facts;
    footer.extend(mac);
    footer.extend(VERSION.to_le_bytes());
    footer.extend(MAGIC);
    file.write_all(&footer)?;
    Ok(database + u64::from(length) + footer.len() as u64)
}

/// The MAC over all bytes but its own.
struct Mac(blake2b_simd::State);

impl Mac {
    fn new(key: &Hash) -> Self {
        Self(blake2b_simd::Params::new().hash_length(KEY_LENGTH).key(key).to_state())
    }

    /// Adds what is read, and writes it to `to`. Returns how many bytes.
    fn pass(&mut self, from: &mut impl Read, to: &mut impl Write) -> Result<u64> {
        let mut chunk = vec![0; CHUNK];
        let mut bytes = 0;
        loop {
            let length = match from.read(&mut chunk) {
                Ok(0) => return Ok(bytes),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            let read = chunk.get(..length).unwrap_or_default();
            self.0.update(read);
            to.write_all(read)?;
            bytes += length as u64;
        }
    }

    fn finish(&mut self, facts: &[u8]) -> Hash {
        self.0.update(facts).update(&VERSION.to_le_bytes()).update(MAGIC);
        let mut hash = [0; KEY_LENGTH];
        hash.copy_from_slice(self.0.finalize().as_bytes());
        hash
    }
}

fn split<const N: usize>(bytes: &[u8]) -> Result<([u8; N], &[u8])> {
    let (first, rest) =
        bytes.split_first_chunk::<N>().ok_or_else(|| not_whole("it is too short"))?;
    Ok((*first, rest))
}

pub(super) fn not_whole(why: &str) -> Error {
    let message = format!("this is no whole backup ({why}): use another one; nothing was changed");
    Error::new(ErrorCode::Corrupt, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Hash = [7; 32];

    fn file_of(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn made(database: &[u8], identity: &[u8]) -> Vec<u8> {
        let mut file = file_of(database);
        let size = append_footer(&mut file, &[3; 32], identity, &KEY).unwrap();
        file.rewind().unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, size);
        bytes
    }

    /// Whether a file passes for what was made with [`KEY`].
    fn is_authentic(bytes: &[u8]) -> bool {
        let mut file = file_of(bytes);
        match Layout::read(&mut file) {
            Ok(Some(layout)) => layout.authenticate(&mut file, &KEY, &mut io::sink()).unwrap(),
            Ok(None) => false,
            Err(error) => {
                assert_eq!(error.code, ErrorCode::Corrupt);
                false
            }
        }
    }

    #[test]
    fn what_was_written_is_read_again_and_only_under_its_key() {
        let database: Vec<u8> = (0..CHUNK + 1000).map(|n| n as u8).collect();
        for identity in [&b"sealed"[..], b""] {
            let bytes = made(&database, identity);
            assert!(bytes.starts_with(&database), "any tool can look into it");
            let mut file = file_of(&bytes);
            let layout = Layout::read(&mut file).unwrap().unwrap();
            assert_eq!(layout.public_key, [3; 32]);
            assert_eq!(layout.identity.as_deref().unwrap_or_default(), identity);
            let mut out = Vec::new();
            assert!(layout.authenticate(&mut file, &KEY, &mut out).unwrap());
            assert_eq!(out, database);
            assert!(!layout.authenticate(&mut file, &[8; 32], &mut io::sink()).unwrap());
        }
    }

    #[test]
    fn a_bit_that_flips_anywhere_is_noticed() {
        let bytes = made(&[1; 300], b"sealed");
        assert!(is_authentic(&bytes));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (at % 8);
            assert!(!is_authentic(&changed), "byte {at}");
        }
    }

    #[test]
    fn a_file_that_was_cut_or_made_longer_is_noticed() {
        let bytes = made(&[1; 300], b"sealed");
        for length in 0..bytes.len() {
            assert!(!is_authentic(&bytes[..length]), "{length} bytes");
            assert!(!is_authentic(&bytes[length + 1..]), "{length} bytes are gone");
        }
        assert!(!is_authentic(&[&bytes[..], b"x"].concat()));
        assert!(!is_authentic(&[&bytes[..], &bytes[300..]].concat()));
        // A byte moves from one part to the other.
        let mut moved = made(&[1; 300], b"sealed");
        let lengths = moved.len() - FOOTER + KEY_LENGTH;
        moved[lengths] += 1;
        moved[lengths + 8] -= 1;
        assert!(Layout::read(&mut file_of(&moved)).unwrap().is_some());
        assert!(!is_authentic(&moved));
    }
}
