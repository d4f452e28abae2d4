//! What the API says of a peer.

use serde::{Deserialize, Deserializer, Serialize};

use super::addresses::PeerAddress;
use crate::crypto::PublicKey;
use crate::error::{Error, ErrorCode, Result};
use crate::hyperdht::PathKind;
use crate::text;
pub use crate::transfer::Policy;

/// The longest nickname, in characters.
pub const NICKNAME_CHARS: usize = 64;

/// Where a key stands with this server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerStatus {
    /// It knocked, and nobody decided yet.
    Pending,
    /// It may connect, and is connected to.
    Approved,
    /// It is refused and not heard of.
    Blocked,
}

impl PeerStatus {
    /// The status as the API and the database write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Approved => "approved",
            Self::Blocked => "blocked",
        }
    }
}

/// A peer as it stands now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// Its public key as 52 z32 characters.
    pub key: String,
    /// The nickname given here.
    pub nickname: Option<String>,
    /// What it calls itself, once it was connected.
    pub name: Option<String>,
    /// Pending, approved or blocked.
    pub status: PeerStatus,
    /// Whether it is connected now; a crash on its side shows within 20 seconds.
    pub is_online: bool,
    /// When it was added or first knocked, in Unix milliseconds.
    pub added_at: u64,
    /// When it was last connected, in Unix milliseconds; now, while it is online.
    pub last_seen_at: Option<u64>,
    /// What happens when it asks for a book; `None` for the node's own policy.
    pub policy: Option<Policy>,
    /// The key of its catalog's feed as z32, once it was connected.
    pub feed_key: Option<String>,
    /// Its address as a person gave it here, `host:port`.
    pub address: Option<String>,
    /// Where it may be, likeliest first, with the source of each.
    pub addresses: Vec<PeerAddress>,
    /// How it is connected, while it is.
    pub connection: Option<ConnectionInfo>,
    /// Why it is not connected, as far as the last try showed.
    pub problem: Option<PeerProblem>,
}

impl Peer {
    /// What to call it: the nickname given here, else its own name.
    #[must_use]
    pub fn display_name(&self) -> Option<&str> {
        self.nickname.as_deref().or(self.name.as_deref())
    }

    /// The key in its typed form.
    #[must_use]
    pub fn public_key(&self) -> Option<PublicKey> {
        PublicKey::from_z32(&self.key)
    }
}

/// A live connection, for a person.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionInfo {
    /// What it goes through.
    pub path: PathKind,
    /// The other end as `ip:port`.
    pub address: String,
    /// Whether this side dialed.
    pub initiator: bool,
    /// Since when, in Unix milliseconds.
    pub since: u64,
    /// The measured round trip in milliseconds; 0 before the first measurement.
    pub round_trip_ms: f64,
    /// How much flowed lately, both ways together, in bytes a second.
    pub bytes_per_second: u64,
    /// Bytes sent on this connection.
    pub bytes_sent: u64,
    /// Bytes received on it.
    pub bytes_received: u64,
}

/// Why an approved peer is not connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerProblem {
    /// An error code, such as `ERR_PEER_OFFLINE`.
    pub code: String,
    /// What it means and what to do.
    pub message: String,
    /// When it was found out, in Unix milliseconds.
    pub at: u64,
}

/// A key that tried to connect and waits for a decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Knock {
    /// The key as z32. The handshake proved that the caller has its secret half.
    pub key: String,
    /// The first try, in Unix milliseconds.
    pub first_at: u64,
    /// The last try.
    pub last_at: u64,
    /// How many tries there were.
    pub count: u64,
    /// From where the last came, as `ip:port`; a node that passed it on may have made it up.
    pub address: Option<String>,
}

/// A key that was found and is not a peer. Nobody is added by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Discovered {
    /// The key as z32.
    pub key: String,
    /// Where it was found: `topic` or `lan`.
    pub source: String,
    /// Where it can be reached, as `ip:port`.
    pub addresses: Vec<String>,
    /// When it was last seen, in Unix milliseconds.
    pub seen_at: u64,
}

/// How a peer is added.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AddOptions {
    /// What to call it; the name in the invite link is taken where this is absent.
    pub nickname: Option<String>,
    /// Where it is, as `host:port`, for networks on which it is not found by itself.
    pub address: Option<String>,
}

/// What to change on a peer. Outer `None`: leave as it is; inner `None`: unset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerUpdate {
    /// The nickname given here.
    #[serde(deserialize_with = "some", skip_serializing_if = "Option::is_none")]
    pub nickname: Option<Option<String>>,
    /// What happens when it asks for a book.
    #[serde(deserialize_with = "some", skip_serializing_if = "Option::is_none")]
    pub policy: Option<Option<Policy>>,
    /// Where it is, as `host:port`.
    #[serde(deserialize_with = "some", skip_serializing_if = "Option::is_none")]
    pub address: Option<Option<String>>,
}

/// Tells a field that is `null` from one that is absent.
fn some<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

/// A nickname that a person here chose: cleaned of what cannot be shown, refused when it is too long,
/// `None` when nothing is left.
///
/// # Errors
///
/// `ERR_INVALID_ARGUMENT` beyond [`NICKNAME_CHARS`].
pub fn check_nickname(nickname: &str) -> Result<Option<String>> {
    let clean = text::clean(nickname, NICKNAME_CHARS + 1);
    if clean.chars().count() > NICKNAME_CHARS {
        let message = format!("a nickname has at most {NICKNAME_CHARS} characters");
        return Err(Error::new(ErrorCode::InvalidArgument, message));
    }
    Ok(Some(clean).filter(|name| !name.is_empty()))
}

/// A name that somebody else chose: cleaned and cut to [`NICKNAME_CHARS`].
pub(super) fn clean_name(name: &str) -> Option<String> {
    Some(text::clean(name, NICKNAME_CHARS)).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nickname_loses_what_cannot_be_shown_and_is_refused_when_too_long() {
        assert_eq!(check_nickname(" An\u{202e}na\u{7}\n").unwrap().as_deref(), Some("Anna"));
        assert_eq!(check_nickname("\u{200b}\u{1b}").unwrap(), None);
        assert!(check_nickname(&"ä".repeat(NICKNAME_CHARS)).unwrap().is_some());
        let error = check_nickname(&"ä".repeat(NICKNAME_CHARS + 1)).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument);
        assert_eq!(clean_name(&"ä".repeat(5000)).unwrap().chars().count(), NICKNAME_CHARS);
    }

    #[test]
    fn an_update_tells_null_from_absent() {
        let update: PeerUpdate = serde_json::from_str(r#"{"nickname": null}"#).unwrap();
        assert_eq!(update, PeerUpdate { nickname: Some(None), ..PeerUpdate::default() });
        let update: PeerUpdate = serde_json::from_str(r#"{"policy": "metadata-only"}"#).unwrap();
        assert_eq!(update.policy, Some(Some(Policy::MetadataOnly)));
        assert_eq!(update.nickname, None);
    }
}
