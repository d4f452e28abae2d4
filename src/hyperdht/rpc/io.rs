//! Requests on their way: transaction ids, retries, timeouts (`dht-rpc` `lib/io.js`).
//!
//! A response counts only when it comes from the address that was asked, with the id of a request in
//! flight. Ids are random. Dropping the future of a request forgets it.

use std::collections::HashMap;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::congestion::CongestionWindow;
use super::message::{NodeId, Response, Token, node_id};
use super::socket::{Socket, SocketKind};
use super::token::TokenSecrets;
use crate::crypto;
use crate::sync::lock;

/// A node that has not answered by then is slow: whoever asked can ask others meanwhile. Most nodes of
/// the public network are nearer than that, and the answers of those that are not still count.
const SLOW_AFTER: Duration = Duration::from_millis(300);

/// How often a request is repeated unless it says otherwise.
pub(crate) const RETRIES: u32 = 3;

/// How often the congestion window turns.
pub(crate) const DRAIN_INTERVAL: Duration = Duration::from_millis(750);

/// Requests that may be waiting or in flight; above, requests fail at once.
const MAX_IN_FLIGHT: usize = 4096;

/// Why a request has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// No answer came, after all retries.
    #[error("the request was not answered")]
    Timeout,
    /// Too many requests are in flight.
    #[error("too many requests are in flight")]
    Busy,
    /// The node was closed.
    #[error("the DHT node is closed")]
    Closed,
}

/// An answer, with where it came from.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub from: SocketAddr,
    /// The sender's id, when it is a persistent node and the id is that of its address.
    pub id: Option<NodeId>,
    /// Our address as the sender sees it.
    pub to: Option<SocketAddrV4>,
    pub token: Option<Token>,
    pub closer_nodes: Vec<SocketAddrV4>,
    pub error: u64,
    pub value: Option<Bytes>,
    /// The socket on which it arrived.
    pub socket: SocketKind,
}

/// How a request is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attempts {
    pub retries: u32,
}

impl Default for Attempts {
    fn default() -> Self {
        Self { retries: RETRIES }
    }
}

impl Attempts {
    /// One packet, no retries.
    pub(crate) const ONCE: Self = Self { retries: 0 };
}

struct InFlight {
    to: SocketAddr,
    /// Empty once answered; the entry keeps its id taken until the request's future ends.
    answer: Option<oneshot::Sender<Reply>>,
}

struct State {
    in_flight: HashMap<u16, InFlight>,
    congestion: CongestionWindow,
    tokens: TokenSecrets,
    sent: u64,
    is_closed: bool,
}

/// The sockets and what is in flight on them.
pub(crate) struct Io {
    pub server: Socket,
    pub client: Socket,
    /// How long to wait for the answer to one packet.
    timeout: Duration,
    state: Mutex<State>,
    room: Notify,
}

/// Counters of what goes on, for a person.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct IoStats {
    pub in_flight: usize,
    /// Packets with requests, repetitions included.
    pub sent: u64,
}

impl Io {
    pub(crate) fn new(server: Socket, client: Socket, timeout: Duration) -> Self {
        let state = State {
            in_flight: HashMap::new(),
            congestion: CongestionWindow::default(),
            tokens: TokenSecrets::new(),
            sent: 0,
            is_closed: false,
        };
        Self { server, client, timeout, state: Mutex::new(state), room: Notify::new() }
    }

    /// Sends the packet that `encode` makes for a fresh transaction id until it is answered.
    /// `on_slow` is called once, when the first packet was not answered soon. Cancel safe.
    pub(crate) async fn exchange(
        &self,
        socket: &Socket,
        to: SocketAddr,
        attempts: Attempts,
        encode: impl FnOnce(u16) -> Vec<u8>,
        mut on_slow: impl FnMut(),
    ) -> Result<Reply, RequestError> {
        let (mut guard, mut answer) = self.begin(to)?;
        let packet = encode(guard.tid);
        for attempt in 0..=attempts.retries {
            self.wait_for_room().await;
            guard.sent();
            socket.send(&packet, to);
            let repeat_at = Instant::now() + self.timeout;
            if attempt == 0 {
                let soon = tokio::time::timeout(SLOW_AFTER.min(self.timeout), &mut answer);
                match soon.await {
                    Ok(outcome) => return outcome.map_err(|_| RequestError::Closed),
                    Err(_) => on_slow(),
                }
            }
            if let Ok(outcome) = tokio::time::timeout_at(repeat_at, &mut answer).await {
                return outcome.map_err(|_| RequestError::Closed);
            }
        }
        Err(RequestError::Timeout)
    }

    /// Hands a response to the request that waits for it. `None` when none does.
    pub(crate) fn on_response(
        &self,
        socket: SocketKind,
        from: SocketAddr,
        response: Response,
    ) -> Option<Reply> {
        let answer = {
            let mut state = lock(&self.state);
            let waiting = state.in_flight.get_mut(&response.tid)?;
            if waiting.to != from {
                tracing::debug!(%from, "a response from whom we did not ask");
                return None;
            }
            waiting.answer.take()?
        };
        let reply = Reply {
            from,
            id: validated_id(response.id, from),
            to: response.to,
            token: response.token,
            closer_nodes: response.closer_nodes,
            error: response.error,
            value: response.value,
            socket,
        };
        // Whoever waited may have gone away; the response is still news of a node.
        let _ = answer.send(reply.clone());
        Some(reply)
    }

    /// The token for whoever sends from `from`.
    pub(crate) fn issue_token(&self, from: SocketAddr) -> Token {
        lock(&self.state).tokens.issue(from.ip())
    }

    pub(crate) fn accepts_token(&self, from: SocketAddr, token: &Token) -> bool {
        lock(&self.state).tokens.accepts(from.ip(), token)
    }

    /// To be called every [`DRAIN_INTERVAL`].
    pub(crate) fn drain(&self) {
        let mut state = lock(&self.state);
        state.congestion.rotate();
        state.tokens.tick();
        drop(state);
        self.room.notify_waiters();
    }

    pub(crate) fn stats(&self) -> IoStats {
        let state = lock(&self.state);
        IoStats { in_flight: state.in_flight.len(), sent: state.sent }
    }

    /// Waits until the ports of both sockets are free.
    pub(crate) fn released(&self) -> impl Future<Output = ()> + Send + use<> {
        let (server, client) = (self.server.udx.released(), self.client.udx.released());
        async move {
            server.await;
            client.await;
        }
    }

    /// Ends all requests with [`RequestError::Closed`] and closes the sockets.
    pub(crate) fn close(&self) {
        let mut state = lock(&self.state);
        state.is_closed = true;
        state.in_flight.clear();
        drop(state);
        self.room.notify_waiters();
        self.server.udx.close();
        self.client.udx.close();
    }

    fn begin(&self, to: SocketAddr) -> Result<(Guard<'_>, oneshot::Receiver<Reply>), RequestError> {
        let mut state = lock(&self.state);
        if state.is_closed {
            return Err(RequestError::Closed);
        }
        if state.in_flight.len() >= MAX_IN_FLIGHT {
            return Err(RequestError::Busy);
        }
        let tid = loop {
            let tid = u16::from_le_bytes(crypto::random());
            if !state.in_flight.contains_key(&tid) {
                break tid;
            }
        };
        let (answer, receiver) = oneshot::channel();
        state.in_flight.insert(tid, InFlight { to, answer: Some(answer) });
        Ok((Guard { io: self, tid, is_counted: false }, receiver))
    }

    fn has_room(&self) -> bool {
        let state = lock(&self.state);
        state.is_closed || !state.congestion.is_full()
    }

    async fn wait_for_room(&self) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if self.has_room() {
                return;
            }
            room.await;
        }
    }
}

/// `id` if it is that of `from`, which only a node that receives there can claim.
pub(crate) fn validated_id(id: Option<NodeId>, from: SocketAddr) -> Option<NodeId> {
    match from {
        SocketAddr::V4(v4) => id.filter(|id| *id == node_id(v4)),
        SocketAddr::V6(_) => None,
    }
}

/// Forgets a request when its future ends, however it ends.
struct Guard<'a> {
    io: &'a Io,
    tid: u16,
    is_counted: bool,
}

impl Guard<'_> {
    fn sent(&mut self) {
        self.is_counted = true;
        let mut state = lock(&self.io.state);
        state.congestion.sent();
        state.sent += 1;
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.io.state);
        state.in_flight.remove(&self.tid);
        if self.is_counted {
            state.congestion.settled();
        }
        drop(state);
        self.io.room.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::udx::Udx;

    const TIMEOUT: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_silent_node_is_slow_long_before_it_is_given_up() {
        let udx = Udx::new();
        let bind = |kind| Socket::bind(&udx, "127.0.0.1:0".parse().unwrap(), kind).unwrap();
        let (silent, socket) = (bind(SocketKind::Server), bind(SocketKind::Client));
        let io = Io::new(socket.clone(), socket.clone(), TIMEOUT);
        let began = Instant::now();
        let mut slow = Vec::new();
        let outcome = io
            .exchange(
                &socket,
                silent.local_addr(),
                Attempts::default(),
                |_| vec![0],
                || {
                    slow.push(began.elapsed());
                },
            )
            .await;
        assert_eq!(outcome.err(), Some(RequestError::Timeout));
        let within = |time: Duration, about: Duration| time.saturating_sub(about).as_millis() < 50;
        assert!(slow.len() == 1 && within(slow[0], SLOW_AFTER), "{slow:?}");
        assert!(within(began.elapsed(), (RETRIES + 1) * TIMEOUT), "{:?}", began.elapsed());
        assert_eq!(io.stats().sent, u64::from(RETRIES) + 1);
    }
}
