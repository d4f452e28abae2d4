//! The proof, in a channel's open, that its sender knows the core's key and not only its discovery
//! key (`replicate` in npm `hypercore/lib/caps.js`).
//!
//! It is bound to the connection by the Noise handshake's hash and to the side by a namespace, so
//! that it can be neither replayed on another connection nor reflected.

use crate::crypto::{Hash, KEY_LENGTH, keyed_hash, namespace};

/// What the side that initiated the connection, or the one that answered it, must present.
pub(super) fn capability(initiator: bool, key: &[u8; KEY_LENGTH], handshake: &[u8; 64]) -> Hash {
    let side = if initiator { 1 } else { 2 };
    keyed_hash(handshake, &[&namespace("hypercore", side), key])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_have_the_capabilities_of_npm_hypercore() {
        // caps.replicate(true, Buffer.alloc(32, 7), Buffer.alloc(64, 9)), and with false
        let hex = |hash: Hash| hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(
            hex(capability(true, &[7; 32], &[9; 64])),
            "8ed14c9684d567ea4547c55234dfca531bcb635ec1b6904c6a7247a67333550a"
        );
        assert_eq!(
            hex(capability(false, &[7; 32], &[9; 64])),
            "c61b2623c2b5593cfb9a172c1961de74ab5282648a1a55f69b3a2659f5169edd"
        );
    }
}
