//! Finding books in one or many catalogs, in order, with bounded work.
//!
//! Where the words (or filters) find few books, all of them are fetched and sorted. Where they find many,
//! an index is walked in the order wanted and each book tested. Both give the same order, which is that
//! of a key and then of the row, so that a page can begin behind any place.

use std::collections::BTreeMap;

use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use super::candidates::{Candidates, Looked};
use super::entry;
use super::search::{Typed, Words};
use super::view::{self, Feed};
use super::walk::{Step, Walk, author_key};
use crate::store::StoreError;

/// How much work a search may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// How many books are fetched and sorted rather than walked to.
    pub(super) sorted: usize,
    /// The same when each of them has to be read whole.
    pub(super) read: usize,
    /// How many words of the index are read for one that was typed, and how many books are counted.
    pub(super) counted: usize,
    /// How many books a page walks over, and how many of them it reads whole.
    pub(super) steps: usize,
    pub(super) steps_read: usize,
}

impl Bounds {
    pub(super) const DEFAULT: Self =
        Self { sorted: 4_000, read: 2_500, counted: 40_000, steps: 25_000, steps_read: 2_000 };
}

/// What books are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Sort {
    /// Titles that begin with what was typed, then the others; each by title.
    Relevance,
    /// The title.
    Title,
    /// The author, then the title; books without an author come last.
    Author,
    /// When the book came to its server, as the server says.
    Added,
    /// The order in which servers published the books.
    Published,
}

/// A place between two books of an order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) key: String,
    pub(super) row: i64,
}

/// What to find.
pub(super) struct Search<'a> {
    pub(super) typed: Typed,
    pub(super) formats: Vec<String>,
    pub(super) languages: Vec<String>,
    /// The catalogs to look into, by number.
    pub(super) feeds: &'a [Feed],
    pub(super) sort: Sort,
    pub(super) descending: bool,
    pub(super) after: Option<Place>,
    pub(super) limit: usize,
    pub(super) bounds: Bounds,
}

/// How many of the books found are of one kind.
pub type Counts = BTreeMap<String, u64>;

/// What was found.
#[derive(Default)]
pub(super) struct Found {
    pub(super) rows: Vec<i64>,
    pub(super) next: Option<Place>,
    pub(super) total: u64,
    pub(super) is_exact: bool,
    /// By format, by language, and by the feed's number.
    pub(super) facets: Option<(Counts, Counts, BTreeMap<i64, u64>)>,
}

/// Finds a page of books.
pub(super) fn find(connection: &Connection, search: &Search<'_>) -> Result<Found, StoreError> {
    let candidates = match Candidates::of(connection, search)? {
        Looked::All(candidates) => candidates,
        Looked::AtLeast(least) => {
            let (mut found, _) = walk(connection, search, None)?;
            found.is_exact = search.typed.is_empty() && !search.has_filters();
            found.total = if found.is_exact {
                search.feeds.iter().map(|feed| feed.books).sum()
            } else {
                found.least().max(least)
            };
            return Ok(found);
        }
    };
    let reads = !candidates.says_words;
    if candidates.rows.len() <= if reads { search.bounds.read } else { search.bounds.sorted } {
        return sorted(connection, search, &candidates);
    }
    let (mut found, is_whole) = walk(connection, search, Some(&candidates))?;
    if !is_whole && !reads && candidates.rows.len() <= 2 * search.bounds.sorted {
        // What is wanted lies far along the order: then all are sorted after all.
        return sorted(connection, search, &candidates);
    }
    found.is_exact = !reads && !search.has_filters();
    found.total = if found.is_exact { candidates.rows.len() as u64 } else { found.least() };
    Ok(found)
}

impl Found {
    fn least(&self) -> u64 {
        self.rows.len() as u64
    }
}

impl Search<'_> {
    pub(super) fn has_filters(&self) -> bool {
        !self.formats.is_empty() || !self.languages.is_empty()
    }

    /// Whether the filters let the book through.
    fn lets(&self, format: &str, language: &str) -> bool {
        let one = |wanted: &[String], is: &str| wanted.is_empty() || wanted.iter().any(|w| w == is);
        one(&self.formats, format) && one(&self.languages, language)
    }

    /// Whether the book of an entry has the words.
    fn is_found_in(&self, json: Option<String>) -> bool {
        let book = json.and_then(|json| entry::decode_book(&json).ok());
        book.is_some_and(|book| self.typed.finds(&Words::of(&book).text))
    }

    /// Whether the place comes before the page.
    fn is_past(&self, place: &Place) -> bool {
        match &self.after {
            None => false,
            Some(after) if self.descending => place >= after,
            Some(after) => place <= after,
        }
    }

    fn key(&self, title: &str, author: &str, added: &str) -> String {
        match self.sort {
            Sort::Relevance => format!("{}{title}", u8::from(!title.starts_with(&self.typed.text))),
            Sort::Title => title.to_owned(),
            Sort::Author => author_key(author, title),
            Sort::Added => added.to_owned(),
            Sort::Published => String::new(),
        }
    }

    /// The ranges of rows to look into.
    pub(super) fn ranges(&self) -> Vec<(i64, i64)> {
        let mut ranges: Vec<(i64, i64)> = Vec::new();
        for feed in self.feeds {
            let (first, last) = view::rows_of(feed.number);
            match ranges.last_mut() {
                Some(range) if range.1 + 1 == first => range.1 = last,
                _ => ranges.push((first, last)),
            }
        }
        ranges
    }
}

/// Fetches all candidates and sorts those that are hits.
fn sorted(
    connection: &Connection,
    search: &Search<'_>,
    candidates: &Candidates,
) -> Result<Found, StoreError> {
    let mut book = connection.prepare_cached(
        "SELECT title, author, added, format, language, block FROM catalog_books WHERE row = ?1",
    )?;
    let mut entries = view::Entries::new(connection)?;
    let mut places = Vec::new();
    let mut total = 0;
    let (mut formats, mut languages, mut feeds) = (Counts::new(), Counts::new(), BTreeMap::new());
    for id in &candidates.rows {
        let mut rows = book.query([id])?;
        let Some(row) = rows.next()? else { continue };
        let text = |at| -> Result<&str, StoreError> {
            Ok(row.get_ref(at)?.as_str().map_err(rusqlite::Error::from)?)
        };
        let (title, author, format, language) = (text(0)?, text(1)?, text(3)?, text(4)?);
        if !search.lets(format, language) {
            continue;
        }
        if !candidates.says_words && !search.typed.finds(&author_key(author, title)) {
            let json = entries.get(id >> view::SEQUENCE_BITS, row.get(5)?)?;
            if !search.is_found_in(json) {
                continue;
            }
        }
        total += 1;
        for (counts, term) in [(&mut formats, format), (&mut languages, language)] {
            if let Some(count) = counts.get_mut(term) {
                *count += 1;
            } else if !term.is_empty() {
                counts.insert(term.to_owned(), 1);
            }
        }
        *feeds.entry(id >> view::SEQUENCE_BITS).or_default() += 1;
        let place = Place { key: search.key(title, author, text(2)?), row: *id };
        if !search.is_past(&place) {
            places.push(place);
        }
    }
    let compare = |a: &Place, b: &Place| if search.descending { b.cmp(a) } else { a.cmp(b) };
    let has_more = places.len() > search.limit;
    if has_more {
        places.select_nth_unstable_by(search.limit, compare);
        places.truncate(search.limit);
    }
    places.sort_unstable_by(compare);
    Ok(Found {
        rows: places.iter().map(|place| place.row).collect(),
        next: places.pop().filter(|_| has_more),
        total,
        is_exact: true,
        facets: Some((formats, languages, feeds)),
    })
}

/// Walks in order and tests each book; the flag says whether the page is whole. Else it ends where the
/// walk had to stop, and the next page goes on there.
fn walk(
    connection: &Connection,
    search: &Search<'_>,
    candidates: Option<&Candidates>,
) -> Result<(Found, bool), StoreError> {
    let mut found = Found::default();
    let (mut steps, mut read) = (0, 0);
    let mut last: Option<Place> = None;
    let keep = |row: i64, format: &str, language: &str| {
        search.lets(format, language)
            && candidates.is_none_or(|known| known.rows.binary_search(&row).is_ok())
    };
    for mut part in Walk::parts(connection, search)? {
        while let Some(Step { place, words, weight }) = part.next(&keep)? {
            if last.is_some() && (steps >= search.bounds.steps || read >= search.bounds.steps_read)
            {
                found.next = last;
                return Ok((found, false));
            }
            steps += weight;
            let is_hit = match words {
                None => false,
                Some(_) if candidates.is_some_and(|known| known.says_words) => true,
                Some(words) if search.typed.finds(&words) => true,
                Some(_) => {
                    read += 1;
                    search.is_found_in(view::entry_at(connection, place.row)?)
                }
            };
            if is_hit && found.rows.len() == search.limit {
                found.next = last;
                return Ok((found, true));
            }
            if is_hit {
                found.rows.push(place.row);
            }
            last = Some(place);
        }
    }
    Ok((found, true))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::crypto::PublicKey;
    use crate::store::Database;

    const WORDS: [&str; 7] = ["the", "zoo", "of", "time", "tiger", "an", "ezra"];

    /// Two catalogs whose words and filters are common, rare, and bound to a place in the order.
    async fn two_catalogs(db: &Database) -> Vec<Feed> {
        let mut feeds = Vec::new();
        for server in [1u8, 2] {
            let entries: Vec<_> = (0..150usize)
                .map(|n| {
                    let word = |place: usize| WORDS[(n * 5 + place * n / 3 + place) % WORDS.len()];
                    let entry = serde_json::json!({
                        "type": "book-added", "id": n.to_string(), "title": format!("{} {}", word(1), word(2)),
                        "author": (n % 4 > 0).then(|| word(3)), "series": word(4),
                        "format": if n % 50 == 7 { "pdf" } else { "epub" },
                        "language": if n % 3 == 0 { "fr" } else { "en" },
                        "addedAt": format!("20{:02}", n % 17),
                    });
                    entry.to_string()
                })
                .collect();
            let key = [server; 32];
            let server = PublicKey::from_bytes(key);
            feeds.push(view::fixture::replay(db, server, key, &entries).await);
        }
        feeds
    }

    pub(in super::super) fn open() -> (tempfile::TempDir, Database) {
        let dir = tempfile::tempdir().unwrap();
        let db = Database::open(&dir.path().join("p2p.db")).unwrap();
        (dir, db)
    }

    /// The rows of all pages, and the least and the exact total that the pages said.
    pub(in super::super) fn pages(
        db: &Database,
        search: &mut Search<'_>,
    ) -> (Vec<i64>, u64, Option<u64>) {
        let (mut rows, mut least, mut exact) = (Vec::new(), 0, None);
        search.after = None;
        loop {
            let found = db.read(|c| find(c, search)).unwrap();
            assert!(found.rows.len() <= search.limit);
            rows.extend(found.rows);
            least = least.max(found.total);
            exact = exact.or(found.is_exact.then_some(found.total));
            match found.next {
                None => return (rows, least, exact),
                next => search.after = next,
            }
        }
    }

    #[tokio::test]
    async fn whatever_the_way_to_the_books_the_order_and_the_books_are_the_same() {
        let (_dir, db) = open();
        let feeds = two_catalogs(&db).await;
        let all = Bounds { sorted: 1000, read: 1000, counted: 1000, steps: 1000, steps_read: 1000 };
        let bounds = [
            Bounds { sorted: 0, read: 0, ..all },
            Bounds { counted: 0, ..all },
            Bounds { counted: 0, steps: 40, steps_read: 9, ..all },
            Bounds { sorted: 0, read: 0, steps: 25, steps_read: 9, ..all },
            Bounds { counted: 40, sorted: 5, read: 5, ..all },
        ];
        let sorts = [Sort::Relevance, Sort::Title, Sort::Author, Sort::Added, Sort::Published];
        for words in ["", "of", "zoo", "ti", "the zoo", "2004"] {
            for (format, language) in [("", ""), ("pdf", ""), ("", "fr"), ("epub", "en")] {
                for (sort, descending) in sorts.into_iter().flat_map(|s| [(s, false), (s, true)]) {
                    let one =
                        |word: &str| Vec::from_iter((!word.is_empty()).then(|| word.to_owned()));
                    let mut search = Search {
                        typed: Typed::read(words).unwrap(),
                        formats: one(format),
                        languages: one(language),
                        feeds: &feeds,
                        sort,
                        descending,
                        after: None,
                        limit: 1000,
                        bounds: all,
                    };
                    let (wanted, _, total) = pages(&db, &mut search);
                    assert_eq!(total, Some(wanted.len() as u64));
                    for bounds in bounds {
                        (search.bounds, search.limit) = (bounds, 20);
                        let (found, least, exact) = pages(&db, &mut search);
                        let what = (words, format, language, sort, descending, bounds);
                        assert_eq!(found, wanted, "{what:?}");
                        assert!(least <= wanted.len() as u64, "{what:?}");
                        assert!(exact.is_none_or(|total| total == wanted.len() as u64), "{what:?}");
                    }
                }
            }
        }
    }
}
