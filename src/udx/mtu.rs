//! Finds the largest packet the path carries: 1200 bytes to begin with, 1500 at most.
//!
//! A probe is a data packet with padding between header and payload (the data offset says how much), so
//! a lost probe costs nothing: the payload is sent again without padding. libudx climbs in steps of 32
//! bytes; this searches by halves, and tries the usual maximum as soon as the padding reaches it.

/// Bytes of an IP packet every path is expected to carry.
const BASE: u16 = 1200;
/// Bytes no probe goes beyond (libudx: `UDX_MTU_MAX`).
const MAX: u16 = 1500;
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
    /// The smallest size that failed.
    failed: u16,
    /// The probe on its way.
    probing: Option<u16>,
    tries: u8,
    /// Bytes of IP and UDP headers.
    overhead: u16,
}

impl MtuSearch {
    pub(super) const fn new(ipv4: bool) -> Self {
        let overhead = if ipv4 { 28 } else { 48 };
        Self { confirmed: BASE, failed: MAX + 1, probing: None, tries: 0, overhead }
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
            _ if self.failed > MAX => MAX.min(self.confirmed + MAX_PADDING - 7),
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
                self.failed = self.failed.min(size);
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
    fn search(path: u16, ipv4: bool) -> (u16, usize) {
        let mut mtu = MtuSearch::new(ipv4);
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
        assert_eq!(search(1500, true), (1500, 2));
        assert_eq!(search(1500, false), (1500, 2));
    }

    #[test]
    fn smaller_paths_are_found_to_sixteen_bytes() {
        for path in 1200..1500 {
            let (found, probes) = search(path, true);
            assert!(found <= path && path - found <= RESOLUTION, "{path}: {found}");
            assert!(probes <= 20, "{path}: {probes}");
        }
    }
}
