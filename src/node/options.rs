//! How a node is opened.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::crypto::PublicKey;
use crate::discovery::{self, DiscoveryOptions};
use crate::error::{Error, ErrorCode, Result};
use crate::hyperdht::{DhtOptions, RelayOptions};
use crate::identity::{Identity, ParsedKey, parse_key};
use crate::transfer::{Policy, TransferLimits};

/// How a node is opened. Start from [`NodeOptions::new`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeOptions {
    /// The folder with everything the node keeps; made when it is missing.
    pub data_dir: PathBuf,
    /// Ways into the DHT, as `host:port` or `address@host:port`; the public HyperDHT when absent. An
    /// empty list makes a network of its own.
    #[serde(default)]
    pub bootstrap: Option<Vec<String>>,
    /// The address to listen on; all IPv4 addresses when absent.
    #[serde(default)]
    pub host: Option<String>,
    /// The UDP port to listen on; hyperdht's 49737, or one near it, when absent. 0 for any.
    #[serde(default)]
    pub port: Option<u16>,
    /// How other servers are found.
    #[serde(default)]
    pub discovery: DiscoveryOptions,
    /// Ways around NATs that let nobody through.
    #[serde(default)]
    pub relay: RelaySettings,
    /// Limits on what peers may use.
    #[serde(default)]
    pub limits: Limits,
    /// What happens when a peer asks for a book, unless the peer has a policy of its own.
    #[serde(default)]
    pub policy: Policy,
    /// Whether the catalogs of peers are passed on among all approved peers: from this server to those
    /// that follow the same catalog, and from them to it while its owner is away. Off by default: who is
    /// whose peer is then told to nobody.
    #[serde(default)]
    pub share_feeds: bool,
    /// What this server calls itself towards its peers.
    #[serde(default)]
    pub nickname: Option<String>,
    /// Where received books go unless the request says otherwise; `books` in the data directory when
    /// absent.
    #[serde(default)]
    pub books_dir: Option<PathBuf>,
}

/// Ways around NATs that let nobody through: approved peers that pass encrypted packets on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RelaySettings {
    /// Whether to pass packets on between approved peers that ask for it. Off by default.
    pub serve: bool,
    /// How many bytes a second to pass on, for all of them together. 2 MiB when absent.
    pub bytes_per_second: Option<NonZeroU32>,
    /// Keys of approved peers to go over, as long as they are connected and serve, when there is no direct
    /// path to another.
    pub through: Vec<String>,
}

impl RelaySettings {
    /// How packets are passed on where they are.
    pub(super) fn serving(&self) -> RelayOptions {
        let mut options = RelayOptions::default();
        if let Some(rate) = self.bytes_per_second {
            options.bytes_per_second = rate;
        }
        options
    }
}

/// Limits on what peers may use. Absent ones have their defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// Requests that a peer may have open here, and this server there. 16 by default.
    pub open_requests: usize,
    /// Books that flow to one peer at once; further ones wait. 8 by default.
    pub transfers_at_once: usize,
    /// The largest book, in bytes. 4 GiB by default.
    pub book_bytes: u64,
    /// How many bytes a second all peers together are sent; without a limit when absent.
    pub upload_bytes_per_second: Option<NonZeroU32>,
}

impl Default for Limits {
    fn default() -> Self {
        let TransferLimits { open_requests, transfers_at_once, book_bytes } =
            TransferLimits::default();
        Self { open_requests, transfers_at_once, book_bytes, upload_bytes_per_second: None }
    }
}

impl From<Limits> for TransferLimits {
    fn from(limits: Limits) -> Self {
        let Limits { open_requests, transfers_at_once, book_bytes, .. } = limits;
        Self { open_requests, transfers_at_once, book_bytes }
    }
}

impl NodeOptions {
    /// The defaults over this data directory.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            bootstrap: None,
            host: None,
            port: None,
            discovery: DiscoveryOptions::default(),
            relay: RelaySettings::default(),
            limits: Limits::default(),
            policy: Policy::default(),
            share_feeds: false,
            nickname: None,
            books_dir: None,
        }
    }

    /// The peers to go over.
    pub(super) fn relays(&self) -> Result<Vec<PublicKey>> {
        let key = |text: &String| match parse_key(text) {
            Ok(ParsedKey { key, .. }) => Ok(key),
            Err(error) => {
                let message = format!("relay.through has {text:?}: {error}");
                Err(Error::new(ErrorCode::InvalidArgument, message))
            }
        };
        self.relay.through.iter().map(key).collect()
    }

    /// The DHT node these options ask for.
    pub(super) fn dht(&self, identity: &Identity) -> Result<DhtOptions> {
        let mut options = DhtOptions {
            bootstrap: discovery::bootstrap_nodes(self.bootstrap.as_deref())?,
            key_pair: identity.key_pair().clone(),
            direct_only: !self.discovery.dht,
            ..DhtOptions::default()
        };
        if let Some(host) = &self.host {
            options.host = host.parse::<IpAddr>().map_err(|_| {
                let message =
                    format!("host is {host:?}: give the IP address to listen on, such as 0.0.0.0");
                Error::new(ErrorCode::InvalidArgument, message)
            })?;
        }
        if let Some(port) = self.port {
            options.port = port;
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_with_a_data_directory_alone_gives_the_defaults() {
        let read: NodeOptions = serde_json::from_str(r#"{"dataDir": "/data"}"#).unwrap();
        assert_eq!(
            serde_json::to_value(read).unwrap(),
            serde_json::to_value(NodeOptions::new("/data")).unwrap()
        );
    }

    #[test]
    fn relays_are_read_as_keys_and_a_bad_one_is_named_in_the_error() {
        let key = crate::crypto::KeyPair::generate().public_key();
        let mut options = NodeOptions::new("/data");
        assert!(!options.relay.serve);
        options.relay.through = vec![key.to_z32()];
        assert_eq!(options.relays().unwrap(), [key]);
        options.relay.through.push("nonsense".into());
        let error = options.relays().unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument);
        assert!(error.message.contains("nonsense"));
    }

    #[test]
    fn a_host_that_is_no_address_is_named_in_the_error() {
        let identity = Identity::from_key_pair(crate::crypto::KeyPair::generate());
        let options = NodeOptions { host: Some("example.org".into()), ..NodeOptions::new("/data") };
        let error = options.dht(&identity).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument);
        assert!(error.message.contains("example.org"));
    }
}
