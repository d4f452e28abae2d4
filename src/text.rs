//! Words from peers, made safe to show and to log.

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
