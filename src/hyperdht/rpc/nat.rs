//! Which address other nodes see us at (npm `nat-sampler`).
//!
//! Every new node tells us once where our packets came from. When nearly all of the last samples agree
//! on host and port, that is our address; when they agree on the host only, a NAT gives each
//! destination its own port.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};

/// How many samples are remembered.
const WINDOW: usize = 16;

/// The vote of the last samples.
#[derive(Debug, Default, Clone)]
pub(crate) struct NatSampler {
    samples: VecDeque<SocketAddrV4>,
    total: usize,
}

/// What the samples say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NatView {
    /// No samples yet, or no two alike.
    Unknown,
    /// Everyone sees this host, but ports differ.
    Randomized(Ipv4Addr),
    /// Everyone sees this address.
    Consistent(SocketAddrV4),
}

impl NatView {
    pub(crate) fn host(self) -> Option<Ipv4Addr> {
        match self {
            Self::Unknown => None,
            Self::Randomized(host) => Some(host),
            Self::Consistent(address) => Some(*address.ip()),
        }
    }
}

impl NatSampler {
    /// Adds what one node saw.
    pub(crate) fn add(&mut self, address: SocketAddrV4) {
        if self.samples.len() == WINDOW {
            self.samples.pop_front();
        }
        self.samples.push_back(address);
        self.total = (self.total + 1).min(WINDOW);
    }

    /// The majority's view. A few dissenters are forgiven: 1 from 4 samples on, 2 from 8, 3 from 12.
    pub(crate) fn view(&self) -> NatView {
        let forgiven = match self.total {
            0 => return NatView::Unknown,
            1..4 => 0,
            4..8 => 1,
            8..12 => 2,
            _ => 3,
        };
        let threshold = self.total - forgiven;
        for candidate in &self.samples {
            if self.samples.iter().filter(|sample| *sample == candidate).count() >= threshold {
                return NatView::Consistent(*candidate);
            }
        }
        for candidate in &self.samples {
            let same_host = |sample: &&SocketAddrV4| sample.ip() == candidate.ip();
            if self.samples.iter().filter(same_host).count() >= threshold {
                return NatView::Randomized(*candidate.ip());
            }
        }
        NatView::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(samples: &[&str]) -> NatSampler {
        let mut sampler = NatSampler::default();
        for sample in samples {
            sampler.add(sample.parse().unwrap());
        }
        sampler
    }

    #[test]
    fn agreeing_samples_give_the_address() {
        let view = sampler(&["1.2.3.4:5", "1.2.3.4:5"]).view();
        assert_eq!(view, NatView::Consistent("1.2.3.4:5".parse().unwrap()));
    }

    #[test]
    fn differing_ports_give_the_host_only() {
        let view = sampler(&["1.2.3.4:5", "1.2.3.4:6", "1.2.3.4:7"]).view();
        assert_eq!(view, NatView::Randomized(Ipv4Addr::new(1, 2, 3, 4)));
    }

    #[test]
    fn one_liar_in_four_changes_nothing() {
        let view = sampler(&["1.2.3.4:5", "9.9.9.9:9", "1.2.3.4:5", "1.2.3.4:5"]).view();
        assert_eq!(view, NatView::Consistent("1.2.3.4:5".parse().unwrap()));
    }

    #[test]
    fn no_samples_and_disagreeing_hosts_give_nothing() {
        assert_eq!(sampler(&[]).view(), NatView::Unknown);
        assert_eq!(sampler(&["1.2.3.4:5", "9.9.9.9:9"]).view(), NatView::Unknown);
    }

    #[test]
    fn a_new_network_wins_after_enough_samples() {
        let mut sampler = sampler(&["1.2.3.4:5"; 16]);
        for _ in 0..13 {
            sampler.add("4.4.4.4:4".parse().unwrap());
        }
        assert_eq!(sampler.view(), NatView::Consistent("4.4.4.4:4".parse().unwrap()));
    }
}
