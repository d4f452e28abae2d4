//! Walking several catalogs at once, in one order. Each part of a catalog is sorted by itself; what is read
//! ahead of all parts is merged.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::VecDeque;

use rusqlite::Connection;

use super::find::{Place, Search, Sort};
use super::view::{self, Feed};
use crate::store::StoreError;

/// How many steps are read of all parts together at first, of one at least, and of one at most.
const FIRST_STEPS: usize = 256;
const LEAST_STEPS: usize = 8;
const MOST_STEPS: usize = 1024;
/// Sorts behind every key.
const END: &str = "\u{10ffff}\u{10ffff}";

/// One book on the way.
pub(super) struct Step {
    pub(super) place: Place,
    /// Words of the book, as far as the index has them; `None` where the books up to here were passed
    /// over.
    pub(super) words: Option<String>,
    /// How many books of the index this step stands for.
    pub(super) weight: usize,
}

/// Whether a book with this row, format and language may be a hit.
pub(super) type Keep<'a> = dyn Fn(i64, &str, &str) -> bool + 'a;

/// A stretch of the order over every catalog of a search.
pub(super) struct Walk<'a> {
    connection: &'a Connection,
    sort: Sort,
    descending: bool,
    /// What the keys in the index lack of the order's keys.
    class: &'static str,
    /// Keys that this stretch leaves to another one begin so.
    except: Option<String>,
    first: Place,
    last: Place,
    parts: Vec<Ahead>,
    heads: BinaryHeap<Head>,
    is_started: bool,
}

/// What was read ahead of one part.
struct Ahead {
    part: i64,
    /// The first row of the part, and the last.
    rows: (i64, i64),
    steps: VecDeque<Step>,
    /// Where to read on; `None` at the end.
    from: Option<Place>,
    size: usize,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Head {
    Up(Reverse<(Place, usize)>),
    Down(Place, usize),
}

impl<'a> Walk<'a> {
    /// The stretches of the search's order behind its place, one after the other.
    pub(super) fn parts(
        connection: &'a Connection,
        search: &Search<'_>,
    ) -> Result<Vec<Self>, StoreError> {
        let text = &search.typed.text;
        let mut parts = match search.sort {
            Sort::Relevance => vec![
                (("0", None), (text.clone(), format!("{text}{END}"))),
                (("1", Some(text.clone())), (String::new(), END.to_owned())),
            ],
            _ => vec![(("", None), (String::new(), END.to_owned()))],
        };
        if search.descending {
            parts.reverse();
        }
        let mut walks = Vec::new();
        for ((class, except), (low, high)) in parts {
            let (mut low, mut high) =
                (Place { key: low, row: i64::MIN }, Place { key: high, row: i64::MAX });
            if let Some(after) = &search.after {
                let place = after
                    .key
                    .strip_prefix(class)
                    .map(|key| Place { key: key.to_owned(), row: after.row });
                match place {
                    Some(place) if search.descending => high = high.min(place),
                    Some(place) => low = low.max(place),
                    // A place in another stretch: this one is behind it, or wholly before it.
                    None if (class > after.key.as_str()) == search.descending => continue,
                    None => {}
                }
            }
            let from = if search.descending { high.clone() } else { low.clone() };
            let parts = parts_of(search);
            let size = (FIRST_STEPS / parts.len().max(1)).max(LEAST_STEPS);
            let ahead = |(part, rows)| Ahead {
                part,
                rows,
                steps: VecDeque::new(),
                from: Some(from.clone()),
                size,
            };
            walks.push(Self {
                connection,
                sort: search.sort,
                descending: search.descending,
                class,
                except,
                parts: parts.into_iter().map(ahead).collect(),
                first: low,
                last: high,
                heads: BinaryHeap::new(),
                is_started: false,
            });
        }
        Ok(walks)
    }

    /// The next book.
    pub(super) fn next(&mut self, keep: &Keep<'_>) -> Result<Option<Step>, StoreError> {
        if !self.is_started {
            self.is_started = true;
            for at in 0..self.parts.len() {
                self.offer(at, keep)?;
            }
        }
        let Some(head) = self.heads.pop() else { return Ok(None) };
        let (Head::Up(Reverse((_, at))) | Head::Down(_, at)) = head;
        let step = self.parts.get_mut(at).and_then(|part| part.steps.pop_front());
        self.offer(at, keep)?;
        Ok(step.map(|mut step| {
            step.place.key.insert_str(0, self.class);
            step
        }))
    }

    /// Puts the first step of a part among the heads.
    fn offer(&mut self, at: usize, keep: &Keep<'_>) -> Result<(), StoreError> {
        self.read(at, keep)?;
        let step = self.parts.get(at).and_then(|part| part.steps.front());
        if let Some(place) = step.map(|step| step.place.clone()) {
            let up = |place| Head::Up(Reverse((place, at)));
            self.heads.push(if self.descending { Head::Down(place, at) } else { up(place) });
        }
        Ok(())
    }

    /// Reads ahead in a part of which nothing is left.
    fn read(&mut self, at: usize, keep: &Keep<'_>) -> Result<(), StoreError> {
        let Some(part) = self.parts.get_mut(at) else { return Ok(()) };
        while part.steps.is_empty() {
            let Some(from) = part.from.take() else { return Ok(()) };
            let (low, high) =
                if self.descending { (&self.first, &from) } else { (&from, &self.last) };
            let mut statement = self.connection.prepare_cached(sql(self.sort, self.descending))?;
            let limit = part.size as i64;
            let mut rows = match self.sort {
                Sort::Published => {
                    let (first, last) = part.rows;
                    statement.query((low.row.max(first - 1), high.row.min(last + 1), limit))?
                }
                Sort::Author => {
                    let (one, other) = (author_and_title(&low.key), author_and_title(&high.key));
                    statement.query(rusqlite::params![
                        part.part, one.0, one.1, low.row, other.0, other.1, high.row, limit
                    ])?
                }
                _ => statement.query((part.part, &low.key, low.row, &high.key, high.row, limit))?,
            };
            let tells = !matches!(self.sort, Sort::Added | Sort::Published);
            let mut count = 0;
            while let Some(row) = rows.next()? {
                count += 1;
                let text = |at| -> Result<&str, StoreError> {
                    Ok(row.get_ref(at)?.as_str().map_err(rusqlite::Error::from)?)
                };
                let (key, id) = (text(0)?, row.get(1)?);
                let is_left = self.except.as_ref().is_some_and(|text| key.starts_with(text));
                let is_kept = !is_left && keep(id, text(2)?, text(3)?);
                let is_last = count == part.size;
                if is_kept || is_last {
                    let words = if tells { key.to_owned() } else { String::new() };
                    part.steps.push_back(Step {
                        place: Place { key: key.to_owned(), row: id },
                        words: is_kept.then_some(words),
                        weight: if is_last { count } else { 0 },
                    });
                }
                if is_last {
                    part.from = Some(Place { key: key.to_owned(), row: id });
                }
            }
            part.size = MOST_STEPS.min(part.size * 2);
        }
        Ok(())
    }
}

/// The parts to walk through, each with its rows. In the order of rows a catalog is one part.
fn parts_of(search: &Search<'_>) -> Vec<(i64, (i64, i64))> {
    let whole = |feed: &Feed| (0, view::rows_of(feed.number));
    if search.sort == Sort::Published {
        return search.feeds.iter().map(whole).collect();
    }
    let parts = search.feeds.iter().flat_map(Feed::parts);
    parts.map(|part| (part, (0, 0))).collect()
}

/// What a key of [`Sort::Author`] is made of.
pub(super) fn author_key(author: &str, title: &str) -> String {
    format!("{author}\u{1}{title}")
}

fn author_and_title(key: &str) -> (&str, &str) {
    key.split_once('\u{1}').unwrap_or((key, ""))
}

fn sql(sort: Sort, descending: bool) -> &'static str {
    macro_rules! by {
        ($column:literal, $order:literal) => {
            concat!(
                "SELECT ",
                $column,
                ", row, format, language FROM catalog_books \
                 INDEXED BY catalog_by_",
                $column,
                " WHERE part = ?1 \
                 AND (",
                $column,
                ", row) > (?2, ?3) AND (",
                $column,
                ", row) < (?4, ?5) \
                 ORDER BY ",
                $column,
                " ",
                $order,
                ", row ",
                $order,
                " LIMIT ?6"
            )
        };
    }
    match (sort, descending) {
        (Sort::Title | Sort::Relevance, false) => by!("title", "ASC"),
        (Sort::Title | Sort::Relevance, true) => by!("title", "DESC"),
        (Sort::Author, false) => {
            "SELECT author || char(1) || title, row, format, language FROM catalog_books \
             INDEXED BY catalog_by_author WHERE part = ?1 AND (author, title, row) > (?2, ?3, ?4) \
             AND (author, title, row) < (?5, ?6, ?7) ORDER BY author, title, row LIMIT ?8"
        }
        (Sort::Author, true) => {
            "SELECT author || char(1) || title, row, format, language FROM catalog_books \
             INDEXED BY catalog_by_author WHERE part = ?1 AND (author, title, row) > (?2, ?3, ?4) \
             AND (author, title, row) < (?5, ?6, ?7) \
             ORDER BY author DESC, title DESC, row DESC LIMIT ?8"
        }
        (Sort::Added, false) => by!("added", "ASC"),
        (Sort::Added, true) => by!("added", "DESC"),
        (Sort::Published, false) => {
            "SELECT '', row, format, language FROM catalog_books WHERE row > ?1 AND row < ?2 \
             ORDER BY row LIMIT ?3"
        }
        (Sort::Published, true) => {
            "SELECT '', row, format, language FROM catalog_books WHERE row > ?1 AND row < ?2 \
             ORDER BY row DESC LIMIT ?3"
        }
    }
}
