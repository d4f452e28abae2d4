//! Tasks of one type whatever they run: tokio compiles a dozen functions anew for each type of future,
//! and with one type for each place that starts a task they were a seventh of the library's code.

use std::future::Future;
use std::pin::Pin;

use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio_util::task::TaskTracker;

/// A future on the heap, of which only the outcome's type is known.
pub(crate) type Task<T = ()> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Makes a [`Task`] of a future.
pub(crate) fn task<T>(future: impl Future<Output = T> + Send + 'static) -> Task<T> {
    Box::pin(future)
}

/// As [`tokio::spawn`].
pub(crate) fn spawn<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<T> {
    tokio::spawn(task(future))
}

/// As [`tokio::task::spawn_blocking`], and waits for it.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    let work: Box<dyn FnOnce() -> T + Send> = Box::new(work);
    tokio::task::spawn_blocking(work).await
}

/// Starts a [`Task`] in a group of tasks.
pub(crate) trait Spawn<T> {
    /// As the group's own `spawn`.
    fn spawn_task(self, future: impl Future<Output = T> + Send + 'static);
}

impl<T: Send + 'static> Spawn<T> for &mut JoinSet<T> {
    fn spawn_task(self, future: impl Future<Output = T> + Send + 'static) {
        self.spawn(task(future));
    }
}

impl Spawn<()> for &TaskTracker {
    fn spawn_task(self, future: impl Future<Output = ()> + Send + 'static) {
        self.spawn(task(future));
    }
}
