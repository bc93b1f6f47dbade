//! What the audit log has of requests, over real sockets.

use super::smuggling::Witness;
use super::*;
use crate::config::{Condition, Gate, GateAction, Policy, StringMatch};
use crate::telemetry::{AuditOptions, AuditTo};

fn gate(action: GateAction, name: &str, path: &str) -> Gate {
    let permissions = vec![Condition::Path(StringMatch::Prefix(path.to_owned()))];
    let policy = Policy { name: name.to_owned(), permissions, principals: vec![Condition::Any] };
    Gate { action, dry_run: false, policies: vec![policy] }
}

/// What a server was sent and what the log has, after requests with these heads: one for each decision.
async fn audited(gates: Vec<Gate>, direction: Direction, allowed: f64, heads: &[&str]) -> (Vec<String>, String) {
    let witness = Witness::new().await;
    let resources = [
        Resource::Cluster(Arc::new(cluster("app", UpstreamHttp::Http1))),
        Resource::Endpoints(endpoints("app", vec![endpoint(witness.app.address)])),
        Resource::Routes(Arc::new(to(forward(&[("app", 1)])))),
    ];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    let file = AuditTo::File { path: path.clone(), max_bytes: 1 << 20, keep: 1 };
    let telemetry =
        TelemetryOptions { audit_log: Some(AuditOptions { to: file, allowed }), ..TelemetryOptions::default() };
    let downstream = Downstream { direction, ..downstream() };
    let authorization = Authorization { gates };
    let options = ProxyOptions { downstream, telemetry, authorization, ..ProxyOptions::default() };
    let proxy = Proxy::new(resources, options).await;
    for head in heads {
        let mut stream = proxy.raw().await;
        stream.write_all(head.as_bytes()).await.unwrap();
        read_until(&mut stream, "\r\n\r\n").await;
    }
    proxy.ctx.telemetry.flush(Duration::from_secs(20));
    (witness.seen(), std::fs::read_to_string(path).unwrap())
}

const HEAD: &str = "HEAD /admin/x?access_token=s3cret1&a=b HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer s3cret2\r\nCookie: sid=s3cret3\r\n\
     Proxy-Authorization: Basic s3cret4\r\nX-Api-Key: s3cret5\r\nX-Request-Id: r-1\r\nReferer: http://a/?t=s3cret6\r\n\
     User-Agent: s3cret7\r\n\r\n";

#[tokio::test]
async fn credentials_are_never_in_the_audit_log() {
    let gates = vec![gate(GateAction::Audit, "a/all[0]", "/"), gate(GateAction::Deny, "a/no[0]", "/admin")];
    let open = HEAD.replace("/admin", "/open");
    let (seen, log) = audited(gates, Direction::Inbound, 1.0, &[HEAD, &open]).await;
    // They do reach who is asked.
    assert_eq!(seen.len(), 1, "{seen:?}");
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let shown = |line: &serde_json::Value| {
        ["verdict", "path", "audit_policy", "policy", "request_id"].map(|field| line[field].as_str().map(str::to_owned))
    };
    let expected = |verdict: &str, path: &str, policy: Option<&str>| {
        [Some(verdict), Some(path), Some("a/all[0]"), policy, Some("r-1")].map(|it| it.map(str::to_owned))
    };
    assert_eq!(lines.len(), 2, "{log}");
    assert_eq!(shown(&lines[0]), expected("denied", "/admin/x", Some("a/no[0]")));
    assert_eq!(shown(&lines[1]), expected("allowed", "/open/x", None));
    assert!(!log.contains("s3cret") && !log.contains("access_token"), "{log}");
}

#[tokio::test]
async fn what_the_application_asks_for_is_decided_elsewhere() {
    let (_, log) = audited(Vec::new(), Direction::Outbound, 1.0, &[HEAD]).await;
    assert_eq!(log, "");
    let (_, log) = audited(Vec::new(), Direction::Inbound, 1.0, &[HEAD]).await;
    assert!(log.contains("\"verdict\":\"allowed\"") && log.contains("\"sampled\":true"), "{log}");
    let (_, log) = audited(Vec::new(), Direction::Inbound, 0.0, &[HEAD]).await;
    assert_eq!(log, "");
    // Policies for what goes out hold too, if another control plane has such.
    let gates = vec![gate(GateAction::Deny, "a/no[0]", "/admin")];
    let (seen, log) = audited(gates, Direction::Outbound, 0.0, &[HEAD]).await;
    assert_eq!(seen, [""; 0]);
    assert!(log.contains("\"direction\":\"outbound\",\"verdict\":\"denied\""), "{log}");
}
