//! Every metric of the mesh, once: the programs describe theirs by it, `docs/reference/metrics.md` is made from it, and the
//! dashboards and rules may name nothing else.

use Kind::{Counter, Gauge, Histogram};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub text: &'static str,
    /// In Markdown, with the values that they can have.
    pub labels: &'static str,
}

const fn metric(name: &'static str, kind: Kind, text: &'static str, labels: &'static str) -> Metric {
    Metric { name, kind, text, labels }
}

/// Upper bounds of `mesh_request_duration_seconds`: from 100 µs to 60 s, narrow enough that an interpolated quantile is off by
/// a fifth at most where requests usually are.
pub const DURATION_BUCKETS: [f64; 30] = [
    0.0001, 0.00025, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075,
    0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0,
];

/// Of each request and byte stream, by the proxies on both of its sides.
pub const REQUESTS: [Metric; 8] = [
    metric(
        "mesh_requests_total",
        Counter,
        "HTTP requests that ended",
        "peers, `destination_workload`, `response_code`, `response_flags`, `grpc_status`, `route`",
    ),
    metric(
        "mesh_request_duration_seconds",
        Histogram,
        "from a request's first byte to its response's last; 30 buckets from 100 µs to 60 s",
        "peers, `response_code`",
    ),
    metric("mesh_request_bytes_total", Counter, "bytes of request bodies", "peers, `response_code`"),
    metric("mesh_response_bytes_total", Counter, "bytes of response bodies", "peers, `response_code`"),
    metric(
        "mesh_tcp_connections_opened_total",
        Counter,
        "byte streams that reached their upstream",
        "peers, `destination_workload`",
    ),
    metric(
        "mesh_tcp_connections_closed_total",
        Counter,
        "byte streams that ended, with those that never reached an upstream",
        "peers, `destination_workload`, `response_flags`",
    ),
    metric(
        "mesh_tcp_received_bytes_total",
        Counter,
        "bytes from downstream to upstream",
        "peers, `destination_workload`",
    ),
    metric("mesh_tcp_sent_bytes_total", Counter, "bytes from upstream to downstream", "peers, `destination_workload`"),
];

/// Of datagrams, by the caller's proxy.
pub const UDP: [Metric; 5] = [
    metric("mesh_udp_sessions_active", Gauge, "sessions that are open", ""),
    metric(
        "mesh_udp_sessions_total",
        Counter,
        "sessions that got an endpoint, and again those that got another one",
        "`source_workload`, `destination_service`, `destination_version`",
    ),
    metric(
        "mesh_udp_datagrams_total",
        Counter,
        "datagrams passed on",
        "the same, and `direction` (`to_upstream`, `to_downstream`)",
    ),
    metric("mesh_udp_bytes_total", Counter, "their bytes, without headers", "the same"),
    metric("mesh_udp_datagrams_dropped_total", Counter, "datagrams that went nowhere", "`reason`, see below"),
];

/// Of a proxy itself.
pub const PROXY: [Metric; 21] = [
    metric("mesh_proxy_build_info", Gauge, "always 1", "`version`"),
    metric("mesh_proxy_connections_active", Gauge, "downstream connections that are open", "`direction`"),
    metric("mesh_proxy_xds_connected", Gauge, "1 while it is connected to a control plane", ""),
    metric(
        "mesh_xds_responses_total",
        Counter,
        "discovery responses that it got, by its answer; one that a change does not concern gets none",
        "`type` (as below), `result` (`ack`, `nack`)",
    ),
    metric(
        "mesh_proxy_certificate_expiry_timestamp_seconds",
        Gauge,
        "end of its certificate's validity, in Unix seconds",
        "",
    ),
    metric(
        "mesh_authorization_dry_run_refused_total",
        Counter,
        "requests and byte streams that an AuthorizationPolicy with `dryRun` would have refused",
        "`policy`: the one that denies, `namespace/name[rule]`; empty where none allows",
    ),
    metric(
        "mesh_authorization_external_total",
        Counter,
        "requests about which an AuthorizationPolicy with `action: CUSTOM` had somebody asked, by the outcome",
        "`result` (`allowed`, `denied`, `failed`: no answer, and refused; `failed_open`: no answer, and let in). What nobody can be asked about is not in it",
    ),
    metric(
        "mesh_proxy_dns_queries_total",
        Counter,
        "DNS questions, by what became of them",
        "`result` (`mesh`, `no_data`, `forwarded`, `failed`, `malformed`)",
    ),
    metric(
        "mesh_upstream_ejections_total",
        Counter,
        "endpoints that it ejected for the requests that they failed",
        "`reason` (`consecutive_5xx`, `consecutive_gateway_failures`, `success_rate`)",
    ),
    metric("mesh_upstream_endpoints_ejected", Gauge, "endpoints that are ejected now", ""),
    metric(
        "mesh_upstream_health_checks_total",
        Counter,
        "health checks of endpoints",
        "`result` (`success`, `failure`)",
    ),
    metric("mesh_upstream_endpoints_failing_checks", Gauge, "endpoints that fail their health checks now", ""),
    metric(
        "mesh_proxy_access_log_dropped_total",
        Counter,
        "access log lines dropped because their reader is too slow",
        "",
    ),
    metric("mesh_trace_spans_exported_total", Counter, "spans that the tracing backend took", ""),
    metric(
        "mesh_trace_spans_dropped_total",
        Counter,
        "spans of sampled requests that did not get there",
        "`reason`: `queue_full`, `refused` (by the backend), `unavailable` (it is not there, or did not answer in time)",
    ),
    metric(
        "mesh_proxy_audit_log_dropped_total",
        Counter,
        "audit log lines dropped because they could not be written, or not soon enough",
        "",
    ),
    metric(
        "mesh_proxy_overloaded",
        Gauge,
        "1 while new requests are refused because the proxy is short of it",
        "`resource`: `memory`, `cpu`",
    ),
    metric(
        "mesh_limits_hit_total",
        Counter,
        "requests and connections that a limit of the application's port refused",
        "`limit`: `requests` (their rate), `connections`, `connections_per_caller`, `concurrent_requests`, `concurrent_requests_per_caller`, `size_headers`, `size_body`",
    ),
    metric(
        "mesh_faults_injected_total",
        Counter,
        "requests and byte streams that a FaultInjection has hit; one that is delayed and then ended counts as both",
        "`fault`: `delay`, `abort`, `reset`, `throttle`",
    ),
    metric(
        "mesh_limits_delayed_total",
        Counter,
        "bodies and byte streams that a limit on the bandwidth of the application's port made wait, each once",
        "`limit`: `bandwidth_up`, `bandwidth_down`",
    ),
    metric("mesh_proxy_metrics_overflow_total", Counter, "requests and streams counted as overflow", ""),
];

/// Of the control plane.
pub const CONTROL: [Metric; 16] = [
    metric("mesh_control_xds_streams", Gauge, "open discovery streams", "`protocol` (`delta`, `sotw`)"),
    metric(
        "mesh_control_proxies",
        Gauge,
        "open discovery streams by how far their clients are with the newest configuration, looked at every 2 s",
        "`state` (`synced`; `pending`: there is something that is not acknowledged; `rejected`: the client stands by an older one)",
    ),
    metric(
        "mesh_control_oldest_push_seconds",
        Gauge,
        "how long the oldest response that no client has answered has been out, looked at every 2 s; 0 if there is none",
        "",
    ),
    metric("mesh_control_xds_pushes_total", Counter, "discovery responses sent", "`type`"),
    metric("mesh_control_xds_nacks_total", Counter, "responses that a proxy rejected", "`type`"),
    metric(
        "mesh_control_push_duration_seconds",
        Histogram,
        "from the commit of a change to its acknowledgement by a proxy",
        "`type`",
    ),
    metric("mesh_control_snapshot_build_seconds", Histogram, "time to make a snapshot of the store's objects", ""),
    metric("mesh_control_snapshot_revision", Gauge, "revision of the newest snapshot", ""),
    metric("mesh_control_connections", Gauge, "open connections", "`listener`"),
    metric(
        "mesh_control_connections_refused_total",
        Counter,
        "connections closed before they were served",
        "`listener`, `reason` (`limit`, `handshake`, `identity`: over TLS, neither a certificate nor a good token within 10 s)",
    ),
    metric("mesh_control_certificates_issued_total", Counter, "workload certificates signed", ""),
    metric(
        "mesh_control_ca_certificate_expiry_timestamp_seconds",
        Gauge,
        "end of validity of the authority's own certificates, in Unix seconds",
        "`certificate` (`root`, `intermediate`)",
    ),
    metric(
        "mesh_control_jwks_fetches_total",
        Counter,
        "attempts to fetch the keys of an issuer of tokens",
        "`result` (`ok`, `failed`)",
    ),
    metric(
        "mesh_control_audit_log_dropped_total",
        Counter,
        "changes that were made and could not be written to the audit log",
        "",
    ),
    metric("mesh_control_workloads", Gauge, "workloads registered by their proxies", ""),
    metric("mesh_build_info", Gauge, "always 1", "`component`, `version`"),
];

/// Of the process, under the names that clients of Prometheus agree on.
pub const PROCESS: [Metric; 4] = [
    metric("process_resident_memory_bytes", Gauge, "resident memory", ""),
    metric("process_open_fds", Gauge, "open file descriptors", ""),
    metric("process_cpu_seconds_total", Counter, "user and system time, in whole seconds", ""),
    metric("process_start_time_seconds", Gauge, "when it was started, in Unix seconds", ""),
];

/// All that a proxy has.
pub fn of_proxy() -> impl Iterator<Item = Metric> {
    REQUESTS.into_iter().chain(UDP).chain(PROXY).chain(PROCESS)
}

/// All that the control plane has.
pub fn of_control() -> impl Iterator<Item = Metric> {
    CONTROL.into_iter().chain(PROCESS)
}

impl Kind {
    /// As Prometheus' text format says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Counter => "counter",
            Gauge => "gauge",
            Histogram => "histogram",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    const WRITE: &str = "MESH_WRITE_DOCS=1 cargo test -p mesh-common metrics";

    fn table(metrics: &[Metric]) -> String {
        let row = |m: &Metric| {
            format!("| `{}` | {} | {} | {} |\n", m.name, m.kind.as_str(), m.text, m.labels).replace("|  |", "| |")
        };
        let rows: String = metrics.iter().map(row).collect();
        format!("| Metric | Kind | What | Labels |\n|---|---|---|---|\n{rows}")
    }

    #[test]
    fn the_reference_is_made_from_the_list() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/metrics.md");
        let written = std::fs::read_to_string(&file).unwrap();
        let mut expected = written.clone();
        for (name, metrics) in [
            ("requests", &REQUESTS[..]),
            ("udp", &UDP),
            ("proxy", &PROXY),
            ("control", &CONTROL),
            ("process", &PROCESS),
        ] {
            let begin = format!("<!-- {name}: made by `{WRITE}` -->\n");
            let (before, rest) = expected.split_once(&begin).unwrap_or_else(|| panic!("there is no {begin}"));
            let (_, after) = rest.split_once("<!-- end -->").expect("there is no end");
            expected = format!("{before}{begin}\n{}\n<!-- end -->{after}", table(metrics));
        }
        if std::env::var_os("MESH_WRITE_DOCS").is_some() {
            std::fs::write(&file, &expected).unwrap();
        } else {
            assert!(written == expected, "docs/reference/metrics.md is not what the list says; run {WRITE}");
        }
    }

    #[test]
    fn names_are_those_of_prometheus() {
        let all: Vec<Metric> = of_proxy().chain(CONTROL).collect();
        let names: BTreeSet<&str> = all.iter().map(|m| m.name).collect();
        assert_eq!(names.len(), all.len(), "a name is there twice");
        for Metric { name, kind, .. } in all {
            assert!(name.starts_with("mesh_") || name.starts_with("process_"), "{name}");
            assert_eq!(name.ends_with("_total"), kind == Counter, "{name}");
        }
    }
}
