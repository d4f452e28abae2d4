//! Words from peers, made safe to show and to log.

use std::borrow::Cow;

/// `text` without control and direction-override characters, its ends trimmed, at most `max_chars`
/// characters. Line breaks and tabs become spaces.
#[must_use]
pub(crate) fn clean(text: &str, max_chars: usize) -> String {
    let shown = text.chars().filter_map(|c| match c {
        '\n' | '\r' | '\t' => Some(' '),
        c if is_unsafe(c) => None,
        c => Some(c),
    });
    let mut out: String = shown.skip_while(|c| c.is_whitespace()).take(max_chars).collect();
    out.truncate(out.trim_end().len());
    out
}

/// JSON in which every half of a surrogate pair that stands alone is U+FFFD, as JavaScript's `toWellFormed` has it.
/// A text that was cut in the middle of an emoji is otherwise no text to Rust, and all that it stands in is lost.
#[must_use]
pub(crate) fn well_formed(json: &[u8]) -> Cow<'_, [u8]> {
    let mut out: Option<Vec<u8>> = None;
    let mut at = 0;
    while let Some(offset) = json.get(at..).and_then(|rest| rest.iter().position(|b| *b == b'\\')) {
        let escape = at + offset;
        let (unit, length) = match escaped_unit(json, escape) {
            Some(unit) => (unit, 6),
            None => (0, 2),
        };
        at = escape + length;
        let is_pair = is_leading(unit) && escaped_unit(json, at).is_some_and(is_trailing);
        if is_pair {
            at += 6;
        } else if is_leading(unit) || is_trailing(unit) {
            let out = out.get_or_insert_with(|| json.to_vec());
            if let Some(place) = out.get_mut(escape..escape + 6) {
                place.copy_from_slice(b"\\ufffd");
            }
        }
    }
    out.map_or(Cow::Borrowed(json), Cow::Owned)
}

/// The UTF-16 code unit of a `\uXXXX` at this place.
fn escaped_unit(json: &[u8], at: usize) -> Option<u32> {
    let digits = json.get(at..at + 6)?.strip_prefix(b"\\u")?;
    digits.iter().try_fold(0, |unit, digit| Some(unit * 16 + char::from(*digit).to_digit(16)?))
}

const fn is_leading(unit: u32) -> bool {
    matches!(unit, 0xd800..=0xdbff)
}

const fn is_trailing(unit: u32) -> bool {
    matches!(unit, 0xdc00..=0xdfff)
}

/// The beginning of `text`: at most `max_bytes`, without cutting a character.
#[must_use]
pub(crate) fn prefix(text: &str, max_bytes: usize) -> &str {
    let end = (0..=max_bytes.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    end.and_then(|end| text.get(..end)).unwrap_or("")
}

/// Controls (which carry terminal escapes), characters that reorder or hide what follows, and the
/// separators and specials that have no glyph.
pub(crate) fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{200b}' | '\u{200e}' | '\u{200f}' // zero width (joiners stay: scripts need them), direction marks
            | '\u{2028}'..='\u{202e}' // separators, embeddings, overrides
            | '\u{2060}'..='\u{206f}' // invisible operators, isolates
            | '\u{061c}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controls_and_overrides_vanish_and_words_stay() {
        assert_eq!(clean(" a\u{1b}[2Jb\u{202e}c\u{0}\nd  ", 100), "a[2Jbc d");
        assert_eq!(clean("Война и миръ – 戦争と平和", 100), "Война и миръ – 戦争と平和");
    }

    #[test]
    fn halves_of_surrogate_pairs_are_replaced_and_pairs_stay() {
        let read = |json: &str| {
            serde_json::from_slice::<String>(&well_formed(json.as_bytes()))
                .map_err(|_| json.to_owned())
        };
        for (json, text) in [
            (r#""\ud83d\ude00 whole""#, "😀 whole"),
            (r#""half \ud83d""#, "half \u{fffd}"),
            (r#""\ude00 half""#, "\u{fffd} half"),
            (r#""\ud83d\ud83d\ude00""#, "\u{fffd}😀"),
            (r#""\ud83d\n\uDE00""#, "\u{fffd}\n\u{fffd}"),
            (r#""no escape: \\ud83d""#, r"no escape: \ud83d"),
            (r#""\\\ud83d""#, "\\\u{fffd}"),
            (r#""\u00e9 and \u4e2d""#, "é and 中"),
        ] {
            assert_eq!(read(json).as_deref(), Ok(text), "{json}");
        }
        assert!(matches!(well_formed(br#""plain \n text""#), Cow::Borrowed(_)));
        assert!(read(r#""cut \ud8""#).is_err() && read(r#""\u"#).is_err());
    }

    #[test]
    fn a_prefix_cuts_no_character() {
        assert_eq!(prefix("éé", 3), "é");
        assert_eq!(prefix("éé", 9), "éé");
        assert_eq!(prefix("é", 0), "");
    }

    #[test]
    fn the_length_is_bounded_in_characters() {
        assert_eq!(clean(&"é".repeat(5000), 10), "é".repeat(10));
    }
}
