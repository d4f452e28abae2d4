//! The server's side of a punch: what it answers to the client (`hyperdht` `lib/server.js`).

use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use super::super::messages::FirewallKind;
use super::super::messages::holepunch::{ERROR_ABORTED, ERROR_NONE, ERROR_TRY_LATER, Payload};
use super::super::node::Inner;
use super::super::rpc::Incoming;
use super::super::rpc::socket::Socket;
use super::plan::{is_consistent, is_random};
use super::puncher::Puncher;
use super::seal::Seal;
use crate::secret_stream::Session;
use crate::sync::lock;

/// How long an admitted client may take until it asks us to punch.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// A punch that a client may ask for.
pub(crate) struct ServerPunch {
    /// Our number for the handshake.
    pub id: u64,
    inner: Arc<Inner>,
    seal: Seal,
    puncher: Puncher,
    /// The latest round of the client.
    round: AtomicU64,
    /// Messages are answered one after the other, as they change what comes next.
    turn: tokio::sync::Mutex<()>,
}

/// A message back: the socket that it goes through, and its encrypted payload.
pub(crate) type Answer = (Socket, Vec<u8>);

impl ServerPunch {
    /// Opens a socket for a client whose handshake was admitted.
    pub(crate) fn open(inner: &Arc<Inner>, id: u64, firewall: FirewallKind) -> Option<Puncher> {
        Puncher::open(inner, false, firewall)
            .inspect_err(|error| tracing::debug!(id, %error, "no socket for a punch"))
            .ok()
    }

    pub(crate) fn new(inner: &Arc<Inner>, id: u64, puncher: Puncher, session: &Session) -> Self {
        let (inner, seal) = (Arc::clone(inner), Seal::new(session));
        let turn = tokio::sync::Mutex::default();
        Self { id, inner, seal, puncher, round: AtomicU64::new(0), turn }
    }

    /// The socket of the punch.
    pub(crate) fn socket(&self) -> Option<Socket> {
        self.puncher.socket()
    }

    /// Waits until it is given up, by the client, by us, or because nobody asks for it.
    pub(crate) async fn ended(&self) {
        tokio::select! {
            () = self.puncher.ended() => return,
            () = tokio::time::sleep(ASK_TIMEOUT) => {}
        }
        if self.puncher.is_punching() {
            self.puncher.ended().await;
        }
    }

    /// Answers a message of `client`, as the node in between sees it. `is_trusted` is whether that node
    /// is one at which we announced ourselves.
    pub(crate) async fn on_message(
        &self,
        payload: &[u8],
        client: SocketAddrV4,
        is_trusted: bool,
        incoming: &Incoming,
    ) -> Option<Answer> {
        let request = self.seal.decrypt(payload)?;
        let _turn = self.turn.lock().await;
        if request.error != ERROR_NONE {
            return self.abort(ERROR_ABORTED);
        }
        let token = self.seal.token(*client.ip());
        let is_echoed = is_trusted && request.remote_token == Some(token);
        let own = self.puncher.socket()?;
        if own.udx.is_same(&incoming.socket.udx) {
            self.puncher.sample(incoming.request.to, incoming.from);
        }
        if self.round.fetch_max(request.round, Ordering::Relaxed) <= request.round {
            let verified = is_echoed.then_some(*client.ip());
            let addresses = request.addresses.as_deref().unwrap_or_default();
            self.puncher.update_remote(|remote| {
                remote.update(request.firewall, addresses, request.punching, verified);
            });
        }
        let is_stable = self.puncher.analyze(false).await;
        if !is_stable && !self.puncher.remote().is_punching && !self.puncher.analyze(true).await {
            return self.abort(ERROR_ABORTED);
        }
        let (local, addresses) = self.puncher.local();
        let is_ours = |address| addresses.as_ref().is_some_and(|ours| ours.contains(&address));
        if is_consistent(local) && request.remote_address.is_some_and(is_ours) {
            // The client's NAT is open for us already: this may be all that it takes.
            self.puncher.ping(client);
        }
        let remote = self.puncher.remote();
        if remote.is_punching && !self.puncher.is_punching() {
            let permit = if is_random(local, remote.firewall) {
                match self.inner.random_punch() {
                    Some(permit) => Some(permit),
                    None => return self.abort(ERROR_TRY_LATER),
                }
            } else {
                None
            };
            if !self.puncher.punch(permit) {
                return self.abort(ERROR_ABORTED);
            }
        }
        self.puncher.freeze();
        let answer = Payload {
            error: ERROR_NONE,
            firewall: local,
            round: self.round.load(Ordering::Relaxed),
            connected: false,
            punching: self.puncher.is_punching(),
            addresses,
            remote_address: None,
            token: is_trusted.then_some(token),
            remote_token: request.token,
        };
        Some((self.puncher.socket()?, self.seal.encrypt(&answer)))
    }

    fn abort(&self, error: u64) -> Option<Answer> {
        let round = self.round.load(Ordering::Relaxed);
        let answer = self.seal.encrypt(&Payload { error, round, ..Payload::default() });
        let socket = self.inner.rpc.socket();
        tracing::debug!(id = self.id, error, "gave up punching");
        self.puncher.end();
        Some((socket, answer))
    }
}

/// The punches that clients of one server may ask for.
#[derive(Default)]
pub(crate) struct Punches {
    punches: Mutex<Vec<(u64, Weak<ServerPunch>)>>,
}

/// Punches that wait for clients or go on: each has a socket, and some have hundreds.
const MAX_PUNCHES: usize = 64;

impl Punches {
    /// A number for one more, unless there are too many.
    pub(crate) fn reserve(&self) -> Option<u64> {
        let mut punches = lock(&self.punches);
        punches.retain(|(_, punch)| punch.strong_count() > 0);
        // Fits in what JavaScript counts exactly, and cannot be guessed.
        let id = u64::from(u32::from_le_bytes(crate::crypto::random()));
        let is_free = punches.len() < MAX_PUNCHES && punches.iter().all(|(other, _)| *other != id);
        is_free.then_some(id)
    }

    pub(crate) fn insert(&self, punch: &Arc<ServerPunch>) {
        lock(&self.punches).push((punch.id, Arc::downgrade(punch)));
    }

    pub(crate) fn get(&self, id: u64) -> Option<Arc<ServerPunch>> {
        let punches = lock(&self.punches);
        let (_, punch) = punches.iter().find(|(known, _)| *known == id)?;
        punch.upgrade()
    }
}
