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
