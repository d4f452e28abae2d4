//! Whether the node that an object belongs to is open still.

use std::future::Future;

use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};

/// Shared by all objects of one node. After [`Life::end`] every method fails with `ERR_CLOSED`.
#[derive(Debug, Clone, Default)]
pub struct Life(CancellationToken);

impl Life {
    /// `ERR_CLOSED` once the node is closed.
    pub fn check(&self) -> Result<()> {
        if self.0.is_cancelled() { Err(Error::closed()) } else { Ok(()) }
    }

    /// Closes: calls in flight end with `ERR_CLOSED`, later ones fail at once.
    pub fn end(&self) {
        self.0.cancel();
    }

    /// What `work` gives, or `ERR_CLOSED` when the node is closed before.
    pub async fn run<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.0.cancelled() => Err(Error::closed()),
            outcome = work => outcome,
        }
    }
}
