//! Which books can be hits: what the index has for the words that were typed, and for filters.

use rusqlite::Connection;

use super::find::Search;
use super::search;
use crate::store::StoreError;

/// How many words that were typed are read as far as one may be, all together.
const ALL_WORDS: usize = 3;

/// Every book that can be a hit, by row.
pub(super) struct Candidates {
    pub(super) rows: Vec<i64>,
    /// Whether they are known to have all of the words.
    pub(super) says_words: bool,
}

/// What looking into the index gave.
pub(super) enum Looked {
    All(Candidates),
    /// There are too many; at least so many of them are hits.
    AtLeast(u64),
}

impl Candidates {
    pub(super) fn of(connection: &Connection, search: &Search<'_>) -> Result<Looked, StoreError> {
        let (words, is_all) = search.typed.rare();
        let mut known: Option<Self> = None;
        let mut least = 0;
        let mut left = ALL_WORDS * search.bounds.counted;
        for word in &words {
            let looked = beginning_with(connection, search, word, &mut left)?;
            match (looked, &mut known) {
                ((rows, false), _) if words.len() == 1 && is_all && !search.has_filters() => {
                    least = rows.len() as u64;
                }
                ((_, false), Some(known)) => known.says_words = false,
                ((_, false), None) => {}
                ((rows, true), Some(known)) => known.keep(&rows),
                // Words that come before were too common.
                ((rows, true), None) => {
                    let says_words = is_all && words.first() == Some(word);
                    known = Some(Self { rows, says_words });
                }
            }
        }
        if known.as_ref().is_some_and(|known| known.rows.len() <= search.bounds.read) {
            return Ok(known.map_or(Looked::AtLeast(least), Looked::All));
        }
        // A filter may be rarer than the words.
        let filters = [('l', &search.languages), ('f', &search.formats)];
        for (kind, terms) in filters.into_iter().filter(|(_, terms)| !terms.is_empty()) {
            let terms = terms.iter().map(|term| format!("\"{}\"", search::filter_word(kind, term)));
            let query = terms.collect::<Vec<_>>().join(" OR ");
            let is_empty = search.typed.is_empty();
            let most = if is_empty { search.bounds.counted } else { search.bounds.sorted };
            let Some(rows) = matching(connection, search, &query, most)? else { continue };
            match &mut known {
                Some(known) => known.keep(&rows),
                None => known = Some(Self { rows, says_words: is_empty }),
            }
        }
        Ok(known.map_or(Looked::AtLeast(least), Looked::All))
    }

    fn keep(&mut self, others: &[i64]) {
        self.rows.retain(|row| others.binary_search(row).is_ok());
    }
}

/// The rows of books with a word that begins with `typed`, ascending, and whether they are all. At most
/// `left` words of the index are read, and no more than one word is worth.
fn beginning_with(
    connection: &Connection,
    search: &Search<'_>,
    typed: &str,
    left: &mut usize,
) -> Result<(Vec<i64>, bool), StoreError> {
    let mut statement = connection
        .prepare_cached("SELECT doc FROM catalog_words WHERE term >= ?1 AND term <= ?2")?;
    let mut rows = statement.query([typed, &format!("{typed}\u{10ffff}")])?;
    let ranges = search.ranges();
    let mut found: Vec<i64> = Vec::new();
    let most = search.bounds.counted.min(*left);
    let (mut read, mut is_all) = (0, true);
    while let Some(row) = rows.next()? {
        if read == most {
            is_all = false;
            break;
        }
        read += 1;
        let row = row.get(0)?;
        if ranges.iter().any(|(first, last)| (*first..=*last).contains(&row)) {
            found.push(row);
        }
    }
    *left -= read;
    found.sort_unstable();
    found.dedup();
    Ok((found, is_all))
}

/// The rows that an FTS5 query finds, ascending; `None` when they are too many.
fn matching(
    connection: &Connection,
    search: &Search<'_>,
    query: &str,
    most: usize,
) -> Result<Option<Vec<i64>>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT rowid FROM catalog_search WHERE catalog_search MATCH ?1 AND rowid BETWEEN ?2 AND ?3",
    )?;
    let mut found = Vec::new();
    for (first, last) in search.ranges() {
        let mut rows = statement.query((query, first, last))?;
        while let Some(row) = rows.next()? {
            if found.len() == most {
                return Ok(None);
            }
            found.push(row.get(0)?);
        }
    }
    Ok(Some(found))
}

#[cfg(test)]
mod tests {
    use super::super::find::tests::{open, pages};
    use super::super::find::{Bounds, Sort};
    use super::super::search::Typed;
    use super::super::view;
    use super::*;
    use crate::crypto::PublicKey;

    #[tokio::test]
    async fn of_words_that_begin_alike_no_more_are_read_than_allowed() {
        let (_dir, db) = open();
        let entry = |n| format!(r#"{{"type":"book-added","id":"{n}","title":"aaaa{n} bbbb"}}"#);
        let entries: Vec<_> = (0..200).map(entry).collect();
        let server = PublicKey::from_bytes([1; 32]);
        let feeds = [view::fixture::replay(&db, server, [1; 32], &entries).await];
        let mut search = Search {
            typed: Typed::default(),
            formats: Vec::new(),
            languages: Vec::new(),
            feeds: &feeds,
            sort: Sort::Title,
            descending: false,
            after: None,
            limit: 20,
            bounds: Bounds { counted: 50, ..Bounds::DEFAULT },
        };
        let mut left = 60;
        for (typed, rows, is_all, after) in
            [("aaaa", 50, false, 10), ("aaaa19", 10, false, 0), ("aaaa7", 0, false, 0)]
        {
            let read = db.read(|c| beginning_with(c, &search, typed, &mut left)).unwrap();
            assert_eq!((read.0.len(), read.1, left), (rows, is_all, after), "{typed}");
        }
        search.typed = Typed::read("aaaa bbbb").unwrap();
        let (found, least, exact) = pages(&db, &mut search);
        assert_eq!((found.len(), least, exact), (200, 20, None));
    }
}
