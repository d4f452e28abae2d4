//! How to get through two NATs, by what is known of both (`hyperdht` `lib/holepuncher.js`).
//!
//! - Both consistent: each side sends to the addresses that the other told.
//! - One random: its address is known but not its port. It opens many sockets towards the other side,
//!   which tries one port after the other until it hits the mapping of one of them. By the birthday
//!   paradox that takes a few hundred packets instead of tens of thousands.
//! - Both random: there is no way.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use super::super::messages::FirewallKind;

/// Sockets that the side behind a random NAT opens.
pub(crate) const BIRTHDAY_SOCKETS: usize = 256;
/// For how long ports are tried.
pub(crate) const RANDOM_PUNCH: Duration = Duration::from_secs(35);
/// Pause between two packets to random ports. The reference takes 20 ms; a quarter of that is still
/// less than a tenth of a megabit a second.
pub(crate) const PROBE_INTERVAL: Duration = Duration::from_millis(5);
/// Pause between two packets that keep the mappings of the opened sockets.
pub(crate) const KEEP_INTERVAL: Duration = Duration::from_millis(20);
/// Lower ports are not given out by NATs.
const LOWEST_PORT: u16 = 1000;
/// Rounds of sending when both NATs are consistent.
const ROUNDS: u32 = 12;
/// Every how many rounds addresses that are not verified get a packet.
const UNVERIFIED_ROUNDS: u32 = 4;

/// An address that the other side told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RemoteAddress {
    pub address: SocketAddrV4,
    /// Whether the other side has proved that it is at this host: others must not get many packets.
    pub is_verified: bool,
}

/// What the other side said last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Remote {
    pub firewall: FirewallKind,
    pub addresses: Vec<RemoteAddress>,
    pub is_punching: bool,
}

impl Remote {
    /// Takes what the other side says now; `verified` is where it has proved to be. What was verified
    /// once stays so.
    pub(crate) fn update(
        &mut self,
        firewall: FirewallKind,
        addresses: &[SocketAddrV4],
        is_punching: bool,
        verified: Option<Ipv4Addr>,
    ) {
        let known = |ip: Ipv4Addr| {
            let mut before = self.addresses.iter();
            verified == Some(ip)
                || before.any(|known| known.is_verified && *known.address.ip() == ip)
        };
        let remote = |address: &SocketAddrV4| RemoteAddress {
            address: *address,
            is_verified: known(*address.ip()),
        };
        self.addresses = addresses.iter().map(remote).collect();
        self.firewall = firewall;
        self.is_punching = is_punching;
    }

    fn verified(&self) -> Option<SocketAddrV4> {
        let verified = self.addresses.iter().find(|address| address.is_verified);
        verified.map(|verified| verified.address)
    }
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Send to these addresses.
    Consistent(Vec<RemoteAddress>),
    /// Try the ports of this host.
    TryPorts(Ipv4Addr),
    /// Open many sockets towards this address.
    OpenSockets(SocketAddrV4),
}

impl Plan {
    /// `None` when there is no way through.
    pub(crate) fn new(local: FirewallKind, remote: &Remote) -> Option<Self> {
        if remote.addresses.is_empty() {
            return None;
        }
        match (is_consistent(local), is_consistent(remote.firewall)) {
            (true, true) => Some(Self::Consistent(remote.addresses.clone())),
            (true, false) if remote.firewall == FirewallKind::Random => {
                remote.verified().map(|address| Self::TryPorts(*address.ip()))
            }
            (false, true) if local == FirewallKind::Random => {
                remote.verified().filter(|address| address.port() != 0).map(Self::OpenSockets)
            }
            _ => None,
        }
    }
}

/// Whether others see one address of this side.
pub(crate) fn is_consistent(firewall: FirewallKind) -> bool {
    matches!(firewall, FirewallKind::Open | FirewallKind::Consistent)
}

/// Whether this needs one of the punches that take hundreds of packets.
pub(crate) fn is_random(local: FirewallKind, remote: FirewallKind) -> bool {
    local == FirewallKind::Random || remote == FirewallKind::Random
}

/// When both are consistent: to whom to send in round `round`, from 0 on, and how long to wait then.
/// `None` after the last.
pub(crate) fn consistent_round(
    round: u32,
    addresses: &[RemoteAddress],
) -> Option<(Vec<SocketAddrV4>, Duration)> {
    if round >= ROUNDS {
        return None;
    }
    let is_due = |address: &&RemoteAddress| {
        address.address.port() != 0
            && (address.is_verified || round.is_multiple_of(UNVERIFIED_ROUNDS))
    };
    let due = addresses.iter().filter(is_due).map(|address| address.address).collect();
    // Close together at first: packets get lost, and people wait.
    let pause = Duration::from_millis(100 << round.min(3)).min(Duration::from_secs(1));
    Some((due, pause))
}

/// A port that a NAT may have given out, by 16 random bits.
pub(crate) fn port(random: u16) -> u16 {
    let range = u32::from(u16::MAX - LOWEST_PORT) + 1;
    LOWEST_PORT + u16::try_from((u32::from(random) * range) >> 16).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Ipv4Addr = Ipv4Addr::new(1, 1, 1, 1);

    fn remote(firewall: FirewallKind, verified: bool) -> Remote {
        let mut remote = Remote::default();
        remote.update(firewall, &[SocketAddrV4::new(HERE, 7)], true, verified.then_some(HERE));
        remote
    }

    #[test]
    fn two_consistent_nats_need_no_proof() {
        let plan = Plan::new(FirewallKind::Consistent, &remote(FirewallKind::Consistent, false));
        assert!(matches!(plan, Some(Plan::Consistent(addresses)) if addresses.len() == 1));
    }

    #[test]
    fn a_random_nat_opens_sockets_and_the_other_side_tries_ports() {
        let plan = Plan::new(FirewallKind::Random, &remote(FirewallKind::Consistent, true));
        assert_eq!(plan, Some(Plan::OpenSockets(SocketAddrV4::new(HERE, 7))));
        let plan = Plan::new(FirewallKind::Open, &remote(FirewallKind::Random, true));
        assert_eq!(plan, Some(Plan::TryPorts(HERE)));
    }

    #[test]
    fn nobody_is_flooded_who_has_not_proved_to_be_there() {
        for (local, other) in [
            (FirewallKind::Random, FirewallKind::Consistent),
            (FirewallKind::Consistent, FirewallKind::Random),
        ] {
            assert_eq!(Plan::new(local, &remote(other, false)), None);
        }
    }

    #[test]
    fn two_random_nats_have_no_way() {
        assert_eq!(Plan::new(FirewallKind::Random, &remote(FirewallKind::Random, true)), None);
        assert_eq!(Plan::new(FirewallKind::Unknown, &remote(FirewallKind::Consistent, true)), None);
    }

    #[test]
    fn what_was_verified_stays_so_while_the_host_is_named() {
        let mut remote = remote(FirewallKind::Consistent, true);
        let other = Ipv4Addr::new(2, 2, 2, 2);
        let named = [SocketAddrV4::new(other, 1), SocketAddrV4::new(HERE, 9)];
        remote.update(FirewallKind::Consistent, &named, true, None);
        let verified: Vec<bool> =
            remote.addresses.iter().map(|address| address.is_verified).collect();
        assert_eq!(verified, [false, true]);
    }

    #[test]
    fn unverified_addresses_get_a_packet_in_every_fourth_round() {
        let Remote { addresses, .. } = remote(FirewallKind::Consistent, false);
        let rounds = (0..).map_while(|round| consistent_round(round, &addresses));
        let sent: Vec<usize> = rounds.map(|(due, _)| due.len()).collect();
        assert_eq!(sent, [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn ports_reach_from_the_lowest_to_the_highest() {
        assert_eq!((port(0), port(u16::MAX)), (LOWEST_PORT, u16::MAX));
    }
}
