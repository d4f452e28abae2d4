//! UDX over simulated links: two state machines, a link between them, virtual time, no socket.
//!
//! Everything a link does comes from a seed, so what failed once fails again:
//!
//! ```text
//! cargo test --test simulation                               a few hundred seeds
//! SIMULATION_SEEDS=10000 cargo test --test simulation        as many as you like (`npm run test:long`)
//! SIMULATION_SEED=4711 cargo test --test simulation any_link just that one
//! ```

#![allow(clippy::unwrap_used)] // a failing unwrap is a failing test

mod delivery;
mod dice;
mod hostile;
mod life;
mod moving;
mod pair;
mod paths;

use std::time::Duration;

/// A second of virtual time.
const SECOND: Duration = Duration::from_secs(1);

/// Bytes that tell their position.
fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 7 + n / 251) as u8).collect()
}

/// The number in the environment variable `name`.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}
