use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::config::{Discovery, Limits, SlowStart, UpstreamHttp};

/// Endpoints as a test wants them. The clock stands.
struct Fake {
    load: HashMap<usize, usize>,
    gone: BTreeSet<usize>,
    avoided: BTreeSet<usize>,
    seconds: HashMap<usize, f64>,
    since: HashMap<usize, Instant>,
    begin: Instant,
    now: Instant,
}

impl Fake {
    fn new() -> Self {
        let begin = Instant::now();
        let (load, gone, avoided) = Default::default();
        Self { load, gone, avoided, seconds: HashMap::new(), since: HashMap::new(), begin, now: begin }
    }

    fn without(gone: &[usize]) -> Self {
        Self { gone: gone.iter().copied().collect(), ..Self::new() }
    }
}

impl Peers for Fake {
    fn load(&self, index: usize) -> usize {
        self.load.get(&index).copied().unwrap_or_default()
    }

    fn is_available(&self, index: usize) -> bool {
        !self.gone.contains(&index)
    }

    fn is_avoided(&self, index: usize) -> bool {
        self.avoided.contains(&index)
    }

    fn cost(&self, index: usize, weight: f64, _: Instant, _: Duration) -> f64 {
        self.seconds.get(&index).copied().unwrap_or(1.0) * (self.load(index) as f64 / weight + 1.0)
    }

    fn since(&self, index: usize) -> Instant {
        self.since.get(&index).copied().unwrap_or(self.begin)
    }

    fn now(&self) -> Instant {
        self.now
    }
}

const RING: Balancer = Balancer::RingHash { min_size: 1024, max_size: 1 << 20 };
const MAGLEV: Balancer = Balancer::Maglev { size: 65_537 };
const EWMA: Balancer = Balancer::PeakEwma { decay: Duration::from_secs(10) };

/// The endpoint with this number.
fn endpoint(number: u8, weight: u32) -> Endpoint {
    Endpoint { weight, ..Endpoint::at(([10, 0, 0, number], 80).into()) }
}

fn weighted(weights: &[u32]) -> Vec<Endpoint> {
    weights.iter().enumerate().map(|(n, weight)| endpoint(n as u8, *weight)).collect()
}

fn at(locality: &str, locality_weight: u32, endpoint: Endpoint) -> Endpoint {
    Endpoint { locality: locality.to_owned(), locality_weight, ..endpoint }
}

fn cluster(balancer: Balancer, spread: Spread) -> Cluster {
    Cluster {
        name: "test".to_owned(),
        health: crate::config::EndpointHealth::default(),
        discovery: Discovery::Eds("test".to_owned()),
        balancer,
        spread,
        connect_timeout: Duration::from_secs(1),
        tls: None,
        tls_always: false,
        http: UpstreamHttp::Http1,
        limits: Limits { max_connections: 1, max_pending: 1, max_requests: 1, max_retries: 1, retry_budget: None },
    }
}

fn with(balancer: Balancer, spread: Spread, all: Vec<Endpoint>, peers: &Fake) -> Balance {
    let endpoints = Endpoints { name: "test".to_owned(), endpoints: all.into_iter().map(Arc::new).collect() };
    Balance::new(&cluster(balancer, spread), &endpoints, |index| peers.since(index))
}

fn balance(balancer: Balancer, all: Vec<Endpoint>) -> Balance {
    with(balancer, Spread::default(), all, &Fake::new())
}

fn shares(balance: &Balance, n: usize, rounds: usize, peers: &Fake) -> Vec<usize> {
    let mut counts = vec![0; n];
    for _ in 0..rounds {
        counts[balance.pick(None, peers).unwrap()] += 1;
    }
    counts
}

/// The numbers of the endpoints that some keys belong to.
fn owners(balance: &Balance, all: &[Endpoint], peers: &Fake) -> Vec<u8> {
    let number = |index: usize| match all[index].address.ip() {
        std::net::IpAddr::V4(ip) => ip.octets()[3],
        std::net::IpAddr::V6(_) => unreachable!(),
    };
    let keys = (0..2000u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29));
    keys.map(|key| number(balance.pick(Some(key), peers).unwrap())).collect()
}

// By weight

proptest! {
    #[test]
    fn round_robin_is_exact(weights in prop::collection::vec(1u32..20, 1..6)) {
        let balance = balance(Balancer::RoundRobin, weighted(&weights));
        let total = weights.iter().sum::<u32>() as usize;
        let expected: Vec<_> = weights.iter().map(|&w| w as usize * 10).collect();
        prop_assert_eq!(shares(&balance, weights.len(), total * 10, &Fake::new()), expected);
    }

    #[test]
    fn all_others_follow_the_weights(weights in prop::collection::vec(1u32..10, 1..6), seed: u64) {
        fastrand::seed(seed);
        let total = f64::from(weights.iter().sum::<u32>());
        for balancer in [Balancer::Random, Balancer::LeastRequest, EWMA, RING, MAGLEV] {
            let balance = balance(balancer, weighted(&weights));
            let counts = shares(&balance, weights.len(), 10_000, &Fake::new());
            for (count, weight) in counts.iter().zip(&weights) {
                let (got, expected) = (*count as f64 / 10_000.0, f64::from(*weight) / total);
                // The even case of two choices takes two different ones, which leaves the shares as they are.
                prop_assert!((got - expected).abs() < 0.09, "{balancer:?} {weights:?}: {counts:?}");
            }
        }
    }
}

#[test]
fn least_request_prefers_the_idle_endpoint_by_weight() {
    fastrand::seed(7);
    let two = balance(Balancer::LeastRequest, weighted(&[1, 1]));
    let busy = Fake { load: [(0, 5)].into(), ..Fake::new() };
    assert!((0..100).all(|_| two.pick(None, &busy) == Some(1)));
    // Ten requests at weight 9 are less load than two at weight 1.
    let uneven = balance(Balancer::LeastRequest, weighted(&[1, 9]));
    let loaded = Fake { load: [(0, 2), (1, 10)].into(), ..Fake::new() };
    let heavy = (0..1000).filter(|_| uneven.pick(None, &loaded) == Some(1)).count();
    assert!(heavy > 950, "{heavy}");
}

#[test]
fn peak_ewma_prefers_the_faster_until_it_has_too_much() {
    fastrand::seed(7);
    let three = balance(EWMA, weighted(&[1, 1, 1]));
    let peers = Fake { seconds: [(0, 0.5), (1, 0.01), (2, 0.02)].into(), ..Fake::new() };
    let counts = shares(&three, 3, 3000, &peers);
    // Of two that are not the same, the slowest is never the better one.
    assert!(counts[0] == 0 && counts[1] > 1800, "{counts:?}");
    let peers = Fake { load: [(1, 100)].into(), ..peers };
    let counts = shares(&three, 3, 3000, &peers);
    assert!(counts[2] > 1800 && counts[1] == 0, "{counts:?}");
}

// By key

proptest! {
    #[test]
    fn the_owner_of_a_key_does_not_depend_on_the_order(weights in prop::collection::vec(1u32..5, 2..10), seed: u64) {
        fastrand::seed(seed);
        let all = weighted(&weights);
        let mut other = weighted(&weights);
        fastrand::shuffle(&mut other);
        for balancer in [RING, MAGLEV] {
            let (a, b) = (balance(balancer, weighted(&weights)), balance(balancer, other.iter().map(clone).collect()));
            let first = owners(&a, &all, &Fake::new());
            prop_assert_eq!(&first, &owners(&a, &all, &Fake::new()), "the same key, the same endpoint");
            prop_assert_eq!(first, owners(&b, &other, &Fake::new()));
        }
    }

    #[test]
    fn only_the_keys_of_the_endpoint_that_goes_move(n in 2u8..20, gone in 0u8..20) {
        let gone = gone % n;
        let all: Vec<_> = (0..n).map(|number| endpoint(number, 1)).collect();
        let rest: Vec<_> = (0..n).filter(|number| *number != gone).map(|number| endpoint(number, 1)).collect();
        // Maglev's slots are not all kept; the paper has some percent.
        for (balancer, most) in [(RING, 0), (MAGLEV, 2000 / 10)] {
            let (before, after) = (balance(balancer, all.iter().map(clone).collect()), balance(balancer, rest.iter().map(clone).collect()));
            let (before, after) = (owners(&before, &all, &Fake::new()), owners(&after, &rest, &Fake::new()));
            let moved = before.iter().zip(&after).filter(|(a, b)| **a != gone && a != b).count();
            prop_assert!(moved <= most, "{balancer:?}: {moved} of 2000");
            let to: BTreeSet<u8> = before.iter().zip(&after).filter(|(a, _)| **a == gone).map(|(_, b)| *b).collect();
            prop_assert!(to.len() > usize::from(n) / 3, "spread over the rest: {to:?}");
        }
    }

    #[test]
    fn keys_of_one_that_cannot_be_had_for_now_go_elsewhere_and_no_other_moves(n in 2u8..10, gone in 0usize..10) {
        let gone = gone % usize::from(n);
        let all: Vec<_> = (0..n).map(|number| endpoint(number, 1)).collect();
        for balancer in [RING, MAGLEV] {
            let made = balance(balancer, all.iter().map(clone).collect());
            let before = owners(&made, &all, &Fake::new());
            let after = owners(&made, &all, &Fake::without(&[gone]));
            for (a, b) in before.iter().zip(&after) {
                prop_assert!(usize::from(*b) != gone && (a == b || usize::from(*a) == gone));
            }
        }
    }
}

#[test]
fn a_ring_stays_within_its_bounds() {
    let all: Vec<_> = (0..100).map(|number| endpoint(number, 1 + u32::from(number))).collect();
    let members = |all: &[Endpoint]| -> Vec<Member> {
        let member = |(index, it): (usize, &Endpoint)| Member { index, weight: it.weight, key: it.address.to_string() };
        all.iter().enumerate().map(member).collect()
    };
    let small = Ring::new(&members(&all), 1024, 1000);
    assert!(small.walk(0).count() <= 1100, "each has a point of its own");
    assert_eq!(small.walk(0).collect::<BTreeSet<_>>().len(), 100);
    assert!(Ring::new(&members(&all[..4]), 1024, 1 << 20).walk(0).count() >= 1024);
}

// Who is there

fn clone(it: &Endpoint) -> Endpoint {
    Endpoint { locality: it.locality.clone(), workload: it.workload.clone(), ..*it }
}

#[test]
fn only_healthy_endpoints_of_the_best_priority() {
    let sick = || Endpoint { healthy: false, ..endpoint(0, 1) };
    let spare = || Endpoint { priority: 1, ..endpoint(1, 1) };
    let here = || endpoint(2, 1);
    let picks = |all: Vec<Endpoint>| {
        let balance = balance(Balancer::RoundRobin, all);
        (0..100).map(|_| balance.pick(None, &Fake::new())).collect::<BTreeSet<_>>()
    };
    // Half of a priority is more than 1/1.4 less than all: a part of the requests goes on.
    assert_eq!(picks(vec![sick(), spare(), here()]), [Some(1), Some(2)].into());
    assert_eq!(picks(vec![spare(), here(), endpoint(3, 0)]), [Some(1)].into());
    assert_eq!(picks(vec![sick(), spare()]), [Some(1)].into());
    assert_eq!(picks(vec![sick()]), [None].into());
    assert_eq!(picks(vec![]), [None].into());
}

#[test]
fn when_none_is_left_the_next_priority_takes_over_and_a_retry_goes_there_too() {
    let all = || vec![endpoint(0, 1), Endpoint { priority: 1, ..endpoint(1, 1) }];
    for balancer in [Balancer::RoundRobin, Balancer::Random, Balancer::LeastRequest, EWMA, RING, MAGLEV] {
        let balance = balance(balancer, all());
        assert_eq!(balance.pick(None, &Fake::new()), Some(0), "{balancer:?}");
        assert_eq!(balance.pick(None, &Fake::without(&[0])), Some(1), "{balancer:?}");
        assert_eq!(balance.pick(None, &Fake::without(&[0, 1])), None, "{balancer:?}");
        let tried = Fake { avoided: [0].into(), ..Fake::new() };
        assert_eq!(balance.pick(None, &tried), Some(1), "{balancer:?}");
        let both = Fake { avoided: [0, 1].into(), ..Fake::new() };
        assert_eq!(balance.pick(None, &both), Some(0), "{balancer:?}");
    }
}

#[test]
fn the_only_one_that_can_be_had_is_found_whatever_the_balancer() {
    for balancer in [Balancer::RoundRobin, Balancer::Random, Balancer::LeastRequest, EWMA, RING, MAGLEV] {
        let balance = balance(balancer, weighted(&[1000, 1, 1000, 1000]));
        let peers = Fake { avoided: [2, 3].into(), ..Fake::without(&[0]) };
        assert!((0..200).all(|_| balance.pick(None, &peers) == Some(1)), "{balancer:?}");
    }
}

#[test]
fn in_panic_all_are_used() {
    let panic = |panic_percent, gone: &[usize]| {
        let spread = Spread { panic_percent, ..Spread::default() };
        let sick = Endpoint { healthy: false, ..endpoint(3, 1) };
        let all = weighted(&[1, 1, 1]).into_iter().chain([sick]).collect();
        let balance = with(Balancer::RoundRobin, spread, all, &Fake::new());
        (0..400).filter_map(|_| balance.pick(None, &Fake::without(gone))).collect::<BTreeSet<_>>()
    };
    assert_eq!(panic(50, &[0]), [1, 2].into(), "half is not less than half");
    assert_eq!(panic(50, &[0, 1]), [0, 1, 2, 3].into());
    assert_eq!(panic(50, &[0, 1, 2]), [0, 1, 2, 3].into());
    assert_eq!(panic(0, &[0, 1]), [2].into());
    assert_eq!(panic(0, &[0, 1, 2]), [].into());
}

// Where they are

#[test]
fn localities_get_what_their_weights_say() {
    fastrand::seed(7);
    let spread = Spread { locality_weights: true, ..Spread::default() };
    let all = || {
        vec![
            at("a", 80, endpoint(0, 1)),
            at("b", 20, endpoint(1, 1)),
            at("b", 20, endpoint(2, 3)),
            at("c", 0, endpoint(3, 1)),
        ]
    };
    for balancer in [Balancer::RoundRobin, Balancer::Random, Balancer::LeastRequest, RING, MAGLEV] {
        let counts = shares(&with(balancer, spread, all(), &Fake::new()), 4, 10_000, &Fake::new());
        let near = |count: usize, expected: usize| count.abs_diff(expected) < 500;
        assert!(near(counts[0], 8000) && near(counts[1], 500) && near(counts[2], 1500), "{balancer:?} {counts:?}");
        assert_eq!(counts[3], 0);
    }
    // A locality that has lost half of its endpoints can take 70 % of its share.
    let mut half = all();
    half.push(at("a", 80, Endpoint { healthy: false, ..endpoint(4, 1) }));
    let counts = shares(&with(Balancer::RoundRobin, spread, half, &Fake::new()), 5, 10_000, &Fake::new());
    assert!(counts[0].abs_diff(7368) < 50, "56 to 20: {counts:?}");
}

// Slow start

#[test]
fn a_new_endpoint_gets_more_and_more_until_the_window_is_over() {
    fastrand::seed(7);
    let slow = SlowStart { window: Duration::from_secs(100), aggression: 1.0, min_weight_percent: 10.0 };
    let spread = Spread { slow_start: Some(slow), ..Spread::default() };
    for balancer in [Balancer::RoundRobin, Balancer::Random, Balancer::LeastRequest, EWMA] {
        let begin = Instant::now();
        let old = begin.checked_sub(Duration::from_secs(1000)).unwrap();
        let mut peers = Fake { since: [(0, old), (1, begin)].into(), ..Fake::new() };
        let balance = with(balancer, spread, weighted(&[1, 1]), &peers);
        let mut shares_of_new = Vec::new();
        for second in [0, 25, 50, 75, 100] {
            peers.now = begin + Duration::from_secs(second);
            shares_of_new.push(shares(&balance, 2, 10_000, &peers)[1]);
        }
        // Beside an equal: f / (1 + f).
        for (got, expected) in shares_of_new.iter().zip([909, 2000, 3333, 4286, 5000]) {
            assert!(got.abs_diff(expected) < 350, "{balancer:?} {shares_of_new:?}");
        }
    }
}

#[test]
fn endpoints_that_are_new_together_share_as_if_they_were_old() {
    let slow = SlowStart { window: Duration::from_secs(100), aggression: 1.0, min_weight_percent: 1.0 };
    let spread = Spread { slow_start: Some(slow), ..Spread::default() };
    let peers = Fake::new();
    let balance = with(Balancer::RoundRobin, spread, weighted(&[1, 1, 1]), &peers);
    assert_eq!(shares(&balance, 3, 300, &peers), [100, 100, 100]);
}
