use http::Method;
use mesh_common::identity::Identity;
use mesh_common::proto::telemetry::{StatusRange, TapFilter, TapParty, TapVerdict};
use mesh_common::tap::party;

use super::*;
use crate::authorization::{Refusal, Verdict};
use crate::config::{
    Action, Endpoint, Forward, HeaderMatch, HeaderMutation, JwtAuthn, PathMatch, RetryPolicy, Route, RouteMatch,
    StringMatch, TokenAt, TokenPlace, WeightedCluster, WeightedClusters, WorkloadInfo,
};
use crate::error::{Error, Kind};
use crate::fault::Injected;
use crate::listen::{Direction, Downstream, Security};
use crate::telemetry::Protocol;

fn identity(account: &str) -> Identity {
    Identity::new("mesh.local", "shop", account).unwrap()
}

fn local() -> LocalWorkload {
    LocalWorkload {
        workload: "web-1".into(),
        namespace: "shop".into(),
        service: "web".into(),
        version: "v1".into(),
        identity: Some(identity("frontend")),
    }
}

fn downstream(direction: Direction) -> Downstream {
    let (peer, to) = ("10.0.0.1:40000".parse().unwrap(), "10.0.0.2:9080".parse().unwrap());
    let identity = (direction == Direction::Inbound).then(|| Arc::new(identity("gateway")));
    Downstream { identity, tls: true, ..Downstream::new(peer, to, direction) }
}

fn endpoint() -> Endpoint {
    let workload = WorkloadInfo {
        workload: "reviews-v2-x".into(),
        namespace: "shop".into(),
        service: "reviews".into(),
        version: "v2".into(),
        identity: identity("reviews").to_string(),
    };
    Endpoint { mesh: true, workload: Some(workload), ..Endpoint::at("10.0.0.9:9080".parse().unwrap()) }
}

fn record<'a>(downstream: &'a Downstream, endpoint: Option<&'a Endpoint>, noted: &'a Noted) -> RequestRecord<'a> {
    RequestRecord {
        downstream,
        method: &Method::GET,
        path: "/api/1?token=s3cret",
        authority: "reviews:9080",
        protocol: Protocol::Http11,
        status: 200,
        grpc_status: None,
        flags: "",
        duration: Duration::from_millis(12),
        upstream_duration: Some(Duration::from_millis(11)),
        request_bytes: 3,
        response_bytes: 5,
        route: "HTTPRoute/shop/reviews/0",
        rule: None,
        called: "reviews.shop.svc.cluster.local:9080",
        cluster: "reviews-v2.shop.svc.cluster.local:9080",
        endpoint,
        security: Security::MutualTls,
        attempts: 1,
        request_id: "r-7",
        user_agent: "curl",
        detail: None,
        trace: None,
        noted: Some(noted),
    }
}

fn stream<'a>(downstream: &'a Downstream, flags: &'static str) -> TcpRecord<'a> {
    TcpRecord {
        downstream,
        called: "stock.shop.svc.cluster.local:7000",
        cluster: "tcp:stock.shop.svc.cluster.local:7000",
        endpoint: None,
        security: Security::MutualTls,
        flags,
        duration: Duration::from_secs(2),
        received_bytes: 7,
        sent_bytes: 9,
        detail: None,
        verdict: Some(Verdict { allowed_by: Some("shop/clerks[0]"), ..Verdict::default() }),
    }
}

fn tap(id: u64, filter: TapFilter) -> Tap {
    Tap { id, filter: Some(filter), max_rate: 1_000, headers: Vec::new() }
}

fn named(word: &str) -> Vec<TapParty> {
    vec![party(word, "shop").unwrap()]
}

fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
    fields.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
}

/// Whether the filter takes a request out to reviews, one that comes in from the gateway, and a byte stream out to stock.
fn takes(filter: TapFilter) -> [bool; 3] {
    let filter = Filter::new(&filter).unwrap();
    let (out, inward, endpoint, noted) =
        (downstream(Direction::Outbound), downstream(Direction::Inbound), endpoint(), Noted::default());
    let (local, to) = (local(), record(&out, Some(&endpoint), &noted));
    let from = RequestRecord { called: "", cluster: "inbound:9080", status: 503, ..record(&inward, None, &noted) };
    [
        filter.takes_request(&to, &local),
        filter.takes_request(&from, &local),
        filter.takes_stream(&stream(&out, ""), &local),
    ]
}

#[test]
fn what_is_not_given_asks_for_nothing_and_all_else_must_be_met() {
    let any = TapFilter::default;
    let range = |first, last| vec![StatusRange { first, last }];
    let words = |all: &[&str]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
    let cases = [
        (any(), [true; 3]),
        // A service, its account, the version's service and the workload's own; and nobody else's.
        (TapFilter { from: named("web"), ..any() }, [true, false, true]),
        (TapFilter { from: named("frontend.shop"), ..any() }, [true, false, true]),
        (TapFilter { from: named("gateway"), ..any() }, [false, true, false]),
        (TapFilter { from: [named("gateway"), named("web")].concat(), ..any() }, [true; 3]),
        (TapFilter { from: named("web.bank"), ..any() }, [false; 3]),
        (TapFilter { to: named("reviews"), ..any() }, [true, false, false]),
        (TapFilter { to: named("reviews-v2"), ..any() }, [true, false, false]),
        (TapFilter { to: named("stock.shop.svc.cluster.local"), ..any() }, [false, false, true]),
        (TapFilter { to: named("web"), ..any() }, [false, true, false]),
        (TapFilter { to: named("frontend.shop"), ..any() }, [false, true, false]),
        (TapFilter { from: named("web"), to: named("stock"), ..any() }, [false, false, true]),
        (TapFilter { namespace: "shop".into(), ..any() }, [true; 3]),
        (TapFilter { namespace: "bank".into(), ..any() }, [false; 3]),
        (TapFilter { direction: 1, ..any() }, [true, false, true]),
        (TapFilter { direction: 2, ..any() }, [false, true, false]),
        // What is about HTTP is about no byte stream.
        (TapFilter { methods: words(&["POST", "GET"]), ..any() }, [true, true, false]),
        (TapFilter { methods: words(&["POST"]), ..any() }, [false; 3]),
        (TapFilter { path_prefix: "/api".into(), ..any() }, [true, true, false]),
        (TapFilter { path_prefix: "/api/1?token=s".into(), ..any() }, [false; 3]),
        (TapFilter { statuses: range(500, 599), ..any() }, [false, true, false]),
        (TapFilter { statuses: [range(200, 200), range(503, 503)].concat(), ..any() }, [true, true, false]),
        (TapFilter { failed: true, ..any() }, [false, true, false]),
        (TapFilter { min_duration_ms: 12, ..any() }, [true; 3]),
        (TapFilter { min_duration_ms: 13, ..any() }, [false, false, true]),
    ];
    for (filter, taken) in cases {
        assert_eq!(takes(filter.clone()), taken, "{filter:?}");
    }
    // Who is known by the certificate alone.
    let known = TapParty { identities: vec![identity("gateway").to_string()], ..party("ingress", "shop").unwrap() };
    assert_eq!(takes(TapFilter { from: vec![known], ..any() }), [false, true, false]);
}

#[test]
fn failures_are_what_top_counts_as_such() {
    let failed = Filter::new(&TapFilter { failed: true, ..TapFilter::default() }).unwrap();
    let (out, noted, local) = (downstream(Direction::Outbound), Noted::default(), local());
    let of = |status, grpc_status| {
        failed.takes_request(&RequestRecord { status, grpc_status, ..record(&out, None, &noted) }, &local)
    };
    let cases = [
        (200, None, false),
        (404, None, false),
        (500, None, true),
        (0, None, true),
        (200, Some(14), true),
        (200, Some(5), false),
    ];
    for (status, grpc, taken) in cases {
        assert_eq!(of(status, grpc), taken, "{status} {grpc:?}");
    }
    assert!(failed.takes_stream(&stream(&out, "UF"), &local) && !failed.takes_stream(&stream(&out, ""), &local));
}

#[test]
fn what_is_not_understood_shows_nothing() {
    let now = Instant::now();
    let opened = |tap: Tap| Open::new(tap, now).is_some();
    assert!(opened(tap(1, TapFilter::default())));
    assert!(!opened(Tap { filter: None, ..tap(1, TapFilter::default()) }));
    assert!(!opened(tap(1, TapFilter { direction: 9, ..TapFilter::default() })));
    let strange = TapParty { identities: vec!["nobody".into()], ..TapParty::default() };
    assert!(!opened(tap(1, TapFilter { from: vec![strange], ..TapFilter::default() })));
    assert!(!opened(tap(1, TapFilter { from: vec![TapParty::default(); 33], ..TapFilter::default() })));
    assert!(!opened(Tap { headers: vec!["not a name".into()], ..tap(1, TapFilter::default()) }));
}

/// One tap that is open, and a request out to reviews that has been told.
fn told(
    open: Tap,
    sent: &HeaderMap,
    note: impl FnOnce(&mut Noted),
    with: impl FnOnce(&mut RequestRecord<'_>),
) -> TapEvent {
    let taps = Taps::new(local());
    taps.set(vec![open], Instant::now());
    let mut noted = taps.begin(sent, None).unwrap();
    note(&mut noted);
    let (out, endpoint) = (downstream(Direction::Outbound), endpoint());
    let mut record = record(&out, Some(&endpoint), &noted);
    with(&mut record);
    taps.request(&record);
    let (mut events, lost) = taps.take();
    assert_eq!((events.len(), lost), (1, Vec::new()));
    events.remove(0)
}

#[test]
fn an_event_says_where_a_request_went_and_why() {
    let choice = |cluster: &str, weight| WeightedCluster {
        cluster: cluster.into(),
        weight,
        request_headers: HeaderMutation::default(),
        response_headers: HeaderMutation::default(),
    };
    let clusters = WeightedClusters::new(vec![
        choice("reviews-v1.shop.svc.cluster.local:9080", 90),
        choice("reviews-v2.shop.svc.cluster.local:9080", 10),
    ]);
    let header = |name: &str, value: &str| HeaderMatch {
        name: name.into(),
        matcher: StringMatch::Exact(value.into()),
        invert: false,
    };
    let route = Route {
        name: "HTTPRoute/shop/reviews/0".into(),
        matches: RouteMatch {
            path: PathMatch::SegmentPrefix("/api".into()),
            method: Some(Method::GET),
            headers: vec![header("end-user", "jason"), header("x-api-key", "s3cret")],
            query: Vec::new(),
            grpc: false,
        },
        action: Action::Forward(Box::new(Forward {
            clusters,
            timeout: Duration::ZERO,
            idle_timeout: None,
            retry: RetryPolicy {
                retries: 0,
                on: Default::default(),
                per_try_timeout: Duration::ZERO,
                hedges: false,
                backoff_base: Duration::ZERO,
                backoff_max: Duration::ZERO,
                retry_after_max: Duration::ZERO,
            },
            rewrite_path: None,
            rewrite_host: None,
            mirrors: Vec::new(),
            hash: Vec::new(),
        })),
        request_headers: HeaderMutation::default(),
        response_headers: HeaderMutation::default(),
        cors: None,
        fault: None,
    };
    let verdict = Verdict {
        allowed_by: Some("shop/readers[0]"),
        would_refuse: Some(Refusal::Denied("shop/trial[0]")),
        ..Verdict::default()
    };
    let note = |noted: &mut Noted| {
        let now = Instant::now();
        noted.fault(Injected::Delay);
        noted.tries("10.0.0.8:9080".parse().unwrap(), now);
        noted.tried(1, Err(&Error::new(Kind::UpstreamConnect)));
        noted.tries("10.0.0.9:9080".parse().unwrap(), now);
        noted.tried(2, Ok(200));
        noted.tried(9, Ok(200));
        noted.decided(&verdict);
    };
    let event = told(tap(3, TapFilter::default()), &HeaderMap::new(), note, |record| {
        record.attempts = 2;
        record.detail = Some("why");
        // Outlives it.
        record.rule = Some(Box::leak(Box::new(route)));
    });
    assert_eq!((event.tap, event.direction, event.status, event.detail.as_str()), (3, 1, 200, "why"));
    assert_eq!((event.service.as_str(), event.path.as_str()), ("reviews.shop.svc.cluster.local", "/api/1"));
    assert_eq!((event.route.as_str(), event.weight, event.weights), ("HTTPRoute/shop/reviews/0", 10, 100));
    assert_eq!(event.matched, "path prefix /api, method GET, header end-user=jason, header x-api-key=[redacted]");
    assert_eq!((event.workload.as_str(), event.workload_version.as_str()), ("reviews-v2-x", "v2"));
    assert_eq!((event.endpoint.as_str(), event.attempts), ("10.0.0.9:9080", 2));
    let tries: Vec<_> = event.tries.iter().map(|it| (it.endpoint.as_str(), it.status, it.flags.as_str())).collect();
    assert_eq!(tries, [("10.0.0.8:9080", 0, "UF"), ("10.0.0.9:9080", 200, "")]);
    assert_eq!((event.faults.as_slice(), event.verdict()), (&["delay".to_owned()][..], TapVerdict::Allowed));
    assert_eq!((event.policy.as_str(), event.policy_on_trial.as_str()), ("shop/readers[0]", "shop/trial[0]"));
    assert_eq!((event.duration_us, event.first_byte_us, event.mutual_tls), (12_000, 11_000, true));
    let now = Timestamp::now().as_microsecond();
    assert!((now - 10_000_000..now).contains(&event.began_unix_us));
}

#[test]
fn headers_are_shown_when_asked_for_and_secrets_never() {
    let sent = headers(&[
        ("end-user", "jason"),
        ("authorization", "Bearer s3cret"),
        ("cookie", "sid=s3cret"),
        ("referer", "http://a/?k=s3cret"),
        ("x-other", "not asked for"),
    ]);
    let wanted = ["end-user", "authorization", "cookie", "set-cookie", "referer", "x-version"].map(str::to_owned);
    let open = Tap { headers: wanted.to_vec(), ..tap(1, TapFilter::default()) };
    let answered = headers(&[("set-cookie", "sid=s3cret"), ("x-version", "v2")]);
    let event = told(open, &sent, |noted| noted.answered(&answered), |_| {});
    let mut shown: Vec<_> = event.headers.iter().map(|it| (it.name.as_str(), it.value.as_str(), it.response)).collect();
    shown.sort_unstable();
    let expected = [
        ("authorization", "[redacted]", false),
        ("cookie", "[redacted]", false),
        ("end-user", "jason", false),
        ("referer", "http://a/?[redacted]", false),
        ("set-cookie", "[redacted]", true),
        ("x-version", "v2", true),
    ];
    assert_eq!(shown, expected);
    assert!(!format!("{event:?}").contains("s3cret") && !format!("{event:?}").contains("not asked for"));
    let event = told(tap(1, TapFilter::default()), &sent, |noted| noted.answered(&answered), |_| {});
    assert_eq!(event.headers, []);
}

#[test]
fn each_tap_sees_its_own_headers_only() {
    let taps = Taps::new(local());
    let of = |id, header: &str| Tap { headers: vec![header.into()], ..tap(id, TapFilter::default()) };
    taps.set(vec![of(1, "x-a"), of(2, "x-b")], Instant::now());
    let noted = taps.begin(&headers(&[("x-a", "1"), ("x-b", "2")]), None).unwrap();
    let out = downstream(Direction::Outbound);
    taps.request(&record(&out, None, &noted));
    let shown = taps.take().0.into_iter().map(|event| (event.tap, event.headers.len(), event.headers[0].value.clone()));
    assert_eq!(shown.collect::<Vec<_>>(), [(1, 1, "1".to_owned()), (2, 1, "2".to_owned())]);
}

#[test]
fn long_texts_are_cut() {
    let long = "é".repeat(1_000);
    let event = told(
        tap(1, TapFilter::default()),
        &HeaderMap::new(),
        |_| {},
        |record| record.request_id = Box::leak(long.into_boxed_str()),
    );
    assert_eq!(event.request_id.len(), 256);
}

#[test]
fn while_no_tap_is_open_nothing_is_noted_or_told() {
    let taps = Taps::new(local());
    assert!(taps.begin(&HeaderMap::new(), None).is_none());
    let out = downstream(Direction::Outbound);
    taps.stream(&stream(&out, ""));
    assert_eq!(taps.take(), (Vec::new(), Vec::new()));
    // What is there when the last one ends, is gone.
    taps.set(vec![tap(1, TapFilter::default())], Instant::now());
    taps.stream(&stream(&out, ""));
    taps.set(Vec::new(), Instant::now());
    assert_eq!(taps.take(), (Vec::new(), Vec::new()));
    assert!(taps.begin(&HeaderMap::new(), None).is_none());
}

#[test]
fn a_stream_says_who_has_let_it_in_or_not() {
    let taps = Taps::new(local());
    taps.set(vec![tap(1, TapFilter::default())], Instant::now());
    let inward = downstream(Direction::Inbound);
    taps.stream(&stream(&inward, ""));
    let denied = Verdict {
        refused: Some(Refusal::Denied("shop/closed[0]")),
        would_refuse: Some(Refusal::Denied("shop/trial[0]")),
        ..Verdict::default()
    };
    taps.stream(&TcpRecord { verdict: Some(denied), ..stream(&inward, "UAEX") });
    taps.stream(&TcpRecord { verdict: None, ..stream(&inward, "UF") });
    let events = taps.take().0;
    let shown: Vec<_> =
        events.iter().map(|it| (it.verdict(), it.policy.as_str(), it.policy_on_trial.as_str())).collect();
    let expected = [
        (TapVerdict::Allowed, "shop/clerks[0]", ""),
        (TapVerdict::Denied, "shop/closed[0]", "shop/trial[0]"),
        (TapVerdict::Unspecified, "", ""),
    ];
    assert_eq!(shown, expected);
    assert!(events.iter().all(|it| it.caller == "spiffe://mesh.local/ns/shop/sa/gateway"));
    assert_eq!((events[0].request_bytes, events[0].response_bytes), (7, 9));
    assert_eq!(events[0].service, "web.shop.svc.cluster.local");
}

#[test]
fn what_is_beyond_the_rate_is_counted() {
    let taps = Taps::new(local());
    let now = Instant::now();
    let slow = Tap { max_rate: 5, ..tap(1, TapFilter::default()) };
    taps.set(vec![slow.clone(), tap(2, TapFilter::default())], now);
    let out = downstream(Direction::Outbound);
    let tell = |number: usize| (0..number).for_each(|_| taps.stream(&stream(&out, "")));
    tell(50);
    let (events, lost) = taps.take();
    let of = |events: &[TapEvent], tap| events.iter().filter(|it| it.tap == tap).count();
    let (first, second) = (of(&events, 1), of(&events, 2));
    assert!((5..10).contains(&first) && second == 50, "{first} {second}");
    assert_eq!(lost, [TapLoss { tap: 1, count: 50 - first as u64 }]);
    // One that goes on has not got its rate anew.
    taps.set(vec![slow], now);
    tell(50);
    let (events, lost) = taps.take();
    assert!(events.len() < 5 && lost[0].count > 45, "{} {lost:?}", events.len());
}

#[test]
fn what_nobody_takes_is_bounded() {
    let taps = Taps::new(local());
    let all: Vec<_> = (1..=20).map(|id| tap(id, TapFilter::default())).collect();
    taps.set(all, Instant::now());
    assert_eq!(taps.0.open.load().taps.len(), MAX_TAPS);
    let noted = Noted::default();
    let (out, path) = (downstream(Direction::Outbound), format!("/{}", "x".repeat(1_000)));
    for _ in 0..800 {
        taps.request(&RequestRecord { path: &path, authority: &path, request_id: &path, ..record(&out, None, &noted) });
    }
    assert!(taps.waiting().bytes() <= WAITING.bytes);
    let take_all = || {
        let (mut told, mut lost) = (0, 0);
        loop {
            let (events, missing) = taps.take();
            assert!(events.len() <= BATCH.events);
            told += events.len() as u64;
            lost += missing.iter().map(|it| it.count).sum::<u64>();
            if events.is_empty() {
                return (told, lost);
            }
        }
    };
    let (told, lost) = take_all();
    // Of such long ones there is no room for as many as there may be.
    assert!((300..WAITING.events as u64 - 100).contains(&told), "{told}");
    assert_eq!(told + lost, 800 * MAX_TAPS as u64);
    // Of short ones there is, in number.
    (0..800).for_each(|_| taps.stream(&stream(&out, "")));
    assert_eq!(take_all().0, WAITING.events as u64);
}

/// One is pushed just after its tap has ended.
#[test]
fn what_a_tap_has_left_is_nobody_elses() {
    let taps = Taps::new(local());
    taps.set(vec![tap(1, TapFilter::default())], Instant::now());
    let event = |tap| TapEvent { tap, ..TapEvent::default() };
    taps.set(vec![tap(2, TapFilter::default())], Instant::now());
    assert!(taps.waiting().push(event(1)) && taps.waiting().push(event(2)));
    assert_eq!(taps.take().0, [event(2)]);
}

#[test]
fn what_is_too_large_to_be_told_is_counted() {
    let long = "x".repeat(1_000);
    let names: Vec<HeaderName> =
        (0..MAX_HEADERS).map(|it| HeaderName::try_from(format!("x-{it}-{}", "h".repeat(100))).unwrap()).collect();
    let mut sent = HeaderMap::new();
    for name in names.iter().cycle().take(MAX_HEADERS * 10) {
        sent.append(name, long.parse().unwrap());
    }
    let taps = Taps::new(local());
    let headers = names.iter().map(ToString::to_string).collect();
    taps.set(vec![Tap { headers, ..tap(1, TapFilter::default()) }], Instant::now());
    let noted = taps.begin(&sent, None).unwrap();
    let out = downstream(Direction::Outbound);
    taps.request(&record(&out, None, &noted));
    assert_eq!(taps.take(), (Vec::new(), vec![TapLoss { tap: 1, count: 1 }]));
}

#[test]
fn where_tokens_are_is_known_where_they_are_looked_for() {
    let name = HeaderName::from_static("x-id");
    let place = TokenPlace { at: TokenAt::Header { name, prefix: String::new() }, providers: Vec::new() };
    let authn =
        JwtAuthn { providers: Vec::new(), places: vec![place], claim_headers: Vec::new(), cache: Default::default() };
    let taps = Taps::new(local());
    let wanted = vec!["x-id".to_owned(), "x-a".to_owned()];
    taps.set(vec![Tap { headers: wanted, ..tap(1, TapFilter::default()) }], Instant::now());
    let shown = |authn: Option<&JwtAuthn>, value: &str| {
        let noted = taps.begin(&headers(&[("x-id", value), ("x-a", "b")]), authn).unwrap();
        taps.request(&record(&downstream(Direction::Inbound), None, &noted));
        let found: Vec<_> = taps.take().0.remove(0).headers.into_iter().map(|it| it.value).collect();
        found
    };
    assert_eq!(shown(Some(&authn), "opaque"), ["b", "[redacted]"]);
    // A caller's proxy knows of no such place, but what a JWT is.
    assert_eq!(shown(None, "opaque"), ["b", "opaque"]);
    assert_eq!(shown(None, "ewogICJhbGciOiAibm9uZSIKfQ.e30.x"), ["b", "[redacted]"]);
}

#[tokio::test(start_paused = true)]
async fn news_are_gathered_for_a_moment() {
    let taps = Taps::new(local());
    taps.set(vec![tap(1, TapFilter::default())], Instant::now());
    let due = {
        let taps = taps.clone();
        tokio::spawn(async move { taps.due().await })
    };
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!due.is_finished());
    let began = tokio::time::Instant::now();
    taps.stream(&stream(&downstream(Direction::Outbound), ""));
    due.await.unwrap();
    assert_eq!(began.elapsed(), GATHERING);
    // Who asks again while there is something is told again.
    taps.due().await;
    assert_eq!(began.elapsed(), 2 * GATHERING);
}
