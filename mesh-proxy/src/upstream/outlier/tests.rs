use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn config() -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: Some(3),
        consecutive_gateway_failures: None,
        success_rate: None,
        interval: 10 * SECOND,
        base_ejection_time: 30 * SECOND,
        max_ejection_time: 100 * SECOND,
        max_ejection_percent: 50,
        always_one: false,
        ends_with_check: false,
    }
}

/// A cluster under a clock of its own.
struct Cluster {
    config: OutlierDetection,
    detector: Detector,
    records: Vec<Record>,
    usable: Vec<bool>,
    now: Instant,
    ejected: Vec<(usize, Reason)>,
}

impl Cluster {
    fn new(size: usize, config: OutlierDetection) -> Self {
        let now = Instant::now();
        let records = (0..size).map(|_| Record::new(now)).collect();
        Self { config, detector: Detector::new(now), records, usable: vec![true; size], now, ejected: Vec::new() }
    }

    fn see(&mut self, index: usize, outcome: Outcome) {
        let records = &self.records;
        let peers = || records.iter().zip(&self.usable).map(|(record, &usable)| Peer { record, usable }).collect();
        let place = |record: &Record| records.iter().position(|it| std::ptr::eq(it, record)).unwrap();
        let ejected = &mut self.ejected;
        self.detector.observe(&self.config, &records[index], outcome, self.now, peers, |record, reason| {
            ejected.push((place(record), reason));
        });
    }

    fn fail(&mut self, index: usize, times: usize) {
        for _ in 0..times {
            self.see(index, Outcome::GatewayFailure);
        }
    }

    fn is_ejected(&self, index: usize) -> bool {
        self.records[index].is_ejected(|| self.now)
    }

    /// How long it is from now until it is back, in whole seconds.
    fn seconds_out(&mut self, index: usize) -> u64 {
        let mut seconds = 0;
        while self.is_ejected(index) {
            self.now += SECOND;
            seconds += 1;
        }
        seconds
    }
}

#[test]
fn failures_in_a_row_eject_and_a_success_between_them_does_not() {
    let mut cluster = Cluster::new(2, config());
    for _ in 0..10 {
        cluster.fail(0, 2);
        cluster.see(0, Outcome::Success);
    }
    assert!(!cluster.is_ejected(0));
    cluster.see(0, Outcome::ServerError);
    cluster.fail(0, 2);
    assert_eq!(cluster.ejected, [(0, Reason::Consecutive5xx)]);
    assert!(cluster.is_ejected(0) && !cluster.is_ejected(1));
    // What was on its way makes it no worse.
    cluster.fail(0, 20);
    assert_eq!(cluster.ejected.len(), 1);
    assert_eq!(cluster.seconds_out(0), 30);
    cluster.fail(0, 2);
    assert!(!cluster.is_ejected(0), "it began anew");
}

#[test]
fn only_gateway_failures_count_as_such() {
    let by_gateway = OutlierDetection { consecutive_5xx: None, consecutive_gateway_failures: Some(3), ..config() };
    let mut cluster = Cluster::new(2, by_gateway);
    for _ in 0..10 {
        cluster.fail(0, 2);
        cluster.see(0, Outcome::ServerError);
    }
    assert!(!cluster.is_ejected(0));
    cluster.fail(0, 3);
    assert_eq!(cluster.ejected, [(0, Reason::ConsecutiveGatewayFailures)]);
}

#[test]
fn each_time_it_takes_longer_up_to_the_most_and_quiet_times_are_remembered() {
    let mut cluster = Cluster::new(2, config());
    let mut out = Vec::new();
    for _ in 0..5 {
        cluster.fail(0, 3);
        out.push(cluster.seconds_out(0));
    }
    assert_eq!(out, [30, 60, 90, 100, 100]);
    // Three times are remembered, and one is forgotten in each interval.
    cluster.now += 20 * SECOND;
    cluster.fail(0, 3);
    assert_eq!(cluster.seconds_out(0), 60);
    cluster.now += 1000 * SECOND;
    cluster.fail(0, 3);
    assert_eq!(cluster.seconds_out(0), 30);
}

#[test]
fn no_more_than_the_share_and_never_the_last() {
    let mut cluster = Cluster::new(4, config());
    for index in 0..4 {
        cluster.fail(index, 30);
    }
    assert_eq!(cluster.ejected.len(), 2);
    let mut cluster = Cluster::new(3, OutlierDetection { max_ejection_percent: 100, ..config() });
    for index in 0..3 {
        cluster.fail(index, 30);
    }
    assert_eq!(cluster.ejected.len(), 2);
    // One that fails its check is no one that could be left.
    let mut cluster = Cluster::new(2, config());
    cluster.usable[1] = false;
    cluster.fail(0, 30);
    assert_eq!(cluster.ejected, []);
    let mut alone = Cluster::new(1, OutlierDetection { always_one: true, ..config() });
    alone.fail(0, 30);
    assert_eq!(alone.ejected, []);
    let few = OutlierDetection { max_ejection_percent: 10, ..config() };
    let mut cluster = Cluster::new(3, few.clone());
    cluster.fail(0, 30);
    assert_eq!(cluster.ejected, []);
    let mut cluster = Cluster::new(3, OutlierDetection { always_one: true, ..few });
    cluster.fail(0, 30);
    cluster.fail(1, 30);
    assert_eq!(cluster.ejected.len(), 1);
}

#[test]
fn whoever_succeeds_much_less_than_the_others_is_ejected() {
    let rate = SuccessRate { deviations: 1.5, min_hosts: 4, min_requests: 10 };
    let by_rate = OutlierDetection { consecutive_5xx: None, success_rate: Some(rate), ..config() };
    let round = |cluster: &mut Cluster, bad: usize| {
        for index in 0..5 {
            for request in 0..10 {
                let fails = index == bad && request % 2 == 0;
                cluster.see(index, if fails { Outcome::ServerError } else { Outcome::Success });
            }
        }
        cluster.now += 10 * SECOND;
    };
    let mut cluster = Cluster::new(5, by_rate.clone());
    round(&mut cluster, 2);
    assert_eq!(cluster.ejected, [], "the interval is not over");
    cluster.see(0, Outcome::Success);
    assert_eq!(cluster.ejected, [(2, Reason::SuccessRate)]);
    assert_eq!(cluster.seconds_out(2), 30);
    // All the same: nobody.
    let mut cluster = Cluster::new(5, by_rate.clone());
    round(&mut cluster, 9);
    cluster.see(0, Outcome::Success);
    assert_eq!(cluster.ejected, []);
    // Too few requests, or too few endpoints.
    for few in [SuccessRate { min_requests: 11, ..rate }, SuccessRate { min_hosts: 6, ..rate }] {
        let mut cluster = Cluster::new(5, OutlierDetection { success_rate: Some(few), ..by_rate.clone() });
        round(&mut cluster, 2);
        cluster.see(0, Outcome::ServerError);
        assert_eq!(cluster.ejected, []);
    }
    // What was counted before the comparison does not count again.
    let mut cluster = Cluster::new(5, by_rate);
    round(&mut cluster, 2);
    round(&mut cluster, 9);
    round(&mut cluster, 9);
    assert_eq!(cluster.ejected.len(), 1);
}

#[test]
fn what_outcomes_are() {
    let of = |status: u16| Outcome::of_status(StatusCode::from_u16(status).unwrap());
    assert_eq!([200, 404, 429].map(of), [Outcome::Success; 3]);
    assert_eq!([500, 501, 599].map(of), [Outcome::ServerError; 3]);
    assert_eq!([502, 503, 504].map(of), [Outcome::GatewayFailure; 3]);
    assert_eq!([0, 1, 5, 8, 16].map(Outcome::of_grpc), [Outcome::Success; 5]);
    assert_eq!([2, 13].map(Outcome::of_grpc), [Outcome::ServerError; 2]);
    assert_eq!([4, 14].map(Outcome::of_grpc), [Outcome::GatewayFailure; 2]);
    assert_eq!(Outcome::of_error(Kind::UpstreamConnect), Some(Outcome::GatewayFailure));
    assert_eq!([Kind::Overflow, Kind::Downstream, Kind::Fault, Kind::StreamIdle].map(Outcome::of_error), [None; 4]);
}

proptest! {
    #[test]
    fn whatever_happens_one_is_left_and_the_share_holds(
        size in 1usize..8,
        percent in 0u32..=100,
        events in prop::collection::vec((0usize..8, 0u8..8, 0u32..20), 0..400),
    ) {
        let rate = SuccessRate { deviations: 0.5, min_hosts: 1, min_requests: 1 };
        let config = OutlierDetection {
            consecutive_gateway_failures: Some(2),
            success_rate: Some(rate),
            max_ejection_percent: percent,
            ..config()
        };
        let mut cluster = Cluster::new(size, config);
        for (index, outcome, seconds) in events {
            let outcome = match outcome {
                0..=4 => Outcome::GatewayFailure,
                5 => Outcome::ServerError,
                _ => Outcome::Success,
            };
            cluster.see(index % size, outcome);
            let ejected = (0..size).filter(|index| cluster.is_ejected(*index)).count();
            prop_assert!(ejected < size);
            prop_assert!(ejected * 100 <= percent as usize * size);
            cluster.now += seconds * SECOND;
        }
        cluster.now += 100 * SECOND;
        prop_assert!((0..size).all(|index| !cluster.is_ejected(index)));
    }
}
