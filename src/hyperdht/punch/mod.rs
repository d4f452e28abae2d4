//! Hole punching: getting packets through the NATs of both sides (`hyperdht` `lib/holepuncher.js`).
//!
//! Both sides open a socket for the punch and learn from a few nodes how their NAT treats it
//! ([`nat`]). They tell each other over a node that both reach, encrypted ([`seal`]): first the client
//! asks, then both send at the same time, each along its [`plan`]. The first packet that gets to the
//! client is the path, and the connection goes over that socket.

pub(crate) mod client;
pub(crate) mod nat;
pub(crate) mod plan;
pub(crate) mod puncher;
pub(crate) mod seal;
pub(crate) mod server;
pub(crate) mod throttle;
