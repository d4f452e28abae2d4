//! The state of one query: whom to ask next, who answered, when to stop (`dht-rpc` `lib/query.js`).
//!
//! No sockets and no clock: [`super::query`] sends what [`Search::next`] names and reports back.
//!
//! Unlike the reference, a query is careful whom it asks ([`Caution`]) and whom it ends with ([`Closest`]).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddrV4;

use super::caution::Caution;
use super::closest::Closest;
use super::maintain::DownHint;
use super::message::{NodeId, node_id};
use super::table::{K, distance};

/// How many addresses one query remembers. An honest network offers far fewer.
const MAX_SEEN: usize = 4096;

/// How many nodes that named a dead node are told so.
const MAX_REFERRERS: usize = 8;

/// Nodes asked at once.
const CONCURRENCY: usize = 10;

/// Nodes asked at once while cached nodes have not answered yet.
const SLOW_CONCURRENCY: usize = 3;

#[derive(Debug)]
enum Seen {
    /// In line or asked; the nodes that named it.
    Waiting(Vec<SocketAddrV4>),
    Done,
    Down,
}

/// What the state of a query asks of its driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Send the query to this node.
    Visit(SocketAddrV4),
    /// Nothing to do before something is answered or times out.
    Wait,
    /// Cached nodes did not answer: offer the routing table's with [`Search::add`], then continue.
    NeedTable,
    /// The query has its result.
    Finished,
}

/// One query's memory. `T` is what the driver keeps of a reply.
#[derive(Debug)]
pub(crate) struct Search<T> {
    target: NodeId,
    own_id: NodeId,
    seen: HashMap<SocketAddrV4, Seen>,
    /// Nodes in line, by their distance from the target.
    pending: BTreeMap<NodeId, SocketAddrV4>,
    /// Nodes that wait because nobody who is believed named them.
    doubted: HashSet<SocketAddrV4>,
    /// Somebody may be believed again.
    may_believe: bool,
    caution: Caution,
    closest: Closest<T>,
    slow: HashSet<SocketAddrV4>,
    in_flight: usize,
    concurrency: usize,
    from_table: bool,
    slowdown: bool,
    only_given: bool,
    successes: usize,
    errors: usize,
}

impl<T> Search<T> {
    /// A query for `target` that starts from nothing; [`Search::add`] gives it nodes. `from_table` is
    /// false when these are cached from an earlier query.
    pub(crate) fn new(target: NodeId, own_id: NodeId, from_table: bool) -> Self {
        Self {
            target,
            own_id,
            seen: HashMap::new(),
            pending: BTreeMap::new(),
            doubted: HashSet::new(),
            may_believe: false,
            caution: Caution::default(),
            closest: Closest::new(target),
            slow: HashSet::new(),
            in_flight: 0,
            concurrency: CONCURRENCY,
            from_table,
            slowdown: false,
            only_given: false,
            successes: 0,
            errors: 0,
        }
    }

    /// How many nodes to ask at once.
    pub(crate) fn set_concurrency(&mut self, concurrency: usize) {
        self.concurrency = concurrency.max(1);
    }

    /// Ask only the nodes that were given so far.
    pub(crate) fn close_to_new_nodes(&mut self) {
        self.only_given = true;
        self.from_table = true;
    }

    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The best replies so far, closest first.
    pub(crate) fn into_closest(self) -> Vec<T> {
        self.closest.into_replies()
    }

    /// Offers a node, named by `referrer` when another node did. Returns whether it is close enough
    /// to be of interest, and the hint to send when it is known to be down.
    pub(crate) fn add(
        &mut self,
        address: SocketAddrV4,
        referrer: Option<SocketAddrV4>,
    ) -> (bool, Option<DownHint>) {
        if self.only_given || address.port() == 0 {
            return (false, None);
        }
        let id = node_id(address);
        if id == self.own_id {
            return (true, None);
        }
        let is_closer = self.closest.has_place_for(&id);
        let has_room = self.seen.len() < MAX_SEEN;
        match self.seen.get_mut(&address) {
            Some(Seen::Done) => {
                referrer.iter().for_each(|by| self.caution.named_known(*by));
                self.may_believe = true;
            }
            Some(Seen::Down) => {
                return (is_closer, referrer.map(|to| DownHint { to, down: address }));
            }
            Some(Seen::Waiting(referrers)) => {
                if let Some(referrer) = referrer.filter(|_| referrers.len() < MAX_REFERRERS) {
                    referrers.push(referrer);
                }
                if self.doubted.remove(&address) {
                    self.pending.insert(distance(&id, &self.target), address);
                }
            }
            None if is_closer && has_room => {
                self.seen.insert(address, Seen::Waiting(referrer.into_iter().collect()));
                self.pending.insert(distance(&id, &self.target), address);
            }
            None => {}
        }
        (is_closer, None)
    }

    /// What to do now.
    pub(crate) fn next(&mut self) -> Step {
        self.believe_again();
        let limit = if self.slowdown { SLOW_CONCURRENCY } else { self.concurrency };
        while self.in_flight < limit + self.slow.len() {
            let Some((_, address)) = self.pending.pop_first().or_else(|| self.second_choice())
            else {
                break;
            };
            let id = node_id(address);
            if !self.is_welcome(&id, address) {
                continue;
            }
            if !self.is_believed(address) && self.has_choice() {
                self.doubted.insert(address);
                continue;
            }
            self.caution.visit(address);
            self.in_flight += 1;
            return Step::Visit(address);
        }
        if !self.from_table && self.successes == 0 && self.errors == 0 {
            // Give a cached node the chance to know it all before asking widely.
            self.slowdown = true;
        }
        let only_slow = self.slow.len() == self.in_flight && self.closest.is_full();
        if !self.pending.is_empty() || (self.in_flight > 0 && !only_slow) {
            return Step::Wait;
        }
        if !self.from_table && self.successes < K / 4 {
            self.from_table = true;
            self.slowdown = false;
            return Step::NeedTable;
        }
        Step::Finished
    }

    /// A node answered. `id` is given when it is a persistent node; `closer` are the nodes it named.
    pub(crate) fn answered(
        &mut self,
        from: SocketAddrV4,
        id: Option<NodeId>,
        is_error: bool,
        closer: &[SocketAddrV4],
        reply: T,
    ) -> Vec<DownHint> {
        self.settle(from, Seen::Done);
        if is_error {
            self.errors += 1;
        } else {
            self.successes += 1;
        }
        if let Some(id) = id.filter(|_| !is_error) {
            self.closest.insert(&id, from, reply);
        }
        let mut hints = Vec::new();
        for address in closer {
            let (is_closer, hint) = self.add(*address, Some(from));
            hints.extend(hint);
            if !is_closer {
                break;
            }
        }
        if !self.from_table && self.successes + self.errors >= self.concurrency {
            self.slowdown = false;
        }
        hints
    }

    /// A node did not answer in time: those who named it should know.
    pub(crate) fn timed_out(&mut self, from: SocketAddrV4) -> Vec<DownHint> {
        self.errors += 1;
        match self.settle(from, Seen::Down) {
            Some(Seen::Waiting(referrers)) => DownHint::to_all(&referrers, from),
            _ => Vec::new(),
        }
    }

    /// A node's first packet was not answered: ask another one meanwhile.
    pub(crate) fn slow(&mut self, from: SocketAddrV4) {
        if let Some(Seen::Waiting(referrers)) = self.seen.get(&from)
            && self.slow.insert(from)
        {
            self.caution.slow(referrers);
        }
    }

    /// The nodes that are slow still, and to whom that is worth telling should they be down.
    pub(crate) fn slow_nodes(&self) -> Vec<(SocketAddrV4, Vec<DownHint>)> {
        let hints = |down: &SocketAddrV4| match self.seen.get(down) {
            Some(Seen::Waiting(referrers)) => DownHint::to_all(referrers, *down),
            _ => Vec::new(),
        };
        self.slow.iter().map(|node| (*node, hints(node))).collect()
    }

    fn settle(&mut self, from: SocketAddrV4, now: Seen) -> Option<Seen> {
        self.in_flight = self.in_flight.saturating_sub(1);
        let (was_slow, answered) = (self.slow.remove(&from), matches!(now, Seen::Done));
        let before = self.seen.insert(from, now);
        if let Some(Seen::Waiting(referrers)) = &before {
            self.caution.settled(referrers, was_slow, answered);
            self.may_believe |= answered;
        }
        before
    }

    /// Whether we know a node by ourselves, or by one whose word is good.
    fn is_believed(&self, address: SocketAddrV4) -> bool {
        match self.seen.get(&address) {
            Some(Seen::Waiting(referrers)) => self.caution.believes(referrers),
            _ => true,
        }
    }

    /// Puts nodes in line that were put aside, and one who named them is believed by now: where all answers
    /// are late for a while, everybody is doubted for a while.
    fn believe_again(&mut self) {
        if !std::mem::take(&mut self.may_believe) || self.doubted.is_empty() {
            return;
        }
        let believed: Vec<SocketAddrV4> =
            self.doubted.iter().copied().filter(|node| self.is_believed(*node)).collect();
        for address in believed {
            self.doubted.remove(&address);
            self.pending.insert(distance(&node_id(address), &self.target), address);
        }
    }

    /// Whether the query gets on without the nodes that are doubted.
    fn has_choice(&self) -> bool {
        self.closest.is_full() || self.in_flight > self.slow.len() || !self.pending.is_empty()
    }

    /// A node that was put aside, once there is nothing better.
    fn second_choice(&mut self) -> Option<(NodeId, SocketAddrV4)> {
        if self.has_choice() {
            return None;
        }
        let target = &self.target;
        let by_distance = |address: &SocketAddrV4| (distance(&node_id(*address), target), *address);
        let best = self.doubted.iter().map(by_distance).min()?;
        self.doubted.remove(&best.1);
        Some(best)
    }

    /// Whether a node may be asked: there were not too many, and its answer would count.
    fn is_welcome(&self, id: &NodeId, address: SocketAddrV4) -> bool {
        self.caution.allows(address) && self.closest.would_keep(id, address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(index: u16) -> SocketAddrV4 {
        SocketAddrV4::new([10, 0, (index >> 8) as u8, index as u8].into(), 1000)
    }

    fn search() -> Search<u16> {
        Search::new([7; 32], [0; 32], true)
    }

    #[test]
    fn at_most_ten_nodes_are_asked_at_once() {
        let mut search = search();
        (0..30).for_each(|index| _ = search.add(address(index), None));
        let visits = (0..20).filter(|_| matches!(search.next(), Step::Visit(_))).count();
        assert_eq!((visits, search.next()), (CONCURRENCY, Step::Wait));
    }

    #[test]
    fn a_query_over_a_hundred_nodes_ends_with_the_twenty_closest() {
        let mut search = search();
        let all: Vec<SocketAddrV4> = (0..100).map(address).collect();
        let _ = search.add(all[0], None);
        loop {
            match search.next() {
                Step::Visit(node) => {
                    let index = all.iter().position(|known| *known == node).unwrap();
                    let mut closer = all.clone();
                    closer.sort_by_key(|node| distance(&node_id(*node), &[7; 32]));
                    closer.truncate(K);
                    search.answered(node, Some(node_id(node)), false, &closer, index as u16);
                }
                Step::Finished => break,
                step => panic!("unexpected {step:?}"),
            }
        }
        let mut expected: Vec<u16> = (0..100).collect();
        expected.sort_by_key(|index| distance(&node_id(address(*index)), &[7; 32]));
        expected.truncate(K);
        assert_eq!(search.into_closest(), expected);
    }

    #[test]
    fn whoever_named_a_dead_node_is_told() {
        let mut search = search();
        let _ = search.add(address(1), None);
        assert_eq!(search.next(), Step::Visit(address(1)));
        search.answered(address(1), None, false, &[address(2)], 0);
        assert_eq!(search.next(), Step::Visit(address(2)));
        let hint = DownHint { to: address(1), down: address(2) };
        assert_eq!(search.timed_out(address(2)), vec![hint]);
        assert_eq!(search.next(), Step::Finished);
    }

    #[test]
    fn silent_cached_nodes_lead_back_to_the_table() {
        let mut search: Search<u16> = Search::new([7; 32], [0; 32], false);
        let _ = search.add(address(1), None);
        assert_eq!(search.next(), Step::Visit(address(1)));
        assert_eq!(search.next(), Step::Wait);
        search.timed_out(address(1));
        assert_eq!(search.next(), Step::NeedTable);
        assert_eq!(search.next(), Step::Finished);
    }

    #[test]
    fn a_node_that_names_silent_ones_is_believed_no_more() {
        let mut search = search();
        let liar = address(0);
        let _ = search.add(liar, None);
        assert_eq!(search.next(), Step::Visit(liar));
        let lies: Vec<SocketAddrV4> = (1000..1020).map(address).collect();
        search.answered(liar, Some(node_id(liar)), false, &lies, 0);
        search.set_concurrency(1);
        for _ in 0..3 {
            let Step::Visit(silent) = search.next() else { panic!("nobody is asked") };
            search.slow(silent);
        }
        let named: Vec<SocketAddrV4> = (2..40).map(address).collect();
        let _ = search.add(named[0], None);
        let mut asked = Vec::new();
        while let Step::Visit(node) = search.next() {
            asked.push(node);
            search.answered(node, Some(node_id(node)), false, &named, 0);
        }
        assert!(asked.iter().all(|node| !lies.contains(node)), "{asked:?}");
        assert!(search.closest.is_full());
    }

    #[test]
    fn a_doubted_node_is_asked_once_whoever_named_it_is_believed_again() {
        let mut search = search();
        let late = address(0);
        let _ = search.add(late, None);
        assert_eq!(search.next(), Step::Visit(late));
        let mut named: Vec<SocketAddrV4> = (1..60).map(address).collect();
        named.sort_by_key(|node| distance(&node_id(*node), &[7; 32]));
        let (nearest, others) = named.split_at(30);
        search.answered(late, Some(node_id(late)), false, nearest, late.port());
        search.set_concurrency(3);
        // The answers of the first three are late, so that the others are put aside.
        let asked: Vec<SocketAddrV4> = std::iter::from_fn(|| match search.next() {
            Step::Visit(node) => Some(node),
            _ => None,
        })
        .take(3)
        .collect();
        asked.iter().for_each(|node| search.slow(*node));
        others.iter().for_each(|node| _ = search.add(*node, None));
        let mut visited: Vec<SocketAddrV4> = Vec::new();
        while visited.len() < K
            && let Step::Visit(node) = search.next()
        {
            visited.push(node);
            search.answered(node, Some(node_id(node)), false, &[], 0);
        }
        assert!(visited.iter().all(|node| others.contains(node)), "{visited:?}");
        for node in &asked {
            search.answered(*node, Some(node_id(*node)), false, &[], 0);
        }
        let Step::Visit(node) = search.next() else { panic!("they stay put aside") };
        assert!(nearest.contains(&node), "{node}");
    }

    #[test]
    fn a_doubted_node_is_asked_when_there_is_nobody_else() {
        let mut search = search();
        let _ = search.add(address(0), None);
        assert_eq!(search.next(), Step::Visit(address(0)));
        let named: Vec<SocketAddrV4> = (1..10).map(address).collect();
        search.answered(address(0), Some(node_id(address(0))), false, &named, 0);
        for _ in &named {
            let Step::Visit(node) = search.next() else { panic!("somebody is not asked") };
            search.timed_out(node);
        }
        assert_eq!(search.next(), Step::Finished);
    }

    #[test]
    fn a_slow_node_makes_room_for_another() {
        let mut search = search();
        (0..11).for_each(|index| _ = search.add(address(index), None));
        let mut asked = Vec::new();
        while let Step::Visit(node) = search.next() {
            asked.push(node);
        }
        assert_eq!(asked.len(), CONCURRENCY);
        search.slow(asked[0]);
        assert!(matches!(search.next(), Step::Visit(_)));
    }

    #[test]
    fn a_node_that_names_endless_others_is_bounded() {
        let mut search = search();
        let _ = search.add(address(0), None);
        assert_eq!(search.next(), Step::Visit(address(0)));
        search.answered(address(0), None, false, &(1..20_000).map(address).collect::<Vec<_>>(), 0);
        assert!(search.seen.len() <= MAX_SEEN && search.pending() <= MAX_SEEN);
    }
}
