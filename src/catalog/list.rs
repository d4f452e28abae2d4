//! Pages of a catalog: in the order of publication, with a search and a cursor.
//!
//! The cursor names the last row of a page. Rows keep their place when a book is described anew, so
//! paging neither repeats nor skips a book whatever is published meanwhile.

use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

use super::entry::{self, BookEntry};
use super::view::{self, Feed};
use super::{CatalogError, search};
use crate::store::StoreError;

/// How many books a page has unless told.
const DEFAULT_LIMIT: u32 = 50;
/// The most books a page has.
const MAX_LIMIT: u32 = 1000;

/// Which books to list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListOptions {
    /// Words that begin words of the title, author, series or ISBN; case and accents do not matter.
    pub search: Option<String>,
    /// The `next_cursor` of the page before.
    pub cursor: Option<String>,
    /// How many books, 1 to 1,000; 50 unless told.
    pub limit: Option<u32>,
    /// The newest first instead of the oldest.
    pub newest_first: bool,
}

/// Some books of a catalog.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Page {
    /// The books, with their texts made safe to show.
    pub books: Vec<BookEntry>,
    /// Where the next page begins; `None` at the end.
    pub next_cursor: Option<String>,
    /// How many books the catalog has, or how many the search finds.
    pub total: u64,
}

/// Lists a page of `feed`'s catalog.
pub(super) fn list(
    connection: &Connection,
    feed: &Feed,
    options: &ListOptions,
) -> Result<Page, CatalogError> {
    let limit = options.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_LIMIT);
    let (mut first, mut last) = view::rows_of(feed.number);
    let whole = (first, last);
    if let Some(cursor) = &options.cursor {
        let row = parse_cursor(cursor)
            .filter(|row| (first..=last).contains(row))
            .ok_or(CatalogError::InvalidCursor)?;
        if options.newest_first {
            last = row - 1;
        } else {
            first = row + 1;
        }
    }
    let words = match options.search.as_deref().map(str::trim) {
        None | Some("") => None,
        Some(text) => match search::query(text) {
            Some(words) => Some(words),
            None => return Ok(Page::default()),
        },
    };
    let rows = Rows { words: words.as_deref(), newest_first: options.newest_first };
    let mut found = rows.page(connection, first, last, limit + 1)?;
    let has_more = found.len() > limit as usize;
    found.truncate(limit as usize);
    let next_cursor = match found.last() {
        Some((row, _)) if has_more => Some(cursor_of(*row)),
        _ => None,
    };
    let total = match words {
        Some(_) => rows.count(connection, whole)?,
        None => feed.books,
    };
    let books = found.into_iter().filter_map(|(_, json)| entry::decode_book(&json).ok());
    Ok(Page { books: books.map(entry::shown).collect(), next_cursor, total })
}

struct Rows<'a> {
    words: Option<&'a str>,
    newest_first: bool,
}

impl Rows<'_> {
    fn page(
        &self,
        connection: &Connection,
        first: i64,
        last: i64,
        limit: u32,
    ) -> Result<Vec<(i64, String)>, StoreError> {
        let order = if self.newest_first { "DESC" } else { "ASC" };
        let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
        let Some(words) = self.words else {
            let sql = format!(
                "SELECT row, entry FROM catalog_books WHERE row BETWEEN ?1 AND ?2 \
                 ORDER BY row {order} LIMIT ?3"
            );
            let mut statement = connection.prepare_cached(&sql)?;
            let rows = statement.query_map(params![first, last, limit], read)?;
            return Ok(rows.collect::<Result<_, _>>()?);
        };
        let sql = format!(
            "SELECT row, entry FROM catalog_books WHERE row IN \
             (SELECT rowid FROM catalog_search WHERE catalog_search MATCH ?4 \
              AND rowid BETWEEN ?1 AND ?2 ORDER BY rowid {order} LIMIT ?3) ORDER BY row {order}"
        );
        let mut statement = connection.prepare_cached(&sql)?;
        let rows = statement.query_map(params![first, last, limit, words], read)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn count(&self, connection: &Connection, whole: (i64, i64)) -> Result<u64, StoreError> {
        let mut statement = connection.prepare_cached(
            "SELECT count(*) FROM catalog_search WHERE catalog_search MATCH ?3 \
             AND rowid BETWEEN ?1 AND ?2",
        )?;
        Ok(statement.query_row(params![whole.0, whole.1, self.words], |row| row.get(0))?)
    }
}

fn cursor_of(row: i64) -> String {
    format!("{row:x}")
}

fn parse_cursor(cursor: &str) -> Option<i64> {
    let digits = !cursor.is_empty() && cursor.bytes().all(|c| c.is_ascii_hexdigit());
    digits.then(|| i64::from_str_radix(cursor, 16).ok()).flatten()
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
        let steps: Vec<_> = entries.iter().map(|entry| Step::read(entry.as_bytes())).collect();
        db.write(move |t| {
            let feed = view::set_feed(t, &server, server.as_bytes())?;
            view::apply(t, feed.number, feed.position, &steps, 5)
        })
        .await
        .unwrap()
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
        assert_eq!(page(&db, &after, &ListOptions::default()), Page::default());
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
