//! What NAT stands before one socket, as the nodes that it talks to see it (`hyperdht` `lib/nat.js`).
//!
//! Each node counts once. Three that see the same address make a consistent NAT; when each sees
//! another port it is random.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use super::super::messages::FirewallKind;

/// Samples with which a decision is made, whatever they say.
pub(crate) const ENOUGH: usize = 4;
/// Samples without which none is made.
const FEWEST: usize = 3;
/// Addresses that are told to the other side although only one node saw us there.
const FEW_ADDRESSES: usize = 2;

/// The samples of a socket.
#[derive(Debug, Default)]
pub(crate) struct SocketNat {
    sampled: HashSet<SocketAddr>,
    hosts: Vec<(Ipv4Addr, usize)>,
    addresses: Vec<(SocketAddrV4, usize)>,
    firewall: FirewallKind,
    is_frozen: bool,
}

impl SocketNat {
    /// Adds where `from` sees us.
    pub(crate) fn add(&mut self, seen: SocketAddrV4, from: SocketAddr) {
        // Once enough is known more changes nothing, and must not fill the memory.
        if self.sampled.len() >= 4 * ENOUGH || !self.sampled.insert(from) {
            return;
        }
        count(&mut self.hosts, *seen.ip());
        count(&mut self.addresses, seen);
        if !self.is_frozen {
            self.decide();
        }
    }

    /// From now on new samples change nothing: the other side has been told.
    pub(crate) fn freeze(&mut self) {
        self.is_frozen = true;
    }

    pub(crate) fn firewall(&self) -> FirewallKind {
        self.firewall
    }

    /// Whether more samples are not worth waiting for.
    pub(crate) fn is_decided(&self) -> bool {
        self.firewall == FirewallKind::Consistent || self.sampled.len() >= ENOUGH
    }

    /// Where the other side should send to.
    pub(crate) fn addresses(&self) -> Option<Vec<SocketAddrV4>> {
        match self.firewall {
            FirewallKind::Unknown | FirewallKind::Open => None,
            FirewallKind::Random => Some(
                self.hosts.iter().take(1).map(|(host, _)| SocketAddrV4::new(*host, 0)).collect(),
            ),
            FirewallKind::Consistent => {
                let seen = self.addresses.iter().enumerate();
                let told = seen.filter(|(index, (_, hits))| *hits >= 2 || *index < FEW_ADDRESSES);
                Some(told.map(|(_, (address, _))| *address).collect())
            }
        }
    }

    fn decide(&mut self) {
        let sampled = self.sampled.len();
        if sampled < FEWEST {
            return;
        }
        let hits = |index: usize| self.addresses.get(index).map_or(0, |(_, hits)| *hits);
        self.firewall = match hits(0) {
            3.. => FirewallKind::Consistent,
            0 | 1 => FirewallKind::Random,
            // Half of the samples at one host's one port.
            _ if self.hosts.len() == 1 && sampled > FEWEST => FirewallKind::Random,
            // Two hosts, each with one port: two ways out of the same network.
            _ if self.hosts.len() > 1 && hits(1) > 1 => FirewallKind::Consistent,
            _ if sampled > ENOUGH => FirewallKind::Random,
            _ => return,
        };
    }
}

/// Counts `item`; those seen most come first.
fn count<T: PartialEq>(items: &mut Vec<(T, usize)>, item: T) {
    match items.iter_mut().find(|(known, _)| *known == item) {
        Some((_, hits)) => *hits += 1,
        None => items.push((item, 1)),
    }
    items.sort_by_key(|(_, hits)| std::cmp::Reverse(*hits));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nat(samples: &[&str]) -> SocketNat {
        let mut nat = SocketNat::default();
        for (port, sample) in (1u16..).zip(samples) {
            nat.add(sample.parse().unwrap(), SocketAddr::from(([9, 9, 9, 9], port)));
        }
        nat
    }

    fn addresses(nat: &SocketNat) -> Vec<String> {
        nat.addresses().unwrap_or_default().iter().map(SocketAddrV4::to_string).collect()
    }

    #[test]
    fn three_nodes_that_agree_make_it_consistent() {
        let nat = nat(&["1.1.1.1:5", "1.1.1.1:6", "1.1.1.1:5", "1.1.1.1:5"]);
        assert_eq!((nat.firewall(), nat.is_decided()), (FirewallKind::Consistent, true));
        assert_eq!(addresses(&nat), ["1.1.1.1:5", "1.1.1.1:6"]);
    }

    #[test]
    fn another_port_for_each_node_makes_it_random_with_the_host_only() {
        let nat = nat(&["1.1.1.1:5", "1.1.1.1:6", "1.1.1.1:7", "1.1.1.1:8"]);
        assert_eq!((nat.firewall(), nat.is_decided()), (FirewallKind::Random, true));
        assert_eq!(addresses(&nat), ["1.1.1.1:0"]);
    }

    #[test]
    fn one_host_with_two_pairs_of_ports_is_random() {
        let nat = nat(&["1.1.1.1:5", "1.1.1.1:5", "1.1.1.1:6", "1.1.1.1:6"]);
        assert_eq!(nat.firewall(), FirewallKind::Random);
    }

    #[test]
    fn two_hosts_with_one_port_each_are_consistent() {
        let nat = nat(&["1.1.1.1:5", "2.2.2.2:5", "1.1.1.1:5", "2.2.2.2:5"]);
        assert_eq!(nat.firewall(), FirewallKind::Consistent);
        assert_eq!(addresses(&nat), ["1.1.1.1:5", "2.2.2.2:5"]);
    }

    #[test]
    fn two_samples_decide_nothing() {
        let nat = nat(&["1.1.1.1:5", "1.1.1.1:5"]);
        assert_eq!((nat.firewall(), nat.addresses()), (FirewallKind::Unknown, None));
        assert!(!nat.is_decided());
    }

    #[test]
    fn a_node_counts_once() {
        let mut nat = SocketNat::default();
        for _ in 0..5 {
            nat.add("1.1.1.1:5".parse().unwrap(), "9.9.9.9:9".parse().unwrap());
        }
        assert_eq!((nat.sampled.len(), nat.firewall()), (1, FirewallKind::Unknown));
    }

    #[test]
    fn what_was_told_stays() {
        let mut nat = nat(&["1.1.1.1:5", "1.1.1.1:6", "1.1.1.1:7"]);
        nat.freeze();
        for port in 100..110 {
            nat.add("1.1.1.1:5".parse().unwrap(), SocketAddr::from(([9, 9, 9, 9], port)));
        }
        assert_eq!(nat.firewall(), FirewallKind::Random);
    }
}
