//! The Noise handshake over ed25519 keys, message by message, without a socket.
//!
//! The reference is npm `noise-handshake` with `noise-curve-ed`: BLAKE2b-512 hashes, so the handshake
//! hash has 64 bytes, and transport keys that are not used as Noise's cipher but for secretstream.

use std::fmt;

use snow::params::{
    BaseChoice, CipherChoice, DHChoice, HandshakeChoice, HandshakeModifierList, HandshakePattern,
    HashChoice, NoiseParams,
};
use snow::{Builder, HandshakeState};

use super::dh::{Resolver, decode_point};
use super::{Result, SecretStreamError};
use crate::crypto::{KEY_LENGTH, KeyPair, PublicKey, keyed_hash, namespace};

/// Noise messages are at most this long.
pub(super) const MAX_HANDSHAKE_MESSAGE: usize = 65_535;

/// The name that stream ids are derived under.
const NAMESPACE: &str = "hyperswarm/secret-stream";

/// Which keys the sides know before the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// The initiator knows the responder's key: two messages.
    IK,
    /// Neither side knows the other's key: three messages.
    XX,
}

impl Pattern {
    fn params(self) -> NoiseParams {
        let (pattern, name) = match self {
            Self::IK => (HandshakePattern::IK, "Noise_IK_Ed25519_ChaChaPoly_BLAKE2b"),
            Self::XX => (HandshakePattern::XX, "Noise_XX_Ed25519_ChaChaPoly_BLAKE2b"),
        };
        NoiseParams::new(
            name.to_owned(),
            BaseChoice::Noise,
            HandshakeChoice { pattern, modifiers: HandshakeModifierList { list: Vec::new() } },
            // The resolver answers with ed25519; the protocol's name above says so to the peer.
            DHChoice::Curve25519,
            CipherChoice::ChaChaPoly,
            HashChoice::Blake2b,
        )
    }
}

/// One side of a Noise handshake. Messages are alternately written and read, the initiator's first.
///
/// A failed [`read`](Self::read) or [`write`](Self::write) ends the handshake: every later call fails.
pub struct Handshake {
    state: HandshakeState,
    initiator: bool,
    public_key: PublicKey,
    failed: bool,
}

impl Handshake {
    /// Starts a handshake. `remote` is the responder's key: an IK initiator needs it, nobody else
    /// may know it. `prologue` is what both sides must agree on beforehand (HyperDHT: its
    /// `PEER_HANDSHAKE` namespace; a plain stream: empty).
    ///
    /// # Errors
    /// `InvalidKey` when `remote` is missing or no valid point.
    pub fn new(
        pattern: Pattern,
        initiator: bool,
        keys: &KeyPair,
        remote: Option<&PublicKey>,
        prologue: &[u8],
    ) -> Result<Self> {
        let seed = keys.seed();
        let mut builder = Builder::with_resolver(pattern.params(), Box::new(Resolver))
            .local_private_key(&seed)
            .and_then(|builder| builder.prologue(prologue))
            .map_err(|_| SecretStreamError::Handshake)?;
        if pattern == Pattern::IK && initiator {
            let remote = remote.ok_or(SecretStreamError::InvalidKey)?;
            decode_point(remote.as_bytes()).ok_or(SecretStreamError::InvalidKey)?;
            builder = builder
                .remote_public_key(remote.as_bytes())
                .map_err(|_| SecretStreamError::InvalidKey)?;
        }
        let state = if initiator { builder.build_initiator() } else { builder.build_responder() }
            .map_err(|_| SecretStreamError::Handshake)?;
        Ok(Self { state, initiator, public_key: keys.public_key(), failed: false })
    }

    /// The next message to send, with `payload` inside. It is encrypted as far as the pattern allows:
    /// always in IK, not in XX's first message.
    ///
    /// # Errors
    /// `OutOfOrder` when it is the remote's turn; `TooLong` when the message would exceed 65,535 bytes.
    pub fn write(&mut self, payload: &[u8]) -> Result<Vec<u8>> {
        if self.failed || self.is_complete() || !self.state.is_my_turn() {
            return Err(SecretStreamError::OutOfOrder);
        }
        // Two keys and two authentication tags are the most that a message has besides its payload.
        let length = payload.len().saturating_add(2 * KEY_LENGTH + 2 * 16);
        if length > MAX_HANDSHAKE_MESSAGE {
            let limit = MAX_HANDSHAKE_MESSAGE - 2 * KEY_LENGTH - 2 * 16;
            return Err(SecretStreamError::TooLong { length: payload.len(), limit });
        }
        let mut message = vec![0; length];
        match self.state.write_message(payload, &mut message) {
            Ok(written) => {
                message.truncate(written);
                Ok(message)
            }
            Err(_) => {
                self.failed = true;
                Err(SecretStreamError::Handshake)
            }
        }
    }

    /// Takes the remote's next message and returns the payload inside it.
    ///
    /// # Errors
    /// `Handshake` when it does not verify; `OutOfOrder` when it is our turn.
    pub fn read(&mut self, message: &[u8]) -> Result<Vec<u8>> {
        if self.failed || self.is_complete() || self.state.is_my_turn() {
            return Err(SecretStreamError::OutOfOrder);
        }
        let mut payload = vec![0; message.len().min(MAX_HANDSHAKE_MESSAGE)];
        match self.state.read_message(message, &mut payload) {
            Ok(read) => {
                payload.truncate(read);
                Ok(payload)
            }
            Err(_) => {
                self.failed = true;
                Err(SecretStreamError::Handshake)
            }
        }
    }

    /// The remote's key, once the handshake has told it. Authenticated as soon as the message that
    /// carried it was read without an error.
    #[must_use]
    pub fn remote_public_key(&self) -> Option<PublicKey> {
        let key = self.state.get_remote_static()?;
        Some(PublicKey::from_bytes(*key.first_chunk()?))
    }

    /// Whether all messages were exchanged.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        !self.failed && self.state.is_handshake_finished()
    }

    /// What the handshake agreed on.
    ///
    /// # Errors
    /// `OutOfOrder` when it is not complete.
    pub fn finish(mut self) -> Result<Session> {
        if !self.is_complete() {
            return Err(SecretStreamError::OutOfOrder);
        }
        let remote_public_key = self.remote_public_key().ok_or(SecretStreamError::OutOfOrder)?;
        let handshake_hash =
            *self.state.get_handshake_hash().first_chunk().ok_or(SecretStreamError::OutOfOrder)?;
        let (first, second) = self.state.dangerously_get_raw_split();
        let (tx, rx) = if self.initiator { (first, second) } else { (second, first) };
        Ok(Session {
            is_initiator: self.initiator,
            public_key: self.public_key,
            remote_public_key,
            handshake_hash,
            tx,
            rx,
        })
    }
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake")
            .field("initiator", &self.initiator)
            .field("public_key", &self.public_key)
            .finish_non_exhaustive()
    }
}

/// What a finished handshake leaves: both identities, the hash of everything said, and two keys.
#[derive(Clone)]
pub struct Session {
    /// Whether this side sent the first handshake message.
    pub is_initiator: bool,
    /// Our key.
    pub public_key: PublicKey,
    /// The remote's authenticated key.
    pub remote_public_key: PublicKey,
    /// BLAKE2b-512 over the whole handshake: the same on both sides, different for every connection.
    pub handshake_hash: [u8; 64],
    pub(super) tx: [u8; KEY_LENGTH],
    pub(super) rx: [u8; KEY_LENGTH],
}

impl Session {
    /// The public id that one side's half of the stream starts with.
    #[must_use]
    pub fn stream_id(&self, of_initiator: bool) -> [u8; 32] {
        let index = if of_initiator { 0 } else { 1 };
        keyed_hash(&self.handshake_hash, &[&namespace(NAMESPACE, index)])
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("is_initiator", &self.is_initiator)
            .field("public_key", &self.public_key)
            .field("remote_public_key", &self.remote_public_key)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pair(pattern: Pattern) -> (Handshake, Handshake) {
        let (a, b) = (KeyPair::from_seed(&[1; 32]), KeyPair::from_seed(&[2; 32]));
        let remote = b.public_key();
        (
            Handshake::new(pattern, true, &a, Some(&remote), b"prologue").unwrap(),
            Handshake::new(pattern, false, &b, None, b"prologue").unwrap(),
        )
    }

    #[test]
    fn ik_agrees_after_two_messages_and_tells_the_key_before_the_answer() {
        let (mut a, mut b) = pair(Pattern::IK);
        let first = a.write(b"hello").unwrap();
        assert_eq!(b.read(&first).unwrap(), b"hello");
        assert_eq!(b.remote_public_key(), Some(KeyPair::from_seed(&[1; 32]).public_key()));
        let second = b.write(b"welcome").unwrap();
        assert_eq!(a.read(&second).unwrap(), b"welcome");
        let (a, b) = (a.finish().unwrap(), b.finish().unwrap());
        assert_eq!((a.tx, a.rx), (b.rx, b.tx));
        assert_eq!(a.handshake_hash, b.handshake_hash);
        assert_eq!(a.stream_id(true), b.stream_id(true));
        assert_ne!(a.stream_id(true), a.stream_id(false));
    }

    #[test]
    fn xx_agrees_after_three_messages() {
        let (mut a, mut b) = pair(Pattern::XX);
        b.read(&a.write(&[]).unwrap()).unwrap();
        a.read(&b.write(&[]).unwrap()).unwrap();
        assert!(!a.is_complete());
        b.read(&a.write(&[]).unwrap()).unwrap();
        let (a, b) = (a.finish().unwrap(), b.finish().unwrap());
        assert_eq!((a.tx, a.rx), (b.rx, b.tx));
        assert_eq!(a.remote_public_key, b.public_key);
        assert_eq!(b.remote_public_key, a.public_key);
    }

    #[test]
    fn a_wrong_prologue_fails() {
        let (mut a, _) = pair(Pattern::IK);
        let keys = KeyPair::from_seed(&[2; 32]);
        let mut b = Handshake::new(Pattern::IK, false, &keys, None, b"another").unwrap();
        assert!(b.read(&a.write(&[]).unwrap()).is_err());
        assert!(matches!(b.write(&[]), Err(SecretStreamError::OutOfOrder)));
        assert!(b.finish().is_err());
    }

    #[test]
    fn steps_out_of_order_are_errors() {
        let (mut a, mut b) = pair(Pattern::IK);
        assert!(matches!(b.write(&[]), Err(SecretStreamError::OutOfOrder)));
        assert!(matches!(a.read(&[0; 64]), Err(SecretStreamError::OutOfOrder)));
        assert!(a.finish().is_err());
    }

    #[test]
    fn an_initiator_refuses_a_key_off_the_curve() {
        let keys = KeyPair::generate();
        let remote = PublicKey::from_bytes([0; 32]);
        let outcome = Handshake::new(Pattern::IK, true, &keys, Some(&remote), &[]);
        assert!(matches!(outcome, Err(SecretStreamError::InvalidKey)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn garbage_is_an_error_and_no_panic(garbage in proptest::collection::vec(any::<u8>(), 0..300)) {
            let (_, mut ik) = pair(Pattern::IK);
            prop_assert!(ik.read(&garbage).is_err());
            let (mut a, mut b) = pair(Pattern::XX);
            let _ = b.read(&garbage);
            a.write(&[]).unwrap();
            prop_assert!(a.read(&garbage).is_err());
        }
    }
}
