//! Numbers that a network of one's own may want otherwise.

use std::time::Duration;

use super::rpc::table::K;

/// Timeouts, sizes and ages. The defaults are those of the reference, and of the public network: nodes with
/// others work with it, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// How long to wait for the answer to one packet: 1 s.
    pub request_timeout: Duration,
    /// How many nodes a query asks at once: 10.
    pub parallel_requests: usize,
    /// How many nodes the routing table keeps for each distance: 20.
    pub bucket_size: usize,
    /// How long an announcement is kept that is not repeated: 20 minutes.
    pub record_age: Duration,
    /// How long a stored value is kept that is not repeated: 48 hours.
    pub value_age: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            request_timeout: Duration::from_secs(1),
            parallel_requests: 10,
            bucket_size: K,
            record_age: Duration::from_secs(20 * 60),
            value_age: Duration::from_secs(48 * 60 * 60),
        }
    }
}
