//! Gateway API's order of precedence, across objects.

use super::*;

/// Names of the routes, in order, with the header `x-rule` that each rule sets to tell it from the others.
fn order(text: &str) -> Vec<String> {
    let model = shop(text);
    let label = |route: PbRoute| {
        let header = route.request_headers_to_add.first().and_then(|h| h.header.clone());
        header.map(|h| h.value).unwrap_or(route.name)
    };
    reviews(&model, &mesh()).into_iter().map(label).collect()
}

fn rule(label: &str, matches: &str) -> String {
    let filter = format!(
        "{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-rule, value: '{label}'}}]}}}}"
    );
    format!("  - {{matches: [{matches}], filters: [{filter}], backendRefs: [{{name: reviews, port: 9080}}]}}\n")
}

#[test]
fn the_more_specific_match_comes_first() {
    let table = [
        ("exact", "{path: {type: Exact, value: /a}}"),
        ("regex", "{path: {type: RegularExpression, value: '/a.*'}}"),
        ("long prefix", "{path: {value: /a/b/c}}"),
        ("prefix, method and header", "{path: {value: /a}, method: GET, headers: [{name: x, value: y}]}"),
        ("prefix and method", "{path: {value: /a}, method: GET}"),
        ("prefix and two headers", "{path: {value: /a}, headers: [{name: x, value: y}, {name: z, value: y}]}"),
        (
            "prefix, header and query",
            "{path: {value: /a}, headers: [{name: x, value: y}], queryParams: [{name: q, value: '1'}]}",
        ),
        ("prefix and header", "{path: {value: /a/}, headers: [{name: x, value: y}]}"),
        ("prefix and query", "{path: {value: /a}, queryParams: [{name: q, value: '1'}]}"),
        ("prefix", "{path: {value: /a}}"),
        ("method", "{method: POST}"),
        ("everything", ""),
    ];
    let expected: Vec<&str> = table.iter().map(|(label, _)| *label).collect();
    let forwards: String = table.iter().map(|(label, matches)| rule(label, matches)).collect();
    let backwards: String = table.iter().rev().map(|(label, matches)| rule(label, matches)).collect();
    assert_eq!(order(&http_route("a", &forwards)), expected);
    assert_eq!(order(&http_route("a", &backwards)), expected);
    // And when each rule is an object of its own.
    let apart: String = table
        .iter()
        .enumerate()
        .map(|(i, (label, matches))| http_route(&format!("r{}", 20 - i), &rule(label, matches)))
        .collect();
    assert_eq!(order(&apart), expected);
}

#[test]
fn of_equals_the_older_object_wins_then_the_first_name_then_the_first_rule() {
    let dated = |name: &str, time: &str| {
        http_route(name, &rule(name, "")).replace("metadata: {", &format!("metadata: {{creationTimestamp: '{time}', "))
    };
    let young = dated("a", "2026-02-01T00:00:00Z");
    let old = dated("b", "2026-01-01T00:00:00Z");
    assert_eq!(order(&format!("{young}{old}")), ["b", "a"]);
    let same = dated("c", "2026-01-01T00:00:00+00:00");
    assert_eq!(order(&format!("{same}{young}{old}")), ["b", "c", "a"]);
    let two = http_route("two", &format!("{}{}", rule("first", ""), rule("second", "")));
    assert_eq!(order(&two), ["first", "second"]);
    let several = http_route("two", &rule("both", "{path: {value: /x}}, {path: {value: /xyz}}"));
    assert_eq!(order(&several), ["both", "both"]);
}

#[test]
fn the_loser_of_a_conflict_is_told() {
    let text = format!("{}{}", http_route("a", &rule("a", "")), http_route("b", &rule("b", "")));
    let model = shop(&text);
    let warnings = |name: &str| model.warnings(&Key::new(mesh_common::resource::Kind::HttpRoute, "default", name));
    assert_eq!(warnings("a"), [] as [String; 0]);
    assert!(warnings("b")[0].contains("HTTPRoute default/a"), "{:?}", warnings("b"));
}

#[test]
fn grpc_routes_go_by_service_then_method() {
    let text = "
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: g}
spec:
  parentRefs: [{group: '', kind: Service, name: ratings, port: 9081}]
  rules:
  - {backendRefs: [{name: ratings, port: 9081}]}
  - {matches: [{method: {method: Get}}], backendRefs: [{name: ratings, port: 9081}]}
  - {matches: [{method: {service: shop.Ratings}}], backendRefs: [{name: ratings, port: 9081}]}
  - {matches: [{method: {service: shop.Ratings, method: Get}}], backendRefs: [{name: ratings, port: 9081}]}
  - {matches: [{method: {type: RegularExpression, service: 'shop[.].*'}}], backendRefs: [{name: ratings, port: 9081}]}
  - {matches: [{headers: [{name: a, value: b}]}], backendRefs: [{name: ratings, port: 9081}]}
";
    let model = shop(text);
    let name = "ratings.default.svc.cluster.local:9081";
    let config: RouteConfiguration = get(&model, &mesh(), ResourceType::Route, name);
    let routes = &config.virtual_hosts[0].routes;
    let names: Vec<_> = routes.iter().map(|r| r.name.rsplit('/').next().unwrap()).collect();
    assert_eq!(names, ["3", "4", "2", "1", "5", "0"]);
    assert!(routes.iter().all(|r| r.r#match.as_ref().unwrap().grpc.is_some()));
    assert!(routes.iter().all(|r| forward(r).retry_policy.as_ref().unwrap().retry_on.ends_with("unavailable")));
}
