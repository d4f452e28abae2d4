//! Books whose file is not there: their owner hears of them when they are published.

use std::collections::HashSet;
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
}

/// Looks for the files of `books`. Notes the sizes that were not given; blocks on disk.
pub(super) fn check(books: &mut Vec<Book>, options: PublishOptions) -> Missing {
    let mut found = problems(books);
    if found.is_empty() {
        return Missing::default();
    }
    // Of two books with the same id only the later counts.
    let mut later = HashSet::new();
    let suspects: HashSet<usize> = found.iter().map(|(index, _)| *index).collect();
    let counts: HashSet<usize> = (0..books.len())
        .rev()
        .filter(|index| later.insert(books[*index].entry.id.as_str()) && suspects.contains(index))
        .collect();
    found.retain(|(index, _)| counts.contains(index));
    let count = found.len() as u64;
    let named = found.iter().take(MAX_NAMED).filter_map(|(index, problem)| {
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
    let named = named.collect();
    if options.missing == OnMissing::Skip {
        let skipped: HashSet<String> = found
            .iter()
            .filter_map(|(index, _)| Some(books.get(*index)?.entry.id.clone()))
            .collect();
        books.retain(|book| !skipped.contains(&book.entry.id));
    }
    Missing { named, count }
}

/// Which books have no file, in order.
fn problems(books: &mut [Book]) -> Vec<(usize, Problem)> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let threads = if books.len() < MIN_FOR_THREADS { 1 } else { (4 * threads).min(MAX_THREADS) };
    let size = books.len().div_ceil(threads).max(1);
    if threads == 1 {
        return problems_from(0, books);
    }
    std::thread::scope(|scope| {
        let parts: Vec<_> = books
            .chunks_mut(size)
            .enumerate()
            .map(|(part, books)| scope.spawn(move || problems_from(part * size, books)))
            .collect();
        parts.into_iter().flat_map(|part| part.join().unwrap_or_default()).collect()
    })
}

fn problems_from(first: usize, books: &mut [Book]) -> Vec<(usize, Problem)> {
    let look = |(index, book): (usize, &mut Book)| {
        let Some(BookSource::Path(path)) = &book.source else { return None };
        match size_of(path) {
            Ok(size) => {
                book.entry.size_bytes.get_or_insert(size);
                None
            }
            Err(problem) => Some((first + index, problem)),
        }
    };
    books.iter_mut().enumerate().filter_map(look).collect()
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
        (_, _, size) => check_readable(path).map(|()| size).map_err(Problem::System),
    }
}

#[cfg(unix)]
fn check_readable(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::access(path, rustix::fs::Access::READ_OK)?)
}

#[cfg(not(unix))]
fn check_readable(_path: &Path) -> io::Result<()> {
    Ok(()) // there is no cheap way to ask; opening it will tell
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
        let missing = check(&mut books, PublishOptions::default());
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
        assert_eq!(check(&mut books, skip).count, 4);
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
        let missing = check(&mut books, PublishOptions::default());
        assert_eq!((missing.count, missing.named.len()), (499, MAX_NAMED));
        let indexes: Vec<u64> = missing.named.iter().map(|book| book.index).collect();
        assert_eq!(indexes, (0..100).map(|n| 2 * n + 3).collect::<Vec<_>>());
    }
}
