//! Who a victim is connected to, in this process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use alex_p2p::hypercore::replicator::{Policy as CorePolicy, Replicator};
use alex_p2p::hypercore::{Core, CreateOptions, Manifest, MemoryStorage, Storage};
use alex_p2p::transfer::Policy;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::{attach, block, books, other_keys};
use crate::support::{Disk, Server};

/// A log in memory that a victim fetches.
pub(super) struct OtherLog {
    pub(super) core: Core,
    pub(super) at: SocketAddr,
    accepting: JoinHandle<()>,
}

impl OtherLog {
    pub(super) async fn start() -> Self {
        let keys = other_keys();
        let manifest = Manifest::single(keys.public_key());
        let options = CreateOptions { manifest, writer: Some(keys.clone()), compat: false };
        let storage: &dyn Storage = &MemoryStorage::new();
        let core = Core::create(storage, options).unwrap();
        core.append((0..3000).map(block).collect()).await.unwrap();
        let replicator = Replicator::new();
        replicator.add(core.clone(), CorePolicy::serve());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let accepting = tokio::spawn(async move {
            let mut muxes = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                muxes.push(attach(&replicator, stream, false, &keys).await);
            }
        });
        Self { core, at, accepting }
    }
}

impl Drop for OtherLog {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// A server in this process that a victim is connected to.
pub(super) struct OtherServer {
    pub(super) server: Arc<Server>,
    pub(super) at: SocketAddr,
    accepting: JoinHandle<()>,
}

impl OtherServer {
    pub(super) async fn start(disk: &Disk) -> Self {
        let server = Arc::new(Server::start(disk, Policy::AutoAccept).await);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let joining = Arc::clone(&server);
        let accepting = tokio::spawn(async move {
            let mut muxes = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                muxes.push(joining.join(stream, false).await);
            }
        });
        Self { server, at, accepting }
    }

    /// Publishes until it is aborted.
    pub(super) fn publish(&self, batch: u64) -> JoinHandle<()> {
        let server = Arc::clone(&self.server);
        tokio::spawn(async move {
            loop {
                let start = server.catalog.length();
                server.catalog.publish(books(start..start + batch)).await.unwrap();
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
    }
}

impl Drop for OtherServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}
