//! One book on its way: asking, allowing, sending, receiving, putting it in its place.
//!
//! | file | idea |
//! |---|---|
//! | `handle.rs` | transfers as a program sees them |
//! | `message.rs`, `link.rs`, `line.rs`, `conduct.rs` | the messages of `alex/p2p`; its channel on a connection; the peer's line; how often it may say what |
//! | `state.rs`, `outgoing.rs`, `engine.rs`, `live.rs`, `lives.rs` | a transfer's life; how its state changes; one that is not finished, and all of these |
//! | `receiving.rs`, `download.rs`, `part.rs`, `landing.rs`, `lander.rs`, `filename.rs` | the receiving side |
//! | `requests.rs`, `sending.rs`, `shelf.rs`, `library.rs` | the sending side |
//! | `policy.rs`, `permission.rs`, `grants.rs` | who may have books; whether a peer may read a book now; asked for every block |
//! | `held.rs`, `space.rs` | small books, which go through memory; room on the disks |
//! | `turns.rs`, `record.rs`, `table.rs` | one after the other; a transfer written down |

mod conduct;
mod download;
mod engine;
mod filename;
mod grants;
mod handle;
mod held;
mod lander;
mod landing;
mod library;
mod line;
mod link;
mod live;
mod lives;
pub mod message;
mod options;
mod outgoing;
mod part;
mod permission;
mod policy;
mod progress;
mod receiving;
mod record;
mod requests;
mod sending;
mod shelf;
mod space;
mod state;
mod table;
mod turns;

pub use handle::{BookRequest, Transfer, Transfers};
pub use library::{BookReaders, BookSource, Description, Library, Provided, Provider};
pub use options::{OnHello, TransferLimits, TransferOptions};
pub use policy::{PeerRules, Policy};
pub use progress::Progress;
pub use record::TransferInfo;
pub use state::{Direction, State};
pub use table::{Filter, end_all_with};
