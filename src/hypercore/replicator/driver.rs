//! Runs one core's state machine with one peer over a protomux channel.
//!
//! Receiving and sending are two halves that never wait for each other: a peer that does not read
//! can stop what we send it, but not that we read what it sends. Messages are taken as many as have
//! arrived, verified one after the other, and only then is the lock taken again; so the cost of
//! waking and locking is shared by all blocks of a batch.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::time::sleep_until;

use super::peer::{Delivery, Outcome};
use super::requests::Asked;
use super::swarm::{Membership, Turn};
use super::{EventKind, Replicator, Violation};
use crate::hypercore::core::Reorg;
use crate::hypercore::messages::{Message, NoData, NoDataReason, Node, Request};
use crate::hypercore::{Applied, ApplyError, Core, CoreError};
use crate::protomux::{self, Channel};
use crate::sync::lock;

/// How many messages, and how many of their bytes, are taken at once.
const BATCH_MESSAGES: usize = 512;
const BATCH_BYTES: usize = 256 << 10;
/// How many bytes of answers are sent at once.
const ANSWER_BYTES: usize = 128 << 10;
/// From so many bytes on, reading and hashing is not done on the threads of the network.
const INLINE_BYTES: usize = 32 << 10;
/// From so many on, hashing what is in memory: two blocks of a book take less than going elsewhere.
const INLINE_HASHED_BYTES: usize = (128 << 10) + 1;
/// After so many requests that cannot be, the peer is dropped (as in npm hypercore).
const MAX_INVALID_REQUESTS: u32 = 64;

/// Why a channel ended.
#[derive(Debug)]
pub(super) enum End {
    /// The peer closed or rejected it, or the connection ended.
    Remote {
        /// Whether it was open before, so that this is no rejection.
        was_open: bool,
    },
    /// Neither side wants anything.
    Idle,
    /// The core was removed here.
    Removed,
    /// The peer broke the protocol.
    Violation(Violation),
}

impl From<Violation> for End {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

/// Replicates over an open channel until it ends.
pub(super) async fn run(
    replicator: &Replicator,
    membership: &Membership,
    channel: &Channel,
) -> End {
    tokio::select! {
        end = receive(replicator, membership, channel) => end,
        end = send(replicator, membership, channel) => end,
        () = membership.swarm.closed.cancelled() => End::Removed,
    }
}

async fn receive(replicator: &Replicator, membership: &Membership, channel: &Channel) -> End {
    loop {
        let Some(first) = channel.recv().await else { return End::Remote { was_open: true } };
        let mut bytes = first.data.len();
        let mut arrived = vec![first];
        while arrived.len() < BATCH_MESSAGES && bytes < BATCH_BYTES {
            let Some(Some(next)) = now(channel.recv()) else { break };
            bytes += next.data.len();
            arrived.push(next);
        }
        if let Err(violation) = take(replicator, membership, arrived).await {
            return violation.into();
        }
        membership.wake.notify_one();
    }
}

async fn take(
    replicator: &Replicator,
    membership: &Membership,
    arrived: Vec<protomux::Message>,
) -> Result<(), Violation> {
    let mut messages = Vec::with_capacity(arrived.len());
    for message in arrived {
        messages.extend(Message::decode(message.kind, &message.data)?);
    }
    let deliveries = membership.receive(messages)?;
    if deliveries.is_empty() {
        return Ok(());
    }
    let Some((deliveries, leaves)) = hashed(deliveries).await else { return Ok(()) };
    let mut outcomes = Vec::with_capacity(deliveries.len());
    let mut full = false;
    for (delivery, leaf) in deliveries.into_iter().zip(leaves) {
        let outcome = apply(replicator, membership, &delivery, leaf, &mut full)?;
        outcomes.push((delivery, outcome));
    }
    membership.finish(&outcomes)?;
    drop(outcomes);
    if full && let Err(error) = membership.swarm.core.room().await {
        fail(replicator, membership, &error);
    }
    Ok(())
}

/// The leaves of the blocks that were delivered. Many bytes are hashed off the network's threads;
/// `None` when the runtime shuts down.
async fn hashed(deliveries: Vec<Delivery>) -> Option<(Vec<Delivery>, Vec<Option<Node>>)> {
    let bytes = |delivery: &Delivery| delivery.data.block.as_ref().map_or(0, |b| b.value.len());
    let is_small = deliveries.iter().map(bytes).sum::<usize>() < INLINE_HASHED_BYTES;
    let hash = move || {
        let leaves = Core::leaves(deliveries.iter().map(|delivery| &delivery.data));
        (deliveries, leaves)
    };
    if is_small { Some(hash()) } else { crate::tasks::blocking(hash).await.ok() }
}

fn apply(
    replicator: &Replicator,
    membership: &Membership,
    delivery: &Delivery,
    leaf: Option<Node>,
    full: &mut bool,
) -> Result<Outcome, Violation> {
    let core = &membership.swarm.core;
    let result = match delivery.outstanding.asked {
        Asked::Check { length } => match core.contradicts(&delivery.data) {
            Ok(true) => Err(ApplyError::WrittenElsewhere { length }),
            Ok(false) => match membership.suspicion() {
                Some(violation) => return Err(violation),
                None => Ok(Applied::default()),
            },
            Err(error) => Err(error),
        },
        Asked::Fork { .. } => {
            core.start_reorg(&delivery.data).and_then(|reorg| go_on(membership, reorg))
        }
        Asked::Path { .. } => match membership.take_reorg() {
            Some(mut reorg) => core
                .continue_reorg(&mut reorg, &delivery.data)
                .and_then(|()| go_on(membership, reorg)),
            None => Err(ApplyError::Stale),
        },
        _ => core.apply_hashed(&delivery.data, leaf),
    };
    let error = match result {
        Ok(applied) => {
            *full |= applied.full;
            return Ok(Outcome::Applied);
        }
        Err(error) => error,
    };
    if error.is_violation() {
        let violation = Violation::Unverified(error.to_string());
        let maybe_written_twice = matches!(error, ApplyError::Signature | ApplyError::Checksum(_))
            && matches!(delivery.outstanding.asked, Asked::Upgrade { .. });
        if maybe_written_twice && membership.suspect(violation.clone()) {
            return Ok(Outcome::Retry);
        }
        return Err(violation);
    }
    match error {
        ApplyError::Core(error) => fail(replicator, membership, &error),
        // It was asked for with all its nodes, so an honest answer connects.
        ApplyError::Unconnected(_) if delivery.outstanding.depends_on.is_none() => {
            return Err(Violation::Unverified(error.to_string()));
        }
        ApplyError::Fork { .. } if delivery.outstanding.asked.is_fork() => {
            return Ok(Outcome::Useless);
        }
        ApplyError::WrittenElsewhere { length } => {
            membership.stop_downloading();
            replicator.emit(membership, EventKind::WrittenElsewhere { length });
        }
        _ => {}
    }
    Ok(Outcome::Retry)
}

/// Takes over a fork, or asks for what is still needed of it.
fn go_on(membership: &Membership, reorg: Reorg) -> Result<Applied, ApplyError> {
    match reorg.path() {
        Some(path) => {
            membership.keep_reorg(reorg, path);
            Ok(Applied::default())
        }
        None => {
            let full = membership.swarm.core.finish_reorg(reorg)?;
            Ok(Applied { full, ..Applied::default() })
        }
    }
}

/// Nothing can be stored: stop asking, and say so once. A core that was closed is no failure: whoever
/// opens it again goes on, and must not hear of this.
fn fail(replicator: &Replicator, membership: &Membership, error: &CoreError) {
    if !matches!(error, CoreError::Closed) && membership.swarm.fail(error) {
        replicator.emit(membership, EventKind::Failed { error: error.clone() });
    }
}

async fn send(replicator: &Replicator, membership: &Membership, channel: &Channel) -> End {
    let mut changes = membership.swarm.core.subscribe();
    let mut invalid = 0;
    loop {
        // Peers hear of a cut before their questions about what was are refused.
        membership.swarm.core.settled().await;
        let fork = membership.swarm.core.fork();
        changes.mark_unchanged();
        let Some(turn) = membership.turn() else { return End::Removed };
        let Turn { messages, requests, idle, deadline, violation } = turn;
        if let Some(violation) = violation {
            return violation.into();
        }
        let nothing = messages.is_empty() && requests.is_empty();
        let batch: Vec<(u32, Vec<Bytes>)> =
            messages.iter().map(|message| (message.kind(), message.encode_parts())).collect();
        if !batch.is_empty() && channel.send_batch(&batch).await.is_err() {
            return End::Remote { was_open: true };
        }
        match answer(replicator, membership, channel, (fork, requests), &mut invalid).await {
            Ok(true) => {}
            Ok(false) => return End::Remote { was_open: true },
            Err(violation) => return violation.into(),
        }
        if !nothing || membership.is_busy() {
            continue;
        }
        if idle {
            return End::Idle;
        }
        tokio::select! {
            () = membership.wake.notified() => {}
            changed = changes.changed() => if changed.is_err() { return End::Removed },
            () = until(deadline) => {}
        }
    }
}

/// Answers requests in batches; false when the channel has ended. Those that a cut overtakes, after which
/// the core is not at this fork any more, wait for the next turn.
async fn answer(
    replicator: &Replicator,
    membership: &Membership,
    channel: &Channel,
    (fork, requests): (u64, Vec<Request>),
    invalid: &mut u32,
) -> Result<bool, Violation> {
    let mut batch = Vec::new();
    let mut waiting = 0;
    let (mut blocks, mut bytes) = (0, 0);
    let Some(answers) = prove(replicator, membership, &requests).await else { return Ok(false) };
    let core = &membership.swarm.core;
    if core.is_being_cut() || core.fork() != fork {
        membership.ask_again(requests)?;
        return Ok(true);
    }
    for message in answers {
        if let Message::NoData(NoData { reason: NoDataReason::InvalidRequest, .. }) = message {
            *invalid += 1;
            if *invalid >= MAX_INVALID_REQUESTS {
                return Err(Violation::InvalidRequests);
            }
        }
        if let Message::Data(data) = &message
            && let Some(block) = &data.block
        {
            blocks += 1;
            bytes += block.value.len() as u64;
        }
        let wait = throttle(replicator, &message);
        let encoded = message.encode_parts();
        waiting += encoded.iter().map(Bytes::len).sum::<usize>();
        batch.push((message.kind(), encoded));
        if waiting >= ANSWER_BYTES || !wait.is_zero() {
            waiting = 0;
            if channel.send_batch(&std::mem::take(&mut batch)).await.is_err() {
                return Ok(false);
            }
            // Even a sleep of nothing waits for the timer's next tick.
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
        }
    }
    if !batch.is_empty() && channel.send_batch(&batch).await.is_err() {
        return Ok(false);
    }
    if blocks > 0 {
        membership.uploaded(blocks, bytes);
    }
    Ok(true)
}

/// How long the upload limit makes everybody wait after this message.
fn throttle(replicator: &Replicator, message: &Message) -> Duration {
    let (Some(limit), Message::Data(data)) = (&replicator.inner.upload_limit, message) else {
        return Duration::ZERO;
    };
    let bytes = data.block.as_ref().map_or(0, |block| block.value.len() as u64);
    lock(limit).charge(bytes)
}

/// The answers to requests, as far as this peer may have them. Reading and hashing many bytes is done
/// off the network's threads; `None` when the runtime shuts down.
async fn prove(
    replicator: &Replicator,
    membership: &Membership,
    requests: &[Request],
) -> Option<Vec<Message>> {
    let core = &membership.swarm.core;
    let may_have = |request: &Request| {
        request.fork == core.fork() && membership.swarm.uploads_to(&membership.public_key)
    };
    let allowed: Vec<bool> = requests.iter().map(may_have).collect();
    let asked: Vec<Request> = requests
        .iter()
        .zip(&allowed)
        .filter(|(_, allowed)| **allowed)
        .map(|(request, _)| request.clone())
        .collect();
    let average = core.byte_length() / core.length().max(1);
    let is_small = average.saturating_mul(asked.len() as u64) < INLINE_BYTES as u64;
    let mut proofs = if is_small || core.is_in_memory() {
        core.prove_all(&asked)
    } else {
        let core = core.clone();
        crate::tasks::blocking(move || core.prove_all(&asked)).await.ok()?
    }
    .into_iter();
    let answer = |(request, allowed): (&Request, bool)| {
        // npm hypercore asks a peer for nothing more that has often said `NotAvailable`.
        let reason = match request.fork == core.fork() {
            true => NoDataReason::NotAvailable,
            false => NoDataReason::Unspecified,
        };
        let refused = no_data(request, reason);
        if !allowed {
            return refused;
        }
        match proofs.next() {
            Some(Ok(Some(data))) => Message::Data(data),
            Some(Ok(None)) | None => refused,
            Some(Err(CoreError::InvalidRequest(_))) => {
                no_data(request, NoDataReason::InvalidRequest)
            }
            Some(Err(error)) => {
                membership.swarm.note_unreadable(membership.public_key, error.clone());
                replicator.emit(membership, EventKind::Unreadable { error });
                refused
            }
        }
    };
    Some(requests.iter().zip(allowed).map(answer).collect())
}

fn no_data(request: &Request, reason: NoDataReason) -> Message {
    Message::NoData(NoData { request: request.id, reason })
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// What a cancel-safe future gives without waiting.
fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}
