//! The other servers: who is admitted, who knocks, who is online, and the connections to them.
//!
//! [`Peers`] is the list that people edit. Two servers connect only when each has approved the other; a
//! key that is not approved is refused inside the handshake and remembered as a [`Knock`]. [`Connections`]
//! dials and accepts, keeps one connection a pair, and hands each out with its channels.

mod addresses;
mod arbitration;
mod backoff;
mod connections;
mod decision;
mod dial;
mod dialer;
mod directory;
mod discovered;
mod knocks;
mod lookup;
mod on_link;
mod presence;
mod record;
mod registry;
mod relays;
mod table;
mod tend;

pub use addresses::{AddressSource, PeerAddress};
pub use connections::{Attach, Connections};
pub use decision::{Consequences, Standing};
pub use directory::Peers;
pub(crate) use on_link::is_on_link;
pub use record::{
    AddOptions, ConnectionInfo, Discovered, Knock, NICKNAME_CHARS, Peer, PeerProblem, PeerStatus,
    PeerUpdate, Policy, check_nickname,
};
pub use registry::{CONNECTION_LIMIT, ConnectionEvent, ConnectionEvents, PeerConnection};
