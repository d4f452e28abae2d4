//! One book on its way: asking, allowing, sending, receiving, putting it in its place.

mod filename;
mod landing;
mod library;
pub mod message;
mod policy;
mod progress;
mod record;
mod state;
mod table;

pub use library::{BookSource, Description, Library, Provided, Provider};
pub use policy::{PeerRules, Policy};
pub use progress::Progress;
pub use record::TransferInfo;
pub use state::{Direction, State};
pub use table::Filter;
