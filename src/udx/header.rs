//! The 20-byte packet header and the SACK ranges behind it (libudx: `udx_write_header`,
//! `process_packet`).

/// Bytes of the fixed header.
pub const HEADER_SIZE: usize = 20;

/// At most this many SACK ranges are written or read a packet (libudx: `UDX_MAX_SACKS`).
pub const MAX_SACKS: usize = 50;

const MAGIC: u8 = 0xff;
const VERSION: u8 = 1;

/// Packet type flags.
pub mod flags {
    /// Carries payload.
    pub const DATA: u8 = 1;
    /// The sender's half ends with this packet.
    pub const END: u8 = 2;
    /// Ranges that arrived early stand behind the header.
    pub const SACK: u8 = 4;
    // 8 is MESSAGE, unreliable: its payload is dropped, its acknowledgement counts.
    /// The stream is over on the sender's side.
    pub const DESTROY: u8 = 16;
    /// Asks for an acknowledgement: is anybody there, how large is the window.
    pub const HEARTBEAT: u8 = 32;
}

/// The fixed header. Sequence numbers count packets, not bytes, and wrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// Which of [`flags`] the packet has.
    pub kind: u8,
    /// Bytes between the header and the payload: SACK ranges or a probe's padding.
    pub data_offset: u8,
    /// The receiver's own id of the stream.
    pub stream_id: u32,
    /// How many bytes the sender can still take.
    pub window: u32,
    /// The packet's own number; of packets without DATA and END, that of the next that has one.
    pub seq: u32,
    /// The next packet the sender expects.
    pub ack: u32,
}

impl Header {
    /// The header on the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        let mut out = [0; HEADER_SIZE];
        out[0] = MAGIC;
        out[1] = VERSION;
        out[2] = self.kind;
        out[3] = self.data_offset;
        out[4..8].copy_from_slice(&self.stream_id.to_le_bytes());
        out[8..12].copy_from_slice(&self.window.to_le_bytes());
        out[12..16].copy_from_slice(&self.seq.to_le_bytes());
        out[16..20].copy_from_slice(&self.ack.to_le_bytes());
        out
    }
}

/// The stream id of what looks like a UDX packet. Anything else is a datagram of another protocol.
#[must_use]
pub fn stream_id(packet: &[u8]) -> Option<u32> {
    match packet {
        [MAGIC, VERSION, _, _, a, b, c, d, rest @ ..] if rest.len() >= HEADER_SIZE - 8 => {
            Some(u32::from_le_bytes([*a, *b, *c, *d]))
        }
        _ => None,
    }
}

/// A packet taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The fixed header.
    pub header: Header,
    /// What follows SACK ranges and padding.
    pub payload: &'a [u8],
    sacks: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Takes `bytes` apart. `None` when they are no UDX packet or the data offset points past the end.
    /// Nothing is copied or allocated.
    #[must_use]
    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        let stream_id = stream_id(bytes)?;
        let (head, rest) = bytes.split_at_checked(HEADER_SIZE)?;
        let word = |at: usize| {
            let bytes = head.get(at..at + 4).and_then(|b| b.try_into().ok());
            bytes.map(u32::from_le_bytes)
        };
        let header = Header {
            kind: *head.get(2)?,
            data_offset: *head.get(3)?,
            stream_id,
            window: word(8)?,
            seq: word(12)?,
            ack: word(16)?,
        };
        let (extra, payload) = rest.split_at_checked(usize::from(header.data_offset))?;
        let sacks = match header.kind & flags::SACK {
            0 => &[][..],
            // Without an offset the ranges are all there is: a pure acknowledgement.
            _ if header.data_offset == 0 => rest,
            _ => extra,
        };
        Some(Self { header, payload, sacks })
    }

    /// Whether it has one of the [`flags`] in `flag`.
    #[must_use]
    pub const fn has(&self, flag: u8) -> bool {
        self.header.kind & flag != 0
    }

    /// The acknowledged ranges `start..end`, at most [`MAX_SACKS`], as they came: neither sorted nor checked.
    pub fn sacks(&self) -> impl Iterator<Item = (u32, u32)> + 'a {
        self.sacks.chunks_exact(8).take(MAX_SACKS).filter_map(|pair| {
            let (start, end) = pair.split_at_checked(4)?;
            Some((
                u32::from_le_bytes(start.try_into().ok()?),
                u32::from_le_bytes(end.try_into().ok()?),
            ))
        })
    }
}

/// The full number nearest to `near` whose low 32 bits are `wire`. `None` below zero.
#[must_use]
pub fn expand(near: u64, wire: u32) -> Option<u64> {
    let difference = wire.wrapping_sub(near as u32) as i32;
    near.checked_add_signed(i64::from(difference))
}

/// The low 32 bits: how a sequence number stands on the wire.
#[must_use]
pub const fn wire(seq: u64) -> u32 {
    seq as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_back() {
        let header = Header {
            kind: flags::DATA | flags::END,
            data_offset: 3,
            stream_id: 0x0102_0304,
            window: 4 << 20,
            seq: u32::MAX,
            ack: 7,
        };
        let mut bytes = header.encode().to_vec();
        assert_eq!(bytes[..8], [0xff, 1, 3, 3, 4, 3, 2, 1]);
        bytes.extend_from_slice(b"padhello");
        let packet = Packet::decode(&bytes).unwrap();
        assert_eq!(packet.header, header);
        assert_eq!(packet.payload, b"hello");
        assert_eq!(packet.sacks().count(), 0);
    }

    #[test]
    fn sacks_end_where_the_data_offset_says() {
        let ranges: Vec<u8> = [5u32, 7, 9, 10].iter().flat_map(|n| n.to_le_bytes()).collect();
        let pure = Header { kind: flags::SACK, ..Header::default() };
        let mut bytes = pure.encode().to_vec();
        bytes.extend_from_slice(&ranges);
        let packet = Packet::decode(&bytes).unwrap();
        assert_eq!(packet.sacks().collect::<Vec<_>>(), [(5, 7), (9, 10)]);

        bytes[3] = 8;
        let packet = Packet::decode(&bytes).unwrap();
        assert_eq!(packet.sacks().collect::<Vec<_>>(), [(5, 7)]);
        assert_eq!(packet.payload.len(), 8);
    }

    #[test]
    fn short_and_foreign_packets_and_offsets_past_the_end_are_refused() {
        let bytes = Header { data_offset: 9, ..Header::default() }.encode();
        assert_eq!(Packet::decode(&bytes), None);
        assert_eq!(stream_id(&bytes[..19]), None);
        assert_eq!(stream_id(&[3; 40]), None);
    }

    #[test]
    fn no_packet_yields_more_than_the_maximum_of_sacks() {
        let mut bytes = Header { kind: flags::SACK, ..Header::default() }.encode().to_vec();
        bytes.resize(65_000, 1);
        assert_eq!(Packet::decode(&bytes).unwrap().sacks().count(), MAX_SACKS);
    }

    #[test]
    fn sequence_numbers_expand_across_the_wrap() {
        assert_eq!(expand(u64::from(u32::MAX), 2), Some((1 << 32) + 2));
        assert_eq!(expand((1 << 32) + 2, u32::MAX), Some(u64::from(u32::MAX)));
        assert_eq!(expand(3, u32::MAX), None);
    }
}
