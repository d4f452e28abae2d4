//! Reading a key that a person typed or pasted, and saying what is wrong with it.

use std::sync::Mutex;

use curve25519_dalek::edwards::CompressedEdwardsY;

use super::link::{LINK_PREFIX, percent_decode};
use crate::crypto::PublicKey;
use crate::error::{Error, ErrorCode};
use crate::sync::lock;

/// A key as z32 has this many characters.
const Z32_LENGTH: usize = 52;
/// A key as hex has this many characters.
const HEX_LENGTH: usize = 64;
/// Longer input is not looked at.
const INPUT_LIMIT: usize = 4096;
/// The longest piece of input that an error repeats.
const SHOWN: usize = 16;

/// A key, and what the link it came in says besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedKey {
    /// The key: a point of the curve's prime-order group.
    pub key: PublicKey,
    /// The nickname that the link suggests. Unfiltered: the words of whoever made the link.
    pub nickname: Option<String>,
}

/// What is wrong with a text that should be a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Nothing but white space.
    #[error("the key is empty: paste the 52 characters, or the alex:// link, of the other server")]
    Empty,
    /// Neither 52 nor 64 characters.
    #[error(
        "a key has 52 characters (z32) or 64 (hex), this has {got}: part of it may be missing, or something was pasted along with it"
    )]
    Length {
        /// The number of characters given.
        got: usize,
    },
    /// A character that the alphabet does not have.
    #[error("character {position} of the key is '{character}', which no {alphabet} key contains{hint}", hint = hint(*.character))]
    Character {
        /// Counted from 1, in the key without its surroundings.
        position: usize,
        /// The character.
        character: char,
        /// `z32` or `hex`.
        alphabet: &'static str,
    },
    /// The bits that z32 leaves over at the end are not zero: the last character is wrong.
    #[error("the last character of the key is wrong: one or more characters were mistyped")]
    Ending,
    /// 32 bytes that no key pair has as its public half.
    #[error("these 32 bytes are not a public key: one or more characters were mistyped")]
    NotAKey,
    /// A link of another kind.
    #[error(
        "this link does not lead to a peer: an invite begins with alex://peer/, this with '{0}'"
    )]
    Link(String),
    /// The link's name has a broken percent escape.
    #[error("the name in the link is not valid: copy the whole link again, or use the key alone")]
    LinkName,
    /// The key of this very server.
    #[error("this is the key of this server itself: ask the other server for its key")]
    Own,
}

impl From<KeyError> for Error {
    fn from(error: KeyError) -> Self {
        Self::new(ErrorCode::InvalidKey, error.to_string())
    }
}

/// Look-alikes of characters that z32 has.
fn hint(character: char) -> &'static str {
    match character {
        '0' => " (zero; perhaps an 'o')",
        'l' | 'L' => " (perhaps a 1 or an i)",
        '2' => " (perhaps a 'z')",
        'v' | 'V' => " (perhaps a 'u')",
        _ => "",
    }
}

/// Reads a key as z32 (52 characters, either case), as hex (64), or as an invite link, with white space
/// around it.
///
/// # Errors
///
/// [`KeyError`] says what is wrong, for the person who typed it.
pub fn parse_key(text: &str) -> Result<ParsedKey, KeyError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(KeyError::Empty);
    }
    if text.len() > INPUT_LIMIT {
        return Err(KeyError::Length { got: text.chars().count() });
    }
    let (key, nickname) = match text.get(..LINK_PREFIX.len()) {
        Some(prefix) if prefix.eq_ignore_ascii_case(LINK_PREFIX) => {
            split_link(&text[LINK_PREFIX.len()..])?
        }
        _ if text.contains("://") => {
            return Err(KeyError::Link(text.chars().take(SHOWN).collect()));
        }
        _ => (text, None),
    };
    let bytes = match key.chars().count() {
        Z32_LENGTH => decode_z32(key)?,
        HEX_LENGTH => decode_hex(key)?,
        0 => return Err(KeyError::Empty),
        got => return Err(KeyError::Length { got }),
    };
    if !is_key(&bytes) {
        return Err(KeyError::NotAKey);
    }
    Ok(ParsedKey { key: PublicKey::from_bytes(bytes), nickname })
}

/// The key and the name of what follows `alex://peer/`. Other parameters are for versions to come.
fn split_link(rest: &str) -> Result<(&str, Option<String>), KeyError> {
    let rest = rest.split('#').next().unwrap_or(rest);
    let (key, query) = rest.split_once('?').unwrap_or((rest, ""));
    let name = query.split('&').find_map(|pair| pair.strip_prefix("name="));
    let name = match name {
        Some(name) => Some(percent_decode(name).ok_or(KeyError::LinkName)?),
        None => None,
    };
    let name = name.filter(|name| !name.trim().is_empty());
    Ok((key.trim_end_matches('/'), name))
}

fn decode_z32(text: &str) -> Result<[u8; 32], KeyError> {
    let text = text.to_ascii_lowercase();
    check_alphabet(&text, "z32", |c| c.is_ascii() && z32::ALPHABET.contains(&(c as u8)))?;
    let key = PublicKey::from_z32(&text).ok_or(KeyError::NotAKey)?;
    if key.to_z32() == text { Ok(*key.as_bytes()) } else { Err(KeyError::Ending) }
}

fn decode_hex(text: &str) -> Result<[u8; 32], KeyError> {
    check_alphabet(text, "hex", |c| c.is_ascii_hexdigit())?;
    super::keyfile::from_hex(text).ok_or(KeyError::NotAKey)
}

fn check_alphabet(
    text: &str,
    alphabet: &'static str,
    allowed: impl Fn(char) -> bool,
) -> Result<(), KeyError> {
    match text.chars().enumerate().find(|(_, character)| !allowed(*character)) {
        // A control character in an error message would reach a terminal or a page.
        Some((index, character)) => Err(KeyError::Character {
            position: index + 1,
            character: if character.is_control() { '\u{fffd}' } else { character },
            alphabet,
        }),
        None => Ok(()),
    }
}

/// Whether some key pair has these bytes as its public half: a canonical encoding of a point in the
/// prime-order group, as libsodium's `crypto_core_ed25519_is_valid_point` asks.
fn is_key(bytes: &[u8; 32]) -> bool {
    if *lock(&FOUND_LAST) == Some(*bytes) {
        return true;
    }
    let compressed = CompressedEdwardsY(*bytes);
    let is_key = compressed.decompress().is_some_and(|point| {
        point.compress() == compressed && !point.is_small_order() && point.is_torsion_free()
    });
    if is_key {
        *lock(&FOUND_LAST) = Some(*bytes);
    }
    is_key
}

/// The last key that was one: a program asks one peer for many books, and finding this out takes as long as
/// all else that happens on its thread then.
static FOUND_LAST: Mutex<Option<[u8; 32]>> = Mutex::new(None);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::KeyPair;
    use proptest::prelude::*;

    fn key() -> PublicKey {
        KeyPair::from_seed(&[9; 32]).public_key()
    }

    fn parsed(text: &str) -> Result<PublicKey, KeyError> {
        parse_key(text).map(|parsed| parsed.key)
    }

    #[test]
    fn z32_hex_and_link_give_the_same_key() {
        let z32 = key().to_z32();
        let hex: String = key().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let forms = [
            z32.clone(),
            z32.to_uppercase(),
            format!("\n  {z32}\t\r\n"),
            hex.clone(),
            hex.to_uppercase(),
            format!("alex://peer/{z32}"),
            format!("ALEX://peer/{z32}/?x=1#top"),
        ];
        for text in forms {
            assert_eq!(parsed(&text), Ok(key()), "{text:?}");
        }
    }

    #[test]
    fn a_link_suggests_a_nickname() {
        let link = super::super::invite_link(&key(), Some("Jürgen & Co"));
        let parsed = parse_key(&link).unwrap();
        assert_eq!(parsed.nickname.as_deref(), Some("Jürgen & Co"));
        assert_eq!(parsed.key, key());
    }

    #[test]
    fn what_is_wrong_is_said() {
        let z32 = key().to_z32();
        assert_eq!(parsed("  "), Err(KeyError::Empty));
        assert_eq!(parsed("alex://peer/"), Err(KeyError::Empty));
        assert_eq!(parsed(&z32[1..]), Err(KeyError::Length { got: 51 }));
        assert_eq!(parsed(&format!("{z32}{z32}")), Err(KeyError::Length { got: 104 }));
        assert_eq!(
            parsed(&format!("https://x/{z32}")),
            Err(KeyError::Link("https://x/".to_owned() + &z32[..6]))
        );
        assert_eq!(parsed(&format!("alex://peer/{z32}?name=%f")), Err(KeyError::LinkName));
        let typo = format!("{}l{}", &z32[..9], &z32[10..]);
        let error = parsed(&typo).unwrap_err();
        assert_eq!(error, KeyError::Character { position: 10, character: 'l', alphabet: "z32" });
        assert!(
            error.to_string().contains("character 10") && error.to_string().contains("perhaps")
        );
    }

    #[test]
    fn bytes_that_are_no_public_key_are_refused() {
        // Zero is of small order, 2 is not on the curve, the last is the identity in another encoding.
        let mut identity = [0; 32];
        identity[0] = 1;
        let mut off_curve = [0; 32];
        off_curve[0] = 2;
        for bytes in [[0; 32], identity, off_curve, [0xff; 32]] {
            assert_eq!(parsed(&z32::encode(&bytes)), Err(KeyError::NotAKey), "{bytes:?}");
        }
    }

    #[test]
    fn a_mistyped_last_character_is_not_another_spelling_of_the_key() {
        let z32 = key().to_z32();
        let accepted = z32::ALPHABET.iter().filter(|character| {
            parsed(&format!("{}{}", &z32[..51], char::from(**character))) == Ok(key())
        });
        assert_eq!(accepted.count(), 1);
    }

    #[test]
    fn every_key_pair_parses() {
        for seed in 0..64 {
            let key = KeyPair::from_seed(&[seed; 32]).public_key();
            assert_eq!(parsed(&key.to_z32()), Ok(key));
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,120}") {
            let _ = parse_key(&text);
            let _ = parse_key(&format!("alex://peer/{text}"));
        }
    }
}
