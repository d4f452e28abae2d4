//! What keeps a query from being led on by nodes that lie: how many it asks, in all and of one network
//! block, and whose word it takes for the nodes that it asks next.

use std::collections::HashMap;
use std::net::SocketAddrV4;

use super::table::{MAX_PER_BLOCK, NetworkBlock};

/// How many nodes one query asks. In a network of a million nodes it takes about a hundred.
const MAX_VISITS: usize = 512;

/// How many of these in one network block.
const MAX_VISITS_PER_BLOCK: usize = 4 * MAX_PER_BLOCK;

/// How many silent nodes one node may name, besides one for each that answered.
const MAX_SILENT: usize = 3;

/// What came of the nodes that one node named.
#[derive(Debug, Clone, Copy, Default)]
struct Credit {
    answered: usize,
    /// Down, or slow so far.
    silent: usize,
}

impl Credit {
    /// An honest node names some that have just gone; one that makes names up names nothing else.
    fn is_good(self) -> bool {
        self.silent < MAX_SILENT + self.answered
    }
}

/// One query's memory of whom it asked and who sent it there.
#[derive(Debug, Default)]
pub(super) struct Caution {
    visits: usize,
    visits_by_block: HashMap<NetworkBlock, usize>,
    credits: HashMap<SocketAddrV4, Credit>,
}

impl Caution {
    /// Whether one more node may be asked.
    pub(super) fn allows(&self, address: SocketAddrV4) -> bool {
        let of_block = |block| self.visits_by_block.get(&block).copied().unwrap_or_default();
        self.visits < MAX_VISITS
            && NetworkBlock::of(*address.ip())
                .is_none_or(|block| of_block(block) < MAX_VISITS_PER_BLOCK)
    }

    /// A node is asked.
    pub(super) fn visit(&mut self, address: SocketAddrV4) {
        self.visits += 1;
        if let Some(block) = NetworkBlock::of(*address.ip()) {
            *self.visits_by_block.entry(block).or_default() += 1;
        }
    }

    /// A node named one that had answered before. That counts too: who answers late names few others.
    pub(super) fn named_known(&mut self, referrer: SocketAddrV4) {
        self.credits.entry(referrer).or_default().answered += 1;
    }

    /// A node that `referrers` named has not answered yet.
    pub(super) fn slow(&mut self, referrers: &[SocketAddrV4]) {
        for referrer in referrers {
            self.credits.entry(*referrer).or_default().silent += 1;
        }
    }

    /// A node that `referrers` named answered, or never will.
    pub(super) fn settled(&mut self, referrers: &[SocketAddrV4], was_slow: bool, answered: bool) {
        for referrer in referrers {
            let credit = self.credits.entry(*referrer).or_default();
            credit.answered += usize::from(answered);
            credit.silent = match (was_slow, answered) {
                (true, true) => credit.silent.saturating_sub(1),
                (false, false) => credit.silent + 1,
                _ => credit.silent,
            };
        }
    }

    /// Whether the word of one of `referrers` is good. A node that nobody named is one that we know.
    pub(super) fn believes(&self, referrers: &[SocketAddrV4]) -> bool {
        let is_good = |referrer| self.credits.get(referrer).is_none_or(|credit| credit.is_good());
        referrers.is_empty() || referrers.iter().any(is_good)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(a: u8, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new([a, 1, 2, 3].into(), port)
    }

    #[test]
    fn a_query_asks_a_block_of_the_public_network_and_the_whole_network_so_often() {
        let mut caution = Caution::default();
        let asked = |caution: &mut Caution, a| {
            let allowed = (1..1000).map(|port| address(a, port)).take_while(|node| {
                let allowed = caution.allows(*node);
                if allowed {
                    caution.visit(*node);
                }
                allowed
            });
            allowed.count()
        };
        assert_eq!(asked(&mut caution, 20), MAX_VISITS_PER_BLOCK);
        assert_eq!(asked(&mut caution, 21), MAX_VISITS_PER_BLOCK);
        assert_eq!(asked(&mut caution, 10), MAX_VISITS - 2 * MAX_VISITS_PER_BLOCK);
        assert!(!caution.allows(address(22, 1)));
    }

    #[test]
    fn three_silent_nodes_cost_the_word_and_one_that_answers_gives_it_back() {
        let (mut caution, liar) = (Caution::default(), [address(20, 1)]);
        for _ in 0..MAX_SILENT {
            assert!(caution.believes(&liar));
            caution.slow(&liar);
        }
        assert!(!caution.believes(&liar));
        assert!(caution.believes(&[liar[0], address(20, 2)]), "another says so too");
        // Given up at last: that was counted before.
        caution.settled(&liar, true, false);
        // Late, but there.
        caution.settled(&liar, true, true);
        assert!(caution.believes(&liar));
    }

    #[test]
    fn naming_nodes_that_answered_before_earns_belief() {
        let (mut caution, late) = (Caution::default(), [address(20, 1)]);
        (0..5).for_each(|_| caution.named_known(late[0]));
        (0..5).for_each(|_| caution.slow(&late));
        assert!(caution.believes(&late));
    }

    #[test]
    fn half_dead_lists_of_a_network_in_change_are_believed() {
        let (mut caution, honest) = (Caution::default(), [address(20, 1)]);
        for _ in 0..100 {
            caution.settled(&honest, false, true);
            caution.settled(&honest, false, false);
            assert!(caution.believes(&honest));
        }
    }
}
