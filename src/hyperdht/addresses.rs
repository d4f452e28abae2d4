//! Which of several addresses of a peer to use (npm `bogon`, `hyperdht` `lib/holepuncher.js`).

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::sync::lock;

/// How long a list of the machine's own addresses is believed.
const LOCAL_MAX_AGE: Duration = Duration::from_secs(10);

/// How many own addresses are told to a peer.
const MAX_LOCAL: usize = 8;

/// Hosts of private networks, this machine included (`isPrivate`).
pub(crate) fn is_private(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || (a == 100 && (64..=127).contains(&b))
}

/// Hosts that nobody can have (`isReserved`).
pub(crate) fn is_reserved(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    a == 0
        || (a == 192 && b == 0 && c == 0)
        || ip.is_documentation()
        || (a == 198 && (18..=19).contains(&b))
        || a >= 224
}

/// Hosts that mean nothing on the public network.
pub(crate) fn is_bogon(ip: Ipv4Addr) -> bool {
    is_private(ip) || is_reserved(ip)
}

/// The address among `remote` that shares the longest prefix with one of ours, at least 8 bits.
pub(crate) fn match_address(
    ours: &[SocketAddrV4],
    remote: &[SocketAddrV4],
) -> Option<SocketAddrV4> {
    let shared = |remote: &SocketAddrV4| {
        let octets = remote.ip().octets();
        let common = |ours: &SocketAddrV4| {
            ours.ip().octets().iter().zip(octets).take(3).take_while(|(a, b)| *a == b).count()
        };
        ours.iter().map(common).max().unwrap_or(0)
    };
    let best = remote.iter().max_by_key(|address| shared(address))?;
    (shared(best) > 0).then_some(*best)
}

/// The IPv4 addresses of this machine's interfaces, looked up now and then.
#[derive(Debug, Default)]
pub(crate) struct LocalAddresses {
    cached: Mutex<Option<(Instant, Vec<Ipv4Addr>)>>,
}

impl LocalAddresses {
    /// Where a peer on the same network reaches a socket bound to `bound`. Loopback only when there
    /// is nothing else, or when bound to it.
    pub(crate) fn of(&self, bound: SocketAddr) -> Vec<SocketAddrV4> {
        let port = bound.port();
        match bound.ip() {
            IpAddr::V4(ip) if !ip.is_unspecified() => vec![SocketAddrV4::new(ip, port)],
            IpAddr::V6(ip) if !ip.is_unspecified() => Vec::new(),
            _ => self.interfaces().into_iter().map(|ip| SocketAddrV4::new(ip, port)).collect(),
        }
    }

    fn interfaces(&self) -> Vec<Ipv4Addr> {
        let mut cached = lock(&self.cached);
        if let Some((at, addresses)) = cached.as_ref()
            && at.elapsed() < LOCAL_MAX_AGE
        {
            return addresses.clone();
        }
        let mut addresses: Vec<Ipv4Addr> = if_addrs::get_if_addrs()
            .unwrap_or_default()
            .into_iter()
            .filter_map(|interface| match interface.ip() {
                IpAddr::V4(ip) if !ip.is_loopback() => Some(ip),
                _ => None,
            })
            .take(MAX_LOCAL)
            .collect();
        if addresses.is_empty() {
            addresses.push(Ipv4Addr::LOCALHOST);
        }
        *cached = Some((Instant::now(), addresses.clone()));
        addresses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(text: &str) -> SocketAddrV4 {
        text.parse().unwrap()
    }

    #[test]
    fn the_closest_network_wins() {
        let ours = [v4("192.168.1.7:1")];
        let remote = [v4("10.0.0.1:1"), v4("192.168.2.1:1"), v4("192.168.1.9:1")];
        assert_eq!(match_address(&ours, &remote), Some(v4("192.168.1.9:1")));
        assert_eq!(match_address(&ours, &remote[..1]), None);
        assert_eq!(match_address(&ours, &[]), None);
    }

    #[test]
    fn private_and_reserved_hosts_are_bogons() {
        for ip in
            ["10.0.0.1", "100.64.0.1", "127.0.0.1", "169.254.1.1", "172.16.0.1", "192.168.0.1"]
        {
            assert!(is_private(ip.parse().unwrap()), "{ip}");
        }
        for ip in
            ["0.0.0.0", "192.0.2.1", "198.18.0.1", "203.0.113.1", "224.0.0.1", "255.255.255.255"]
        {
            assert!(is_reserved(ip.parse().unwrap()), "{ip}");
        }
        for ip in ["8.8.8.8", "100.128.0.1", "172.32.0.1", "1.1.1.1"] {
            assert!(!is_bogon(ip.parse().unwrap()), "{ip}");
        }
    }

    #[tokio::test]
    async fn a_socket_bound_to_one_host_has_that_address_only() {
        let local = LocalAddresses::default();
        let bound = "127.0.0.1:7".parse().unwrap();
        assert_eq!(local.of(bound), vec![v4("127.0.0.1:7")]);
        assert!(!local.of("0.0.0.0:7".parse().unwrap()).is_empty());
    }
}
