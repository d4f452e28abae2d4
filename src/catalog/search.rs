//! From what a person types to words and a test, and from a book to what it is found by.

use std::cmp::Reverse;
use std::fmt::Write;
use std::ops::Range;

use serde_json::Value;

use super::entry::BookEntry;
use super::fold::{fold, fold_into, isbn};
use crate::text::prefix;

/// How many words of a search count; more are left out.
const MAX_WORDS: usize = 16;
/// How much of a search is read, in bytes.
const MAX_TYPED_BYTES: usize = 1000;
/// The longest word that is looked for, in characters.
const MAX_WORD_CHARS: usize = 32;
/// The longest text that is indexed for one field, in bytes.
const MAX_FIELD_BYTES: usize = 500;
/// The longest text that is sorted by, in bytes.
const MAX_KEY_BYTES: usize = 64;
/// The longest format or language, in bytes.
const MAX_TERM_BYTES: usize = 16;
/// The longest content hash, in bytes.
const MAX_HASH_BYTES: usize = 128;
/// Sorts behind every author.
const NO_AUTHOR: &str = "\u{10ffff}";

/// Words so common that the index is not asked for them when there are others.
const STOP_WORDS: &[&str] = &[
    "the", "and", "for", "with", "from", "der", "die", "das", "und", "les", "des", "une", "del",
    "los",
];

/// What a book is found, filtered and sorted by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Keys {
    pub(super) words: String,
    pub(super) title: String,
    pub(super) author: String,
    pub(super) added: String,
    pub(super) format: String,
    pub(super) language: String,
}

impl Keys {
    /// Reads the keys of a book; all of them are bounded.
    pub(super) fn of(book: &BookEntry) -> Self {
        let Words { text: mut words, title, author } = Words::of(book);
        let key = |field: Range<usize>| cut(words.get(field).unwrap_or_default()).to_owned();
        let (title, author) = (key(title), key(author));
        let format = term(book.format.as_deref().unwrap_or(""));
        let language = language(book).map(term).unwrap_or_default();
        for (kind, term) in [('f', &format), ('l', &language)] {
            if !term.is_empty() {
                let _ = write!(words, " {}", filter_word(kind, term));
            }
        }
        if let Some(hash) = hash(book) {
            let _ = write!(words, " {}", filter_word('h', &hash));
        }
        Self {
            words,
            author: if author.is_empty() { NO_AUTHOR.to_owned() } else { author },
            title,
            added: fold(book.added_at.as_deref().unwrap_or(""), 32),
            format,
            language,
        }
    }
}

/// The words that a person finds a book by, parted by single spaces: title, author, series and ISBN.
pub(super) struct Words {
    pub(super) text: String,
    title: Range<usize>,
    author: Range<usize>,
}

impl Words {
    pub(super) fn of(book: &BookEntry) -> Self {
        let series = match book.extra.get("series") {
            Some(Value::Object(series)) => series.get("name").and_then(Value::as_str),
            Some(series) => series.as_str(),
            None => None,
        };
        let digits = book.isbn.as_deref().and_then(isbn);
        // A second time only where it is written otherwise.
        let digits = digits.as_deref().filter(|digits| book.isbn.as_deref() != Some(digits));
        let mut text = String::with_capacity(160);
        let title = append(&mut text, Some(&book.title));
        let author = append(&mut text, book.author.as_deref());
        for field in [series, book.isbn.as_deref(), digits] {
            append(&mut text, field);
        }
        Self { text, title, author }
    }
}

/// Appends the words of a field; where they are now.
fn append(text: &mut String, field: Option<&str>) -> Range<usize> {
    let before = text.len();
    let Some(field) = field else { return before..before };
    if before > 0 {
        text.push(' ');
    }
    let start = text.len();
    fold_into(text, field, MAX_FIELD_BYTES);
    let is_empty = text.len() == start;
    if is_empty {
        text.truncate(before);
    }
    if is_empty { before..before } else { start..text.len() }
}

/// A key to sort by.
fn cut(words: &str) -> &str {
    prefix(words, MAX_KEY_BYTES).trim_end()
}

/// The hash of the book's bytes, if its server says it.
pub(super) fn hash(book: &BookEntry) -> Option<String> {
    let hash = book.extra.get("hash")?.as_str()?;
    let is_sound = (16..=MAX_HASH_BYTES).contains(&hash.len())
        && hash.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_sound.then(|| hash.to_ascii_lowercase())
}

/// A format or a language as it is compared.
pub(super) fn term(text: &str) -> String {
    fold(text, MAX_TERM_BYTES).replace(' ', "")
}

/// What books of a format (`f`), language (`l`) or hash (`h`) have in the index besides their words.
/// Nobody types it: the sign is no part of a word.
pub(super) fn filter_word(kind: char, term: &str) -> String {
    format!("\u{a4}{kind}{term}")
}

fn language(book: &BookEntry) -> Option<&str> {
    book.extra.get("language").and_then(Value::as_str)
}

/// The words of a search.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Typed {
    words: Vec<String>,
    /// All of it, folded: what a title begins with that is shown first.
    pub(super) text: String,
}

impl Typed {
    /// Reads what a person typed; `None` when it is not empty and yet has nothing to look for.
    pub(super) fn read(input: &str) -> Option<Self> {
        if input.trim().is_empty() {
            return Some(Self::default());
        }
        if let Some(digits) = isbn(input.trim()) {
            return Some(Self { words: vec![digits.clone()], text: digits });
        }
        let mut text = String::new();
        fold_into(&mut text, input, MAX_TYPED_BYTES);
        let mut words: Vec<String> = Vec::new();
        for word in text.split(' ').filter(|word| !word.is_empty()).take(MAX_WORDS) {
            let word: String = word.chars().take(MAX_WORD_CHARS).collect();
            if !words.contains(&word) {
                words.push(word);
            }
        }
        (!words.is_empty()).then_some(Self { words, text })
    }

    /// Whether everything is found.
    pub(super) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The words that tell books apart, the longest first, and whether they are all: else
    /// [`Self::finds`] has to be asked of what they find.
    pub(super) fn rare(&self) -> (Vec<&str>, bool) {
        let words = || self.words.iter().map(String::as_str);
        let is_rare = |word: &&str| word.chars().count() > 2 && !STOP_WORDS.contains(word);
        let mut chosen: Vec<_> = words().filter(is_rare).collect();
        if chosen.is_empty() {
            chosen = words().collect();
        }
        chosen.sort_by_key(|word| Reverse(word.len()));
        let is_all = chosen.len() == self.words.len();
        (chosen, is_all)
    }

    /// Whether each of the words begins one of `words`.
    pub(super) fn finds(&self, words: &str) -> bool {
        self.words
            .iter()
            .all(|typed| words.split([' ', '\u{1}']).any(|word| word.starts_with(typed.as_str())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rare(input: &str) -> Option<Vec<String>> {
        let typed = Typed::read(input)?;
        Some(typed.rare().0.into_iter().map(str::to_owned).collect())
    }

    fn words(input: &str) -> Option<Vec<String>> {
        Some(input.split(' ').map(str::to_owned).collect())
    }

    #[test]
    fn each_word_is_looked_for_once_and_the_longest_first() {
        assert_eq!(rare("  pot  harry "), words("harry pot"));
        assert_eq!(rare("say \"hi\" say"), words("say"));
    }

    #[test]
    fn common_words_are_looked_for_only_where_there_are_no_others() {
        assert_eq!(rare("the hobbit"), words("hobbit"));
        assert_eq!(rare("of the"), words("the of"));
    }

    #[test]
    fn nothing_to_look_for_is_no_query() {
        assert_eq!(Typed::read(" "), Some(Typed::default()));
        assert_eq!(rare(" - * \" "), None);
    }

    #[test]
    fn a_dashed_isbn_is_looked_up_by_its_digits() {
        assert_eq!(rare("978-0-14-143951-8"), words("9780141439518"));
        assert_eq!(rare("0 14 143951 3"), words("9780141439518"));
        assert_eq!(rare("catch-22"), words("catch"));
    }

    #[test]
    fn a_long_input_is_cut() {
        let many: String = (0..1000).map(|n| format!("word{n} ")).collect();
        assert_eq!(Typed::read(&many).unwrap().words.len(), MAX_WORDS);
        assert_eq!(Typed::read(&"x".repeat(100_000)).unwrap().words[0].len(), MAX_WORD_CHARS);
    }

    #[test]
    fn what_is_indexed_of_a_hostile_book_is_bounded() {
        let book = BookEntry {
            title: "é".repeat(30_000),
            author: Some("a ".repeat(30_000)),
            format: Some("epub\u{0}".repeat(1000)),
            ..BookEntry::default()
        };
        let keys = Keys::of(&book);
        assert!(keys.words.len() < 4 * MAX_FIELD_BYTES && keys.title.len() <= MAX_KEY_BYTES);
        assert!(keys.author.len() <= 2 * MAX_KEY_BYTES + 1 && keys.format.len() <= MAX_TERM_BYTES);
    }
}
