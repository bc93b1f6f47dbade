use mesh_common::names::fqdn;
use mesh_common::proto::telemetry::{TapFilter, TapHeader, TapTry};
use mesh_common::tap::{self, MAX_TRIES};

use super::*;

fn who(service: &str, workload: &str) -> Reporter {
    Reporter {
        workload: workload.into(),
        service: fqdn(service, "shop"),
        version: "v1".into(),
        identity: format!("spiffe://mesh.local/ns/shop/sa/{service}"),
    }
}

fn event(tap: u64) -> TapEvent {
    let forged = Reporter { workload: "somebody-else".into(), ..Reporter::default() };
    TapEvent { tap, reporter: Some(forged), path: "/abc".into(), ..TapEvent::default() }
}

fn party(word: &str) -> TapParty {
    tap::party(word, "shop").unwrap()
}

fn open(taps: &Taps) -> Reader {
    taps.open(TapRequest::default(), Instant::now()).unwrap()
}

/// As proxies send them.
fn encoded(events: &[TapEvent]) -> Vec<Vec<u8>> {
    events.iter().map(Message::encode_to_vec).collect()
}

/// What the reader has now, without waiting.
fn now(reader: &Reader) -> Option<(usize, u64)> {
    let next = futures_util::FutureExt::now_or_never(reader.next());
    next.map(|it| it.map(|(events, lost)| (events.len(), lost)).unwrap())
}

#[test]
fn a_tap_is_open_as_long_as_it_has_a_reader() {
    let taps = Taps::new(1);
    let changes = taps.changes();
    let readers: Vec<_> = (0..MAX_TAPS).map(|_| open(&taps)).collect();
    assert!(changes.has_changed().unwrap());
    let told = taps.of(&who("web", "web-1"));
    assert_eq!(told.iter().map(|it| it.id).collect::<Vec<_>>(), (1..=MAX_TAPS as u64).collect::<Vec<_>>());
    assert_eq!((told[0].max_rate, told[0].filter.clone()), (RATE, Some(TapFilter::default())));
    let Err(refused) = taps.open(TapRequest::default(), Instant::now()) else { panic!("one too many") };
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    drop(readers);
    assert_eq!(taps.of(&who("web", "web-1")), []);
    open(&taps);
}

#[test]
fn only_those_are_asked_that_are_meant_and_nobody_else_is_heard() {
    let taps = Taps::new(1);
    let of = |name: &str| {
        taps.open(TapRequest { whose: Some(party(name)), ..TapRequest::default() }, Instant::now()).unwrap()
    };
    let (service, workload, other) = (of("web"), of("web-2"), of("web.bank"));
    let (first, second) = (who("web", "web-1"), who("web", "web-2"));
    let ids = |who: &Reporter| taps.of(who).iter().map(|it| it.id).collect::<Vec<_>>();
    assert_eq!((ids(&first), ids(&second), ids(&who("db", "db-1"))), (vec![1], vec![1, 2], vec![]));
    let at = Instant::now();
    for tap in 1..=4 {
        taps.deliver(&first, &encoded(&[event(tap)]), &[TapLoss { tap, count: 7 }], at);
    }
    assert_eq!((now(&service), now(&workload), now(&other)), (Some((1, 7)), None, None));
}

#[tokio::test]
async fn whose_an_event_is_is_not_for_the_proxy_to_say() {
    let taps = Taps::new(1);
    let reader = open(&taps);
    taps.deliver(&who("web", "web-1"), &encoded(&[event(1)]), &[], Instant::now());
    let (events, _) = reader.next().await.unwrap();
    assert_eq!(events[0].reporter, Some(who("web", "web-1")));
}

#[test]
fn what_nobody_reads_is_bounded_and_counted() {
    let taps = Taps::new(1);
    let (reader, other) = (open(&taps), open(&taps));
    let at = Instant::now();
    let long = encoded(&vec![TapEvent { path: "x".repeat(1_000), ..event(1) }; 100]);
    for _ in 0..200 {
        taps.deliver(&who("web", "web-1"), &long, &[], at);
    }
    assert!(reader.open.state().waiting.bytes() <= WAITING.bytes);
    let (mut events, mut lost) = (0, 0);
    while let Some((more, missing)) = now(&reader) {
        assert!(more <= BATCH.events);
        events += more as u64;
        lost += missing;
    }
    assert!((1_500..4_000).contains(&events), "{events}");
    assert_eq!(events + lost, 20_000);
    let event = || event(1);
    for wrong in [
        TapEvent { path: "x".repeat(MAX_EVENT), ..event() },
        TapEvent { tries: vec![TapTry::default(); MAX_TRIES + 1], ..event() },
        TapEvent { headers: vec![TapHeader::default(); 1_000], ..event() },
    ] {
        taps.deliver(&who("web", "web-1"), &encoded(&[wrong, event()]), &[], at);
        assert_eq!((now(&reader), now(&other)), (Some((1, 1)), None));
    }
}

/// A report may be full of what is small there and large when it is read.
#[test]
fn what_nobody_asked_for_is_not_read() {
    let taps = Taps::new(1);
    let proxy = who("web", "web-1");
    let empty = vec![Vec::new(); 100_000];
    taps.deliver(&proxy, &empty, &[TapLoss { tap: 0, count: 1 }], Instant::now());
    let reader = open(&taps);
    taps.deliver(&proxy, &empty, &[], Instant::now());
    // What is damaged after its tap's number was to be read.
    let damaged = [event(1).encode_to_vec(), vec![0xff; 9]].concat();
    taps.deliver(&proxy, &[damaged, vec![0xff; 9]], &[], Instant::now());
    assert_eq!(now(&reader), None);
    taps.deliver(&proxy, &encoded(&vec![event(1); MAX_REPORTED + 1]), &[], Instant::now());
    assert_eq!(now(&reader), Some((MAX_REPORTED, 0)));
}

#[tokio::test]
async fn a_reader_that_has_stalled_loses_its_tap() {
    let taps = Taps::new(1);
    let reader = open(&taps);
    let proxy = who("web", "web-1");
    let began = Instant::now();
    let at = |seconds: u64| began + Duration::from_secs(seconds);
    // Silence is no stall: nothing waits.
    taps.deliver(&proxy, &[], &[], at(1_000));
    taps.deliver(&proxy, &encoded(&[event(1)]), &[], at(1_000));
    taps.deliver(&proxy, &encoded(&[event(1)]), &[], at(1_060));
    assert_eq!((taps.of(&proxy).len(), now(&reader)), (1, Some((2, 0))));
    taps.deliver(&proxy, &encoded(&[event(1)]), &[], at(2_000));
    // A report without events.
    taps.deliver(&proxy, &[], &[], at(2_061));
    assert_eq!(taps.of(&proxy), []);
    // Whoever comes back has the rest, and hears why.
    assert_eq!(now(&reader), Some((1, 0)));
    assert_eq!(reader.next().await.unwrap_err().code(), tonic::Code::Aborted);

    // And where nobody reports any more.
    let all: Vec<_> = (0..MAX_TAPS).map(|_| taps.open(TapRequest::default(), at(3_000)).unwrap()).collect();
    taps.deliver(&proxy, &encoded(&[event(all[0].id())]), &[], at(3_000));
    assert!(taps.open(TapRequest::default(), at(3_060)).is_err());
    taps.open(TapRequest::default(), at(3_061)).unwrap();
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let taps = Taps::new(1);
    let refused = |request: TapRequest| match taps.open(request, Instant::now()) {
        Err(status) => status.message().to_owned(),
        Ok(_) => panic!("it is taken"),
    };
    let filter = |filter| TapRequest { filter: Some(filter), ..TapRequest::default() };
    let range = vec![StatusRange { first: 500, last: 400 }];
    assert!(refused(filter(TapFilter { statuses: range, ..TapFilter::default() })).contains("500 to 400"));
    let many = vec!["GET".to_owned(); MAX_ALTERNATIVES + 1];
    assert!(refused(filter(TapFilter { methods: many, ..TapFilter::default() })).contains("methods"));
    assert!(refused(filter(TapFilter { path_prefix: "x".repeat(2_000), ..TapFilter::default() })).contains("1024"));
    assert!(refused(TapRequest { max_rate: 1_001, ..TapRequest::default() }).contains("max_rate"));
    for name in ["X-Upper", "a b", ""] {
        assert!(refused(TapRequest { headers: vec![name.into()], ..TapRequest::default() }).contains("lower case"));
    }
    let long = vec!["x".repeat(MAX_HEADER + 1)];
    assert!(refused(TapRequest { headers: long, ..TapRequest::default() }).contains("128"));
    // What every proxy would refuse to understand is not handed on.
    let odd = TapParty { identities: vec!["nobody".into()], ..party("web") };
    let _reader = taps.open(filter(TapFilter { to: vec![odd], ..TapFilter::default() }), Instant::now()).unwrap();
    assert_eq!(taps.of(&who("web", "web-1"))[0].filter.clone().unwrap().to, [party("web")]);
    assert!(refused(TapRequest { headers: vec!["a".into(); MAX_HEADERS + 1], ..TapRequest::default() }).contains("16"));
}
