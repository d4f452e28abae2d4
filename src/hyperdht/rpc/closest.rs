//! The closest nodes that answered a query.
//!
//! A host can choose among its ports those whose ids are closest to a target. Unlike in the reference, there
//! are therefore only a few nodes of one network block ([`NetworkBlock`]): who owns one cannot surround a
//! target, nor make a query go on and on.

use std::net::SocketAddrV4;

use super::message::NodeId;
use super::table::{K, MAX_PER_BLOCK, NetworkBlock, distance};

/// A reply among the closest.
#[derive(Debug, Clone)]
struct Ranked<T> {
    block: Option<NetworkBlock>,
    distance: NodeId,
    reply: T,
}

/// The replies of at most [`K`] nodes, closest first.
#[derive(Debug)]
pub(super) struct Closest<T> {
    target: NodeId,
    ranked: Vec<Ranked<T>>,
}

impl<T> Closest<T> {
    pub(super) fn new(target: NodeId) -> Self {
        Self { target, ranked: Vec::new() }
    }

    pub(super) fn is_full(&self) -> bool {
        self.ranked.len() >= K
    }

    pub(super) fn into_replies(self) -> Vec<T> {
        self.ranked.into_iter().map(|ranked| ranked.reply).collect()
    }

    /// Whether a node is among the closest so far.
    pub(super) fn has_place_for(&self, id: &NodeId) -> bool {
        match self.ranked.get(K - 1) {
            Some(last) => distance(id, &self.target) < last.distance,
            None => true,
        }
    }

    /// Whether a node is also closer than those of its block, if these are as many as count.
    pub(super) fn would_keep(&self, id: &NodeId, address: SocketAddrV4) -> bool {
        if !self.has_place_for(id) {
            return false;
        }
        let Some(block) = NetworkBlock::of(*address.ip()) else { return true };
        let mut of_block = self.ranked.iter().filter(|ranked| ranked.block == Some(block));
        match of_block.nth(MAX_PER_BLOCK - 1) {
            Some(last) => distance(id, &self.target) < last.distance,
            None => true,
        }
    }

    /// Takes a reply, and drops the farthest if there are too many.
    pub(super) fn insert(&mut self, id: &NodeId, address: SocketAddrV4, reply: T) {
        let (distance, block) = (distance(id, &self.target), NetworkBlock::of(*address.ip()));
        let place = self.ranked.binary_search_by_key(&distance, |ranked| ranked.distance);
        let Err(index) = place else { return };
        if index >= K {
            return;
        }
        self.ranked.insert(index, Ranked { block, distance, reply });
        let of_block = |ranked: &Ranked<T>| block.is_some() && ranked.block == block;
        if self.ranked.iter().filter(|ranked| of_block(ranked)).count() > MAX_PER_BLOCK
            && let Some(last) = self.ranked.iter().rposition(of_block)
        {
            self.ranked.remove(last);
        }
        self.ranked.truncate(K);
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::node_id;
    use super::super::search::{Search, Step};
    use super::*;

    /// Addresses, those closest to the target of the tests first.
    fn by_distance(mut nodes: Vec<SocketAddrV4>) -> Vec<SocketAddrV4> {
        nodes.sort_by_key(|node| distance(&node_id(*node), &[7; 32]));
        nodes
    }

    #[test]
    fn one_host_with_all_its_ports_cannot_surround_a_target() {
        let liar = |port| SocketAddrV4::new([20, 6, 6, 6].into(), port);
        let liars = by_distance((1..20_000).map(liar).collect());
        let honest: Vec<SocketAddrV4> =
            (0..60).map(|index| SocketAddrV4::new([20, 1, index, 1].into(), 1000)).collect();
        let mut search = Search::new([7; 32], [0; 32], true);
        for node in liars[..K].iter().chain(&honest[..3]) {
            let _ = search.add(*node, None);
        }
        let mut visits = 0;
        while let Step::Visit(node) = search.next() {
            visits += 1;
            // Liars name only each other, the farthest first, so that the next is always closer.
            let lie: Vec<_> = liars.iter().rev().skip(visits * K).take(K).copied().collect();
            let closer = if node.ip().octets()[1] == 6 { &lie } else { &honest };
            search.answered(node, Some(node_id(node)), false, closer, node);
        }
        assert!(visits <= honest.len() + 4 * MAX_PER_BLOCK, "{visits}");
        let closest = search.into_closest();
        let liars = closest.iter().filter(|node| node.ip().octets()[1] == 6).count();
        assert_eq!((closest.len(), liars), (K, MAX_PER_BLOCK));
    }

    #[test]
    fn a_network_that_is_one_block_is_still_searched() {
        let all: Vec<SocketAddrV4> =
            (1..100).map(|host| SocketAddrV4::new([20, 1, 7, host].into(), 1000)).collect();
        let mut search = Search::new([7; 32], [0; 32], true);
        let _ = search.add(all[0], None);
        let all = by_distance(all);
        while let Step::Visit(node) = search.next() {
            search.answered(node, Some(node_id(node)), false, &all, node);
        }
        assert_eq!(search.into_closest(), all[..MAX_PER_BLOCK]);
    }
}
