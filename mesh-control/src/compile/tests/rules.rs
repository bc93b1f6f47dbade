//! What rules become: weights, filters, timeouts, retries.

use envoy_types::pb::envoy::config::core::v3::HeaderValueOption;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::config::route::v3::redirect_action::PathRewriteSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_action::{ClusterSpecifier, HostRewriteSpecifier};
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{RedirectAction, header_matcher, query_parameter_matcher};
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use mesh_common::names;
use mesh_common::resource::Kind;

use super::*;

fn only(rule: &str) -> PbRoute {
    let mut routes = reviews(&shop(&http_route("r", rule)), &mesh());
    assert_eq!(routes.len(), 1, "{routes:#?}");
    routes.remove(0)
}

fn to_v1(rest: &str) -> String {
    format!("  - {{backendRefs: [{{name: reviews-v1, port: 9080}}], {rest}}}")
}

#[test]
fn without_a_route_requests_go_to_the_service() {
    let routes = reviews(&shop(""), &mesh());
    assert_eq!(routes[0].name, "Service/default/reviews/0");
    let cluster = ClusterSpecifier::Cluster("reviews.default.svc.cluster.local:9080".to_owned());
    assert_eq!(forward(&routes[0]).cluster_specifier, Some(cluster));
    assert_eq!(forward(&routes[0]).timeout.as_ref().unwrap().seconds, 0);
    assert_eq!(forward(&routes[0]).retry_policy.as_ref().unwrap().num_retries.as_ref().unwrap().value, 2);
}

#[test]
fn weights_are_kept_as_they_are() {
    let route = only(
        "  - backendRefs: [{name: reviews-v1, port: 9080, weight: 90}, {name: reviews-v2, port: 9080, weight: 0}]",
    );
    let Some(ClusterSpecifier::WeightedClusters(clusters)) = &forward(&route).cluster_specifier else { panic!() };
    let weights: Vec<_> =
        clusters.clusters.iter().map(|c| (c.name.as_str(), c.weight.as_ref().unwrap().value)).collect();
    assert_eq!(
        weights,
        [("reviews-v1.default.svc.cluster.local:9080", 90), ("reviews-v2.default.svc.cluster.local:9080", 0)]
    );
    assert_eq!(route.name, "HTTPRoute/default/r/0");
}

#[test]
fn a_missing_backend_keeps_its_share_and_is_a_condition() {
    let text = http_route("r", "  - backendRefs: [{name: reviews-v1, port: 9080}, {name: reviews-v3, port: 9080}]");
    let model = shop(&text);
    let routes = reviews(&model, &mesh());
    let Some(ClusterSpecifier::WeightedClusters(clusters)) = &forward(&routes[0]).cluster_specifier else { panic!() };
    assert_eq!(clusters.clusters.len(), 2);
    assert_eq!(forward(&routes[0]).cluster_not_found_response_code, 2);
    let key = Key::new(Kind::HttpRoute, "default", "r");
    let reasons: Vec<_> = model.conditions(&key).iter().map(|c| (c.condition_type, c.status, c.reason)).collect();
    assert_eq!(reasons, [("Accepted", true, "Accepted"), ("ResolvedRefs", false, "BackendNotFound")]);
    assert_eq!(model.status(&key)["parents"][0]["conditions"][1]["status"], "False");
}

#[test]
fn with_no_backend_at_all_the_answer_is_500() {
    for backends in [
        "[{name: nobody, port: 1}]",
        "[{name: reviews, port: 1}]",
        "[]",
        "[{name: reviews, port: 9080, weight: 0}]",
        "[{name: db, port: 5432}]",
    ] {
        let route = only(&format!("  - backendRefs: {backends}"));
        assert!(matches!(&route.action, Some(route::Action::DirectResponse(d)) if d.status == 500), "{backends}");
    }
}

#[test]
fn backends_of_another_namespace_need_more_than_a_wish() {
    let more = format!(
        "{}apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: other}}\nspec: {{ports: [{{port: 80}}]}}",
        http_route("r", "  - backendRefs: [{name: s, namespace: other, port: 80}]")
    );
    let model = shop(&more);
    let key = Key::new(Kind::HttpRoute, "default", "r");
    assert!(model.conditions(&key).iter().any(|c| c.reason == "RefNotPermitted"));
}

#[test]
fn matches() {
    let route = only(&to_v1(
        "matches: [{path: {value: /a/}, method: POST, headers: [{name: End-User, value: jason}, {name: cookie, type: RegularExpression, value: '(.*;)?a=b(;.*)?'}], queryParams: [{name: q, value: x}]}]",
    ));
    let matched = route.r#match.unwrap();
    assert_eq!(matched.path_specifier, Some(PathSpecifier::PathSeparatedPrefix("/a".to_owned())));
    let patterns: Vec<_> = matched
        .headers
        .iter()
        .map(|h| match &h.header_match_specifier {
            Some(header_matcher::HeaderMatchSpecifier::StringMatch(m)) => (h.name.as_str(), m.match_pattern.clone()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(patterns[0], ("end-user", Some(MatchPattern::Exact("jason".to_owned()))));
    assert!(matches!(&patterns[1], ("cookie", Some(MatchPattern::SafeRegex(r))) if r.regex == "(.*;)?a=b(;.*)?"));
    assert_eq!(patterns[2], (":method", Some(MatchPattern::Exact("POST".to_owned()))));
    let query = &matched.query_parameters[0];
    assert!(matches!(
        &query.query_parameter_match_specifier,
        Some(query_parameter_matcher::QueryParameterMatchSpecifier::StringMatch(m)) if m.match_pattern == Some(MatchPattern::Exact("x".to_owned()))
    ));
}

#[test]
fn header_changes_of_rules_and_backends() {
    let route = only(
        "  - filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: '100%'}], add: [{name: b, value: c}], remove: [d]}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {remove: [server]}}
    backendRefs:
    - {name: reviews-v1, port: 9080, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: e, value: f}]}}]}",
    );
    let text = |h: &HeaderValueOption| {
        let header = h.header.clone().unwrap();
        (header.key, header.value, h.append_action)
    };
    let added: Vec<_> = route.request_headers_to_add.iter().map(text).collect();
    assert_eq!(added, [("a".to_owned(), "100%%".to_owned(), 2), ("b".to_owned(), "c".to_owned(), 0)]);
    assert_eq!(route.request_headers_to_remove, ["d"]);
    assert_eq!(route.response_headers_to_remove, ["server"]);
    let Some(ClusterSpecifier::WeightedClusters(clusters)) = &forward(&route).cluster_specifier else { panic!() };
    assert_eq!(text(&clusters.clusters[0].request_headers_to_add[0]).0, "e");
}

#[test]
fn rewrites() {
    for (prefix, replacement, expected) in [
        ("/a", "/b", "prefix /b"),
        ("/a", "/b/", "prefix /b"),
        ("/", "/b", "prefix /b/"),
        ("/", "/", ""),
        ("/a.b", "/", r"regex ^/a\.b/* -> /"),
        ("/a", "", "regex ^/a/* -> /"),
    ] {
        let route = only(&to_v1(&format!(
            "matches: [{{path: {{value: {prefix}}}}}], filters: [{{type: URLRewrite, urlRewrite: {{path: {{type: ReplacePrefixMatch, replacePrefixMatch: '{replacement}'}}}}}}]"
        )));
        let action = forward(&route);
        let found = match &action.regex_rewrite {
            Some(regex) => format!("regex {} -> {}", regex.pattern.as_ref().unwrap().regex, regex.substitution),
            None if action.prefix_rewrite.is_empty() => String::new(),
            None => format!("prefix {}", action.prefix_rewrite),
        };
        assert_eq!(found, expected, "{prefix} -> {replacement}");
    }
    let route = only(&to_v1(
        "filters: [{type: URLRewrite, urlRewrite: {hostname: x.y, path: {type: ReplaceFullPath, replaceFullPath: /c}}}]",
    ));
    assert_eq!(forward(&route).regex_rewrite.as_ref().unwrap().substitution, "/c");
    let host = Some(HostRewriteSpecifier::HostRewriteLiteral("x.y".to_owned()));
    assert_eq!(forward(&route).host_rewrite_specifier, host);
}

fn redirects(rule: &str) -> Vec<(PathSpecifier, RedirectAction)> {
    let routes = reviews(&shop(&http_route("r", rule)), &mesh());
    let redirect = |route: PbRoute| match route.action {
        Some(route::Action::Redirect(redirect)) => (route.r#match.unwrap().path_specifier.unwrap(), redirect),
        other => panic!("{other:?}"),
    };
    routes.into_iter().map(redirect).collect()
}

#[test]
fn redirects_go_where_they_are_told() {
    let found = redirects(
        "  - filters: [{type: RequestRedirect, requestRedirect: {scheme: https, hostname: a.b, port: 443, statusCode: 308}}]",
    );
    let [(_, redirect)] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((redirect.host_redirect.as_str(), redirect.port_redirect, redirect.response_code), ("a.b", 0, 4));

    let to_root = "  - {matches: [{path: {value: /a}}], filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]}";
    let found: Vec<_> = redirects(to_root).into_iter().map(|(m, r)| (m, r.path_rewrite_specifier.unwrap())).collect();
    assert_eq!(
        found,
        [
            (PathSpecifier::Path("/a".to_owned()), PathRewriteSpecifier::PathRedirect("/".to_owned())),
            (PathSpecifier::Prefix("/a/".to_owned()), PathRewriteSpecifier::PrefixRewrite("/".to_owned())),
        ]
    );
    let to_b = to_root.replace("replacePrefixMatch: /}", "replacePrefixMatch: /b}");
    let found = redirects(&to_b);
    assert_eq!(found[0].1.path_rewrite_specifier, Some(PathRewriteSpecifier::PrefixRewrite("/b".to_owned())));
}

#[test]
fn mirrors() {
    for (share, parts) in
        [("", 1_000_000), (", percent: 5", 50_000), (", fraction: {numerator: 1, denominator: 1000}", 1000)]
    {
        let route = only(&to_v1(&format!(
            "filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: reviews-v2, port: 9080}}{share}}}}}]"
        )));
        let [mirror] = forward(&route).request_mirror_policies.as_slice() else { panic!() };
        assert_eq!(mirror.cluster, "reviews-v2.default.svc.cluster.local:9080");
        let fraction = mirror.runtime_fraction.as_ref().unwrap().default_value.as_ref().unwrap();
        assert_eq!((fraction.numerator, fraction.denominator), (parts, 2));
    }
    let route =
        only(&to_v1("filters: [{type: RequestMirror, requestMirror: {backendRef: {name: nobody, port: 9080}}}]"));
    assert_eq!(forward(&route).request_mirror_policies, []);
}

#[test]
fn timeouts_and_retries_of_a_rule() {
    let route = only(&to_v1(
        "timeouts: {request: 10s, backendRequest: 1500ms}, retry: {codes: [500, 503], attempts: 4, backoff: 50ms}",
    ));
    let action = forward(&route);
    assert_eq!(action.timeout.as_ref().unwrap().seconds, 10);
    let retry = action.retry_policy.as_ref().unwrap();
    let per_try = retry.per_try_timeout.as_ref().unwrap();
    assert_eq!((per_try.seconds, per_try.nanos), (1, 500_000_000));
    assert_eq!(retry.num_retries.as_ref().unwrap().value, 4);
    assert_eq!(retry.retry_on, "connect-failure,refused-stream,reset-before-request,retriable-status-codes");
    assert_eq!(retry.retriable_status_codes, [500, 503]);
    assert_eq!(retry.retry_back_off.as_ref().unwrap().base_interval.as_ref().unwrap().nanos, 50_000_000);

    let off = only(&to_v1("retry: {attempts: 0}"));
    assert_eq!(forward(&off).retry_policy, None);
}

#[test]
fn the_narrower_policy_wins_field_by_field() {
    let policy = |namespace: &str, name: &str, targets: &str, spec: &str| {
        format!(
            "apiVersion: meshctl.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{namespace: {namespace}, name: {name}}}\nspec: {{targetRefs: [{targets}], {spec}}}\n---\n"
        )
    };
    let service = "{kind: Service, name: reviews}";
    let route = "{kind: HTTPRoute, name: r, sectionName: special}";
    let text = [
        http_route("r", "  - {name: special, backendRefs: [{name: reviews-v1, port: 9080}]}\n  - {matches: [{path: {value: /long}}], backendRefs: [{name: reviews-v1, port: 9080}]}"),
        policy("mesh-system", "a", "", "timeouts: {request: 1s, connect: 1s}, retries: {attempts: 9}"),
        policy("default", "a", "", "timeouts: {request: 2s}"),
        policy("default", "b", service, "timeouts: {request: 3s}, loadBalancer: {policy: RoundRobin}, connectionPool: {maxRequests: 7}"),
        policy("default", "c", service, "timeouts: {request: 8s}"),
        policy("default", "d", route, "timeouts: {request: 4s}, connectionPool: {maxPending: 1}"),
    ]
    .concat();
    let model = shop(&text);
    let routes = reviews(&model, &mesh());
    let seconds: Vec<_> = routes.iter().map(|r| forward(r).timeout.as_ref().unwrap().seconds).collect();
    assert_eq!(seconds, [3, 4]);
    assert_eq!(forward(&routes[0]).retry_policy.as_ref().unwrap().num_retries.as_ref().unwrap().value, 9);

    let cluster: envoy_types::pb::envoy::config::cluster::v3::Cluster =
        get(&model, &mesh(), ResourceType::Cluster, "reviews-v1.default.svc.cluster.local:9080");
    assert_eq!(cluster.connect_timeout.as_ref().unwrap().seconds, 1);
    assert_eq!(cluster.lb_policy, 0);
    let limits = &cluster.circuit_breakers.as_ref().unwrap().thresholds[0];
    assert_eq!(limits.max_requests.as_ref().unwrap().value, 7);
    assert_eq!(limits.max_pending_requests.as_ref().unwrap().value, u32::MAX);

    let reasons = |name: &str| -> Vec<&str> {
        model.conditions(&Key::new(Kind::TrafficPolicy, "default", name)).iter().map(|c| c.reason).collect()
    };
    assert_eq!(reasons("b"), ["Accepted"]);
    assert_eq!(reasons("c"), ["Conflicted"]);
    assert_eq!(reasons("d"), ["Accepted", "TargetIsRoute"]);
}

#[test]
fn the_health_of_endpoints_is_found_out_as_the_policy_says() {
    use envoy_types::pb::envoy::config::cluster::v3::Cluster;
    use envoy_types::pb::envoy::config::core::v3::health_check::HealthChecker;
    let policy = |namespace: &str, targets: &str, spec: &str| {
        format!(
            "apiVersion: meshctl.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{namespace: {namespace}, name: p}}\nspec: {{targetRefs: [{targets}], {spec}}}\n---\n"
        )
    };
    let cluster =
        |text: &str, scope: &Scope, name: &str| -> Cluster { get(&shop(text), scope, ResourceType::Cluster, name) };
    let reviews = "reviews.default.svc.cluster.local:9080";
    let plain = cluster("", &mesh(), reviews);
    assert_eq!((plain.outlier_detection, plain.health_checks.len()), (None, 0));

    let everywhere = policy(
        "mesh-system",
        "",
        "outlierDetection: {consecutive5xx: 7, baseEjectionTime: 400s}, healthCheck: {http: {path: /ok}, interval: 3s}",
    );
    let found = cluster(&everywhere, &mesh(), reviews);
    let outliers = found.outlier_detection.as_ref().unwrap();
    let number = |it: &Option<envoy_types::pb::google::protobuf::UInt32Value>| it.as_ref().unwrap().value;
    assert_eq!((number(&outliers.consecutive_5xx), number(&outliers.enforcing_consecutive_5xx)), (7, 100));
    assert_eq!(
        (number(&outliers.enforcing_success_rate), number(&outliers.enforcing_consecutive_gateway_failure)),
        (0, 0)
    );
    assert_eq!((number(&outliers.max_ejection_percent), number(&outliers.enforcing_failure_percentage)), (50, 0));
    // The default of the most is less than the base here.
    assert_eq!(outliers.max_ejection_time.as_ref().unwrap().seconds, 400);
    let check = &found.health_checks[0];
    assert_eq!((check.interval.as_ref().unwrap().seconds, check.timeout.as_ref().unwrap().seconds), (3, 2));
    let Some(HealthChecker::HttpHealthCheck(http)) = &check.health_checker else { panic!("{check:?}") };
    assert_eq!((http.path.as_str(), http.host.as_str()), ("/ok", "reviews.default.svc.cluster.local"));
    // One wrong status is one failure, with Envoy too.
    assert_eq!((http.retriable_statuses[0].start, http.retriable_statuses[0].end), (100, 600));

    let off = policy(
        "default",
        "{kind: Service, name: reviews}",
        "outlierDetection: {}, healthCheck: {}, connectionPool: {maxRetries: 4}",
    );
    let found = cluster(&format!("{everywhere}{off}"), &mesh(), reviews);
    assert_eq!((found.outlier_detection, found.health_checks.len()), (None, 0));
    let limits = &found.circuit_breakers.unwrap().thresholds[0];
    assert_eq!((number(&limits.max_retries), limits.retry_budget), (4, None));
}

#[test]
fn routes_of_a_caller_s_own_namespace_come_before_the_service_s() {
    let consumer = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: mine, namespace: other}
spec:
  parentRefs: [{group: '', kind: Service, name: reviews, namespace: default}]
  rules: [{backendRefs: [{name: reviews-v2, namespace: default, port: 9080}]}]
---
";
    let text = format!("{}{consumer}", http_route("r", "  - backendRefs: [{name: reviews-v1, port: 9080}]"));
    let model = shop(&text);
    assert_eq!(reviews(&model, &mesh())[0].name, "HTTPRoute/default/r/0");
    let other = Scope { namespace: "other".to_owned(), ..mesh() };
    assert_eq!(reviews(&model, &other)[0].name, "HTTPRoute/other/mine/0");
}

#[test]
fn a_grpc_client_gets_only_what_it_knows() {
    let text = http_route(
        "r",
        "  - {matches: [{path: {value: /a}}, {method: GET}, {method: POST, path: {value: /b}}, {path: {value: /c}, queryParams: [{name: q, value: x}]}], timeouts: {request: 3s}, backendRefs: [{name: reviews-v1, port: 9080}]}",
    );
    let routes = reviews(&shop(&text), &scope(ClientKind::Grpc));
    let paths: Vec<_> = routes.iter().map(|r| r.r#match.clone().unwrap().path_specifier.unwrap()).collect();
    let regex = |p: &PathSpecifier| matches!(p, PathSpecifier::SafeRegex(_));
    assert_eq!(paths.len(), 2);
    assert!(paths.iter().all(regex), "{paths:?}");
    assert_eq!(
        forward(&routes[0]).max_stream_duration.as_ref().unwrap().max_stream_duration.as_ref().unwrap().seconds,
        3
    );
}

const CORS: &str = "filters: [{type: CORS, cors: {allowOrigins: ['https://A.example.com', 'https://*.example.com', 'https://*:8443'], allowCredentials: true, allowMethods: ['*'], allowHeaders: [x-a, x-b]}}]";

fn cors(route: &PbRoute) -> CorsPolicy {
    let any = &route.typed_per_filter_config[names::FILTER_CORS];
    assert_eq!(any.type_url, "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy");
    CorsPolicy::decode(any.value.as_slice()).unwrap()
}

#[test]
fn a_cors_filter_is_envoy_s() {
    let policy = cors(&only(&to_v1(CORS)));
    let patterns: Vec<_> = policy.allow_origin_string_match.into_iter().map(|m| m.match_pattern.unwrap()).collect();
    let texts: Vec<_> = patterns
        .iter()
        .map(|pattern| match pattern {
            MatchPattern::Exact(text) => text.as_str(),
            MatchPattern::SafeRegex(regex) => regex.regex.as_str(),
            other => panic!("{other:?}"),
        })
        .collect();
    let any = r"https://([^/:]+|\[[0-9a-f:.]+\]):8443";
    assert_eq!(texts, ["https://a.example.com", r"https://[^/:]+\.example\.com", any]);
    assert_eq!((policy.allow_methods.as_str(), policy.allow_headers.as_str()), ("*", "x-a, x-b"));
    assert_eq!((policy.expose_headers.as_str(), policy.max_age.as_str()), ("", "5"));
    assert!(policy.allow_credentials.unwrap().value && !policy.forward_not_matching_preflights.unwrap().value);
    let for_envoy = reviews(&shop(&http_route("r", &to_v1(CORS))), &scope(ClientKind::Envoy));
    assert!(cors(&for_envoy[0]).allow_methods.starts_with("GET, HEAD, POST"));
    let for_grpc = reviews(&shop(&http_route("r", &to_v1(CORS))), &scope(ClientKind::Grpc));
    assert!(for_grpc[0].typed_per_filter_config.is_empty());
}

/// A preflight has another method than the request that it asks about.
#[test]
fn preflights_find_the_route_of_their_request() {
    let rule = to_v1(&format!("matches: [{{path: {{value: /a}}, method: PUT}}], {CORS}"));
    let routes = reviews(&shop(&http_route("r", &rule)), &mesh());
    let headers = |route: &PbRoute| {
        let headers = route.r#match.as_ref().unwrap().headers.iter();
        headers.map(|h| (h.name.clone(), h.header_match_specifier.clone())).collect::<Vec<_>>()
    };
    let exact = |name: &str, value: &str| {
        let specifier = header_matcher::HeaderMatchSpecifier::StringMatch(super::super::build::exact(value));
        (name.to_owned(), Some(specifier))
    };
    assert_eq!(headers(&routes[0]), [exact(":method", "PUT")]);
    assert_eq!(headers(&routes[1]), [exact("access-control-request-method", "PUT"), exact(":method", "OPTIONS")]);
    assert_eq!(cors(&routes[0]), cors(&routes[1]));
    assert_eq!(routes.len(), 2);
}

#[test]
fn two_filters_of_a_route_are_always_written_the_same() {
    let fault = "apiVersion: meshctl.dev/v1alpha1\nkind: FaultInjection\nmetadata: {name: f}\nspec: {targetRefs: [{kind: Service, name: reviews}], faults: [{percent: 1, reset: {}}]}\n---\n";
    let text = format!("{fault}{}", http_route("r", &to_v1(CORS)));
    let name = "reviews.default.svc.cluster.local:9080";
    let bytes = || resource(&shop(&text), &mesh(), ResourceType::Route, name).unwrap().value;
    assert_eq!(reviews(&shop(&text), &mesh())[0].typed_per_filter_config.len(), 2);
    let first = bytes();
    assert!((0..64).all(|_| bytes() == first));
}

const ANSWER: &str = "  - {filters: [{type: ExtensionRef, extensionRef: {group: meshctl.dev, kind: DirectResponse, name: later}}, {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: retry-after, value: '60'}]}}]}";

#[test]
fn a_direct_response_is_envoy_s() {
    let answer = "apiVersion: meshctl.dev/v1alpha1\nkind: DirectResponse\nmetadata: {name: later}\nspec: {status: 503, body: '{}', contentType: application/json}\n---\n";
    let routes = reviews(&shop(&format!("{answer}{}", http_route("r", ANSWER))), &mesh());
    let Some(route::Action::DirectResponse(direct)) = &routes[0].action else { panic!("{routes:#?}") };
    let body = direct.body.as_ref().unwrap().specifier.clone().unwrap();
    assert_eq!((direct.status, body), (503, Specifier::InlineString("{}".to_owned())));
    let headers = routes[0].response_headers_to_add.iter().map(|h| h.header.clone().unwrap());
    let headers: Vec<_> = headers.map(|h| (h.key, h.value)).collect();
    let expected = [("content-type", "application/json"), ("retry-after", "60")];
    assert_eq!(headers, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

#[test]
fn an_answer_that_does_not_exist_is_500_and_a_condition() {
    let model = shop(&http_route("r", ANSWER));
    let routes = reviews(&model, &mesh());
    assert!(matches!(&routes[0].action, Some(route::Action::DirectResponse(d)) if d.status == 500), "{routes:#?}");
    let conditions = model.conditions(&Key::new(Kind::HttpRoute, "default", "r"));
    assert!(conditions.iter().any(|c| !c.status && c.reason == "FilterNotFound"), "{conditions:#?}");
}

/// For each route, the methods that it matches and the time after which it hedges.
fn hedges(rule: &str, hedge: &str, client: ClientKind) -> Vec<(String, Option<i32>)> {
    let policy = format!(
        "apiVersion: meshctl.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p}}\nspec: {{retries: {{hedge: {hedge}}}}}\n---\n"
    );
    let routes = reviews(&shop(&format!("{policy}{rule}")), &scope(client));
    let methods = |route: &PbRoute| match route.r#match.as_ref().unwrap().headers.first() {
        None => "all".to_owned(),
        Some(header) => match header.header_match_specifier.as_ref().unwrap() {
            header_matcher::HeaderMatchSpecifier::StringMatch(m) => match m.match_pattern.as_ref().unwrap() {
                MatchPattern::SafeRegex(regex) => regex.regex.clone(),
                MatchPattern::Exact(method) => method.clone(),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        },
    };
    let after = |route: &PbRoute| {
        let action = forward(route);
        let on = action.hedge_policy.as_ref().is_some_and(|it| it.hedge_on_per_try_timeout);
        let per_try = action.retry_policy.as_ref().unwrap().per_try_timeout.as_ref();
        assert_eq!(on, per_try.is_some());
        per_try.map(|it| it.nanos / 1_000_000)
    };
    let connect = |route: &&PbRoute| {
        !matches!(route.r#match.as_ref().unwrap().path_specifier, Some(PathSpecifier::ConnectMatcher(_)))
    };
    routes.iter().filter(connect).map(|route| (methods(route), after(route))).collect()
}

#[test]
fn only_what_may_be_sent_twice_is_hedged() {
    const IDEMPOTENT: &str = "GET|HEAD|OPTIONS|TRACE|PUT|DELETE";
    let both = [(IDEMPOTENT.to_owned(), Some(50)), ("all".to_owned(), None)];
    let rule = http_route("r", "  - {backendRefs: [{name: reviews-v1, port: 9080}]}");
    for client in [ClientKind::Mesh, ClientKind::Envoy] {
        assert_eq!(hedges(&rule, "{after: 50ms}", client), both);
        assert_eq!(hedges("", "{after: 50ms}", client), both);
    }
    assert_eq!(hedges(&rule, "{after: 50ms, anyMethod: true}", ClientKind::Mesh), [("all".to_owned(), Some(50))]);
    assert_eq!(hedges(&rule, "{after: 0s}", ClientKind::Mesh), [("all".to_owned(), None)]);
    for (method, after) in [("PUT", Some(50)), ("POST", None)] {
        let of_one =
            format!("  - {{matches: [{{method: {method}}}], backendRefs: [{{name: reviews-v1, port: 9080}}]}}");
        let found = hedges(&http_route("r", &of_one), "{after: 50ms}", ClientKind::Mesh);
        assert_eq!(found, [(method.to_owned(), after)]);
    }
}

/// From the mesh to a route's rule, each narrower scope takes the place of the wider ones.
#[test]
fn timeouts_and_retries_of_every_scope() {
    let policy = |namespace: &str, name: &str, target: &str, n: u32| {
        format!(
            "apiVersion: meshctl.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{namespace: {namespace}, name: {name}}}\nspec: {{targetRefs: [{target}], timeouts: {{request: {n}0s, perTry: {n}s, idle: {n}00s}}, retries: {{attempts: {n}, on: ['50{n}'], backoff: {{base: {n}ms, max: {n}s}}, maxRetryAfter: {n}s}}}}\n---\n"
        )
    };
    let config = "apiVersion: meshctl.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec: {retries: {attempts: 1, on: ['501'], perTryTimeout: 1s, backoff: {base: 1ms, max: 1s}, maxRetryAfter: 1s}}\n---\n";
    let scopes = [
        config.to_owned(),
        policy("mesh-system", "mesh", "", 2),
        policy("default", "namespace", "", 3),
        policy("default", "service", "{kind: Service, name: reviews}", 4),
        policy("default", "route", "{kind: HTTPRoute, name: r}", 5),
        policy("default", "rule", "{kind: HTTPRoute, name: r, sectionName: a}", 6),
    ];
    for n in 1..=scopes.len() {
        let route = http_route("r", "  - {name: a, backendRefs: [{name: reviews, port: 9080}]}");
        let routes = reviews(&shop(&format!("{}{route}", scopes[..n].concat())), &mesh());
        let action = forward(&routes[0]);
        let seconds = |it: &Option<envoy_types::pb::google::protobuf::Duration>| it.as_ref().map_or(0, |it| it.seconds);
        let n = n as i64;
        if n > 1 {
            assert_eq!((seconds(&action.timeout), seconds(&action.idle_timeout)), (n * 10, n * 100));
        }
        let retry = action.retry_policy.as_ref().unwrap();
        assert_eq!((retry.num_retries.as_ref().unwrap().value, seconds(&retry.per_try_timeout)), (n as u32, n));
        assert_eq!(retry.retriable_status_codes, [500 + n as u32]);
        let back_off = retry.retry_back_off.as_ref().unwrap();
        assert_eq!(
            (back_off.base_interval.as_ref().unwrap().nanos, seconds(&back_off.max_interval)),
            (n as i32 * 1_000_000, n)
        );
        assert_eq!(seconds(&retry.rate_limited_retry_back_off.as_ref().unwrap().max_interval), n);
    }
}
