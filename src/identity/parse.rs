//! Reading a key that a person typed or pasted, and saying what is wrong with it.

use std::sync::Mutex;

use curve25519_dalek::edwards::CompressedEdwardsY;

use super::paste;
use crate::crypto::PublicKey;
use crate::error::{Error, ErrorCode};
use crate::sync::lock;

/// A key as z32 has this many characters.
pub(super) const Z32_LENGTH: usize = 52;
/// A key as hex has this many characters.
pub(super) const HEX_LENGTH: usize = 64;
/// Longer input is not looked at.
const INPUT_LIMIT: usize = 4096;

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
    /// More than one thing that is a key, or may have been one.
    #[error("this text holds more than one key: paste only one of them")]
    Several,
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

/// Reads the one key in a text: as z32 (52 characters, either case), as hex (64), as an invite link, or in a
/// `hyper://` or `pear://` link. White space, invisible characters, quotes and words around or in it do not
/// matter.
///
/// # Errors
///
/// [`KeyError`] says what is wrong, for the person who pasted it.
pub fn parse_key(text: &str) -> Result<ParsedKey, KeyError> {
    if text.len() > INPUT_LIMIT {
        return Err(KeyError::Length { got: text.chars().count() });
    }
    let (bytes, nickname) = paste::find(text)?;
    Ok(ParsedKey { key: PublicKey::from_bytes(bytes), nickname })
}

/// Reads a key that has nothing around it.
pub(super) fn decode(key: &str) -> Result<[u8; 32], KeyError> {
    let bytes = match key.chars().count() {
        Z32_LENGTH => decode_z32(key)?,
        HEX_LENGTH => decode_hex(key)?,
        0 => return Err(KeyError::Empty),
        got => return Err(KeyError::Length { got }),
    };
    if is_key(&bytes) { Ok(bytes) } else { Err(KeyError::NotAKey) }
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
        assert_eq!(parsed(&format!("{z32}{z32}")), Err(KeyError::Several));
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

    fn hex(key: &PublicKey) -> String {
        key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn a_key_is_found_in_whatever_it_was_pasted_with() {
        let z32 = key().to_z32();
        let (hash, other) = (z32::encode(&[7; 32]), KeyPair::from_seed(&[8; 32]).public_key());
        let (front, back) = z32.split_at(30);
        let (hex_front, hex_back) = (&hex(&key())[..31], &hex(&key())[31..]);
        let fours: Vec<&str> = (0..13).map(|at| &z32[4 * at..4 * at + 4]).collect();
        let link = super::super::invite_link(&key(), Some("Zoë & Öl"));
        let (link_front, link_back) = link.split_at(link.len() - 5);
        for text in [
            // White space and what is not seen.
            format!("{front}\n{back}"),
            format!("{front}\r\n  {back}\r\n"),
            format!("{front} {back}"),
            format!("{hex_front}\n{hex_back}"),
            fours.join(" "),
            fours.join("\u{a0}"),
            fours.join("\u{200b}"),
            format!("\u{feff}{front}\u{ad}{back}\u{200b}"),
            format!("\u{202a}{front}\u{2060}{back}\u{202c}"),
            format!("{front}\u{2028}{back}"),
            format!("{front}\u{3000}{back}\0"),
            // What stands around it.
            format!("\"{z32}\""),
            format!("<{z32}>"),
            format!("„{z32}“."),
            format!("({z32}),"),
            format!("`{}`;", z32.to_uppercase()),
            format!("My key is {z32}, add me!"),
            format!("我的密钥是{z32}。"),
            format!("Key: {}", hex(&key())),
            format!("> {front}\n> {back}"),
            format!("> > My key:\n> > {z32}\n> Thanks"),
            // Links.
            format!("<alex://peer/{z32}>"),
            format!("alex://peer/{z32}."),
            format!("Add alex://peer/{z32}?name=Ada, please."),
            format!("alex://peer/{front}\n{back}?name=Ada"),
            format!("alex://peer/\n{z32}"),
            format!("alex:// peer/{front} {back}"),
            format!("Hello,\nthis is me: alex://peer/{front}\n{back}\nBye"),
            format!("Hello,\n> alex://peer/{front}\n> {back}?name=Ada\nBye"),
            format!("{link_front}\n{link_back}"),
            format!("Hello, me:\n{link_front}\n{link_back}\nBye"),
            format!("hyper://{z32}"),
            format!("HYPER://{}/a/path?q#{}", z32.to_uppercase(), other.to_z32()),
            format!("hyper://{}/", hex(&key())),
            format!("pear://{z32}"),
            format!("pear://{z32}/index.html"),
            format!("pear://0.1234.{z32}"),
            format!("pear://0.1234.{z32}.{hash}/x"),
            format!("pear://{z32}.{hash}"),
            format!("See https://alex.example/help and add alex://peer/{z32}"),
            // The same key twice is one key.
            format!("{z32} (hex: {})", hex(&key())),
            format!("alex://peer/{z32} or {z32}"),
        ] {
            assert_eq!(parsed(&text), Ok(key()), "{text:?}");
        }
        let name = |text: &str| parse_key(text).unwrap().nickname;
        for text in [&link, &format!("{link_front}\n{link_back}"), &format!("See {link} please")] {
            assert_eq!(name(text).as_deref(), Some("Zoë & Öl"), "{text:?}");
        }
    }

    #[test]
    fn what_may_be_two_keys_or_part_of_one_is_refused() {
        let z32 = key().to_z32();
        let other = KeyPair::from_seed(&[8; 32]).public_key();
        let (front, back) = z32.split_at(48);
        let cut = &z32[..51];
        let typo = format!("{}l{}", &z32[..9], &z32[10..]);
        let wrong = KeyError::Character { position: 10, character: 'l', alphabet: "z32" };
        for (text, expected) in [
            (format!("{z32} {}", other.to_z32()), KeyError::Several),
            (format!("{z32}\n{}", other.to_z32()), KeyError::Several),
            (format!("{z32}{}", other.to_z32()), KeyError::Several),
            (format!("{z32} {}", hex(&other)), KeyError::Several),
            (format!("alex://peer/{z32} alex://peer/{}", other.to_z32()), KeyError::Several),
            (format!("alex://peer/{z32}\nhyper://{}/", other.to_z32()), KeyError::Several),
            (format!("alex://peer/{cut} or {}", other.to_z32()), KeyError::Several),
            (format!("{cut} or {}", other.to_z32()), KeyError::Several),
            (format!("{typo} or {z32}"), KeyError::Several),
            (cut.to_owned(), KeyError::Length { got: 51 }),
            (format!("{cut}\n"), KeyError::Length { got: 51 }),
            (format!("My key is {cut}."), KeyError::Length { got: 51 }),
            (format!("alex://peer/{cut}?name=Ada"), KeyError::Length { got: 51 }),
            (format!("hyper://{cut}/"), KeyError::Length { got: 51 }),
            (format!("{z32}a"), KeyError::Length { got: 53 }),
            // A word that follows is none of its letters.
            (format!("alex://peer/{front} {back} is me"), KeyError::Length { got: 48 }),
            (format!("me: alex://peer/{front}\nthis\nBye"), KeyError::Length { got: 48 }),
            (format!("me: alex://peer/{front}\nyes5 is it"), KeyError::Length { got: 48 }),
            (typo.clone(), wrong.clone()),
            (format!("<{typo}>"), wrong.clone()),
            (format!("Add alex://peer/{typo}, please"), wrong.clone()),
            (format!("{} {}", &typo[..30], &typo[30..]), wrong),
            (
                format!("{}é{}", &z32[..9], &z32[10..]),
                KeyError::Character { position: 10, character: 'é', alphabet: "z32" },
            ),
            ("https://alex.example/".to_owned(), KeyError::Link("https://alex.exa".into())),
            ("alex://book/1".to_owned(), KeyError::Link("alex://book/1".into())),
            ("nonsense".to_owned(), KeyError::Length { got: 8 }),
            ("\u{200b} \u{a0}\n".to_owned(), KeyError::Empty),
        ] {
            assert_eq!(parsed(&text), Err(expected), "{text:?}");
        }
    }

    proptest! {
        /// Whatever stands around or between, the key that is found is the one that was pasted.
        #[test]
        fn a_found_key_is_the_pasted_one(
            seed in 0u8..16,
            pieces in prop::collection::vec("[ \t\r\n\u{a0}\u{200b}\u{ad}>]{0,3}", 52),
            around in prop::sample::select(vec!["", "\"", "<", "(", ".", " "]),
            scheme in prop::sample::select(vec!["", "alex://peer/", "hyper://"]),
        ) {
            let key = KeyPair::from_seed(&[seed; 32]).public_key();
            let broken: String =
                key.to_z32().chars().zip(&pieces).map(|(c, piece)| format!("{c}{piece}")).collect();
            if let Ok(found) = parsed(&format!("{around}{scheme}{broken}{around}")) {
                prop_assert_eq!(found, key);
            }
            let spaces: String = pieces.iter().map(|piece| piece.replace('>', " ")).collect();
            let z32 = key.to_z32();
            let (front, back) = z32.split_at(20);
            let broken = format!("{around}{scheme}{front}{spaces}{back}{around}");
            prop_assert_eq!(parsed(&broken), Ok(key));
        }

        /// A text with words and parts of keys gives a key that stands in it, or none.
        #[test]
        fn no_key_is_made_up(words in prop::collection::vec((0u8..6, 0usize..4, 27usize..52), 1..6)) {
            let key_of = |seed| KeyPair::from_seed(&[seed; 32]).public_key();
            let words: Vec<String> = words.iter().map(|(seed, kind, cut)| {
                let z32 = key_of(*seed).to_z32();
                match kind {
                    0 => z32,
                    1 => z32[..*cut].to_owned(),
                    2 => format!("alex://peer/{}", &z32[..*cut]),
                    _ => "this is my key".to_owned(),
                }
            }).collect();
            for separator in [" ", "\n"] {
                if let Ok(found) = parsed(&words.join(separator)) {
                    prop_assert!((0..6).any(|seed| key_of(seed) == found), "{words:?}");
                }
            }
        }

        #[test]
        fn what_is_read_reads_back_when_it_is_written(text in ".{0,40}", seed in 0u8..16, name in ".{0,40}") {
            let key = KeyPair::from_seed(&[seed; 32]).public_key();
            for text in [format!("{text} {}", key.to_z32()), super::super::invite_link(&key, Some(&name))] {
                let Ok(first) = parse_key(&text) else { continue };
                let link = super::super::invite_link(&first.key, first.nickname.as_deref());
                let again = parse_key(&link).unwrap();
                prop_assert_eq!(super::super::invite_link(&again.key, again.nickname.as_deref()), link);
                prop_assert_eq!(again.key, first.key);
            }
        }

        #[test]
        fn no_text_panics(text in ".{0,120}") {
            let _ = parse_key(&text);
            let _ = parse_key(&format!("alex://peer/{text}"));
            let _ = parse_key(&format!("{text}pear://{text}\n{text}"));
        }
    }
}
