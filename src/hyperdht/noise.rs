//! The Noise handshake as HyperDHT uses it: IK, with its own prologue (`hyperdht` `lib/noise-wrap.js`).

use super::messages::{commands, namespace};
use crate::crypto::{KeyPair, PublicKey};
use crate::secret_stream::{Handshake, Pattern, SecretStreamError};

/// The client's side of a handshake with `remote`.
pub(crate) fn initiator(
    keys: &KeyPair,
    remote: &PublicKey,
) -> Result<Handshake, SecretStreamError> {
    Handshake::new(Pattern::IK, true, keys, Some(remote), &namespace(commands::PEER_HANDSHAKE))
}

/// The server's side of a handshake.
pub(crate) fn responder(keys: &KeyPair) -> Result<Handshake, SecretStreamError> {
    Handshake::new(Pattern::IK, false, keys, None, &namespace(commands::PEER_HANDSHAKE))
}
