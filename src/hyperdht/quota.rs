//! How much of what a node keeps for others may be of one network block: whoever has one host could
//! otherwise push out everybody else's within minutes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::rpc::table::NetworkBlock;

/// Blocks that are counted; with more of them, counting begins anew.
const MAX_BLOCKS: usize = 4096;

/// Counts new entries by network block, over as long as entries live.
#[derive(Debug)]
pub(crate) struct Quota {
    limit: usize,
    age: Duration,
    counts: HashMap<NetworkBlock, usize>,
    since: Instant,
}

impl Quota {
    /// One block gets a sixteenth of `capacity` entries, which live for `age`.
    pub(crate) fn new(capacity: usize, age: Duration) -> Self {
        Self { limit: capacity / 16, age, counts: HashMap::new(), since: Instant::now() }
    }

    /// Whether `from` may have a new entry; counts it if so. Private networks may have all.
    pub(crate) fn allow(&mut self, from: SocketAddr) -> bool {
        let SocketAddr::V4(v4) = from else { return true };
        let Some(block) = NetworkBlock::of(*v4.ip()) else { return true };
        if self.since.elapsed() >= self.age || self.counts.len() >= MAX_BLOCKS {
            self.counts.clear();
            self.since = Instant::now();
        }
        let count = self.counts.entry(block).or_default();
        if *count >= self.limit {
            return false;
        }
        *count += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota() -> Quota {
        Quota::new(160, Duration::from_secs(60))
    }

    fn allowed(quota: &mut Quota, from: &str, tries: usize) -> usize {
        let from = from.parse().unwrap();
        (0..tries).filter(|_| quota.allow(from)).count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_block_gets_its_share_and_others_theirs() {
        let mut quota = quota();
        assert_eq!(allowed(&mut quota, "20.1.0.1:1", 8), 8);
        assert_eq!(allowed(&mut quota, "20.1.0.2:1", 8), 2);
        assert_eq!(allowed(&mut quota, "20.1.1.1:1", 99), 10);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(allowed(&mut quota, "20.1.0.1:1", 99), 10);
    }

    #[test]
    fn a_private_network_is_not_counted() {
        let mut quota = quota();
        for host in ["127.0.0.1:1", "192.168.1.1:1", "[::1]:1"] {
            assert_eq!(allowed(&mut quota, host, 99), 99, "{host}");
        }
        assert!(quota.counts.is_empty());
    }

    #[test]
    fn as_many_blocks_are_counted_as_there_is_room_for() {
        let mut quota = quota();
        for index in 0..100_000u32 {
            let [_, a, b, c] = index.to_be_bytes();
            quota.allow(SocketAddr::from(([20 + a, b, c, 1], 1)));
            assert!(quota.counts.len() <= MAX_BLOCKS);
        }
    }
}
