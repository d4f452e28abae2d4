//! What transfers need to know about books, and where a book's bytes come from.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use tokio::io::AsyncRead;

use crate::crypto::PublicKey;
use crate::error::Result;
use crate::tasks::Task;

/// Where the bytes of one of this node's books are. Never leaves the machine.
#[derive(Clone)]
pub enum BookSource {
    /// A file. It should not change while it is offered; replace it by another file and publish again.
    Path(PathBuf),
    /// The program says where the book is when somebody may have it.
    OnDemand(Provider),
}

/// Gives the bytes of the book with that id. The error is for a person.
pub type Provider = Arc<
    dyn Fn(String) -> Pin<Box<dyn Future<Output = Result<Provided, String>> + Send>> + Send + Sync,
>;

/// What a [`Provider`] gives.
pub enum Provided {
    /// A file that is there already.
    Path(PathBuf),
    /// The book's bytes; they are spooled into a file before they are served.
    Reader(Box<dyn AsyncRead + Send + Unpin>),
}

impl fmt::Debug for BookSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Path(_) => "Path(…)",
            Self::OnDemand(_) => "OnDemand(…)",
        })
    }
}

/// The words and figures of a book that a transfer shows and names its file by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Description {
    /// The title.
    pub title: String,
    /// The author.
    pub author: Option<String>,
    /// The format: `epub`, `pdf`, ….
    pub format: Option<String>,
    /// The size in bytes, as claimed.
    pub size_bytes: Option<u64>,
}

/// The catalogs, as transfers see them. Short blocking reads of the database.
pub trait Library: Send + Sync + 'static {
    /// A book that this node offers; `None` when it offers none by that id. Without a source the book
    /// is listed but its bytes are not known (the program has not registered its provider yet).
    fn own(&self, book_id: &str) -> Result<Option<(Description, Option<BookSource>)>>;

    /// Counts the changes of this node's own catalog: what [`Library::own`] said holds until it is another number.
    fn changes(&self) -> u64;

    /// A book in a peer's catalog; `None` when it is not there (yet).
    fn of(&self, peer: &PublicKey, book_id: &str) -> Result<Option<Description>>;
}

/// Who reads this node's books, as the catalog sees them.
pub trait BookReaders: Send + Sync + 'static {
    /// Lets nobody read these books until [`BookReaders::restore`], at once.
    fn withhold(&self, books: &[String]);

    /// Undoes [`BookReaders::withhold`].
    fn restore(&self, books: &[String]);

    /// Asks of every transfer of these books, or of all, whether it may go on. False when the disk kept some from
    /// being asked.
    fn reconsider(&self, books: Option<Vec<String>>) -> Task<bool>;
}
