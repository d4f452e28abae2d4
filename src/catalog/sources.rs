//! Where the bytes of this node's own books are. Paths are kept in the database, providers in memory:
//! a program that publishes books on demand registers them again after a restart.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Mutex;

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::book::Book;
use crate::store::StoreError;
use crate::sync::lock;
use crate::transfer::{BookSource, Provider};

/// The providers that the program has registered in this run.
#[derive(Default)]
pub(super) struct Providers {
    by_book: Mutex<HashMap<String, Provider>>,
    /// For books that were published on demand in an earlier run.
    fallback: Mutex<Option<Provider>>,
}

impl Providers {
    pub(super) fn set_fallback(&self, provider: Option<Provider>) {
        *lock(&self.fallback) = provider;
    }

    /// Notes the providers among `books`, and that the others have none.
    pub(super) fn note(&self, books: &[Book]) {
        let mut providers = lock(&self.by_book);
        for book in books {
            match &book.source {
                Some(BookSource::OnDemand(provider)) => {
                    providers.insert(book.entry.id.clone(), provider.clone());
                }
                Some(BookSource::Path(_)) => {
                    providers.remove(&book.entry.id);
                }
                None => {}
            }
        }
    }

    pub(super) fn forget(&self, ids: &[String]) {
        let mut providers = lock(&self.by_book);
        for id in ids {
            providers.remove(id);
        }
    }

    fn get(&self, id: &str) -> Option<Provider> {
        lock(&self.by_book).get(id).cloned().or_else(|| lock(&self.fallback).clone())
    }

    /// Where the book's bytes are, as far as it is known in this run.
    pub(super) fn resolve(
        &self,
        connection: &Connection,
        id: &str,
    ) -> Result<Option<BookSource>, StoreError> {
        let mut statement =
            connection.prepare_cached("SELECT path FROM catalog_sources WHERE book_id = ?1")?;
        let found: Option<Option<String>> =
            statement.query_row([id], |row| row.get(0)).optional()?;
        Ok(match found {
            Some(Some(path)) => Some(BookSource::Path(PathBuf::from(path))),
            Some(None) => self.get(id).map(BookSource::OnDemand),
            None => None,
        })
    }
}

/// What the table says of a book: its path, or that it comes on demand.
pub(super) type Place = (String, Option<String>);

/// The places of `books`. The error names the first book whose path is not Unicode.
pub(super) fn places(books: &[Book]) -> Result<Vec<Place>, String> {
    let place = |book: &Book| {
        let id = book.entry.id.clone();
        match &book.source {
            None => None,
            Some(BookSource::OnDemand(_)) => Some(Ok((id, None))),
            Some(BookSource::Path(path)) => Some(
                std::path::absolute(path)
                    .ok()
                    .and_then(|path| path.to_str().map(str::to_owned))
                    .map(|path| (id.clone(), Some(path)))
                    .ok_or(id),
            ),
        }
    };
    books.iter().filter_map(place).collect()
}

/// Writes where books are.
pub(super) fn put(transaction: &Transaction<'_>, places: &[Place]) -> Result<(), StoreError> {
    let mut statement = transaction.prepare_cached(
        "INSERT INTO catalog_sources (book_id, path) VALUES (?1, ?2) \
         ON CONFLICT (book_id) DO UPDATE SET path = excluded.path WHERE path IS NOT excluded.path",
    )?;
    for (id, path) in places {
        statement.execute(params![id, path])?;
    }
    Ok(())
}

/// Forgets where books are.
pub(super) fn remove(transaction: &Transaction<'_>, ids: &[String]) -> Result<(), StoreError> {
    let mut statement =
        transaction.prepare_cached("DELETE FROM catalog_sources WHERE book_id = ?1")?;
    for id in ids {
        statement.execute([id])?;
    }
    Ok(())
}
