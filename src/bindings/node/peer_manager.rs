//! `PeerManager`: the other servers that this one knows.

use napi::Env;
use napi::bindgen_prelude::Unknown;
use napi_derive::napi;

use super::argument::string;
use super::call::{Promised, call};
use super::json::{Json, from_js};
use super::life::Life;
use crate::crypto::PublicKey;
use crate::error::Result;
use crate::identity::parse_key;
use crate::peers::{AddOptions, PeerUpdate, Peers};

/// The other servers: who may connect, who knocked, who is online. Two servers connect only when each has
/// approved the other. From `node.peers`. Keys are taken as z32, hex or invite link everywhere.
#[napi]
pub struct PeerManager {
    peers: Peers,
    life: Life,
}

impl PeerManager {
    pub(super) fn new(peers: Peers, life: Life) -> Self {
        Self { peers, life }
    }
}

#[napi]
impl PeerManager {
    /// Adds and approves a server by its key or invite link. It connects once it has approved this one,
    /// too. Adding it again changes its nickname and address at most. Rejects with `ERR_INVALID_KEY`,
    /// which says what is wrong with the text, and with `ERR_PEER_BLOCKED` for a blocked key.
    #[napi(
        ts_args_type = "keyOrLink: string, options?: AddPeerOptions",
        ts_return_type = "Promise<Peer>"
    )]
    pub fn add<'env>(
        &self,
        env: &'env Env,
        key_or_link: Unknown<'env>,
        options: Option<Unknown<'env>>,
    ) -> Promised<'env> {
        let peers = self.peers.clone();
        call(env, &self.life, options, |given| {
            let text = string(key_or_link, "keyOrLink")?;
            let options: AddOptions = match given.and(options) {
                Some(options) => from_js(env, options, "options")?,
                None => AddOptions::default(),
            };
            Ok(async move { Json::new(&peers.add(&text, options).await?) })
        })
    }

    /// Forgets a server, approved, blocked or knocking, and closes its connection. Whether it was known.
    #[napi(
        ts_args_type = "key: string, options?: WaitOptions",
        ts_return_type = "Promise<boolean>"
    )]
    pub fn remove<'env>(
        &self,
        env: &'env Env,
        key: Unknown<'env>,
        options: Option<Unknown<'env>>,
    ) -> Promised<'env> {
        let peers = self.peers.clone();
        call(env, &self.life, options, |_| {
            let key = public_key(key)?;
            Ok(async move { peers.remove(&key).await })
        })
    }

    /// The approved and blocked servers, by name. Those that knocked are in `pending()`.
    #[napi(ts_args_type = "options?: WaitOptions", ts_return_type = "Promise<Peer[]>")]
    pub fn list<'env>(&self, env: &'env Env, options: Option<Unknown<'env>>) -> Promised<'env> {
        let peers = self.peers.clone();
        call(env, &self.life, options, |_| Ok(async move { Json::new(&peers.list()) }))
    }

    /// What is known of a key; `null` when nothing is. One that knocked has the status `pending`.
    #[napi(
        ts_args_type = "key: string, options?: WaitOptions",
        ts_return_type = "Promise<Peer | null>"
    )]
    pub fn get<'env>(
        &self,
        env: &'env Env,
        key: Unknown<'env>,
        options: Option<Unknown<'env>>,
    ) -> Promised<'env> {
        let peers = self.peers.clone();
        call(env, &self.life, options, |_| {
            let key = public_key(key)?;
            Ok(async move { Json::new(&peers.get(&key)) })
        })
    }

    /// Approves a key: one that knocked, one that is blocked, or any other.
    #[napi(ts_args_type = "key: string, options?: WaitOptions", ts_return_type = "Promise<Peer>")]
    pub fn approve<'env>(
        &self,
        env: &'env Env,
        key: Unknown<'env>,
        options: Option<Unknown<'env>>,
    ) -> Promised<'env> {
        let peers = self.peers.clone();
        call(env, &self.life, options, |_| {
            let key = public_key(key)?;
            Ok(async move { Json::new(&peers.approve(&key).await?) })
        })
    }

    /// Blocks a key: its connection is closed, and its knocks are refused without being listed.
    #[napi(ts_args_type = "key: string, options?: WaitOptions", ts_return_type = "Promise<Peer>")]
    pub fn block<'env>(
        &self,
        env: &'env Env,
        key: Unknown<'env>,
        options: Option<Unknown<'env>>,
    ) -> Promised<'env> {
        let peers = self.peers.clone();
        call(env, &self.life, options, |_| {
            let key = public_key(key)?;
            Ok(async move { Json::new(&peers.block(&key).await?) })
        })
    }

    /// Changes a server's nickname, policy or address; `null` unsets one. Rejects with `ERR_NOT_FOUND` for a key
    /// that is neither approved nor blocked.
    #[napi(
        ts_args_type = "key: string, update: PeerUpdate, options?: WaitOptions",
        ts_return_type = "Promise<Peer>"
    )]
    pub fn update<'env>(
        &self,
        env: &'env Env,
        key: Unknown<'env>,
        update: Unknown<'env>,
        options: Option<Unknown<'env>>,
    ) -> Promised<'env> {
        let peers = self.peers.clone();
        call(env, &self.life, options, |_| {
            let key = public_key(key)?;
            let update: PeerUpdate = from_js(env, update, "update")?;
            Ok(async move { Json::new(&peers.update(&key, update).await?) })
        })
    }

    /// The keys that tried to connect and wait for a decision, the latest first; at most 256.
    #[napi(ts_args_type = "options?: WaitOptions", ts_return_type = "Promise<Knock[]>")]
    pub fn pending<'env>(&self, env: &'env Env, options: Option<Unknown<'env>>) -> Promised<'env> {
        let peers = self.peers.clone();
        call(env, &self.life, options, |_| Ok(async move { Json::new(&peers.pending()) }))
    }

    /// The keys found on the topic or the network that are no peers, the latest first; at most 256.
    #[napi(ts_args_type = "options?: WaitOptions", ts_return_type = "Promise<DiscoveredPeer[]>")]
    pub fn discovered<'env>(
        &self,
        env: &'env Env,
        options: Option<Unknown<'env>>,
    ) -> Promised<'env> {
        let peers = self.peers.clone();
        call(env, &self.life, options, |_| Ok(async move { Json::new(&peers.discovered()) }))
    }
}

/// A key argument, in any of the forms in which people pass keys on.
pub(super) fn public_key(value: Unknown<'_>) -> Result<PublicKey> {
    Ok(parse_key(&string(value, "key")?)?.key)
}
