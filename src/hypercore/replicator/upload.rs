//! The requests of one peer that wait for their answers.
//!
//! Bounded: a peer that asks for more than [`MAX_WAITING`] things at once breaks the protocol. A
//! cancelled request leaves a gap that is dropped when its turn comes, so that cancelling costs the
//! same however long the queue is.

use std::collections::{HashMap, VecDeque};

use super::Violation;
use crate::hypercore::messages::Request;

/// The most requests that may wait. npm hypercore has at most 512 in flight; it may cancel and ask
/// again before the first answers arrive.
pub(super) const MAX_WAITING: usize = 4096;

/// Requests in the order in which they are answered.
#[derive(Debug, Default)]
pub(super) struct UploadQueue {
    urgent: VecDeque<(u64, Request)>,
    normal: VecDeque<(u64, Request)>,
    /// The live ticket of each request id; entries of the queues with another ticket are gaps.
    live: HashMap<u64, u64>,
    ticket: u64,
}

impl UploadQueue {
    /// Queues a request; one with the same id replaces it.
    pub(super) fn push(&mut self, request: Request) -> Result<(), Violation> {
        self.ticket += 1;
        self.live.insert(request.id, self.ticket);
        if self.urgent.len() + self.normal.len() >= MAX_WAITING {
            if self.live.len() > MAX_WAITING / 2 {
                return Err(Violation::TooManyRequests);
            }
            let live = &self.live;
            let keep = |(ticket, request): &(u64, Request)| live.get(&request.id) == Some(ticket);
            self.urgent.retain(keep);
            self.normal.retain(keep);
        }
        let queue = if request.priority > 0 { &mut self.urgent } else { &mut self.normal };
        queue.push_back((self.ticket, request));
        Ok(())
    }

    /// Drops the request with this id, if it waits.
    pub(super) fn cancel(&mut self, id: u64) {
        self.live.remove(&id);
    }

    /// The next request to answer.
    pub(super) fn pop(&mut self) -> Option<Request> {
        loop {
            let (ticket, request) = self.urgent.pop_front().or_else(|| self.normal.pop_front())?;
            if self.live.get(&request.id) == Some(&ticket) {
                self.live.remove(&request.id);
                return Some(request);
            }
        }
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// Drops everything.
    pub(super) fn clear(&mut self) {
        *self = Self { ticket: self.ticket, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: u64, priority: u64) -> Request {
        Request { id, priority, ..Request::default() }
    }

    #[test]
    fn requests_are_answered_in_order_and_urgent_ones_first() {
        let mut queue = UploadQueue::default();
        for (id, priority) in [(1, 0), (2, 0), (3, 1)] {
            queue.push(request(id, priority)).unwrap();
        }
        queue.cancel(1);
        assert_eq!(queue.pop().map(|r| r.id), Some(3));
        assert_eq!(queue.pop().map(|r| r.id), Some(2));
        assert_eq!(queue.pop(), None);
        assert!(queue.is_empty());
    }

    #[test]
    fn asking_and_cancelling_forever_stays_bounded() {
        let mut queue = UploadQueue::default();
        for id in 0..100_000 {
            queue.push(request(id, 0)).unwrap();
            queue.cancel(id);
        }
        assert!(queue.normal.len() <= MAX_WAITING);
    }

    #[test]
    fn asking_for_too_much_at_once_is_a_violation() {
        let mut queue = UploadQueue::default();
        let refused = (0..=MAX_WAITING as u64).find_map(|id| queue.push(request(id, 0)).err());
        assert_eq!(refused, Some(Violation::TooManyRequests));
    }

    #[test]
    fn an_id_used_again_replaces_the_request() {
        let mut queue = UploadQueue::default();
        queue.push(Request { fork: 1, ..request(5, 0) }).unwrap();
        queue.push(Request { fork: 2, ..request(5, 0) }).unwrap();
        assert_eq!(queue.pop().map(|r| r.fork), Some(2));
        assert_eq!(queue.pop(), None);
    }
}
