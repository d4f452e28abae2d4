//! Pages of one catalog: filtered, in an order, with a cursor.
//!
//! The cursor names the place of a page's last book in the order. Rows keep their place when a book is
//! described anew with the same words, so paging neither repeats nor skips a book whatever is published
//! meanwhile.

use std::fmt::Write;

use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use super::CatalogError;
use super::entry::{self, BookEntry};
use super::find::{Bounds, Found, Place, Search, Sort, find};
use super::search::{Typed, term};
use super::view::{self, Feed};

/// How many books a page has unless told.
const DEFAULT_LIMIT: u32 = 50;
/// The most books a page has.
const MAX_LIMIT: u32 = 1000;
/// How many formats or languages are looked at in a filter; more are left out.
const MAX_TERMS: usize = 32;
/// The longest cursor, in bytes.
const MAX_CURSOR_BYTES: usize = 600;

/// Which books to list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListOptions {
    /// Words that begin words of the title, author, series or ISBN; case and accents do not matter.
    pub search: Option<String>,
    /// Only books of one of these formats; all when empty.
    pub formats: Vec<String>,
    /// Only books in one of these languages, as the server writes them; all when empty.
    pub languages: Vec<String>,
    /// The order; that of publication unless told.
    pub sort: Option<Sort>,
    /// The other way round.
    pub descending: bool,
    /// The `next_cursor` of the page before.
    pub cursor: Option<String>,
    /// How many books, 1 to 1,000; 50 unless told.
    pub limit: Option<u32>,
    /// The newest first instead of the oldest: descending, in the order of publication.
    pub newest_first: bool,
}

/// Some books of a catalog.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Page {
    /// The books, with their texts made safe to show.
    pub books: Vec<BookEntry>,
    /// Where the next page begins; `None` at the end. A page may have fewer books than the limit, or
    /// none, and yet a cursor: what it looked for is rare, and it stopped looking for a moment.
    pub next_cursor: Option<String>,
    /// How many books the catalog has, or how many the search finds; at least so many when it is not
    /// exact.
    pub total: u64,
    /// Whether `total` is exact, which it is up to 2,500 books, often up to 40,000, and always without
    /// search and filters.
    pub is_total_exact: bool,
}

impl Page {
    /// The page of an empty catalog.
    pub(super) fn empty() -> Self {
        Self { is_total_exact: true, ..Self::default() }
    }
}

/// What a page is made of, whatever it is shown as.
pub(super) struct Wanted<'a> {
    pub(super) typed: Option<&'a str>,
    pub(super) formats: &'a [String],
    pub(super) languages: &'a [String],
    pub(super) sort: Sort,
    pub(super) descending: bool,
    pub(super) cursor: Option<&'a str>,
    pub(super) limit: Option<u32>,
}

/// Lists a page of `feed`'s catalog.
pub(super) fn list(
    connection: &Connection,
    feed: &Feed,
    options: &ListOptions,
) -> Result<Page, CatalogError> {
    let wanted = Wanted {
        typed: options.search.as_deref(),
        formats: &options.formats,
        languages: &options.languages,
        sort: options.sort.unwrap_or(Sort::Published),
        descending: options.descending || (options.newest_first && options.sort.is_none()),
        cursor: options.cursor.as_deref(),
        limit: options.limit,
    };
    let (found, next_cursor) = wanted.find(connection, std::slice::from_ref(feed))?;
    let mut books = Vec::with_capacity(found.rows.len());
    for row in found.rows {
        let json = view::entry_at(connection, row)?;
        books.extend(json.and_then(|json| entry::decode_book(&json).ok()).map(entry::shown));
    }
    Ok(Page { books, next_cursor, total: found.total, is_total_exact: found.is_exact })
}

impl Wanted<'_> {
    /// Finds the page in these catalogs, and the cursor of the next one.
    pub(super) fn find(
        &self,
        connection: &Connection,
        feeds: &[Feed],
    ) -> Result<(Found, Option<String>), CatalogError> {
        let Some(typed) = Typed::read(self.typed.unwrap_or("")) else {
            return Ok((Found { is_exact: true, ..Found::default() }, None));
        };
        let terms = |terms: &[String]| {
            let terms = terms.iter().take(MAX_TERMS).map(|word| term(word));
            terms.filter(|term| !term.is_empty()).collect()
        };
        let sort = match self.sort {
            Sort::Relevance if typed.is_empty() => Sort::Title,
            sort => sort,
        };
        let mut search = Search {
            typed,
            formats: terms(self.formats),
            languages: terms(self.languages),
            feeds,
            sort,
            descending: self.descending,
            after: None,
            limit: self.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_LIMIT) as usize,
            bounds: Bounds::DEFAULT,
        };
        if let Some(cursor) = self.cursor {
            let place = parse_cursor(cursor, &search).ok_or(CatalogError::InvalidCursor)?;
            search.after = Some(place);
        }
        let found = find(connection, &search)?;
        let next = found.next.as_ref().map(|place| cursor_of(place, &search));
        Ok((found, next))
    }
}

/// `order.row.key`: the order as a letter, the rest in hexadecimal digits.
fn cursor_of(place: &Place, search: &Search<'_>) -> String {
    let mut cursor = format!("{}.{:x}.", order(search), place.row);
    for byte in place.key.bytes() {
        let _ = write!(cursor, "{byte:02x}");
    }
    cursor
}

fn parse_cursor(cursor: &str, search: &Search<'_>) -> Option<Place> {
    if cursor.len() > MAX_CURSOR_BYTES || !cursor.is_ascii() {
        return None;
    }
    let mut parts = cursor.split('.');
    let (name, row, key) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || name != order(search).to_string() {
        return None;
    }
    let row = i64::from_str_radix(row, 16).ok()?;
    let is_of = |feed: &Feed| feed.number == row >> view::SEQUENCE_BITS;
    if search.feeds.len() == 1 && !search.feeds.iter().any(is_of) {
        return None;
    }
    let bytes = key.as_bytes().chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?;
        u8::from_str_radix(pair, 16).ok()
    });
    let key = String::from_utf8(bytes.collect::<Option<Vec<u8>>>()?).ok()?;
    Some(Place { key, row })
}

/// A letter for each order; a cursor is of one order only.
fn order(search: &Search<'_>) -> char {
    let letter = match search.sort {
        Sort::Relevance => 'r',
        Sort::Title => 't',
        Sort::Author => 'a',
        Sort::Added => 'd',
        Sort::Published => 'p',
    };
    if search.descending { letter.to_ascii_uppercase() } else { letter }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::view::Step;
    use crate::crypto::PublicKey;
    use crate::store::Database;

    const SERVER: PublicKey = PublicKey::from_bytes([1; 32]);

    fn book(id: &str, title: &str, author: &str) -> String {
        format!(r#"{{"type":"book-added","id":"{id}","title":"{title}","author":"{author}"}}"#)
    }

    fn removed(id: &str) -> String {
        entry::encode_removed(id, "2026-03-01T12:00:00Z")
    }

    async fn replay(db: &Database, server: PublicKey, entries: &[String]) -> Feed {
        view::fixture::replay(db, server, *server.as_bytes(), entries).await
    }

    fn page(db: &Database, feed: &Feed, options: &ListOptions) -> Page {
        db.read(|c| list(c, feed, options)).unwrap()
    }

    fn search(db: &Database, feed: &Feed, words: &str) -> Vec<String> {
        let options = ListOptions { search: Some(words.into()), ..ListOptions::default() };
        let page = page(db, feed, &options);
        assert_eq!(page.total as usize, page.books.len());
        page.books.into_iter().map(|book| book.id).collect()
    }

    fn open() -> (tempfile::TempDir, Database) {
        let dir = tempfile::tempdir().unwrap();
        let db = Database::open(&dir.path().join("p2p.db")).unwrap();
        (dir, db)
    }

    #[tokio::test]
    async fn later_entries_replace_and_remove_earlier_ones() {
        let (_dir, db) = open();
        let entries = [
            book("a", "One", "X"),
            book("b", "Two", "Y"),
            "garbage".into(),
            r#"{"type":"shelf"}"#.into(),
            book("a", "Uno", "X"),
            removed("b"),
            removed("never"),
        ];
        let feed = replay(&db, SERVER, &entries).await;
        assert_eq!((feed.position, feed.books, feed.skipped), (7, 1, 1));
        let page = page(&db, &feed, &ListOptions::default());
        assert_eq!((page.total, page.books[0].title.as_str()), (1, "Uno"));
        assert!(search(&db, &feed, "one").is_empty() && search(&db, &feed, "two").is_empty());
        assert_eq!(search(&db, &feed, "uno"), ["a"]);
    }

    #[tokio::test]
    async fn search_takes_prefixes_without_case_and_accents() {
        let (_dir, db) = open();
        let entries = [
            book("a", "Les Misérables", "Victor Hugo"),
            book("b", "Hugo and friends", "Ann O'Brien"),
            r#"{"type":"book-added","id":"c","title":"T","series":"Discworld","isbn":"978-0-14-143951-8"}"#.into(),
        ];
        let feed = replay(&db, SERVER, &entries).await;
        assert_eq!(search(&db, &feed, "miserab"), ["a"]);
        assert_eq!(search(&db, &feed, "HUGO"), ["a", "b"]);
        assert_eq!(search(&db, &feed, "hugo vic"), ["a"]);
        assert_eq!(search(&db, &feed, "o'brien"), ["b"]);
        assert_eq!(search(&db, &feed, "discw"), ["c"]);
        assert_eq!(search(&db, &feed, "9780141439518"), ["c"]);
        assert_eq!(search(&db, &feed, "978-0-14-143951-8"), ["c"]);
        assert_eq!(search(&db, &feed, "978-0-14"), ["c"]);
    }

    #[tokio::test]
    async fn whatever_is_typed_is_no_syntax_error() {
        let (_dir, db) = open();
        let feed = replay(&db, SERVER, &[book("a", "One", "X")]).await;
        for words in ["\"", "* OR", "a AND (", "title:one", "{x}^2 NEAR(", "-one", "'; --", "\0a"] {
            search(&db, &feed, words);
        }
        assert!(search(&db, &feed, "*").is_empty());
        assert_eq!(search(&db, &feed, "  "), ["a"]);
    }

    #[tokio::test]
    async fn pages_neither_repeat_nor_skip_while_books_come_and_go() {
        let (_dir, db) = open();
        let entries: Vec<_> = (0..10).map(|n| book(&format!("b{n}"), "T", "A")).collect();
        let feed = replay(&db, SERVER, &entries).await;
        let first = page(&db, &feed, &ListOptions { limit: Some(4), ..ListOptions::default() });
        assert_eq!(first.total, 10);
        let feed = replay(&db, SERVER, &[removed("b0"), book("b5", "New", "A")]).await;
        let mut seen: Vec<_> = first.books.into_iter().map(|book| book.id).collect();
        let mut cursor = first.next_cursor;
        while cursor.is_some() {
            let options = ListOptions { limit: Some(4), cursor, ..ListOptions::default() };
            let next = page(&db, &feed, &options);
            seen.extend(next.books.into_iter().map(|book| book.id));
            cursor = next.next_cursor;
        }
        assert_eq!(seen, (0..10).map(|n| format!("b{n}")).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn newest_first_pages_backwards() {
        let (_dir, db) = open();
        let entries: Vec<_> = (0..5).map(|n| book(&format!("b{n}"), "T", "A")).collect();
        let feed = replay(&db, SERVER, &entries).await;
        let options = ListOptions { limit: Some(3), newest_first: true, ..ListOptions::default() };
        let first = page(&db, &feed, &options);
        let rest = page(&db, &feed, &ListOptions { cursor: first.next_cursor, ..options });
        let ids: Vec<_> = first.books.iter().chain(&rest.books).map(|book| &book.id).collect();
        assert_eq!(ids, ["b4", "b3", "b2", "b1", "b0"]);
        assert_eq!(rest.next_cursor, None);
    }

    #[tokio::test]
    async fn catalogs_do_not_see_each_other_and_cursors_do_not_cross() {
        let (_dir, db) = open();
        let other = PublicKey::from_bytes([2; 32]);
        let feed = replay(&db, SERVER, &[book("a", "Same", "X"), book("b", "Same", "X")]).await;
        let second = replay(&db, other, &[book("a", "Same", "X")]).await;
        assert_eq!(search(&db, &second, "same").len(), 1);
        let options = ListOptions { limit: Some(1), ..ListOptions::default() };
        let cursor = page(&db, &feed, &options).next_cursor;
        let crossed = ListOptions { cursor, ..ListOptions::default() };
        let refused = db.read(|c| list(c, &second, &crossed));
        assert!(matches!(refused, Err(CatalogError::InvalidCursor)));
        db.write(move |t| view::remove(t, &SERVER)).await.unwrap();
        assert!(db.read(|c| view::feed(c, &SERVER)).unwrap().is_none());
        while db.write(view::remove_leftovers).await.unwrap() {}
        assert_eq!(search(&db, &second, "same").len(), 1);
        assert!(search(&db, &feed, "same").is_empty());
    }

    #[tokio::test]
    async fn a_new_feed_key_starts_an_empty_view() {
        let (_dir, db) = open();
        let before = replay(&db, SERVER, &[book("a", "Old", "X")]).await;
        let after = db.write(move |t| view::set_feed(t, &SERVER, &[9; 32])).await.unwrap();
        assert_ne!(before.number, after.number);
        assert_eq!((after.position, after.books), (0, 0));
        assert_eq!(page(&db, &after, &ListOptions::default()), Page::empty());
    }

    #[tokio::test]
    async fn a_batch_for_another_position_changes_nothing() {
        let (_dir, db) = open();
        let feed = replay(&db, SERVER, &[book("a", "One", "X")]).await;
        let steps = vec![Step::read(book("b", "Two", "Y").as_bytes())];
        let number = feed.number;
        let refused = db.write(move |t| view::apply(t, number, 0, &steps, 5)).await;
        assert!(matches!(refused, Err(CatalogError::Moved)));
        assert_eq!(page(&db, &feed, &ListOptions::default()).books.len(), 1);
    }
}
