//! Every byte in order, or an error in time, over any link.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alex_p2p::udx::{CloseReason, ETHERNET_MTU, StreamOptions};

use super::dice::Dice;
use super::number;
use super::pair::{Link, Pair};

/// Up to 300 kB each way are delivered, or both sides have an error, within so much virtual time. It is
/// the slowest link's: 200 kB/s, a round trip of 0.4 s, and three packets in ten lost.
const PATIENCE: Duration = Duration::from_secs(300);
/// Of so many streams over links that lose up to three packets in ten, one may end with an error.
const STREAMS_AN_ERROR: u64 = 100;

/// How bad links may be.
#[derive(Clone, Copy)]
struct Worst {
    loss: f64,
    duplicate: f64,
    /// Jitter by delay: with 1.0 any packet may overtake those of a whole delay.
    reordering: f64,
}

/// Links as they are.
const USUAL: Worst = Worst { loss: 0.05, duplicate: 0.02, reordering: 0.5 };
/// Links hardly anybody would call one.
const TERRIBLE: Worst = Worst { loss: 0.3, duplicate: 0.3, reordering: 1.0 };

/// A link from the dice: some loss, duplicates and reordering, up to 100 ms delay, a slow or fast
/// bottleneck, an MTU anywhere; on some links the first hop takes jumbo frames.
fn random_link(dice: &mut Dice, worst: Worst) -> Link {
    let delay = Duration::from_micros(50 + dice.below(100_000));
    let rate = 200_000.0 * (1.0 + dice.unit() * 500.0);
    let jitter = delay.mul_f64(dice.unit() * worst.reordering);
    let is_jumbo = dice.percent(25);
    Link {
        delay,
        jitter: if dice.percent(50) { Duration::ZERO } else { jitter },
        loss: if dice.percent(33) { 0.0 } else { dice.unit() * worst.loss },
        duplicate: dice.unit() * worst.duplicate,
        bottleneck: dice.percent(50).then_some((rate, 30_000.0 + rate * 0.1)),
        mtu: 1172 + dice.below(if is_jumbo { 1000 } else { 301 }) as usize,
        first_hop: if is_jumbo { 9000 } else { ETHERNET_MTU },
    }
}

/// Sends up to 300 kB each way over the seed's link and ends both halves. True when all of it arrived,
/// false when both sides say that it did not; anything else is what went wrong.
fn deliver(seed: u64, worst: Worst) -> Result<bool, String> {
    let mut dice = Dice::new(seed ^ 0x5eed);
    let link = random_link(&mut dice, worst);
    let mut pair = Pair::new(seed, link.clone(), &StreamOptions::default());
    for side in &mut pair.sides {
        let length = dice.below(300_000) as usize;
        side.to_write = (0..length).map(|_| dice.next() as u8).collect();
    }
    // One side may be connected later than packets reach it.
    pair.connect(0);
    if dice.percent(50) {
        let late = Duration::from_millis(dice.below(2000));
        pair.pass(late);
    }
    pair.connect(1);
    let in_time = pair.run(PATIENCE, Pair::both_closed);
    let [a, b] = &pair.sides;
    let whole = a.received == b.to_write && b.received == a.to_write;
    let closed = [a.machine.closed(), b.machine.closed()];
    let fails = |what: &str| {
        let (after, got) = (pair.elapsed(), [a.received.len(), b.received.len()]);
        let wanted = [b.to_write.len(), a.to_write.len()];
        Err(format!(
            "seed {seed}: {what}, {got:?} of {wanted:?} bytes, {closed:?} after {after:?}, {link:?}"
        ))
    };
    if !b.to_write.starts_with(&a.received) || !a.to_write.starts_with(&b.received) {
        fails("other bytes than were written")
    } else if !in_time {
        fails("neither delivered nor given up")
    } else if closed.contains(&Some(CloseReason::Ended)) && !whole {
        // Two generals: a side may miss the other's last words, never its bytes.
        fails("a good end without all bytes")
    } else {
        Ok(whole && closed == [Some(CloseReason::Ended); 2])
    }
}

/// Runs the seeds on all processors; how many there were, and how many gave an error on both sides.
fn deliver_all(worst: Worst, test: &str) -> (u64, u64) {
    let seeds = match number("SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIMULATION_SEEDS").unwrap_or(500),
    };
    let (next, errors) = (AtomicU64::new(seeds.start), AtomicU64::new(0));
    let work = || {
        let mut failures = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return failures;
            }
            match deliver(seed, worst) {
                Ok(delivered) => _ = errors.fetch_add(u64::from(!delivered), Ordering::Relaxed),
                Err(failure) => failures.push(failure),
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut failures = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    failures.sort();
    let some = &failures[..failures.len().min(5)];
    assert!(
        failures.is_empty(),
        "{} of {} failed: {some:#?}\nOne alone: SIMULATION_SEED=<seed> cargo test --test simulation {test}",
        failures.len(),
        seeds.end - seeds.start,
    );
    let errors = errors.into_inner();
    println!("{test}: {} seeds, {errors} with an error on both sides", seeds.end - seeds.start);
    (seeds.end - seeds.start, errors)
}

#[test]
fn every_byte_arrives_in_order_over_any_link() {
    let (_, errors) = deliver_all(USUAL, "every_byte_arrives_in_order_over_any_link");
    assert_eq!(errors, 0);
}

#[test]
fn every_byte_arrives_in_order_or_both_sides_know_over_links_that_lose_three_in_ten() {
    let test = "every_byte_arrives_in_order_or_both_sides_know_over_links_that_lose_three_in_ten";
    let (seeds, errors) = deliver_all(TERRIBLE, test);
    assert!(errors <= 1 + seeds / STREAMS_AN_ERROR, "{errors} of {seeds} gave up");
}
