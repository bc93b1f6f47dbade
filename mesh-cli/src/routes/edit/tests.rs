use mesh_common::resource::{HttpRoute, MatchType, NamedMatch, parse_yaml};
use proptest::prelude::*;

use super::*;

const HAND_WRITTEN: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: reviews, namespace: default, labels: {team: shop}}
spec:
  parentRefs: [{group: '', kind: Service, name: reviews}]
  rules:
  - name: api
    matches: [{path: {type: PathPrefix, value: /api}}]
    timeouts: {request: 2s}
    backendRefs: [{name: reviews-v1, port: 9080}]
  - matches: [{path: {type: PathPrefix, value: /}}]
    timeouts: {request: 5s}
    backendRefs:
    - name: reviews-v1
      port: 9080
      weight: 3
      filters:
      - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-old, value: '1'}]}}
    - {name: elsewhere, port: 80}
";

fn hand_written() -> Object {
    parse_yaml("test", HAND_WRITTEN).unwrap().remove(0)
}

fn http(object: &Object) -> &HttpRoute {
    match object {
        Object::HttpRoute(route) => route,
        _ => panic!("not an HTTPRoute"),
    }
}

fn split(shares: &[&str]) -> Split {
    Split { service: "reviews".into(), port: Some(9080), shares: shares.iter().map(|s| s.parse().unwrap()).collect() }
}

fn weights(rule: &HttpRouteRule) -> Vec<(&str, Option<u16>, u32)> {
    rule.backend_refs.iter().map(|b| (b.name.as_str(), b.port, b.weight())).collect()
}

fn jason() -> Matches {
    let end_user = NamedMatch { match_type: Some(MatchType::Exact), name: "end-user".into(), value: "jason".into() };
    Matches::Http(HttpRouteMatch { headers: vec![end_user], ..HttpRouteMatch::default() })
}

#[test]
fn the_rule_for_all_is_split_and_the_rest_stays() {
    let mut object = hand_written();
    let before = object.clone();
    let dropped = set_weights(&mut object, &split(&["v1=90", "v2=10"])).unwrap();
    assert_eq!(dropped, ["elsewhere"]);
    let rules = &http(&object).spec.rules;
    assert_eq!(rules[0], http(&before).spec.rules[0]);
    assert_eq!(weights(&rules[1]), [("reviews-v1", Some(9080), 90), ("reviews-v2", Some(9080), 10)]);
    assert_eq!(rules[1].backend_refs[0].filters.len(), 1, "the filter of v1 is lost");
    assert_eq!(rules[1].timeouts, http(&before).spec.rules[1].timeouts);
    assert_eq!(object.metadata(), before.metadata());
}

#[test]
fn a_new_route_with_conditions_leaves_other_requests_alone() {
    let mut object = new_route(Protocol::Http, "default", "reviews", "reviews", 9080, false);
    set_match(&mut object, &jason(), &split(&["v2"])).unwrap();
    let rules = &http(&object).spec.rules;
    assert_eq!(weights(&rules[0]), [("reviews-v2", Some(9080), 100)]);
    assert_eq!(weights(&rules[1]), [("reviews", Some(9080), 1)]);
    assert!(rules[1].matches.is_empty());
}

#[test]
fn the_same_conditions_are_the_same_rule() {
    let mut object = new_route(Protocol::Http, "default", "reviews", "reviews", 9080, false);
    set_match(&mut object, &jason(), &split(&["v2"])).unwrap();
    set_match(&mut object, &jason(), &split(&["v1"])).unwrap();
    let rules = &http(&object).spec.rules;
    assert_eq!((rules.len(), weights(&rules[0])), (2, vec![("reviews-v1", Some(9080), 100)]));
}

#[test]
fn reset_takes_back_what_was_set() {
    let mut object = new_route(Protocol::Http, "default", "reviews", "reviews", 9080, false);
    let before = object.clone();
    set_match(&mut object, &jason(), &split(&["v2"])).unwrap();
    assert_eq!(reset(&mut object, "reviews", Some(&jason())), Ok(Left::Nothing));
    assert_eq!(object, before);
    set_weights(&mut object, &split(&["v1=1", "v2=1"])).unwrap();
    assert_eq!(reset(&mut object, "reviews", None), Ok(Left::Nothing));
}

#[test]
fn reset_keeps_rules_that_do_more_than_split() {
    let mut object = hand_written();
    assert_eq!(reset(&mut object, "reviews", None), Ok(Left::Changed));
    let rules = &http(&object).spec.rules;
    assert_eq!(weights(&rules[0]), [("reviews", Some(9080), 1)]);
    assert!(rules[0].timeouts.is_some());
    assert_eq!(rules[1], http(&hand_written()).spec.rules[1], "a rule with a foreign backend is not ours to reset");
}

#[test]
fn tcp_routes_can_be_split_but_not_by_request() {
    let mut object = new_route(Protocol::Tcp, "default", "stock", "stock", 7000, true);
    let mut stock = split(&["v1=1", "v2=3"]);
    stock.service = "stock".into();
    set_weights(&mut object, &stock).unwrap();
    assert_eq!(set_match(&mut object, &jason(), &stock), Err(EditError::NoRequests));
    let Object::TcpRoute(route) = &object else { panic!("not a TCPRoute") };
    assert_eq!(route.spec.parent_refs[0].port, Some(7000));
    assert_eq!(route.spec.rules[0].backend_refs[1].weight, Some(3));
}

#[test]
fn backends_are_versions_by_their_name() {
    assert_eq!(version_of("reviews", "reviews-v1"), Some("v1"));
    assert_eq!(version_of("reviews", "reviews"), Some(""));
    assert_eq!(version_of("reviews", "reviewsx"), None);
    assert_eq!(version_of("reviews", "ratings-v1"), None);
}

fn any_match() -> impl Strategy<Value = HttpRouteMatch> {
    let path = prop_oneof![Just(None), Just(Some("/")), Just(Some("/api")), Just(Some("/cart"))];
    let headers = prop::collection::vec(("[a-c]", "[a-c]"), 0..3);
    (path, headers).prop_map(|(path, headers)| HttpRouteMatch {
        path: path.map(|p| mesh_common::resource::HttpPathMatch { match_type: None, value: Some(p.to_owned()) }),
        headers: headers.into_iter().map(|(name, value)| NamedMatch { match_type: None, name, value }).collect(),
        ..HttpRouteMatch::default()
    })
}

fn any_rule() -> impl Strategy<Value = HttpRouteRule> {
    let backends = prop::collection::vec(("(reviews-v[1-4]|reviews|ratings)", 0_u32..100), 0..4);
    (prop::option::of("[a-z]{1,4}"), prop::collection::vec(any_match(), 0..3), backends).prop_map(
        |(name, matches, backends)| HttpRouteRule {
            name,
            matches,
            backend_refs: backends.into_iter().map(|(name, weight)| BackendRef::new(&name, 9080, weight)).collect(),
            ..HttpRouteRule::default()
        },
    )
}

fn any_route() -> impl Strategy<Value = Object> {
    prop::collection::vec(any_rule(), 0..5).prop_map(|rules| {
        let Object::HttpRoute(mut route) = new_route(Protocol::Http, "default", "reviews", "reviews", 9080, false)
        else {
            panic!("not an HTTPRoute")
        };
        route.spec.rules = rules;
        Object::HttpRoute(route)
    })
}

fn any_split() -> impl Strategy<Value = Split> {
    prop::collection::btree_map("v[1-4]", 0_u32..1000, 1..4).prop_map(|shares| Split {
        service: "reviews".into(),
        port: Some(9080),
        shares: shares.into_iter().map(|(version, weight)| Share { version, weight }).collect(),
    })
}

proptest! {
    #[test]
    fn setting_weights_twice_is_setting_them_once(mut object in any_route(), split in any_split()) {
        set_weights(&mut object, &split).unwrap();
        let once = object.clone();
        prop_assert!(set_weights(&mut object, &split).unwrap().is_empty());
        prop_assert_eq!(object, once);
    }

    #[test]
    fn setting_weights_changes_one_rule_and_only_its_backends(object in any_route(), split in any_split()) {
        let mut edited = object.clone();
        set_weights(&mut edited, &split).unwrap();
        let (before, after) = (&http(&object).spec.rules, &http(&edited).spec.rules);
        let target = before.iter().position(Rule::takes_all).unwrap_or(before.len());
        prop_assert_eq!(after.len(), before.len().max(target + 1));
        for (index, rule) in after.iter().enumerate() {
            if index != target {
                prop_assert_eq!(rule, &before[index]);
            }
        }
        let mut bare = after[target].clone();
        bare.backend_refs = before.get(target).map(|rule| rule.backend_refs.clone()).unwrap_or_default();
        prop_assert_eq!(bare, before.get(target).cloned().unwrap_or_default());
        let got: Vec<(String, u32)> = after[target].backend_refs.iter().map(|b| (b.name.clone(), b.weight())).collect();
        let wanted: Vec<(String, u32)> =
            split.shares.iter().map(|s| (format!("reviews-{}", s.version), s.weight)).collect();
        prop_assert_eq!(got, wanted);
    }

    #[test]
    fn a_match_set_twice_is_one_rule(mut object in any_route(), matched in any_match(), split in any_split()) {
        let matches = Matches::Http(matched);
        set_match(&mut object, &matches, &split).unwrap();
        let once = object.clone();
        set_match(&mut object, &matches, &split).unwrap();
        prop_assert_eq!(object, once);
    }
}
