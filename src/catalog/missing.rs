//! Books whose file is not there: their owner hears of them when they are published.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::num::NonZero;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::book::Book;
use crate::error::ErrorCode;
use crate::transfer::BookSource;

/// How many books that are not there are named; all are counted.
pub const MAX_NAMED: usize = 100;

/// Fewer files are looked at by one thread; and how many threads look at more. They wait for the disk.
const MIN_FOR_THREADS: usize = 256;
const MAX_THREADS: usize = 8;

/// What to do with books whose file is not there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnMissing {
    /// They are published as the others: the disk may be back tomorrow. Until then requests for them are
    /// answered `unavailable`.
    #[default]
    Publish,
    /// They are left out, as if they had not been given: nothing of theirs is published, and a sync takes
    /// them off the catalog.
    Skip,
}

/// How to publish.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PublishOptions {
    /// What to do with books whose file is not there.
    pub missing: OnMissing,
}

/// A book whose file is not there, or can not be sent as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MissingBook {
    /// Its id.
    pub id: String,
    /// Where it stands in the list that was given, from 0.
    pub index: u64,
    /// Where its file should be.
    pub path: PathBuf,
    /// `ERR_NOT_FOUND`, or `ERR_IO` for what is there and is no file with a book in it.
    pub code: String,
    /// What is wrong, and what to do.
    pub message: String,
}

/// Why a book's file is none.
#[derive(Debug)]
enum Problem {
    Absent,
    Folder,
    Special,
    Empty,
    System(io::Error),
}

/// What was found out about the files of a list of books.
#[derive(Debug, Default)]
pub(super) struct Missing {
    /// The first ones, in order.
    pub(super) named: Vec<MissingBook>,
    pub(super) count: u64,
    /// Where they all stand.
    all: HashSet<usize>,
}

/// Whether the files must be looked for before anything is planned.
pub(super) fn comes_first(books: &[Book], options: PublishOptions) -> bool {
    let wants_size = |book: &Book| {
        matches!(book.source, Some(BookSource::Path(_))) && book.entry.size_bytes.is_none()
    };
    options.missing == OnMissing::Skip || books.iter().any(wants_size)
}

/// Looks for the files of `books`; blocks on disk.
pub(super) fn check(books: &[Book]) -> Missing {
    missing(books, &look(books))
}

/// As [`check`]; notes the sizes that were not given, and leaves out what is to be left out.
pub(super) fn check_first(books: &mut Vec<Book>, options: PublishOptions) -> Missing {
    let looked = look(books);
    let missing = missing(books, &looked);
    let mut skipped = HashSet::new();
    for (index, found) in looked {
        let Some(book) = books.get_mut(index) else { continue };
        match found {
            Ok(size) => _ = book.entry.size_bytes.get_or_insert(size),
            Err(_) if missing.all.contains(&index) => _ = skipped.insert(book.entry.id.clone()),
            Err(_) => {}
        }
    }
    if options.missing == OnMissing::Skip {
        books.retain(|book| !skipped.contains(&book.entry.id));
    }
    missing
}

fn missing(books: &[Book], looked: &[Looked]) -> Missing {
    let problems = looked.iter().filter_map(|(at, found)| Some((*at, found.as_ref().err()?)));
    let problems: Vec<(usize, &Problem)> = problems.collect();
    if problems.is_empty() {
        return Missing::default();
    }
    // Of two books with the same id only the later counts.
    let last: HashMap<&str, usize> =
        books.iter().enumerate().map(|(at, book)| (book.entry.id.as_str(), at)).collect();
    let counts =
        |at: usize| books.get(at).is_some_and(|book| last.get(book.entry.id.as_str()) == Some(&at));
    let counted: Vec<_> = problems.into_iter().filter(|(at, _)| counts(*at)).collect();
    let named = counted.iter().take(MAX_NAMED).filter_map(|(index, problem)| {
        let book = books.get(*index)?;
        let Some(BookSource::Path(path)) = &book.source else { return None };
        Some(MissingBook {
            id: book.entry.id.clone(),
            index: *index as u64,
            path: path.clone(),
            code: problem.code().as_str().to_owned(),
            message: problem.message(path),
        })
    });
    Missing {
        named: named.collect(),
        count: counted.len() as u64,
        all: counted.iter().map(|(at, _)| *at).collect(),
    }
}

/// Where a book stands, and how many bytes its file has.
type Looked = (usize, Result<u64, Problem>);

/// Looks at the files of all books that have a path, in order.
fn look(books: &[Book]) -> Vec<Looked> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let threads = if books.len() < MIN_FOR_THREADS { 1 } else { (4 * threads).min(MAX_THREADS) };
    if threads == 1 {
        return look_from(0, books);
    }
    let size = books.len().div_ceil(threads);
    std::thread::scope(|scope| {
        let parts: Vec<_> = books
            .chunks(size)
            .enumerate()
            .map(|(part, books)| scope.spawn(move || look_from(part * size, books)))
            .collect();
        parts.into_iter().flat_map(|part| part.join().unwrap_or_default()).collect()
    })
}

fn look_from(first: usize, books: &[Book]) -> Vec<Looked> {
    let look = |(index, book): (usize, &Book)| match &book.source {
        Some(BookSource::Path(path)) => Some((first + index, size_of(path))),
        _ => None,
    };
    books.iter().enumerate().filter_map(look).collect()
}

fn size_of(path: &Path) -> Result<u64, Problem> {
    let file = fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Problem::Absent,
        _ => Problem::System(error),
    })?;
    match (file.is_file(), file.is_dir(), file.len()) {
        (_, true, _) => Err(Problem::Folder),
        (false, ..) => Err(Problem::Special),
        (_, _, 0) => Err(Problem::Empty),
        (_, _, size) => Ok(size),
    }
}

impl Problem {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Absent => ErrorCode::NotFound,
            _ => ErrorCode::Io,
        }
    }

    fn message(&self, path: &Path) -> String {
        let path = path.display();
        match self {
            Self::Absent => format!(
                "there is no file {path}: if it was moved, publish the book with its new place; if its \
                 disk is not there, connect it"
            ),
            Self::Folder => {
                format!("{path} is a folder: give the file of the book itself as its source")
            }
            Self::Special => {
                format!("{path} is no file: give the file of the book itself as its source")
            }
            Self::Empty => format!("the file {path} is empty: put the book there again"),
            Self::System(error) => format!(
                "the file {path} cannot be read ({error}): see whether this program may read it"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::entry::BookEntry;

    fn book(id: &str, source: Option<BookSource>) -> Book {
        let entry = BookEntry { id: id.into(), title: id.into(), ..BookEntry::default() };
        Book { entry, source }
    }

    fn at(id: &str, path: PathBuf) -> Book {
        book(id, Some(BookSource::Path(path)))
    }

    #[test]
    fn what_is_not_there_is_named_with_its_place_and_why() {
        let dir = tempfile::tempdir().unwrap();
        let (there, empty) = (dir.path().join("a.epub"), dir.path().join("empty.epub"));
        fs::write(&there, "book").unwrap();
        fs::write(&empty, "").unwrap();
        let mut books = vec![
            at("a", there.clone()),
            at("gone", dir.path().join("gone.epub")),
            at("in a file", there.join("x.epub")),
            at("folder", dir.path().to_owned()),
            at("empty", empty),
            book("listed only", None),
        ];
        let missing = check_first(&mut books, PublishOptions::default());
        let named: Vec<_> = missing
            .named
            .iter()
            .map(|book| (book.id.as_str(), book.index, book.code.as_str()))
            .collect();
        let expected = [
            ("gone", 1, "ERR_NOT_FOUND"),
            ("in a file", 2, "ERR_NOT_FOUND"),
            ("folder", 3, "ERR_IO"),
            ("empty", 4, "ERR_IO"),
        ];
        assert_eq!(named, expected);
        assert_eq!((missing.count, books.len()), (4, 6));
        assert!(missing.named[0].message.contains("gone.epub"));
        assert_eq!(books[0].entry.size_bytes, Some(4), "the size that was not given");
        let skip = PublishOptions { missing: OnMissing::Skip };
        assert_eq!(check(&books).count, 4);
        assert_eq!(check_first(&mut books, skip).count, 4);
        let left: Vec<_> = books.iter().map(|book| book.entry.id.as_str()).collect();
        assert_eq!(left, ["a", "listed only"]);
    }

    #[test]
    fn of_many_the_first_are_named_and_all_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let there = dir.path().join("a.epub");
        fs::write(&there, "book").unwrap();
        let mut books: Vec<Book> = (0..1000)
            .map(|n| {
                at(&n.to_string(), if n % 2 == 0 { there.clone() } else { "/nowhere/x".into() })
            })
            .collect();
        // The later one is there.
        books.push(at("1", there));
        let missing = check_first(&mut books, PublishOptions::default());
        assert_eq!((missing.count, missing.named.len()), (499, MAX_NAMED));
        let indexes: Vec<u64> = missing.named.iter().map(|book| book.index).collect();
        assert_eq!(indexes, (0..100).map(|n| 2 * n + 3).collect::<Vec<_>>());
    }
}
