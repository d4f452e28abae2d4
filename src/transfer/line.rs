//! The line to a peer: its channel while there is one, and how many books flow over it.

use std::collections::HashSet;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::live::Live;
use super::message::Message;
use crate::sync::lock;

/// What there is of one peer while it is or was connected.
#[derive(Default)]
pub(super) struct Line {
    /// Held while the connection comes or goes.
    pub(super) turn: tokio::sync::Mutex<()>,
    link: Mutex<Option<Link>>,
    /// Whether somebody waits for the turn to ask for what is queued.
    pub(super) is_to_ask: AtomicBool,
    /// Outgoing transfers that may flow now.
    slots: Mutex<HashSet<String>>,
}

/// The open `alex/p2p` channel of a peer.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) number: u64,
    pub(super) outbox: mpsc::Sender<Letter>,
    /// Ends the channel.
    pub(super) hang_up: CancellationToken,
}

/// A message on its way out.
pub(super) struct Letter {
    pub(super) message: Message,
    /// What the peer knows once this is sent.
    pub(super) tells: Option<Tells>,
}

/// What a message tells a peer of a book that it sends.
pub(super) enum Tells {
    /// How the transfer with this id ended.
    End(String),
    /// That the book is whole, which is not on the disk yet.
    Whole(Arc<Live>),
}

impl Line {
    /// The open channel.
    pub(super) fn link(&self) -> Option<Link> {
        lock(&self.link).clone()
    }

    /// Makes `link` the peer's. Gives back the one before it.
    pub(super) fn connect(&self, link: Link) -> Option<Link> {
        lock(&self.link).replace(link)
    }

    /// Forgets the link with that number. False when another has taken its place.
    pub(super) fn disconnect(&self, number: u64) -> bool {
        let mut link = lock(&self.link);
        let is_it = link.as_ref().is_some_and(|link| link.number == number);
        if is_it {
            *link = None;
        }
        is_it
    }

    /// Whether one of `at_once` slots is free.
    pub(super) fn has_free_slot(&self, at_once: usize) -> bool {
        lock(&self.slots).len() < at_once
    }

    /// Takes one of `at_once` slots for a transfer.
    pub(super) fn take_slot(&self, id: &str, at_once: usize) -> bool {
        let mut slots = lock(&self.slots);
        if slots.contains(id) {
            return true;
        }
        let free = slots.len() < at_once;
        if free {
            slots.insert(id.to_owned());
        }
        free
    }

    /// Gives a slot back.
    pub(super) fn free_slot(&self, id: &str) -> bool {
        lock(&self.slots).remove(id)
    }
}
