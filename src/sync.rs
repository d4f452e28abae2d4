//! Locking that outlives a panic elsewhere, and work that is gathered to be done together.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`, also after another thread panicked while it held it: every critical section of this
/// crate leaves its data whole at each step.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What waits for one worker, which takes all that has come meanwhile at once.
pub(crate) struct Gathered<T> {
    waiting: Vec<T>,
    is_worked_on: bool,
}

impl<T> Default for Gathered<T> {
    fn default() -> Self {
        Self { waiting: Vec::new(), is_worked_on: false }
    }
}

impl<T> Gathered<T> {
    /// Adds to it. `true` when there is no worker: whoever added is to start one.
    pub(crate) fn add(&mut self, item: T) -> bool {
        self.waiting.push(item);
        !std::mem::replace(&mut self.is_worked_on, true)
    }

    /// What the worker does next; `None` when nothing waits, and then the worker ends.
    pub(crate) fn next(&mut self) -> Option<Vec<T>> {
        self.is_worked_on = !self.waiting.is_empty();
        self.is_worked_on.then(|| std::mem::take(&mut self.waiting))
    }

    /// Whether there is a worker.
    pub(crate) fn is_worked_on(&self) -> bool {
        self.is_worked_on
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_worker_at_a_time_takes_all_that_waits() {
        let mut gathered = Gathered::default();
        assert_eq!((gathered.add(1), gathered.add(2)), (true, false));
        assert_eq!(gathered.next(), Some(vec![1, 2]));
        assert_eq!((gathered.add(3), gathered.is_worked_on()), (false, true));
        assert_eq!((gathered.next(), gathered.next()), (Some(vec![3]), None));
        assert_eq!((gathered.is_worked_on(), gathered.add(4)), (false, true));
    }
}
