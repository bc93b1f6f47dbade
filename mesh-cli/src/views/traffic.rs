//! Calls between services, from what proxies have reported: each counted once, put together in rows and edges. Pure.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use mesh_common::identity::Identity;
use mesh_common::metrics::DURATION_BUCKETS;
use mesh_common::names::CLUSTER_DOMAIN;
use mesh_common::proto::control::{ListTrafficResponse, Traffic};
use mesh_common::proto::telemetry::{Direction, Protocol};
use mesh_common::reports::has_failed;
use mesh_common::tap::{named, service_in};
use serde::Serialize;

/// A service by its full name, or what is known instead: a service account, or nothing.
pub(super) const UNKNOWN: &str = "unknown";

/// Calls of one kind.
#[derive(Clone, Debug)]
pub struct Call {
    pub caller: String,
    pub service: String,
    pub version: String,
    pub route: String,
    pub stats: Stats,
}

/// What became of calls.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    pub requests: u64,
    pub failed: u64,
    /// Requests in a second.
    pub rate: f64,
    /// Requests by index of bucket.
    pub(super) buckets: Vec<u64>,
    /// Requests by status; those without a response are `-`.
    pub responses: BTreeMap<String, u64>,
    /// Requests and byte streams by why a proxy ended them.
    pub flags: BTreeMap<String, u64>,
    /// Byte streams.
    pub opened: u64,
    pub closed: u64,
    pub broken: u64,
    pub opened_rate: f64,
    /// Of what reached an upstream: how much, and how much of it over mutual TLS.
    pub(super) reached: u64,
    pub(super) mutual_tls: u64,
}

/// Each call from one side: its caller's if that reports, because it sees what the caller sees, or else the other.
pub fn calls(answer: &ListTrafficResponse) -> Vec<Call> {
    let reporting: HashSet<&str> = answer.reporting.iter().map(String::as_str).collect();
    answer.traffic.iter().filter_map(|traffic| call(traffic, &reporting)).collect()
}

fn call(traffic: &Traffic, reporting: &HashSet<&str>) -> Option<Call> {
    let (reporter, series) = (traffic.reporter.as_ref()?, traffic.series.as_ref()?);
    let (labels, counts) = (series.labels.as_ref()?, series.counts.as_ref()?);
    let or_unknown = |name: &str| if name.is_empty() { UNKNOWN.to_owned() } else { name.to_owned() };
    let (caller, service, version) = match labels.direction() {
        Direction::Outbound => {
            let caller = match reporter.service.as_str() {
                "" => account(&reporter.identity),
                service => service.to_owned(),
            };
            (caller, or_unknown(&labels.service), labels.version.clone())
        }
        Direction::Inbound if reporting.contains(labels.caller.as_str()) => return None,
        // What is beyond the cap has lost its caller.
        Direction::Inbound if !labels.service.is_empty() => return None,
        Direction::Inbound => (account(&labels.caller), or_unknown(&reporter.service), reporter.version.clone()),
        Direction::Unspecified => return None,
    };
    let mut stats = Stats { opened: counts.opened, closed: counts.closed, ..Stats::default() };
    stats.buckets = vec![0; DURATION_BUCKETS.len() + 1];
    for (bucket, count) in counts.buckets.iter().zip(&counts.requests) {
        if let Some(sum) = usize::try_from(*bucket).ok().and_then(|at| stats.buckets.get_mut(at)) {
            *sum += count;
            stats.requests += count;
        }
    }
    match labels.protocol() {
        Protocol::Tcp => stats.opened_rate = traffic.rate,
        _ => stats.rate = traffic.rate,
    }
    let ended = stats.requests + stats.closed;
    if stats.requests > 0 {
        let status = if labels.status == 0 { "-".to_owned() } else { labels.status.to_string() };
        stats.responses.insert(status, stats.requests);
    }
    if has_failed(labels.status, labels.grpc_status) {
        stats.failed = stats.requests;
    }
    if !labels.flags.is_empty() {
        stats.broken = stats.closed;
        if ended > 0 {
            stats.flags.insert(labels.flags.clone(), ended);
        }
    }
    // What a proxy answered itself had nothing to encrypt.
    if labels.mutual_tls || labels.flags.is_empty() {
        stats.reached = stats.requests + stats.opened;
        stats.mutual_tls = if labels.mutual_tls { stats.reached } else { 0 };
    }
    Some(Call { caller, service, version, route: labels.route.clone(), stats })
}

/// `web.default` of a SPIFFE ID.
pub(super) fn account(identity: &str) -> String {
    match identity.parse::<Identity>() {
        Ok(identity) => format!("{}.{}", identity.service_account, identity.namespace),
        Err(_) => UNKNOWN.to_owned(),
    }
}

/// Whether a name is what somebody in this namespace means by a word.
pub fn is_named(name: &str, word: &str, namespace: &str) -> bool {
    let of = service_in(name).or_else(|| name.rsplit_once('.'));
    name == word || named(word, namespace).is_ok_and(|meant| of == Some(meant))
}

pub fn is_in(name: &str, namespace: &str) -> bool {
    short(name, "").rsplit_once('.').is_some_and(|(_, of)| of == namespace)
}

/// As one in this namespace would write it.
pub fn short(name: &str, namespace: &str) -> String {
    // A service account's name is no service's.
    let Some(name) = name.strip_suffix(CLUSTER_DOMAIN).and_then(|name| name.strip_suffix(".svc.")) else {
        return name.to_owned();
    };
    match name.rsplit_once('.') {
        Some((service, of)) if of == namespace => service.to_owned(),
        _ => name.to_owned(),
    }
}

impl Stats {
    pub fn add(&mut self, more: &Self) {
        self.requests += more.requests;
        self.failed += more.failed;
        self.rate += more.rate;
        self.buckets.resize(DURATION_BUCKETS.len() + 1, 0);
        self.buckets.iter_mut().zip(&more.buckets).for_each(|(sum, count)| *sum += count);
        for (sums, counts) in [(&mut self.responses, &more.responses), (&mut self.flags, &more.flags)] {
            counts.iter().for_each(|(key, count)| *sums.entry(key.clone()).or_default() += count);
        }
        self.opened += more.opened;
        self.closed += more.closed;
        self.broken += more.broken;
        self.opened_rate += more.opened_rate;
        self.reached += more.reached;
        self.mutual_tls += more.mutual_tls;
    }

    /// Share of requests, or of byte streams that ended if there are none.
    pub fn success(&self) -> Option<f64> {
        match (self.requests, self.closed) {
            (0, 0) => None,
            (0, closed) => Some(share(closed - self.broken.min(closed), closed)),
            (requests, _) => Some(share(requests - self.failed.min(requests), requests)),
        }
    }

    /// Share of what reached an upstream that did so over mutual TLS.
    pub fn mutual_tls(&self) -> Option<f64> {
        (self.reached > 0).then(|| share(self.mutual_tls, self.reached))
    }

    /// By interpolation within the bucket, as Prometheus does. `None`: no requests.
    #[allow(clippy::cast_precision_loss)]
    pub fn quantile(&self, at: f64) -> Option<Duration> {
        let total = self.buckets.iter().sum::<u64>() as f64;
        let wanted = at * total;
        let (mut below, mut from) = (0.0, 0.0);
        for (index, count) in self.buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
            from = if index == 0 { 0.0 } else { DURATION_BUCKETS[index - 1] };
            // The last bucket has no upper end.
            let to = DURATION_BUCKETS.get(index).copied().unwrap_or(from);
            let count = *count as f64;
            if below + count >= wanted {
                return Some(Duration::from_secs_f64(from + (to - from) * (wanted - below) / count));
            }
            below += count;
        }
        (total > 0.0).then(|| Duration::from_secs_f64(from))
    }
}

#[allow(clippy::cast_precision_loss)]
fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

/// What rows are about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum By {
    /// Who is called: services and their versions
    #[default]
    Services,
    /// Who calls whom
    Callers,
    /// Which routes decide
    Routes,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Sort {
    /// Most requests and connections in a second first
    #[default]
    Rate,
    /// Most failures first
    Success,
    /// Slowest first, by the median
    P50,
    /// Slowest first
    P90,
    /// Slowest first
    P99,
    Name,
}

/// Calls that have these in common.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    pub caller: Option<String>,
    pub service: String,
    pub version: Option<String>,
    pub route: Option<String>,
}

pub fn group(calls: &[Call], by: By, sort: Sort) -> Vec<(Group, Stats)> {
    let mut groups: BTreeMap<Group, Stats> = BTreeMap::new();
    for call in calls {
        let mut group = Group { service: call.service.clone(), ..Group::default() };
        match by {
            By::Services => group.version = Some(call.version.clone()),
            By::Callers => group.caller = Some(call.caller.clone()),
            By::Routes => group.route = Some(call.route.clone()),
        }
        groups.entry(group).or_default().add(&call.stats);
    }
    let mut rows: Vec<_> = groups.into_iter().collect();
    let descending = |a: f64, b: f64| b.total_cmp(&a);
    let slower = |at: f64| {
        move |a: &Stats, b: &Stats| b.quantile(at).unwrap_or_default().cmp(&a.quantile(at).unwrap_or_default())
    };
    // Stable, so that equal ones stay in the order of their names.
    rows.sort_by(|(_, a), (_, b)| match sort {
        Sort::Rate => descending(a.rate + a.opened_rate, b.rate + b.opened_rate),
        Sort::Success => a.success().unwrap_or(2.0).total_cmp(&b.success().unwrap_or(2.0)),
        Sort::P50 => slower(0.5)(a, b),
        Sort::P90 => slower(0.9)(a, b),
        Sort::P99 => slower(0.99)(a, b),
        Sort::Name => Ordering::Equal,
    });
    rows
}

/// The numbers of a row or an edge as programs read them.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StatsView {
    pub requests: u64,
    pub failed: u64,
    pub requests_per_second: f64,
    /// From 0 to 1: of requests, or of byte streams that ended if there are none.
    pub success: Option<f64>,
    pub p50_ms: Option<f64>,
    pub p90_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    /// Requests by status; `-` is none.
    pub responses: BTreeMap<String, u64>,
    /// What a proxy ended, by its response flag.
    pub flags: BTreeMap<String, u64>,
    pub connections_opened: u64,
    pub connections_closed: u64,
    pub connections_failed: u64,
    pub connections_per_second: f64,
    /// From 0 to 1, of what reached an upstream.
    pub mutual_tls: Option<f64>,
}

impl From<&Stats> for StatsView {
    fn from(stats: &Stats) -> Self {
        let ms = |at| stats.quantile(at).map(|time| rounded(time.as_secs_f64() * 1e3));
        Self {
            requests: stats.requests,
            failed: stats.failed,
            requests_per_second: rounded(stats.rate),
            success: stats.success(),
            p50_ms: ms(0.5),
            p90_ms: ms(0.9),
            p99_ms: ms(0.99),
            responses: stats.responses.clone(),
            flags: stats.flags.clone(),
            connections_opened: stats.opened,
            connections_closed: stats.closed,
            connections_failed: stats.broken,
            connections_per_second: rounded(stats.opened_rate),
            mutual_tls: stats.mutual_tls(),
        }
    }
}

/// To a thousandth.
fn rounded(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use mesh_common::proto::telemetry::{Counts, Labels, Reporter, Series};

    use super::*;

    const WEB: &str = "spiffe://mesh.local/ns/shop/sa/web";
    const REVIEWS: &str = "spiffe://mesh.local/ns/shop/sa/reviews";

    fn traffic(service: &str, identity: &str, labels: Labels, buckets: &[u32], requests: &[u64]) -> Traffic {
        let reporter = Reporter {
            service: format!("{service}.shop.svc.cluster.local"),
            version: "v1".into(),
            identity: identity.into(),
            ..Reporter::default()
        };
        let counts = Counts { buckets: buckets.to_vec(), requests: requests.to_vec(), ..Counts::default() };
        let series = Series { labels: Some(labels), counts: Some(counts) };
        Traffic { reporter: Some(reporter), series: Some(series), rate: 1.5 }
    }

    fn outbound(status: u32, flags: &str) -> Labels {
        Labels {
            direction: Direction::Outbound.into(),
            protocol: Protocol::Http.into(),
            service: "reviews.shop.svc.cluster.local".into(),
            version: if flags.is_empty() { "v1".into() } else { String::new() },
            route: "HTTPRoute/shop/reviews/0".into(),
            mutual_tls: flags.is_empty(),
            status,
            flags: flags.into(),
            ..Labels::default()
        }
    }

    fn inbound(caller: &str) -> Labels {
        Labels {
            direction: Direction::Inbound.into(),
            protocol: Protocol::Http.into(),
            caller: caller.into(),
            status: 200,
            ..Labels::default()
        }
    }

    fn answer(reporting: &[&str]) -> ListTrafficResponse {
        let traffic = vec![
            traffic("web", WEB, outbound(200, ""), &[4, 10], &[30, 10]),
            traffic("web", WEB, outbound(503, "FI"), &[0], &[10]),
            traffic("reviews", REVIEWS, inbound(WEB), &[4], &[40]),
            traffic("reviews", REVIEWS, inbound(""), &[4], &[7]),
        ];
        ListTrafficResponse { traffic, reporting: reporting.iter().map(ToString::to_string).collect(), proxies: 2 }
    }

    #[test]
    fn a_call_that_both_sides_report_is_counted_once() {
        let callers = |reporting: &[&str]| -> Vec<(String, u64)> {
            let rows = group(&calls(&answer(reporting)), By::Callers, Sort::Name);
            rows.into_iter().map(|(group, stats)| (short(&group.caller.unwrap(), "shop"), stats.requests)).collect()
        };
        assert_eq!(callers(&[WEB, REVIEWS]), [("unknown".to_owned(), 7), ("web".to_owned(), 50)]);
        // One without a proxy that reports is known by those whom it calls.
        let mut other = answer(&[REVIEWS]);
        other.traffic.drain(..2);
        let rows = group(&calls(&other), By::Callers, Sort::Name);
        assert_eq!((rows[1].0.caller.as_deref(), rows[1].1.requests), (Some("web.shop"), 40));
    }

    #[test]
    fn rows_tell_failures_and_what_was_encrypted() {
        let calls = calls(&answer(&[WEB, REVIEWS]));
        let rows = group(&calls, By::Callers, Sort::Rate);
        let web = &rows[0].1;
        assert_eq!((web.requests, web.failed, web.rate), (50, 10, 3.0));
        assert_eq!((web.success(), web.mutual_tls()), (Some(0.8), Some(1.0)));
        assert_eq!((web.responses["200"], web.responses["503"], web.flags["FI"]), (40, 10, 10));
        assert_eq!(rows[1].1.mutual_tls(), Some(0.0));
        let versions: Vec<_> = group(&calls, By::Services, Sort::Success)
            .into_iter()
            .map(|(group, stats)| (group.version.unwrap(), stats.success().unwrap()))
            .collect();
        // What no workload answered is a row of its own.
        assert_eq!(versions, [(String::new(), 0.0), ("v1".to_owned(), 1.0)]);
        let routes = group(&calls, By::Routes, Sort::Name);
        assert_eq!(routes[1].0.route.as_deref(), Some("HTTPRoute/shop/reviews/0"));
    }

    #[test]
    fn quantiles_are_interpolated() {
        let mut buckets = vec![0; DURATION_BUCKETS.len() + 1];
        (buckets[4], buckets[10]) = (30, 10);
        let stats = Stats { buckets, requests: 40, ..Stats::default() };
        // Half of the way from 0.75 to 1 ms are 15 of the 30.
        assert_eq!(stats.quantile(0.375), Some(Duration::from_micros(875)));
        assert_eq!(stats.quantile(1.0), Some(Duration::from_millis(10)));
        let mut slow = vec![0; DURATION_BUCKETS.len() + 1];
        slow[DURATION_BUCKETS.len()] = 1;
        assert_eq!(Stats { buckets: slow, ..Stats::default() }.quantile(0.5), Some(Duration::from_secs(60)));
        assert_eq!(Stats::default().quantile(0.5), None);
    }

    #[test]
    fn names_are_as_short_as_the_namespace_allows() {
        let name = "reviews.shop.svc.cluster.local";
        assert_eq!((short(name, "shop").as_str(), short(name, "other").as_str()), ("reviews", "reviews.shop"));
        for word in ["reviews", "reviews.shop", "reviews.shop.svc", name] {
            assert!(is_named(name, word, "shop"), "{word}");
        }
        assert!(!is_named(name, "reviews", "other") && is_named("web.shop", "web.shop", "other"));
        assert!(is_named("web.shop", "web", "shop") && is_named("passthrough", "passthrough", "shop"));
        assert!(!is_named("unknown", "web", "shop") && !is_named("", ".", "shop"));
        assert!(is_in(name, "shop") && is_in("web.shop", "shop") && !is_in("passthrough", "shop"));
    }
}
