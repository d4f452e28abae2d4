//! What a node answers to packets that arrive (`dht-rpc` `_onrequest`).

use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use super::io::validated_id;
use super::message::{Message, NodeId, Request, node_id};
use super::socket::{Socket, SocketKind};
use super::{Answer, Incoming, Rpc};
use crate::crypto;
use crate::encoding::Reader;
use crate::rate_limit::RateLimit;
use crate::sync::lock;
use crate::udx::Datagram;

/// Commands of this layer.
pub(crate) const PING: u64 = 0;
pub(crate) const PING_NAT: u64 = 1;
pub(crate) const FIND_NODE: u64 = 2;
pub(crate) const DOWN_HINT: u64 = 3;
pub(crate) const DELAYED_PING: u64 = 4;

/// Error codes of this layer.
pub(crate) const UNKNOWN_COMMAND: u64 = 1;
pub(crate) const INVALID_TOKEN: u64 = 2;

/// The longest delay of a delayed ping.
const MAX_PING_DELAY: Duration = Duration::from_secs(10);

/// Delayed pings that wait at once.
const MAX_DELAYED_PINGS: usize = 256;

/// Requests that one host may send a second, and at once.
const REQUEST_RATE: u32 = 100;
const REQUEST_BURST: u32 = 400;
/// Hosts whose requests are counted, and for how long.
pub(crate) const MAX_LIMITED_HOSTS: usize = 4096;
pub(crate) const LIMIT_AGE: Duration = Duration::from_secs(60);

/// Pings that down hints of others may cause at once.
const MAX_HINTED_CHECKS: usize = 10;

impl Rpc {
    /// Takes a packet. Responses and this layer's commands are dealt with; a command of the layer
    /// above is returned. Anything malformed is dropped.
    pub(crate) fn receive(
        self: &Arc<Self>,
        socket: &Socket,
        datagram: Datagram,
    ) -> Option<Incoming> {
        let from = datagram.from;
        if from.port() == 0 {
            return None;
        }
        match Message::decode(&datagram.payload) {
            Ok(Message::Response(response)) => {
                let tid = response.tid;
                match self.io.on_response(socket.kind, from, response) {
                    Some(reply) => {
                        self.on_proof(from);
                        self.heard_from(socket.kind, from, reply.id, reply.to);
                    }
                    None => self.on_other_response(from, tid),
                }
                None
            }
            Ok(Message::Request(request)) => {
                self.on_request(socket, from, datagram.payload.len(), request)
            }
            Err(error) => {
                tracing::trace!(%from, %error, "a packet that is none of ours");
                None
            }
        }
    }

    fn on_request(
        self: &Arc<Self>,
        socket: &Socket,
        from: SocketAddr,
        size: usize,
        request: Request,
    ) -> Option<Incoming> {
        if !self.admits_request(from) {
            tracing::trace!(%from, "a host that asks too much");
            return None;
        }
        let incoming = Incoming { request, size, from, socket: socket.clone() };
        let request = &incoming.request;
        if request.token.is_some_and(|token| !self.io.accepts_token(from, &token)) {
            let closer_nodes = request.target.is_some();
            self.answer(
                &incoming,
                Answer { error: INVALID_TOKEN, token: true, closer_nodes, value: None },
            );
            return None;
        }
        if request.token.is_some() {
            self.on_proof(from);
        }
        let id = validated_id(request.id, from);
        if id.is_some() {
            self.heard_from(socket.kind, from, id, Some(request.to));
        }
        if request.internal {
            self.on_internal(incoming);
            return None;
        }
        Some(incoming)
    }

    /// Whether this host may ask once more: answers are longer than questions, and whoever sends under the
    /// name of another would make us flood it. This machine may ask as it likes.
    fn admits_request(&self, from: SocketAddr) -> bool {
        if from.ip().is_loopback() {
            return true;
        }
        let key = match from.ip() {
            IpAddr::V4(ip) => crypto::hash(&[&ip.octets()]),
            // A host on IPv6 has a whole /64.
            IpAddr::V6(ip) => crypto::hash(&[&ip.octets()[..8]]),
        };
        let mut state = lock(&self.state);
        if let Some(limit) = state.limits.get_mut(&key) {
            return limit.allow();
        }
        let mut limit = RateLimit::new(REQUEST_RATE, REQUEST_BURST);
        let admitted = limit.allow();
        state.limits.insert(key, limit);
        admitted
    }

    fn on_internal(self: &Arc<Self>, incoming: Incoming) {
        let value = incoming.request.value.clone().unwrap_or_default();
        let mut reader = Reader::new(&value);
        match incoming.request.command {
            PING => self.answer(&incoming, Answer::default()),
            PING_NAT => {
                // The same host asks at one socket to be answered at another: can it be reached?
                let Ok(port @ 1..) = reader.u16() else { return };
                let to = SocketAddr::new(incoming.from.ip(), port);
                self.answer_to(&incoming, to, Answer::default());
            }
            FIND_NODE => {
                if incoming.request.target.is_some() {
                    self.answer(&incoming, Answer { closer_nodes: true, ..Answer::default() });
                }
            }
            DOWN_HINT => {
                let Ok(address) = reader.ipv4_address() else { return };
                self.on_down_hint(address);
                self.answer(&incoming, Answer::default());
            }
            DELAYED_PING => {
                let Ok(delay) = reader.u32() else { return };
                self.on_delayed_ping(incoming, Duration::from_millis(u64::from(delay)));
            }
            _ => self.refuse_command(&incoming),
        }
    }

    /// Says that we do not know this command, and who may.
    pub(crate) fn refuse_command(&self, incoming: &Incoming) {
        let closer_nodes = incoming.request.target.is_some();
        self.answer(incoming, Answer { error: UNKNOWN_COMMAND, closer_nodes, ..Answer::default() });
    }

    fn on_down_hint(self: &Arc<Self>, address: SocketAddrV4) {
        let id = node_id(address);
        let mut state = lock(&self.state);
        if state.checks >= MAX_HINTED_CHECKS {
            return;
        }
        let tick = state.tick;
        let Some(node) = state.table.get_mut(&id) else { return };
        if node.pinged < tick || !node.down_hinted {
            node.down_hinted = true;
            drop(state);
            self.check(id);
        }
    }

    fn on_delayed_ping(self: &Arc<Self>, incoming: Incoming, delay: Duration) {
        if delay > MAX_PING_DELAY || self.tasks.len() > MAX_DELAYED_PINGS {
            return;
        }
        let rpc = Arc::clone(self);
        self.spawn(async move {
            tokio::time::sleep(delay).await;
            rpc.answer(&incoming, Answer::default());
        });
    }

    /// Learns from a packet: its sender lives, and sees us at `to`.
    fn heard_from(
        self: &Arc<Self>,
        socket: SocketKind,
        from: SocketAddr,
        id: Option<NodeId>,
        to: Option<SocketAddrV4>,
    ) {
        let to = to.filter(|to| to.port() != 0 && !to.ip().is_unspecified());
        let SocketAddr::V4(address) = from else { return };
        let expected = self.socket().kind;
        // A view of the socket that we do not speak through says nothing about the other.
        let sample = to.filter(|_| socket == expected);
        match id {
            Some(_) => self.heard_from_node(address, sample),
            None => self.sample_ephemeral(from, sample),
        }
    }
}
