//! UDX: reliable, ordered byte streams over UDP, wire compatible with npm `udx-native` (libudx).
//!
//! A [`Udx`] is a table of streams. Sockets are bound to it, and a stream may be connected over any of
//! them; many streams share one socket. Whatever arrives at a socket and is not a packet of a known
//! stream is handed to [`DatagramReceiver`]: the DHT's RPC shares the port with the streams.
//!
//! Reference: holepunchto/libudx, `include/udx.h` and `src/udx.c`.

mod bbr;
mod budget;
mod bytequeue;
mod driver;
pub mod header;
mod incoming;
mod link;
pub mod machine;
mod mtu;
mod outgoing;
mod pacer;
mod ranges;
mod rate;
mod recovery;
mod relay;
mod rtt;
mod socket;
mod stream;
mod table;

pub use budget::WindowBudget;
pub use mtu::ETHERNET_MTU;
pub use relay::{RelayLimit, RelayedStreams};
pub use socket::{Datagram, DatagramReceiver, UdxSocket};
pub use stream::{CloseReason, StreamHandle, StreamOptions, StreamStats, UdxStream};
pub use table::Udx;
