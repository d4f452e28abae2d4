//! A key in a form that two people compare over the phone.

use crate::crypto::{PublicKey, keyed_hash};

/// Keeps the fingerprint apart from every other hash of a key.
const CONTEXT: &[u8] = b"alex-p2p fingerprint 1";
/// Characters between two dashes.
const GROUP: usize = 4;
/// Groups shown.
const GROUPS: usize = 8;

/// 8 groups of 4 z32 characters, joined by dashes: the first 160 bits of the key's BLAKE2b-256 under a
/// context of its own. z32 leaves out what sounds or looks alike (`l`, `v`, `0`, `2`).
///
/// Every character depends on every bit of the key, so two keys with the same beginning show it at once.
#[must_use]
pub fn fingerprint(key: &PublicKey) -> String {
    let text = z32::encode(&keyed_hash(CONTEXT, &[key.as_bytes()]));
    let mut out = String::with_capacity(GROUPS * (GROUP + 1));
    for (index, character) in text.chars().take(GROUPS * GROUP).enumerate() {
        if index > 0 && index % GROUP == 0 {
            out.push('-');
        }
        out.push(character);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::KeyPair;

    #[test]
    fn a_fingerprint_is_8_groups_of_4_and_always_the_same() {
        let key = KeyPair::from_seed(&[3; 32]).public_key();
        let text = fingerprint(&key);
        let groups: Vec<_> = text.split('-').collect();
        assert_eq!(groups.len(), 8);
        assert!(groups.iter().all(|group| group.len() == 4));
        assert_eq!(text, fingerprint(&key));
        assert_ne!(text, fingerprint(&KeyPair::from_seed(&[4; 32]).public_key()));
    }
}
