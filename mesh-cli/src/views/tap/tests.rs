use mesh_common::proto::telemetry::{Reporter, TapHeader, TapTry};

use super::*;

fn reporter(service: &str) -> Option<Reporter> {
    Some(Reporter {
        workload: format!("{service}-1"),
        service: format!("{service}.shop.svc.cluster.local"),
        version: "v1".into(),
        identity: format!("spiffe://mesh.local/ns/shop/sa/{service}"),
    })
}

fn event() -> TapEvent {
    TapEvent {
        reporter: reporter("web"),
        direction: Direction::Outbound.into(),
        protocol: Protocol::Http.into(),
        began_unix_us: 1_893_553_445_250_000,
        duration_us: 34_000,
        first_byte_us: 33_000,
        service: "reviews.shop.svc.cluster.local".into(),
        method: "GET".into(),
        path: "/api/1".into(),
        version: "HTTP/1.1".into(),
        status: 200,
        route: "HTTPRoute/shop/reviews/1".into(),
        matched: "header end-user=jason".into(),
        cluster: "reviews-v2.shop.svc.cluster.local:9080".into(),
        weight: 10,
        weights: 100,
        workload: "reviews-v2-x".into(),
        workload_version: "v2".into(),
        endpoint: "10.0.0.9:9080".into(),
        attempts: 2,
        tries: vec![
            TapTry { endpoint: "10.0.0.8:9080".into(), flags: "UF".into(), duration_us: 1_000, ..TapTry::default() },
            TapTry { endpoint: "10.0.0.9:9080".into(), status: 200, duration_us: 30_000, ..TapTry::default() },
        ],
        faults: vec!["delay".into()],
        mutual_tls: true,
        request_id: "r-7".into(),
        ..TapEvent::default()
    }
}

fn server() -> TapEvent {
    TapEvent {
        reporter: reporter("reviews"),
        direction: Direction::Inbound.into(),
        caller: "spiffe://mesh.local/ns/shop/sa/web".into(),
        duration_us: 20_000,
        status: 200,
        verdict: TapVerdict::Allowed.into(),
        policy: "shop/readers[0]".into(),
        policy_on_trial: "shop/trial[0]".into(),
        ..TapEvent::default()
    }
}

fn shown(seen: &Seen) -> String {
    line(seen, "shop", false).iter().map(|cell| cell.text.as_str()).collect::<Vec<_>>().join("  ")
}

#[test]
fn a_line_says_where_a_request_went_and_why() {
    let seen = Seen { event: event(), server: Some(server()) };
    let expected = "03:04:05.250  out  web -> reviews  GET /api/1  200  34 ms  by HTTPRoute/shop/reviews/1 (header \
                    end-user=jason; 10 of 100)  to reviews-v2-x v2 10.0.0.9:9080  2 tries: 10.0.0.8:9080 UF, \
                    10.0.0.9:9080 200  fault: delay  allowed by shop/readers[0]  would be refused by shop/trial[0]";
    assert_eq!(shown(&seen), expected);
    let wide = line(&seen, "shop", true);
    let wide: Vec<_> = wide.iter().map(|cell| cell.text.as_str()).collect();
    assert!(
        wide.contains(&"request r-7") && wide.contains(&"mutual TLS") && wide.contains(&"seen by web-1"),
        "{wide:?}"
    );
}

#[test]
fn a_refusal_has_the_servers_reason() {
    let refused =
        TapEvent { status: 403, route: String::new(), attempts: 1, tries: Vec::new(), faults: Vec::new(), ..event() };
    let denied = TapEvent {
        status: 403,
        flags: "UAEX".into(),
        detail: "not allowed: denied by the policy shop/no-admin[0]".into(),
        verdict: TapVerdict::Denied.into(),
        policy: "shop/no-admin[0]".into(),
        policy_on_trial: String::new(),
        ..server()
    };
    let text = shown(&Seen { event: refused, server: Some(denied.clone()) });
    let end = "403  34 ms  to reviews-v2-x v2 10.0.0.9:9080  denied by shop/no-admin[0]  [at the server: UAEX not \
               allowed: denied by the policy shop/no-admin[0]]";
    assert!(text.ends_with(end), "{text}");
    // Alone, as of a caller without a proxy.
    let text = shown(&Seen { event: TapEvent { caller: String::new(), ..denied }, server: None });
    assert!(
        text.contains("  in   unknown -> reviews  ") && text.contains("  UAEX  denied by shop/no-admin[0]"),
        "{text}"
    );
}

#[test]
fn what_clients_choose_does_nothing_to_a_terminal() {
    let header = |value: &str| TapHeader { name: "x-note".into(), value: value.into(), response: true };
    let evil = TapEvent {
        path: "/\u{1b}[2J\r\n\u{202e}x".into(),
        method: "G\u{7}T".into(),
        headers: vec![header("a\u{9b}31m")],
        ..event()
    };
    let strange = TapEvent { service: "rev\u{1b}[2Jiews.shop.svc.cluster.local".into(), ..event() };
    assert_eq!(name(&Seen { event: strange, server: None }, "shop"), r"service/rev\u{1b}[2Jiews");
    let text = shown(&Seen { event: evil, server: None });
    assert!(!text.chars().any(|c| c.is_control() || is_invisible(c)), "{text:?}");
    assert!(text.contains(r"/\u{1b}[2J\r\n\u{202e}x") && text.contains(r"< x-note: a\u{9b}31m"), "{text}");
}

#[test]
fn programs_get_all_of_it_by_name() {
    let header = |name: &str, value: &str, response| TapHeader { name: name.into(), value: value.into(), response };
    let headers = vec![header("end-user", "jason", false), header("x-version", "v2", true)];
    let seen = Seen { event: TapEvent { headers, ..event() }, server: Some(server()) };
    let json = serde_json::to_value(View::of(&seen)).unwrap();
    for (pointer, value) in [
        ("/time", serde_json::json!("2030-01-02T03:04:05.250000Z")),
        ("/direction", "outbound".into()),
        ("/seenBy", "web-1".into()),
        ("/caller", "web.shop.svc.cluster.local".into()),
        ("/service", "reviews.shop.svc.cluster.local".into()),
        ("/method", "GET".into()),
        ("/status", 200.into()),
        ("/durationMs", 34.0.into()),
        ("/firstByteMs", 33.0.into()),
        ("/route/name", "HTTPRoute/shop/reviews/1".into()),
        ("/route/matched", "header end-user=jason".into()),
        ("/backend/weight", 10.into()),
        ("/backend/ofWeights", 100.into()),
        ("/backend/version", "v2".into()),
        ("/backend/endpoint", "10.0.0.9:9080".into()),
        ("/attempts", 2.into()),
        ("/tries/0/flags", "UF".into()),
        ("/tries/1/status", 200.into()),
        ("/faults/0", "delay".into()),
        ("/policy/verdict", "allowed".into()),
        ("/policy/name", "shop/readers[0]".into()),
        ("/policy/onTrial", "shop/trial[0]".into()),
        ("/mutualTls", true.into()),
        ("/requestId", "r-7".into()),
        ("/requestHeaders/end-user/0", "jason".into()),
        ("/responseHeaders/x-version/0", "v2".into()),
        ("/server/workload", "reviews-1".into()),
    ] {
        assert_eq!(json.pointer(pointer), Some(&value), "{pointer} of {json:#}");
    }
    let stream = TapEvent { protocol: Protocol::Tcp.into(), flags: "UF".into(), ..event() };
    let json = serde_json::to_value(View::of(&Seen { event: stream, server: None })).unwrap();
    assert_eq!((json.get("method"), json.get("policy"), &json["flags"]), (None, None, &"UF".into()));
}
