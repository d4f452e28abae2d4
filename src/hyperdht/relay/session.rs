//! A client's side of a connection to a relay: several pairings share it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::super::connect::Connector;
use super::super::node::Inner;
use super::super::options::ConnectOptions;
use super::wire::{PAIR, PROTOCOL, Pair, Token, UNPAIR, decode_unpair, encode_unpair};
use crate::crypto::PublicKey;
use crate::protomux::{Channel, ChannelOptions, MuxError, MuxOptions, Protomux};
use crate::sync::lock;
use crate::udx::{StreamHandle, UdxSocket};

/// How long connecting to a relay and pairing there may take together, as in the reference.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Gives the live connection to a relay, if there is one: for programs that keep one connection a peer.
pub type RelayPeers = Arc<dyn Fn(&PublicKey) -> Option<(Protomux, StreamHandle)> + Send + Sync>;

/// Why a relay does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RelayError {
    /// No connection to it, or it does not relay.
    #[error("the relay cannot be reached")]
    Unreachable,
    /// It closed the channel.
    #[error("the relay does not relay for us")]
    Refused,
    /// The other side did not come in time.
    #[error("the other side did not come to the relay")]
    Timeout,
}

/// The relays that a node is connected to as a client.
#[derive(Default)]
pub(crate) struct RelaySessions {
    known: Mutex<HashMap<PublicKey, Weak<RelaySession>>>,
    peers: OnceLock<RelayPeers>,
}

impl RelaySessions {
    /// From now on relays are reached over the connections that `peers` gives, and no others are made.
    /// Only the first call counts.
    pub(crate) fn use_peers(&self, peers: RelayPeers) {
        // Set already: the first counts.
        let _ = self.peers.set(peers);
    }

    fn find(&self, inner: &Arc<Inner>, relay: &PublicKey) -> Option<Arc<RelaySession>> {
        let mut known = lock(&self.known);
        known.retain(|_, session| session.strong_count() > 0);
        let session = known.get(relay).and_then(Weak::upgrade);
        if let Some(session) = session.filter(|session| !session.channel.is_closed()) {
            return Some(session);
        }
        let (mux, udx) = self.peers.get().and_then(|peers| peers(relay))?;
        let session = RelaySession::start(inner, mux, udx, false).ok()?;
        known.insert(*relay, Arc::downgrade(&session));
        Some(session)
    }

    fn forget(&self, relay: &PublicKey, session: &Arc<RelaySession>) {
        session.udx.destroy();
        let mut known = lock(&self.known);
        if known.get(relay).is_some_and(|known| known.ptr_eq(&Arc::downgrade(session))) {
            known.remove(relay);
        }
    }

    async fn open(
        &self,
        inner: &Arc<Inner>,
        relay: PublicKey,
    ) -> Result<Arc<RelaySession>, RelayError> {
        if let Some(session) = self.find(inner, &relay) {
            return Ok(session);
        }
        if self.peers.get().is_some() {
            return Err(RelayError::Unreachable);
        }
        let options = ConnectOptions { timeout: TIMEOUT, ..ConnectOptions::default() };
        let keys = inner.key_pair().clone();
        let connector = Connector { inner: Arc::clone(inner), keys, remote: relay, options };
        let connection = connector.connect_directly().await;
        let connection = connection.map_err(|error| {
            tracing::debug!(relay = relay.short(), %error, "a relay was not reached");
            RelayError::Unreachable
        })?;
        let mux = Protomux::new(connection.stream, MuxOptions::default());
        let session = RelaySession::start(inner, mux, connection.udx, true);
        let session = session.map_err(|_| RelayError::Unreachable)?;
        lock(&self.known).insert(relay, Arc::downgrade(&session));
        Ok(session)
    }
}

/// Connects to a relay, unless that has happened, and pairs there. `on_relay` is told where the relay is
/// before the other side can send anything over it.
pub(crate) async fn pair(
    inner: Arc<Inner>,
    relay: PublicKey,
    is_initiator: bool,
    token: Token,
    stream_id: u32,
    on_relay: Arc<OnceLock<SocketAddr>>,
) -> Result<Paired, RelayError> {
    let pairing = async {
        loop {
            let session = inner.relays.open(&inner, relay).await?;
            let remote = session.udx.remote_addr().ok_or(RelayError::Unreachable)?;
            on_relay.get_or_init(|| remote);
            let pairing = Arc::clone(&session).pair(Pair { is_initiator, token, id: stream_id });
            tokio::select! {
                outcome = pairing => return outcome,
                // A punch may get through and lead nowhere: the relay gave it up at the same moment.
                () = session.udx.silent(true), if session.is_owner => {
                    inner.relays.forget(&relay, &session);
                }
            }
        }
    };
    tokio::time::timeout(TIMEOUT, pairing).await.unwrap_or(Err(RelayError::Timeout))
}

struct RelaySession {
    channel: Arc<Channel>,
    mux: Protomux,
    udx: StreamHandle,
    /// The connection is for relaying only, and ends with us.
    is_owner: bool,
    waiting: Mutex<HashMap<Token, oneshot::Sender<u32>>>,
    /// Cancelled when the other side of a pairing has left it.
    pairings: Mutex<HashMap<Token, CancellationToken>>,
}

impl RelaySession {
    fn start(
        inner: &Inner,
        mux: Protomux,
        udx: StreamHandle,
        is_owner: bool,
    ) -> Result<Arc<Self>, MuxError> {
        let own = inner.key_pair().public_key();
        let channel = Arc::new(mux.open(ChannelOptions {
            protocol: PROTOCOL.into(),
            id: own.as_bytes().to_vec(),
            ..ChannelOptions::default()
        })?);
        let receiving = Arc::clone(&channel);
        let (waiting, pairings) = Default::default();
        let session = Arc::new(Self { channel, mux, udx, is_owner, waiting, pairings });
        let weak = Arc::downgrade(&session);
        inner.rpc.spawn(async move {
            while let Some(message) = receiving.recv().await {
                let Some(session) = weak.upgrade() else { break };
                if session.receive(message.kind, &message.data).is_err() {
                    break;
                }
            }
            receiving.close();
            if let Some(session) = weak.upgrade() {
                lock(&session.waiting).clear();
            }
        });
        Ok(session)
    }

    fn receive(&self, kind: u32, data: &[u8]) -> crate::encoding::Result<()> {
        match kind {
            PAIR => {
                let pair = Pair::decode(data)?;
                if let Some(waiting) = lock(&self.waiting).remove(&pair.token) {
                    // Whoever asked may have given up.
                    let _ = waiting.send(pair.id);
                }
            }
            // Our relays say so; npm's ends the streams and says nothing.
            UNPAIR => {
                let token = decode_unpair(data)?;
                lock(&self.waiting).remove(&token);
                if let Some(is_over) = lock(&self.pairings).get(&token) {
                    is_over.cancel();
                }
            }
            _ => {}
        }
        Ok(())
    }

    async fn pair(self: Arc<Self>, pair: Pair) -> Result<Paired, RelayError> {
        let (sender, receiver) = oneshot::channel();
        lock(&self.waiting).insert(pair.token, sender);
        let (session, is_over) = (Arc::clone(&self), CancellationToken::new());
        lock(&self.pairings).insert(pair.token, is_over.clone());
        let mut pairing = Paired { session, token: pair.token, is_over, remote_id: 0 };
        if self.channel.send(PAIR, &pair.encode()).await.is_err() {
            return Err(RelayError::Refused);
        }
        pairing.remote_id = receiver.await.map_err(|_| RelayError::Refused)?;
        Ok(pairing)
    }
}

impl Drop for RelaySession {
    fn drop(&mut self) {
        self.channel.close();
        if self.is_owner {
            self.mux.close();
        }
    }
}

/// A pairing at a relay, or one that is asked for; taken back when it is dropped.
pub(crate) struct Paired {
    session: Arc<RelaySession>,
    token: Token,
    is_over: CancellationToken,
    /// The relay's stream, to which packets for the other side go.
    pub(super) remote_id: u32,
}

impl Paired {
    /// The socket that the relay expects packets from, and where it is.
    pub(super) fn path(&self) -> Option<(UdxSocket, SocketAddr)> {
        self.session.udx.path()
    }

    /// Waits until the other side has left, or the relay has closed the channel or is gone.
    pub(super) async fn closed(&self) {
        tokio::select! {
            () = self.is_over.cancelled() => {}
            () = self.session.channel.closed() => {}
        }
    }
}

impl Drop for Paired {
    fn drop(&mut self) {
        lock(&self.session.waiting).remove(&self.token);
        lock(&self.session.pairings).remove(&self.token);
        // A relay that does not hear of it notices that nothing goes on any more.
        let _ = self.session.channel.try_send(UNPAIR, &encode_unpair(&self.token));
    }
}
