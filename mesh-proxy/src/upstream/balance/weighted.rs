//! Choices by weight alone: round robin, random, and the better of two random ones.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// An endpoint that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Its place among the endpoints that the balance was made of.
    pub(super) index: usize,
    pub(super) weight: u32,
    /// Sum of the weights up to and with this one.
    up_to: u64,
}

#[derive(Debug)]
pub(super) struct Weighted {
    candidates: Vec<Candidate>,
    /// All weights are the same.
    even: bool,
    total: u64,
    next: AtomicUsize,
    /// Smooth weighted round robin, for uneven weights.
    current: Mutex<Vec<i64>>,
}

impl Weighted {
    /// Of indexes with their weights, which are not zero; there is at least one.
    pub(super) fn new(members: &[(usize, u32)]) -> Self {
        let mut total = 0;
        let candidate = |&(index, weight): &(usize, u32)| {
            total += u64::from(weight);
            Candidate { index, weight, up_to: total }
        };
        let candidates: Vec<_> = members.iter().map(candidate).collect();
        let even = candidates.windows(2).all(|pair| pair[0].weight == pair[1].weight);
        let current = Mutex::new(vec![0; candidates.len()]);
        // Begin anywhere, so that proxies that start together do not all begin with the same endpoint.
        let next = AtomicUsize::new(fastrand::usize(..1 << 20));
        Self { candidates, even, total, next, current }
    }

    /// One atomic addition where the weights are even, else a short lock.
    pub(super) fn round_robin(&self) -> Candidate {
        let candidates = &self.candidates;
        if self.even {
            return candidates[self.next.fetch_add(1, Ordering::Relaxed) % candidates.len()];
        }
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let mut best = 0;
        for (i, candidate) in candidates.iter().enumerate() {
            current[i] += i64::from(candidate.weight);
            if current[i] > current[best] {
                best = i;
            }
        }
        current[best] -= i64::try_from(self.total).unwrap_or(i64::MAX);
        candidates[best]
    }

    pub(super) fn random(&self) -> Candidate {
        if self.even {
            return self.candidates[fastrand::usize(..self.candidates.len())];
        }
        let at = fastrand::u64(..self.total);
        self.candidates[self.candidates.partition_point(|c| c.up_to <= at)]
    }

    /// The one of two random ones ("power of two choices") that costs less; the first if they cost the same, which keeps the
    /// weighted share. The cost is told an endpoint and its weight beside an average of 1.
    pub(super) fn cheaper_of_two(&self, cost: impl Fn(usize, f64) -> f64) -> Candidate {
        let candidates = &self.candidates;
        let first = self.random();
        let mut second = self.random();
        if second.index == first.index && self.even && candidates.len() > 1 {
            // Any other one.
            let offset = fastrand::usize(1..candidates.len());
            let place = candidates.iter().position(|c| c.index == first.index).unwrap_or_default();
            second = candidates[(place + offset) % candidates.len()];
        }
        let average = self.total as f64 / candidates.len() as f64;
        let cost = |it: Candidate| cost(it.index, f64::from(it.weight) / average);
        if cost(first) <= cost(second) { first } else { second }
    }
}
