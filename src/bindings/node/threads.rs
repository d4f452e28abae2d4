//! The threads that the addon runs on.

use std::num::NonZeroUsize;
use std::time::Duration;

/// The most threads that work on the network.
const MAX_WORKERS: usize = 4;
/// The most threads that wait for files. Hashing, writing and syncing a few books at once takes less.
const MAX_BLOCKING: usize = 32;
/// How long one of those stays with nothing to do; each has a heap of its own.
const IDLE: Duration = Duration::from_secs(2);

/// Half of the cores: the other half is the host program's, and the system's side of the network.
fn workers() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    (cores / 2).clamp(1, MAX_WORKERS)
}

#[napi_derive::module_init]
fn start() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers())
        .max_blocking_threads(MAX_BLOCKING)
        .thread_keep_alive(IDLE)
        .thread_name("alex-p2p")
        .enable_all()
        .build();
    // Without it, napi makes one with tokio's defaults.
    if let Ok(runtime) = runtime {
        napi::bindgen_prelude::create_custom_tokio_runtime(runtime);
    }
}
