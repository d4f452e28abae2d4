//! How fast a stream is on paths that lose, reorder, or have a bottleneck.

use std::time::Duration;

use super::pair::{Link, Pair};
use super::{SECOND, bytes};

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

/// The share that the slower of two streams gets of a link of so many Mbit/s, in eight seconds from `after`
/// on; the second begins when the first has had a second, or at once.
fn lesser_share(seed: u64, megabits: f64, is_late: bool, after: Duration) -> f64 {
    let rate = megabits / 8.0 * 1e6;
    let bottleneck = Some((rate, 200.0 * 1472.0));
    // What a system between them adds, so that seeds differ.
    let link = Link { bottleneck, jitter: Duration::from_micros(20), ..Link::default() };
    let mut pairs: [Pair; 2] = Pair::sharing(seed, &link);
    let text = bytes((rate * 20.0) as usize);
    pairs[0].sides[0].to_write.clone_from(&text);
    Pair::run_together(&mut pairs, if is_late { SECOND } else { Duration::ZERO });
    pairs[1].sides[0].to_write = text;
    Pair::run_together(&mut pairs, after);
    let received =
        |pairs: &[Pair; 2]| [0, 1].map(|pair: usize| pairs[pair].sides[1].received.len());
    let before = received(&pairs);
    Pair::run_together(&mut pairs, 8 * SECOND);
    let after = received(&pairs);
    (after[0] - before[0]).min(after[1] - before[1]) as f64 / 8.0 / rate
}

#[test]
fn two_streams_share_a_link() {
    for seed in 0..2 {
        let together = lesser_share(seed, 100.0, false, Duration::ZERO);
        assert!(together > 0.4, "{seed}: {together}");
        // A late one takes the queue for a part of the path, until the path is measured anew.
        let late = lesser_share(seed, 20.0, true, 11 * SECOND);
        assert!(late > 0.4, "{seed}, late: {late}");
    }
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
    let ethernet = [(1472, 760), (1300, 870), (1172, 1000)].map(|(mtu, most)| (1500, mtu, most));
    // What npm's receiver has room for, and not more; and Ethernet behind the first hop.
    let jumbo = [(8972, 540), (2048, 540), (1472, 770)].map(|(mtu, most)| (9000, mtu, most));
    for (first_hop, mtu, most) in ethernet.into_iter().chain(jumbo) {
        let (_, pair) = transfer(Link { mtu, first_hop, ..Link::default() }, 1_000_000);
        assert!(pair.sent < most * 2, "{first_hop}, {mtu}: {}", pair.sent);
        assert!(pair.largest <= 2048, "{first_hop}, {mtu}: {}", pair.largest);
    }
}
