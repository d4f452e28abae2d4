//! Noticing that this machine changed networks, or woke up.
//!
//! There is no portable way to be told, so the machine's addresses are read every few seconds, which
//! costs a system call. A wall clock that ran far ahead of the timer means that the machine slept. Behind a
//! router, only others see that the address changed: the DHT's nodes tell.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;

use crate::hyperdht::HyperDht;
use crate::peers::Connections;

/// How often the addresses are read.
const INTERVAL: Duration = Duration::from_secs(5);
/// How much longer than [`INTERVAL`] a turn takes when the machine slept.
const SLEPT: Duration = Duration::from_secs(20);

/// The shortest time between two changes that the DHT tells of: some NATs never rest.
const SEEN_INTERVAL: Duration = Duration::from_secs(30);

/// Has everybody dialed at once who is not connected, each time the network changed.
pub(super) async fn watch(dht: HyperDht, connections: Connections, cancel: CancellationToken) {
    let seen = follow_seen_address(&dht, &connections);
    let own = follow_own_addresses(&connections);
    let _ = cancel.run_until_cancelled(async { tokio::join!(seen, own) }).await;
}

async fn follow_seen_address(dht: &HyperDht, connections: &Connections) {
    // What it finds out at first is no change.
    dht.bootstrapped().await;
    let mut changes = dht.network_changes();
    loop {
        tokio::time::sleep(SEEN_INTERVAL).await;
        if changes.changed().await.is_err() {
            return;
        }
        tracing::info!("others see this machine elsewhere");
        connections.network_changed();
    }
}

async fn follow_own_addresses(connections: &Connections) {
    let mut addresses = local_addresses();
    let mut last = SystemTime::now();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let now = SystemTime::now();
        let slept = now.duration_since(last).is_ok_and(|elapsed| elapsed > INTERVAL + SLEPT);
        last = now;
        let current = local_addresses();
        let gained = current.difference(&addresses).next().is_some();
        addresses = current;
        if slept || gained {
            tracing::info!(slept, "the network changed");
            connections.network_changed();
        }
    }
}

/// The addresses by which others may reach this machine. None when they cannot be read.
fn local_addresses() -> BTreeSet<IpAddr> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    interfaces.iter().filter(|i| !i.is_loopback()).map(if_addrs::Interface::ip).collect()
}
