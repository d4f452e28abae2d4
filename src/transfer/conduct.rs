//! How often a peer may say what on one connection, over all channels that it opens there.
//!
//! What costs little is counted, and beyond its rate the connection ends; what must be answered is slowed down by
//! reading no further for a moment.

use std::time::Duration;

use crate::rate_limit::RateLimit;

/// How many messages of a connection may be nonsense before it is closed.
const MAX_NONSENSE: u32 = 32;
/// How often the channel may be opened: so many times at once, and then once so many seconds.
const HELLO_BURST: u32 = 16;
const HELLOS_A_SECOND: u32 = 1;
/// Messages that change nothing: about what is not there, or has been said before. A peer that comes back repeats
/// its open requests, and up to 100 ends that it could not tell.
const USELESS_BURST: u32 = 1024;
const USELESS_A_SECOND: u32 = 64;
/// Requests for books that are not here. A peer may have an old catalog, and ask for all of it.
const UNKNOWN_BURST: u32 = 256;
const UNKNOWN_A_SECOND: u32 = 256;
/// The longest pause for one of them.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What is counted of a connection.
pub(super) struct Conduct {
    nonsense: u32,
    useless: RateLimit,
    unknown: RateLimit,
}

impl Default for Conduct {
    fn default() -> Self {
        Self {
            nonsense: 0,
            useless: RateLimit::new(USELESS_A_SECOND, USELESS_BURST),
            unknown: RateLimit::new(UNKNOWN_A_SECOND, UNKNOWN_BURST),
        }
    }
}

impl Conduct {
    /// A message could not be read.
    ///
    /// # Errors
    ///
    /// What the peer did wrong: the connection is to end.
    pub(super) fn nonsense(&mut self, why: &str) -> Result<(), String> {
        self.nonsense += 1;
        allow(self.nonsense <= MAX_NONSENSE, why)
    }

    /// A message changed nothing.
    ///
    /// # Errors
    ///
    /// As [`Conduct::nonsense`].
    pub(super) fn useless(&mut self) -> Result<(), String> {
        allow(self.useless.allow(), "keeps sending messages that lead nowhere")
    }

    /// A request is for a book that is not here. Gives how long nothing more is to be read.
    pub(super) fn unknown_book(&mut self) -> Duration {
        self.unknown.charge(1).min(LONGEST_PAUSE)
    }
}

/// How often a peer may open the channel again on one connection, saying hello each time.
pub(super) fn hello_limit() -> RateLimit {
    RateLimit::new(HELLOS_A_SECOND, HELLO_BURST)
}

fn allow(is_fine: bool, why: &str) -> Result<(), String> {
    if is_fine { Ok(()) } else { Err(why.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_comes_back_with_much_to_say_is_heard_and_a_flood_is_not() {
        let mut conduct = Conduct::default();
        assert!((0..USELESS_BURST).all(|_| conduct.useless().is_ok()));
        assert!(conduct.useless().is_err());
        tokio::time::advance(Duration::from_secs(20)).await;
        assert!((0..1000).all(|_| conduct.useless().is_ok()));
        assert!((0..MAX_NONSENSE).all(|_| conduct.nonsense("?").is_ok()));
        assert!(conduct.nonsense("?").is_err());
        tokio::time::advance(Duration::from_secs(1000)).await;
        assert!(conduct.nonsense("?").is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn requests_for_unknown_books_are_slowed_down() {
        let mut conduct = Conduct::default();
        let began = tokio::time::Instant::now();
        for _ in 0..UNKNOWN_BURST + 10 * UNKNOWN_A_SECOND {
            tokio::time::sleep(conduct.unknown_book()).await;
        }
        assert!(began.elapsed() >= Duration::from_secs(9), "{:?}", began.elapsed());
    }
}
