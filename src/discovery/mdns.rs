//! Announcing and browsing `_alex-p2p._udp` by multicast DNS (crate `mdns-sd`).
//!
//! An instance is called by its server's key, and its SRV record has the port: that is all. The crate has
//! a thread of its own and keeps every record that it hears; how many those are is looked at from here.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use mdns_sd::{
    DaemonEvent, IfKind, Receiver, ResolvedService, ScopedIp, ServiceDaemon, ServiceEvent,
    ServiceInfo,
};

use crate::crypto::PublicKey;
use crate::peers::is_on_link;

/// The service.
const SERVICE: &str = "_alex-p2p._udp.local.";
/// Characters of a key in z32.
const KEY_CHARS: usize = 52;
/// Addresses taken from one instance.
const MAX_ADDRESSES: usize = 8;
/// Records in the crate's memory, above which somebody floods the network.
const MAX_RECORDS: i64 = 4096;
/// How long the crate's thread may take for the goodbye, or any answer.
const ANSWER: Duration = Duration::from_secs(1);

/// Who announces itself, and where.
#[derive(Debug, Clone)]
pub(super) struct Announced {
    pub key: PublicKey,
    /// Where the node listens.
    pub address: SocketAddr,
    /// The port of mDNS: 5353.
    pub mdns_port: u16,
}

/// What is heard of a key. Anybody may have said it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sighting {
    Here { key: PublicKey, addresses: Vec<SocketAddr> },
    Gone { key: PublicKey },
}

/// What comes out of the crate.
pub(super) enum News {
    Sighting(Sighting),
    /// It could not use an interface, or something else that a person may want to know.
    Trouble(String),
    /// It gave up: more came than could be read.
    Over,
}

/// The announcement and the search, until closed.
pub(super) struct Mdns {
    daemon: ServiceDaemon,
    services: Receiver<ServiceEvent>,
    events: Receiver<DaemonEvent>,
}

impl Mdns {
    /// Announces and searches on every interface, or on that of the address that the node listens on.
    pub(super) fn start(announced: &Announced) -> Result<Self, mdns_sd::Error> {
        let daemon = ServiceDaemon::new_with_port(announced.mdns_port)?;
        let events = daemon.monitor()?;
        let ip = announced.address.ip();
        if !ip.is_unspecified() {
            daemon.disable_interface(IfKind::All)?;
            daemon.enable_interface(IfKind::Addr(ip))?;
        }
        daemon.register(service(announced)?)?;
        let services = daemon.browse(SERVICE)?;
        Ok(Self { daemon, services, events })
    }

    /// What is heard next. Cancel safe.
    pub(super) async fn next(&self) -> News {
        loop {
            tokio::select! {
                event = self.services.recv_async() => match event {
                    Ok(ServiceEvent::ServiceResolved(service)) => {
                        if let Some(sighting) = here(&service) {
                            return News::Sighting(sighting);
                        }
                    }
                    Ok(ServiceEvent::ServiceRemoved(_, name)) => {
                        if let Some(key) = key_of(&name) {
                            return News::Sighting(Sighting::Gone { key });
                        }
                    }
                    Ok(_) => {}
                    Err(_) => return News::Over,
                },
                event = self.events.recv_async() => match event {
                    Ok(DaemonEvent::Error(error)) => return News::Trouble(error.to_string()),
                    Ok(_) => {}
                    Err(_) => return News::Over,
                },
            }
        }
    }

    /// Whether the crate remembers more than an honest network has. Cancel safe.
    pub(super) async fn is_flooded(&self) -> bool {
        let Ok(metrics) = self.daemon.get_metrics() else { return true };
        // Too busy to say is as bad.
        let answer = tokio::time::timeout(ANSWER, metrics.recv_async()).await;
        let Ok(Ok(metrics)) = answer else { return true };
        let is_memory = |name: &str| name.starts_with("cached-") || name == "timer";
        let counts = metrics.iter().filter(|(name, _)| is_memory(name));
        counts.map(|(_, count)| count).sum::<i64>() > MAX_RECORDS
    }

    /// Says goodbye and ends the crate's thread, for at most a second.
    pub(super) async fn close(self) {
        if let Ok(ended) = self.daemon.shutdown() {
            // A thread that is stuck ends with its sockets at some later time.
            let _ = tokio::time::timeout(ANSWER, ended.recv_async()).await;
        }
    }
}

fn service(announced: &Announced) -> Result<ServiceInfo, mdns_sd::Error> {
    let Announced { key, address, .. } = announced;
    let name = key.to_z32();
    let host = format!("{name}.local.");
    let none: Option<HashMap<String, String>> = None;
    let mut service = match address.ip() {
        ip if ip.is_unspecified() => {
            ServiceInfo::new(SERVICE, &name, &host, (), address.port(), none)?.enable_addr_auto()
        }
        ip => ServiceInfo::new(SERVICE, &name, &host, ip, address.port(), none)?,
    };
    if address.ip() == IpAddr::V4(Ipv4Addr::UNSPECIFIED) {
        // The socket takes nothing that is sent to an IPv6 address.
        service.set_interfaces(vec![IfKind::IPv4]);
    }
    // The name is the key: nobody else has it by right, and whoever claims it must not make us change it.
    service.set_requires_probe(false);
    Ok(service)
}

fn key_of(full_name: &str) -> Option<PublicKey> {
    let name = full_name.split('.').next()?;
    PublicKey::from_z32(name.get(..KEY_CHARS)?)
}

fn here(service: &ResolvedService) -> Option<Sighting> {
    let key = key_of(&service.fullname)?;
    let addresses: Vec<SocketAddr> = service
        .addresses
        .iter()
        .filter_map(|ip| socket_address(ip, service.port))
        .take(MAX_ADDRESSES)
        .collect();
    (!addresses.is_empty()).then_some(Sighting::Here { key, addresses })
}

/// An address on a local network. Others, that somebody would have us send packets to, are left out.
fn socket_address(ip: &ScopedIp, port: u16) -> Option<SocketAddr> {
    match ip {
        // This machine itself, only when this machine says so.
        ScopedIp::V4(v4) if v4.addr().is_loopback() => v4
            .interface_ids()
            .iter()
            .any(|id| id.name.starts_with("lo"))
            .then_some(SocketAddr::new((*v4.addr()).into(), port)),
        ScopedIp::V4(v4) => {
            let ip = *v4.addr();
            (ip.is_private() || ip.is_link_local() || is_on_link(ip.into()))
                .then_some(SocketAddr::new(ip.into(), port))
        }
        ScopedIp::V6(v6) => {
            let ip: Ipv6Addr = *v6.addr();
            let scope = if ip.is_unicast_link_local() { v6.scope_id().index } else { 0 };
            let is_local = ip.is_unique_local() || (!ip.is_loopback() && is_on_link(ip.into()));
            is_local.then_some(SocketAddr::V6(SocketAddrV6::new(ip, port, 0, scope)))
        }
        _ => None,
    }
}
