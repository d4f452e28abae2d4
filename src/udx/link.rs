//! What the link to the first hop carries.

use std::net::SocketAddr;

use super::mtu::ETHERNET_MTU;

/// The MTU of the route that packets to `to` take from here, as far as the kernel knows it; Ethernet's
/// where it does not say. The whole path may carry less.
pub(super) fn mtu_towards(to: SocketAddr) -> u16 {
    let mtu = known(to).unwrap_or(u32::from(ETHERNET_MTU));
    u16::try_from(mtu).unwrap_or(u16::MAX)
}

#[cfg(target_os = "linux")]
fn known(to: SocketAddr) -> Option<u32> {
    use socket2::{Domain, Protocol, Socket, Type};

    // Connected, a UDP socket has a route. Nothing is sent.
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP)).ok()?;
    socket.connect(&to.into()).ok()?;
    let mtu = match to {
        SocketAddr::V4(_) => rustix::net::sockopt::ip_mtu(&socket),
        SocketAddr::V6(_) => rustix::net::sockopt::ipv6_mtu(&socket),
    };
    mtu.ok()
}

#[cfg(not(target_os = "linux"))]
fn known(_: SocketAddr) -> Option<u32> {
    None
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn loopback_carries_more_than_ethernet() {
        for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let to = SocketAddr::new(ip, 9);
            // No IPv6 on this machine, perhaps.
            assert!(known(to).is_none_or(|mtu| mtu > u32::from(ETHERNET_MTU)), "{to}");
        }
        assert!(known(SocketAddr::from((Ipv4Addr::LOCALHOST, 9))).is_some());
    }

    #[test]
    fn without_a_route_it_is_ethernet() {
        // Broadcasting has to be allowed first.
        assert_eq!(mtu_towards(SocketAddr::from((Ipv4Addr::BROADCAST, 9))), ETHERNET_MTU);
    }
}
