//! What this machine is, as far as it matters for being reached.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

/// Files that container runtimes leave in every container.
const CONTAINER_MARKS: [&str; 2] = ["/.dockerenv", "/run/.containerenv"];
/// 2026 began then, in Unix milliseconds. No clock that was ever set is before that.
const EARLIEST: u64 = 1_767_225_600_000;

/// What this machine is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Surroundings {
    /// Whether it has an address that is not its own loopback.
    pub has_network: bool,
    /// The address that a container's runtime gave it, on a network of the runtime's own.
    pub bridge: Option<Ipv4Addr>,
    /// Whether the clock cannot be right.
    pub is_clock_wrong: bool,
}

impl Surroundings {
    /// Looks around. Costs a few system calls.
    pub(super) fn look(now_ms: u64) -> Self {
        let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
        let addresses: Vec<IpAddr> =
            interfaces.iter().filter(|i| !i.is_loopback()).map(if_addrs::Interface::ip).collect();
        let is_container = CONTAINER_MARKS.iter().any(|mark| Path::new(mark).exists());
        Self::of(&addresses, is_container, now_ms)
    }

    fn of(addresses: &[IpAddr], is_container: bool, now_ms: u64) -> Self {
        let v4: Vec<Ipv4Addr> = addresses
            .iter()
            .filter_map(|ip| match ip {
                IpAddr::V4(ip) => Some(*ip),
                IpAddr::V6(_) => None,
            })
            .collect();
        // With the host's network, a container has the host's address, too.
        let on_bridge = is_container && v4.iter().all(|ip| is_runtime_network(*ip));
        Self {
            has_network: !addresses.is_empty(),
            bridge: v4.first().copied().filter(|_| on_bridge),
            is_clock_wrong: now_ms < EARLIEST,
        }
    }
}

/// Networks that Docker (172.16.0.0/12) and Podman (10.88.0.0/16) give containers.
fn is_runtime_network(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    (a == 172 && (16..=31).contains(&b)) || (a == 10 && b == 88)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_container_on_its_runtimes_network_is_told_from_one_on_the_hosts() {
        let of = |list: &[&str], is_container| Surroundings::of(&ips(list), is_container, EARLIEST);
        assert_eq!(of(&["172.17.0.2"], true).bridge, Some(Ipv4Addr::new(172, 17, 0, 2)));
        assert_eq!(of(&["192.168.1.7", "172.17.0.1"], true).bridge, None);
        assert_eq!(of(&["172.17.0.2"], false).bridge, None);
        assert_eq!(of(&[], true).bridge, None);
    }

    #[test]
    fn a_clock_that_was_never_set_is_wrong() {
        assert!(Surroundings::of(&[], false, 0).is_clock_wrong);
        assert!(!Surroundings::look(crate::time::now_ms()).is_clock_wrong);
    }
}
