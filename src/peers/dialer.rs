//! Dialing one approved peer, as long as it is approved.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::arbitration::is_preferred;
use super::backoff::Backoff;
use super::connections::Inner;
use super::dial::dial;
use super::tend::tend;
use crate::crypto::PublicKey;
use crate::error::ErrorCode;
use crate::hyperdht::{ConnectError, Connection, PathKind};

/// A connection that lasted this long was a good one: the next wait is short again.
const GOOD: Duration = Duration::from_secs(10);
/// The shortest time from one attempt to the next, whatever happens.
const SPACING: Duration = Duration::from_millis(500);
/// How much later the side with the lesser key dials after a connection was lost: the other side's
/// connection would win anyway.
const HEAD_START: Duration = Duration::from_millis(700);
/// How long a peer that is on its way to us gets to arrive before we dial it, too.
const ARRIVAL: Duration = Duration::from_secs(1);

/// What wakes a dialer out of its wait.
#[derive(Default)]
pub(super) struct Wake {
    /// Dial at once: it may be there now.
    pub(super) now: Notify,
    /// It is dialing us; dial it if that fails.
    pub(super) arriving: Notify,
    /// It is connected, and there may be a better path now.
    pub(super) better: Notify,
}

/// Dials `key` whenever it is not connected. Runs until it is dropped, or the node is closed.
pub(super) async fn keep_connected(inner: Arc<Inner>, key: PublicKey, wake: Arc<Wake>) {
    let mut backoff = Backoff::default();
    let dials_first = is_preferred(&inner.own(), &key, true);
    let mut needs_relay = false;
    loop {
        if inner.registry.get(&key).is_some() {
            let since = Instant::now();
            tokio::select! {
                () = inner.registry.wait_for(&key, false) => {}
                () = tend(&inner, &key, &wake, dials_first) => {}
            }
            let wait = if since.elapsed() >= GOOD {
                backoff.reset();
                if dials_first { jitter(SPACING) } else { HEAD_START + jitter(SPACING) }
            } else {
                backoff.after_failure(rand::random())
            };
            pause(&inner, &key, &wake, wait, &mut backoff).await;
            continue;
        }
        let began = Instant::now();
        match attempt(&inner, &key, &wake, dials_first, needs_relay).await {
            None if inner.registry.get(&key).is_some() => continue,
            // It came and went at once.
            None => {}
            Some(ConnectError::Closed) => return,
            Some(failure) => {
                needs_relay = matches!(failure, ConnectError::Unreachable | ConnectError::Timeout);
                tracing::debug!(peer = key.short(), error = %failure, "a peer was not reached");
                let (code, message) = explain(&failure, inner.dht.is_direct_only());
                inner.peers.set_problem(&key, code, message.to_owned());
            }
        }
        let wait = backoff.after_failure(rand::random());
        pause(&inner, &key, &wake, wait, &mut backoff).await;
        sleep_until(began + SPACING).await;
    }
}

/// Waits out `wait`, or less when something says that dialing may succeed now, or the peer came.
async fn pause(inner: &Inner, key: &PublicKey, wake: &Wake, wait: Duration, backoff: &mut Backoff) {
    tokio::select! {
        () = sleep(wait) => {}
        () = wake.now.notified() => backoff.reset(),
        () = wake.arriving.notified() => {
            tokio::select! {
                () = sleep(ARRIVAL) => {}
                () = inner.registry.wait_for(key, true) => {}
            }
        }
        () = inner.registry.wait_for(key, true) => {}
    }
}

/// One attempt. `None` when a connection came about, by this dial or the peer's.
async fn attempt(
    inner: &Arc<Inner>,
    key: &PublicKey,
    wake: &Wake,
    dials_first: bool,
    needs_relay: bool,
) -> Option<ConnectError> {
    if !inner.registry.has_room_for(key) {
        return Some(ConnectError::Busy);
    }
    let connecting = dial(inner, key, wake, needs_relay);
    let outcome = if dials_first {
        // Ours would win over one that comes in meanwhile: broken off now, it might take that along.
        connecting.await
    } else {
        tokio::select! {
            outcome = connecting => outcome,
            () = inner.registry.wait_for(key, true) => return None,
        }
    };
    match outcome {
        Ok(connection) => {
            note_reached(inner, &connection);
            inner.admit(connection);
            None
        }
        Err(_) if inner.registry.get(key).is_some() => None,
        Err(error) => Some(error),
    }
}

/// Notes where a peer was reached, for the next time.
pub(super) fn note_reached(inner: &Inner, connection: &Connection) {
    // A relay's address is not the peer's, and a hole closes.
    if matches!(connection.path(), PathKind::Direct | PathKind::Lan) {
        inner.peers.reached(&connection.remote_public_key(), connection.remote);
    }
}

fn jitter(upto: Duration) -> Duration {
    upto.mul_f64(rand::random())
}

/// What a failed dial means to a person.
fn explain(error: &ConnectError, direct_only: bool) -> (ErrorCode, &'static str) {
    match error {
        ConnectError::PeerNotFound if direct_only => (
            ErrorCode::PeerOffline,
            "this server is not on the local network, and does not answer where it was: with the DHT \
             switched off, it is not looked for elsewhere",
        ),
        ConnectError::PeerNotFound => (
            ErrorCode::PeerOffline,
            "the network does not know this server: it is offline, or uses another network",
        ),
        ConnectError::Unanswered => (
            ErrorCode::NotApproved,
            "this server does not answer: it has not approved you yet (give it your key), or has just gone offline",
        ),
        ConnectError::Unreachable => (
            ErrorCode::PeerUnreachable,
            "this server answered, but no direct path leads to it: a firewall or router is in between",
        ),
        ConnectError::Busy => (
            ErrorCode::LimitExceeded,
            "too many peers are connected or dialed at once: it is tried again soon",
        ),
        ConnectError::Incompatible(_) | ConnectError::InvalidHandshake => (
            ErrorCode::Protocol,
            "this server answered in a way that is not understood: one of the two needs an update",
        ),
        _ => (
            ErrorCode::PeerUnreachable,
            "connecting to this server took too long: its network or yours may be down",
        ),
    }
}
