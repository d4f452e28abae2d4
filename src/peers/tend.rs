//! Looking after the live connection to a peer: dials anew when the peer is silent, or may be reached on a
//! better path.
//!
//! A stream follows a peer whose address changed by itself, unless a NAT is in between that lets nothing in
//! from there. Then both sides have to meet anew, over the nodes that know them. The connection that is there
//! goes on meanwhile: if the peer is heard again, it stays.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::connections::Inner;
use super::dial::{dial, dial_on_link, dial_past_relays};
use super::dialer::{Wake, note_reached};
use super::registry::PeerConnection;
use crate::crypto::PublicKey;
use crate::hyperdht::{ConnectError, Connection, PathKind};

/// The shortest time from one attempt to the next.
const SPACING: Duration = Duration::from_secs(2);
/// How often a way past the relay is looked for while nothing says that there is one. The side with the
/// lesser key does a minute later: the other's connection would win anyway.
const PAST_RELAY: Duration = Duration::from_secs(5 * 60);
const LATER: Duration = Duration::from_secs(60);

/// Looks after the connection to `key`, until there is none. Cancel safe.
pub(super) async fn tend(inner: &Arc<Inner>, key: &PublicKey, wake: &Wake, dials_first: bool) {
    let interval = if dials_first { PAST_RELAY } else { PAST_RELAY + LATER };
    while let Some(live) = inner.registry.get(key) {
        let began = Instant::now();
        tokio::select! {
            () = inner.registry.replaced(key, live.number) => continue,
            () = live.udx.silent(true) => {
                tokio::select! {
                    () = inner.registry.replaced(key, live.number) => continue,
                    () = live.udx.silent(false) => {}
                    () = meet_anew(inner, wake, &live) => {}
                }
            }
            () = wake.better.notified() => improve(inner, &live).await,
            () = sleep(interval) => improve(inner, &live).await,
        }
        tokio::select! {
            () = inner.registry.replaced(key, live.number) => {}
            () = sleep_until(began + SPACING) => {}
        }
    }
}

/// Dials a peer that does not answer any more.
async fn meet_anew(inner: &Arc<Inner>, wake: &Wake, live: &PeerConnection) {
    tracing::debug!(peer = live.key.short(), "a peer is silent: dialing it anew");
    let needs_relay = live.path() == PathKind::Relayed;
    take(inner, live, dial(inner, &live.key, wake, needs_relay).await);
}

/// Looks for a better path than there is.
async fn improve(inner: &Arc<Inner>, live: &PeerConnection) {
    let path = live.path();
    if path == PathKind::Lan {
        return;
    }
    let looking = async {
        match dial_on_link(inner, &live.key).await {
            Err(_) if path == PathKind::Relayed => dial_past_relays(inner, &live.key).await,
            outcome => outcome,
        }
    };
    tokio::select! {
        () = inner.registry.replaced(&live.key, live.number) => {}
        outcome = looking => {
            // A punch that went on since the handshake may have been faster.
            if live.path() == path {
                take(inner, live, outcome);
            }
        }
    }
}

fn take(inner: &Arc<Inner>, live: &PeerConnection, outcome: Result<Connection, ConnectError>) {
    match outcome {
        Ok(connection) => {
            tracing::debug!(peer = live.key.short(), path = ?connection.path(), "met a peer anew");
            note_reached(inner, &connection);
            inner.supersede(live, connection);
        }
        Err(error) => tracing::debug!(peer = live.key.short(), %error, "a peer was not met anew"),
    }
}
