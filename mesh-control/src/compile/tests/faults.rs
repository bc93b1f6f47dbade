use envoy_types::pb::envoy::config::listener::v3::{Listener, filter};
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::fault_rate_limit::{FixedLimit, LimitType};
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use mesh_common::names;
use mesh_common::proto::extensions::{Fault, fault_rule};
use mesh_common::resource::Kind;

use super::*;

fn fault(target: &str, from: &str, faults: &str) -> String {
    format!(
        "apiVersion: meshctl.dev/v1alpha1\nkind: FaultInjection\nmetadata: {{name: f}}\nspec: {{targetRefs: [{target}], from: [{from}], faults: [{faults}], expiresAt: '2026-01-01T00:00:01Z'}}\n---\n"
    )
}

const REVIEWS: &str = "{kind: Service, name: reviews}";

fn of(model: &Model, scope: &Scope) -> Vec<Any> {
    let routes = reviews(model, scope);
    routes.iter().filter_map(|route| route.typed_per_filter_config.get(names::FILTER_FAULT).cloned()).collect()
}

fn caller(namespace: &str, account: &str, service: &str) -> Scope {
    let identity = Identity::new("mesh.local", namespace, account).ok();
    Scope { identity, namespace: namespace.to_owned(), service: service.to_owned(), ..mesh() }
}

#[test]
fn only_callers_that_are_named_see_it() {
    for (from, scope, sees) in [
        ("", caller("other", "x", "x"), true),
        ("{service: web}", caller("default", "web", "web"), true),
        ("{service: web}", caller("default", "shared", "web"), true),
        ("{service: web}", caller("default", "web", "renamed"), true),
        ("{service: web}", caller("other", "web", "web"), false),
        ("{service: web, namespace: other}", caller("other", "web", "web"), true),
        ("{serviceAccount: web}", caller("default", "shared", "web"), false),
        ("{serviceAccount: web}", caller("default", "web", "x"), true),
        ("{service: api}, {serviceAccount: web}", caller("default", "web", "x"), true),
        // A pod's proxy does not say what it serves; its workload is known.
        ("{service: web}", caller("default", "shared", ""), true),
        ("{service: web}", Scope { workload: "ratings-a".to_owned(), ..caller("default", "shared", "") }, false),
        ("{service: web, namespace: other}", caller("default", "shared", ""), false),
        ("{service: api}", Scope { identity: None, service: "api".to_owned(), ..mesh() }, true),
        ("{serviceAccount: api}", Scope { identity: None, service: "api".to_owned(), ..mesh() }, false),
    ] {
        let model = shop(&fault(REVIEWS, from, "{percent: 50, reset: {}}"));
        assert_eq!(!of(&model, &scope).is_empty(), sees, "{from} {scope:?}");
    }
}

#[test]
fn our_own_form_has_everything() {
    let rules = "{percent: 12.3456, delay: {duration: 2s}, match: {headers: [{name: a, value: b.*, type: RegularExpression}]}}, {percent: 100, abort: {httpStatus: 503, grpcStatus: 8}}, {percent: 1, reset: {}}, {percent: 0, reset: {}}";
    let fault: Fault = decode(&of(&shop(&fault(REVIEWS, "", rules)), &mesh())[0]);
    let parts: Vec<_> = fault.rules.iter().map(|r| r.parts_per_million).collect();
    assert_eq!(parts, [123_456, 1_000_000, 10_000]);
    assert_eq!(fault.rules[0].name, "default/f");
    assert_eq!(fault.rules[0].expires_unix_ms, 1_767_225_601_000);
    assert_eq!(fault.rules[0].headers.len(), 1);
    assert!(matches!(fault.rules[0].kind, Some(fault_rule::Kind::Delay(d)) if d.milliseconds == 2000));
    assert!(
        matches!(fault.rules[1].kind, Some(fault_rule::Kind::Abort(a)) if a.http_status == 503 && a.grpc_status == 8)
    );
}

#[test]
fn envoy_gets_its_delay_and_abort() {
    let rules =
        "{percent: 1, reset: {}}, {percent: 50, delay: {duration: 2s}}, {percent: 10, abort: {httpStatus: 503}}";
    let model = shop(&fault(REVIEWS, "", rules));
    let fault: HttpFault = decode(&of(&model, &scope(ClientKind::Envoy))[0]);
    assert_eq!(fault.delay.unwrap().percentage.unwrap().numerator, 500_000);
    assert_eq!(fault.abort.unwrap().percentage.unwrap().numerator, 100_000);
    assert_eq!(fault.response_rate_limit, None);
    let only_reset = shop(&super::faults::fault(REVIEWS, "", "{percent: 1, reset: {}}"));
    assert_eq!(of(&only_reset, &scope(ClientKind::Envoy)), []);
}

#[test]
fn a_throttle_in_both_forms() {
    let model = shop(&fault(REVIEWS, "", "{percent: 1, reset: {}}, {percent: 50, throttle: {rate: 100k}}"));
    let own: Fault = decode(&of(&model, &mesh())[0]);
    let Some(fault_rule::Kind::Throttle(throttle)) = &own.rules[1].kind else { panic!("{own:?}") };
    assert_eq!((own.rules[1].parts_per_million, throttle.bytes_per_second), (500_000, 100_000));
    // An older proxy has the rest.
    let older = Scope { throttles: false, ..mesh() };
    let rest: Fault = decode(&of(&model, &older)[0]);
    assert_eq!(rest.rules, own.rules[..1]);
    let envoy: HttpFault = decode(&of(&model, &scope(ClientKind::Envoy))[0]);
    let limit = envoy.response_rate_limit.unwrap();
    assert_eq!(limit.percentage.unwrap().numerator, 500_000);
    // It counts in KiB; a throttle is never faster there by more than that.
    assert_eq!(limit.limit_type, Some(LimitType::FixedLimit(FixedLimit { limit_kbps: 98 })));
    assert_eq!((envoy.delay, envoy.abort), (None, None));
}

#[test]
fn a_target_may_be_a_route_or_a_rule_of_it() {
    let routes = http_route(
        "r",
        "  - {name: one, matches: [{path: {value: /one}}], backendRefs: [{name: reviews, port: 9080}]}\n  - {backendRefs: [{name: reviews, port: 9080}]}",
    );
    for (target, hit) in [
        ("{kind: HTTPRoute, name: r}", 2),
        ("{kind: HTTPRoute, name: r, sectionName: one}", 1),
        ("{kind: HTTPRoute, name: r, sectionName: two}", 0),
        ("{kind: HTTPRoute, name: other}", 0),
        (REVIEWS, 2),
    ] {
        let model = shop(&format!("{routes}{}", fault(target, "", "{percent: 1, reset: {}}")));
        assert_eq!(of(&model, &mesh()).len(), hit, "{target}");
        let key = Key::new(Kind::FaultInjection, "default", "f");
        assert_eq!(model.warnings(&key).is_empty(), hit > 0, "{target}");
    }
}

#[test]
fn byte_streams_are_delayed_reset_and_throttled() {
    let rules = "{percent: 1, reset: {}}, {percent: 10, abort: {httpStatus: 503}}, {percent: 5, throttle: {rate: 1Ki}}";
    let model = shop(&fault("{kind: Service, name: db}", "", rules));
    let address = model.service("default", "db").unwrap().virtual_addresses[0];
    let name = names::outbound_listener(address, 5432);
    let filters = |scope: &Scope| {
        let listener: Listener = get(&model, scope, ResourceType::Listener, &name);
        listener.filter_chains[0].filters.clone()
    };
    let own = filters(&mesh());
    let Some(filter::ConfigType::TypedConfig(any)) = &own[0].config_type else { panic!() };
    assert_eq!(decode::<Fault>(any).rules.len(), 2);
    assert_eq!(own.len(), 2);
    assert_eq!(filters(&scope(ClientKind::Envoy)).len(), 1);
}
