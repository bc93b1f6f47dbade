use http::HeaderName;
use proptest::prelude::*;

use super::*;

fn limit(filled: u32, window: Duration, burst: u32, by: LimitBy) -> RequestLimit {
    RequestLimit { rate: Rate::new(filled, window, burst).unwrap(), by }
}

fn second(filled: u32, burst: u32) -> RequestLimit {
    limit(filled, Duration::from_secs(1), burst, LimitBy::Nobody)
}

/// At this time after the start, without a caller.
fn take(limits: &RateLimits, limit: &RequestLimit, headers: &HeaderMap, millis: u64) -> Quota {
    limits.take("inbound:80", limit, None, headers, limits.began + Duration::from_millis(millis))
}

#[test]
fn a_burst_and_then_the_rate() {
    let (limits, ten, none) = (RateLimits::default(), second(10, 3), HeaderMap::new());
    let left = |millis| {
        let quota = take(&limits, &ten, &none, millis);
        quota.allowed.then_some(quota.remaining)
    };
    assert_eq!([left(0), left(0), left(0), left(0)], [Some(2), Some(1), Some(0), None]);
    assert_eq!([left(99), left(100), left(100)], [None, Some(0), None]);
    // However long nothing came, it holds no more than three.
    assert_eq!([left(9000), left(9000), left(9000), left(9000)], [Some(2), Some(1), Some(0), None]);
}

#[test]
fn what_the_client_is_told() {
    let (limits, none) = (RateLimits::default(), HeaderMap::new());
    let slow = limit(2, Duration::from_secs(60), 2, LimitBy::Nobody);
    let told = |millis| {
        let mut headers = HeaderMap::new();
        take(&limits, &slow, &none, millis).tell(&mut headers);
        ["ratelimit-policy", "ratelimit", "retry-after"]
            .map(|name| headers.get(name).map_or("", |it| it.to_str().unwrap()).to_owned())
    };
    assert_eq!(told(0), ["\"mesh\";q=2;w=60", "\"mesh\";r=1;t=30", ""]);
    assert_eq!(told(0), ["\"mesh\";q=2;w=60", "\"mesh\";r=0;t=60", ""]);
    assert_eq!(told(100), ["\"mesh\";q=2;w=60", "\"mesh\";r=0;t=30", "30"]);
}

#[test]
fn each_value_of_a_header_has_a_bucket_and_requests_without_it_one() {
    let limits = RateLimits::default();
    let by = limit(1, Duration::from_secs(1), 1, LimitBy::Header(HeaderName::from_static("x-user")));
    let user = |name: &str| HeaderMap::from_iter([(HeaderName::from_static("x-user"), name.parse().unwrap())]);
    for headers in [user("a"), user("b"), HeaderMap::new()] {
        assert!(take(&limits, &by, &headers, 0).allowed, "{headers:?}");
        assert!(!take(&limits, &by, &headers, 0).allowed, "{headers:?}");
    }
}

#[test]
fn each_caller_has_a_bucket() {
    let limits = RateLimits::default();
    let by = limit(1, Duration::from_secs(1), 1, LimitBy::Identity);
    let [web, shop] = ["web", "shop"].map(|name| Identity::new("mesh.local", "default", name).unwrap());
    let allowed = |who| limits.take("inbound:80", &by, who, &HeaderMap::new(), limits.began).allowed;
    for who in [Some(&web), Some(&shop), None] {
        assert_eq!([allowed(who), allowed(who)], [true, false], "{who:?}");
    }
}

#[test]
fn what_is_kept_is_bounded_and_those_without_a_place_share_a_bucket() {
    let mut buckets = Buckets::default();
    let rate = second(1, 1).rate;
    let most = u64::from(LIMIT_KEYS);
    for key in 0..most {
        assert!(rate.take(buckets.of(Some(key), 0), 0).allowed);
    }
    let mut allowed = |key, now| rate.take(buckets.of(Some(key), now), now).allowed;
    assert_eq!([allowed(most, 1), allowed(most + 1, 1)], [true, false]);
    // Those that are there keep theirs, and a second later all are full again, so that there is place.
    assert!(!allowed(0, 1));
    assert_eq!([allowed(most, 1_000_000_001), allowed(most + 1, 1_000_000_001)], [true, true]);
    assert!(buckets.by_key.len() <= 2);
}

#[test]
fn a_new_rate_holds_at_once_and_gives_no_new_burst() {
    let (limits, none) = (RateLimits::default(), HeaderMap::new());
    assert_eq!(take(&limits, &second(10, 1), &none, 0).seconds, 1);
    assert!(!take(&limits, &second(5, 1), &none, 0).allowed);
    assert!(take(&limits, &second(5, 1), &none, 100).allowed);
}

#[test]
fn what_means_nothing_is_no_rate() {
    for (filled, millis, burst) in [(0, 1, 1), (1, 0, 1), (1, 1, 0)] {
        assert_eq!(Rate::new(filled, Duration::from_millis(millis), burst), None);
    }
    assert_eq!(Rate::new(1, Duration::MAX, 1), None);
}

proptest! {
    /// Of any window within any traffic: no more than the rate gives in its time, and a burst.
    #[test]
    fn never_more_than_rate_and_burst(
        filled in 1_u32..1000,
        window in 1_u64..100_000,
        burst in 1_u32..50,
        gaps in prop::collection::vec(prop_oneof![Just(0), 0_u64..3_000_000, 0_u64..20_000_000_000], 1..300),
    ) {
        let rate = Rate::new(filled, Duration::from_millis(window), burst).unwrap();
        let (mut full, mut now) = (0, 0);
        let mut passed = Vec::new();
        for gap in gaps {
            now += gap;
            if rate.take(&mut full, now).allowed {
                passed.push(now);
            }
        }
        prop_assert!(!passed.is_empty());
        for (i, from) in passed.iter().enumerate() {
            for (j, to) in passed.iter().enumerate().skip(i) {
                let given = u128::from(to - from) * u128::from(filled) / (u128::from(window) * 1_000_000);
                prop_assert!((j - i + 1) as u128 <= given + u128::from(burst), "{i}..={j}");
            }
        }
    }

    /// And not much less: whoever keeps to the rate is never refused.
    #[test]
    fn the_rate_itself_passes(filled in 1_u32..1000, window in 1_u64..100_000, burst in 1_u32..50) {
        let rate = Rate::new(filled, Duration::from_millis(window), burst).unwrap();
        let mut full = 0;
        for i in 0..200_u64 {
            let now = i * (window * 1_000_000).div_ceil(u64::from(filled));
            prop_assert!(rate.take(&mut full, now).allowed, "request {i}");
        }
    }
}
