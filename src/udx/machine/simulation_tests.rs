//! What the state machine does over bad links, against hostile packets and with dead peers.

use super::*;
use crate::udx::header::{Header, flags};

fn seeds() -> u64 {
    std::env::var("UDX_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(300)
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 7 + n / 251) as u8).collect()
}

#[test]
fn every_byte_arrives_in_order_over_any_link() {
    let failures: Vec<_> = (0..seeds()).filter_map(|seed| deliver_everything(seed).err()).collect();
    assert!(
        failures.is_empty(),
        "{} failed: {:#?}",
        failures.len(),
        &failures[..failures.len().min(5)]
    );
}

/// Sends `length` bytes one way; the virtual time it took and the machine that sent.
fn transfer(link: Link, length: usize) -> (Duration, Pair) {
    let mut pair = Pair::connected(7, link);
    pair.sides[0].to_write = bytes(length);
    assert!(pair.run(Duration::from_secs(300), |pair| pair.sides[1].received.len() == length));
    (pair.elapsed(), pair)
}

#[test]
fn a_bottleneck_is_filled() {
    let link = Link { bottleneck: Some((10e6, 400_000.0)), ..Link::default() };
    let (took, pair) = transfer(link, 20_000_000);
    assert!(took < Duration::from_millis(2500), "{took:?}");
    assert!(pair.dropped < 700, "{}", pair.dropped);
}

#[test]
fn a_shallow_buffer_does_not_make_it_resend_everything() {
    let link = Link { bottleneck: Some((10e6, 40_000.0)), ..Link::default() };
    let (took, pair) = transfer(link, 20_000_000);
    assert!(took < Duration::from_millis(4000), "{took:?}");
    assert!(pair.dropped < 2500, "{}", pair.dropped);
}

#[test]
fn one_percent_of_loss_costs_little() {
    let link = Link { bottleneck: Some((10e6, 400_000.0)), loss: 0.01, ..Link::default() };
    let (took, _) = transfer(link, 20_000_000);
    assert!(took < Duration::from_millis(3000), "{took:?}");
}

/// 100 Mbit/s, 20 ms there and back, and `queue` packets in front of it.
fn home_link(queue: f64) -> Link {
    Link { bottleneck: Some((12.5e6, queue * 1472.0)), ..Link::default() }
}

#[test]
fn a_link_with_a_queue_of_200_packets_is_filled_to_95_percent() {
    let length = 60_000_000;
    let (took, pair) = transfer(home_link(200.0), length);
    let share = length as f64 / took.as_secs_f64() / 12.5e6;
    assert!(share > 0.95, "{share}, {} dropped", pair.dropped);
}

#[test]
fn a_deep_queue_at_most_doubles_the_round_trip_time() {
    let mut pair = Pair::connected(7, home_link(2000.0));
    pair.sides[0].to_write = bytes(60_000_000);
    let mut times = Vec::new();
    pair.run(Duration::from_secs(60), |pair| {
        if pair.elapsed() > Duration::from_secs(1) {
            times.extend(pair.sides[0].machine.recovery.rtt.smoothed());
        }
        pair.sides[1].received.len() == 60_000_000
    });
    times.sort();
    let median = times[times.len() / 2];
    assert!(median < Duration::from_millis(40), "{median:?}");
}

#[test]
fn five_percent_of_loss_on_a_long_path_leaves_most_of_it() {
    let delay = Duration::from_millis(50);
    let bottleneck = Some((10e6, 1e6));
    let (took, _) = transfer(Link { bottleneck, delay, loss: 0.05, ..Link::default() }, 40_000_000);
    let share = 40e6 / took.as_secs_f64() / 10e6;
    assert!(share > 0.6, "{share}");
}

#[test]
fn reordering_alone_causes_few_retransmissions() {
    let jitter = Duration::from_millis(4);
    let link = Link { bottleneck: Some((10e6, 400_000.0)), jitter, ..Link::default() };
    let (_, pair) = transfer(link, 5_000_000);
    let stats = pair.sides[0].machine.stats();
    assert!(stats.retransmits < 400, "{stats:?}");
}

#[test]
fn the_largest_packets_the_path_takes_are_used() {
    for (mtu, most) in [(1472, 760), (1300, 870), (1172, 1000)] {
        let (_, pair) = transfer(Link { mtu, ..Link::default() }, 1_000_000);
        assert!(pair.sent < most * 2, "{mtu}: {}", pair.sent);
    }
}

#[test]
fn what_was_written_before_connecting_goes_out_at_once() {
    let mut pair = Pair::new(1, Link::default(), &StreamOptions::default());
    pair.sides[0].to_write = b"early".to_vec();
    pair.step();
    // The other side is connected one delay after the packet reached it.
    pair.connect(0);
    pair.run(Duration::from_millis(15), |_| false);
    pair.connect(1);
    assert!(pair.run(Duration::from_millis(100), |pair| pair.sides[1].received == b"early"));
    assert!(pair.elapsed() < Duration::from_millis(100), "{:?}", pair.elapsed());
}

#[test]
fn a_reader_that_stops_holds_at_most_its_window_and_goes_on_where_it_stopped() {
    let options = StreamOptions { receive_window: 200_000, ..StreamOptions::default() };
    let mut pair = Pair::new(3, Link { loss: 0.02, ..Link::default() }, &options);
    pair.connect(0);
    pair.connect(1);
    pair.sides[0].to_write = bytes(2_000_000);
    pair.sides[1].reads = false;
    pair.run(Duration::from_secs(60), |pair| {
        let held = pair.sides[1].machine.incoming.held();
        assert!(held <= 250_000, "{held}");
        false
    });
    assert_eq!(pair.sides[0].machine.closed(), None);
    assert!(pair.sides[1].machine.available() > 150_000);
    pair.sides[1].reads = true;
    assert!(pair.run(Duration::from_secs(60), |pair| pair.sides[1].received.len() == 2_000_000));
    assert_eq!(pair.sides[1].received, bytes(2_000_000));
}

#[test]
fn a_lost_window_update_is_asked_for() {
    let options = StreamOptions { receive_window: 100_000, ..StreamOptions::default() };
    let mut pair = Pair::new(3, Link::default(), &options);
    pair.connect(0);
    pair.connect(1);
    pair.sides[0].to_write = bytes(300_000);
    pair.sides[1].reads = false;
    pair.run(Duration::from_secs(2), |_| false);
    pair.link.loss = 1.0;
    pair.sides[1].reads = true;
    pair.run(Duration::from_millis(300), |_| false);
    pair.link.loss = 0.0;
    assert!(pair.run(Duration::from_secs(20), |pair| pair.sides[1].received.len() == 300_000));
}

#[test]
fn a_dead_peer_is_noticed_within_fifteen_seconds_idle_or_writing() {
    for writing in [false, true] {
        let mut pair = Pair::connected(5, Link::default());
        pair.sides.iter_mut().for_each(|side| side.finishes = false);
        pair.sides[0].to_write = bytes(if writing { 50_000_000 } else { 10 });
        pair.run(Duration::from_secs(2), |_| false);
        pair.sides[1].is_alive = false;
        let died = pair.now;
        pair.run(Duration::from_secs(30), |pair| pair.sides[0].machine.closed().is_some());
        assert_eq!(pair.sides[0].machine.closed(), Some(CloseReason::TimedOut));
        let took = pair.now - died;
        assert!(took < Duration::from_secs(15), "writing: {writing}, {took:?}");
    }
}

#[test]
fn an_idle_stream_stays_open() {
    let mut pair = Pair::connected(5, Link { loss: 0.1, ..Link::default() });
    pair.sides.iter_mut().for_each(|side| side.finishes = false);
    pair.run(Duration::from_secs(600), |_| false);
    assert!(pair.sides.iter().all(|side| side.machine.closed().is_none()));
}

#[test]
fn a_machine_that_slept_asks_before_it_gives_up() {
    let mut pair = Pair::connected(5, Link::default());
    pair.sides.iter_mut().for_each(|side| side.finishes = false);
    pair.run(Duration::from_secs(1), |_| false);
    pair.now += Duration::from_secs(7200);
    pair.run(Duration::from_secs(60), |_| false);
    assert!(pair.sides.iter().all(|side| side.machine.closed().is_none()));
}

#[test]
fn forged_packets_neither_end_nor_stall_a_stream() {
    let mut pair = Pair::connected(9, Link::default());
    pair.sides[0].to_write = bytes(2_000_000);
    let attacker = SocketAddr::from((Ipv4Addr::new(10, 9, 8, 7), 1000));
    let done = |pair: &Pair| pair.sides[1].received.len() == 2_000_000;
    for _ in 0..100_000 {
        if done(&pair) {
            break;
        }
        pair.step();
        for (index, id) in IDS.into_iter().enumerate() {
            let kinds = [flags::DESTROY, flags::END, flags::DATA, flags::SACK, 0, 255];
            for kind in kinds {
                let header = Header {
                    kind,
                    data_offset: 0,
                    stream_id: id,
                    window: 0,
                    seq: pair.sides[index].machine.incoming.next() as u32,
                    ack: pair.sides[index].machine.outgoing.next() as u32,
                };
                let mut packet = header.encode().to_vec();
                packet.extend_from_slice(&[9; 64]);
                let now = pair.now;
                pair.sides[index].machine.handle_packet(now, attacker, &packet);
                // From the right address, acknowledging what was never sent.
                let ahead = Header { ack: header.ack + 1, ..header };
                packet[..20].copy_from_slice(&ahead.encode());
                let peer = pair.sides[1 - index].addr;
                pair.sides[index].machine.handle_packet(now, peer, &packet);
            }
        }
    }
    assert!(done(&pair));
    assert_eq!(pair.sides[1].received, bytes(2_000_000));
    assert!(pair.elapsed() < Duration::from_secs(2), "{:?}", pair.elapsed());
}

#[test]
fn any_bytes_from_the_peer_leave_the_machine_whole() {
    for seed in 0..200 {
        let mut pair = Pair::connected(seed, Link::default());
        pair.sides[0].to_write = bytes(50_000);
        for _ in 0..200 {
            pair.step();
            let mut packet = vec![0; pair.dice.below(120) as usize];
            packet.iter_mut().for_each(|byte| *byte = pair.dice.next() as u8);
            packet.splice(..packet.len().min(2), [0xff, 1].into_iter().take(packet.len()));
            if let Some(kind) = packet.get_mut(2) {
                *kind &= !(flags::DESTROY | flags::END);
            }
            let (now, index) = (pair.now, pair.dice.below(2) as usize);
            // Numbers near the real ones reach further.
            if packet.len() >= 20 {
                let next = pair.sides[index].machine.incoming.next() as u32;
                let seq = next.wrapping_add(pair.dice.below(100) as u32).wrapping_sub(50);
                packet[12..16].copy_from_slice(&seq.to_le_bytes());
                let first = pair.sides[index].machine.outgoing.first() as u32;
                packet[16..20]
                    .copy_from_slice(&first.wrapping_add(pair.dice.below(8) as u32).to_le_bytes());
            }
            let peer = pair.sides[1 - index].addr;
            pair.sides[index].machine.handle_packet(now, peer, &packet);
        }
    }
}

#[test]
fn destroying_resets_the_other_side_even_if_the_packet_is_lost() {
    let mut pair = Pair::connected(4, Link::default());
    pair.sides.iter_mut().for_each(|side| side.finishes = false);
    pair.sides[1].to_write = bytes(10_000_000);
    pair.run(Duration::from_millis(200), |_| false);
    let now = pair.now;
    pair.sides[0].machine.destroy(now);
    pair.link.loss = 1.0;
    pair.run(Duration::from_millis(30), |_| false);
    pair.link.loss = 0.0;
    pair.run(Duration::from_secs(5), |pair| pair.sides[1].machine.closed().is_some());
    assert_eq!(pair.sides[0].machine.closed(), Some(CloseReason::Destroyed));
    assert_eq!(pair.sides[1].machine.closed(), Some(CloseReason::Reset));
}

#[test]
fn one_half_can_end_long_before_the_other() {
    let mut pair = Pair::connected(4, Link::default());
    pair.sides[1].finishes = false;
    pair.sides[0].to_write = b"question".to_vec();
    assert!(pair.run(Duration::from_secs(1), |pair| pair.sides[0].machine.is_flushed()));
    assert!(pair.sides[1].machine.has_ended());
    pair.run(Duration::from_secs(60), |_| false);
    assert!(pair.sides.iter().all(|side| side.machine.closed().is_none()));
    pair.sides[1].to_write = b"answer".to_vec();
    pair.sides[1].finishes = true;
    assert!(pair.run(Duration::from_secs(1), Pair::both_closed));
    assert_eq!(pair.sides[0].received, b"answer");
    assert!(pair.sides.iter().all(|s| s.machine.closed() == Some(CloseReason::Ended)));
}

#[test]
fn a_stream_let_go_after_its_end_delivers_what_was_written() {
    let mut pair = Pair::connected(4, Link { loss: 0.05, ..Link::default() });
    pair.sides[1].finishes = false;
    pair.sides[0].to_write = bytes(200_000);
    pair.run(Duration::from_secs(1), |pair| pair.sides[0].machine.is_finished());
    let now = pair.now;
    pair.sides[0].machine.detach(now);
    assert!(pair.run(Duration::from_secs(5), |pair| pair.sides[1].received.len() == 200_000));
    assert!(pair.run(Duration::from_secs(5), |pair| pair.sides[1].machine.has_ended()));
    // The other side never ends its half, so in the end it is told.
    assert!(pair.run(Duration::from_secs(10), Pair::both_closed));
    assert_eq!(pair.sides[1].machine.closed(), Some(CloseReason::Reset));
}
