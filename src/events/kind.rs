//! The kinds of events, as programs see them.

use serde::{Deserialize, Serialize};

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeEvent {
    /// Grows strictly from event to event, with holes, also over restarts. Below 2^53.
    pub id: u64,
    /// Unix milliseconds.
    pub at: u64,
    /// What happened; `type` and its fields stand beside `id` and `at` in JSON.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened. Peers are named by their key as z32.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", rename_all_fields = "camelCase")]
#[non_exhaustive]
pub enum EventKind {
    /// An approved peer is connected now.
    PeerOnline {
        /// The peer.
        peer: String,
        /// What it is called here, or calls itself.
        nickname: Option<String>,
    },
    /// An approved peer is not connected any more.
    PeerOffline {
        /// The peer.
        peer: String,
        /// What it is called here, or calls itself.
        nickname: Option<String>,
        /// Why the connection ended, for a person.
        reason: String,
    },
    /// A key that is not approved tried to connect. At most one event a minute and key.
    PeerKnock {
        /// The key.
        peer: String,
        /// How often it has tried.
        count: u64,
        /// From where, as `ip:port`.
        address: Option<String>,
    },
    /// The list of peers changed.
    PeerChanged {
        /// The peer.
        peer: String,
        /// What was done to it.
        change: PeerChange,
    },
    /// A key was found on the topic or the network, and is not a peer.
    PeerDiscovered {
        /// The key.
        peer: String,
        /// Where: `topic` or `lan`.
        source: String,
    },
    /// A catalog changed.
    CatalogUpdated {
        /// Whose: a peer's key, or this node's own.
        peer: String,
        /// The feed's length in entries.
        length: u64,
    },
    /// A peer asks for a book; a person has to decide.
    TransferRequested {
        /// The transfer; `transfer` in JSON, where `id` is the event's own number.
        #[serde(rename = "transfer")]
        id: String,
        /// Who asks.
        peer: String,
        /// The book.
        book_id: String,
        /// Its title here.
        title: Option<String>,
        /// Its size.
        size_bytes: Option<u64>,
    },
    /// Bytes went across. At most four a second and transfer; an older one gives way to a newer.
    TransferProgress {
        /// The transfer; `transfer` in JSON, where `id` is the event's own number.
        #[serde(rename = "transfer")]
        id: String,
        /// Bytes verified (incoming) or sent (outgoing) so far.
        bytes: u64,
        /// Bytes in all.
        total: u64,
        /// Bytes a second, averaged over the last seconds.
        rate: u64,
        /// Milliseconds left at that rate.
        eta_ms: Option<u64>,
    },
    /// A transfer came into a state.
    TransferState {
        /// The transfer; `transfer` in JSON, where `id` is the event's own number.
        #[serde(rename = "transfer")]
        id: String,
        /// The other server.
        peer: String,
        /// `incoming` or `outgoing`.
        direction: String,
        /// The state's name.
        state: String,
        /// Why, where there is a reason.
        reason: Option<String>,
    },
    /// Something about the node changed; ask `status()`.
    Status {
        /// What: `network`, `dht`, `topic`, `catalog`, `storage`, …
        layer: String,
        /// Whether it works.
        ok: bool,
        /// What a person should know.
        message: String,
    },
    /// Events were missed: fetch lists anew, then go on from here.
    Gap {
        /// The number after which events are missing.
        after: u64,
    },
}

/// What was done to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerChange {
    /// Added or approved.
    Approved,
    /// Blocked.
    Blocked,
    /// Removed.
    Removed,
    /// A name, policy or feed changed.
    Updated,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_flat_json_with_a_kebab_case_type() {
        let kind = EventKind::CatalogUpdated { peer: "k".into(), length: 3 };
        let json = serde_json::to_value(NodeEvent { id: 7, at: 9, kind }).unwrap();
        let expected = serde_json::json!(
            {"id": 7, "at": 9, "type": "catalog-updated", "peer": "k", "length": 3});
        assert_eq!(json, expected);
        let kind = EventKind::TransferProgress {
            id: "t".into(),
            bytes: 1,
            total: 2,
            rate: 3,
            eta_ms: None,
        };
        assert!(serde_json::to_value(&kind).unwrap().get("etaMs").is_some());
        let json = serde_json::to_value(NodeEvent { id: 8, at: 9, kind }).unwrap();
        assert_eq!((&json["id"], &json["transfer"]), (&8.into(), &"t".into()));
    }
}
