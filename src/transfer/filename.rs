//! Names for received files: built from a stranger's words, safe on every file system, and harmless to open.
//!
//! A name is one path component: it holds no separator, no character that Windows refuses, no control
//! or direction-override character, does not begin or end with a dot or a space, is none of DOS's
//! devices, and is at most 200 bytes long. Its ending decides what a double click does, so it is one of
//! [`ENDINGS`] or `book`, which no system knows.

use crate::text;

/// The longest name without its ending, in bytes. Leaves room for " (999)" and an ending in 255.
const MAX_STEM_BYTES: usize = 180;
/// The longest file ending, in characters.
const MAX_EXTENSION_CHARS: usize = 10;
/// The ending of what is none of [`ENDINGS`].
const HARMLESS: &str = "book";

/// What books end with that a program shows and nothing runs. Not among them, though books come in them:
/// `html`, `chm`, `ps` and `rb` (scripts), `doc` (macros), `cba` (readers of ACE archives), `wma` (links that open
/// by themselves), `acsm` (fetches), and archives that may hold anything.
const ENDINGS: [&[&str]; 4] = [TEXTS, READERS, COMICS, SOUND];
const TEXTS: &[&str] = &[
    "epub", "kepub", "pdf", "djvu", "djv", "xps", "oxps", "txt", "md", "rtf", "docx", "odt", "fb2",
    "fbz", "fb3", "htmlz", "txtz",
];
/// Of Kindle and other readers.
const READERS: &[&str] = &[
    "mobi", "azw", "azw1", "azw3", "azw4", "kfx", "kpf", "prc", "pdb", "pml", "pmlz", "lit", "lrf",
    "lrx", "tcr", "tpz", "snb", "ibooks",
];
const COMICS: &[&str] = &["cbz", "cbr", "cb7", "cbt", "cbc"];
const SOUND: &[&str] = &[
    "m4b", "m4a", "mp3", "mp4", "aac", "aax", "aaxc", "flac", "ogg", "oga", "opus", "mka", "wav",
    "aiff", "ac3",
];

/// `Title - Author.epub`, made safe. Without a usable word it is `book`. A format that no book has is told in
/// the name, and not as its ending.
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
        Some(ending) if is_of_books(&ending) => format!("{stem}.{ending}"),
        Some(other) => format!("{stem} ({other}).{HARMLESS}"),
        // The title may be a file's name.
        None if has_ending(&stem) => stem,
        None => format!("{stem}.{HARMLESS}"),
    }
}

/// Whether a name ends with what books end with.
fn has_ending(name: &str) -> bool {
    let ending = name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
    ending.is_some_and(|ending| is_of_books(&ending))
}

fn is_of_books(ending: &str) -> bool {
    ENDINGS.iter().any(|endings| endings.contains(&ending))
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
    let is_device =
        matches!(first.as_str(), "CON" | "PRN" | "AUX" | "NUL" | "CONIN$" | "CONOUT$" | "CLOCK$")
            || numbered("COM")
            || numbered("LPT");
    if is_device { format!("_{stem}") } else { stem }
}

/// The ending that a format stands for: its first word. Zipped FictionBook has one of its own.
fn extension(format: &str) -> Option<String> {
    let format = format.trim().trim_start_matches('.').to_ascii_lowercase();
    if format == "fb2.zip" {
        return Some("fbz".to_owned());
    }
    let letters = format.chars().take_while(char::is_ascii_alphanumeric);
    let extension: String = letters.take(MAX_EXTENSION_CHARS).collect();
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
        let (stem, ending) = name.rsplit_once('.').unwrap();
        let is_harmless = ending == HARMLESS || is_of_books(&ending.to_lowercase());
        assert!(!stem.is_empty() && is_harmless, "{name:?}");
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
            ("nul.txt", "_nul"),
            ("nul .txt", "_nul "),
            ("..", "book"),
            ("", "book"),
            (" . . ", "book"),
            ("name. . .", "name"),
            (".hidden", "hidden"),
            ("\u{1b}[31mred\u{202e}gpe.exe", "[31mredgpe.exe"),
            ("-rf", "rf"),
            ("a.txt:evil.exe", "a.txt evil.exe"),
        ] {
            let name = build(title, None, None);
            let ending = if title.ends_with(".txt") { "txt" } else { HARMLESS };
            assert_eq!(name, format!("{expected}.{ending}"), "{title:?}");
            assert_safe(&name);
        }
        assert_safe(&build(&"é".repeat(2000), Some(&"x".repeat(4000)), Some("epub")));
        assert_safe(&build(&"é".repeat(2000), Some(&"x".repeat(4000)), Some("executable")));
        assert_eq!(build("x", None, Some("../../sh")), "x.book");
        assert_eq!(build("x", None, Some("epub/../../y")), "x.epub");
    }

    #[test]
    fn what_books_end_with_stays() {
        for format in ENDINGS.into_iter().flatten().copied() {
            assert_eq!(build("T", None, Some(format)), format!("T.{format}"));
            assert_eq!(build("T", None, Some(&format.to_uppercase())), format!("T.{format}"));
            let title = format!("T.{format}");
            assert_eq!(build(&title, None, None), title);
        }
        assert_eq!(build("T", None, Some("fb2.zip")), "T.fbz");
        assert_eq!(build("Dr. Faust", None, Some("epub")), "Dr. Faust.epub");
    }

    #[test]
    fn the_sender_does_not_choose_what_a_double_click_does() {
        let dangerous = [
            "exe",
            "EXE",
            "desktop",
            "html",
            "htm",
            "xhtml",
            "svg",
            "lnk",
            "url",
            "webloc",
            "scf",
            "bat",
            "cmd",
            "com",
            "ps1",
            "vbs",
            "js",
            "jse",
            "wsf",
            "hta",
            "msi",
            "msp",
            "scr",
            "pif",
            "cpl",
            "dll",
            "jar",
            "app",
            "command",
            "sh",
            "run",
            "bin",
            "py",
            "rb",
            "pl",
            "appimage",
            "deb",
            "rpm",
            "dmg",
            "pkg",
            "iso",
            "img",
            "vhd",
            "reg",
            "chm",
            "hlp",
            "doc",
            "docm",
            "xlsm",
            "ps",
            "cba",
            "ace",
            "acsm",
            "zip",
            "7z",
            "application",
            "exe.",
            " .exe ",
            "exe ",
            "exe\0epub",
            "exe:epub",
            "exe\u{202e}bupe",
            "éxe",
            "",
        ];
        for format in dangerous {
            for title in [
                "T",
                "T.epub",
                "T.exe",
                "T.pdf.exe",
                "T.lnk",
                "T\u{202e}bupe.exe",
                "T.exe\u{a0}",
                "T.exe.",
            ] {
                let name = build(title, None, Some(format));
                assert_safe(&name);
            }
            let name = build("T", Some("A.exe"), Some(format));
            assert!(name.ends_with(".book"), "{format:?}: {name:?}");
        }
        assert_eq!(build("T", None, Some("exe")), "T (exe).book");
        assert_eq!(build("T.exe", None, Some("epub")), "T.exe.epub");
        assert_eq!(build("T.exe", None, None), "T.exe.book");
        assert_eq!(build("T.pdf", None, Some("exe")), "T.pdf (exe).book");
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
