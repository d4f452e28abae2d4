//! One attempt to reach a peer: where it may be itself at once, the network a moment later.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::addresses::resolve;
use super::connections::Inner;
use super::dialer::Wake;
use super::on_link::is_on_link;
use crate::crypto::PublicKey;
use crate::hyperdht::{ConnectError, ConnectOptions, Connection, RelayThrough};
use crate::tasks::Spawn;

/// How much later than the known addresses the network is asked, when there are any.
const HEAD_START: Duration = Duration::from_millis(150);
/// How long a peer may take to answer at a known address.
const DIRECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often an attempt takes up addresses that were found meanwhile.
const MAX_NEWS: usize = 4;

type Outcome = Result<Connection, ConnectError>;

/// Connects to `key` by whichever way is first. Cancel safe.
pub(super) async fn dial(
    inner: &Arc<Inner>,
    key: &PublicKey,
    wake: &Wake,
    needs_relay: bool,
) -> Outcome {
    let mut direct = Direct {
        inner: Arc::clone(inner),
        key: *key,
        tried: HashSet::new(),
        attempts: JoinSet::new(),
    };
    let is_known = direct.try_untried();
    let relay = Some(inner.relay_to_dial(needs_relay));
    let network = over_network(inner, key, is_known, relay);
    tokio::pin!(network);
    let (mut direct_failure, mut network_failure) = (None, None);
    let mut news = 0;
    let mut woken = false;
    loop {
        tokio::select! {
            biased;
            Some(outcome) = direct.attempts.join_next() => match outcome {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => direct_failure = Some(error),
                Err(_) => {}
            },
            outcome = &mut network, if network_failure.is_none() => match outcome {
                Ok(connection) => return Ok(connection),
                Err(error) => network_failure = Some(error),
            },
            () = wake.now.notified(), if news < MAX_NEWS => {
                news += 1;
                woken |= !direct.try_untried();
            }
        }
        if let Some(error) = network_failure.clone().filter(|_| direct.attempts.is_empty()) {
            if woken {
                // Not for an address: it is to be dialed anew.
                wake.now.notify_one();
            }
            return Err(telling(error, direct_failure));
        }
    }
}

/// Connects to `key` where it is on the local network, if it is known to be there. Cancel safe.
pub(super) async fn dial_on_link(inner: &Arc<Inner>, key: &PublicKey) -> Outcome {
    let (mut addresses, given) = inner.peers.direct_addresses(key);
    addresses.extend(given.and_then(|given| given.parse::<SocketAddr>().ok()));
    addresses.retain(|address| is_on_link(address.ip()));
    connect(inner, key, addresses).await
}

/// Connects to `key` over the network, and over no relay. Cancel safe.
pub(super) async fn dial_past_relays(inner: &Arc<Inner>, key: &PublicKey) -> Outcome {
    over_network(inner, key, false, None).await
}

/// Of two failures, the one that says more. A network that does not know the peer, or is not there, says
/// less than a server at its address that did not let us in; garbage from there says nothing.
fn telling(network: ConnectError, direct: Option<ConnectError>) -> ConnectError {
    match (network, direct) {
        (_, Some(ConnectError::Closed)) => ConnectError::Closed,
        (
            ConnectError::PeerNotFound | ConnectError::Timeout,
            Some(
                direct @ (ConnectError::Unanswered
                | ConnectError::Unreachable
                | ConnectError::Incompatible(_)),
            ),
        ) => direct,
        (network, _) => network,
    }
}

/// The attempts at the peer's own addresses.
struct Direct {
    inner: Arc<Inner>,
    key: PublicKey,
    tried: HashSet<String>,
    attempts: JoinSet<Outcome>,
}

impl Direct {
    /// Begins with the addresses that were not tried yet; whether there are any.
    fn try_untried(&mut self) -> bool {
        let (addresses, given) = self.inner.peers.direct_addresses(&self.key);
        let mut addresses: Vec<SocketAddr> =
            addresses.into_iter().filter(|a| self.tried.insert(a.to_string())).collect();
        let given = given.filter(|given| self.tried.insert(given.clone()));
        if addresses.is_empty() && given.is_none() {
            return false;
        }
        let (inner, key) = (Arc::clone(&self.inner), self.key);
        // A name may take seconds to resolve: nothing else waits for it.
        match given.map(|given| given.parse().map_err(|_| given)) {
            Some(Ok(given)) => addresses.push(given),
            Some(Err(given)) => {
                let inner = Arc::clone(&inner);
                self.attempts
                    .spawn_task(async move { connect(&inner, &key, resolve(&given).await).await });
            }
            None => {}
        }
        if !addresses.is_empty() {
            self.attempts.spawn_task(async move { connect(&inner, &key, addresses).await });
        }
        true
    }
}

async fn connect(inner: &Inner, key: &PublicKey, mut addresses: Vec<SocketAddr>) -> Outcome {
    if inner.dht.local_addr().is_ipv4() {
        addresses.retain(SocketAddr::is_ipv4);
    }
    if addresses.is_empty() {
        return Err(ConnectError::PeerNotFound);
    }
    let _slot = inner.direct_dials.acquire().await.map_err(|_| ConnectError::Closed)?;
    let options = ConnectOptions {
        addresses,
        direct_only: true,
        timeout: DIRECT_TIMEOUT,
        key_pair: Some(inner.identity.key_pair().clone()),
        ..ConnectOptions::default()
    };
    inner.dht.connect(key, options).await
}

async fn over_network(
    inner: &Arc<Inner>,
    key: &PublicKey,
    is_known: bool,
    relay: Option<RelayThrough>,
) -> Outcome {
    if inner.dht.is_direct_only() {
        return Err(ConnectError::PeerNotFound);
    }
    if is_known {
        tokio::time::sleep(HEAD_START).await;
    }
    let _slot = inner.dials.acquire().await.map_err(|_| ConnectError::Closed)?;
    let options = ConnectOptions {
        addresses: inner.peers.relays(key),
        key_pair: Some(inner.identity.key_pair().clone()),
        no_relay: relay.is_none(),
        relay_through: relay,
        ..ConnectOptions::default()
    };
    inner.dht.connect(key, options).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_there_and_silent_says_more_than_a_network_that_does_not_know_it() {
        use ConnectError::{Closed, InvalidHandshake, PeerNotFound, Unanswered, Unreachable};
        assert_eq!(telling(PeerNotFound, Some(Unanswered)), Unanswered);
        assert_eq!(telling(Unreachable, Some(Unanswered)), Unreachable);
        assert_eq!(telling(PeerNotFound, Some(InvalidHandshake)), PeerNotFound);
        assert_eq!(telling(PeerNotFound, Some(Closed)), Closed);
        assert_eq!(telling(PeerNotFound, None), PeerNotFound);
    }
}
