//! The Noise handshake and the encrypted stream of messages that follows it.
//!
//! The reference is npm `@hyperswarm/secret-stream` with `noise-handshake` and `noise-curve-ed`.
//! Noise runs over ed25519 keys (`Noise_XX_Ed25519_ChaChaPoly_BLAKE2b` on a plain stream,
//! `Noise_IK_…` inside HyperDHT's handshake). Then each side sends one header message of 32 bytes of
//! stream id and 24 bytes of libsodium's secretstream header, and after it any number of encrypted
//! messages. Everything on the raw stream has a 3-byte little-endian length in front.
//!
//! [`Handshake`] and the framing know no socket and no clock; [`SecretStream`] carries them over
//! anything that is `AsyncRead + AsyncWrite`.

mod cipher;
mod dh;
mod frame;
mod handshake;
mod raw;
mod stream;
mod xx;

pub use handshake::{Handshake, Pattern, Session};
pub use stream::{SecretReceiver, SecretSender, SecretStream, StreamOptions};
pub use xx::connect_xx;

/// The most bytes that one message can carry: 2^24 - 1 on the wire, less what encryption adds.
pub const MAX_MESSAGE: usize = 0xff_ffff - cipher::OVERHEAD;

/// Why a handshake or an encrypted stream failed. Every error ends the connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretStreamError {
    /// A handshake message was not valid: a wrong key, prologue or order, or damage on the way.
    #[error("the Noise handshake failed")]
    Handshake,
    /// The remote's public key is not usable: off the curve, of small order, or not canonical.
    #[error("the public key is not a valid point")]
    InvalidKey,
    /// The handshake is not finished, or was finished before.
    #[error("the handshake is not at this step")]
    OutOfOrder,
    /// The first message is not the header that the handshake promised.
    #[error("the stream starts with a wrong header")]
    InvalidHeader,
    /// A message is too short to be one, or failed authentication.
    #[error("a message could not be decrypted")]
    Decrypt,
    /// A message is longer than allowed.
    #[error("a message of {length} bytes exceeds the limit of {limit}")]
    TooLong {
        /// The message's bytes.
        length: usize,
        /// What is allowed.
        limit: usize,
    },
    /// The raw stream ended inside a message or before the header.
    #[error("the stream ended inside a message")]
    Truncated,
    /// Nothing arrived for as long as the receive timeout allows, or the handshake took too long.
    #[error("nothing arrived in time")]
    Timeout,
    /// The raw stream failed.
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
}

/// What this module's functions return.
pub type Result<T, E = SecretStreamError> = std::result::Result<T, E>;
