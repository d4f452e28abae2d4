//! The messages of the protocol `blind-relay` (npm `blind-relay` `index.js`).

use crate::encoding::{Reader, Result, Writer};

/// The protocol's name; a channel's id is the key of the relay's client.
pub(super) const PROTOCOL: &str = "blind-relay";
/// The type of a [`Pair`].
pub(super) const PAIR: u32 = 0;
/// The type of a message that takes a pairing back.
pub(super) const UNPAIR: u32 = 1;

/// What both sides of a connection tell the relay: the same for both, and nobody else knows it.
pub(crate) type Token = [u8; 32];

/// Asks for a pairing, and answers that it came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pair {
    /// One side of a pairing is the initiator: the one whose relay it is.
    pub is_initiator: bool,
    pub token: Token,
    /// The sender's stream: what packets to the sender are for.
    pub id: u32,
}

impl Pair {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_capacity(40);
        let flags = u8::from(self.is_initiator);
        writer.u8(flags).raw(&self.token).uint(u64::from(self.id)).uint(0);
        writer.into_vec()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        let is_initiator = reader.u8()? & 1 != 0;
        let token = reader.fixed32()?;
        let id = u32::try_from(reader.uint()?)
            .map_err(|_| crate::encoding::DecodeError::Invalid("UDX stream id"))?;
        let _seq = reader.uint()?;
        Ok(Self { is_initiator, token, id })
    }
}

/// Takes the pairing of `token` back.
pub(super) fn encode_unpair(token: &Token) -> Vec<u8> {
    let mut writer = Writer::with_capacity(33);
    writer.u8(0).raw(token);
    writer.into_vec()
}

pub(super) fn decode_unpair(bytes: &[u8]) -> Result<Token> {
    let mut reader = Reader::new(bytes);
    reader.u8()?;
    reader.fixed32()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_pair_takes_the_bytes_of_the_reference() {
        let pair = Pair { is_initiator: true, token: [7; 32], id: 0xdead_beef };
        let expected = [&[1][..], &[7; 32], &[0xfe, 0xef, 0xbe, 0xad, 0xde, 0]].concat();
        assert_eq!(pair.encode(), expected);
        assert_eq!(Pair::decode(&expected), Ok(pair));
    }

    #[test]
    fn an_unpair_takes_the_bytes_of_the_reference() {
        let expected = [&[0][..], &[7; 32]].concat();
        assert_eq!(encode_unpair(&[7; 32]), expected);
        assert_eq!(decode_unpair(&expected), Ok([7; 32]));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Pair::decode(&bytes);
            let _ = decode_unpair(&bytes);
        }
    }
}
