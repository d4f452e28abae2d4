//! Goes on with peers' feeds that could not be stored, once the disk takes them.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::{Heard, Inner};
use crate::crypto::PublicKey;
use crate::error::Error;
use crate::hypercore::replicator;

/// How often a disk that failed is tried.
const RETRY: Duration = Duration::from_secs(2);

/// Watches for feeds that could not be stored. Nothing more of them is asked for before.
pub(super) async fn mend(catalog: Weak<Inner>) {
    let Some(mut heard) = Heard::of(&catalog) else { return };
    while let Some(event) = heard.next().await {
        let replicator::EventKind::Failed { error } = event.kind else { continue };
        let Some(inner) = catalog.upgrade() else { return };
        let Some(peer) = inner.peers.holder(&event.key) else { continue };
        let error = Error::from(error);
        tracing::warn!(peer = peer.short(), %error, "a peer's feed could not be stored");
        let message = format!("the catalog of the server {} is not saved: {error}", peer.to_z32());
        inner.options.tell(false, message);
        crate::tasks::spawn(resume(Arc::downgrade(&inner), peer, event.key));
    }
}

/// Waits until what is here of the feed is on disk, and fetches the rest.
async fn resume(catalog: Weak<Inner>, peer: PublicKey, key: [u8; 32]) {
    loop {
        let Some(cancel) = catalog.upgrade().map(|inner| inner.cancel.clone()) else { return };
        if cancel.run_until_cancelled(tokio::time::sleep(RETRY)).await.is_none() {
            return;
        }
        let Some(inner) = catalog.upgrade() else { return };
        let Some(core) = inner.peers.core(&peer, &key) else { return };
        if core.flush().await.is_ok() {
            inner.peers.share_anew(&inner.options, &peer, &key);
            inner.options.tell(true, "peers' catalogs can be saved again".to_owned());
            return;
        }
    }
}
