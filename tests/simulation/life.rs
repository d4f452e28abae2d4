//! How streams begin, wait and end.

use std::time::Duration;

use alex_p2p::udx::{CloseReason, StreamOptions};

use super::pair::{Link, Pair};
use super::{SECOND, bytes};

fn window(receive_window: u32) -> StreamOptions {
    let mut options = StreamOptions::default();
    options.receive_window = receive_window;
    options
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
    let link = Link { loss: 0.02, ..Link::default() };
    let mut pair = Pair::with_options(3, link, &window(200_000));
    pair.sides[0].to_write = bytes(2_000_000);
    pair.sides[1].reads = false;
    pair.run(Duration::from_secs(60), |pair| {
        let held = pair.sides[1].machine.held();
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
fn what_was_delivered_before_the_other_side_destroyed_the_stream_is_known_to_be() {
    for length in [1_000, 300_000] {
        let mut pair = Pair::with_options(1, Link::default(), &window(100_000));
        pair.sides[0].to_write = bytes(length);
        pair.sides[1].reads = false;
        pair.sides[1].finishes = false;
        // Before it acknowledges what has arrived, all of the first, the program lets go of the stream.
        assert!(pair.run(SECOND, |pair| pair.sides[1].machine.available() >= 1_000));
        assert!(!pair.sides[0].machine.is_flushed());
        let now = pair.now;
        pair.sides[1].machine.destroy(now);
        assert!(pair.run(SECOND, |pair| pair.sides[0].machine.closed().is_some()));
        assert_eq!(pair.sides[0].machine.closed(), Some(CloseReason::Reset));
        assert_eq!(pair.sides[0].machine.is_flushed(), length == 1_000);
    }
}

#[test]
fn a_lost_window_update_is_asked_for() {
    let mut pair = Pair::with_options(3, Link::default(), &window(100_000));
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

#[test]
fn a_stream_let_go_without_an_end_resets_the_other_side() {
    let mut pair = Pair::connected(4, Link::default()).stays_open();
    pair.sides[0].to_write = bytes(100_000);
    pair.run(Duration::from_millis(40), |_| false);
    let now = pair.now;
    pair.sides[0].machine.detach(now);
    assert!(pair.run(Duration::from_millis(200), Pair::both_closed));
    assert_eq!(pair.sides[1].machine.closed(), Some(CloseReason::Reset));
}

#[test]
fn a_stream_let_go_holds_nothing_of_what_was_never_read() {
    let mut pair = Pair::connected(4, Link::default()).stays_open();
    pair.sides[1].reads = false;
    pair.sides[0].to_write = bytes(100_000);
    pair.run(Duration::from_secs(1), |pair| pair.sides[1].machine.available() > 30_000);
    let now = pair.now;
    pair.sides[1].machine.detach(now);
    assert_eq!(pair.sides[1].machine.available(), 0);
    assert!(pair.run(Duration::from_millis(500), Pair::both_closed));
    assert_eq!(pair.sides[1].machine.available(), 0);
    assert_eq!(pair.sides[0].machine.closed(), Some(CloseReason::Reset));
}
