//! What has to be appended to the own feed so that it says what the program wants it to say.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use super::CatalogError;
use super::book::Book;
use super::entry::{self, BookEntry};
use super::missing::MissingBook;
use super::view::{self, Feed, MAX_BOOKS};
use crate::text;
use crate::time::rfc3339;
use crate::transfer::BookSource;

/// What publishing or synchronizing changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Changes {
    /// Books that are new in the catalog.
    pub added: u64,
    /// Books that are described anew.
    pub updated: u64,
    /// Books that are no longer on offer.
    pub removed: u64,
    /// Books that were as they should be.
    pub unchanged: u64,
    /// Books whose file is not there, the first 100 of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<MissingBook>,
    /// How many these are in all.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missing_count: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Entries to append, in order, and what they change.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) entries: Vec<Bytes>,
    pub(super) changes: Changes,
    pub(super) removed: Vec<String>,
}

/// Plans to have `books` in the catalog, each as given. Of two with the same id the later one counts.
/// Reads file sizes that are not given; blocks on disk.
pub(super) fn publish(
    connection: &Connection,
    feed: &Feed,
    books: &[Book],
    now_ms: u64,
) -> Result<Plan, CatalogError> {
    let plan = additions(connection, feed, books, now_ms)?;
    if feed.books + plan.changes.added > MAX_BOOKS {
        return Err(CatalogError::TooManyBooks);
    }
    Ok(plan)
}

fn additions(
    connection: &Connection,
    feed: &Feed,
    books: &[Book],
    now_ms: u64,
) -> Result<Plan, CatalogError> {
    let now = rfc3339(now_ms);
    let mut plan = Plan::default();
    let last = last_places(books);
    for (at, book) in books.iter().enumerate() {
        if last.get(book.entry.id.as_str()) == Some(&at) {
            let before = view::entry_json(connection, feed.number, &book.entry.id)?;
            let entry = changed(book, before.as_deref(), &now)?;
            plan.add(entry, before.is_some());
        }
    }
    Ok(plan)
}

/// Where the last book with each id stands.
fn last_places(books: &[Book]) -> HashMap<&str, usize> {
    books.iter().enumerate().map(|(at, book)| (book.entry.id.as_str(), at)).collect()
}

impl Plan {
    /// Adds what a book needs: an entry or nothing.
    fn add(&mut self, entry: Option<String>, was_there: bool) {
        match (&entry, was_there) {
            (None, _) => self.changes.unchanged += 1,
            (Some(_), true) => self.changes.updated += 1,
            (Some(_), false) => self.changes.added += 1,
        }
        self.entries.extend(entry.map(Bytes::from));
    }
}

/// Plans to have exactly `books` in the catalog. Reads the catalog once from end to end, which is
/// several times faster than looking for each book.
pub(super) fn sync(
    connection: &Connection,
    feed: &Feed,
    books: &[Book],
    now_ms: u64,
) -> Result<Plan, CatalogError> {
    let now = rfc3339(now_ms);
    let mut new = last_places(books);
    if new.len() as u64 > MAX_BOOKS {
        return Err(CatalogError::TooManyBooks);
    }
    let mut superfluous = Vec::new();
    let mut updated = Vec::new();
    let mut unchanged = 0;
    view::each_book(connection, feed.number, |id, entry| {
        let Some((at, book)) = new.remove(id).and_then(|at| Some((at, books.get(at)?))) else {
            superfluous.push(id.to_owned());
            return Ok(());
        };
        match changed(book, entry, &now)? {
            None => unchanged += 1,
            Some(entry) => updated.push((at, entry)),
        }
        Ok::<_, CatalogError>(())
    })?;
    let mut plan = removals(superfluous, now_ms);
    plan.changes.unchanged = unchanged;
    let mut added: Vec<_> = new.into_values().collect();
    added.sort_unstable();
    let added = added.into_iter().filter_map(|at| Some((at, books.get(at)?)));
    let added = added.map(|(at, book)| Ok((at, changed(book, None, &now)?)));
    let added = added.collect::<Result<Vec<_>, CatalogError>>()?;
    let updated = updated.into_iter().map(|(at, entry)| (at, Some(entry), true));
    let added = added.into_iter().map(|(at, entry)| (at, entry, false));
    let mut all: Vec<_> = updated.chain(added).collect();
    all.sort_unstable_by_key(|(at, ..)| *at);
    for (_, entry, was_there) in all {
        plan.add(entry, was_there);
    }
    Ok(plan)
}

/// Plans to have none of the books with these ids in the catalog. Ids that are not there are left out.
pub(super) fn unpublish(
    connection: &Connection,
    feed: &Feed,
    ids: &[String],
    now_ms: u64,
) -> Result<Plan, CatalogError> {
    let mut seen = HashSet::new();
    let mut present = Vec::new();
    for id in ids {
        if seen.insert(id.as_str()) && view::entry_json(connection, feed.number, id)?.is_some() {
            present.push(id.clone());
        }
    }
    Ok(removals(present, now_ms))
}

fn removals(ids: Vec<String>, now_ms: u64) -> Plan {
    let now = rfc3339(now_ms);
    let entries = ids.iter().map(|id| entry::encode_removed(id, &now).into()).collect();
    let changes = Changes { removed: ids.len() as u64, ..Changes::default() };
    Plan { entries, changes, removed: ids }
}

/// The entry to append for `book`, or `None` when `before` says the same. What the program leaves open
/// (when it was added, how large it is) stays as it was before.
fn changed(book: &Book, before: Option<&str>, now: &str) -> Result<Option<String>, CatalogError> {
    let before_book = before.and_then(|json| entry::decode_book(json).ok());
    let mut wanted = book.entry.clone();
    if wanted.added_at.is_none() {
        wanted.added_at = before_book.as_ref().and_then(|book| book.added_at.clone());
        wanted.added_at.get_or_insert_with(|| now.to_owned());
    }
    if wanted.size_bytes.is_none() {
        wanted.size_bytes = file_size(&book.source)
            .or_else(|| before_book.as_ref().and_then(|book| book.size_bytes));
    }
    if before_book.as_ref() == Some(&wanted) {
        return Ok(None);
    }
    let entry = entry::encode_added(&wanted).map_err(|error| invalid(&wanted, &error))?;
    // What reads back the same, is the same: the encoding may have normalized something.
    Ok((before != Some(entry.as_str())).then_some(entry))
}

fn file_size(source: &Option<BookSource>) -> Option<u64> {
    match source {
        Some(BookSource::Path(path)) => std::fs::metadata(path).ok().map(|file| file.len()),
        _ => None,
    }
}

fn invalid(book: &BookEntry, error: &entry::EntryError) -> CatalogError {
    CatalogError::InvalidBook { id: text::clean(&book.id, 40), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::PublicKey;
    use crate::store::Database;

    const SERVER: PublicKey = PublicKey::from_bytes([1; 32]);

    struct Fixture {
        _dir: tempfile::TempDir,
        db: Database,
        feed: Feed,
    }

    impl Fixture {
        async fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let db = Database::open(&dir.path().join("p2p.db")).unwrap();
            let feed = db.write(|t| view::set_feed(t, &SERVER, &[1; 32])).await.unwrap();
            Self { _dir: dir, db, feed }
        }

        async fn run(
            &mut self,
            plan: impl FnOnce(&Connection, &Feed) -> Result<Plan, CatalogError>,
        ) -> Changes {
            let plan = self.db.read(|c| plan(c, &self.feed)).unwrap();
            self.feed = view::fixture::replay(&self.db, SERVER, [1; 32], &plan.entries).await;
            plan.changes
        }
    }

    fn book(id: &str, title: &str) -> Book {
        Book {
            entry: BookEntry { id: id.into(), title: title.into(), ..BookEntry::default() },
            source: None,
        }
    }

    #[tokio::test]
    async fn publishing_the_same_again_appends_nothing() {
        let mut f = Fixture::new().await;
        let books = [book("a", "One"), book("b", "Two")];
        let first = f.run(|c, feed| publish(c, feed, &books, 1000)).await;
        assert_eq!((first.added, first.unchanged), (2, 0));
        let again = f.run(|c, feed| publish(c, feed, &books, 2000)).await;
        assert_eq!(again, Changes { unchanged: 2, ..Changes::default() });
        assert_eq!(f.feed.position, 2);
    }

    #[tokio::test]
    async fn sync_appends_only_what_changed() {
        let mut f = Fixture::new().await;
        f.run(|c, feed| sync(c, feed, &[book("a", "1"), book("b", "2"), book("c", "3")], 0)).await;
        let changes = f
            .run(|c, feed| sync(c, feed, &[book("b", "2"), book("c", "Three"), book("d", "4")], 5))
            .await;
        let expected =
            Changes { added: 1, updated: 1, removed: 1, unchanged: 1, ..Changes::default() };
        assert_eq!(changes, expected);
        assert_eq!((f.feed.position, f.feed.books), (6, 3));
        let none = f.run(|c, feed| sync(c, feed, &[], 9)).await;
        assert_eq!((none.removed, f.feed.books), (3, 0));
    }

    #[tokio::test]
    async fn unpublishing_what_is_not_there_appends_nothing() {
        let mut f = Fixture::new().await;
        f.run(|c, feed| publish(c, feed, &[book("a", "1")], 0)).await;
        let ids = ["a".to_owned(), "a".to_owned(), "x".to_owned()];
        assert_eq!(f.run(|c, feed| unpublish(c, feed, &ids, 0)).await.removed, 1);
        assert_eq!(f.run(|c, feed| unpublish(c, feed, &ids, 0)).await.removed, 0);
    }

    #[tokio::test]
    async fn the_later_of_two_books_with_one_id_counts() {
        let mut f = Fixture::new().await;
        f.run(|c, feed| publish(c, feed, &[book("a", "First"), book("a", "Second")], 0)).await;
        let json = f.db.read(|c| view::entry_json(c, f.feed.number, "a")).unwrap().unwrap();
        assert!(json.contains("Second") && f.feed.position == 1);
    }

    #[tokio::test]
    async fn a_missing_size_is_read_from_the_file() {
        let mut f = Fixture::new().await;
        let file = f._dir.path().join("x.epub");
        std::fs::write(&file, [0; 77]).unwrap();
        let mut book = book("a", "T");
        book.source = Some(BookSource::Path(file));
        f.run(|c, feed| publish(c, feed, &[book], 0)).await;
        let json = f.db.read(|c| view::entry_json(c, f.feed.number, "a")).unwrap().unwrap();
        assert!(json.contains("\"sizeBytes\":77") && !json.contains("x.epub"));
    }

    #[tokio::test]
    async fn a_book_that_breaks_a_limit_is_refused_whole() {
        let f = Fixture::new().await;
        let books = [book("a", "fine"), book("b", &"x".repeat(70_000))];
        let refused = f.db.read(|c| publish(c, &f.feed, &books, 0));
        assert!(matches!(refused, Err(CatalogError::InvalidBook { id, .. }) if id == "b"));
        assert!(f.db.read(|c| publish(c, &f.feed, &[book("", "t")], 0)).is_err());
    }
}
