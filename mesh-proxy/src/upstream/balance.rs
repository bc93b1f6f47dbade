//! Which of a cluster's endpoints comes next. Knows nothing of connections.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::config::{Balancer, Endpoints};

/// The choice among the endpoints of the best priority that has a healthy one.
#[derive(Debug)]
pub(super) struct Balance {
    policy: Balancer,
    /// Indexes into the endpoints that this was made of.
    candidates: Vec<Candidate>,
    /// All weights are the same.
    even: bool,
    total: u64,
    next: AtomicUsize,
    /// Smooth weighted round robin, for uneven weights.
    current: Mutex<Vec<i64>>,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    index: usize,
    weight: u32,
    /// Sum of the weights up to and with this one.
    up_to: u64,
}

impl Balance {
    pub(super) fn new(policy: Balancer, endpoints: &Endpoints) -> Self {
        let usable = endpoints.endpoints.iter().enumerate().filter(|(_, e)| e.healthy && e.weight > 0);
        let best = usable.clone().map(|(_, e)| e.priority).min();
        let mut total = 0;
        let candidate = |(index, endpoint): (usize, &std::sync::Arc<crate::config::Endpoint>)| {
            total += u64::from(endpoint.weight);
            Candidate { index, weight: endpoint.weight, up_to: total }
        };
        let candidates: Vec<_> = usable.filter(|(_, e)| Some(e.priority) == best).map(candidate).collect();
        let even = candidates.windows(2).all(|pair| pair[0].weight == pair[1].weight);
        let current = Mutex::new(vec![0; candidates.len()]);
        // Begin anywhere, so that proxies that start together do not all begin with the same endpoint.
        let next = AtomicUsize::new(fastrand::usize(..1 << 20));
        Self { policy, candidates, even, total, next, current }
    }

    /// The index of the next endpoint. `load` tells how many requests one has now.
    pub(super) fn pick(&self, load: impl Fn(usize) -> usize) -> Option<usize> {
        match self.candidates.as_slice() {
            [] => None,
            [only] => Some(only.index),
            candidates => Some(match self.policy {
                Balancer::RoundRobin => self.round_robin(candidates).index,
                Balancer::Random => self.random(candidates).index,
                Balancer::LeastRequest => self.least_request(candidates, load).index,
            }),
        }
    }

    /// How many endpoints there are to choose from.
    pub(super) fn len(&self) -> usize {
        self.candidates.len()
    }

    fn round_robin(&self, candidates: &[Candidate]) -> Candidate {
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

    fn random(&self, candidates: &[Candidate]) -> Candidate {
        if self.even {
            return candidates[fastrand::usize(..candidates.len())];
        }
        let at = fastrand::u64(..self.total);
        candidates[candidates.partition_point(|c| c.up_to <= at)]
    }

    /// The less loaded of two random ones ("power of two choices"), its load measured by its weight.
    fn least_request(&self, candidates: &[Candidate], load: impl Fn(usize) -> usize) -> Candidate {
        let first = self.random(candidates);
        let mut second = self.random(candidates);
        if second.index == first.index && self.even {
            // Any other one.
            let offset = fastrand::usize(1..candidates.len());
            let place = candidates.iter().position(|c| c.index == first.index).unwrap_or_default();
            second = candidates[(place + offset) % candidates.len()];
        }
        let (a, b) = (load(first.index) as u64, load(second.index) as u64);
        // a / first.weight <= b / second.weight; when equal, the first keeps the weighted share.
        if a * u64::from(second.weight) <= b * u64::from(first.weight) { first } else { second }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::config::Endpoint;

    fn endpoint(weight: u32) -> Endpoint {
        Endpoint {
            address: ([127, 0, 0, 1], 80).into(),
            weight,
            healthy: true,
            mesh: false,
            priority: 0,
            locality: String::new(),
            workload: None,
        }
    }

    fn endpoints(all: Vec<Endpoint>) -> Endpoints {
        Endpoints { name: "test".to_owned(), endpoints: all.into_iter().map(Arc::new).collect() }
    }

    fn shares(balance: &Balance, n: usize, rounds: usize) -> Vec<usize> {
        let mut counts = vec![0; n];
        for _ in 0..rounds {
            counts[balance.pick(|_| 0).unwrap()] += 1;
        }
        counts
    }

    proptest! {
        #[test]
        fn round_robin_is_exact(weights in prop::collection::vec(1u32..20, 1..6)) {
            let balance = Balance::new(Balancer::RoundRobin, &endpoints(weights.iter().map(|&w| endpoint(w)).collect()));
            let total = weights.iter().sum::<u32>() as usize;
            let expected: Vec<_> = weights.iter().map(|&w| w as usize * 10).collect();
            prop_assert_eq!(shares(&balance, weights.len(), total * 10), expected);
        }
    }

    #[test]
    fn random_follows_the_weights() {
        fastrand::seed(7);
        let balance = Balance::new(Balancer::Random, &endpoints(vec![endpoint(1), endpoint(3)]));
        let counts = shares(&balance, 2, 10_000);
        assert!((2_200..2_800).contains(&counts[0]), "{counts:?}");
    }

    #[test]
    fn least_request_prefers_the_idle_endpoint_and_follows_weights_when_all_are_idle() {
        fastrand::seed(7);
        let two = Balance::new(Balancer::LeastRequest, &endpoints(vec![endpoint(1), endpoint(1)]));
        assert!((0..100).all(|_| two.pick(|i| [5, 0][i]) == Some(1)));
        let weighted = Balance::new(Balancer::LeastRequest, &endpoints(vec![endpoint(1), endpoint(9)]));
        let counts = shares(&weighted, 2, 10_000);
        assert!((700..1_300).contains(&counts[0]), "{counts:?}");
        // Ten requests at weight 9 are less load than two at weight 1.
        let heavy = (0..1000).filter(|_| weighted.pick(|i| [2, 10][i]) == Some(1)).count();
        assert!(heavy > 950, "{heavy}");
    }

    #[test]
    fn only_healthy_endpoints_of_the_best_priority() {
        let sick = Endpoint { healthy: false, ..endpoint(1) };
        let spare = Endpoint { priority: 1, ..endpoint(1) };
        let zero = endpoint(0);
        let balance = Balance::new(Balancer::RoundRobin, &endpoints(vec![sick, spare, endpoint(1), zero]));
        assert_eq!(balance.len(), 1);
        assert_eq!(balance.pick(|_| 0), Some(2));
        let sick = Endpoint { healthy: false, ..endpoint(1) };
        let spare = Endpoint { priority: 1, ..endpoint(1) };
        assert_eq!(Balance::new(Balancer::Random, &endpoints(vec![sick, spare])).pick(|_| 0), Some(1));
        assert_eq!(Balance::new(Balancer::Random, &endpoints(vec![])).pick(|_| 0), None);
    }
}
