//! Finding other servers: the DHT's entry points, the topic, and the network's comings and goings.
//!
//! Peers that are known are found by their key, by the DHT itself. What is here finds the way into the
//! DHT, and, where an admin asks for it, servers that nobody has added yet.

mod network;
mod topic;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::{Error, ErrorCode, Result};
use crate::hyperdht::{BootstrapNode, DhtOptions, HyperDht};
use crate::identity::Identity;
use crate::peers::{Connections, Peers};

pub use topic::TOPIC;

/// How many bootstrap nodes may be given.
const BOOTSTRAP_LIMIT: usize = 64;

/// How other servers are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DiscoveryOptions {
    /// Whether to use the DHT at all. Without it nobody is found, and nobody finds this server.
    pub dht: bool,
    /// Whether to join the public topic of Alex servers, and list who is there. Nobody is added by
    /// itself.
    pub topic: bool,
}

impl Default for DiscoveryOptions {
    fn default() -> Self {
        Self { dht: true, topic: false }
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

/// What looks for servers while a node is open. Ends with [`Discovery::close`].
#[derive(Clone)]
pub struct Discovery {
    cancel: CancellationToken,
    tasks: Arc<TaskTracker>,
}

impl Discovery {
    /// Joins the topic if asked to, and watches the network. Needs a tokio runtime.
    #[must_use]
    pub fn start(
        dht: &HyperDht,
        identity: &Identity,
        peers: &Peers,
        connections: &Connections,
        options: DiscoveryOptions,
    ) -> Self {
        let discovery =
            Self { cancel: CancellationToken::new(), tasks: Arc::new(TaskTracker::new()) };
        let cancel = discovery.cancel.clone();
        discovery.tasks.spawn(network::watch(connections.clone(), cancel));
        if options.topic {
            let topic = topic::join(dht, identity);
            let cancel = discovery.cancel.clone();
            discovery.tasks.spawn(topic::follow(topic, peers.clone(), connections.clone(), cancel));
        }
        discovery
    }

    /// Leaves the topic (for at most 2 s) and stops. Idempotent.
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
