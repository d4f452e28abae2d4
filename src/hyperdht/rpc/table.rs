//! The routing table: up to 20 persistent nodes for each distance from our own id
//! (npm `kademlia-routing-table` and `time-ordered-set`).
//!
//! A node's id is the hash of its address, so one host has as many ids as it has ports, and whoever has a
//! network block has hundreds of times more. Unlike the reference, a row therefore takes only a few nodes
//! of one block ([`NetworkBlock`]): nobody fills it alone.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::super::addresses::is_bogon;
use super::message::{NodeId, node_id};

/// Nodes a row holds, and nodes a query ends with.
pub const K: usize = 20;

/// Nodes of one network block among the [`K`] of a row, or of a query's result.
pub(crate) const MAX_PER_BLOCK: usize = K / 4;

/// One row for each length of the common prefix with our id.
const ROWS: usize = 256;

/// The /24 that an address of the public network is in: as a rule one owner has all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct NetworkBlock([u8; 3]);

impl NetworkBlock {
    /// `None` for addresses that the public network does not have, this machine's among them. There one
    /// block may be the whole network, and nobody outside of it receives what is sent there.
    pub(crate) fn of(ip: Ipv4Addr) -> Option<Self> {
        let [a, b, c, _] = ip.octets();
        (!is_bogon(ip)).then_some(Self([a, b, c]))
    }
}

/// Time in units of the node's 5 s interval.
pub(crate) type Tick = u64;

/// A node that we heard from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableNode {
    pub id: NodeId,
    pub address: SocketAddrV4,
    /// When it came into the table.
    pub added: Tick,
    /// When we last asked it something or heard from it.
    pub pinged: Tick,
    /// When we last heard from it.
    pub seen: Tick,
    /// When its view of our address was last counted.
    pub sampled: Option<Tick>,
    /// Whether another node said that it is down.
    pub down_hinted: bool,
    /// The order in which nodes were last heard from.
    heard: u64,
}

impl TableNode {
    pub(crate) fn new(address: SocketAddrV4, now: Tick) -> Self {
        let id = node_id(address);
        Self {
            id,
            address,
            added: now,
            pinged: now,
            seen: now,
            sampled: None,
            down_hinted: false,
            heard: 0,
        }
    }
}

/// Why a node did not get into the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotAdded {
    /// It is this node itself, or there already.
    Known,
    /// Its row has as many nodes as it may.
    RowFull,
    /// Its row has [`MAX_PER_BLOCK`] nodes of its network block.
    BlockFull,
}

/// Nodes ordered by their distance from our id.
#[derive(Debug)]
pub(crate) struct RoutingTable {
    id: NodeId,
    rows: Vec<Vec<TableNode>>,
    bucket_size: usize,
    len: usize,
    clock: u64,
}

impl RoutingTable {
    pub(crate) fn new(id: NodeId) -> Self {
        Self { id, rows: vec![Vec::new(); ROWS], bucket_size: K, len: 0, clock: 0 }
    }

    /// How many nodes a row holds from now on.
    pub(crate) fn set_bucket_size(&mut self, bucket_size: usize) {
        self.bucket_size = bucket_size.max(1);
    }

    /// Our own id.
    pub(crate) fn id(&self) -> NodeId {
        self.id
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn add(&mut self, mut node: TableNode) -> Result<(), NotAdded> {
        if node.id == self.id {
            return Err(NotAdded::Known);
        }
        self.clock += 1;
        node.heard = self.clock;
        let bucket_size = self.bucket_size;
        let row = self.row_mut(&node.id);
        if row.iter().any(|known| known.id == node.id) {
            return Err(NotAdded::Known);
        }
        if let Some(block) = NetworkBlock::of(*node.address.ip()) {
            let same = |known: &&TableNode| NetworkBlock::of(*known.address.ip()) == Some(block);
            if row.iter().filter(same).count() >= MAX_PER_BLOCK {
                return Err(NotAdded::BlockFull);
            }
        }
        if row.len() >= bucket_size {
            return Err(NotAdded::RowFull);
        }
        row.push(node);
        self.len += 1;
        Ok(())
    }

    pub(crate) fn remove(&mut self, id: &NodeId) -> Option<TableNode> {
        let row = self.row_mut(id);
        let index = row.iter().position(|node| node.id == *id)?;
        let node = row.swap_remove(index);
        self.len -= 1;
        Some(node)
    }

    pub(crate) fn get(&self, id: &NodeId) -> Option<&TableNode> {
        self.rows.get(self.row_index(id))?.iter().find(|node| node.id == *id)
    }

    pub(crate) fn get_mut(&mut self, id: &NodeId) -> Option<&mut TableNode> {
        self.row_mut(id).iter_mut().find(|node| node.id == *id)
    }

    /// Marks a node as heard from now.
    pub(crate) fn heard(&mut self, id: &NodeId, now: Tick) -> Option<&mut TableNode> {
        self.clock += 1;
        let clock = self.clock;
        let node = self.get_mut(id)?;
        node.heard = clock;
        node.seen = now;
        node.pinged = now;
        Some(node)
    }

    /// The node that has to prove itself when `newcomer` finds its row full: the one we have not
    /// spoken with for longest, the oldest of those.
    pub(crate) fn stalest_in_row_of(&self, newcomer: &NodeId, now: Tick) -> Option<&TableNode> {
        let row = self.rows.get(self.row_index(newcomer))?;
        row.iter().filter(|node| node.pinged != now).min_by_key(|node| (node.pinged, node.added))
    }

    /// At most `count` nodes closest to `target`, closest first.
    pub(crate) fn closest(&self, target: &NodeId, count: usize) -> Vec<&TableNode> {
        let mut nodes: Vec<&TableNode> = self.iter().collect();
        nodes.sort_by_cached_key(|node| distance(&node.id, target));
        nodes.truncate(count);
        nodes
    }

    /// All nodes, least recently heard from first.
    pub(crate) fn oldest_first(&self) -> Vec<&TableNode> {
        let mut nodes: Vec<&TableNode> = self.iter().collect();
        nodes.sort_by_key(|node| node.heard);
        nodes
    }

    /// The `index`th of all nodes, in no particular order.
    pub(crate) fn nth(&self, index: usize) -> Option<&TableNode> {
        self.iter().nth(index)
    }

    /// Moves the table under a new id of ours. Nodes that no longer fit are dropped.
    pub(crate) fn rekey(&mut self, id: NodeId) {
        let nodes: Vec<TableNode> = self.oldest_first().into_iter().cloned().collect();
        *self = Self { clock: self.clock, bucket_size: self.bucket_size, ..Self::new(id) };
        for node in nodes {
            // A full row loses its excess: the table is bounded by construction.
            let _ = self.add(node);
        }
    }

    fn iter(&self) -> impl Iterator<Item = &TableNode> {
        self.rows.iter().flatten()
    }

    /// The length in bits of the prefix that `id` shares with ours.
    fn row_index(&self, id: &NodeId) -> usize {
        let mut zeros = 0;
        for (ours, theirs) in self.id.iter().zip(id) {
            let difference = ours ^ theirs;
            zeros += difference.leading_zeros() as usize;
            if difference != 0 {
                break;
            }
        }
        zeros.min(ROWS - 1)
    }

    fn row_mut(&mut self, id: &NodeId) -> &mut Vec<TableNode> {
        let index = self.row_index(id);
        &mut self.rows[index]
    }
}

/// How far two places in the key space are from each other, to be compared only.
#[must_use]
pub(crate) fn distance(a: &NodeId, b: &NodeId) -> NodeId {
    let mut out = [0; 32];
    for (out, (a, b)) in out.iter_mut().zip(a.iter().zip(b)) {
        *out = a ^ b;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(index: u16) -> SocketAddrV4 {
        SocketAddrV4::new([10, 0, (index >> 8) as u8, index as u8].into(), 1000)
    }

    fn filled(count: u16) -> RoutingTable {
        let mut table = RoutingTable::new([0; 32]);
        for index in 0..count {
            let _ = table.add(TableNode::new(address(index), 0));
        }
        table
    }

    #[test]
    fn a_row_holds_twenty_nodes_and_no_more() {
        let table = filled(2000);
        assert!(table.rows.iter().all(|row| row.len() <= K));
        assert!(table.rows[0].len() == K, "half of all ids differ in the first bit");
        assert_eq!(table.len(), table.iter().count());
    }

    /// As many nodes of a /24 as it can have at one port each.
    fn flood(table: &mut RoutingTable, block: [u8; 3], port: u16) {
        let [a, b, c] = block;
        for host in 0..=255 {
            let _ = table.add(TableNode::new(SocketAddrV4::new([a, b, c, host].into(), port), 0));
        }
    }

    #[test]
    fn one_network_block_gets_a_quarter_of_a_row() {
        let mut table = RoutingTable::new([0; 32]);
        (1..=40).for_each(|port| flood(&mut table, [20, 1, 7], port));
        assert!(table.rows.iter().all(|row| row.len() <= MAX_PER_BLOCK));
        assert_eq!(table.rows[0].len(), MAX_PER_BLOCK);
        // A row that is full for one block is not for others.
        flood(&mut table, [20, 1, 8], 1);
        assert_eq!(table.rows[0].len(), 2 * MAX_PER_BLOCK);
    }

    #[test]
    fn one_host_with_many_ports_gets_no_more_than_its_block() {
        let mut table = RoutingTable::new([0; 32]);
        for port in 1..=u16::MAX {
            let _ = table.add(TableNode::new(SocketAddrV4::new([20, 1, 7, 9].into(), port), 0));
        }
        assert!(table.rows.iter().all(|row| row.len() <= MAX_PER_BLOCK));
    }

    #[test]
    fn a_block_that_loses_a_node_may_send_another() {
        let mut table = RoutingTable::new([0; 32]);
        flood(&mut table, [20, 1, 7], 1);
        let newcomer = |port| TableNode::new(SocketAddrV4::new([20, 1, 7, 9].into(), port), 0);
        let port = (2..).find(|port| newcomer(*port).id[0] >= 0x80).unwrap();
        assert_eq!(table.add(newcomer(port)), Err(NotAdded::BlockFull));
        let leaving = table.rows[0][0].id;
        table.remove(&leaving);
        assert_eq!(table.add(newcomer(port)), Ok(()));
    }

    #[test]
    fn a_private_network_may_be_one_block() {
        for block in [[127, 0, 0], [192, 168, 1], [10, 0, 0], [100, 64, 0], [172, 16, 0]] {
            let mut table = RoutingTable::new([0; 32]);
            flood(&mut table, block, 1);
            assert_eq!(table.rows[0].len(), K, "{block:?}");
        }
    }

    #[test]
    fn a_smaller_bucket_holds_less() {
        let mut table = filled(0);
        table.set_bucket_size(2);
        (0..200).for_each(|index| _ = table.add(TableNode::new(address(index), 0)));
        table.rekey([9; 32]);
        assert!(table.rows.iter().all(|row| row.len() <= 2));
    }

    #[test]
    fn our_own_id_is_never_added() {
        let mut table = RoutingTable::new(node_id(address(1)));
        assert_eq!(table.add(TableNode::new(address(1), 0)), Err(NotAdded::Known));
    }

    #[test]
    fn closest_is_ordered_by_distance() {
        let table = filled(200);
        let target = [0x5a; 32];
        let closest = table.closest(&target, K);
        assert_eq!(closest.len(), K);
        let last = distance(&closest[K - 1].id, &target);
        assert!(
            closest
                .windows(2)
                .all(|pair| distance(&pair[0].id, &target) < distance(&pair[1].id, &target))
        );
        let closer = table.iter().filter(|node| distance(&node.id, &target) <= last).count();
        assert_eq!(closer, K);
    }

    #[test]
    fn the_least_recently_heard_node_comes_first() {
        let mut table = filled(3);
        let first = node_id(address(0));
        assert_eq!(table.oldest_first()[0].id, first);
        table.heard(&first, 7);
        assert_eq!(table.oldest_first()[2].id, first);
        assert_eq!(table.get(&first).unwrap().seen, 7);
    }

    #[test]
    fn rekeying_keeps_nodes_and_their_count() {
        let mut table = filled(30);
        let before = table.len();
        table.rekey([0xff; 32]);
        assert!(table.len() <= before && table.len() >= K);
        assert_eq!(table.len(), table.iter().count());
        let id = table.nth(0).unwrap().id;
        assert!(table.remove(&id).is_some());
        assert!(table.get(&id).is_none());
    }
}
