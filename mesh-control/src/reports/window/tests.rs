use mesh_common::names::OVERFLOW;
use mesh_common::proto::telemetry::Direction;

use super::*;

fn identity(account: &str) -> Identity {
    Identity::new("mesh.local", "shop", account).unwrap()
}

fn reporter(workload: &str) -> Reporter {
    Reporter { workload: workload.into(), service: "web".into(), version: "v1".into(), ..Reporter::default() }
}

fn labels(service: &str) -> Labels {
    let (direction, protocol) = (Direction::Outbound.into(), Protocol::Http.into());
    Labels { direction, protocol, service: service.into(), status: 200, ..Labels::default() }
}

fn report(covers_ms: u64, series: &[(&str, u64)]) -> Counted {
    let series = series.iter().map(|(service, requests)| Series {
        labels: Some(labels(service)),
        counts: Some(Counts { buckets: vec![3], requests: vec![*requests], ..Counts::default() }),
    });
    Counted { covers_ms, series: series.collect() }
}

/// Requests and rate of all together.
fn total(window: &mut Window, seconds: u64, now: Instant) -> (u64, f64) {
    let traffic = window.traffic(Duration::from_secs(seconds), now).traffic;
    let requests = traffic.iter().flat_map(|it| it.series.clone().unwrap().counts.unwrap().requests).sum();
    (requests, traffic.iter().map(|it| it.rate).sum())
}

fn close_to(a: f64, b: f64) -> bool {
    (a - b).abs() < 0.001
}

struct Bench {
    window: Window,
    began: Instant,
}

impl Bench {
    fn new() -> Self {
        let began = Instant::now();
        Self { window: Window::new(began), began }
    }

    fn at(&self, seconds: u64) -> Instant {
        self.began + Duration::from_secs(seconds)
    }

    fn open(&mut self, workload: &str, at: u64) -> StreamId {
        self.window.open(&identity("web"), &reporter(workload), self.at(at)).unwrap()
    }

    fn add(&mut self, stream: &StreamId, at: u64, report: Counted) {
        self.window.add(stream, report, None, self.at(at)).unwrap();
    }

    fn total(&mut self, seconds: u64, at: u64) -> (u64, f64) {
        let now = self.at(at);
        total(&mut self.window, seconds, now)
    }
}

#[test]
fn numbers_of_several_proxies_are_added_and_leave_the_window_in_time() {
    let mut bench = Bench::new();
    let streams = ["web-1", "web-2"].map(|workload| bench.open(workload, 0));
    for second in 1..=100 {
        for stream in &streams {
            bench.add(stream, second, report(1000, &[("reviews", 7)]));
        }
    }
    let answer = bench.window.traffic(Duration::from_secs(60), bench.at(100));
    assert_eq!((answer.traffic.len(), answer.proxies), (1, 2));
    assert_eq!(answer.reporting, [identity("web").to_string()]);
    let reporter = answer.traffic[0].reporter.clone().unwrap();
    assert_eq!((reporter.service.as_str(), reporter.version.as_str()), ("web.shop.svc.cluster.local", "v1"));
    // Slots from second 40 to the one that has begun.
    let (requests, rate) = bench.total(60, 100);
    assert!(requests == 61 * 14 && close_to(rate, 14.0), "{requests} {rate}");
    let (requests, rate) = bench.total(10, 100);
    assert!(requests == 11 * 14 && close_to(rate, 14.0), "{requests} {rate}");

    // They say nothing more, though their streams stay.
    let rates: Vec<f64> = [110, 130, 150].iter().map(|at| bench.total(60, *at).1).collect();
    assert!(close_to(rates[0], 14.0) && rates[1] < 10.0 && rates[2] < 4.0, "{rates:?}");
    assert_eq!(bench.total(60, 170).0, 0);
    assert_eq!(bench.window.series, 0);
    // They are there, though.
    assert_eq!(bench.window.traffic(Duration::MAX, bench.at(170)).proxies, 2);
}

#[test]
fn a_rate_is_right_from_the_first_report_on() {
    let mut bench = Bench::new();
    let stream = bench.open("web-1", 50);
    // What was counted before the stream is in its first report, with the time that it took.
    bench.add(&stream, 50, report(4000, &[("reviews", 40)]));
    let (requests, rate) = bench.total(60, 50);
    assert!(requests == 40 && close_to(rate, 10.0), "{requests} {rate}");
}

#[test]
fn what_was_counted_over_more_than_the_window_is_left_out() {
    let mut bench = Bench::new();
    let stream = bench.open("web-1", 1);
    bench.add(&stream, 1, report(61_000, &[("reviews", 1_000_000)]));
    assert_eq!(bench.total(60, 1).0, 0);
    bench.add(&stream, 2, report(1000, &[("reviews", 5)]));
    assert_eq!(bench.total(60, 2), (5, 5.0));
}

#[test]
fn a_proxy_that_comes_back_goes_on_where_it_was() {
    let mut bench = Bench::new();
    let lost = bench.open("web-1", 0);
    for second in 1..=5 {
        bench.add(&lost, second, report(1000, &[("reviews", 10)]));
    }
    // Nobody knows yet that its stream is gone.
    let stream = bench.open("web-1", 6);
    assert_eq!(bench.window.add(&lost, report(1000, &[("reviews", 10)]), None, bench.at(6)), Err(Refused::Replaced));
    bench.window.close(&lost);
    for second in 6..=10 {
        bench.add(&stream, second, report(1000, &[("reviews", 10)]));
    }
    let (requests, rate) = bench.total(60, 10);
    assert!(requests == 100 && close_to(rate, 10.0), "{requests} {rate}");
    // Another identity is another proxy, whatever it calls itself.
    let other = bench.window.open(&identity("mallory"), &reporter("web-1"), bench.at(10)).unwrap();
    bench.add(&other, 10, report(1000, &[("reviews", 1)]));
    assert_eq!(bench.window.traffic(Duration::MAX, bench.at(10)).traffic.len(), 2);
    bench.add(&stream, 11, report(1000, &[]));
}

#[test]
fn a_proxy_that_has_ended_is_forgotten_after_its_numbers() {
    let mut bench = Bench::new();
    let stream = bench.open("web-1", 0);
    bench.add(&stream, 1, report(1000, &[("reviews", 10)]));
    bench.window.close(&stream);
    assert!(close_to(bench.total(60, 1).1, 10.0));
    // Ten requests in ten seconds.
    assert!(close_to(bench.total(60, 10).1, 1.0));
    let answer = bench.window.traffic(Duration::MAX, bench.at(30));
    assert_eq!((answer.proxies, answer.reporting.len()), (0, 1), "who calls is decided by its reports still");
    assert!(bench.window.traffic(Duration::MAX, bench.at(70)).reporting.is_empty());
    assert!(bench.window.reporters.is_empty());
}

#[test]
fn series_are_bounded_and_what_is_more_is_counted_together() {
    let mut bench = Bench::new();
    let stream = bench.open("web-1", 0);
    for part in 0..3 {
        let names: Vec<String> = (0..1000).map(|i| format!("s{part}-{i}")).collect();
        let series: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 1)).collect();
        bench.add(&stream, 1, report(1000, &series));
    }
    let long = "x".repeat(MAX_TEXT + 1);
    bench.add(&stream, 1, report(1000, &[(&long, 1)]));
    let traffic = bench.window.traffic(Duration::MAX, bench.at(1)).traffic;
    assert_eq!((traffic.len(), bench.window.series), (MAX_SERIES + 1, MAX_SERIES + 1));
    let beyond = traffic.iter().find(|it| it.series.clone().unwrap().labels.unwrap().service == OVERFLOW).unwrap();
    assert_eq!(beyond.series.clone().unwrap().counts.unwrap().requests, [1001]);
    assert_eq!(bench.total(60, 1).0, 3001);
    let who = Reporter { workload: long, ..Reporter::default() };
    assert_eq!(bench.window.open(&identity("web"), &who, bench.at(1)), Err(Refused::LongName));
}

#[test]
fn numbers_that_cannot_be_are_not_counted() {
    let mut bench = Bench::new();
    let stream = bench.open("web-1", 0);
    let counts =
        Counts { buckets: vec![31, 30, 5000, 7, 7], requests: vec![1, 2, 4, u64::MAX, 8, 16], opened: 0, closed: 0 };
    let series = vec![Series { labels: Some(labels("reviews")), counts: Some(counts) }, Series::default()];
    bench.add(&stream, 1, Counted { covers_ms: u64::MAX, series: series.clone() });
    assert_eq!(bench.total(60, 1).0, 0);
    bench.add(&stream, 1, Counted { series, ..Counted::default() });
    let traffic = bench.window.traffic(Duration::MAX, bench.at(1)).traffic;
    assert_eq!(traffic.len(), 1);
    let counts = traffic[0].series.clone().unwrap().counts.unwrap();
    assert_eq!((counts.buckets, counts.requests), (vec![7, 30], vec![u64::MAX, 2]));
    assert!(traffic[0].rate.is_finite());
}

#[test]
fn the_more_proxies_report_the_less_often_they_are_asked_to() {
    let mut bench = Bench::new();
    assert_eq!(bench.window.interval(), Duration::from_secs(1));
    for i in 0..2000 {
        bench.open(&format!("web-{i}"), 0);
    }
    assert_eq!(bench.window.interval(), Duration::from_secs(4));
    bench.open("web-2000", 0);
    bench.open("web-2001", 0);
    assert_eq!(bench.window.interval(), Duration::from_secs(5));
}
