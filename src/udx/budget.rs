//! The memory that the receive windows of all streams together may grow by.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that are free to be taken, shared by the streams of a set. Clones share it.
#[derive(Debug, Clone)]
pub struct WindowBudget {
    free: Arc<AtomicUsize>,
}

impl WindowBudget {
    /// A budget of so many bytes.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self { free: Arc::new(AtomicUsize::new(bytes)) }
    }

    /// Takes so many bytes if they are free.
    pub(super) fn take(&self, bytes: usize) -> bool {
        let left = |free: usize| free.checked_sub(bytes);
        self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).is_ok()
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.free.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Default for WindowBudget {
    /// 64 MiB: a few fast peers far away, or many slow ones.
    fn default() -> Self {
        Self::new(64 << 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_taken_than_there_is() {
        let budget = WindowBudget::new(10);
        let other = budget.clone();
        assert!(budget.take(7) && !other.take(4) && other.take(3));
        budget.give_back(7);
        assert!(other.take(7) && !budget.take(1));
    }
}
