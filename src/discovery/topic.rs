//! The public topic of Alex servers.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::hyperdht::{HyperDht, JoinOptions, Topic};
use crate::identity::Identity;
use crate::peers::{AddressSource, Connections, Peers};

/// What `Buffer.alloc(32).fill('alex-reader')` gives in Node.
pub const TOPIC: [u8; 32] = *b"alex-readeralex-readeralex-reade";

/// When the topic is looked at again after joining, out of turn: servers that joined at the same moment,
/// as after a power cut, were not announced yet at the first look.
const SECOND_LOOK: Duration = Duration::from_secs(8);

/// How the topic goes, for a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicStatus {
    /// How often somebody was found there.
    pub found: usize,
}

/// Counts who is found.
#[derive(Debug, Default)]
pub(super) struct TopicCount {
    found: AtomicUsize,
}

impl TopicCount {
    pub(super) fn status(&self) -> TopicStatus {
        TopicStatus { found: self.found.load(Ordering::Relaxed) }
    }
}

/// Announces this server under the topic and looks for others.
pub(super) fn join(dht: &HyperDht, identity: &Identity) -> Topic {
    let announce = Some(identity.key_pair().clone());
    dht.join(&TOPIC, JoinOptions { announce, lookup: true })
}

/// Lists who is found. A peer that is approved already is dialed: it is there.
pub(super) async fn follow(
    mut topic: Topic,
    peers: Peers,
    connections: Connections,
    count: Arc<TopicCount>,
    cancel: CancellationToken,
) {
    let mut second_look = pin!(tokio::time::sleep(SECOND_LOOK));
    let mut looked_twice = false;
    loop {
        let found = tokio::select! {
            () = cancel.cancelled() => break,
            () = &mut second_look, if !looked_twice => {
                looked_twice = true;
                topic.refresh();
                continue;
            }
            found = topic.next() => found,
        };
        let Some(found) = found else { break };
        count.found.fetch_add(1, Ordering::Relaxed);
        peers.found(found.public_key, AddressSource::Topic, &found.addresses);
        // Also where nothing is new: it is there.
        connections.wake(&found.public_key);
    }
    topic.close().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topic_is_the_word_over_and_over() {
        assert!(TOPIC.iter().zip(b"alex-reader".iter().cycle()).all(|(a, b)| a == b));
    }
}
