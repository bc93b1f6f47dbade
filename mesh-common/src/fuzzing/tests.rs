use proptest::prelude::*;

use super::damaged::damaged;

const OBJECTS: [&str; 5] = [
    "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: reviews, namespace: shop, labels: {a: b}}
spec:
  parentRefs: [{group: '', kind: Service, name: reviews, port: 9080}]
  hostnames: [reviews, '*.shop']
  rules:
  - matches: [{path: {type: PathPrefix, value: /a}, headers: [{name: x, value: y}], method: GET}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}]
    timeouts: {request: 1s, backendRequest: 500ms}
    backendRefs: [{name: reviews-v1, port: 9080, weight: 90}, {name: reviews-v2, port: 9080, weight: 10}]
",
    "apiVersion: meshctl.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: reviews}
spec:
  targetRefs: [{kind: Service, name: reviews}]
  loadBalancer: {policy: Random}
  timeouts: {request: 1m30s, idle: 0s}
  retries: {attempts: 3, on: ['503', reset], backoff: {base: 10ms, max: 1s}, budget: {percent: 20}}
  limits: {requests: {rate: 5, per: 1m, burst: 9, by: Header, header: x-user}}
",
    "apiVersion: meshctl.dev/v1alpha1
kind: FaultInjection
metadata: {name: slow}
spec:
  targetRefs: [{kind: Service, name: reviews}]
  from: [{service: web}]
  faults: [{percent: 0.5, delay: {duration: 2s}}, {percent: 50, abort: {httpStatus: 503}, match: {headers: [{name: a, value: b}]}}]
  expiresAt: 2026-01-31T12:00:00Z
",
    "apiVersion: v1\nkind: List\nitems:\n- &a {apiVersion: v1, kind: Service, metadata: {name: b}, spec: {ports: [{port: 80, targetPort: web}]}}\n- *a\n",
    "apiVersion: meshctl.dev/v1alpha1
kind: WorkloadEntry
metadata: {name: reviews-1}
spec: {service: reviews, version: v1, serviceAccount: reviews, addresses: [10.0.0.1, 'fd00::1'], ports: [{port: 9080, protocol: http}]}
",
];
const WORDS: [&str; 7] = [
    "spiffe://mesh.local/ns/default/sa/reviews",
    "mesh1.0123456789abcdef.00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff.00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
    "1h2m3s4ms",
    "99999h",
    "1h99999m",
    "0s",
    "1.5s",
];
const JSON: [&str; 2] = [
    r#"{"app":{"livez":{"do":{"http":{"port":8080,"path":"/healthz","headers":[["a","b"]]}},"timeoutSeconds":1},"readyz":{"do":{"grpc":{"port":9}},"timeoutSeconds":3}}}"#,
    r#"{"meshctl.dev/interception":"cni","meshctl.dev/exclude-outbound-ports":"1,65535","meshctl.dev/exclude-outbound-cidrs":"10.0.0.0/8,fd00::/8"}"#,
];

fn bytes(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

proptest! {
    #[test]
    fn resources(input in damaged(bytes(&OBJECTS))) {
        super::resources(&input);
    }

    #[test]
    fn words(input in damaged(bytes(&WORDS))) {
        super::words(&input);
    }

    #[test]
    fn json(input in damaged(bytes(&JSON))) {
        super::json(&input);
    }
}

/// In half of the stack that a program's main thread has: unoptimized, a level takes some 60 KiB of it.
#[test]
fn small_texts_do_not_become_large() {
    let nested = |open: &str, close: &str| open.repeat(100_000) + &close.repeat(100_000);
    let laugh =
        |(before, name): (char, char)| format!("{name}: &{name} [{}]\n", vec![format!("*{before}"); 9].join(","));
    let laughs =
        "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned() + &('a'..'h').zip('b'..).map(laugh).collect::<String>();
    let texts = [nested("[", "]"), nested("{a: ", "}"), nested("- ", ""), nested("{\"a\":", "}"), laughs];
    let look = move || {
        for text in texts {
            assert!(crate::resource::parse_yaml("input", &text).is_err());
            super::json(text.as_bytes());
        }
    };
    std::thread::Builder::new().stack_size(4 << 20).spawn(look).unwrap().join().unwrap();
}

/// Else the tests above would look at less than they seem to.
#[test]
fn what_is_damaged_was_valid() {
    for text in OBJECTS {
        crate::resource::parse_yaml("input", text).unwrap();
    }
    assert!(WORDS[0].parse::<crate::identity::Identity>().is_ok());
    assert!(WORDS[1].parse::<crate::token::JoinToken>().is_ok());
    assert!(WORDS[2].parse::<crate::resource::Duration>().is_ok());
    assert!(serde_json::from_str::<crate::inject::Probes>(JSON[0]).is_ok());
}
