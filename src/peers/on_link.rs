//! Which addresses are on this machine's own networks.

use std::net::IpAddr;

use if_addrs::{IfAddr, Interface};

/// Whether packets to `ip` stay on this machine or on a network that it is directly on.
pub(crate) fn is_on_link(ip: IpAddr) -> bool {
    let is_link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    if ip.is_loopback() || is_link_local {
        return true;
    }
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    interfaces.iter().any(|interface: &Interface| is_within(&interface.addr, ip))
}

fn is_within(own: &IfAddr, ip: IpAddr) -> bool {
    match (own, ip) {
        (IfAddr::V4(own), IpAddr::V4(ip)) => {
            let mask = u32::from(own.netmask);
            mask != 0 && mask != u32::MAX && (u32::from(own.ip) ^ u32::from(ip)) & mask == 0
        }
        (IfAddr::V6(own), IpAddr::V6(ip)) => {
            let mask = u128::from(own.netmask);
            mask != 0 && mask != u128::MAX && (u128::from(own.ip) ^ u128::from(ip)) & mask == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use if_addrs::{Ifv4Addr, Ifv6Addr};

    #[test]
    fn an_address_within_the_mask_is_on_the_link() {
        let own = IfAddr::V4(Ifv4Addr {
            ip: "192.168.1.7".parse().unwrap(),
            netmask: "255.255.255.0".parse().unwrap(),
            prefixlen: 24,
            broadcast: None,
        });
        assert!(is_within(&own, "192.168.1.200".parse().unwrap()));
        assert!(!is_within(&own, "192.168.2.7".parse().unwrap()));
        assert!(!is_within(&own, "fe80::1".parse().unwrap()));
        let own = IfAddr::V6(Ifv6Addr {
            ip: "fd00:1::7".parse().unwrap(),
            netmask: "ffff:ffff:ffff:ffff::".parse().unwrap(),
            prefixlen: 64,
            broadcast: None,
        });
        assert!(is_within(&own, "fd00:1::9".parse().unwrap()));
        assert!(!is_within(&own, "fd00:2::9".parse().unwrap()));
    }
}
