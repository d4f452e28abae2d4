//! The invite link: `alex://peer/<z32>?name=<percent-encoded>`.

use crate::crypto::PublicKey;

/// What an invite link begins with.
pub const LINK_PREFIX: &str = "alex://peer/";

/// The longest nickname, in characters, that goes into a link; the rest is cut off.
const NAME_CHARS: usize = 64;

/// The link that carries `key`, and a nickname to suggest to whoever opens it.
#[must_use]
pub fn invite_link(key: &PublicKey, nickname: Option<&str>) -> String {
    let mut link = format!("{LINK_PREFIX}{}", key.to_z32());
    if let Some(name) = nickname.map(str::trim).filter(|name| !name.is_empty()) {
        link.push_str("?name=");
        let name: String = name.chars().take(NAME_CHARS).collect();
        percent_encode(&name, &mut link);
    }
    link
}

/// Everything but RFC 3986's unreserved characters as `%XX` of its UTF-8, as `encodeURIComponent` does
/// (which leaves a few more as they are).
fn percent_encode(text: &str, out: &mut String) {
    const HEX: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let (high, low) = (usize::from(byte >> 4), usize::from(byte & 15));
            out.extend(['%', HEX[high], HEX[low]]);
        }
    }
}

/// The text that `%XX` and `+` (a space, as HTML forms write it) stand for. `None` for a broken escape
/// or bytes that are no UTF-8.
pub(super) fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                u8::try_from(high * 16 + low).ok()?
            }
            b'+' => b' ',
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::KeyPair;

    #[test]
    fn a_name_is_escaped_and_reads_back() {
        let key = KeyPair::from_seed(&[1; 32]).public_key();
        let link = invite_link(&key, Some(" Zoë & Öl+50% "));
        let (_, query) = link.split_once("?name=").unwrap();
        assert_eq!(query, "Zo%C3%AB%20%26%20%C3%96l%2B50%25");
        assert_eq!(percent_decode(query).unwrap(), "Zoë & Öl+50%");
        assert_eq!(invite_link(&key, None), format!("alex://peer/{}", key.to_z32()));
    }

    #[test]
    fn a_broken_escape_is_none() {
        for text in ["%", "%4", "%zz", "%ff", "%+4"] {
            assert_eq!(percent_decode(text), None, "{text}");
        }
    }
}
