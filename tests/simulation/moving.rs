//! Streams whose other side has another address all of a sudden.

use std::net::SocketAddr;
use std::time::Duration;

use alex_p2p::udx::ETHERNET_MTU;
use alex_p2p::udx::header::{Header, flags};

use super::pair::{IDS, Link, Pair, address};
use super::{SECOND, bytes};

/// Bytes of a transfer that takes some six seconds over a slow link.
const LENGTH: usize = 6_000_000;

fn slow(loss: f64) -> Link {
    Link { bottleneck: Some((1e6, 100_000.0)), loss, ..Link::default() }
}

/// Lets a transfer from side 0 run, then gives side `index` another address; how long no byte arrived.
fn stall_after_rebinding(seed: u64, index: usize, keeps_old: bool, loss: f64) -> Duration {
    let mut pair = Pair::connected(seed, slow(loss));
    pair.sides[0].to_write = bytes(LENGTH);
    pair.pass(2 * SECOND + Duration::from_millis(seed * 13));
    let old = pair.sides[index].addr;
    pair.sides[index].addr = address(9, 4000 + seed as u16);
    pair.sides[index].also_at = keeps_old.then_some(old);
    let (moved, before) = (pair.now, pair.sides[1].received.len());
    // More than what was under way.
    let goes_on = |pair: &Pair| pair.sides[1].received.len() > before + 1_000_000;
    assert!(pair.run(20 * SECOND, goes_on), "seed {seed}, side {index}: it never goes on");
    let stall = pair.now - moved;
    assert!(pair.run(60 * SECOND, Pair::both_closed));
    assert!(pair.sides[1].received == bytes(LENGTH));
    assert_eq!(pair.sides[1 - index].machine.remote_addr(), Some(pair.sides[index].addr));
    stall
}

#[test]
fn a_transfer_goes_on_within_five_seconds_of_a_change_of_address() {
    for seed in 0..8 {
        for index in 0..2 {
            let loss = if seed % 2 == 0 { 0.0 } else { 0.02 };
            // The megabyte itself takes one second.
            let stall = stall_after_rebinding(seed, index, seed % 3 == 0, loss) - SECOND;
            assert!(stall < 5 * SECOND, "seed {seed}, side {index}: {stall:?}");
        }
    }
}

#[test]
fn an_idle_stream_follows_a_change_of_address() {
    for index in 0..2 {
        let mut pair = Pair::connected(3, Link::default()).stays_open();
        pair.pass(30 * SECOND);
        pair.sides[index].addr = address(9, 9);
        pair.pass(30 * SECOND);
        pair.sides[1 - index].to_write = bytes(100_000);
        let arrived = |pair: &Pair| pair.sides[index].received.len() == 100_000;
        assert!(pair.run(SECOND, arrived), "side {index}");
    }
}

#[test]
fn a_side_that_changes_its_address_again_and_again_is_followed() {
    let mut pair = Pair::connected(5, slow(0.0));
    pair.sides[0].to_write = bytes(LENGTH);
    for port in 0..6 {
        pair.pass(4 * SECOND);
        pair.sides[usize::from(port % 2 == 0)].addr = address(9, port);
    }
    assert!(pair.run(60 * SECOND, Pair::both_closed));
    assert!(pair.sides[1].received == bytes(LENGTH));
}

/// The header of a packet as somebody would make it who sees all of them.
fn header(pair: &Pair, index: usize) -> Header {
    let side = &pair.sides[index];
    Header {
        kind: 0,
        data_offset: 0,
        stream_id: IDS[index],
        window: 4 << 20,
        seq: side.said.unwrap().ack,
        ack: side.newest.map_or(0, |seq| seq + 1),
    }
}

fn forge_from(pair: &mut Pair, index: usize, from: SocketAddr) {
    for kind in [0, flags::DATA, flags::HEARTBEAT, flags::DESTROY] {
        let known = header(pair, index);
        for ack in known.ack..known.ack + 3 {
            pair.inject(index, from, &Header { kind, ack, ..known }.encode());
        }
    }
}

#[test]
fn who_knows_all_numbers_cannot_pull_away_a_stream_whose_peer_answers() {
    for writing in [true, false] {
        let mut pair = Pair::connected(11, slow(0.0)).stays_open();
        pair.sides[0].to_write = bytes(if writing { LENGTH } else { 100 });
        pair.pass(SECOND / 2);
        let thief = address(66, 6);
        let end = pair.now + 30 * SECOND;
        let real = [pair.sides[1].addr, pair.sides[0].addr];
        while pair.now < end {
            pair.run(SECOND / 20, |_| false);
            for (index, real) in real.into_iter().enumerate() {
                forge_from(&mut pair, index, thief);
                assert_eq!(pair.sides[index].machine.remote_addr(), Some(real));
            }
        }
        let wanted = pair.sides[0].to_write.len();
        assert!(pair.run(SECOND, |pair| pair.sides[1].received.len() == wanted));
        // Asked now and then when the real peer has nothing to say, with packets of 20 bytes.
        assert!(pair.astray <= 60, "{} packets went to the thief", pair.astray);
    }
}

#[test]
fn a_stranger_is_not_even_asked_while_the_peer_is_heard() {
    let mut pair = Pair::connected(16, slow(0.0));
    pair.sides[0].to_write = bytes(LENGTH);
    for _ in 0..80 {
        pair.pass(SECOND / 20);
        (0..2).for_each(|index| forge_from(&mut pair, index, address(66, 6)));
    }
    assert_eq!(pair.astray, 0);
}

#[test]
fn who_only_repeats_what_was_said_before_cannot_take_a_stream_whose_peer_is_silent() {
    let mut pair = Pair::connected(17, slow(0.0)).stays_open();
    pair.sides[0].to_write = bytes(LENGTH);
    pair.pass(2 * SECOND);
    let said = pair.sides[1].said.unwrap().encode();
    let real = pair.sides[1].addr;
    pair.sides[1].is_alive = false;
    for _ in 0..160 {
        pair.pass(SECOND / 20);
        pair.inject(0, address(66, 6), &said);
        assert_eq!(pair.sides[0].machine.remote_addr(), Some(real));
    }
    assert!(pair.astray > 2, "it was never asked");
}

#[test]
fn a_stream_that_was_pulled_away_while_its_peer_was_silent_comes_back() {
    let mut pair = Pair::connected(12, slow(0.0)).stays_open();
    pair.sides[0].to_write = bytes(LENGTH);
    pair.pass(2 * SECOND);
    let (thief, real) = (address(66, 6), pair.sides[1].addr);
    pair.link.loss = 1.0;
    let is_stolen = |pair: &Pair| pair.sides[0].machine.remote_addr() == Some(thief);
    for _ in 0..100 {
        if is_stolen(&pair) {
            break;
        }
        // Not more than it has to say, or the bytes that it says arrived were lost.
        let header =
            Header { kind: flags::SACK, ack: pair.sides[1].said.unwrap().ack, ..header(&pair, 0) };
        let newest = pair.sides[0].newest.unwrap();
        let sack = [newest.to_le_bytes(), (newest + 1).to_le_bytes()].concat();
        let packet = [&header.encode()[..], &sack].concat();
        pair.inject(0, thief, &packet);
        pair.pass(SECOND / 20);
    }
    assert!(is_stolen(&pair), "nothing to come back from");
    pair.link.loss = 0.0;
    let back = |pair: &Pair| pair.sides[0].machine.remote_addr() == Some(real);
    assert!(pair.run(5 * SECOND, back));
    let arrived = pair.run(60 * SECOND, |pair| pair.sides[1].received.len() == LENGTH);
    let closed = [0, 1].map(|index| pair.sides[index].machine.closed());
    assert!(arrived, "{} bytes, {closed:?}", pair.sides[1].received.len());
    assert!(pair.sides[1].received == bytes(LENGTH));
}

#[test]
fn the_way_before_is_used_until_the_new_one_answers() {
    let mut pair = Pair::connected(13, slow(0.0));
    pair.sides[0].to_write = bytes(LENGTH);
    pair.pass(2 * SECOND);
    let (nowhere, real) = (address(99, 9), pair.sides[1].addr);
    let now = pair.now;
    assert!(pair.sides[0].machine.change_remote(now, nowhere, IDS[1], ETHERNET_MTU));
    let before = pair.sides[1].received.len();
    pair.pass(2 * SECOND);
    assert!(pair.sides[1].received.len() > before + 1_500_000, "it stalled");
    assert_eq!(pair.sides[0].machine.remote_addr(), Some(real));
    assert!(pair.sides[0].machine.is_on_previous());
    assert!(pair.run(60 * SECOND, Pair::both_closed));
    assert!(pair.astray < 20, "{}", pair.astray);
}

#[test]
fn both_sides_move_without_a_pause_once_both_were_told() {
    let mut pair = Pair::connected(14, slow(0.0));
    pair.sides.iter_mut().for_each(|side| side.to_write = bytes(LENGTH));
    pair.pass(2 * SECOND);
    let before: Vec<_> = pair.sides.iter().map(|side| side.received.len()).collect();
    let (now, new) = (pair.now, [address(3, 3), address(4, 4)]);
    for index in 0..2 {
        pair.sides[index].also_at = Some(pair.sides[index].addr);
        pair.sides[index].addr = new[index];
        assert!(pair.sides[index].machine.change_remote(
            now,
            new[1 - index],
            IDS[1 - index],
            ETHERNET_MTU
        ));
    }
    pair.pass(SECOND);
    for index in 0..2 {
        assert_eq!(pair.sides[index].machine.remote_addr(), Some(new[1 - index]));
        let received = pair.sides[index].received.len() - before[index];
        assert!(received > 700_000, "{received} bytes in a second");
    }
    assert!(pair.run(60 * SECOND, Pair::both_closed));
}
