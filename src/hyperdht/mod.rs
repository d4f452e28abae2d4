//! HyperDHT: finding peers by their key and connecting to them (npm `hyperdht` 6.34).
//!
//! [`HyperDht`] is a node. It finds into the network over its bootstrap nodes, listens under key pairs
//! ([`HyperDht::listen`]), connects to them ([`HyperDht::connect`]), and announces and looks up topics
//! ([`HyperDht::join`]). Below is `rpc`, the Kademlia of npm `dht-rpc`.
//!
//! A server announces itself at three nodes close to the hash of its key. A client finds these, and
//! they pass its handshake on: a Noise IK message, which proves the client's key to the server and is
//! answered only if the server's firewall admits that key.

mod addresses;
mod announcer;
mod cache;
mod connect;
mod connection;
pub mod error;
#[doc(hidden)]
pub mod fuzzing;
mod half_open;
mod messages;
mod node;
mod noise;
pub mod options;
mod punch;
mod quota;
mod relay;
mod route;
mod router;
mod rpc;
mod server;
mod store;
mod testnet;
mod topic;
mod tuning;

pub use connection::{Connection, Path, PathKind};
pub use error::{AnnounceError, ConnectError, ListenError, RequestError};
pub use node::{DhtStatus, HyperDht};
pub use options::{
    BootstrapNode, ConnectOptions, DEFAULT_BOOTSTRAP, DEFAULT_PORT, DhtOptions, Firewall,
    InvalidBootstrapNode, JoinOptions, RelayThrough, ServerOptions,
};
pub use relay::server::{RelayOptions, RelayServer, RelayStats};
pub use relay::session::RelayPeers;
pub use rpc::table::K;
pub use server::Server;
pub use testnet::Testnet;
pub use topic::{Announcement, Topic};
pub use tuning::Tuning;
