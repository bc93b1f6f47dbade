//! Which endpoints a caller prefers by where they are: the priorities and weights of localities, made for each caller, so that
//! whatever speaks xDS obeys them. Callers of one zone get the same bytes.

use std::collections::{BTreeMap, BTreeSet};

use mesh_common::resource::{LocalityPreference, LocalityWeight};

use super::Scope;
use crate::model::Model;

/// Region, zone, sub-zone.
pub(super) type Locality = [String; 3];

/// What a locality is to a caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub priority: u32,
    /// Beside the other ones of the same priority, if that is fixed.
    pub weight: Option<u32>,
}

/// Shares are counted in thousandths of a weight.
const PARTS: u64 = 1000;

/// Where the asker is.
pub(super) fn of<'a>(model: &'a Model, scope: &'a Scope) -> &'a Locality {
    model.workload(&scope.namespace, &scope.workload).map_or(&scope.locality, |workload| &workload.locality)
}

/// The places of localities, given with the sum of their endpoints' weights. Those that the preference gives no share are used
/// when the others can't be; so is, for a caller that nobody knows the place of, none.
pub(super) fn places(
    own: &Locality,
    preference: &LocalityPreference,
    localities: &BTreeMap<Locality, u64>,
) -> BTreeMap<Locality, Place> {
    let fixed = preference.weights.iter().filter(|it| covers(&it.from, own)).max_by_key(|it| depth(&it.from));
    let shares = fixed.map(|it| shares(&it.to, localities)).unwrap_or_default();
    let rank = |locality: &Locality| match shares.get(locality) {
        Some(_) => 0,
        None => 1 + distance(own, locality, preference),
    };
    // Priorities have no gaps.
    let ranks: BTreeSet<usize> = localities.keys().map(rank).collect();
    let ranks: BTreeMap<usize, u32> = ranks.into_iter().zip(0..).collect();
    let place = |locality: &Locality| Place {
        priority: ranks.get(&rank(locality)).copied().unwrap_or_default(),
        weight: shares.get(locality).copied(),
    };
    localities.keys().map(|locality| (locality.clone(), place(locality))).collect()
}

/// Several localities that one entry covers share its weight by their endpoints.
fn shares(to: &[LocalityWeight], localities: &BTreeMap<Locality, u64>) -> BTreeMap<Locality, u32> {
    let entry = |locality: &Locality| {
        let covering = to.iter().filter(|it| covers(&it.locality, locality));
        covering.max_by_key(|it| depth(&it.locality)).filter(|it| it.weight > 0)
    };
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for (locality, sum) in localities {
        if let Some(entry) = entry(locality) {
            *sums.entry(&entry.locality).or_default() += sum;
        }
    }
    let share = |(locality, sum): (&Locality, &u64)| {
        let entry = entry(locality)?;
        let all = sums.get(entry.locality.as_str()).copied().unwrap_or_default().max(1);
        let share = u128::from(u64::from(entry.weight) * PARTS) * u128::from(*sum) / u128::from(all);
        Some((locality.clone(), u32::try_from(share).unwrap_or(u32::MAX).max(1)))
    };
    localities.iter().filter_map(share).collect()
}

/// How far a locality is: in the same zone, in the same region, in another one, in the order that is wanted.
fn distance(own: &Locality, other: &Locality, preference: &LocalityPreference) -> usize {
    let [region, zone, _] = own;
    if region.is_empty() && zone.is_empty() {
        return 0;
    }
    // Some platforms tell only the zone, whose name is then unique.
    let same_region = *region == other[0] || region.is_empty() || other[0].is_empty();
    let failover = preference.failover.iter().find(|it| it.from == *region);
    let order = failover.map_or(&[][..], |it| it.to.as_slice());
    if !zone.is_empty() && *zone == other[1] && same_region {
        0
    } else if *region == other[0] && !region.is_empty() {
        1
    } else {
        2 + order.iter().position(|it| *it == other[0]).unwrap_or(order.len())
    }
}

/// `eu` and `eu/a` cover `eu/a/1`.
fn covers(pattern: &str, locality: &Locality) -> bool {
    pattern == "*" || pattern.split('/').zip(locality).all(|(part, own)| part == own)
}

fn depth(pattern: &str) -> usize {
    if pattern == "*" { 0 } else { pattern.split('/').count() }
}

#[cfg(test)]
mod tests {
    use mesh_common::resource::{LocalityFailover, LocalityWeights};

    use super::*;

    fn at(text: &str) -> Locality {
        let mut parts = text.split('/').map(str::to_owned);
        [(); 3].map(|()| parts.next().unwrap_or_default())
    }

    fn placed(own: &str, preference: &LocalityPreference, all: &[(&str, u64)]) -> Vec<(u32, Option<u32>)> {
        let localities = all.iter().map(|(name, sum)| (at(name), *sum)).collect();
        let places = places(&at(own), preference, &localities);
        all.iter().map(|(name, _)| places[&at(name)]).map(|it| (it.priority, it.weight)).collect()
    }

    fn priorities(own: &str, preference: &LocalityPreference, all: &[&str]) -> Vec<u32> {
        let all: Vec<_> = all.iter().map(|name| (*name, 1)).collect();
        placed(own, preference, &all).into_iter().map(|(priority, _)| priority).collect()
    }

    #[test]
    fn the_same_zone_then_the_same_region_then_the_rest() {
        let plain = LocalityPreference::default();
        assert_eq!(priorities("eu/a", &plain, &["eu/a", "eu/a/1", "eu/b", "us/a", ""]), [0, 0, 1, 2, 2]);
        assert_eq!(priorities("eu/c", &plain, &["us/a", "eu/b"]), [1, 0], "no gaps");
        assert_eq!(priorities("", &plain, &["us/a", "eu/b"]), [0, 0], "nobody knows where the caller is");
        assert_eq!(priorities("eu", &plain, &["us/a", "eu/b"]), [1, 0]);
        assert_eq!(priorities("eu/a", &plain, &["/a", "/b"]), [0, 1], "only the zone is known");
    }

    #[test]
    fn regions_take_over_in_order() {
        let failover = vec![LocalityFailover { from: "eu".into(), to: vec!["us".into(), "asia".into()] }];
        let ordered = LocalityPreference { failover, ..Default::default() };
        assert_eq!(priorities("eu/a", &ordered, &["eu/a", "us/a", "asia/a", "africa/a"]), [0, 1, 2, 3]);
        assert_eq!(priorities("us/a", &ordered, &["eu/a", "us/a", "asia/a"]), [1, 0, 1]);
    }

    #[test]
    fn shares_are_those_of_the_most_specific_entry() {
        let to = |all: &[(&str, u32)]| {
            all.iter()
                .map(|(locality, weight)| LocalityWeight { locality: (*locality).into(), weight: *weight })
                .collect()
        };
        let weights = vec![
            LocalityWeights { from: "*".into(), to: to(&[("eu", 1), ("us", 1)]) },
            LocalityWeights { from: "eu/a".into(), to: to(&[("eu/a", 80), ("eu", 20), ("us/x", 0)]) },
        ];
        let fixed = LocalityPreference { weights, ..Default::default() };
        let all = [("eu/a", 1), ("eu/b", 1), ("eu/c", 3), ("us/x", 1), ("asia", 1)];
        assert_eq!(
            placed("eu/a", &fixed, &all),
            [(0, Some(80_000)), (0, Some(5_000)), (0, Some(15_000)), (1, None), (1, None)]
        );
        assert_eq!(placed("us/x", &fixed, &all)[3..], [(0, Some(1000)), (1, None)]);
    }
}
