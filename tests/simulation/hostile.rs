//! Packets from somebody else, and from a peer that means ill.

use std::net::SocketAddr;

use alex_p2p::udx::StreamOptions;
use alex_p2p::udx::header::{Header, flags};

use super::dice::Dice;
use super::pair::{IDS, Link, Pair, address};
use super::{SECOND, bytes, number};

/// Forged packets for one side; `FORGED_PACKETS` says otherwise.
const FORGED: u64 = 1_000_000;
/// Each is followed by so many more before the next step of the simulation.
const A_STEP: u64 = 40;

/// What makes a packet no packet of the stream.
#[derive(Debug, Clone, Copy)]
enum Flaw {
    /// It knows everything, but comes from elsewhere.
    Source,
    /// It is for another stream.
    Id,
    /// Its number is far behind or far ahead.
    Seq,
    /// It acknowledges what was never sent, or what is long past.
    Ack,
    /// Its ranges are inverted, overlap, or reach beyond what was sent.
    Sacks,
    /// It is cut short, or its data offset points past its end.
    Shape,
}

const FLAWS: [Flaw; 6] = [Flaw::Source, Flaw::Id, Flaw::Seq, Flaw::Ack, Flaw::Sacks, Flaw::Shape];

/// A packet for side `index` that would be a good one but for its flaw, and where it comes from.
fn forge(pair: &Pair, dice: &mut Dice, index: usize) -> (SocketAddr, Vec<u8>) {
    let (side, peer) = (&pair.sides[index], &pair.sides[1 - index]);
    let next = side.newest.map_or(0, |seq| seq + 1);
    let flaw = FLAWS[dice.below(FLAWS.len() as u64) as usize];
    let kinds = [0, flags::DATA, flags::END, flags::DESTROY, flags::HEARTBEAT, flags::SACK, 0xff];
    let far = 70_000 + dice.below(1 << 30) as u32;
    let mut from = peer.addr;
    let mut header = Header {
        kind: kinds[dice.below(kinds.len() as u64) as usize],
        data_offset: 0,
        stream_id: IDS[index],
        window: dice.next() as u32,
        seq: side.said.map_or(0, |said| said.ack).wrapping_add(dice.below(20) as u32),
        ack: next,
    };
    let mut rest = vec![0x55; dice.below(200) as usize];
    match flaw {
        Flaw::Source if dice.percent(50) => from.set_port(from.port() + 1),
        Flaw::Source => from = address(200, dice.next() as u16),
        Flaw::Id => header.stream_id ^= 1 << dice.below(32),
        Flaw::Seq if dice.percent(50) => header.seq = header.seq.wrapping_add(far),
        Flaw::Seq => header.seq = header.seq.wrapping_sub(far),
        Flaw::Ack if dice.percent(50) => header.ack = next.wrapping_add(1 + far % 1000),
        Flaw::Ack => header.ack = next.wrapping_sub(far),
        Flaw::Sacks => {
            // Nothing but ranges, and no acknowledgement that is news.
            header = Header { kind: flags::SACK, ack: 0, window: 4 << 20, seq: 0, ..header };
            let start = next.wrapping_add(dice.below(5) as u32);
            let end = start.wrapping_add(1 + dice.below(9) as u32);
            rest = match dice.below(3) {
                0 => [[end, start], [u32::MAX, 0]],
                1 => [[start, end], [start.wrapping_add(1), end.wrapping_add(1)]],
                _ => [[start.wrapping_sub(1), end], [0, u32::MAX]],
            }
            .concat()
            .into_iter()
            .flat_map(u32::to_le_bytes)
            .collect();
        }
        Flaw::Shape => header.data_offset = 255,
    }
    let mut packet = header.encode().to_vec();
    if matches!(flaw, Flaw::Shape) && dice.percent(50) {
        packet.truncate(dice.below(20) as usize);
    } else {
        packet.extend_from_slice(&rest);
    }
    (from, packet)
}

#[test]
fn forged_packets_neither_end_nor_stall_a_stream_nor_make_it_hold_more() {
    let count = number("FORGED_PACKETS").unwrap_or(FORGED);
    let link = Link { bottleneck: Some((2e6, 100_000.0)), loss: 0.01, ..Link::default() };
    let mut dice = Dice::new(77);
    // The transfers go on for as long as packets come.
    let mut pair = Pair::connected(9, link.clone()).stays_open();
    let mut written = 0;
    let mut forged = 0;
    while forged < count {
        if pair.sides.iter().any(|side| side.received.len() + 1_000_000 > written) {
            written += 2_000_000;
            pair.sides.iter_mut().for_each(|side| side.to_write = bytes(written));
        }
        pair.step();
        for _ in 0..A_STEP {
            forged += 1;
            for index in 0..2 {
                let (from, packet) = forge(&pair, &mut dice, index);
                pair.inject(index, from, &packet);
            }
        }
    }
    let took = pair.elapsed();
    let received: usize = pair.sides.iter().map(|side| side.received.len()).sum();
    // Two megabytes a second each way, less what the loss and the start cost.
    let rate = received as f64 / took.as_secs_f64();
    assert!(rate > 2e6 || took < SECOND, "{rate} bytes a second in {took:?}");
    pair.sides.iter_mut().for_each(|side| side.finishes = true);
    assert!(pair.run(60 * SECOND, Pair::both_closed));
    for side in &pair.sides {
        assert_eq!(side.machine.closed(), Some(alex_p2p::udx::CloseReason::Ended));
        assert!(side.received == bytes(written), "{} of {written} bytes", side.received.len());
    }
    // As much as the same transfer holds without them.
    let mut quiet = Pair::connected(9, link);
    quiet.sides.iter_mut().for_each(|side| side.to_write = bytes(written));
    assert!(quiet.run(3600 * SECOND, Pair::both_closed));
    let (held, usual) = (pair.most_held, quiet.most_held);
    assert!(held < 2 * usual, "{held} bytes held, {usual} without forged packets");
    println!(
        "{forged} forged packets for each side: {rate:.0} bytes/s, {held} bytes held ({usual})"
    );
}

#[test]
fn a_stranger_before_the_stream_is_connected_fills_no_memory_and_connects_to_nothing() {
    let mut pair = Pair::new(1, Link::default(), &StreamOptions::default());
    let header = Header { kind: flags::DATA, stream_id: IDS[1], ..Header::default() };
    let packet = [&header.encode()[..], &[7; 2000]].concat();
    for port in 0..10_000 {
        pair.inject(1, address(66, port), &packet);
    }
    let machine = &pair.sides[1].machine;
    assert!(machine.held() <= machine.held_max() && machine.held() < 200_000, "{}", machine.held());
    pair.sides[0].to_write = b"from the real one".to_vec();
    pair.connect(0);
    pair.connect(1);
    assert!(pair.run(5 * SECOND, |pair| pair.sides[1].received == b"from the real one"));
}

#[test]
fn any_bytes_from_the_peer_leave_the_machine_whole() {
    for seed in 0..200 {
        let mut pair = Pair::connected(seed, Link::default());
        pair.sides[0].to_write = bytes(50_000);
        for _ in 0..200 {
            pair.step();
            let index = pair.dice.below(2) as usize;
            // Numbers near the real ones reach further.
            let acked = [index, 1 - index].map(|by| pair.sides[by].said.map_or(0, |said| said.ack));
            let header = Header {
                kind: pair.dice.next() as u8 & !(flags::DESTROY | flags::END),
                data_offset: pair.dice.below(100) as u8,
                stream_id: IDS[index],
                window: pair.dice.next() as u32,
                seq: acked[0].wrapping_add(pair.dice.below(100) as u32).wrapping_sub(50),
                ack: acked[1].wrapping_add(pair.dice.below(8) as u32),
            };
            let mut packet = header.encode().to_vec();
            packet.extend((0..pair.dice.below(100)).map(|_| pair.dice.next() as u8));
            let peer = pair.sides[1 - index].addr;
            pair.inject(index, peer, &packet);
        }
    }
}
