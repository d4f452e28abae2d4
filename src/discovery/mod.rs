//! Finding other servers: on the local network, on the topic, and the ways into the DHT.
//!
//! Each layer can be switched off, and none waits for another. Whatever a layer finds goes to
//! [`Peers::found`], the one place that knows every address of a peer: a peer is dialed at these first,
//! and a moment later over the DHT, which finds it by its key.

mod lan;
mod mdns;
mod network;
mod nodes;
mod topic;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::{Error, ErrorCode, Result};
use crate::hyperdht::{BootstrapNode, DhtOptions, HyperDht};
use crate::identity::Identity;
use crate::peers::{Connections, Peers};
use crate::store::Database;
use crate::tasks::Spawn;
use lan::Lan;
use topic::TopicCount;

pub use lan::LanStatus;
pub use nodes::known_nodes;
pub use topic::{TOPIC, TopicStatus};

/// How many bootstrap nodes may be given.
const BOOTSTRAP_LIMIT: usize = 64;

/// How other servers are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DiscoveryOptions {
    /// Whether to use the DHT at all. Without it peers find each other on the local network, and where a
    /// person says they are.
    pub dht: bool,
    /// Whether to announce this server on the local network, by multicast DNS, and look for others. A
    /// node that listens on a loopback address does not.
    pub lan: bool,
    /// Whether to join the public topic of Alex servers, and list who is there. Nobody is added by
    /// itself.
    pub topic: bool,
}

impl Default for DiscoveryOptions {
    fn default() -> Self {
        Self { dht: true, lan: true, topic: false }
    }
}

/// The bootstrap nodes that `list` names as `host:port` or `address@host:port`; the public ones without
/// a list. An empty list makes this node the first of a network of its own.
///
/// # Errors
///
/// `ERR_INVALID_ARGUMENT` names the entry that cannot be read.
pub fn bootstrap_nodes(list: Option<&[String]>) -> Result<Vec<BootstrapNode>> {
    let invalid = |message: String| Error::new(ErrorCode::InvalidArgument, message);
    let Some(list) = list else { return Ok(DhtOptions::default().bootstrap) };
    if list.len() > BOOTSTRAP_LIMIT {
        return Err(invalid(format!("at most {BOOTSTRAP_LIMIT} bootstrap nodes can be given")));
    }
    let parse = |text: &String| text.trim().parse().map_err(|error| invalid(format!("{error}")));
    list.iter().map(parse).collect()
}

/// What looks for servers while a node is online. Ends with [`Discovery::close`].
#[derive(Clone)]
pub struct Discovery {
    cancel: CancellationToken,
    tasks: Arc<TaskTracker>,
    lan: Option<Arc<Lan>>,
    topic: Option<Arc<TopicCount>>,
}

/// What discovery works with.
#[derive(Clone)]
pub struct Parts {
    /// The node of the DHT, also where that is switched off.
    pub dht: HyperDht,
    /// The bootstrap nodes it was opened with.
    pub bootstrap: Vec<BootstrapNode>,
    /// Who this server is.
    pub identity: Identity,
    /// Who is told of every address.
    pub peers: Peers,
    /// Who dials.
    pub connections: Connections,
    /// Where the DHT's nodes are kept for the next start.
    pub database: Database,
}

impl Discovery {
    /// Starts every layer that is switched on, all at once, and watches the network. Needs a tokio
    /// runtime.
    #[must_use]
    pub fn start(parts: &Parts, options: DiscoveryOptions) -> Self {
        let Parts { dht, identity, peers, connections, .. } = parts;
        let cancel = CancellationToken::new();
        let tasks = TaskTracker::new();
        let address = dht.local_addr();
        // Nobody else is on the network of a socket that only this machine reaches.
        let lan = (options.lan && !address.ip().is_loopback()).then(|| {
            let key = identity.public_key();
            Lan::new(key, address, lan::MDNS_PORT, peers.clone(), connections.clone())
        });
        if let Some(lan) = &lan {
            tasks.spawn_task(Arc::clone(lan).run(cancel.clone()));
        }
        tasks.spawn_task(network::watch(dht.clone(), connections.clone(), cancel.clone()));
        let mut topic = None;
        if options.dht {
            let (bootstrap, database) = (parts.bootstrap.clone(), parts.database.clone());
            tasks.spawn_task(nodes::keep(dht.clone(), bootstrap, database, cancel.clone()));
            if options.topic {
                let count = Arc::new(TopicCount::default());
                let joined = topic::join(dht, identity);
                let (peers, connections) = (peers.clone(), connections.clone());
                let counting = Arc::clone(&count);
                tasks.spawn_task(topic::follow(
                    joined,
                    peers,
                    connections,
                    counting,
                    cancel.clone(),
                ));
                topic = Some(count);
            }
        }
        Self { cancel, tasks: Arc::new(tasks), lan, topic }
    }

    /// What is known of the local network; `None` where it is not searched.
    #[must_use]
    pub fn lan(&self) -> Option<LanStatus> {
        self.lan.as_ref().map(|lan| lan.status())
    }

    /// How the topic goes; `None` where it was not joined.
    #[must_use]
    pub fn topic(&self) -> Option<TopicStatus> {
        self.topic.as_ref().map(|count| count.status())
    }

    /// Says goodbye on the local network and leaves the topic (for at most 2 s), and stops. Idempotent.
    pub async fn close(&self) {
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bootstrap_nodes_are_the_public_ones_unless_given() {
        assert_eq!(bootstrap_nodes(None).unwrap().len(), 3);
        assert!(bootstrap_nodes(Some(&[])).unwrap().is_empty());
        let given = bootstrap_nodes(Some(&[" 127.0.0.1:4000".into()])).unwrap();
        assert_eq!(given[0].to_string(), "127.0.0.1:4000");
        let error = bootstrap_nodes(Some(&["nonsense".into()])).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument);
        assert!(error.message.contains("nonsense"));
    }
}
