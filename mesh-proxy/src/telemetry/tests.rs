use std::sync::Arc;
use std::time::Duration;

use http::Method;

use super::series::{Budget, Cost, Destination, Key, Plan, Table};
use super::*;
use crate::config::{Endpoint, WorkloadInfo};
use crate::listen::{Direction, Downstream, Security};

fn downstream(direction: Direction) -> Downstream {
    Downstream {
        peer: "10.0.0.1:40000".parse().unwrap(),
        original_destination: "240.240.0.5:9080".parse().unwrap(),
        direction,
        identity: (direction == Direction::Inbound)
            .then(|| Arc::new(Identity::new("mesh.local", "default", "web").unwrap())),
        tls: direction == Direction::Inbound,
        alpn: None,
    }
}

fn endpoint(workload: &str) -> Endpoint {
    Endpoint {
        mesh: true,
        workload: Some(WorkloadInfo {
            workload: workload.into(),
            namespace: "default".into(),
            service: "reviews".into(),
            version: "v2".into(),
            identity: "spiffe://mesh.local/ns/default/sa/reviews".into(),
        }),
        ..Endpoint::at("10.0.0.2:9080".parse().unwrap())
    }
}

fn request<'a>(downstream: &'a Downstream, endpoint: Option<&'a Endpoint>, path: &'a str) -> RequestRecord<'a> {
    RequestRecord {
        downstream,
        method: &Method::GET,
        path,
        authority: "reviews:9080",
        protocol: Protocol::Http11,
        status: 200,
        grpc_status: None,
        flags: "",
        duration: Duration::from_millis(12),
        upstream_duration: Some(Duration::from_millis(11)),
        request_bytes: 3,
        response_bytes: 5,
        route: "HTTPRoute/default/reviews/0",
        rule: None,
        called: "",
        cluster: "reviews-v2.default.svc.cluster.local:9080",
        endpoint,
        security: Security::MutualTls,
        attempts: 1,
        request_id: "abc",
        user_agent: "curl",
        detail: None,
        trace: None,
        noted: None,
    }
}

fn stream<'a>(downstream: &'a Downstream, cluster: &'a str, flags: &'static str) -> TcpRecord<'a> {
    TcpRecord {
        called: "",
        downstream,
        cluster,
        endpoint: None,
        security: Security::None,
        flags,
        duration: Duration::from_secs(1),
        received_bytes: 7,
        sent_bytes: 9,
        detail: Some("it \"broke\""),
        verdict: None,
    }
}

fn telemetry(max_series: usize) -> Telemetry {
    let local = LocalWorkload {
        workload: "web-1".into(),
        namespace: "default".into(),
        service: "web".into(),
        version: "v1".into(),
        identity: Some(Identity::new("mesh.local", "default", "web").unwrap()),
    };
    Telemetry::new(TelemetryOptions { local, max_series, ..TelemetryOptions::default() }).unwrap()
}

/// The value of the one line with this name and all these labels.
fn value(text: &str, name: &str, labels: &[&str]) -> f64 {
    let matches = |line: &&str| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
            && labels.iter().all(|label| line.contains(label))
    };
    let lines: Vec<_> = text.lines().filter(matches).collect();
    assert_eq!(lines.len(), 1, "{name} {labels:?} in\n{text}");
    lines[0].rsplit_once(' ').unwrap().1.parse().unwrap()
}

#[test]
fn outbound_requests_are_counted_by_destination() {
    let telemetry = telemetry(1000);
    let (downstream, endpoint) = (downstream(Direction::Outbound), endpoint("reviews-v2-x"));
    for _ in 0..3 {
        telemetry.request(&request(&downstream, Some(&endpoint), "/a"));
    }
    let text = telemetry.render();
    let labels = [
        r#"source_workload="web-1""#,
        r#"source_identity="spiffe://mesh.local/ns/default/sa/web""#,
        r#"destination_service="reviews.default.svc.cluster.local""#,
        r#"destination_version="v2""#,
        r#"security="mutual_tls""#,
        r#"direction="outbound""#,
        r#"response_code="200""#,
    ];
    assert_eq!(value(&text, "mesh_requests_total", &labels), 3.0);
    let all = [r#"destination_workload="reviews-v2-x""#, r#"response_flags="-""#, r#"grpc_status="-""#];
    assert_eq!(value(&text, "mesh_requests_total", &all), 3.0);
    assert_eq!(value(&text, "mesh_request_bytes_total", &labels), 9.0);
    assert_eq!(value(&text, "mesh_response_bytes_total", &labels), 15.0);
    assert_eq!(value(&text, "mesh_request_duration_seconds_count", &labels), 3.0);
    assert_eq!(value(&text, "mesh_request_duration_seconds_bucket", &[r#"le="0.01""#]), 0.0);
    assert_eq!(value(&text, "mesh_request_duration_seconds_bucket", &[r#"le="0.015""#]), 3.0);
}

#[test]
fn inbound_requests_are_counted_by_the_identity_of_the_peer() {
    let telemetry = telemetry(1000);
    telemetry.request(&request(&downstream(Direction::Inbound), None, "/a"));
    let labels = [
        r#"source_identity="spiffe://mesh.local/ns/default/sa/web""#,
        r#"destination_service="web.default.svc.cluster.local""#,
        r#"destination_workload="web-1""#,
        r#"direction="inbound""#,
    ];
    assert_eq!(value(&telemetry.render(), "mesh_requests_total", &labels), 1.0);
}

#[test]
fn without_an_endpoint_the_cluster_says_the_service() {
    let telemetry = telemetry(1000);
    let downstream = downstream(Direction::Outbound);
    let service = r#"destination_service="db.default.svc.cluster.local""#;
    let stream_metrics = telemetry.tcp_opened(&stream(&downstream, "tcp:db.default.svc.cluster.local:5432", ""));
    stream_metrics.received(7);
    stream_metrics.sent(9);
    telemetry.tcp_closed(&stream(&downstream, "tcp:db.default.svc.cluster.local:5432", "UF"));
    let text = telemetry.render();
    assert_eq!(value(&text, "mesh_tcp_connections_opened_total", &[service]), 1.0);
    assert_eq!(value(&text, "mesh_tcp_received_bytes_total", &[service]), 7.0);
    assert_eq!(value(&text, "mesh_tcp_sent_bytes_total", &[service]), 9.0);
    let closed = [service, r#"response_flags="UF""#];
    assert_eq!(value(&text, "mesh_tcp_connections_closed_total", &closed), 1.0);
}

#[test]
fn without_a_cluster_the_called_service_is_known() {
    let telemetry = telemetry(1000);
    let downstream = downstream(Direction::Outbound);
    let aborted = RequestRecord { status: 503, flags: "FI", cluster: "", ..request(&downstream, None, "/") };
    telemetry.request(&RequestRecord { called: "reviews.default.svc.cluster.local:9080", ..aborted });
    let labels = [r#"destination_service="reviews.default.svc.cluster.local""#, r#"response_flags="FI""#];
    assert_eq!(value(&telemetry.render(), "mesh_requests_total", &labels), 1.0);
}

#[test]
fn series_are_capped_and_what_is_more_is_counted_together() {
    let telemetry = telemetry(200);
    let downstream = downstream(Direction::Outbound);
    for i in 0..1000 {
        let endpoint = endpoint(&format!("reviews-{i}"));
        telemetry.request(&request(&downstream, Some(&endpoint), "/"));
    }
    assert!(telemetry.inner.metrics.series() <= 200);
    let text = telemetry.render();
    let counted = text.lines().filter(|line| line.starts_with("mesh_requests_total{")).count();
    assert!(counted < 200, "{counted}");
    let overflow = value(&text, "mesh_requests_total", &[r#"destination_service="overflow""#]);
    let total: f64 = text
        .lines()
        .filter(|line| line.starts_with("mesh_requests_total{"))
        .map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap())
        .sum();
    assert_eq!(total, 1000.0);
    assert_eq!(value(&text, "mesh_proxy_metrics_overflow_total", &[]), overflow);
}

/// Each request is in one report: none is lost and none is told twice, whatever goes on meanwhile.
#[test]
fn reports_have_each_request_once() {
    let telemetry = telemetry(1000);
    let (outbound, inbound) = (downstream(Direction::Outbound), downstream(Direction::Inbound));
    let mut sum = 0;
    std::thread::scope(|scope| {
        let requests = || {
            for i in 0..10_000 {
                let endpoint = endpoint(if i % 2 == 0 { "reviews-v2-x" } else { "reviews-v2-y" });
                telemetry.request(&request(&outbound, Some(&endpoint), "/a"));
            }
        };
        let threads = [scope.spawn(requests), scope.spawn(requests)];
        while threads.iter().any(|thread| !thread.is_finished()) {
            sum += telemetry.take_report().iter().flat_map(|it| it.counts.clone().unwrap().requests).sum::<u64>();
        }
    });
    sum += telemetry.take_report().iter().flat_map(|it| it.counts.clone().unwrap().requests).sum::<u64>();
    assert_eq!(sum, 20_000);
    assert!(telemetry.take_report().is_empty());

    telemetry.request(&request(&inbound, None, "/"));
    telemetry.request(&RequestRecord { status: 503, flags: "UH", ..request(&outbound, None, "/") });
    let metrics = telemetry.tcp_opened(&stream(&outbound, "tcp:db.default.svc.cluster.local:5432", ""));
    let mut report = telemetry.take_report();
    report.sort_by_key(|it| (it.labels.as_ref().unwrap().protocol, it.labels.as_ref().unwrap().direction));
    let labels: Vec<_> = report.iter().map(|it| it.labels.clone().unwrap()).collect();
    assert_eq!((labels[0].service.as_str(), labels[0].status), ("reviews-v2.default.svc.cluster.local", 503));
    assert_eq!((labels[0].flags.as_str(), labels[0].version.as_str(), labels[0].mutual_tls), ("UH", "", true));
    assert_eq!((labels[1].caller.as_str(), labels[1].service.as_str()), ("spiffe://mesh.local/ns/default/sa/web", ""));
    assert_eq!(labels[2].service, "db.default.svc.cluster.local");
    // 12 ms are in the bucket from 10 to 15 ms.
    let counts: Vec<_> = report.iter().map(|it| it.counts.clone().unwrap()).collect();
    assert_eq!((&counts[0].buckets[..], &counts[0].requests[..]), (&[11][..], &[1][..]));
    assert_eq!((counts[2].opened, counts[2].closed), (1, 0));
    drop(metrics);
    telemetry.tcp_closed(&stream(&outbound, "tcp:db.default.svc.cluster.local:5432", "UC"));
    let counts = telemetry.take_report()[0].counts.clone().unwrap();
    assert_eq!((counts.opened, counts.closed), (0, 1));
}

#[test]
fn a_report_has_what_is_beyond_the_cap_in_one_series() {
    let telemetry = telemetry(200);
    let downstream = downstream(Direction::Outbound);
    for i in 0..1000 {
        telemetry.request(&request(&downstream, Some(&endpoint(&format!("reviews-{i}"))), "/"));
    }
    let report = telemetry.take_report();
    let services: Vec<_> = report.iter().map(|it| it.labels.clone().unwrap().service).collect();
    assert_eq!(services.len(), 2, "single workloads are not told apart: {services:?}");
    assert!(services.iter().any(|service| service == "overflow"), "{services:?}");
    assert_eq!(report.iter().flat_map(|it| it.counts.clone().unwrap().requests).sum::<u64>(), 1000);
}

#[test]
fn active_connections_go_up_and_down() {
    let telemetry = telemetry(10);
    let inbound = r#"direction="inbound""#;
    let one = telemetry.connection(Direction::Inbound);
    let two = telemetry.connection(Direction::Inbound);
    assert_eq!(value(&telemetry.render(), "mesh_proxy_connections_active", &[inbound]), 2.0);
    drop((one, two));
    assert_eq!(value(&telemetry.render(), "mesh_proxy_connections_active", &[inbound]), 0.0);
}

#[test]
fn idle_label_sets_make_room() {
    let table = Table::new();
    let budget = Budget::new(4);
    let key = |route: &'static str| Key {
        direction: Direction::Outbound,
        security: Security::None,
        source: None,
        destination: Destination::Cluster("c"),
        route,
        status: 200,
        grpc_status: None,
        flags: "",
    };
    let plan = || Plan { cost: Cost { own: 1, shared: 2, group: 7 }, make: Box::new(|| ()) };
    assert!(table.with(&key("a"), 10, &budget, plan, |()| ()).is_some());
    // The shared series are paid for once.
    assert!(table.with(&key("b"), 20, &budget, plan, |()| ()).is_some());
    assert_eq!(budget.used(), 4);
    assert!(table.with(&key("c"), 20, &budget, plan, |()| ()).is_none());
    // `a` was used since.
    assert!(table.with(&key("a"), 30, &budget, plan, |()| ()).is_some());
    table.sweep(25, &budget, |()| false);
    assert_eq!(budget.used(), 3);
    assert!(table.with(&key("c"), 30, &budget, plan, |()| ()).is_some());
    table.sweep(100, &budget, |()| true);
    assert_eq!(budget.used(), 4);
    table.sweep(100, &budget, |()| false);
    assert_eq!(budget.used(), 0);
}

#[test]
fn access_log_lines() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let log = |format| {
        let options = TelemetryOptions {
            access_log: format,
            access_log_file: Some(file.path().to_owned()),
            ..TelemetryOptions::default()
        };
        let telemetry = Telemetry::new(options).unwrap();
        let downstream = downstream(Direction::Outbound);
        telemetry.request(&request(&downstream, Some(&endpoint("reviews-v2-x")), "/a?b=\"c\"\n"));
        telemetry.tcp_closed(&stream(&downstream, "db", "UF"));
        telemetry.flush(Duration::from_secs(10));
        let text = std::fs::read_to_string(file.path()).unwrap();
        std::fs::write(file.path(), "").unwrap();
        text
    };
    let text = log(AccessLog::Text);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(
        lines[0].ends_with(
            r#"Z] "GET /a?b=\"c\"\n HTTP/1.1" 200 - 3 5 12 11 "-" "curl" "abc" "reviews:9080" "10.0.0.2:9080" reviews-v2.default.svc.cluster.local:9080 240.240.0.5:9080 10.0.0.1:40000 - HTTPRoute/default/reviews/0 "-""#
        ),
        "{}",
        lines[0]
    );
    assert!(
        lines[1].ends_with(
            r#"Z] "- - TCP" 0 UF 7 9 1000 - "-" "-" "-" "-" "-" db 240.240.0.5:9080 10.0.0.1:40000 - - "it \"broke\"""#
        ),
        "{}",
        lines[1]
    );
    let text = log(AccessLog::Json);
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["path"], "/a?b=\"c\"\n");
    assert_eq!(lines[0]["upstream_workload"], "reviews-v2-x");
    assert_eq!(lines[1]["response_flags"], "UF");
    assert_eq!(lines[1]["protocol"], "TCP");
}

/// The reference and the dashboards are made from that list.
#[test]
fn all_metrics_are_in_the_list() {
    let telemetry = telemetry(1000);
    telemetry.dns(DnsResult::Mesh);
    telemetry.would_refuse("default/a[0]");
    telemetry.asked_elsewhere(crate::ext_authz::Outcome::Denied);
    telemetry.fault(crate::fault::Injected::Delay);
    telemetry.upstream_health(&crate::upstream::HealthReport::default());
    let downstream = downstream(Direction::Outbound);
    telemetry.tcp_opened(&stream(&downstream, "tcp:a.default.svc.cluster.local:1", ""));
    telemetry.tcp_closed(&stream(&downstream, "tcp:a.default.svc.cluster.local:1", ""));
    let known: Vec<String> =
        mesh_common::metrics::of_proxy().map(|m| format!("# TYPE {} {}", m.name, m.kind.as_str())).collect();
    let text = telemetry.render();
    let types: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE ")).collect();
    assert!(types.len() > 12, "{text}");
    for line in types {
        assert!(known.iter().any(|it| it == line), "{line} is not in mesh-common/src/metrics.rs");
    }
    assert!(
        text.contains("\nprocess_resident_memory_bytes ") && text.contains("\nmesh_proxy_metrics_overflow_total 0"),
        "{text}"
    );
}
