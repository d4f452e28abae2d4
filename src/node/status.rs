//! What works and what does not, for a person.

use serde::{Deserialize, Serialize};

use super::Node;
use crate::hyperdht::DhtStatus;
use crate::peers::{Connections, Peer, PeerStatus};

/// A node's health.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// This server's key, z32.
    pub public_key: String,
    /// The layers, each with what it says of itself.
    pub layers: Vec<Layer>,
    /// The addresses this node listens on, as `ip:port`.
    pub addresses: Vec<String>,
    /// The address at which anybody on the internet reaches this node, when that is proved.
    pub public_address: Option<String>,
    /// The kind of NAT in front of it: `open`, `consistent`, `random` or `unknown`.
    pub nat: String,
    /// The approved peers, connected or not, with the reason.
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
    /// `dht` or `catalog`.
    pub name: String,
    /// Whether it is switched on.
    pub is_enabled: bool,
    /// Whether it works now.
    pub works: bool,
    /// The same in words.
    pub detail: String,
}

pub(super) fn of(node: &Node) -> Status {
    let dht = node.dht().map(|dht| dht.status());
    let peers: Vec<Peer> = node
        .peers()
        .list()
        .into_iter()
        .filter(|peer| peer.status == PeerStatus::Approved)
        .collect();
    let pending = node.peers().pending().len();
    let trouble = node.catalog().trouble();
    let is_announced = node.connections().is_some_and(Connections::is_announced);
    Status {
        public_key: node.identity().public_key_text(),
        layers: vec![dht_layer(dht.as_ref(), is_announced), catalog_layer(trouble.as_deref())],
        addresses: node
            .dht()
            .map(|dht| dht.local_addresses().iter().map(ToString::to_string).collect())
            .unwrap_or_default(),
        public_address: dht.as_ref().and_then(|dht| dht.remote_address).map(|a| a.to_string()),
        nat: nat(dht.as_ref()).to_owned(),
        advice: advice(dht.as_ref(), &peers, pending, trouble.as_deref()),
        peers,
        pending,
        catalog_length: node.catalog().length(),
    }
}

fn dht_layer(dht: Option<&DhtStatus>, is_announced: bool) -> Layer {
    let (works, detail) = match dht {
        None => (false, "switched off: nobody is found, and nobody finds this server".to_owned()),
        Some(dht) if !dht.bootstrapped => (false, "still looking for the network".to_owned()),
        Some(dht) if dht.nodes == 0 => (false, "no node of the network answers".to_owned()),
        Some(_) if !is_announced => (false, "telling the network where this server is".to_owned()),
        Some(dht) => (true, format!("knows {} nodes of the network", dht.nodes)),
    };
    Layer { name: "dht".into(), is_enabled: dht.is_some(), works, detail }
}

fn catalog_layer(trouble: Option<&str>) -> Layer {
    let detail = trouble.unwrap_or("books can be published").to_owned();
    Layer { name: "catalog".into(), is_enabled: true, works: trouble.is_none(), detail }
}

fn nat(dht: Option<&DhtStatus>) -> &'static str {
    match dht {
        Some(dht) if dht.remote_address.is_some() => "open",
        Some(dht) if dht.randomized => "random",
        Some(dht) if dht.seen_host.is_some() => "consistent",
        _ => "unknown",
    }
}

fn advice(
    dht: Option<&DhtStatus>,
    peers: &[Peer],
    pending: usize,
    trouble: Option<&str>,
) -> Vec<String> {
    let mut advice: Vec<String> = trouble.map(str::to_owned).into_iter().collect();
    if dht.is_some_and(|dht| dht.bootstrapped && dht.nodes == 0) {
        advice.push(
            "No node of the DHT answers. Check that this machine is online and that its firewall lets \
             UDP out; with a private network, check the bootstrap addresses."
                .to_owned(),
        );
    }
    if pending > 0 {
        let keys =
            if pending == 1 { "1 key knocked and waits" } else { "Some keys knocked and wait" };
        advice.push(format!("{keys} for approval: see peers.pending()."));
    }
    for peer in peers.iter().filter(|peer| !peer.is_online) {
        if let Some(problem) = &peer.problem {
            let name = peer.display_name().unwrap_or(&peer.key);
            advice.push(format!("{name}: {}", problem.message));
        }
    }
    advice
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_the_dht_says_that_nobody_is_found() {
        let layer = dht_layer(None, false);
        assert!(!layer.is_enabled && !layer.works);
        assert!(layer.detail.contains("switched off"));
        assert_eq!(nat(None), "unknown");
        assert!(advice(None, &[], 0, None).is_empty());
    }

    #[test]
    fn a_waiting_knock_is_advice() {
        assert!(advice(None, &[], 1, None)[0].contains("1 key"));
    }
}
