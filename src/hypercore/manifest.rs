//! Manifests: who may sign a log, or what it says. A log's key is its manifest's hash.
//!
//! Byte for byte as `manifest` in npm `hypercore/lib/messages.js`; versions 0 to 3.

use bytes::Bytes;

use crate::crypto::{Hash, PublicKey, hash, namespace};
use crate::encoding::{DecodeError, Reader, Writer};

/// The most signers a manifest may have here.
pub const MAX_SIGNERS: usize = 255;
/// The most linked cores.
const MAX_LINKED: usize = 1024;
/// The newest version that is known.
const LATEST: u64 = 3;

const PATCH: u64 = 1;
const PROLOGUE: u64 = 2;
const LINKED: u64 = 4;
const USER_DATA: u64 = 8;

/// Why bytes are no manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a manifest: {0}")]
pub struct ManifestError(#[from] DecodeError);

/// Someone whose signature counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signer {
    /// Separates logs of the same key; 32 bytes that anybody may choose.
    pub namespace: Hash,
    /// The ed25519 key.
    pub public_key: PublicKey,
}

/// What a log says up to a length, whoever signs the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prologue {
    /// The tree hash at `length`.
    pub hash: Hash,
    /// The length in blocks.
    pub length: u64,
}

/// Who may sign a log, or what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The version, 0 to 3. It decides what a signature is over.
    pub version: u64,
    /// Whether signers may have signed different lengths.
    pub allow_patch: bool,
    /// How many signers it takes.
    pub quorum: u64,
    /// Who may sign.
    pub signers: Vec<Signer>,
    /// What the log says at first.
    pub prologue: Option<Prologue>,
    /// Other cores' keys (version 2).
    pub linked: Option<Vec<Hash>>,
    /// Anything (version 2).
    pub user_data: Option<Bytes>,
}

/// The namespace of a signer that names none.
#[must_use]
pub fn default_namespace() -> Hash {
    namespace("hypercore", 4)
}

impl Manifest {
    /// The manifest of a log that one key signs (npm's default, version 1).
    #[must_use]
    pub fn single(public_key: PublicKey) -> Self {
        Self::single_in(public_key, default_namespace())
    }

    /// [`Manifest::single`] in a namespace of the caller's, so that one key can sign many logs.
    #[must_use]
    pub fn single_in(public_key: PublicKey, namespace: Hash) -> Self {
        Self {
            version: 1,
            allow_patch: false,
            quorum: 1,
            signers: vec![Signer { namespace, public_key }],
            prologue: None,
            linked: None,
            user_data: None,
        }
    }

    /// The manifest of a log that never changes and needs no signature.
    #[must_use]
    pub fn fixed(hash: Hash, length: u64) -> Self {
        Self {
            version: 1,
            allow_patch: false,
            quorum: 0,
            signers: Vec::new(),
            prologue: Some(Prologue { hash, length }),
            linked: None,
            user_data: None,
        }
    }

    /// The core's key: the hash of the manifest.
    #[must_use]
    pub fn key(&self) -> Hash {
        hash(&[&namespace("hypercore", 3), &self.encode()])
    }

    /// Whether this is the manifest of the core with this key: it hashes to it, or it has one signer
    /// whose key it is (`compat`).
    #[must_use]
    pub fn is_of(&self, key: &Hash) -> bool {
        self.is_compat(key) || self.key() == *key
    }

    /// Whether the core's key is its one signer's key, as it was before manifests.
    #[must_use]
    pub fn is_compat(&self, key: &Hash) -> bool {
        matches!(self.signers.as_slice(), [signer] if signer.public_key.as_bytes() == key)
    }

    /// The manifest's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_capacity(80);
        writer.uint(self.version);
        if self.version == 0 {
            self.encode_v0(&mut writer);
            return writer.into_vec();
        }
        let flag = |set: bool, flag: u64| if set { flag } else { 0 };
        writer
            .uint(
                flag(self.allow_patch, PATCH)
                    | flag(self.prologue.is_some(), PROLOGUE)
                    | flag(self.linked.is_some(), LINKED)
                    | flag(self.user_data.is_some(), USER_DATA),
            )
            .uint(0)
            .uint(self.quorum);
        encode_signers(&mut writer, &self.signers);
        if let Some(prologue) = &self.prologue {
            writer.raw(&prologue.hash).uint(prologue.length);
        }
        if let Some(linked) = &self.linked {
            writer.uint(linked.len() as u64);
            for key in linked {
                writer.raw(key);
            }
        }
        if let Some(data) = &self.user_data {
            writer.buffer(data);
        }
        writer.into_vec()
    }

    fn encode_v0(&self, writer: &mut Writer) {
        writer.uint(0);
        match (&self.prologue, self.signers.as_slice()) {
            (Some(prologue), []) => {
                writer.uint(0).raw(&prologue.hash);
            }
            (_, [signer]) if self.quorum == 1 && !self.allow_patch => {
                writer.uint(1);
                encode_signer(writer, signer);
            }
            (_, signers) => {
                writer.uint(2).uint(u64::from(self.allow_patch)).uint(self.quorum);
                encode_signers(writer, signers);
            }
        }
    }

    /// Reads a manifest; bytes behind it are ignored, as in the reference.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let reader = &mut Reader::new(bytes);
        let version = reader.uint()?;
        if version == 0 {
            return Ok(Self::decode_v0(reader)?);
        }
        if version > LATEST {
            return Err(DecodeError::Invalid("version of a manifest").into());
        }
        let flags = reader.uint()?;
        algorithm(reader)?;
        let quorum = reader.uint()?;
        let signers = decode_signers(reader)?;
        let prologue = if flags & PROLOGUE == 0 {
            None
        } else {
            Some(Prologue { hash: reader.fixed32()?, length: reader.uint()? })
        };
        let linked =
            if flags & LINKED == 0 { None } else { Some(reader.vec(MAX_LINKED, Reader::fixed32)?) };
        let user_data = if flags & USER_DATA == 0 {
            None
        } else {
            Some(Bytes::copy_from_slice(reader.buffer()?))
        };
        let allow_patch = flags & PATCH != 0;
        Ok(Self { version, allow_patch, quorum, signers, prologue, linked, user_data })
    }

    fn decode_v0(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let empty = Self {
            version: 0,
            allow_patch: false,
            quorum: 0,
            signers: Vec::new(),
            prologue: None,
            linked: None,
            user_data: None,
        };
        algorithm(reader)?;
        match reader.uint()? {
            0 => {
                let prologue = Some(Prologue { hash: reader.fixed32()?, length: 0 });
                Ok(Self { prologue, ..empty })
            }
            1 => Ok(Self { quorum: 1, signers: vec![decode_signer(reader)?], ..empty }),
            2 => Ok(Self {
                allow_patch: reader.uint()? & PATCH != 0,
                quorum: reader.uint()?,
                signers: decode_signers(reader)?,
                ..empty
            }),
            _ => Err(DecodeError::Invalid("type of a manifest")),
        }
    }
}

/// The hash function or signature scheme: 0 is BLAKE2b or ed25519, and there is no other.
fn algorithm(reader: &mut Reader<'_>) -> Result<(), DecodeError> {
    match reader.uint()? {
        0 => Ok(()),
        _ => Err(DecodeError::Invalid("algorithm in a manifest")),
    }
}

fn encode_signer(writer: &mut Writer, signer: &Signer) {
    writer.uint(0).raw(&signer.namespace).raw(signer.public_key.as_bytes());
}

fn encode_signers(writer: &mut Writer, signers: &[Signer]) {
    writer.uint(signers.len() as u64);
    for signer in signers {
        encode_signer(writer, signer);
    }
}

fn decode_signer(reader: &mut Reader<'_>) -> Result<Signer, DecodeError> {
    algorithm(reader)?;
    Ok(Signer {
        namespace: reader.fixed32()?,
        public_key: PublicKey::from_bytes(reader.fixed32()?),
    })
}

fn decode_signers(reader: &mut Reader<'_>) -> Result<Vec<Signer>, DecodeError> {
    reader.vec(MAX_SIGNERS, decode_signer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn signer(seed: u8) -> Signer {
        Signer { namespace: [seed; 32], public_key: PublicKey::from_bytes([seed + 1; 32]) }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn manifests_have_the_bytes_of_npm_hypercore() {
        let single = Manifest::single_in(PublicKey::from_bytes([2; 32]), [1; 32]);
        let (ns, pk) = ("01".repeat(32), "02".repeat(32));
        assert_eq!(hex(&single.encode()), format!("010000010100{ns}{pk}"));
        let old = Manifest { version: 0, ..single.clone() };
        assert_eq!(hex(&old.encode()), format!("00000100{ns}{pk}"));
        let old_patch = Manifest { allow_patch: true, ..old };
        assert_eq!(hex(&old_patch.encode()), format!("00000201010100{ns}{pk}"));
        let fixed = Manifest::fixed([6; 32], 4);
        assert_eq!(hex(&fixed.encode()), format!("0102000000{}04", "06".repeat(32)));
        let all = Manifest {
            version: 2,
            allow_patch: true,
            prologue: fixed.prologue,
            linked: Some(vec![[9; 32]]),
            user_data: Some(Bytes::from_static(b"hi")),
            ..single
        };
        let tail = format!("{}0401{}026869", "06".repeat(32), "09".repeat(32));
        assert_eq!(hex(&all.encode()), format!("020f00010100{ns}{pk}{tail}"));
    }

    #[test]
    fn every_form_reads_back() {
        let single = Manifest::single(PublicKey::from_bytes([7; 32]));
        let many = Manifest { quorum: 2, signers: (0..3).map(signer).collect(), ..single.clone() };
        let empty = Some(Bytes::new());
        for manifest in [
            Manifest { version: 0, ..single.clone() },
            Manifest { version: 0, allow_patch: true, ..many.clone() },
            Manifest { version: 3, linked: Some(Vec::new()), user_data: empty, ..many },
            Manifest::fixed([1; 32], 1 << 40),
            single,
        ] {
            assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
        }
    }

    #[test]
    fn unknown_versions_and_algorithms_are_refused() {
        let good = Manifest::single(PublicKey::from_bytes([7; 32])).encode();
        for (at, value) in [(0, 4), (2, 1), (5, 1), (4, 255)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(Manifest::decode(&bad).is_err(), "byte {at}");
        }
        for end in 0..good.len() {
            assert!(Manifest::decode(&good[..end]).is_err());
        }
    }

    #[test]
    fn a_compat_manifest_is_of_its_signers_key_and_of_its_hash() {
        let manifest = Manifest::single(PublicKey::from_bytes([7; 32]));
        assert!(manifest.is_of(&[7; 32]) && manifest.is_compat(&[7; 32]));
        assert!(manifest.is_of(&manifest.key()) && !manifest.is_compat(&manifest.key()));
        assert!(!manifest.is_of(&[8; 32]));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(manifest) = Manifest::decode(&bytes) {
                prop_assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
            }
        }
    }
}
