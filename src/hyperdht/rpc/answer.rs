//! Answers to requests, and how long they may be (see [`address_validation`](super::address_validation)).

use std::net::SocketAddr;

use bytes::Bytes;

use super::address_validation::{MAX_AMPLIFICATION, Verdict};
use super::message::{Request, Response, wire_address};
use super::serve::PING;
use super::socket::Socket;
use super::table::K;
use super::{Incoming, Rpc};
use crate::sync::lock;

/// Bytes of one closer node in a response.
const NODE_BYTES: usize = 6;

/// What to answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    pub error: u64,
    pub value: Option<Bytes>,
    /// Whether to give the other side a token.
    pub token: bool,
    /// Whether to name nodes closer to the target.
    pub closer_nodes: bool,
}

/// An answer that waits until its receiver has proved that it receives.
pub(crate) struct LongAnswer {
    response: Response,
    socket: Socket,
}

impl Rpc {
    /// Answers a request, through the socket on which it came.
    pub(crate) fn answer(&self, incoming: &Incoming, answer: Answer) {
        self.answer_to(incoming, incoming.from, answer);
    }

    /// [`Rpc::answer`] to another address than the request came from.
    pub(crate) fn answer_to(&self, incoming: &Incoming, to: SocketAddr, answer: Answer) {
        let target = incoming.request.target.filter(|_| answer.closer_nodes);
        let closer_nodes = target.map_or_else(Vec::new, |target| {
            let state = lock(&self.state);
            state.table.closest(&target, K).iter().map(|node| node.address).collect()
        });
        let response = Response {
            tid: incoming.request.tid,
            to: Some(wire_address(to)),
            id: self.id_on(&incoming.socket),
            token: answer.token.then(|| self.io.issue_token(to)),
            closer_nodes,
            error: answer.error,
            value: answer.value,
        };
        let packet = response.encode();
        let limit = MAX_AMPLIFICATION * incoming.size;
        // A token that is not valid was refused before.
        let shows_token = incoming.request.token.is_some() && to == incoming.from;
        if packet.len() <= limit || shows_token {
            return incoming.socket.send(&packet, to);
        }
        let verdict = lock(&self.validation).admit(to, packet.len());
        match verdict {
            Verdict::Send => incoming.socket.send(&packet, to),
            Verdict::Drop => tracing::debug!(%to, "an address that is sent too much"),
            Verdict::Unproven => match within(&response, limit) {
                // Fewer nodes lead there as well: see docs/decisions.md.
                Some(short) if short.value.is_some() || response.value.is_none() => {
                    incoming.socket.send(&short.encode(), to);
                }
                _ => self.ask_for_proof(incoming, to, response),
            },
        }
    }

    /// Pings an address; the answer waits for what comes of that. Whoever repeats the question and is silent
    /// gets what fits.
    fn ask_for_proof(&self, incoming: &Incoming, to: SocketAddr, response: Response) {
        let socket = incoming.socket.clone();
        let tid = response.tid;
        let short = Response { value: None, ..response.clone() };
        let (is_waiting, ping_id) = {
            let mut validation = lock(&self.validation);
            let is_waiting = validation.wait(to, tid, LongAnswer { response, socket });
            (is_waiting, validation.ping_id(to))
        };
        if !is_waiting {
            let short = within(&short, MAX_AMPLIFICATION * incoming.size);
            return short.iter().for_each(|short| incoming.socket.send(&short.encode(), to));
        }
        let ping = Request {
            tid: ping_id,
            to: wire_address(to),
            id: self.id_on(&incoming.socket),
            token: None,
            internal: true,
            command: PING,
            target: None,
            value: None,
        };
        incoming.socket.send(&ping.encode(), to);
    }

    /// A response that answers no request of ours may answer a ping for a proof.
    pub(super) fn on_other_response(&self, from: SocketAddr, tid: u16) {
        let is_proof = lock(&self.validation).is_ping_id(from, tid);
        if is_proof {
            self.on_proof(from);
        }
    }

    /// An address proved that somebody receives there: what waited for that is sent.
    pub(super) fn on_proof(&self, address: SocketAddr) {
        let answers = {
            let mut validation = lock(&self.validation);
            validation.prove(address);
            validation.take_waiting(address)
        };
        for LongAnswer { response, socket } in answers {
            let packet = response.encode();
            if lock(&self.validation).admit(address, packet.len()) == Verdict::Send {
                socket.send(&packet, address);
            }
        }
    }

    /// To be called every [`DRAIN_INTERVAL`](super::io::DRAIN_INTERVAL).
    pub(super) fn forget_waiting(&self) {
        lock(&self.validation).tick();
    }
}

/// `response` with as many of its nodes as fit into `limit` bytes, and without its value when that does not
/// fit. `None` when nothing does.
fn within(response: &Response, limit: usize) -> Option<Response> {
    let bare = |value: Option<Bytes>| {
        let short = Response { closer_nodes: Vec::new(), value, ..response.clone() };
        let length = short.encode().len();
        (length <= limit).then_some((short, length))
    };
    let (mut short, length) = bare(response.value.clone()).or_else(|| bare(None))?;
    // One byte says how many nodes follow.
    let nodes = (limit - length).saturating_sub(1) / NODE_BYTES;
    short.closer_nodes = response.closer_nodes.iter().copied().take(nodes).collect();
    Some(short)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::UdpSocket;

    use super::*;
    use crate::crypto::{self, KeyPair};
    use crate::encoding::Writer;
    use crate::hyperdht::messages::commands;
    use crate::hyperdht::messages::records::{Announce, MutableValue};
    use crate::hyperdht::rpc::message::{Message, NodeId};
    use crate::hyperdht::rpc::serve::{DELAYED_PING, DOWN_HINT, FIND_NODE, PING_NAT};
    use crate::hyperdht::rpc::table::K;
    use crate::hyperdht::{HyperDht, Testnet};

    const TOPIC: NodeId = [7; 32];
    const PATIENCE: Duration = Duration::from_secs(20);

    /// A network whose first node knows as much as it can about everything.
    struct Fixture {
        testnet: Testnet,
        value: Bytes,
        immutable: NodeId,
        mutable: NodeId,
        peer: NodeId,
    }

    impl Fixture {
        async fn start() -> Self {
            let testnet = Testnet::start(24).await.unwrap();
            let value = Bytes::from(vec![5; 900]);
            let immutable = crypto::hash(&[&value]);
            let keys = KeyPair::generate();
            let peer = crypto::hash(&[keys.public_key().as_bytes()]);
            let from: SocketAddr = "10.0.0.1:1".parse().unwrap();
            {
                let mut store = lock(&testnet.nodes()[0].inner().store);
                for target in std::iter::once(peer).chain([TOPIC; 24]) {
                    let keys = if target == peer { keys.clone() } else { KeyPair::generate() };
                    let relays = vec!["1.2.3.4:5".parse().unwrap(); 3];
                    let (id, token, kind) = ([1; 32], [2; 32], commands::ANNOUNCE);
                    let announce = Announce::signed(kind, &keys, relays, &target, &id, &token);
                    store.announce(from, &target, &id, &token, &announce.encode());
                }
                store.put_immutable(from, &immutable, &value);
                let message = Writer::new().uint(1).buffer(&value).as_slice().to_vec();
                let put = commands::MUTABLE_PUT;
                let mut signed = crate::hyperdht::messages::namespace(put).to_vec();
                signed.extend_from_slice(&crypto::hash(&[&message]));
                let signature = keys.sign(&signed);
                let mutable = MutableValue { seq: 1, value: value.to_vec(), signature };
                let put = [&keys.public_key().as_bytes()[..], &mutable.encode()].concat();
                store.put_mutable(from, &peer, &put);
            }
            Self { testnet, value, immutable, mutable: peer, peer }
        }

        fn node(&self) -> &HyperDht {
            &self.testnet.nodes()[0]
        }
    }

    /// A socket that asks the node, and says nothing unless it is told to.
    struct Stranger {
        socket: UdpSocket,
        node: SocketAddr,
    }

    impl Stranger {
        async fn of(node: &HyperDht) -> Self {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            Self { socket, node: node.local_addr() }
        }

        fn request(&self, internal: bool, command: u64) -> Request {
            let SocketAddr::V4(to) = self.node else { panic!("not IPv4") };
            let (id, token, target, value) = (None, None, None, None);
            Request { tid: 1, to, id, token, internal, command, target, value }
        }

        /// Returns how many bytes were sent.
        async fn ask(&self, request: &Request) -> usize {
            self.socket.send_to(&request.encode(), self.node).await.unwrap()
        }

        async fn next(&self) -> (usize, Message) {
            let mut packet = vec![0; 2048];
            let received = tokio::time::timeout(PATIENCE, self.socket.recv_from(&mut packet));
            let (length, _) = received.await.expect("the node is silent").unwrap();
            (length, Message::decode(&Bytes::copy_from_slice(&packet[..length])).unwrap())
        }

        async fn next_response(&self) -> Response {
            match self.next().await.1 {
                Message::Response(response) => response,
                Message::Request(request) => panic!("{request:?}"),
            }
        }

        async fn answer(&self, ping: &Request) {
            let pong = Response { tid: ping.tid, to: Some(ping.to), ..Response::default() };
            self.socket.send_to(&pong.encode(), self.node).await.unwrap();
        }

        /// Bytes of everything that came before the answer to a last ping.
        async fn count(&self) -> usize {
            let last = Request { tid: 9999, ..self.request(true, PING) };
            self.ask(&last).await;
            let mut bytes = 0;
            loop {
                match self.next().await {
                    (_, Message::Response(response)) if response.tid == 9999 => return bytes,
                    (length, _) => bytes += length,
                }
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn no_question_brings_a_stranger_more_than_four_times_its_bytes() {
        let fixture = Fixture::start().await;
        let targets = [fixture.immutable, fixture.mutable, fixture.peer, TOPIC, [9; 32]];
        let mut asked = Vec::new();
        let internal = [PING, PING_NAT, FIND_NODE, DOWN_HINT, DELAYED_PING, 5, 99];
        let commands = internal.map(|command| (true, command));
        let commands = commands.into_iter().chain((0..=12).map(|command| (false, command)));
        for (internal, command) in commands {
            let values: [Option<&'static [u8]>; 4] =
                [None, Some(&[0]), Some(&[0; 6]), Some(&[1, 2, 0, 0])];
            for value in values {
                for target in targets.iter().copied().map(Some).chain([None]) {
                    for token in [None, Some([3; 32])] {
                        let stranger = Stranger::of(fixture.node()).await;
                        let value = value.map(Bytes::from_static);
                        let plain = stranger.request(internal, command);
                        let request = Request { target, value, token, ..plain };
                        let sent = stranger.ask(&request).await;
                        asked.push((stranger, request, sent));
                    }
                }
            }
        }
        let mut total = 0;
        for (stranger, request, sent) in asked {
            let received = stranger.count().await;
            assert!(received <= MAX_AMPLIFICATION * sent, "{received} for {sent}: {request:?}");
            total += received;
        }
        assert!(total > 10_000, "nothing was answered: {total}");
        fixture.testnet.close().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn whoever_answers_a_ping_gets_everything() {
        let fixture = Fixture::start().await;
        let gets = [
            (commands::IMMUTABLE_GET, fixture.immutable, None, 900),
            (commands::MUTABLE_GET, fixture.mutable, Some(Bytes::from_static(&[0])), 900),
            (commands::LOOKUP, TOPIC, None, 20 * 51),
        ];
        for (command, target, value, length) in gets {
            let stranger = Stranger::of(fixture.node()).await;
            let plain = stranger.request(false, command);
            let request = Request { target: Some(target), value, ..plain };
            stranger.ask(&request).await;
            let Message::Request(ping) = stranger.next().await.1 else { panic!("no ping") };
            assert!(ping.internal && ping.command == PING);
            stranger.answer(&ping).await;
            for _ in 0..2 {
                let response = stranger.next_response().await;
                assert!(response.value.is_some_and(|value| value.len() >= length));
                assert_eq!((response.closer_nodes.len(), response.tid), (K, request.tid));
                // From now on at once.
                stranger.ask(&request).await;
            }
        }
        fixture.testnet.close().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn whoever_shows_a_token_gets_everything() {
        let fixture = Fixture::start().await;
        let stranger = Stranger::of(fixture.node()).await;
        let plain = stranger.request(false, commands::FIND_PEER);
        let request = Request { target: Some(fixture.peer), ..plain };
        stranger.ask(&request).await;
        let short = stranger.next_response().await;
        assert!(short.value.is_some(), "a peer's record fits");
        assert!(!short.closer_nodes.is_empty() && short.closer_nodes.len() < K);
        let request = Request {
            command: commands::IMMUTABLE_GET,
            target: Some(fixture.immutable),
            token: short.token,
            ..request
        };
        stranger.ask(&request).await;
        let response = stranger.next_response().await;
        assert_eq!(response.value, Some(fixture.value.clone()));
        assert_eq!(response.closer_nodes.len(), K);
        fixture.testnet.close().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_guessed_or_foreign_answer_proves_nothing() {
        let fixture = Fixture::start().await;
        let (victim, other) =
            (Stranger::of(fixture.node()).await, Stranger::of(fixture.node()).await);
        let plain = victim.request(false, commands::IMMUTABLE_GET);
        let request = Request { target: Some(fixture.immutable), ..plain };
        victim.ask(&request).await;
        let Message::Request(ping) = victim.next().await.1 else { panic!("no ping") };
        // The right id from elsewhere, and a wrong one from there.
        other.answer(&ping).await;
        victim.answer(&Request { tid: ping.tid ^ 1, ..ping.clone() }).await;
        // Asked again it is pinged again, and in the end answered without the value.
        let response = loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            victim.ask(&request).await;
            match victim.next().await.1 {
                Message::Response(response) => break response,
                Message::Request(again) => assert_eq!(again.command, PING),
            }
        };
        assert_eq!((response.value, response.token.is_some()), (None, true));
        assert!(!response.closer_nodes.is_empty());
        fixture.testnet.close().await;
    }
}
