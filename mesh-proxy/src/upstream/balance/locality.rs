//! Where endpoints are: how the requests are shared among the localities of a priority, and among the priorities.

use std::collections::HashMap;

use crate::config::Endpoint;

/// A priority or locality with this much less than all of its endpoints still takes all of its requests: 1 / 1.4, Envoy's
/// overprovisioning.
const OVERPROVISIONED: f64 = 1.4;
/// What the weights of a priority add up to, about, when those of its localities count.
const SHARES: f64 = 1_000_000.0;

/// The weights of endpoints, those of `usable` ones, when each locality's own weight says what share it gets of its
/// priority. A locality that has lost more of its endpoints than it can do without gets less. Zero: nothing.
pub(super) fn weights(all: &[&Endpoint], usable: impl Fn(&Endpoint) -> bool) -> Vec<u32> {
    #[derive(Default)]
    struct Sums {
        usable: f64,
        all: f64,
        share: f64,
    }
    let mut localities: HashMap<&str, Sums> = HashMap::new();
    for endpoint in all {
        let sums = localities.entry(&endpoint.locality).or_default();
        sums.share = f64::from(endpoint.locality_weight);
        sums.all += f64::from(endpoint.weight);
        if usable(endpoint) {
            sums.usable += f64::from(endpoint.weight);
        }
    }
    for sums in localities.values_mut() {
        sums.share *= (OVERPROVISIONED * sums.usable / sums.all).min(1.0);
    }
    let total: f64 = localities.values().map(|sums| sums.share).sum();
    let weight = |endpoint: &&Endpoint| match localities.get(endpoint.locality.as_str()) {
        Some(sums) if sums.share > 0.0 && usable(endpoint) => {
            let share = sums.share / total * f64::from(endpoint.weight) / sums.usable;
            ((share * SHARES).round() as u32).max(1)
        }
        _ => 0,
    };
    all.iter().map(weight).collect()
}

/// A priority that was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) level: usize,
    /// So few of its endpoints are available, and those of other priorities can't do for the rest, that all are used.
    pub(super) panic: bool,
}

/// The priority for a request, `roll` being a random number below 1. `counts` tells how many endpoints of a priority are
/// available, and of how many; it is not asked about more priorities than needed. `None`: nothing is available.
pub(super) fn choose(
    levels: usize,
    counts: impl Fn(usize) -> (usize, usize),
    panic_percent: u32,
    roll: f64,
) -> Option<Chosen> {
    let health = |level: usize| {
        let (available, all) = counts(level);
        (OVERPROVISIONED * available as f64 / all.max(1) as f64).min(1.0)
    };
    // The level in which a number below the sum of all falls.
    let at = |roll: f64| {
        let mut sum = 0.0;
        let found = (0..levels).find(|level| {
            sum += health(*level);
            roll < sum
        });
        (found, sum)
    };
    let (found, sum) = at(roll);
    if let (Some(level), true) = (found, panic_percent == 0) {
        return Some(Chosen { level, panic: false });
    }
    if levels == 0 {
        return None;
    }
    let sum = if found.is_some() { (0..levels).map(health).sum() } else { sum };
    if sum >= 1.0 {
        return found.map(|level| Chosen { level, panic: false });
    }
    // All priorities together are not enough: each takes its part of what there is.
    let again = |sum: f64| at((roll - sum) / (1.0 - sum) * sum).0;
    let level = found.or_else(|| again(sum)).unwrap_or_default();
    let (available, all) = counts(level);
    let panic = available * 100 < all * panic_percent as usize;
    (panic || sum > 0.0).then_some(Chosen { level, panic })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn level(counts: &[(usize, usize)], panic_percent: u32, roll: f64) -> Option<(usize, bool)> {
        choose(counts.len(), |level| counts[level], panic_percent, roll).map(|it| (it.level, it.panic))
    }

    #[test]
    fn the_best_priority_takes_all_until_it_has_lost_too_much() {
        for roll in [0.0, 0.5, 0.999] {
            assert_eq!(level(&[(10, 10), (5, 5)], 0, roll), Some((0, false)));
            assert_eq!(level(&[(8, 10), (5, 5)], 0, roll), Some((0, false)), "1.4 times 0.8 is enough");
            assert_eq!(level(&[(0, 10), (5, 5)], 0, roll), Some((1, false)));
        }
        // 1.4 times 0.5.
        assert_eq!(level(&[(5, 10), (5, 5)], 0, 0.69), Some((0, false)));
        assert_eq!(level(&[(5, 10), (5, 5)], 0, 0.71), Some((1, false)));
    }

    #[test]
    fn what_is_left_is_shared_when_it_is_not_enough() {
        // 0.28 and 0.14: two to one.
        assert_eq!(level(&[(2, 10), (1, 10)], 0, 0.80), Some((0, false)));
        assert_eq!(level(&[(2, 10), (1, 10)], 0, 0.81), Some((1, false)));
        assert_eq!(level(&[(0, 10), (0, 10)], 0, 0.5), None);
        assert_eq!(level(&[], 50, 0.5), None);
    }

    #[test]
    fn panic_only_where_no_other_priority_can_help() {
        assert_eq!(level(&[(4, 10)], 50, 0.9), Some((0, true)));
        assert_eq!(level(&[(5, 10)], 50, 0.9), Some((0, false)));
        assert_eq!(level(&[(0, 10)], 50, 0.9), Some((0, true)));
        assert_eq!(level(&[(0, 10)], 0, 0.9), None);
        assert_eq!(level(&[(4, 10), (10, 10)], 50, 0.1), Some((0, false)));
        assert_eq!(level(&[(4, 10), (10, 10)], 50, 0.9), Some((1, false)));
        assert_eq!(level(&[(1, 10), (1, 10)], 50, 0.9), Some((1, true)));
    }

    proptest! {
        #[test]
        fn each_priority_gets_what_the_better_ones_leave(counts in prop::collection::vec((0usize..10, 0usize..10), 1..4)) {
            let counts: Vec<_> = counts.into_iter().map(|(a, b)| (a.min(b), a.max(b))).collect();
            let rolls = 10_000;
            let mut got = vec![0.0; counts.len()];
            for n in 0..rolls {
                if let Some((level, _)) = level(&counts, 0, n as f64 / rolls as f64) {
                    got[level] += 1.0 / rolls as f64;
                }
            }
            let health: Vec<f64> = counts.iter().map(|&(a, b)| (1.4 * a as f64 / b.max(1) as f64).min(1.0)).collect();
            let enough = health.iter().sum::<f64>();
            let mut left = 1.0;
            for (health, got) in health.into_iter().zip(got) {
                let expected = if enough == 0.0 { 0.0 } else { (health / enough.min(1.0)).min(left) };
                left -= expected;
                prop_assert!((expected - got).abs() < 0.001, "{counts:?}: {expected} {got}");
            }
        }
    }
}
