//! The packet decoder: whatever it takes is what `encode` would have written.

use alex_p2p::udx::header::{HEADER_SIZE, MAX_SACKS, Packet, expand, flags, stream_id, wire};

/// One input is one datagram.
pub fn run(data: &[u8]) {
    let Some(packet) = Packet::decode(data) else { return };
    let header = packet.header;
    assert_eq!(stream_id(data), Some(header.stream_id));
    assert_eq!(header.encode()[..], data[..HEADER_SIZE]);
    assert!(data.ends_with(packet.payload));
    let sacks = packet.sacks().count();
    assert!(sacks <= MAX_SACKS && sacks * 8 <= data.len() - HEADER_SIZE);
    assert!(packet.has(flags::SACK) || sacks == 0);
    for near in [0, u64::from(header.ack), u64::from(header.seq) << 20] {
        if let Some(number) = expand(near, header.seq) {
            assert_eq!(wire(number), header.seq);
            assert!(number.abs_diff(near) <= 1 << 31);
        }
    }
}
