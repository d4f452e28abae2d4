//! What keeps this node from publishing, and where that is written down.

use rusqlite::{Connection, Transaction};

use super::CatalogError;
use super::own::meta;
use crate::store::{RESTORED, StoreError};

/// The rows of `meta` that each say one reason.
const ELSEWHERE: &str = "catalog_written_elsewhere";
const DAMAGED: &str = "catalog_damaged";

/// Why nothing may be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Halt {
    /// A peer has entries of this feed that were not written here.
    WrittenElsewhere,
    /// The database was restored, and peers may have seen more of the feed.
    Restored,
    /// The feed is damaged: how.
    Damaged(String),
}

impl Halt {
    /// The same as an error, which says what to do.
    pub(super) fn error(&self) -> CatalogError {
        match self {
            Self::WrittenElsewhere => CatalogError::WrittenElsewhere,
            Self::Restored => CatalogError::Unconfirmed,
            Self::Damaged(how) => CatalogError::Damaged(how.clone()),
        }
    }

    pub(super) fn read(connection: &Connection) -> Result<Option<Self>, StoreError> {
        // That a row is there says it, whatever its value is.
        if let Some(how) = meta(connection, DAMAGED)? {
            return Ok(Some(Self::Damaged(String::from_utf8_lossy(&how).into_owned())));
        }
        if meta(connection, ELSEWHERE)?.is_some() {
            return Ok(Some(Self::WrittenElsewhere));
        }
        Ok(meta(connection, RESTORED)?.map(|_| Self::Restored))
    }

    pub(super) fn write(
        transaction: &Transaction<'_>,
        halt: Option<&Self>,
    ) -> Result<(), StoreError> {
        transaction.execute(
            "DELETE FROM meta WHERE name IN (?1, ?2, ?3)",
            [DAMAGED, ELSEWHERE, RESTORED],
        )?;
        let (name, value): (_, &[u8]) = match halt {
            None => return Ok(()),
            Some(Self::WrittenElsewhere) => (ELSEWHERE, &[1]),
            Some(Self::Restored) => (RESTORED, &[1]),
            Some(Self::Damaged(how)) => (DAMAGED, how.as_bytes()),
        };
        transaction.execute("INSERT INTO meta (name, value) VALUES (?1, ?2)", (name, value))?;
        Ok(())
    }
}
