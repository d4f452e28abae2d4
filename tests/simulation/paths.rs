//! How fast a stream is on paths that lose, reorder, or have a bottleneck.

use std::time::Duration;

use super::bytes;
use super::pair::{Link, Pair};

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
        if pair.now - pair.start > Duration::from_secs(1) {
            times.push(pair.sides[0].machine.rtt());
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
