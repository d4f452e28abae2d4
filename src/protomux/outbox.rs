//! What waits to be sent on a connection, and the room that is left.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::MuxError;
use super::limits::{MAX_OUTBOX, MESSAGE_COST, WRITE_BATCH};

/// One message of the stream below, in parts, and what it counts while it waits.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) parts: Vec<Bytes>,
    cost: u32,
}

impl Frame {
    /// A channel's message. Room for it is taken before it is queued.
    pub(super) fn new(parts: Vec<Bytes>) -> Self {
        let bytes: usize = parts.iter().map(Bytes::len).sum();
        // The semaphore cannot give more than it has: a large message takes it all.
        let cost = bytes.saturating_add(MESSAGE_COST).min(MAX_OUTBOX) as u32;
        Self { parts, cost }
    }

    /// The room that the frame takes.
    pub(super) fn cost(&self) -> u32 {
        self.cost
    }

    /// A control message, which takes no room; the reader bounds how many there are.
    pub(super) fn control(bytes: Bytes) -> Self {
        Self { parts: vec![bytes], cost: 0 }
    }
}

/// The room for waiting messages, in bytes.
#[derive(Debug)]
pub(super) struct Room(Semaphore);

impl Room {
    pub(super) fn new() -> Self {
        Self(Semaphore::new(MAX_OUTBOX))
    }

    /// Waits for the room that a frame takes; first come, first served. Cancel safe.
    pub(super) async fn take(&self, frame: &Frame) -> Result<(), MuxError> {
        self.0.acquire_many(frame.cost).await.map_err(|_| MuxError::Closed)?.forget();
        Ok(())
    }

    /// Takes the room if it is there.
    pub(super) fn try_take(&self, frame: &Frame) -> Result<bool, MuxError> {
        match self.0.try_acquire_many(frame.cost) {
            Ok(permit) => {
                permit.forget();
                Ok(true)
            }
            Err(tokio::sync::TryAcquireError::NoPermits) => Ok(false),
            Err(tokio::sync::TryAcquireError::Closed) => Err(MuxError::Closed),
        }
    }

    /// Gives back what a frame took.
    pub(super) fn give_back(&self, cost: u32) {
        self.0.add_permits(cost as usize);
    }

    /// Fails everyone who waits, now and later.
    pub(super) fn close(&self) {
        self.0.close();
    }
}

/// Frames in the order in which they leave.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    frames: VecDeque<Frame>,
    control: usize,
}

impl Outbox {
    pub(super) fn push(&mut self, frame: Frame) {
        self.control += usize::from(frame.cost == 0);
        self.frames.push_back(frame);
    }

    /// How many control messages wait.
    pub(super) fn control(&self) -> usize {
        self.control
    }

    /// Takes as many frames as are written at a time, and how much room they give back.
    pub(super) fn take(&mut self) -> (Vec<Frame>, u32) {
        let (mut taken, mut bytes, mut cost) = (Vec::new(), 0, 0);
        while bytes < WRITE_BATCH
            && let Some(frame) = self.frames.pop_front()
        {
            bytes += frame.parts.iter().map(Bytes::len).sum::<usize>() + MESSAGE_COST;
            cost += frame.cost;
            self.control -= usize::from(frame.cost == 0);
            taken.push(frame);
        }
        (taken, cost)
    }
}
