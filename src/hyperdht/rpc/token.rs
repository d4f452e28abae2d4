//! Tokens: proof that a node receives at the address from which it sends (`dht-rpc` `lib/io.js`).
//!
//! A token is a hash of the sender's host keyed by a secret. Secrets rotate every 7.5 s, and the
//! previous one is still accepted. The transaction ids of pings that ask for such a proof are made alike.

use std::net::{IpAddr, SocketAddr};

use super::message::Token;
use crate::crypto;

/// After how many calls of [`TokenSecrets::tick`] (one each 750 ms) the secrets rotate.
const ROTATE_TICKS: u8 = 10;

/// The two secrets in use.
#[derive(Debug)]
pub(crate) struct TokenSecrets {
    current: [u8; 32],
    previous: [u8; 32],
    ticks: u8,
}

impl TokenSecrets {
    pub(crate) fn new() -> Self {
        Self { current: crypto::random(), previous: crypto::random(), ticks: 0 }
    }

    /// The token for whoever sends from `host`.
    pub(crate) fn issue(&self, host: IpAddr) -> Token {
        token(&self.current, host)
    }

    /// Whether `token` was issued to `host` within the last 7.5 to 15 s.
    pub(crate) fn accepts(&self, host: IpAddr, token_of_peer: &Token) -> bool {
        token(&self.current, host) == *token_of_peer
            || token(&self.previous, host) == *token_of_peer
    }

    /// The transaction id of a ping that only whoever receives at `address` can answer.
    pub(crate) fn ping_id(&self, address: SocketAddr) -> u16 {
        ping_id(&self.current, address)
    }

    /// Whether `tid` was that of a ping to `address` within the last 7.5 to 15 s.
    pub(crate) fn accepts_ping_id(&self, address: SocketAddr, tid: u16) -> bool {
        ping_id(&self.current, address) == tid || ping_id(&self.previous, address) == tid
    }

    /// 750 ms passed.
    pub(crate) fn tick(&mut self) {
        self.ticks += 1;
        if self.ticks == ROTATE_TICKS {
            self.ticks = 0;
            self.previous = std::mem::replace(&mut self.current, crypto::random());
        }
    }
}

fn token(secret: &[u8; 32], host: IpAddr) -> Token {
    crypto::keyed_hash(secret, &[host.to_canonical().to_string().as_bytes()])
}

fn ping_id(secret: &[u8; 32], address: SocketAddr) -> u16 {
    let host = address.ip().to_canonical().to_string();
    let port = address.port().to_le_bytes();
    let [low, high, ..] = crypto::keyed_hash(secret, &[host.as_bytes(), &port]);
    u16::from_le_bytes([low, high])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_for_one_host_and_expires_after_two_rotations() {
        let mut secrets = TokenSecrets::new();
        let host: IpAddr = "10.0.0.1".parse().unwrap();
        let issued = secrets.issue(host);
        assert!(secrets.accepts(host, &issued));
        assert!(!secrets.accepts("10.0.0.2".parse().unwrap(), &issued));
        (0..ROTATE_TICKS).for_each(|_| secrets.tick());
        assert!(secrets.accepts(host, &issued));
        (0..ROTATE_TICKS).for_each(|_| secrets.tick());
        assert!(!secrets.accepts(host, &issued));
    }
}
