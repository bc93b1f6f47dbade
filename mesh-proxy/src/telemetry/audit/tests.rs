use http::{HeaderMap, HeaderValue};
use mesh_common::identity::Identity;
use serde_json::Value;

use super::*;
use crate::authorization::Refusal;
use crate::listen::Direction;
use crate::telemetry::Protocol;

const LONG: Duration = Duration::from_secs(20);

fn downstream() -> Downstream {
    Downstream {
        identity: Identity::new("mesh.local", "shop", "web").ok().map(Into::into),
        tls: true,
        ..Downstream::new("10.0.0.9:40000".parse().unwrap(), "10.0.0.5:9080".parse().unwrap(), Direction::Inbound)
    }
}

fn log(allowed: f64) -> (AuditLog, PathBuf, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    let to = AuditTo::File { path: path.clone(), max_bytes: 1 << 20, keep: 1 };
    let local = LocalWorkload { workload: "reviews-1".into(), service: "reviews".into(), ..LocalWorkload::default() };
    (AuditLog::start(AuditOptions { to, allowed }, local).unwrap(), path, dir)
}

fn lines(log: &AuditLog, path: &std::path::Path) -> Vec<Value> {
    log.flush(LONG);
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn refusals_trials_and_audits_are_always_kept_and_others_by_their_share() {
    let nothing = Verdict::default();
    let kept = [
        Verdict { refused: Some(Refusal::NotAllowed), ..nothing },
        Verdict { would_refuse: Some(Refusal::Denied("a")), ..nothing },
        Verdict { audited_by: Some("a"), ..nothing },
    ];
    let (none, ..) = log(0.0);
    let (all, ..) = log(1.0);
    let (some, ..) = log(0.25);
    for verdict in &kept {
        assert!(none.wants(verdict) && all.wants(verdict));
    }
    let taken = |log: &AuditLog| (0..4000).filter(|_| log.wants(&nothing)).count();
    assert_eq!((taken(&none), taken(&all)), (0, 4000));
    assert!((800..1200).contains(&taken(&some)));
}

#[test]
fn a_line_says_who_wanted_what_and_what_decided() {
    let (log, path, _dir) = log(0.0);
    let mut headers = HeaderMap::new();
    headers.insert("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap());
    let long = format!("/{}ü", "x".repeat(MAX - 2));
    let request = Asked {
        method: &Method::POST,
        authority: "reviews:9080",
        path: &long,
        protocol: Protocol::Http2,
        request_id: "r-1",
        headers: &headers,
    };
    let downstream = downstream();
    let write = |event, request, verdict: &Verdict<'_>| {
        log.write(&Decision { event, downstream: &downstream, request, verdict, config_version: "7" });
    };
    let denied = Verdict {
        refused: Some(Refusal::Denied("shop/no[0]")),
        would_refuse: Some(Refusal::NotAllowed),
        audited_by: Some("shop/all[1]"),
        ..Verdict::default()
    };
    write(Event::Request, Some(request), &denied);
    write(Event::Stream, None, &Verdict { allowed_by: Some("shop/web[0]"), ..Verdict::default() });
    write(Event::OpenStream, None, &Verdict { refused: Some(Refusal::Otherwise("not taken")), ..Verdict::default() });
    let lines = lines(&log, &path);
    let time: Timestamp = lines[0]["time"].as_str().unwrap().parse().unwrap();
    assert!(Timestamp::now().duration_since(time).as_secs() < 60, "{time}");
    let mut first = lines[0].clone();
    first.as_object_mut().unwrap().remove("time");
    let expected = serde_json::json!({
        "event": "request",
        "direction": "inbound",
        "verdict": "denied",
        "policy": "shop/no[0]",
        "reason": "denied by the policy shop/no[0]",
        "dry_run_verdict": "denied",
        "audit_policy": "shop/all[1]",
        "method": "POST",
        "authority": "reviews:9080",
        "path": &long[..MAX - 1],
        "protocol": "HTTP/2",
        "request_id": "r-1",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "downstream_peer": "spiffe://mesh.local/ns/shop/sa/web",
        "downstream_remote_address": "10.0.0.9:40000",
        "downstream_local_address": "10.0.0.5:9080",
        "security": "mutual_tls",
        "workload": "reviews-1",
        "namespace": "",
        "service": "reviews",
        "port": 9080,
        "config_version": "7",
    });
    assert_eq!(first, expected);
    assert_eq!((&lines[1]["verdict"], &lines[1]["policy"]), (&"allowed".into(), &"shop/web[0]".into()));
    assert_eq!((&lines[1]["sampled"], &lines[1]["method"]), (&true.into(), &Value::Null));
    assert_eq!((&lines[2]["event"], &lines[2]["reason"]), (&"open_stream".into(), &"not taken".into()));
    assert_eq!(lines[2]["policy"], Value::Null);
}

/// Bytes of a path in a line.
const MAX: usize = 2048;

#[test]
fn what_clients_choose_cannot_break_a_line() {
    let (log, path, _dir) = log(0.0);
    let mut headers = HeaderMap::new();
    headers.insert("traceparent", HeaderValue::from_static("00-\"}\\-x-01"));
    let request = Asked {
        method: &Method::GET,
        authority: "a\"b",
        path: "/a\"}\u{2028}\r\nx",
        protocol: Protocol::Http11,
        request_id: "\u{1}\"",
        headers: &headers,
    };
    let verdict = Verdict { refused: Some(Refusal::NotAllowed), ..Verdict::default() };
    let (event, downstream) = (Event::Request, downstream());
    log.write(&Decision {
        event,
        downstream: &downstream,
        request: Some(request),
        verdict: &verdict,
        config_version: "",
    });
    let lines = lines(&log, &path);
    assert_eq!(lines.len(), 1);
    assert_eq!((&lines[0]["path"], &lines[0]["trace_id"]), (&"/a\"}\u{2028}\r\nx".into(), &Value::Null));
}

#[test]
fn a_full_disk_costs_lines_and_nobody_s_time() {
    let to = AuditTo::File { path: "/dev/full".into(), max_bytes: 1 << 20, keep: 1 };
    let log = AuditLog::start(AuditOptions { to, allowed: 0.0 }, LocalWorkload::default()).unwrap();
    let (downstream, verdict) = (downstream(), Verdict::default());
    let decision = Decision {
        event: Event::Stream,
        downstream: &downstream,
        request: None,
        verdict: &verdict,
        config_version: "",
    };
    for _ in 0..10 {
        log.write(&decision);
    }
    log.flush(LONG);
    assert_eq!(log.dropped(), 10);
}
