//! From what a person types to an FTS5 query, and from a book to the words it is found by.

use super::entry::BookEntry;
use crate::text::prefix;

/// How many words of a search count; more are left out.
const MAX_WORDS: usize = 16;
/// The longest word of a search, in characters.
const MAX_WORD_CHARS: usize = 64;
/// The longest text that is indexed for one field, in bytes.
const MAX_FIELD_BYTES: usize = 1000;

/// The FTS5 query that finds books with all of the words, each as the beginning of a word; `None` when
/// nothing is left to look for. Whatever the input, the query is valid: every word is a quoted string.
pub(super) fn query(input: &str) -> Option<String> {
    let mut query = String::new();
    for word in input.split_whitespace().filter(|word| word.chars().any(char::is_alphanumeric)) {
        if query.split(' ').count() > MAX_WORDS {
            break;
        }
        let word = match isbn_digits(word) {
            Some(digits) => digits,
            None => word.chars().filter(|c| !c.is_control()).take(MAX_WORD_CHARS).collect(),
        };
        if !query.is_empty() {
            query.push(' ');
        }
        query.push('"');
        query.push_str(&word.replace('"', "\"\""));
        query.push_str("\"*");
    }
    (!query.is_empty()).then_some(query)
}

/// The text that is indexed for a book: title, author, series, ISBN (as written and as bare digits).
pub(super) fn words(book: &BookEntry) -> String {
    let series = book.extra.get("series").and_then(serde_json::Value::as_str);
    let digits = book.isbn.as_deref().and_then(isbn_digits);
    let fields = [
        Some(book.title.as_str()),
        book.author.as_deref(),
        series,
        book.isbn.as_deref(),
        digits.as_deref(),
    ];
    let mut text = String::new();
    for field in fields.into_iter().flatten() {
        text.push_str(prefix(field, MAX_FIELD_BYTES));
        text.push('\n');
    }
    text
}

/// `978-0-14-143951-8` as `9780141439518`; `None` for what does not look like an ISBN.
fn isbn_digits(word: &str) -> Option<String> {
    let digits: String = word.chars().filter(|c| *c != '-').collect();
    let looks_right = matches!(digits.len(), 10 | 13)
        && digits.chars().all(|c| c.is_ascii_digit() || c == 'X' || c == 'x');
    looks_right.then_some(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_quoted_prefixes() {
        assert_eq!(query("  harry  pot ").as_deref(), Some("\"harry\"* \"pot\"*"));
        assert_eq!(query("say \"hi\" OR").as_deref(), Some("\"say\"* \"\"\"hi\"\"\"* \"OR\"*"));
    }

    #[test]
    fn nothing_to_look_for_is_no_query() {
        assert_eq!(query(""), None);
        assert_eq!(query(" - * \" "), None);
    }

    #[test]
    fn a_dashed_isbn_is_looked_up_by_its_digits() {
        assert_eq!(query("978-0-14-143951-8").as_deref(), Some("\"9780141439518\"*"));
        assert_eq!(query("catch-22").as_deref(), Some("\"catch-22\"*"));
    }

    #[test]
    fn a_long_input_is_cut() {
        let query = query(&"word ".repeat(1000)).unwrap();
        assert!(query.split(' ').count() <= MAX_WORDS + 1);
    }
}
