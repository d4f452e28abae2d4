//! Names for received files: built from a stranger's words, safe on every file system.
//!
//! A name is one path component: it holds no separator, no character that Windows refuses, no control
//! or direction-override character, does not begin or end with a dot or a space, is none of DOS's
//! devices, and is at most 200 bytes long.

use crate::text;

/// The longest name without its ending, in bytes. Leaves room for " (999)" and an ending in 255.
const MAX_STEM_BYTES: usize = 180;
/// The longest file ending, in characters.
const MAX_EXTENSION_CHARS: usize = 10;

/// `Title - Author.epub`, made safe. Without a usable word it is `book`.
#[must_use]
pub fn build(title: &str, author: Option<&str>, format: Option<&str>) -> String {
    let title = component(title);
    let author = component(author.unwrap_or(""));
    let stem = match (title.is_empty(), author.is_empty()) {
        (true, true) => "book".to_owned(),
        (false, true) => title,
        (true, false) => author,
        (false, false) => format!("{title} - {author}"),
    };
    let stem = without_device(cut(&stem, MAX_STEM_BYTES));
    match extension(format.unwrap_or("")) {
        Some(extension) => format!("{stem}.{extension}"),
        None => stem,
    }
}

/// The `n`th name to try: the name itself, then `name (2).epub`, `name (3).epub`, ….
#[must_use]
pub fn numbered(name: &str, n: u32) -> String {
    if n < 2 {
        return name.to_owned();
    }
    match name.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() => format!("{stem} ({n}).{extension}"),
        _ => format!("{name} ({n})"),
    }
}

fn component(words: &str) -> String {
    let replaced: String = words
        .chars()
        .map(|c| {
            if matches!(c, '/' | '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|') { ' ' } else { c }
        })
        .collect();
    let clean = text::clean(&replaced, usize::MAX);
    let single_spaces = clean.split_whitespace().collect::<Vec<_>>().join(" ");
    cut(single_spaces.trim_start_matches(is_edge), MAX_STEM_BYTES)
}

fn is_edge(c: char) -> bool {
    c == '.' || c == '-' || c.is_whitespace()
}

/// At most `max` bytes, without a dot or a space at the end.
fn cut(words: &str, max: usize) -> String {
    text::prefix(words, max).trim_end_matches(|c: char| c == '.' || c.is_whitespace()).to_owned()
}

/// Windows takes `con`, `CON.epub` and `con.tar.gz` all for a device.
fn without_device(stem: String) -> String {
    let first = stem.split('.').next().unwrap_or("").trim_end().to_ascii_uppercase();
    let numbered = |prefix: &str| {
        first.strip_prefix(prefix).is_some_and(|rest| {
            let mut chars = rest.chars();
            matches!(chars.next(), Some('0'..='9' | '¹' | '²' | '³')) && chars.next().is_none()
        })
    };
    let is_device = matches!(first.as_str(), "CON" | "PRN" | "AUX" | "NUL" | "CONIN$" | "CONOUT$")
        || numbered("COM")
        || numbered("LPT");
    if is_device { format!("_{stem}") } else { stem }
}

fn extension(format: &str) -> Option<String> {
    let extension: String = format
        .trim()
        .trim_start_matches('.')
        .chars()
        .take_while(char::is_ascii_alphanumeric)
        .take(MAX_EXTENSION_CHARS)
        .map(|c| c.to_ascii_lowercase())
        .collect();
    (!extension.is_empty()).then_some(extension)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::{Component, Path};

    fn assert_safe(name: &str) {
        assert!(!name.is_empty() && name.len() <= 200, "{name:?}");
        assert!(!name.chars().any(|c| text::is_unsafe(c) || "/\\:*?\"<>|".contains(c)), "{name:?}");
        assert!(!name.starts_with(['.', ' ']) && !name.ends_with(['.', ' ']), "{name:?}");
        let parts: Vec<_> = Path::new(name).components().collect();
        assert!(matches!(parts.as_slice(), [Component::Normal(_)]), "{name:?}");
        assert!(name.len() == name.trim().len());
    }

    #[test]
    fn a_plain_book_keeps_its_words() {
        assert_eq!(
            build("Dracula", Some("Bram Stoker"), Some("epub")),
            "Dracula - Bram Stoker.epub"
        );
        assert_eq!(build("Война и миръ", None, Some(".PDF")), "Война и миръ.pdf");
    }

    #[test]
    fn hostile_names_stay_one_safe_component() {
        for (title, expected) in [
            ("../../x", "x"),
            ("/etc/passwd", "etc passwd"),
            ("C:\\Windows\\x", "C Windows x"),
            ("a\0b", "ab"),
            ("CON", "_CON"),
            ("com¹", "_com¹"),
            ("nul.txt", "_nul.txt"),
            ("..", "book"),
            ("", "book"),
            (" . . ", "book"),
            ("name. . .", "name"),
            (".hidden", "hidden"),
            ("\u{1b}[31mred\u{202e}gpe.exe", "[31mredgpe.exe"),
            ("-rf", "rf"),
        ] {
            let name = build(title, None, None);
            assert_eq!(name, expected, "{title:?}");
            assert_safe(&name);
        }
        assert_safe(&build(&"é".repeat(2000), Some(&"x".repeat(4000)), Some("epub")));
        assert_eq!(build("x", None, Some("../../sh")), "x");
        assert_eq!(build("x", None, Some("epub/../../y")), "x.epub");
    }

    #[test]
    fn further_names_are_numbered_before_the_ending() {
        assert_eq!(numbered("a.epub", 1), "a.epub");
        assert_eq!(numbered("a.epub", 2), "a (2).epub");
        assert_eq!(numbered("a", 3), "a (3)");
    }

    proptest! {
        #[test]
        fn any_words_give_a_safe_name(title in any::<String>(), author in any::<Option<String>>(), format in any::<Option<String>>()) {
            assert_safe(&build(&title, author.as_deref(), format.as_deref()));
        }
    }
}
