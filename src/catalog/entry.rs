//! Feed entries: the JSON of one block of a catalog feed, read with suspicion and written compactly.
//!
//! `{"type":"book-added","id","title","author","isbn","format","sizeBytes","addedAt"}` with more
//! optional fields, and `{"type":"book-removed","id","removedAt"}`. Fields and types that this version
//! does not know are kept. Nothing here panics or allocates by a number from the wire.

use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::text;
use crate::transfer::message::MAX_BOOK_ID_BYTES;

/// The longest entry, in bytes.
pub const MAX_ENTRY_BYTES: usize = 64 * 1024;
/// How deep arrays and objects may nest inside an entry.
pub const MAX_DEPTH: usize = 16;
/// The longest title, author or other text of a book that is shown, in characters.
const MAX_SHOWN_CHARS: usize = 2000;

/// A book as its server describes it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BookEntry {
    /// What the server calls the book; unique within its catalog, at most 512 bytes.
    pub id: String,
    /// The title.
    pub title: String,
    /// The author or authors, as one line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// The ISBN, as the server writes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isbn: Option<String>,
    /// The file's format: `epub`, `pdf`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// The file's size in bytes, as the server claims.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// When the book came to the server, as an RFC 3339 time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub added_at: Option<String>,
    /// Fields that this version does not know, kept as they are.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// What one block of a feed says.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    /// A book is on offer, or an earlier entry of its id is replaced.
    Added(Box<BookEntry>),
    /// A book is no longer on offer.
    Removed {
        /// The book's id.
        id: String,
    },
    /// An entry of a type that this version does not know.
    Unknown,
}

/// Why an entry is skipped (or refused, when it is our own).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// More than 64 KiB.
    #[error("an entry of {0} bytes exceeds the limit of 65536")]
    TooLong(usize),
    /// Not a JSON object, or nested too deep.
    #[error("an entry that is no JSON object, or nests deeper than 16 levels")]
    NotAnObject,
    /// A field that must be there is missing, or has the wrong type.
    #[error("an entry without a valid {0:?}")]
    Field(&'static str),
}

/// Reads one block of a feed.
pub fn decode(block: &[u8]) -> Result<Entry, EntryError> {
    let fields = parse(block)?;
    let Some(Value::String(kind)) = &fields.kind else {
        return Err(EntryError::Field("type"));
    };
    match kind.as_str() {
        "book-added" => Ok(Entry::Added(Box::new(book(fields)?))),
        "book-removed" => Ok(Entry::Removed { id: id(fields.id)? }),
        _ => Ok(Entry::Unknown),
    }
}

/// Reads the JSON of a `book-added` entry that [`decode`] accepted before.
pub fn decode_book(json: &str) -> Result<BookEntry, EntryError> {
    match decode(json.as_bytes())? {
        Entry::Added(book) => Ok(*book),
        _ => Err(EntryError::Field("type")),
    }
}

/// Writes a `book-added` entry; refuses what [`decode`] would not read back.
pub fn encode_added(book: &BookEntry) -> Result<String, EntryError> {
    let mut fields = Map::new();
    fields.insert("type".into(), "book-added".into());
    let Ok(Value::Object(rest)) = serde_json::to_value(book) else {
        return Err(EntryError::NotAnObject);
    };
    // The known fields win over equally named ones in `extra`.
    for (name, value) in rest {
        fields.entry(name).or_insert(value);
    }
    let text = Value::Object(fields).to_string();
    decode(text.as_bytes())?;
    Ok(text)
}

/// Writes a `book-removed` entry.
#[must_use]
pub fn encode_removed(id: &str, removed_at: &str) -> String {
    serde_json::json!({ "type": "book-removed", "id": id, "removedAt": removed_at }).to_string()
}

/// The book with its texts made safe to show: no control or direction-override characters, bounded.
#[must_use]
pub fn shown(mut book: BookEntry) -> BookEntry {
    book.title = shown_text(&book.title);
    for field in [&mut book.author, &mut book.isbn, &mut book.format, &mut book.added_at] {
        *field = field.as_deref().map(shown_text);
    }
    book
}

fn shown_text(words: &str) -> String {
    text::clean(words, MAX_SHOWN_CHARS)
}

fn parse(block: &[u8]) -> Result<Fields, EntryError> {
    if block.len() > MAX_ENTRY_BYTES {
        return Err(EntryError::TooLong(block.len()));
    }
    if deeper_than(block, MAX_DEPTH) {
        return Err(EntryError::NotAnObject);
    }
    serde_json::from_slice(&text::well_formed(block)).map_err(|_| EntryError::NotAnObject)
}

/// Whether brackets outside of strings nest deeper than `limit`, without parsing.
fn deeper_than(json: &[u8], limit: usize) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => {
                depth += 1;
                if depth > limit {
                    return true;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// The fields of an object, those with a meaning apart. Of two with one name the later counts.
#[derive(Default)]
struct Fields {
    kind: Option<Value>,
    id: Option<Value>,
    title: Option<Value>,
    author: Option<Value>,
    isbn: Option<Value>,
    format: Option<Value>,
    size_bytes: Option<Value>,
    added_at: Option<Value>,
    extra: Map<String, Value>,
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields;

            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Fields::default();
                while let Some(name) = map.next_key::<Name>()? {
                    let value = Some(map.next_value()?);
                    match name {
                        Name::Type => fields.kind = value,
                        Name::Id => fields.id = value,
                        Name::Title => fields.title = value,
                        Name::Author => fields.author = value,
                        Name::Isbn => fields.isbn = value,
                        Name::Format => fields.format = value,
                        Name::SizeBytes => fields.size_bytes = value,
                        Name::AddedAt => fields.added_at = value,
                        Name::Other(name) => fields.extra.extend(value.map(|value| (name, value))),
                    }
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(Object)
    }
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "camelCase")]
enum Name {
    Type,
    Id,
    Title,
    Author,
    Isbn,
    Format,
    SizeBytes,
    AddedAt,
    Other(String),
}

fn book(fields: Fields) -> Result<BookEntry, EntryError> {
    Ok(BookEntry {
        id: id(fields.id)?,
        title: string(fields.title, "title")?.ok_or(EntryError::Field("title"))?,
        author: string(fields.author, "author")?,
        isbn: string(fields.isbn, "isbn")?,
        format: string(fields.format, "format")?,
        size_bytes: match fields.size_bytes {
            None | Some(Value::Null) => None,
            Some(value) => Some(value.as_u64().ok_or(EntryError::Field("sizeBytes"))?),
        },
        added_at: match fields.added_at {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text),
            Some(value) => {
                let millis = value.as_u64().ok_or(EntryError::Field("addedAt"))?;
                Some(crate::time::rfc3339(millis))
            }
        },
        extra: fields.extra,
    })
}

fn id(value: Option<Value>) -> Result<String, EntryError> {
    match value {
        Some(Value::String(id)) if !id.is_empty() && id.len() <= MAX_BOOK_ID_BYTES => Ok(id),
        _ => Err(EntryError::Field("id")),
    }
}

/// A text field; numbers are taken as text, because ISBNs come that way too.
fn string(value: Option<Value>, name: &'static str) -> Result<Option<String>, EntryError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(_) => Err(EntryError::Field(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LINE: &str = r#"{"type":"book-added","id":"gb-1","title":"The Hunger Games","author":"Suzanne Collins","isbn":"0439023483","format":"pdf","sizeBytes":3122315,"language":"eng","year":2008,"addedAt":"2026-03-01T12:00:00Z"}"#;

    fn added(block: &str) -> BookEntry {
        match decode(block.as_bytes()) {
            Ok(Entry::Added(book)) => *book,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_entry_of_the_design_is_read_and_unknown_fields_are_kept() {
        let book = added(LINE);
        assert_eq!((book.id.as_str(), book.size_bytes), ("gb-1", Some(3_122_315)));
        assert_eq!(book.extra["year"], 2008);
        assert_eq!(added(&encode_added(&book).unwrap()), book);
    }

    #[test]
    fn a_removal_and_an_unknown_type_are_read() {
        let removed = encode_removed("a", "2026-03-01T12:00:00Z");
        assert_eq!(decode(removed.as_bytes()), Ok(Entry::Removed { id: "a".into() }));
        assert_eq!(decode(br#"{"type":"shelf-added","id":"x"}"#), Ok(Entry::Unknown));
    }

    #[test]
    fn bad_entries_are_refused() {
        let long = format!(r#"{{"type":"book-added","id":"a","title":"{}"}}"#, "x".repeat(65_536));
        let deep = format!(
            r#"{{"type":"book-added","id":"a","title":"t","x":{}{}}}"#,
            "[".repeat(17),
            "]".repeat(17)
        );
        let long_id = format!(r#"{{"type":"book-added","id":"{}","title":"t"}}"#, "x".repeat(513));
        for bad in [
            "",
            "[]",
            "null",
            "{",
            "{}",
            r#"{"type":1}"#,
            r#"{"type":"book-added"}"#,
            r#"{"type":"book-added","id":"a"}"#,
            r#"{"type":"book-added","id":"","title":"t"}"#,
            r#"{"type":"book-added","id":"a","title":["t"]}"#,
            r#"{"type":"book-added","id":"a","title":"t","sizeBytes":-1}"#,
            r#"{"type":"book-removed","id":7}"#,
            &long,
            &deep,
            &long_id,
        ] {
            assert!(decode(bad.as_bytes()).is_err(), "{}", &bad[..bad.len().min(80)]);
        }
        assert!(decode(&[0xff, 0xfe]).is_err());
    }

    #[test]
    fn brackets_inside_strings_do_not_count_as_depth() {
        let title = "[".repeat(40);
        assert_eq!(
            added(&format!(r#"{{"type":"book-added","id":"a","title":"\"{title}"}}"#)).title,
            format!("\"{title}")
        );
    }

    #[test]
    fn a_book_with_fields_named_like_known_ones_stays_itself() {
        let mut book = added(LINE);
        book.extra.insert("type".into(), "book-removed".into());
        let text = encode_added(&book).unwrap();
        assert_eq!(added(&text).id, "gb-1");
    }

    #[test]
    fn shown_texts_carry_no_control_characters() {
        let book = BookEntry {
            id: "a".into(),
            title: "Mo\u{1b}[31mby\u{202e} Dick\n".into(),
            ..BookEntry::default()
        };
        assert_eq!(shown(book).title, "Mo[31mby Dick");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(block in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = decode(&block);
        }

        #[test]
        fn any_mutation_of_an_entry_is_read_or_refused(at in 0usize..LINE.len(), byte in any::<u8>(), cut in 0usize..LINE.len()) {
            let mut block = LINE.as_bytes().to_vec();
            block[at] = byte;
            let _ = decode(&block);
            let _ = decode(&block[..cut]);
        }

        #[test]
        fn what_is_written_reads_back(id in ".{1,40}", title in ".*", author in proptest::option::of(".*"), size in proptest::option::of(any::<u64>())) {
            let book = BookEntry { id, title, author, size_bytes: size, ..BookEntry::default() };
            prop_assert_eq!(added(&encode_added(&book).unwrap()), book);
        }
    }
}
