//! Turns: what is about one thing happens one after the other.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use tokio::sync::OwnedMutexGuard;

/// Locks by what they are for: what is about one thing waits its turn, what is about others mostly does not
/// have to.
#[derive(Default)]
pub(super) struct Turns([Arc<tokio::sync::Mutex<()>>; 32]);

impl Turns {
    /// Waits for the turn of `key`. Turns are given in the order in which they were asked for.
    pub(super) async fn of(&self, key: impl Hash) -> Option<OwnedMutexGuard<()>> {
        Some(Arc::clone(self.0.get(self.number(key))?).lock_owned().await)
    }

    fn number(&self, key: impl Hash) -> usize {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        hasher.finish() as usize % self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_same_key_waits_and_another_does_not() {
        let turns = Turns::default();
        let other = (0u32..).find(|key| turns.number(key) != turns.number("a")).unwrap();
        let first = turns.of("a").await;
        tokio::select! {
            biased;
            _ = turns.of("a") => panic!("two turns at once"),
            turn = turns.of(other) => assert!(turn.is_some()),
        }
        drop(first);
        assert!(turns.of("a").await.is_some());
    }
}
