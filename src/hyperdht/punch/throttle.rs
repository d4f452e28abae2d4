//! How many punches with random ports there may be: each sends thousands of packets.
//!
//! The reference has one at a time and 20 s between them, also when a person waits and everything
//! that was learned before is void. Here a few may follow each other, as long as there are not many
//! in the long run, and a change of network starts anew.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::sync::lock;

/// Punches that may follow each other at once.
const BURST: u32 = 4;
/// After how long one more is allowed.
const REFILL: Duration = Duration::from_secs(20);
/// Punches at the same time.
const AT_ONCE: usize = 2;

#[derive(Debug)]
struct State {
    left: u32,
    /// Since when `left` counts.
    since: Instant,
    running: usize,
    /// The network for which this counts.
    network: u64,
}

/// The node's count of punches with random ports.
#[derive(Debug, Clone)]
pub(crate) struct Throttle {
    state: Arc<Mutex<State>>,
}

/// One punch that was allowed. It counts as running until dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    state: Arc<Mutex<State>>,
}

impl Throttle {
    pub(crate) fn new() -> Self {
        let state = State { left: BURST, since: Instant::now(), running: 0, network: 0 };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Allows a punch, or says no. `network` changes when our network does.
    pub(crate) fn allow(&self, network: u64) -> Option<Permit> {
        let mut state = lock(&self.state);
        let now = Instant::now();
        if state.network != network {
            (state.network, state.left, state.since) = (network, BURST, now);
        }
        while state.left < BURST && now.duration_since(state.since) >= REFILL {
            state.left += 1;
            state.since += REFILL;
        }
        if state.left == 0 || state.running >= AT_ONCE {
            return None;
        }
        if state.left == BURST {
            state.since = now;
        }
        state.left -= 1;
        state.running += 1;
        Some(Permit { state: Arc::clone(&self.state) })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        state.running = state.running.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_few_follow_each_other_then_one_in_twenty_seconds() {
        let throttle = Throttle::new();
        for _ in 0..BURST {
            assert!(throttle.allow(0).is_some());
        }
        assert!(throttle.allow(0).is_none());
        tokio::time::advance(REFILL).await;
        assert!(throttle.allow(0).is_some());
        assert!(throttle.allow(0).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_network_starts_anew() {
        let throttle = Throttle::new();
        while throttle.allow(0).is_some() {}
        assert!(throttle.allow(1).is_some());
    }

    #[tokio::test]
    async fn two_at_a_time() {
        let throttle = Throttle::new();
        let permits: Vec<Permit> = std::iter::from_fn(|| throttle.allow(0)).collect();
        assert_eq!(permits.len(), AT_ONCE);
        drop(permits);
        assert!(throttle.allow(0).is_some());
    }
}
