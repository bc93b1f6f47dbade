use std::sync::{Arc, Mutex, PoisonError};

use super::HeaderMutation;

/// Clusters with weights, chosen by smooth weighted round robin: over as many requests as the sum of the weights
/// (divided by their greatest common divisor), each cluster gets exactly its share.
#[derive(Debug)]
pub struct WeightedClusters {
    choices: Vec<WeightedCluster>,
    total: i64,
    /// Where the round stands; kept when the resource is replaced by one with the same split.
    round: Arc<Mutex<Vec<i64>>>,
}

#[derive(Clone, Debug)]
pub struct WeightedCluster {
    pub cluster: Arc<str>,
    pub weight: u32,
    pub request_headers: HeaderMutation,
    pub response_headers: HeaderMutation,
}

impl WeightedClusters {
    /// Clusters with weight zero are never chosen. With nothing to choose from, [`pick`](Self::pick) returns `None`.
    pub fn new(choices: Vec<WeightedCluster>) -> Self {
        let choices: Vec<_> = choices.into_iter().filter(|c| c.weight > 0).collect();
        let total = choices.iter().map(|c| i64::from(c.weight)).sum();
        let round = Arc::new(Mutex::new(vec![0; choices.len()]));
        Self { choices, total, round }
    }

    pub fn single(cluster: &str) -> Self {
        Self::new(vec![WeightedCluster {
            cluster: cluster.into(),
            weight: 1,
            request_headers: HeaderMutation::default(),
            response_headers: HeaderMutation::default(),
        }])
    }

    /// Goes on in the round of `former`, if it splits in the same way.
    pub fn go_on_from(&mut self, former: &Self) {
        let split = |it: &Self| it.choices.iter().map(|c| (c.cluster.clone(), c.weight)).collect::<Vec<_>>();
        if self.choices.len() > 1 && split(self) == split(former) {
            self.round = former.round.clone();
        }
    }

    pub fn choices(&self) -> &[WeightedCluster] {
        &self.choices
    }

    pub fn pick(&self) -> Option<&WeightedCluster> {
        if self.choices.len() < 2 {
            return self.choices.first();
        }
        let mut current = self.round.lock().unwrap_or_else(PoisonError::into_inner);
        let mut best = 0;
        for (i, choice) in self.choices.iter().enumerate() {
            current[i] += i64::from(choice.weight);
            if current[i] > current[best] {
                best = i;
            }
        }
        current[best] -= self.total;
        self.choices.get(best)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn weighted(weights: &[u32]) -> WeightedClusters {
        let choice = |(i, weight): (usize, &u32)| WeightedCluster {
            cluster: i.to_string().into(),
            weight: *weight,
            request_headers: HeaderMutation::default(),
            response_headers: HeaderMutation::default(),
        };
        WeightedClusters::new(weights.iter().enumerate().map(choice).collect())
    }

    #[test]
    fn nothing_to_choose_from() {
        assert!(weighted(&[]).pick().is_none());
        assert!(weighted(&[0, 0]).pick().is_none());
    }

    #[test]
    fn a_replaced_split_goes_on_where_it_stood() {
        let pick = |clusters: &WeightedClusters| clusters.pick().unwrap().cluster.to_string();
        let mut clusters = weighted(&[99, 1]);
        let mut got = 0;
        for _ in 0..1000 {
            let former = std::mem::replace(&mut clusters, weighted(&[99, 1]));
            clusters.go_on_from(&former);
            got += u32::from(pick(&clusters) == "1");
        }
        assert_eq!(got, 10);
        let mut other = weighted(&[2, 1]);
        other.go_on_from(&clusters);
        assert_eq!([pick(&other), pick(&other), pick(&other)], ["0", "1", "0"], "another split begins anew");
    }

    proptest! {
        #[test]
        fn every_window_of_the_total_has_exact_shares(weights in prop::collection::vec(0u32..60, 1..6), offset in 0usize..500) {
            let total = weights.iter().sum::<u32>() as usize;
            prop_assume!(total > 0);
            let clusters = weighted(&weights);
            for _ in 0..offset {
                clusters.pick();
            }
            let mut counts = vec![0u32; weights.len()];
            for _ in 0..total {
                counts[clusters.pick().unwrap().cluster.parse::<usize>().unwrap()] += 1;
            }
            prop_assert_eq!(counts, weights);
        }
    }
}
