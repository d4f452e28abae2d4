//! What a person can do about what does not work.

use std::time::Duration;

use super::surroundings::Surroundings;
use crate::crypto::PublicKey;
use crate::discovery::LanStatus;
use crate::error::ErrorCode;
use crate::hyperdht::DhtStatus;
use crate::peers::Peer;

/// How long the search on the local network may take to hear itself.
const LAN_PATIENCE: Duration = Duration::from_secs(5);

/// What advice is given on.
#[derive(Default)]
pub(super) struct Facts<'a> {
    pub is_suspended: bool,
    /// The DHT, where it is used.
    pub dht: Option<&'a DhtStatus>,
    /// The local network, where it is searched.
    pub lan: Option<&'a LanStatus>,
    pub surroundings: Surroundings,
    /// The UDP port of this node.
    pub port: Option<u16>,
    /// The approved peers.
    pub peers: &'a [Peer],
    pub pending: usize,
    /// What is wrong with the own catalog.
    pub trouble: Option<&'a str>,
    /// The servers whose catalogs cannot be shown, and why.
    pub unreadable: &'a [(PublicKey, String)],
}

impl Facts<'_> {
    /// One sentence or two for each thing that can be bettered, the most urgent first.
    pub(super) fn advice(&self) -> Vec<String> {
        let mut advice: Vec<String> = self.trouble.map(str::to_owned).into_iter().collect();
        if self.surroundings.is_clock_wrong {
            advice.push(
                "The clock of this machine is years behind. Books and events get wrong dates: set the \
                 clock, or let the system set it over the network."
                    .to_owned(),
            );
        }
        if self.is_suspended {
            advice
                .push("The node is suspended: resume() brings it back on the network.".to_owned());
        } else {
            advice.extend(self.network());
            advice.extend(self.lan());
        }
        advice.extend(self.pending());
        advice.extend(self.unreadable.iter().map(|(server, why)| {
            let key = server.to_z32();
            let peer = self.peers.iter().find(|peer| peer.key == key);
            let name = peer.and_then(Peer::display_name).unwrap_or(&key);
            format!("There is nothing to see of the server {name}: {why}.")
        }));
        if !self.is_suspended {
            advice.extend(self.router());
            advice.extend(self.peers());
        }
        advice
    }

    fn network(&self) -> Option<String> {
        if !self.surroundings.has_network {
            return Some(
                "This machine is on no network: plug it in, or connect it to the Wi-Fi.".to_owned(),
            );
        }
        if self.is_dht_silent() && self.lan.is_some_and(|lan| lan.others > 0) {
            return Some(
                "The internet is not reached, or a firewall lets no UDP out: peers on the local network \
                 are connected all the same."
                    .to_owned(),
            );
        }
        self.is_dht_silent().then(|| {
            let port = self.port.map(|port| format!(" (this node's port is {port})"));
            format!(
                "Nothing at all answers over UDP. Check that this machine is online and that its \
                 firewall lets UDP out{}; with a private network, check the bootstrap addresses.",
                port.unwrap_or_default()
            )
        })
    }

    /// Whether the first look for the DHT is over and no node ever answered.
    fn is_dht_silent(&self) -> bool {
        self.dht.is_some_and(|dht| dht.bootstrapped && dht.nodes == 0)
    }

    fn lan(&self) -> Option<String> {
        let lan = self.lan?;
        if let Some(address) = self.surroundings.bridge {
            let port = self.port.unwrap_or(crate::hyperdht::DEFAULT_PORT);
            return Some(format!(
                "This node runs in a container with a network of its own ({address}): servers in your \
                 house do not see it, nor does it see them. Give the container the host's network \
                 (docker run --network host), or publish the port (-p {port}:{port}/udp) and tell the \
                 other servers the host's address: peers.update(key, {{ address: 'host:{port}' }})."
            ));
        }
        if !self.surroundings.has_network || lan.since?.elapsed() < LAN_PATIENCE {
            return None;
        }
        if lan.is_flooded {
            return Some(
                "Somebody floods the local network with announcements, so the search there pauses. \
                 Peers whose address is known are still dialed."
                    .to_owned(),
            );
        }
        if !lan.is_heard {
            let reason = lan.trouble.as_deref().map(|trouble| format!(" ({trouble})"));
            return Some(format!(
                "Multicast does not work here{}: let this machine's firewall pass UDP port 5353, or tell \
                 each server where the other is: peers.update(key, {{ address: 'host:port' }}).",
                reason.unwrap_or_default()
            ));
        }
        let is_only_way = self.dht.is_none() || self.is_dht_silent();
        let somebody_is_missing = self.peers.iter().any(|peer| !peer.is_online);
        (lan.others == 0 && is_only_way && somebody_is_missing).then(|| {
            "No other server announces itself on the local network. Check that both are on the same \
             network (a guest Wi-Fi is another one, and some routers keep devices apart), or tell each \
             where the other is: peers.update(key, { address: 'host:port' })."
                .to_owned()
        })
    }

    fn router(&self) -> Option<String> {
        let is_in_the_way = |peer: &Peer| {
            let problem = peer.problem.as_ref().filter(|_| !peer.is_online);
            problem.is_some_and(|problem| problem.code == ErrorCode::PeerUnreachable.as_str())
        };
        let is_random = self.dht.is_some_and(|dht| dht.randomized);
        (is_random && self.peers.iter().any(is_in_the_way)).then(|| {
            let port = self.port.unwrap_or(crate::hyperdht::DEFAULT_PORT);
            format!(
                "This router or provider uses another port for each destination, so that peers behind \
                 such a router do not reach this node: forward UDP port {port} of the router to this \
                 machine. One of the two sides is enough."
            )
        })
    }

    fn pending(&self) -> Option<String> {
        let keys = match self.pending {
            0 => return None,
            1 => "1 key knocked and waits",
            _ => "Some keys knocked and wait",
        };
        Some(format!("{keys} for approval: see peers.pending()."))
    }

    fn peers(&self) -> impl Iterator<Item = String> + '_ {
        self.peers.iter().filter(|peer| !peer.is_online).filter_map(|peer| {
            let name = peer.display_name().unwrap_or(&peer.key);
            peer.problem.as_ref().map(|problem| format!("{name}: {}", problem.message))
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn silent_dht() -> DhtStatus {
        DhtStatus {
            bootstrapped: true,
            ephemeral: true,
            firewalled: true,
            randomized: false,
            remote_address: None,
            seen_host: None,
            nodes: 0,
        }
    }

    fn at_home() -> Surroundings {
        Surroundings { has_network: true, ..Surroundings::default() }
    }

    fn lan(is_heard: bool) -> LanStatus {
        let since = Instant::now().checked_sub(2 * LAN_PATIENCE);
        LanStatus { is_heard, since, ..LanStatus::default() }
    }

    #[track_caller]
    fn says(facts: &Facts<'_>, words: &str) {
        let advice = facts.advice();
        assert!(advice.len() == 1 && advice[0].contains(words), "{advice:?}");
    }

    #[test]
    fn where_all_is_well_there_is_no_advice() {
        let dht = DhtStatus { nodes: 20, ..silent_dht() };
        let lan = lan(true);
        let facts =
            Facts { dht: Some(&dht), lan: Some(&lan), surroundings: at_home(), ..Facts::default() };
        assert!(facts.advice().is_empty());
    }

    #[test]
    fn each_trouble_has_its_advice() {
        let dht = silent_dht();
        let here = || Facts { surroundings: at_home(), ..Facts::default() };
        says(&Facts { dht: Some(&dht), ..here() }, "UDP");
        says(&Facts { lan: Some(&lan(false)), ..here() }, "Multicast");
        let flooded = LanStatus { is_flooded: true, ..lan(true) };
        says(&Facts { lan: Some(&flooded), ..here() }, "floods");
        says(&Facts { pending: 1, ..here() }, "1 key");
        says(&Facts { is_suspended: true, ..here() }, "resume()");
        says(&Facts { dht: Some(&dht), ..Facts::default() }, "no network");
        let clock = Surroundings { is_clock_wrong: true, ..at_home() };
        says(&Facts { surroundings: clock, ..here() }, "clock");
        let bridge = Surroundings { bridge: Some([172, 17, 0, 2].into()), ..at_home() };
        let facts = Facts { lan: Some(&lan(true)), surroundings: bridge, port: Some(7), ..here() };
        says(&facts, "7:7/udp");
    }

    #[test]
    fn a_search_that_has_just_begun_is_not_refused() {
        let lan = LanStatus { since: Some(Instant::now()), ..LanStatus::default() };
        let facts = Facts { lan: Some(&lan), surroundings: at_home(), ..Facts::default() };
        assert!(facts.advice().is_empty());
    }
}
