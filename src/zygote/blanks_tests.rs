//! How many blanks a node keeps, and what arrivals of many kinds meet: simulated, with
//! no process and no clock.

use super::*;

/// Made in five milliseconds each, one after the other, while no blank is taken.
const REFILL_MS: u64 = 5;

fn demand(gap_ms: u64, starts: u32) -> (Demand, Instant) {
    let (mut demand, mut now) = (Demand::default(), Instant::now());
    for _ in 0..starts {
        demand.started(now);
        demand.refilled(Duration::from_millis(REFILL_MS));
        now += Duration::from_millis(gap_ms);
    }
    (demand, now)
}

/// What a series of starts met.
#[derive(Debug, Default)]
struct Outcome {
    /// Starts that found no blank, in the second half of them.
    missed: usize,
    starts: usize,
    /// Refills that began.
    refills: usize,
    most: usize,
}

/// Starts at these times, in milliseconds.
fn simulate(at_ms: &[u64], limit: usize) -> Outcome {
    let begun = Instant::now();
    let (mut demand, mut outcome) = (Demand::default(), Outcome::default());
    let (mut ready, mut refilling_until) = (0, None::<u64>);
    let mut starts = at_ms.iter().enumerate().peekable();
    let wants = |demand: &Demand, ms, ready, refilling| {
        let marks = marks(demand, begun + Duration::from_millis(ms), limit, 10_000);
        ready < if refilling { marks.high } else { marks.low }
    };
    for ms in 0..=at_ms.last().copied().unwrap_or(0) {
        if refilling_until == Some(ms) {
            demand.refilled(Duration::from_millis(REFILL_MS));
            ready += 1;
            refilling_until = wants(&demand, ms, ready, true).then_some(ms + REFILL_MS);
        }
        while let Some((number, _)) = starts.next_if(|(_, at)| **at <= ms) {
            demand.started(begun + Duration::from_millis(ms));
            if number >= at_ms.len() / 2 {
                outcome.starts += 1;
                outcome.missed += usize::from(ready == 0);
            }
            ready = usize::saturating_sub(ready, 1);
            if refilling_until.is_none() && wants(&demand, ms, ready, false) {
                outcome.refills += 1;
                refilling_until = Some(ms + REFILL_MS);
            }
        }
        outcome.most = outcome.most.max(ready);
    }
    outcome
}

/// Exponential gaps from a fixed seed.
fn poisson(mean_ms: f64, starts: usize) -> Vec<u64> {
    let (mut seed, mut now) = (88_172_645_463_325_252_u64, 0.0);
    let gap = |_| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        now -= mean_ms * ((seed >> 11) as f64 / (1_u64 << 53) as f64).max(1e-9).ln();
        now as u64
    };
    (0..starts).map(gap).collect()
}

fn bursts(size: u64, gap_ms: u64, every_ms: u64, count: u64) -> Vec<u64> {
    (0..count).flat_map(|burst| (0..size).map(move |at| burst * every_ms + at * gap_ms)).collect()
}

#[test]
fn a_node_that_nobody_used_has_none() {
    assert_eq!(marks(&Demand::default(), Instant::now(), 8, 100), Marks::default());
    let (demand, now) = demand(10, 5);
    assert_eq!(marks(&demand, now + COLD_AFTER, 8, 100), Marks::default());
}

#[test]
fn a_rare_function_has_one_spare_and_a_busy_one_more() {
    let (rare, now) = demand(5_000, 5);
    assert_eq!(marks(&rare, now, 8, 100), Marks { low: 2, high: 2 });
    let (busy, now) = demand(1, 50);
    assert!(marks(&busy, now, 100, 1000).high >= 8);
}

#[test]
fn blanks_never_take_the_places_that_starts_need() {
    let (busy, now) = demand(1, 50);
    for (limit, free, high) in [(4, 1000, 4), (100, 5, 2), (100, 1, 0), (0, 1000, 0), (1, 1000, 1)] {
        let marks = marks(&busy, now, limit, free);
        assert_eq!(marks.high, high, "{limit} {free}");
        assert!(marks.low <= high && (high == 0 || marks.low > 0), "{marks:?}");
    }
}

#[test]
fn starts_that_come_alone_always_find_one() {
    let outcome = simulate(&bursts(1, 0, 100, 200), 16);
    assert_eq!((outcome.missed, outcome.most), (0, 2), "{outcome:?}");
}

#[test]
fn bursts_that_came_before_find_enough() {
    for (size, every_ms) in [(3, 500), (6, 2_000), (10, 20_000)] {
        let outcome = simulate(&bursts(size, 1, every_ms, 12), 32);
        assert_eq!(outcome.missed, 0, "{size}: {outcome:?}");
        assert!(outcome.most as u64 <= 2 * size, "{size}: {outcome:?}");
    }
}

#[test]
fn a_burst_is_forgotten_after_a_hundred_lone_starts() {
    let (mut demand, mut now) = demand(1, 20);
    assert!(marks(&demand, now, 64, 1000).low >= 8);
    for _ in 0..100 {
        now += Duration::from_secs(1);
        demand.started(now);
    }
    assert!(marks(&demand, now, 64, 1000).high <= 4);
}

#[test]
fn starts_at_random_seldom_find_none() {
    let outcome = simulate(&poisson(2.0 * REFILL_MS as f64, 2_000), 16);
    assert!(outcome.missed * 25 <= outcome.starts, "{outcome:?}");
    assert!(outcome.refills * 2 <= 2_000, "a refill makes more than one: {outcome:?}");
}

#[test]
fn what_comes_faster_than_blanks_are_made_gets_all_that_there_may_be() {
    let (demand, now) = demand(REFILL_MS - 1, 400);
    assert_eq!(marks(&demand, now, 8, 1000).high, 8);
    // And no more than that, for ever so long an overload.
    assert!(marks(&demand, now, 10_000, 100_000).high <= 97);
}
