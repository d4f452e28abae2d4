//! Whether a tree is what a manifest's signers signed, or what its prologue says; and signing.
//!
//! The reference is npm `hypercore/lib/verifier.js`, `multisig.js` and `caps.js`.

use std::collections::HashMap;

use super::flat_tree;
use super::manifest::{MAX_SIGNERS, Manifest, Signer};
use super::messages::{DataUpgrade, MAX_INDEX, Node};
use super::tree::{Batch, Roots};
use crate::crypto::{Hash, KeyPair, namespace};
use crate::encoding::{DecodeError, Reader, Writer};

/// The most nodes that signatures over different lengths may need together.
const MAX_PATCH_NODES: usize = 2048;

/// Checks signatures of one core.
pub(super) struct Verifier<'a> {
    key: &'a Hash,
    manifest: &'a Manifest,
    compat: bool,
}

/// One signer's part of a signature.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    signer: u64,
    signature: [u8; 64],
    /// How many blocks further the signer signed.
    patch: u64,
}

impl<'a> Verifier<'a> {
    pub(super) fn new(key: &'a Hash, manifest: &'a Manifest) -> Self {
        Self { key, manifest, compat: manifest.is_compat(key) }
    }

    /// Whether `signature` is enough for the manifest, over the tree that the batch has grown to.
    pub(super) fn verify(&self, batch: &Batch, fork: u64, signature: Option<&[u8]>) -> bool {
        if self.version() == 0 {
            let Some(signature) = signature else { return false };
            return match self.manifest.signers.as_slice() {
                [signer] if self.compat || !self.manifest.allow_patch => {
                    self.verify_one(signer, &batch.roots, fork, signature)
                }
                _ => self.verify_multi(batch, fork, signature),
            };
        }
        if let Some(prologue) = self.manifest.prologue
            && batch.roots.length <= prologue.length
        {
            return batch.roots.length == prologue.length && batch.roots.hash() == prologue.hash;
        }
        signature.is_some_and(|signature| self.verify_multi(batch, fork, signature))
    }

    /// Signs the tree with the manifest's one signer, in the form that goes on the wire.
    pub(super) fn sign(&self, roots: &Roots, fork: u64, key_pair: &KeyPair) -> Option<Vec<u8>> {
        let [signer] = self.manifest.signers.as_slice() else { return None };
        if signer.public_key != key_pair.public_key() || self.manifest.quorum != 1 {
            return None;
        }
        let signature = key_pair.sign(&self.signable(signer, roots, fork));
        if self.version() == 0 {
            return Some(signature.to_vec());
        }
        let mut writer = Writer::with_capacity(68);
        writer.uint(1).uint(0).raw(&signature).uint(0).uint(0);
        Some(writer.into_vec())
    }

    fn version(&self) -> u64 {
        if self.compat { 0 } else { self.manifest.version }
    }

    fn signable(&self, signer: &Signer, roots: &Roots, fork: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(112);
        out.extend_from_slice(&namespace("hypercore", 0));
        if !self.compat {
            let context = if self.version() == 0 { &signer.namespace } else { self.key };
            out.extend_from_slice(context);
        }
        out.extend_from_slice(&roots.hash());
        out.extend_from_slice(&roots.length.to_le_bytes());
        out.extend_from_slice(&fork.to_le_bytes());
        out
    }

    fn verify_one(&self, signer: &Signer, roots: &Roots, fork: u64, signature: &[u8]) -> bool {
        signature.try_into().is_ok_and(|signature| {
            signer.public_key.verify(&self.signable(signer, roots, fork), signature)
        })
    }

    fn verify_multi(&self, batch: &Batch, fork: u64, signature: &[u8]) -> bool {
        let manifest = self.manifest;
        let Ok((parts, patch)) = decode(signature, self.version()) else { return false };
        let Ok(quorum) = usize::try_from(manifest.quorum) else { return false };
        if quorum == 0 || parts.len() < quorum {
            return false;
        }
        let patch: HashMap<u64, Node> = patch.into_iter().map(|node| (node.index, node)).collect();
        let mut tried = vec![false; manifest.signers.len()];
        parts.iter().take(quorum).all(|part| {
            let extended;
            let mut roots = &batch.roots;
            if part.patch != 0 && manifest.allow_patch {
                match extend(batch, part.patch, &patch, manifest) {
                    Some(further) => extended = further,
                    None => return false,
                }
                roots = &extended.roots;
            }
            let Ok(index) = usize::try_from(part.signer) else { return false };
            let (Some(signer), Some(tried)) = (manifest.signers.get(index), tried.get_mut(index))
            else {
                return false;
            };
            !std::mem::replace(tried, true) && self.verify_one(signer, roots, fork, &part.signature)
        })
    }
}

/// The tree that a signer signed who was `more` blocks ahead.
fn extend(
    batch: &Batch,
    more: u64,
    patch: &HashMap<u64, Node>,
    manifest: &Manifest,
) -> Option<Batch> {
    let start = batch.roots.length;
    let target = start.checked_add(more).filter(|target| *target <= MAX_INDEX / 2)?;
    let path = flat_tree::upgrade_path(start, target);
    let nodes = path.iter().map(|index| patch.get(index).copied()).collect::<Option<Vec<_>>>()?;
    let upgrade =
        DataUpgrade { start, length: more, nodes, additional_nodes: Vec::new(), signature: None };
    let mut extended = Batch::new(batch.roots.clone());
    extended.upgrade(&upgrade, manifest.prologue.as_ref(), None).ok()?;
    Some(extended)
}

/// Reads a signature of many (`multiSignature` and `multiSignaturev0` in npm's `messages.js`).
fn decode(bytes: &[u8], version: u64) -> Result<(Vec<Part>, Vec<Node>), DecodeError> {
    let reader = &mut Reader::new(bytes);
    let parts = reader.vec(MAX_SIGNERS, |reader| {
        if version != 0 {
            return Ok(Part {
                signer: reader.uint()?,
                signature: reader.array()?,
                patch: reader.uint()?,
            });
        }
        let flags = reader.uint()?;
        let mut part = Part { signer: reader.uint()?, signature: reader.array()?, patch: 0 };
        if flags & 1 != 0 {
            reader.uint()?;
            part.patch = reader.uint()?;
            for _ in 0..reader.count(MAX_PATCH_NODES)? {
                reader.uint()?;
            }
        }
        Ok(part)
    })?;
    let nodes = reader.vec(MAX_PATCH_NODES, |reader| {
        Ok(Node { index: reader.uint()?, size: reader.uint()?, hash: reader.fixed32()? })
    })?;
    Ok((parts, nodes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypercore::manifest::{Prologue, default_namespace};

    fn log(length: u64) -> Batch {
        let mut batch = Batch::new(Roots::default());
        for i in 0..length {
            batch.append(format!("block {i}").as_bytes()).unwrap();
        }
        batch
    }

    fn pair(seed: u8) -> KeyPair {
        KeyPair::from_seed(&[seed; 32])
    }

    fn many(version: u64, quorum: u64, allow_patch: bool, signers: u8) -> Manifest {
        let signers = (0..signers)
            .map(|seed| Signer {
                namespace: default_namespace(),
                public_key: pair(seed).public_key(),
            })
            .collect();
        Manifest { version, quorum, allow_patch, signers, ..Manifest::single(pair(0).public_key()) }
    }

    /// Signs with each of `signers` the tree that is `ahead` blocks further.
    fn assemble(manifest: &Manifest, batch: &Batch, signers: &[(u8, u64)]) -> Vec<u8> {
        let key = manifest.key();
        let verifier = Verifier::new(&key, manifest);
        let mut writer = Writer::new();
        let mut patch = Vec::new();
        writer.uint(signers.len() as u64);
        for (seed, ahead) in signers {
            let length = batch.roots.length;
            let further = log(length + ahead);
            let signer = &manifest.signers[usize::from(*seed)];
            let signature = pair(*seed).sign(&verifier.signable(signer, &further.roots, 0));
            writer.uint(u64::from(*seed)).raw(&signature).uint(*ahead);
            for index in flat_tree::upgrade_path(length, length + ahead) {
                let found = further.found.iter().find(|found| found.node.index == index).unwrap();
                patch.push(found.node);
            }
        }
        writer.uint(patch.len() as u64);
        for node in patch {
            writer.uint(node.index).uint(node.size).raw(&node.hash);
        }
        writer.into_vec()
    }

    fn verifies(manifest: &Manifest, batch: &Batch, signature: &[u8]) -> bool {
        Verifier::new(&manifest.key(), manifest).verify(batch, 0, Some(signature))
    }

    #[test]
    fn one_signer_signs_for_its_fork_length_and_core_only() {
        let manifest = Manifest::single(pair(1).public_key());
        let key = manifest.key();
        let verifier = Verifier::new(&key, &manifest);
        let batch = log(5);
        let signature = verifier.sign(&batch.roots, 0, &pair(1)).unwrap();
        assert_eq!(signature.len(), 68);
        assert!(verifier.verify(&batch, 0, Some(&signature)));
        assert!(!verifier.verify(&batch, 1, Some(&signature)));
        assert!(!verifier.verify(&log(6), 0, Some(&signature)));
        assert!(!verifier.verify(&batch, 0, None));
        assert!(!Verifier::new(&[1; 32], &manifest).verify(&batch, 0, Some(&signature)));
        assert!(verifier.sign(&batch.roots, 0, &pair(2)).is_none());
        for byte in 0..signature.len() {
            let mut flipped = signature.clone();
            flipped[byte] ^= 1;
            // The node count at the end only matters when patches are allowed.
            let ignored = byte == 66;
            assert!(!verifier.verify(&batch, 0, Some(&flipped)) || ignored, "byte {byte}");
        }
    }

    #[test]
    fn a_compat_core_has_a_bare_signature() {
        let manifest = Manifest::single(pair(1).public_key());
        let key = *pair(1).public_key().as_bytes();
        let verifier = Verifier::new(&key, &manifest);
        let batch = log(5);
        let signature = verifier.sign(&batch.roots, 0, &pair(1)).unwrap();
        assert_eq!(signature.len(), 64);
        assert!(verifier.verify(&batch, 0, Some(&signature)));
        assert!(!verifier.verify(&log(4), 0, Some(&signature)));
        assert!(!verifies(&manifest, &batch, &signature));
    }

    #[test]
    fn a_quorum_needs_that_many_different_signers() {
        let manifest = many(1, 2, false, 3);
        let batch = log(5);
        let signed = |signers: &[(u8, u64)]| {
            verifies(&manifest, &batch, &assemble(&manifest, &batch, signers))
        };
        assert!(signed(&[(0, 0), (2, 0)]));
        assert!(!signed(&[(0, 0)]));
        assert!(!signed(&[(1, 0), (1, 0)]));
        assert!(!signed(&[(0, 0), (2, 1)]), "no patches are allowed");
    }

    #[test]
    fn signers_may_be_ahead_where_patches_are_allowed() {
        let manifest = many(1, 2, true, 3);
        for length in 1..20 {
            let batch = log(length);
            for ahead in 0..9 {
                let mut signature = assemble(&manifest, &batch, &[(0, ahead), (1, 0)]);
                assert!(verifies(&manifest, &batch, &signature), "{length} + {ahead}");
                if ahead > 0 {
                    *signature.last_mut().unwrap() ^= 1;
                    assert!(!verifies(&manifest, &batch, &signature));
                }
            }
        }
    }

    #[test]
    fn a_quorum_of_none_is_never_reached() {
        let manifest = many(1, 0, false, 1);
        let batch = log(2);
        assert!(!verifies(&manifest, &batch, &assemble(&manifest, &batch, &[(0, 0)])));
    }

    #[test]
    fn a_prologue_needs_no_signature_at_its_length_and_nothing_helps_below() {
        let manifest = Manifest::fixed(log(5).roots.hash(), 5);
        let key = manifest.key();
        let verifier = Verifier::new(&key, &manifest);
        assert!(verifier.verify(&log(5), 0, None));
        assert!(!verifier.verify(&log(4), 0, None));
        assert!(!verifier.verify(&log(6), 0, None));
        let signed = Manifest {
            prologue: Some(Prologue { hash: log(5).roots.hash(), length: 5 }),
            ..Manifest::single(pair(0).public_key())
        };
        let signature = |length| assemble(&signed, &log(length), &[(0, 0)]);
        assert!(verifies(&signed, &log(6), &signature(6)));
        assert!(!verifies(&signed, &log(4), &signature(4)));
    }

    #[test]
    fn arbitrary_signatures_never_panic() {
        let manifest = many(1, 2, true, 3);
        let good = assemble(&manifest, &log(5), &[(0, 4), (1, 0)]);
        for cut in 0..good.len() {
            assert!(!verifies(&manifest, &log(5), &good[..cut]));
        }
        let mut absurd = Writer::new();
        absurd.uint(2).uint(u64::MAX).raw(&[0; 64]).uint(u64::MAX).uint(u64::MAX).raw(&[0; 64]);
        assert!(!verifies(&manifest, &log(5), absurd.as_slice()));
        assert!(!verifies(&many(0, 2, true, 3), &log(5), &[255; 400]));
    }
}
