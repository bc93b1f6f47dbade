use super::super::{Object, parse_yaml};
use super::validate;

fn object(text: &str) -> Object {
    let value: serde_json::Value = serde_saphyr::from_str(text).unwrap();
    Object::from_json(&value.to_string()).unwrap()
}

fn paths(text: &str) -> Vec<String> {
    validate(&object(text)).into_iter().map(|e| e.path).collect()
}

fn route(rule: &str) -> String {
    let mut text = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\nspec:\n  parentRefs: [{group: '', kind: Service, name: s}]\n  rules:\n  - ".to_owned();
    text.push_str(&rule.replace('\n', "\n    "));
    text
}

#[test]
fn takes_a_full_route() {
    let text = route(
        "matches: [{path: {type: Exact, value: /a}, method: GET, headers: [{name: a, value: b}], queryParams: [{name: q, value: '.*', type: RegularExpression}]}]
filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x, value: why}], remove: [z]}}, {type: RequestMirror, requestMirror: {backendRef: {name: m, port: 80}, percent: 5}}]
backendRefs: [{name: s-v1, port: 80, weight: 90}, {name: s-v2, port: 80, weight: 10}]
timeouts: {request: 10s, backendRequest: 2s}
retry: {codes: [503], attempts: 3, backoff: 100ms}",
    );
    assert_eq!(validate(&object(&text)), []);
}

#[test]
fn refuses_wrong_rules_by_path() {
    for (rule, path) in [
        ("matches: [{path: {value: a}}]", "matches[0].path.value"),
        ("matches: [{path: {value: /a//b}}]", "matches[0].path.value"),
        ("matches: [{path: {value: /a/..}}]", "matches[0].path.value"),
        ("matches: [{path: {type: RegularExpression, value: '('}}]", "matches[0].path.value"),
        ("matches: [{headers: [{name: 'a b', value: c}]}]", "matches[0].headers[0].name"),
        ("matches: [{headers: [{name: a, value: c}, {name: A, value: d}]}]", "matches[0].headers[1].name"),
        (
            "matches: [{queryParams: [{name: a, value: '[', type: RegularExpression}]}]",
            "matches[0].queryParams[0].value",
        ),
        ("filters: [{type: CORS}]", "filters[0].cors"),
        ("filters: [{type: CORS, cors: {allowOrigins: ['https://a/b']}}]", "filters[0].cors.allowOrigins[0]"),
        ("filters: [{type: CORS, cors: {allowOrigins: ['https://a', '*']}}]", "filters[0].cors.allowOrigins[1]"),
        (
            "filters: [{type: CORS, cors: {allowOrigins: ['https://a', 'HTTPS://A']}}]",
            "filters[0].cors.allowOrigins[1]",
        ),
        ("filters: [{type: CORS, cors: {allowMethods: [get]}}]", "filters[0].cors.allowMethods[0]"),
        ("filters: [{type: CORS, cors: {allowHeaders: ['a b']}}]", "filters[0].cors.allowHeaders[0]"),
        ("filters: [{type: CORS, cors: {maxAge: 0}}]", "filters[0].cors.maxAge"),
        (
            "filters: [{type: ExtensionRef, extensionRef: {group: x, kind: Other, name: z}}]",
            "filters[0].extensionRef.kind",
        ),
        (
            "filters: [{type: ExtensionRef, extensionRef: {group: meshctl.dev, kind: DirectResponse, name: a}}]\nbackendRefs: [{name: a, port: 1}]",
            "backendRefs",
        ),
        ("filters: [{type: RequestMirror}]", "filters[0].requestMirror"),
        ("filters: [{type: URLRewrite, urlRewrite: {hostname: A}}]", "filters[0].urlRewrite.hostname"),
        (
            "filters: [{type: RequestRedirect, requestRedirect: {statusCode: 200}}]",
            "filters[0].requestRedirect.statusCode",
        ),
        ("filters: [{type: RequestRedirect, requestRedirect: {}}]\nbackendRefs: [{name: a, port: 1}]", "backendRefs"),
        (
            "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: Host, value: a}]}}]",
            "filters[0].requestHeaderModifier.set[0].name",
        ),
        (
            "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: \"b\\r\\nc\"}]}}]",
            "filters[0].requestHeaderModifier.set[0].value",
        ),
        (
            "matches: [{path: {type: Exact, value: /a}}]\nfilters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}]",
            "filters[0]",
        ),
        ("backendRefs: [{name: a}]", "backendRefs[0].port"),
        ("backendRefs: [{name: a, port: 1, kind: Bucket}]", "backendRefs[0].kind"),
        ("backendRefs: [{name: a, port: 1, weight: 1000001}]", "backendRefs[0].weight"),
        (
            "backendRefs: [{name: a, port: 1, filters: [{type: RequestRedirect, requestRedirect: {}}]}]",
            "backendRefs[0].filters[0].type",
        ),
        ("timeouts: {request: 1s, backendRequest: 2s}", "timeouts.backendRequest"),
        ("retry: {codes: [200]}", "retry.codes[0]"),
        ("sessionPersistence: {type: Cookie}", "sessionPersistence"),
    ] {
        assert_eq!(paths(&route(rule)), [format!("spec.rules[0].{path}")], "{rule}");
    }
}

#[test]
fn a_route_for_a_gateway_is_refused_with_what_to_write() {
    let text = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\nspec: {parentRefs: [{name: s}]}";
    let errors = validate(&object(text));
    assert!(errors[0].message.contains("kind: Service"), "{errors:?}");
}

#[test]
fn session_affinity_is_by_address_or_not_at_all() {
    let service = |affinity: &str| {
        format!("apiVersion: v1\nkind: Service\nmetadata: {{name: s}}\nspec: {{ports: [{{port: 80}}], {affinity}}}")
    };
    let config = "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 10800}}";
    for good in ["sessionAffinity: None", "sessionAffinity: ClientIP", config] {
        assert!(paths(&service(good)).is_empty(), "{good}");
    }
    assert_eq!(paths(&service("sessionAffinity: Cookie")), ["spec.sessionAffinity"]);
}

#[test]
fn policies() {
    let header = "apiVersion: meshctl.dev/v1alpha1\nmetadata: {name: p}\n";
    for (body, path) in [
        ("kind: DirectResponse\nspec: {status: 99}", "spec.status"),
        ("kind: DirectResponse\nspec: {status: 204, body: a}", "spec.body"),
        ("kind: DirectResponse\nspec: {status: 200, body: a, contentType: text}", "spec.contentType"),
        ("kind: DirectResponse\nspec: {status: 200, contentType: text/plain}", "spec.contentType"),
        ("kind: TrafficPolicy\nspec: {timeouts: {perTry: 1s}, retries: {hedge: {after: 1s}}}", "spec.retries.hedge"),
        ("kind: FaultInjection\nspec: {targetRefs: [], faults: [{percent: 1, reset: {}}]}", "spec.targetRefs"),
        (
            "kind: FaultInjection\nspec: {targetRefs: [{kind: Service, name: a}], faults: [{percent: 101, reset: {}}]}",
            "spec.faults[0].percent",
        ),
        (
            "kind: FaultInjection\nspec: {targetRefs: [{kind: Service, name: a}], faults: [{percent: 0.00001, reset: {}}]}",
            "spec.faults[0].percent",
        ),
        (
            "kind: FaultInjection\nspec: {targetRefs: [{kind: Service, name: a}], faults: [{percent: 1}]}",
            "spec.faults[0]",
        ),
        (
            "kind: FaultInjection\nspec: {targetRefs: [{kind: Service, name: a}], faults: [{percent: 1, reset: {}, throttle: {rate: 64Ki}}]}",
            "spec.faults[0]",
        ),
        (
            "kind: FaultInjection\nspec: {targetRefs: [{kind: Service, name: a}], faults: [{percent: 1, abort: {httpStatus: 99}}]}",
            "spec.faults[0].abort.httpStatus",
        ),
        (
            "kind: FaultInjection\nspec: {targetRefs: [{kind: Service, name: a}], faults: [{percent: 1, delay: {duration: 0s}}]}",
            "spec.faults[0].delay.duration",
        ),
        (
            "kind: FaultInjection\nspec: {targetRefs: [{kind: Service, name: a}], from: [{}], faults: [{percent: 1, reset: {}}]}",
            "spec.from[0]",
        ),
        (
            "kind: FaultInjection\nspec: {targetRefs: [{kind: Service, name: a}], faults: [{percent: 1, reset: {}}], expiresAt: later}",
            "spec.expiresAt",
        ),
        ("kind: TrafficPolicy\nspec: {targetRefs: [{kind: Pod, name: a}]}", "spec.targetRefs[0].kind"),
        ("kind: TrafficPolicy\nspec: {retries: {on: [sometimes]}}", "spec.retries.on[0]"),
        ("kind: TrafficPolicy\nspec: {retries: {backoff: {base: 2s, max: 1s}}}", "spec.retries.backoff.max"),
        ("kind: TrafficPolicy\nspec: {connectionPool: {maxPending: 0}}", "spec.connectionPool.maxPending"),
        ("kind: TrafficPolicy\nspec: {loadBalancer: {hash: [{header: a}]}}", "spec.loadBalancer.hash"),
        ("kind: TrafficPolicy\nspec: {loadBalancer: {policy: RingHash}}", "spec.loadBalancer.hash"),
        ("kind: TrafficPolicy\nspec: {loadBalancer: {policy: Maglev, hash: [{}]}}", "spec.loadBalancer.hash[0]"),
        (
            "kind: TrafficPolicy\nspec: {loadBalancer: {policy: Maglev, hash: [{header: a, sourceAddress: true}]}}",
            "spec.loadBalancer.hash[0]",
        ),
        (
            "kind: TrafficPolicy\nspec: {loadBalancer: {policy: Maglev, hash: [{header: 'a b'}]}}",
            "spec.loadBalancer.hash[0].header",
        ),
        (
            "kind: TrafficPolicy\nspec: {loadBalancer: {policy: Maglev, hash: [{sourceAddress: false}]}}",
            "spec.loadBalancer.hash[0].sourceAddress",
        ),
        (
            "kind: TrafficPolicy\nspec: {loadBalancer: {policy: Maglev, hash: [{header: a}, {header: a}]}}",
            "spec.loadBalancer.hash[1]",
        ),
        (
            "kind: TrafficPolicy\nspec: {loadBalancer: {policy: Maglev, hash: [{cookie: {name: 'a;b'}}]}}",
            "spec.loadBalancer.hash[0].cookie.name",
        ),
        (
            "kind: TrafficPolicy\nspec: {loadBalancer: {policy: Maglev, hash: [{cookie: {name: a, path: '/; Secure'}}]}}",
            "spec.loadBalancer.hash[0].cookie.path",
        ),
        (
            "kind: TrafficPolicy\nspec: {loadBalancer: {policy: Random, slowStart: {window: 1s}}}",
            "spec.loadBalancer.slowStart",
        ),
        ("kind: TrafficPolicy\nspec: {loadBalancer: {slowStart: {window: 0s}}}", "spec.loadBalancer.slowStart.window"),
        (
            "kind: TrafficPolicy\nspec: {loadBalancer: {slowStart: {window: 1s, aggression: 0}}}",
            "spec.loadBalancer.slowStart.aggression",
        ),
        (
            "kind: TrafficPolicy\nspec: {loadBalancer: {slowStart: {window: 1s, minWeightPercent: 101}}}",
            "spec.loadBalancer.slowStart.minWeightPercent",
        ),
        (
            "kind: TrafficPolicy\nspec: {loadBalancer: {panicThresholdPercent: 101}}",
            "spec.loadBalancer.panicThresholdPercent",
        ),
        (
            "kind: TrafficPolicy\nspec: {loadBalancer: {locality: {failover: [{from: eu/a, to: [us]}]}}}",
            "spec.loadBalancer.locality.failover[0].from",
        ),
        (
            "kind: TrafficPolicy\nspec: {loadBalancer: {locality: {failover: [{from: eu, to: []}]}}}",
            "spec.loadBalancer.locality.failover[0].to",
        ),
        (
            "kind: TrafficPolicy\nspec: {loadBalancer: {locality: {failover: [{from: eu, to: [us, us]}]}}}",
            "spec.loadBalancer.locality.failover[0].to[1]",
        ),
        (
            "kind: TrafficPolicy\nspec: {loadBalancer: {locality: {weights: [{from: eu, to: [{locality: eu, weight: 0}]}]}}}",
            "spec.loadBalancer.locality.weights[0].to",
        ),
        (
            "kind: TrafficPolicy\nspec: {loadBalancer: {locality: {weights: [{from: 'eu//a', to: [{locality: eu, weight: 1}]}]}}}",
            "spec.loadBalancer.locality.weights[0].from",
        ),
        (
            "kind: TrafficPolicy\nspec: {loadBalancer: {locality: {weights: [{from: '*', to: [{locality: eu/*, weight: 1}]}]}}}",
            "spec.loadBalancer.locality.weights[0].to[0].locality",
        ),
        ("kind: TrafficPolicy\nspec: {limits: {requests: {rate: 0}}}", "spec.limits.requests.rate"),
        ("kind: TrafficPolicy\nspec: {limits: {requests: {rate: 1, burst: 1000001}}}", "spec.limits.requests.burst"),
        ("kind: TrafficPolicy\nspec: {limits: {requests: {rate: 1, per: 1500ms}}}", "spec.limits.requests.per"),
        ("kind: TrafficPolicy\nspec: {limits: {requests: {rate: 1, per: 25h}}}", "spec.limits.requests.per"),
        ("kind: TrafficPolicy\nspec: {limits: {requests: {rate: 1, by: Header}}}", "spec.limits.requests.header"),
        ("kind: TrafficPolicy\nspec: {limits: {requests: {rate: 1, header: a}}}", "spec.limits.requests.header"),
        (
            "kind: TrafficPolicy\nspec: {limits: {requests: {rate: 1, by: Header, header: 'a b'}}}",
            "spec.limits.requests.header",
        ),
        ("kind: TrafficPolicy\nspec: {limits: {size: {headers: 65Ki}}}", "spec.limits.size.headers"),
        (
            "kind: TrafficPolicy\nspec: {limits: {bandwidth: {up: 1Mi, perCaller: {up: 2Mi}}}}",
            "spec.limits.bandwidth.perCaller.up",
        ),
        ("kind: TrafficPolicy\nspec: {limits: {connections: {max: 0}}}", "spec.limits.connections.max"),
        ("kind: TrafficPolicy\nspec: {limits: {connections: {perCaller: 0}}}", "spec.limits.connections.perCaller"),
        (
            "kind: TrafficPolicy\nspec: {limits: {concurrentRequests: {max: 1, perCaller: 2}}}",
            "spec.limits.concurrentRequests.perCaller",
        ),
        ("kind: TrafficPolicy\nspec: {connectionPool: {maxRetries: 0}}", "spec.connectionPool.maxRetries"),
        ("kind: TrafficPolicy\nspec: {outlierDetection: {interval: 5s}}", "spec.outlierDetection"),
        ("kind: TrafficPolicy\nspec: {outlierDetection: {consecutive5xx: 0}}", "spec.outlierDetection.consecutive5xx"),
        (
            "kind: TrafficPolicy\nspec: {outlierDetection: {consecutive5xx: 1, maxEjectionPercent: 100}}",
            "spec.outlierDetection.maxEjectionPercent",
        ),
        (
            "kind: TrafficPolicy\nspec: {outlierDetection: {successRate: {deviations: 0}}}",
            "spec.outlierDetection.successRate.deviations",
        ),
        (
            "kind: TrafficPolicy\nspec: {outlierDetection: {successRate: {}, baseEjectionTime: 2s, maxEjectionTime: 1s}}",
            "spec.outlierDetection.maxEjectionTime",
        ),
        ("kind: TrafficPolicy\nspec: {healthCheck: {interval: 5s}}", "spec.healthCheck"),
        ("kind: TrafficPolicy\nspec: {healthCheck: {tcp: {}, grpc: {}}}", "spec.healthCheck"),
        ("kind: TrafficPolicy\nspec: {healthCheck: {tcp: {}, interval: 99ms}}", "spec.healthCheck.interval"),
        ("kind: TrafficPolicy\nspec: {healthCheck: {http: {path: ok}}}", "spec.healthCheck.http.path"),
        ("kind: TrafficPolicy\nspec: {healthCheck: {http: {path: /, host: 'a b'}}}", "spec.healthCheck.http.host"),
        (
            "kind: TrafficPolicy\nspec: {healthCheck: {http: {path: /, statuses: [99]}}}",
            "spec.healthCheck.http.statuses[0]",
        ),
        ("kind: PeerAuthentication\nspec: {ports: {'http': STRICT}}", "spec.ports.http"),
        ("kind: PeerAuthentication\nspec: {}", "spec"),
        ("kind: WorkloadEntry\nspec: {service: a}", "spec.addresses"),
        ("kind: WorkloadEntry\nspec: {service: a, addresses: [0.0.0.0]}", "spec.addresses[0]"),
        ("kind: WorkloadEntry\nspec: {mesh: true}", "spec.serviceAccount"),
        ("kind: WorkloadEntry\nspec: {ports: [{port: 1}, {port: 2, servicePort: 1}]}", "spec.ports[1]"),
        ("kind: WorkloadEntry\nspec: {ports: [{port: 1, protocol: smtp}]}", "spec.ports[0].protocol"),
    ] {
        assert_eq!(paths(&format!("{header}{body}")), [path], "{body}");
    }
}

#[test]
fn positions_of_what_is_refused() {
    let text = format!("---\n{}", route("matches:\n- path: {value: a}\nbackendRefs: [{name: a, port: 1}]"));
    let errors = parse_yaml("r.yaml", &text).unwrap_err();
    assert_eq!(errors.len(), 1);
    assert_eq!(
        errors[0].to_string(),
        "r.yaml:9:14: HTTPRoute r: spec.rules[0].matches[0].path.value: a path begins with `/`"
    );
}

#[test]
fn a_tls_route_names_servers_and_has_one_rule() {
    let route = |hostnames: &str, rules: &str| {
        paths(&format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\nmetadata: {{name: r}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: s}}], hostnames: [{hostnames}], rules: [{rules}]}}"
        ))
    };
    let rule = "{backendRefs: [{name: s, port: 443}]}";
    assert_eq!(route("a.example.com, '*.example.com'", rule), [] as [&str; 0]);
    assert_eq!(route("", rule), ["spec.hostnames"]);
    for wrong in ["A.example.com", "'*'", "'*a.example.com'", "a.*.com", "10.0.0.1", "'fd00::1'", "'a.example.com:443'"]
    {
        assert!(route(wrong, rule).iter().all(|path| path == "spec.hostnames[0]"), "{wrong}");
        assert!(!route(wrong, rule).is_empty(), "{wrong}");
    }
    assert_eq!(route("a", ""), ["spec.rules"]);
    assert_eq!(route("a", &format!("{rule}, {rule}")), ["spec.rules"]);
    assert_eq!(route("a", "{}"), ["spec.rules[0].backendRefs"]);
}

#[test]
fn an_authorization_policy_says_what_can_match() {
    let policy = |spec: &str| {
        paths(&format!(
            "apiVersion: meshctl.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: p}}\nspec: {spec}"
        ))
    };
    for fine in [
        "{}",
        "{action: DENY, rules: [{}]}",
        "{action: AUDIT, rules: [{to: [{methods: [DELETE]}]}]}",
        "{action: CUSTOM, provider: {backend: {name: opa, port: 9191}}, rules: [{}]}",
        "{action: CUSTOM, provider: {backend: {name: opa, namespace: auth, port: 1}, protocol: Http, timeout: 60s, failOpen: true, statusOnError: 503, \
          http: {pathPrefix: /check/v1, includeHeaders: [cookie, 'x-*'], headersToUpstream: ['*-user'], headersToDownstream: [set-cookie]}, \
          includeBody: {maxBytes: 65536, allowPartial: true}}, rules: [{to: [{paths: ['/a*']}]}]}",
        "{action: CUSTOM, provider: {backend: {name: opa, port: 9191}, includeBody: {maxBytes: 1, asBytes: true}}, rules: [{}]}",
        "{overrides: true, rules: [{from: [{identities: ['*', 'spiffe://a/ns/b/*', 'spiffe://a/ns/b/sa/c']}]}]}",
        "{rules: [{from: [{serviceAccounts: [web, shop/web], ipBlocks: [10.0.0.0/8, 'fd00::1']}]}]}",
        "{rules: [{to: [{paths: [/, /a*, '*.css', '/caf%C3%A9/a%2Fb', '/a/{*}/b', '/a/{**}'], hosts: ['*.example.com', web]}]}]}",
        "{rules: [{to: [{grpc: [shop.Ratings, shop.Ratings/Get], headers: [{name: a, values: ['*']}]}]}]}",
    ] {
        assert_eq!(policy(fine), [] as [&str; 0], "{fine}");
    }
    for (spec, path) in [
        ("{targetRefs: [{kind: HTTPRoute, name: r}]}", "spec.targetRefs[0].kind"),
        ("{targetRefs: [{kind: Service, name: s, sectionName: x}]}", "spec.targetRefs[0].sectionName"),
        ("{action: DENY}", "spec.rules"),
        ("{action: DENY, overrides: true, rules: [{}]}", "spec.overrides"),
        ("{dryRun: true, overrides: true}", "spec.overrides"),
        ("{action: AUDIT}", "spec.rules"),
        ("{action: AUDIT, overrides: true, rules: [{}]}", "spec.overrides"),
        ("{action: AUDIT, dryRun: true, rules: [{}]}", "spec.dryRun"),
        ("{action: CUSTOM, rules: [{}]}", "spec.provider"),
        ("{action: DENY, provider: {backend: {name: opa, port: 1}}, rules: [{}]}", "spec.provider"),
        ("{provider: {backend: {name: opa, port: 1}}, rules: [{}]}", "spec.provider"),
        ("{action: CUSTOM, provider: {backend: {name: opa, port: 1}}}", "spec.rules"),
        ("{action: CUSTOM, overrides: true, provider: {backend: {name: opa, port: 1}}, rules: [{}]}", "spec.overrides"),
        ("{action: CUSTOM, dryRun: true, provider: {backend: {name: opa, port: 1}}, rules: [{}]}", "spec.dryRun"),
        ("{rules: [{from: [{}]}]}", "spec.rules[0].from[0]"),
        ("{rules: [{to: [{}]}]}", "spec.rules[0].to[0]"),
        ("{rules: [{from: [{identities: [web]}]}]}", "spec.rules[0].from[0].identities[0]"),
        ("{rules: [{from: [{identities: ['spiffe://*/x*']}]}]}", "spec.rules[0].from[0].identities[0]"),
        ("{rules: [{from: [{namespaces: ['sh*']}]}]}", "spec.rules[0].from[0].namespaces[0]"),
        ("{rules: [{from: [{notIpBlocks: [10.0.0.0/33]}]}]}", "spec.rules[0].from[0].notIpBlocks[0]"),
        ("{rules: [{to: [{ports: [0]}]}]}", "spec.rules[0].to[0].ports[0]"),
        ("{rules: [{to: [{methods: [get]}]}]}", "spec.rules[0].to[0].methods[0]"),
        ("{rules: [{to: [{hosts: ['web:80']}]}]}", "spec.rules[0].to[0].hosts[0]"),
        ("{rules: [{to: [{paths: [a]}]}]}", "spec.rules[0].to[0].paths[0]"),
        ("{rules: [{to: [{paths: ['/a/../b']}]}]}", "spec.rules[0].to[0].paths[0]"),
        ("{rules: [{to: [{paths: ['/a?b']}]}]}", "spec.rules[0].to[0].paths[0]"),
        ("{rules: [{to: [{paths: ['/a%2f']}]}]}", "spec.rules[0].to[0].paths[0]"),
        ("{rules: [{to: [{paths: ['/a%28b']}]}]}", "spec.rules[0].to[0].paths[0]"),
        ("{rules: [{to: [{paths: ['/%']}]}]}", "spec.rules[0].to[0].paths[0]"),
        ("{rules: [{to: [{notPaths: ['/{a}']}]}]}", "spec.rules[0].to[0].notPaths[0]"),
        ("{rules: [{to: [{grpc: [/a.B/C]}]}]}", "spec.rules[0].to[0].grpc[0]"),
        ("{rules: [{to: [{headers: [{name: host, values: [a]}]}]}]}", "spec.rules[0].to[0].headers[0].name"),
        ("{rules: [{to: [{headers: [{name: a}]}]}]}", "spec.rules[0].to[0].headers[0]"),
    ] {
        assert_eq!(policy(spec), [path], "{spec}");
    }
}

#[test]
fn a_custom_policy_says_who_is_asked_and_how() {
    let of_provider = |more: &str| {
        let backend = if more.contains("backend") { "" } else { "backend: {name: opa, port: 9191}, " };
        paths(&format!(
            "apiVersion: meshctl.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: p}}\n\
             spec: {{action: CUSTOM, rules: [{{}}], provider: {{{backend}{more}}}}}"
        ))
    };
    for (more, path) in [
        ("backend: {name: O, port: 1}", "backend.name"),
        ("backend: {name: o, namespace: O, port: 1}", "backend.namespace"),
        ("backend: {name: o, port: 0}", "backend.port"),
        ("timeout: 0s", "timeout"),
        ("timeout: 61s", "timeout"),
        ("statusOnError: 200", "statusOnError"),
        ("statusOnError: 600", "statusOnError"),
        ("includeBody: {maxBytes: 0}", "includeBody.maxBytes"),
        ("includeBody: {maxBytes: 65537}", "includeBody.maxBytes"),
        ("protocol: Http, includeBody: {maxBytes: 1, asBytes: true}", "includeBody.asBytes"),
        ("http: {pathPrefix: /a}", "http"),
        ("protocol: Http, http: {pathPrefix: a}", "http.pathPrefix"),
        ("protocol: Http, http: {pathPrefix: /a/}", "http.pathPrefix"),
        ("protocol: Http, http: {pathPrefix: '/a?b'}", "http.pathPrefix"),
        ("protocol: Http, http: {includeHeaders: ['a b']}", "http.includeHeaders[0]"),
        ("protocol: Http, http: {headersToUpstream: ['*']}", "http.headersToUpstream[0]"),
        ("protocol: Http, http: {headersToUpstream: [Host]}", "http.headersToUpstream[0]"),
        ("protocol: Http, http: {headersToDownstream: ['a*b']}", "http.headersToDownstream[0]"),
    ] {
        assert_eq!(of_provider(more), [format!("spec.provider.{path}")], "{more}");
    }
}

#[test]
fn a_telemetry_says_where_spans_go() {
    let telemetry = |spec: &str| {
        paths(
            &"apiVersion: meshctl.dev/v1alpha1\nkind: Telemetry\nmetadata: {name: p}\nspec: SPEC".replace("SPEC", spec),
        )
    };
    for fine in [
        "{tracing: {enabled: false}}",
        "{targetRefs: [{kind: Service, name: web}], tracing: {samplingPercent: 0.0001}}",
        "{tracing: {samplingPercent: 100, backend: {name: jaeger, namespace: observability, port: 4317, protocol: Zipkin}}}",
    ] {
        assert_eq!(telemetry(fine), [] as [&str; 0], "{fine}");
    }
    for (wrong, path) in [
        ("{}", "spec.tracing"),
        ("{tracing: {}}", "spec.tracing"),
        ("{tracing: {samplingPercent: 101}}", "spec.tracing.samplingPercent"),
        ("{tracing: {samplingPercent: 0.00001}}", "spec.tracing.samplingPercent"),
        ("{tracing: {backend: {name: 'a b', port: 1}}}", "spec.tracing.backend.name"),
        ("{tracing: {backend: {name: a, namespace: '', port: 1}}}", "spec.tracing.backend.namespace"),
        ("{tracing: {backend: {name: a, port: 0}}}", "spec.tracing.backend.port"),
        ("{targetRefs: [{kind: HTTPRoute, name: a}], tracing: {enabled: true}}", "spec.targetRefs[0].kind"),
        (
            "{targetRefs: [{kind: Service, name: a, sectionName: b}], tracing: {enabled: true}}",
            "spec.targetRefs[0].sectionName",
        ),
    ] {
        assert_eq!(telemetry(wrong), [path], "{wrong}");
    }
}

#[test]
fn a_request_authentication_says_whose_tokens_are_good() {
    let policy = |rules: &str| {
        paths(
            &"apiVersion: meshctl.dev/v1alpha1\nkind: RequestAuthentication\nmetadata: {name: p}\nspec: {jwtRules: RULES}"
                .replace("RULES", rules),
        )
    };
    let keys = r#"'{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}'"#;
    for fine in [
        "[{issuer: a, jwksUri: 'https://a/k'}]".to_owned(),
        format!("[{{issuer: a, jwks: {keys}, audiences: [b], clockSkew: 10s, forwardOriginalToken: true}}]"),
        "[{issuer: a, jwksUri: 'https://a/k', fromHeaders: [{name: x, prefix: 'jwt '}], fromParams: [t], fromCookies: [t]}]".to_owned(),
        "[{issuer: a, jwksUri: 'https://a/k', outputClaimToHeaders: [{header: X-User, claim: sub}, {header: x-r, claim: realm.role}]}]".to_owned(),
    ] {
        assert_eq!(policy(&fine), [] as [&str; 0], "{fine}");
    }
    let secret = r#"'{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}'"#;
    let one = |rest: &str| format!("[{{issuer: a, jwksUri: 'https://a/k', {rest}}}]");
    for (wrong, path) in [
        ("[]".to_owned(), "spec.jwtRules"),
        ("[{issuer: a}]".to_owned(), "spec.jwtRules[0]"),
        (format!("[{{issuer: a, jwksUri: 'https://a/k', jwks: {keys}}}]"), "spec.jwtRules[0]"),
        (format!("[{{issuer: a, jwks: {secret}}}]"), "spec.jwtRules[0].jwks"),
        ("[{issuer: a, jwks: '{\"keys\":[]}'}]".to_owned(), "spec.jwtRules[0].jwks"),
        ("[{issuer: a, jwksUri: 'http://a/k'}]".to_owned(), "spec.jwtRules[0].jwksUri"),
        ("[{issuer: '', jwksUri: 'https://a/k'}]".to_owned(), "spec.jwtRules[0].issuer"),
        (
            "[{issuer: a, jwksUri: 'https://a/k'}, {issuer: a, jwksUri: 'https://b/k'}]".to_owned(),
            "spec.jwtRules[1].issuer",
        ),
        (one("audiences: ['']"), "spec.jwtRules[0].audiences[0]"),
        (one("fromHeaders: [{name: 'a b'}]"), "spec.jwtRules[0].fromHeaders[0].name"),
        (one("fromHeaders: [{name: Cookie}]"), "spec.jwtRules[0].fromHeaders[0].name"),
        (one("fromParams: ['a&b']"), "spec.jwtRules[0].fromParams[0]"),
        (one("fromCookies: ['a=b']"), "spec.jwtRules[0].fromCookies[0]"),
        (one("clockSkew: 0s"), "spec.jwtRules[0].clockSkew"),
        (one("clockSkew: 500ms"), "spec.jwtRules[0].clockSkew"),
        (one("clockSkew: 11m"), "spec.jwtRules[0].clockSkew"),
        (one("outputClaimToHeaders: [{header: Host, claim: sub}]"), "spec.jwtRules[0].outputClaimToHeaders[0].header"),
        (one("outputClaimToHeaders: [{header: x, claim: a..b}]"), "spec.jwtRules[0].outputClaimToHeaders[0].claim"),
        (
            one("outputClaimToHeaders: [{header: x, claim: a}, {header: X, claim: b}]"),
            "spec.jwtRules[0].outputClaimToHeaders[1].header",
        ),
    ] {
        assert_eq!(policy(&wrong), [path], "{wrong}");
    }
    let source = |source: &str| {
        paths(&"apiVersion: meshctl.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec: {rules: [{from: [SOURCE]}]}".replace("SOURCE", source))
    };
    for fine in [
        "{requestPrincipals: ['*', 'https://a/u', 'https://a/*', '*/u']}",
        "{claims: [{path: [a, b], values: [x, '*']}]}",
    ] {
        assert_eq!(source(fine), [] as [&str; 0], "{fine}");
    }
    for (wrong, path) in [
        ("{requestPrincipals: [u]}", "requestPrincipals[0]"),
        ("{notRequestPrincipals: ['a*/u']}", "notRequestPrincipals[0]"),
        ("{claims: [{path: [], values: [x]}]}", "claims[0].path"),
        ("{claims: [{path: [a]}]}", "claims[0]"),
        ("{claims: [{path: [a], notValues: ['a*b']}]}", "claims[0].notValues[0]"),
    ] {
        assert_eq!(source(wrong), [format!("spec.rules[0].from[0].{path}")], "{wrong}");
    }
}
