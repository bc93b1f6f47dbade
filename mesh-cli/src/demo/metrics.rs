//! What the proxies count, summed up for each service and version. Only callers' proxies are read: they see what callers
//! see, with the delays and failures on the way.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_common::reports::has_failed;

/// Service and version that were called; the version is "" where a request reached none.
pub(super) type Target = (String, String);

/// Counts since the proxies started.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Counts {
    pub(super) requests: f64,
    pub(super) failed: f64,
    pub(super) mutual_tls: f64,
    /// Connections of byte streams.
    pub(super) connections: f64,
    pub(super) connections_mutual_tls: f64,
    /// Requests that took at most so many microseconds.
    pub(super) buckets: BTreeMap<u64, f64>,
}

impl Counts {
    /// What was added since `earlier`.
    pub(super) fn since(&self, earlier: Option<&Self>) -> Self {
        let none = Self::default();
        let earlier = earlier.unwrap_or(&none);
        // A proxy that was started anew counts from zero.
        let less = |now: f64, then: f64| if now >= then { now - then } else { now };
        Self {
            requests: less(self.requests, earlier.requests),
            failed: less(self.failed, earlier.failed),
            mutual_tls: less(self.mutual_tls, earlier.mutual_tls),
            connections: less(self.connections, earlier.connections),
            connections_mutual_tls: less(self.connections_mutual_tls, earlier.connections_mutual_tls),
            buckets: self
                .buckets
                .iter()
                .map(|(limit, count)| (*limit, less(*count, earlier.buckets.get(limit).copied().unwrap_or(0.0))))
                .collect(),
        }
    }

    /// What another proxy has counted.
    pub(super) fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.failed += other.failed;
        self.mutual_tls += other.mutual_tls;
        self.connections += other.connections;
        self.connections_mutual_tls += other.connections_mutual_tls;
        for (limit, count) in &other.buckets {
            *self.buckets.entry(*limit).or_default() += count;
        }
    }

    /// By interpolation within the bucket, as Prometheus does. `None`: no requests.
    pub(super) fn quantile(&self, at: f64) -> Option<Duration> {
        let total = self.buckets.last_key_value().map(|(_, count)| *count).filter(|count| *count > 0.0)?;
        let (mut below, mut from) = (0.0, 0.0);
        for (limit, count) in &self.buckets {
            #[allow(clippy::cast_precision_loss)]
            let to = *limit as f64;
            if *count >= at * total {
                // The last bucket has no upper end.
                let part = if *limit == u64::MAX { 0.0 } else { (at * total - below) / (count - below).max(1e-9) };
                let to = if *limit == u64::MAX { from } else { to };
                return Some(Duration::from_secs_f64((from + part * (to - from)) / 1e6));
            }
            (below, from) = (*count, to);
        }
        None
    }
}

/// Adds what one proxy's `/metrics` says.
pub(super) fn add(all: &mut BTreeMap<Target, Counts>, text: &str) {
    for line in text.lines() {
        let Some((name, labels, value)) = sample(line) else { continue };
        // What a proxy cannot name it calls unknown.
        let label = |name: &str| labels.get(name).map(String::as_str).filter(|it| *it != "unknown").unwrap_or_default();
        if label("direction") != "outbound" {
            continue;
        }
        // The full name of a service begins with its short one.
        let service = label("destination_service").split('.').next().unwrap_or_default().to_owned();
        if service.is_empty() {
            continue;
        }
        let counts = all.entry((service, label("destination_version").to_owned())).or_default();
        let mutual = if label("security") == "mutual_tls" { value } else { 0.0 };
        match name {
            "mesh_requests_total" => {
                counts.requests += value;
                counts.mutual_tls += mutual;
                if failed(label("response_code"), label("grpc_status")) {
                    counts.failed += value;
                }
            }
            "mesh_request_duration_seconds_bucket" => {
                let limit = match label("le") {
                    "+Inf" => u64::MAX,
                    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                    le => le.parse::<f64>().map_or(u64::MAX, |seconds| (seconds * 1e6).round() as u64),
                };
                *counts.buckets.entry(limit).or_default() += value;
            }
            "mesh_tcp_connections_opened_total" => {
                counts.connections += value;
                counts.connections_mutual_tls += mutual;
            }
            _ => {}
        }
    }
}

/// How many faults of a kind one proxy's `/metrics` says that it has injected.
pub(super) fn injected(text: &str, kind: &str) -> f64 {
    let samples = text.lines().filter_map(sample);
    let of_it = samples.filter(|(name, labels, _)| {
        *name == "mesh_faults_injected_total" && labels.get("fault").is_some_and(|fault| fault == kind)
    });
    of_it.map(|(_, _, value)| value).sum()
}

fn failed(code: &str, grpc: &str) -> bool {
    // What is no status says nothing of a failure.
    has_failed(code.parse().unwrap_or(200), grpc.parse().ok())
}

type Labels = BTreeMap<String, String>;

/// `name{label="value",...} 12.5`
fn sample(line: &str) -> Option<(&str, Labels, f64)> {
    let open = line.find('{').filter(|_| !line.starts_with('#'))?;
    let (name, mut rest) = (&line[..open], &line[open + 1..]);
    let mut labels = Labels::new();
    while !rest.starts_with('}') {
        let (key, after) = rest.split_once("=\"")?;
        let (value, after) = quoted(after)?;
        labels.insert(key.to_owned(), value);
        rest = after.strip_prefix(',').unwrap_or(after);
    }
    let value = rest[1..].split_whitespace().next()?.parse().ok()?;
    Some((name, labels, value))
}

/// The text up to the closing quote, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((index, char)) = chars.next() {
        match char {
            '"' => return Some((value, &text[index + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
# TYPE mesh_requests_total counter
mesh_requests_total{direction="outbound",destination_service="reviews.default.svc.cluster.local",destination_version="v1",security="mutual_tls",response_code="200",grpc_status=""} 90
mesh_requests_total{direction="outbound",destination_service="reviews.default.svc.cluster.local",destination_version="v1",security="none",response_code="503",grpc_status=""} 10
mesh_requests_total{direction="inbound",destination_service="reviews.default.svc.cluster.local",destination_version="v1",security="mutual_tls",response_code="200"} 7
mesh_request_duration_seconds_bucket{direction="outbound",destination_service="reviews.default.svc.cluster.local",destination_version="v1",le="0.001"} 50
mesh_request_duration_seconds_bucket{direction="outbound",destination_service="reviews.default.svc.cluster.local",destination_version="v1",le="0.002"} 100
mesh_request_duration_seconds_bucket{direction="outbound",destination_service="reviews.default.svc.cluster.local",destination_version="v1",le="+Inf"} 100
mesh_requests_total{direction="outbound",destination_service="unknown",destination_version="unknown",security="none",response_code="404"} 7
mesh_proxy_connections_active 3
mesh_faults_injected_total{fault="delay"} 5
mesh_faults_injected_total{fault="abort"} 2
garbage{x="
"#;

    #[test]
    fn callers_counts_are_summed_by_service_and_version() {
        let mut all = BTreeMap::new();
        add(&mut all, TEXT);
        add(&mut all, TEXT);
        assert_eq!(all.len(), 1);
        let counts = &all[&("reviews".to_owned(), "v1".to_owned())];
        assert_eq!((counts.requests, counts.failed, counts.mutual_tls), (200.0, 20.0, 180.0));
        assert_eq!(counts.quantile(0.5), Some(Duration::from_millis(1)));
        assert_eq!(counts.quantile(0.75), Some(Duration::from_micros(1500)));
    }

    #[test]
    fn faults_are_summed_by_kind() {
        assert_eq!(["delay", "abort", "reset"].map(|kind| injected(TEXT, kind)), [5.0, 2.0, 0.0]);
    }

    #[test]
    fn a_restarted_proxy_does_not_count_backwards() {
        let counts = |requests| Counts { requests, ..Counts::default() };
        assert_eq!(counts(30.0).since(Some(&counts(10.0))).requests, 20.0);
        assert_eq!(counts(5.0).since(Some(&counts(10.0))).requests, 5.0);
        assert_eq!(counts(5.0).since(None).quantile(0.5), None);
    }

    #[test]
    fn labels_may_hold_anything() {
        let (name, labels, value) = sample(r#"m{a="x\"},y",b=""} 2 123"#).unwrap();
        assert_eq!((name, labels["a"].as_str(), labels["b"].as_str(), value), ("m", "x\"},y", "", 2.0));
    }
}
