//! What works and what does not, for a person.

use serde::{Deserialize, Serialize};

use super::Node;
use super::advice::Facts;
use super::network::Online;
use super::surroundings::Surroundings;
use crate::discovery::{DiscoveryOptions, LanStatus, TopicStatus};
use crate::error::ErrorCode;
use crate::hyperdht::{DhtStatus, RelayServer, RelayStats};
use crate::peers::{Peer, PeerProblem, PeerStatus};
use crate::time::now_ms;

/// A node's health.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// This server's key, z32.
    pub public_key: String,
    /// Whether the node is off the network, by [`Node::suspend`].
    pub is_suspended: bool,
    /// The layers, each with what it says of itself.
    pub layers: Vec<Layer>,
    /// The addresses this node listens on, as `ip:port`.
    pub addresses: Vec<String>,
    /// The address at which anybody on the internet reaches this node, when that is proved.
    pub public_address: Option<String>,
    /// The address that others see this node at, as far as they agree; without a port where a NAT changes
    /// it.
    pub seen_address: Option<String>,
    /// The kind of NAT in front of it: `open`, `consistent`, `random` or `unknown`.
    pub nat: String,
    /// The approved peers, connected or not, each that is not with the reason.
    pub peers: Vec<Peer>,
    /// How many keys wait for approval.
    pub pending: usize,
    /// The length of the own feed, in entries.
    pub catalog_length: u64,
    /// What a person can do to make more of it work; empty when all is well.
    pub advice: Vec<String>,
}

/// One layer's health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Layer {
    /// `dht`, `lan`, `topic`, `relay` or `catalog`.
    pub name: String,
    /// Whether it is switched on.
    pub is_enabled: bool,
    /// Whether it works now.
    pub works: bool,
    /// The same in words.
    pub detail: String,
}

pub(super) fn of(node: &Node) -> Status {
    let online = node.online();
    let wanted = node.inner.discovery;
    let dht = online.as_ref().filter(|_| wanted.dht).map(|online| online.dht.status());
    let is_announced = online.as_ref().is_some_and(|online| online.connections.is_announced());
    let lan = online.as_ref().and_then(|online| online.discovery.lan());
    let topic = online.as_ref().and_then(|online| online.discovery.topic());
    let mut peers: Vec<Peer> = node
        .peers()
        .list()
        .into_iter()
        .filter(|peer| peer.status == PeerStatus::Approved)
        .collect();
    let pending = node.peers().pending().len();
    let trouble = node.catalog().trouble();
    let is_suspended = online.is_none();
    let facts = Facts {
        is_suspended,
        dht: dht.as_ref(),
        lan: lan.as_ref(),
        surroundings: Surroundings::look(now_ms()),
        port: online.as_ref().map(|online| online.dht.local_addr().port()),
        peers: &peers,
        pending,
        trouble: trouble.as_deref(),
        // A database that cannot be read is reported by what needs it.
        unreadable: &node.catalog().unreadable().unwrap_or_default(),
    };
    let mut layers = vec![
        dht_layer(wanted, dht.as_ref(), is_announced),
        lan_layer(wanted, lan.as_ref()),
        topic_layer(wanted, topic, dht.as_ref()),
        relay_layer(node, online.as_ref()),
    ];
    if is_suspended {
        for layer in &mut layers {
            "the node is suspended".clone_into(&mut layer.detail);
        }
    }
    layers.push(catalog_layer(trouble.as_deref()));
    let advice = facts.advice();
    for peer in peers.iter_mut().filter(|peer| !peer.is_online) {
        peer.problem = why_missing(peer.problem.take(), is_suspended);
    }
    let addresses = online.map_or_else(Vec::new, |online| online.dht.local_addresses());
    Status {
        public_key: node.identity().public_key_text(),
        is_suspended,
        layers,
        addresses: addresses.iter().map(ToString::to_string).collect(),
        public_address: dht.as_ref().and_then(|dht| dht.remote_address).map(|a| a.to_string()),
        seen_address: dht.as_ref().and_then(seen_address),
        nat: nat(dht.as_ref()).to_owned(),
        advice,
        peers,
        pending,
        catalog_length: node.catalog().length(),
    }
}

/// Why a peer is not connected, also while nothing has failed.
fn why_missing(problem: Option<PeerProblem>, is_suspended: bool) -> Option<PeerProblem> {
    let missing = |message: &str| PeerProblem {
        code: ErrorCode::PeerOffline.as_str().to_owned(),
        message: message.to_owned(),
        at: now_ms(),
    };
    match problem {
        _ if is_suspended => Some(missing("this node is suspended")),
        None => Some(missing("this server is being dialed")),
        problem => problem,
    }
}

fn layer(name: &str, is_enabled: bool, (works, detail): (bool, String)) -> Layer {
    Layer { name: name.to_owned(), is_enabled, works, detail }
}

fn off(detail: &str) -> (bool, String) {
    (false, detail.to_owned())
}

fn dht_layer(wanted: DiscoveryOptions, dht: Option<&DhtStatus>, is_announced: bool) -> Layer {
    let state = match dht {
        None => {
            off("switched off: peers are found on the local network, or where you say they are")
        }
        Some(dht) if !dht.bootstrapped => off("still looking for the network"),
        Some(dht) if dht.nodes == 0 => off("no node of the network answers"),
        Some(_) if !is_announced => off("telling the network where this server is"),
        Some(dht) => (true, format!("knows {} nodes of the network", dht.nodes)),
    };
    layer("dht", wanted.dht, state)
}

fn lan_layer(wanted: DiscoveryOptions, lan: Option<&LanStatus>) -> Layer {
    let state = match lan {
        None if wanted.lan => off("off: the node listens on this machine only"),
        None => off("switched off"),
        Some(lan) if lan.is_flooded => off("pauses: somebody floods the local network"),
        Some(lan) if !lan.is_heard => match &lan.trouble {
            Some(trouble) => (false, format!("this server is not heard: {trouble}")),
            None => off("this server's own announcement was not heard yet"),
        },
        Some(lan) => match lan.others {
            0 => (true, "no other server announces itself".to_owned()),
            1 => (true, "1 other server announces itself".to_owned()),
            others => (true, format!("{others} other servers announce themselves")),
        },
    };
    layer("lan", wanted.lan && lan.is_some(), state)
}

fn topic_layer(
    wanted: DiscoveryOptions,
    topic: Option<TopicStatus>,
    dht: Option<&DhtStatus>,
) -> Layer {
    let state = match topic {
        None => off("switched off"),
        Some(_) if dht.is_none_or(|dht| dht.nodes == 0) => off("waits for the DHT"),
        Some(TopicStatus { found: 0 }) => (true, "nobody was found yet".to_owned()),
        Some(TopicStatus { found }) => (true, format!("servers were found {found} times")),
    };
    layer("topic", wanted.topic && wanted.dht, state)
}

/// Passing packets on for others, and having them passed on.
fn relay_layer(node: &Node, online: Option<&Online>) -> Layer {
    let serves = online.and_then(|online| online.relay.as_ref()).map(RelayServer::stats);
    let through = &node.inner.relays;
    let connected = online.map_or(0, |online| {
        through.iter().filter(|relay| online.connections.get(relay).is_some()).count()
    });
    relay_state(serves, through.len(), connected)
}

fn relay_state(serves: Option<RelayStats>, named: usize, connected: usize) -> Layer {
    let served = serves.map(|stats| match stats.active {
        0 => "passes packets on for approved peers that ask for it".to_owned(),
        active => format!("passes packets on for approved peers, over {active} pairings now"),
    });
    let used = (named > 0).then(|| match connected {
        0 => "none of the servers to go over is connected".to_owned(),
        connected => format!("{connected} of {named} servers to go over are connected"),
    });
    let works = served.is_some() || connected > 0;
    let detail = match (served, used) {
        (None, None) => "switched off".to_owned(),
        (served, used) => {
            let parts: Vec<_> = served.into_iter().chain(used).collect();
            parts.join("; ")
        }
    };
    layer("relay", serves.is_some() || named > 0, (works, detail))
}

fn catalog_layer(trouble: Option<&str>) -> Layer {
    let detail = trouble.unwrap_or("books can be published").to_owned();
    layer("catalog", true, (trouble.is_none(), detail))
}

fn seen_address(dht: &DhtStatus) -> Option<String> {
    dht.remote_address.map(|a| a.to_string()).or_else(|| dht.seen_host.map(|ip| ip.to_string()))
}

fn nat(dht: Option<&DhtStatus>) -> &'static str {
    match dht {
        Some(dht) if dht.remote_address.is_some() => "open",
        Some(dht) if dht.randomized => "random",
        Some(dht) if dht.seen_host.is_some() => "consistent",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_that_is_off_says_so() {
        let wanted = DiscoveryOptions { dht: false, lan: true, topic: true };
        let layers = [
            dht_layer(wanted, None, false),
            lan_layer(wanted, None),
            topic_layer(wanted, None, None),
        ];
        assert!(layers.iter().all(|layer| !layer.is_enabled && !layer.works));
        assert!(layers.iter().all(|layer| layer.detail.contains("off")));
        assert_eq!(nat(None), "unknown");
    }

    #[test]
    fn a_relay_that_is_named_works_while_it_is_connected() {
        assert!(!relay_state(None, 0, 0).is_enabled);
        let missing = relay_state(None, 1, 0);
        assert!(missing.is_enabled && !missing.works && missing.detail.contains("none"));
        assert!(relay_state(None, 2, 1).works);
        let both = relay_state(Some(RelayStats::default()), 1, 1);
        assert!(
            both.works && both.detail.contains("approved peers") && both.detail.contains("1 of 1")
        );
    }

    #[test]
    fn a_missing_peer_always_has_a_reason() {
        let asleep = why_missing(None, true).unwrap();
        let dialed = why_missing(None, false).unwrap();
        assert!(asleep.message.contains("suspended") && dialed.message.contains("dialed"));
        assert_eq!(why_missing(Some(dialed.clone()), false), Some(dialed));
    }

    #[test]
    fn the_local_network_works_once_the_own_announcement_is_heard() {
        let wanted = DiscoveryOptions::default();
        let mut lan = LanStatus { others: 2, ..LanStatus::default() };
        assert!(!lan_layer(wanted, Some(&lan)).works);
        lan.is_heard = true;
        let layer = lan_layer(wanted, Some(&lan));
        assert!(layer.works && layer.is_enabled && layer.detail.starts_with("2 other"));
    }
}
