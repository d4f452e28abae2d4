//! Nodes of the DHT that answered, kept for the next start: with them a node comes up also when every
//! bootstrap server is gone.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::hyperdht::{BootstrapNode, HyperDht};
use crate::store::{Database, Durability, StoreError};

/// The row of `meta`.
const NAME: &str = "dht-nodes";
/// How many nodes are kept.
const LIMIT: usize = 64;
/// When they are first written after the start, and how often then.
const SOON: Duration = Duration::from_secs(5);
const INTERVAL: Duration = Duration::from_secs(5 * 60);

/// What is kept. Nodes of one network are no way into another.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    bootstrap: Vec<String>,
    nodes: Vec<SocketAddr>,
}

fn names(bootstrap: &[BootstrapNode]) -> Vec<String> {
    bootstrap.iter().map(ToString::to_string).collect()
}

/// The nodes that an earlier run with the same bootstrap nodes knew; none when they cannot be read.
#[must_use]
pub fn known_nodes(database: &Database, bootstrap: &[BootstrapNode]) -> Vec<SocketAddr> {
    let read = database.read(|connection| {
        let mut statement = connection.prepare("SELECT value FROM meta WHERE name = ?1")?;
        let mut rows = statement.query([NAME])?;
        Ok::<_, StoreError>(rows.next()?.map(|row| row.get::<_, String>(0)).transpose()?)
    });
    let kept = read.ok().flatten().and_then(|text| serde_json::from_str::<Kept>(&text).ok());
    let kept = kept.filter(|kept| kept.bootstrap == names(bootstrap));
    kept.map_or_else(Vec::new, |kept| kept.nodes)
}

/// Writes the nodes that `dht` knows now and then, and when it ends.
pub(super) async fn keep(
    dht: HyperDht,
    bootstrap: Vec<BootstrapNode>,
    database: Database,
    cancel: CancellationToken,
) {
    if cancel.run_until_cancelled(dht.bootstrapped()).await.is_some() {
        let mut wait = SOON;
        while cancel.run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
            save(&dht, &bootstrap, &database).await;
            wait = INTERVAL;
        }
    }
    save(&dht, &bootstrap, &database).await;
}

async fn save(dht: &HyperDht, bootstrap: &[BootstrapNode], database: &Database) {
    let mut nodes = dht.nodes();
    nodes.truncate(LIMIT);
    // Offline: what is kept from before is better than nothing.
    if nodes.is_empty() {
        return;
    }
    let Ok(text) = serde_json::to_string(&Kept { bootstrap: names(bootstrap), nodes }) else {
        return;
    };
    let written = database
        .write_with::<_, StoreError, _>(Durability::Process, move |transaction| {
            transaction.execute(
                "INSERT INTO meta (name, value) VALUES (?1, ?2)
                 ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                [NAME, &text],
            )?;
            Ok(())
        })
        .await;
    if let Err(error) = written {
        tracing::warn!(%error, "the nodes of the DHT could not be kept for the next start");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hyperdht::Testnet;

    #[tokio::test(flavor = "multi_thread")]
    async fn nodes_are_kept_at_the_end_and_only_for_the_same_network() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&dir.path().join("p2p.db")).unwrap();
        let testnet = Testnet::start(4).await.unwrap();
        let dht = HyperDht::bind(testnet.options()).unwrap();
        dht.bootstrapped().await;
        let cancel = CancellationToken::new();
        cancel.cancel();
        keep(dht.clone(), testnet.bootstrap(), database.clone(), cancel).await;
        assert!(known_nodes(&database, &testnet.bootstrap()).len() >= 3);
        assert!(known_nodes(&database, &[]).is_empty());
        dht.close().await;
        testnet.close().await;
    }
}
