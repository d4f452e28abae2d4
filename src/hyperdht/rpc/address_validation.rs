//! Whether whoever asks receives at the address that it asks from. Otherwise a small question under the
//! name of another would have us flood that other with a long answer.
//!
//! An answer of up to [`MAX_AMPLIFICATION`] times the bytes of its question goes to anybody, as in QUIC
//! (RFC 9000, section 8.1). A longer one goes to whoever shows a token, and to an address that answered
//! a packet of ours within the last minute. Npm's clients show a token only when they store something, but answer
//! pings: so an address that we know nothing of is pinged, and the long answer waits for the answer to
//! that. The ping's transaction id is computed of the address and a secret, and nothing has to be
//! remembered for it.
//!
//! A node of the DHT answers pings whether it asked or not: so only so much goes to one address.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::Instant;

use super::super::cache::{ExpiringMap, Key};
use super::token::TokenSecrets;
use crate::crypto;
use crate::rate_limit::RateLimit;

/// How many times the bytes of a question an answer has at most, to an address that proved nothing.
pub(crate) const MAX_AMPLIFICATION: usize = 4;

/// How long an address counts as valid, and how many do. Short, because a transaction id has 16 bits: to
/// guess one takes about as many bytes as it would then bring.
const VALID_FOR: Duration = Duration::from_secs(60);
const MAX_VALID: usize = 4096;

/// Bytes of long answers to one address, a second and at once. Beyond that the question is not answered,
/// and whoever asked repeats it.
const LONG_BYTES_RATE: u32 = 4 * 1024;
const LONG_BYTES_BURST: u32 = 128 * 1024;

/// How long an address is waited for: until a client that repeats its question every second has done so
/// twice. Who asks then is answered as well as can be.
const MAX_WAIT: Duration = Duration::from_millis(1800);
/// How long an answer is kept, for a client whose packets take long.
const MAX_AGE: Duration = Duration::from_secs(10);
/// Answers that wait at once, in all and for one address. Beyond that an address is pinged nevertheless,
/// and valid when it repeats its question.
const MAX_WAITING: usize = 512;
const MAX_WAITING_PER_ADDRESS: usize = 16;

/// What to do with a long answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Send it.
    Send,
    /// Too much went there: send nothing.
    Drop,
    /// Ping the address.
    Unproven,
}

/// A long answer that waits.
struct Waiting<A> {
    to: SocketAddr,
    /// The question's transaction id.
    tid: u16,
    since: Instant,
    answer: A,
}

/// The addresses that proved themselves, and the answers that wait for one.
pub(crate) struct AddressValidation<A> {
    secrets: TokenSecrets,
    /// How much may still go to each valid address.
    valid: ExpiringMap<RateLimit>,
    waiting: VecDeque<Waiting<A>>,
}

impl<A> AddressValidation<A> {
    pub(crate) fn new() -> Self {
        Self {
            secrets: TokenSecrets::new(),
            valid: ExpiringMap::new(MAX_VALID, VALID_FOR),
            waiting: VecDeque::new(),
        }
    }

    /// An address answered us, or showed a token.
    pub(crate) fn prove(&mut self, address: SocketAddr) {
        let key = key_of(address);
        if self.valid.get(&key).is_none() {
            self.valid.insert(key, RateLimit::new(LONG_BYTES_RATE, LONG_BYTES_BURST));
        }
    }

    /// Whether `bytes` may go to `address`; counts them if so.
    pub(crate) fn admit(&mut self, address: SocketAddr, bytes: usize) -> Verdict {
        let Some(limit) = self.valid.get_mut(&key_of(address)) else { return Verdict::Unproven };
        // This machine may ask as it likes.
        let is_allowed = address.ip().is_loopback() || limit.allow_amount(bytes);
        if is_allowed { Verdict::Send } else { Verdict::Drop }
    }

    /// The transaction id of a ping to `address`.
    pub(crate) fn ping_id(&self, address: SocketAddr) -> u16 {
        self.secrets.ping_id(address)
    }

    /// Whether a response with this transaction id answers a ping of the last 15 s to `address`.
    pub(crate) fn is_ping_id(&self, address: SocketAddr, tid: u16) -> bool {
        self.secrets.accepts_ping_id(address, tid)
    }

    /// Keeps an answer until `to` has proved itself, when there is room. A question that is repeated has one
    /// answer. False when it is time to give up: the address is silent.
    pub(crate) fn wait(&mut self, to: SocketAddr, tid: u16, answer: A) -> bool {
        let of_address = self.waiting.iter().filter(|waiting| waiting.to == to);
        let (mut count, mut asked_before) = (0, None);
        for waiting in of_address {
            count += 1;
            if waiting.tid == tid {
                asked_before = Some(waiting.since);
            }
        }
        if let Some(since) = asked_before {
            return since.elapsed() < MAX_WAIT;
        }
        if self.waiting.len() < MAX_WAITING && count < MAX_WAITING_PER_ADDRESS {
            self.waiting.push_back(Waiting { to, tid, since: Instant::now(), answer });
        }
        true
    }

    /// The answers that waited for `address`.
    pub(crate) fn take_waiting(&mut self, address: SocketAddr) -> Vec<A> {
        let (ready, waiting) =
            std::mem::take(&mut self.waiting).into_iter().partition(|it| it.to == address);
        self.waiting = waiting;
        let ready: VecDeque<Waiting<A>> = ready;
        ready.into_iter().map(|waiting| waiting.answer).collect()
    }

    /// Forgets what waited in vain and renews the secrets. To be called every
    /// [`DRAIN_INTERVAL`](super::io::DRAIN_INTERVAL).
    pub(crate) fn tick(&mut self) {
        self.secrets.tick();
        self.valid.sweep();
        while self.waiting.front().is_some_and(|waiting| waiting.since.elapsed() >= MAX_AGE) {
            self.waiting.pop_front();
        }
    }
}

fn key_of(address: SocketAddr) -> Key {
    let port = address.port().to_le_bytes();
    match address.ip() {
        IpAddr::V4(ip) => crypto::hash(&[&ip.octets(), &port]),
        IpAddr::V6(ip) => crypto::hash(&[&ip.octets(), &port]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([20, 1, 2, 3], port))
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_is_valid_for_a_minute_and_its_neighbour_never() {
        let mut validation = AddressValidation::<()>::new();
        assert_eq!(validation.admit(address(1), 1000), Verdict::Unproven);
        validation.prove(address(1));
        assert_eq!(validation.admit(address(1), 1000), Verdict::Send);
        assert_eq!(validation.admit(address(2), 1000), Verdict::Unproven);
        tokio::time::advance(VALID_FOR).await;
        assert_eq!(validation.admit(address(1), 1000), Verdict::Unproven);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_proves_itself_unasked_is_sent_a_bounded_amount() {
        let mut validation = AddressValidation::<()>::new();
        let mut sent = 0;
        for _ in 0..60_000 {
            tokio::time::advance(Duration::from_millis(1)).await;
            match validation.admit(address(1), 1000) {
                Verdict::Send => sent += 1000,
                Verdict::Drop => {}
                Verdict::Unproven => validation.prove(address(1)),
            }
        }
        let bound = LONG_BYTES_BURST + 60 * LONG_BYTES_RATE;
        assert!(sent > LONG_BYTES_BURST && sent <= bound, "{sent} of {bound}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_ping_counts_for_its_address_and_for_two_turns_of_the_secrets() {
        let mut validation = AddressValidation::<()>::new();
        let tid = validation.ping_id(address(1));
        assert!(validation.is_ping_id(address(1), tid));
        // One of 2^15 other addresses has the same id by chance.
        let others = (2..100).filter(|port| validation.is_ping_id(address(*port), tid)).count();
        assert!(others < 3, "{others}");
        (0..19).for_each(|_| validation.tick());
        assert!(validation.is_ping_id(address(1), tid));
        let ids: Vec<u16> = (0..4)
            .map(|_| {
                (0..20).for_each(|_| validation.tick());
                validation.ping_id(address(1))
            })
            .collect();
        assert!(ids.iter().any(|id| *id != tid), "{ids:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_bounded_and_ends() {
        let mut validation = AddressValidation::new();
        for round in 0..2000u16 {
            assert!(validation.wait(address(1 + round), 7, round));
            assert!(validation.wait(address(1 + round), 7, round));
        }
        assert_eq!(validation.waiting.len(), MAX_WAITING);
        assert_eq!(validation.take_waiting(address(1)), [0]);
        assert!((0..100).all(|tid| validation.wait(address(9999), tid, tid)));
        assert_eq!(validation.take_waiting(address(9999)).len(), 1, "there is room for one more");
        tokio::time::advance(MAX_WAIT).await;
        assert!(!validation.wait(address(2), 7, 0), "asked again, and silent");
        assert!(validation.wait(address(2), 8, 0), "another question");
        tokio::time::advance(MAX_AGE - MAX_WAIT).await;
        validation.tick();
        assert_eq!(validation.waiting.len(), 1);
        (0..100).for_each(|tid| _ = validation.wait(address(9999), tid, tid));
        assert_eq!(validation.take_waiting(address(9999)).len(), MAX_WAITING_PER_ADDRESS);
    }
}
