//! The handshake on a plain stream, such as TCP, where neither side knows the other's key.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::frame::{LENGTH, length_prefix};
use super::handshake::MAX_HANDSHAKE_MESSAGE;
use super::{Handshake, Pattern, Result, SecretStream, SecretStreamError};
use crate::crypto::KeyPair;

/// How long the handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Shakes hands on a plain stream with Noise XX, as npm's `new NoiseSecretStream(isInitiator, raw)`
/// does, within 10 s. The remote's key is whatever it proves to have: the caller decides about it.
///
/// # Errors
/// `Handshake`, `Timeout`, `Truncated`, or the raw stream's failure.
pub async fn connect_xx<S>(raw: S, initiator: bool, keys: &KeyPair) -> Result<SecretStream>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    timeout(HANDSHAKE_TIMEOUT, shake_hands(raw, initiator, keys))
        .await
        .map_err(|_| SecretStreamError::Timeout)?
}

async fn shake_hands<S>(mut raw: S, initiator: bool, keys: &KeyPair) -> Result<SecretStream>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut handshake = Handshake::new(Pattern::XX, initiator, keys, None, &[])?;
    let mut ours = initiator;
    while !handshake.is_complete() {
        if ours {
            let message = handshake.write(&[])?;
            let mut framed = length_prefix(message.len()).to_vec();
            framed.extend_from_slice(&message);
            raw.write_all(&framed).await?;
            raw.flush().await?;
        } else {
            handshake.read(&read_frame(&mut raw).await?)?;
        }
        ours = !ours;
    }
    Ok(SecretStream::new(raw, handshake.finish()?))
}

/// Exactly one message, so that nothing behind the handshake is read.
async fn read_frame(raw: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>> {
    let mut length = [0; 4];
    let truncated = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => SecretStreamError::Truncated,
        _ => SecretStreamError::Io(error),
    };
    raw.read_exact(&mut length[..LENGTH]).await.map_err(truncated)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_HANDSHAKE_MESSAGE {
        return Err(SecretStreamError::TooLong { length, limit: MAX_HANDSHAKE_MESSAGE });
    }
    let mut message = vec![0; length];
    raw.read_exact(&mut message).await.map_err(truncated)?;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    #[tokio::test]
    async fn both_sides_learn_the_others_key() {
        let (a, b) = duplex(10);
        let (keys_a, keys_b) = (KeyPair::generate(), KeyPair::generate());
        let (a, b) = tokio::join!(connect_xx(a, true, &keys_a), connect_xx(b, false, &keys_b));
        let (a, b) = (a.unwrap(), b.unwrap());
        assert_eq!(a.remote_public_key(), keys_b.public_key());
        assert_eq!(b.remote_public_key(), keys_a.public_key());
        assert_eq!(a.handshake_hash(), b.handshake_hash());
    }

    #[tokio::test]
    async fn a_remote_that_sends_garbage_or_leaves_is_an_error() {
        let (raw, mut other) = duplex(1000);
        other.write_all(&[3, 0, 0, 1, 2, 3]).await.unwrap();
        let outcome = connect_xx(raw, false, &KeyPair::generate()).await;
        assert!(matches!(outcome, Err(SecretStreamError::Handshake)));

        let (raw, mut other) = duplex(1000);
        other.write_all(&[255, 255, 255]).await.unwrap();
        let outcome = connect_xx(raw, false, &KeyPair::generate()).await;
        assert!(matches!(outcome, Err(SecretStreamError::TooLong { .. })));

        let (raw, _) = duplex(1000);
        let outcome = connect_xx(raw, false, &KeyPair::generate()).await;
        assert!(matches!(outcome, Err(SecretStreamError::Truncated)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_handshake_with_nobody_times_out() {
        let (raw, _other) = duplex(1000);
        let outcome = connect_xx(raw, false, &KeyPair::generate()).await;
        assert!(matches!(outcome, Err(SecretStreamError::Timeout)));
    }
}
