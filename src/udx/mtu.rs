//! Finds the largest packet the path carries: 1200 bytes to begin with, and at most what the link to the
//! first hop takes: 1500 bytes on nearly all. Over loopback and jumbo frames what npm's receiver has room
//! for is the limit: it acknowledges each packet by itself, so that larger ones save it much of its work.
//!
//! A probe is a data packet with padding between header and payload (the data offset says how much), so
//! a lost probe costs nothing: the payload is sent again without padding. libudx climbs in steps of 32
//! bytes; this searches by halves, and tries the usual maximum as soon as the padding reaches it.

/// Bytes of an IP packet every path is expected to carry.
const BASE: u16 = 1200;
/// What Ethernet carries, and so nearly every path (libudx: `UDX_MTU_MAX`).
pub const ETHERNET_MTU: u16 = 1500;
/// Bytes of a UDP payload that npm's receiver has room for (`UDX_SOCKET_PACKET_BUFFER_SIZE`): it would
/// take a longer one for whole without its end.
const MAX_PAYLOAD: u16 = 2048;
/// The largest padding a data offset can say.
const MAX_PADDING: u16 = 255;
/// A size that was lost so often does not fit.
const TRIES: u8 = 3;
/// The search ends when it is known to so many bytes.
const RESOLUTION: u16 = 16;

/// The state of the search on one path. All sizes are of whole IP packets.
#[derive(Debug)]
pub(super) struct MtuSearch {
    confirmed: u16,
    /// No probe goes beyond.
    max: u16,
    /// The smallest size that failed.
    failed: u16,
    /// The probe on its way.
    probing: Option<u16>,
    tries: u8,
    /// Bytes of IP and UDP headers.
    overhead: u16,
}

impl MtuSearch {
    /// A search on a path whose first link carries packets of `link_mtu` bytes.
    pub(super) fn new(ipv4: bool, link_mtu: u16) -> Self {
        let overhead = if ipv4 { 28 } else { 48 };
        let max = link_mtu.clamp(BASE, MAX_PAYLOAD + overhead);
        Self { confirmed: BASE, max, failed: max + 1, probing: None, tries: 0, overhead }
    }

    /// The largest UDP payload known to arrive: UDX header and data.
    pub(super) const fn packet_size(&self) -> usize {
        (self.confirmed - self.overhead) as usize
    }

    /// The padding that makes a packet of `size` bytes the next probe; `None` when there is none to send.
    pub(super) fn probe(&mut self, size: usize) -> Option<u8> {
        if self.probing.is_some() || self.failed - self.confirmed <= 1 {
            return None;
        }
        let next = match self.failed {
            _ if self.failed > self.max => {
                let usual = if self.confirmed < ETHERNET_MTU { ETHERNET_MTU } else { self.max };
                usual.min(self.max).min(self.confirmed + MAX_PADDING - 7)
            }
            failed if failed - self.confirmed > RESOLUTION => self.confirmed.midpoint(failed),
            _ => return None,
        };
        let padding = (next - self.overhead).checked_sub(u16::try_from(size).ok()?)?;
        let padding = u8::try_from(padding).ok()?;
        self.probing = Some(next);
        Some(padding)
    }

    /// A probe arrived.
    pub(super) fn on_probe_acked(&mut self) {
        if let Some(size) = self.probing.take() {
            self.confirmed = self.confirmed.max(size);
            self.tries = 0;
        }
    }

    /// A probe was lost.
    pub(super) fn on_probe_lost(&mut self) {
        self.tries += 1;
        match self.probing.take() {
            Some(size) if self.tries >= TRIES => {
                // A path that carries more than Ethernet's, but not all, is none to search for.
                let is_jumbo = self.confirmed >= ETHERNET_MTU;
                self.failed = if is_jumbo { self.confirmed + 1 } else { self.failed.min(size) };
                self.tries = 0;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The MTU found on a path that carries `path` bytes, and how many probes it took.
    fn search(path: u16, ipv4: bool, link: u16) -> (u16, usize) {
        let mut mtu = MtuSearch::new(ipv4, link);
        let mut probes = 0;
        while let Some(padding) = mtu.probe(mtu.packet_size()) {
            probes += 1;
            let size = mtu.packet_size() as u16 + u16::from(padding) + mtu.overhead;
            if size <= path { mtu.on_probe_acked() } else { mtu.on_probe_lost() }
        }
        (mtu.confirmed, probes)
    }

    #[test]
    fn ethernet_takes_two_probes() {
        assert_eq!(search(1500, true, ETHERNET_MTU), (1500, 2));
        assert_eq!(search(1500, false, ETHERNET_MTU), (1500, 2));
    }

    #[test]
    fn a_tunnel_takes_one_probe() {
        assert_eq!(search(1420, true, 1420), (1420, 1));
        assert_eq!(search(1280, false, 1280), (1280, 1));
        assert_eq!(search(1200, true, 576), (1200, 0));
    }

    #[test]
    fn jumbo_frames_and_loopback_fill_the_buffer_of_the_other_side() {
        assert_eq!(search(9000, true, 9000), (2048 + 28, 5));
        assert_eq!(search(u16::MAX, false, u16::MAX), (2048 + 48, 5));
    }

    #[test]
    fn ethernet_behind_jumbo_frames_costs_three_more() {
        assert_eq!(search(1500, true, 9000), (1500, 2 + 3));
    }

    #[test]
    fn smaller_paths_are_found_to_sixteen_bytes() {
        for path in 1200..1500 {
            let (found, probes) = search(path, true, ETHERNET_MTU);
            assert!(found <= path && path - found <= RESOLUTION, "{path}: {found}");
            assert!(probes <= 20, "{path}: {probes}");
        }
    }
}
