//! What transfers work with.

use std::path::PathBuf;
use std::sync::Arc;

use super::library::Library;
use super::message::Hello;
use super::policy::PeerRules;
use crate::crypto::PublicKey;
use crate::events::Events;
use crate::hypercore::Storage;
use crate::hypercore::replicator::Replicator;
use crate::store::Database;

/// Hears what an approved peer says of itself. It must not block: it may be said again and again.
pub type OnHello = Arc<dyn Fn(PublicKey, Hello) + Send + Sync>;

/// What transfers work with.
#[derive(Clone)]
pub struct TransferOptions {
    /// The node's database.
    pub database: Database,
    /// Where cores are kept.
    pub storage: Arc<dyn Storage>,
    /// Sends and fetches book cores.
    pub replicator: Replicator,
    /// The catalogs.
    pub library: Arc<dyn Library>,
    /// Who may have what.
    pub peers: Arc<dyn PeerRules>,
    /// Hears of changes.
    pub events: Events,
    /// What this node says hello with, asked for every connection.
    pub hello: Arc<dyn Fn() -> Hello + Send + Sync>,
    /// Hears what peers say hello with.
    pub on_hello: OnHello,
    /// The node's folder: `incoming/` and `outgoing/` are in it.
    pub data_dir: PathBuf,
    /// Where books go unless the request says otherwise.
    pub books_dir: PathBuf,
    /// Bounds.
    pub limits: TransferLimits,
}

/// Bounds of transfers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferLimits {
    /// How many requests a peer may have open here, and we there.
    pub open_requests: usize,
    /// How many books flow to one peer at once; further ones wait. Books of up to 512 KiB do not count.
    pub transfers_at_once: usize,
    /// The largest book, in bytes.
    pub book_bytes: u64,
}

impl Default for TransferLimits {
    fn default() -> Self {
        Self { open_requests: 16, transfers_at_once: 8, book_bytes: 4 << 30 }
    }
}
