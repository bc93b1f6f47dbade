//! Virtual addresses. A service's address follows from its name alone, but for collisions; and one that was given stays
//! for as long as the service does, because applications keep what DNS told them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// 240.240.0.0/16, of the range that no network uses.
const V4_BASE: u32 = 0xf0f0_0000;
/// Not .0.0 and not .255.255, which some stacks take for a network and a broadcast.
const V4_HOSTS: u32 = 0xfffe;
/// fd00:6d65:7368::/64, a unique local prefix.
const V6_BASE: u128 = 0xfd00_6d65_7368_0000_0000_0000_0000_0000;

/// The virtual addresses of all services, by full name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Addresses(pub(super) BTreeMap<String, Pair>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pair {
    /// `None` when all 65534 are taken.
    pub v4: Option<Ipv4Addr>,
    pub v6: Ipv6Addr,
}

impl Pair {
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.v4.map(IpAddr::V4).into_iter().chain([IpAddr::V6(self.v6)]).collect()
    }
}

/// By full name. `reserved` are addresses that objects ask for themselves.
pub(super) fn allocate<'a>(
    names: impl Iterator<Item = &'a str>,
    reserved: &BTreeSet<IpAddr>,
    previous: &BTreeMap<String, Pair>,
) -> BTreeMap<String, Pair> {
    let names: BTreeSet<&str> = names.collect();
    let mut taken = reserved.clone();
    let mut pairs = BTreeMap::new();
    for name in &names {
        let Some(pair) = previous.get(*name) else { continue };
        if pair.v4.is_some() && pair.addresses().iter().all(|address| !taken.contains(address)) {
            taken.extend(pair.addresses());
            pairs.insert((*name).to_owned(), *pair);
        }
    }
    for name in names {
        if !pairs.contains_key(name) {
            let pair = probe(name, &taken);
            taken.extend(pair.addresses());
            pairs.insert(name.to_owned(), pair);
        }
    }
    pairs
}

fn probe(name: &str, taken: &BTreeSet<IpAddr>) -> Pair {
    let digest = Sha256::digest(name.as_bytes());
    let hash = digest.iter().take(8).fold(0_u64, |sum, byte| (sum << 8) | u64::from(*byte));
    let v4 = |step: u32| Ipv4Addr::from(V4_BASE + 1 + ((hash >> 32) as u32 % V4_HOSTS + step) % V4_HOSTS);
    let v6 = |step: u64| Ipv6Addr::from(V6_BASE + u128::from(hash.wrapping_add(step)));
    Pair {
        v4: (0..V4_HOSTS).map(v4).find(|address| !taken.contains(&IpAddr::V4(*address))),
        // With 2^64 to choose from the first is free; the search is for certainty.
        v6: (0..).map(v6).find(|address| !taken.contains(&IpAddr::V6(*address))).unwrap_or(Ipv6Addr::from(V6_BASE)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain<'a>(names: impl IntoIterator<Item = &'a String>) -> BTreeMap<String, Pair> {
        allocate(names.into_iter().map(String::as_str), &BTreeSet::new(), &BTreeMap::new())
    }

    fn home(name: &str) -> Pair {
        probe(name, &BTreeSet::new())
    }

    #[test]
    fn addresses_are_in_their_ranges() {
        for i in 0..1000 {
            let pair = home(&format!("s{i}"));
            let v4 = u32::from(pair.v4.unwrap());
            assert!((V4_BASE + 1..=V4_BASE + V4_HOSTS).contains(&v4));
            assert_eq!(u128::from(pair.v6) >> 64, V6_BASE >> 64);
        }
    }

    #[test]
    fn a_full_range_leaves_ipv6() {
        let names: Vec<String> = (0..V4_HOSTS + 3).map(|i| format!("s{i}")).collect();
        // Nobody waits for this many probes in a debug build: fill the range by hand.
        let taken = (0..V4_HOSTS).map(|i| IpAddr::V4(Ipv4Addr::from(V4_BASE + 1 + i))).collect();
        let pair = probe(&names[0], &taken);
        assert_eq!(pair.v4, None);
        assert_eq!(pair.addresses().len(), 1);
    }

    #[test]
    fn reserved_addresses_are_left_alone() {
        let reserved = BTreeSet::from([IpAddr::V4(home("a").v4.unwrap())]);
        let pairs = allocate(["a"].into_iter(), &reserved, &BTreeMap::from([("a".to_owned(), home("a"))]));
        assert_ne!(pairs["a"].v4, home("a").v4);
    }

    #[test]
    fn addresses_survive_being_written_down() {
        // "b" was there first and has the place that "a" would take.
        let colliding = Pair { v4: home("a").v4, v6: home("b").v6 };
        let before = Addresses([("b".to_owned(), colliding)].into());
        let read: Addresses = serde_json::from_slice(&serde_json::to_vec(&before).unwrap()).unwrap();
        let after = allocate(["a", "b"].into_iter(), &BTreeSet::new(), &read.0);
        assert_eq!(after["b"], colliding);
        assert_ne!(after["a"].v4, colliding.v4);
    }

    proptest! {
        #[test]
        fn never_two_the_same(names in prop::collection::btree_set("[a-z]{1,8}", 0..300)) {
            let pairs = plain(&names);
            let all: BTreeSet<_> = pairs.values().flat_map(Pair::addresses).collect();
            prop_assert_eq!(all.len(), 2 * names.len());
        }

        #[test]
        fn what_does_not_collide_never_moves(names in prop::collection::btree_set("[a-z]{1,8}", 1..300), new in "[a-z]{1,8}") {
            let before = plain(&names);
            let mut more = names.clone();
            more.insert(new.clone());
            let after = plain(&more);
            for name in &names {
                // Only one that is not where its own hash puts it, or whose place the new one wants, may move.
                if before[name] == home(name) && (name == &new || home(name).v4 != home(&new).v4) && after[&new] == home(&new) {
                    prop_assert_eq!(before[name], after[name]);
                }
            }
        }

        #[test]
        fn what_was_given_stays(names in prop::collection::btree_set("[a-z]{1,8}", 1..100), more in prop::collection::btree_set("[a-z]{1,8}", 0..100)) {
            let before = plain(&names);
            let all: BTreeSet<String> = names.union(&more).cloned().collect();
            let after = allocate(all.iter().map(String::as_str), &BTreeSet::new(), &before);
            for name in &names {
                prop_assert_eq!(before[name], after[name]);
            }
        }
    }
}
