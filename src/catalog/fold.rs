//! Texts as they are compared: without case and accents, in words, and no longer than needed.

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

use crate::text::prefix;

/// Appends the words of `text` to `out`, folded and parted by single spaces. At most `max_bytes` of
/// `text` are read.
pub(super) fn fold_into(out: &mut String, text: &str, max_bytes: usize) {
    let text = prefix(text, max_bytes);
    let start = out.len();
    let mut is_between = true;
    if text.is_ascii() {
        for byte in text.bytes() {
            if byte.is_ascii_alphanumeric() {
                if is_between && out.len() > start {
                    out.push(' ');
                }
                out.push(char::from(byte.to_ascii_lowercase()));
            }
            is_between = !byte.is_ascii_alphanumeric();
        }
        return;
    }
    let mut push = |c: char| {
        if c.is_alphanumeric() || is_combining_mark(c) {
            if is_between && out.len() > start {
                out.push(' ');
            }
            is_between = false;
            out.push(c);
        } else {
            is_between = true;
        }
    };
    for c in text.nfkd().filter(|c| !is_accent(*c)).flat_map(char::to_lowercase) {
        match c {
            'ß' => ['s', 's'].into_iter().for_each(&mut push),
            'æ' => ['a', 'e'].into_iter().for_each(&mut push),
            'œ' => ['o', 'e'].into_iter().for_each(&mut push),
            'ø' => push('o'),
            'ł' => push('l'),
            'đ' => push('d'),
            'ı' => push('i'),
            c if is_accent(c) => {}
            c => push(c),
        }
    }
}

/// The words of `text`, folded, as a key to sort by; at most `max_bytes`.
pub(super) fn fold(text: &str, max_bytes: usize) -> String {
    let mut out = String::new();
    // Accents take room before they are dropped.
    fold_into(&mut out, text, max_bytes.saturating_mul(2));
    out.truncate(prefix(&out, max_bytes).len());
    out.truncate(out.trim_end().len());
    out
}

/// The marks that Latin, Greek and Cyrillic letters carry; other scripts' marks are part of the word.
fn is_accent(c: char) -> bool {
    ('\u{300}'..='\u{36f}').contains(&c)
}

/// An ISBN of 10 or 13 digits, however it is parted, as 13 digits; `None` for what is none.
///
/// Check digits are not verified: catalogs are full of wrong ones, which find themselves all the same.
pub(super) fn isbn(text: &str) -> Option<String> {
    let mut digits = String::with_capacity(13);
    for c in prefix(text, 40).chars() {
        match c {
            '0'..='9' => digits.push(c),
            'x' | 'X' if digits.len() == 9 => digits.push('X'),
            '-' | '\u{2010}'..='\u{2013}' => {}
            c if c.is_whitespace() => {}
            _ => return None,
        }
    }
    match digits.len() {
        13 if !digits.contains('X') => Some(digits),
        10 => {
            let body = format!("978{}", prefix(&digits, 9));
            let sum: u32 = body
                .bytes()
                .zip([1, 3].into_iter().cycle())
                .map(|(d, w)| u32::from(d - b'0') * w)
                .sum();
            Some(format!("{body}{}", (10 - sum % 10) % 10))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn case_and_accents_do_not_matter() {
        assert_eq!(fold("Les Misérables — L’été", 100), "les miserables l ete");
        assert_eq!(fold("Straße ÆØ Łódź İstanbul", 100), "strasse aeo lodz istanbul");
        assert_eq!(fold("ＨＡＲＲＹ", 100), "harry");
        assert_eq!(fold("...", 100), "");
    }

    #[test]
    fn an_isbn_of_10_digits_is_the_one_of_13() {
        assert_eq!(isbn("0-14-143951-3").as_deref(), Some("9780141439518"));
        assert_eq!(isbn("978 0 14 143951 8").as_deref(), Some("9780141439518"));
        assert_eq!(isbn("080442957X").as_deref(), Some("9780804429573"));
        assert_eq!(isbn("978-0-14"), None);
        assert_eq!(isbn("x234567890"), None);
    }

    proptest! {
        #[test]
        fn a_folded_text_is_bounded_and_stays_itself(text in ".*", max in 0usize..80) {
            let once = fold(&text, max);
            prop_assert!(once.len() <= max);
            prop_assert!(!once.contains("  ") && once.trim() == once);
        }
    }
}
