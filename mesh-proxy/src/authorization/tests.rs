use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::config::HeaderMatch;

const WEB: &str = "spiffe://mesh.local/ns/shop/sa/web";

fn subject<'a>(identity: Option<&'a str>, request: Option<route::Subject<'a>>) -> Subject<'a> {
    let peer = "10.0.0.9:40000".parse().unwrap();
    Subject { peer, destination: "10.0.0.5:8080".parse().unwrap(), identity, request, claims: None }
}

fn get<'a>(path: &'a str, headers: &'a HeaderMap) -> route::Subject<'a> {
    route::Subject { method: &Method::GET, authority: "reviews", path, query: None, headers, grpc: false }
}

fn policy(name: &str, permission: Condition, principal: Condition) -> Policy {
    Policy { name: name.to_owned(), permissions: vec![permission], principals: vec![principal] }
}

fn gate(action: GateAction, policies: Vec<Policy>) -> Gate {
    Gate { action, dry_run: false, policies }
}

fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(text.to_owned())
}

fn prefix(text: &str) -> StringMatch {
    StringMatch::Prefix(text.to_owned())
}

#[test]
fn a_deny_comes_before_an_allow_and_an_allow_refuses_the_rest() {
    let gates = vec![
        gate(GateAction::Deny, vec![policy("no-admin", Condition::Path(prefix("/admin")), Condition::Any)]),
        gate(GateAction::Allow, vec![policy("web", Condition::Any, Condition::Identity(exact(WEB)))]),
    ];
    let authorization = Authorization { gates };
    let headers = HeaderMap::new();
    let refused = |identity, path| decide(&authorization, &subject(identity, Some(get(path, &headers)))).refused;
    assert_eq!(refused(Some(WEB), "/reviews"), None);
    assert_eq!(refused(Some(WEB), "/admin/x"), Some(Refusal::Denied("no-admin")));
    assert_eq!(refused(Some("spiffe://mesh.local/ns/shop/sa/webx"), "/reviews"), Some(Refusal::NotAllowed));
    assert_eq!(refused(None, "/reviews"), Some(Refusal::NotAllowed));
}

#[test]
fn without_gates_everything_is_let_in_and_an_empty_allow_lets_in_nothing() {
    assert_eq!(decide(&Authorization::default(), &subject(None, None)), Verdict::default());
    let nothing = Authorization { gates: vec![gate(GateAction::Allow, Vec::new())] };
    assert_eq!(decide(&nothing, &subject(Some(WEB), None)).refused, Some(Refusal::NotAllowed));
}

#[test]
fn a_gate_on_trial_refuses_nothing_and_is_reported() {
    let denies = gate(GateAction::Deny, vec![policy("trial", Condition::Any, Condition::Any)]);
    let authorization = Authorization { gates: vec![Gate { dry_run: true, ..denies }] };
    let verdict = decide(&authorization, &subject(None, None));
    assert_eq!(verdict, Verdict { would_refuse: Some(Refusal::Denied("trial")), ..Verdict::default() });
}

#[test]
fn an_audit_records_and_decides_nothing() {
    let headers = HeaderMap::new();
    let audits = gate(
        GateAction::Audit,
        vec![
            policy("admin", Condition::Path(exact("/admin")), Condition::Any),
            policy("web", Condition::Any, Condition::Identity(exact(WEB))),
        ],
    );
    let denies = gate(GateAction::Deny, vec![policy("no-x", Condition::Path(prefix("/x")), Condition::Any)]);
    let allows = gate(GateAction::Allow, vec![policy("web-only", Condition::Any, Condition::Identity(exact(WEB)))]);
    let authorization = Authorization { gates: vec![audits, denies, allows] };
    let on = |identity, path| decide(&authorization, &subject(identity, Some(get(path, &headers))));
    let web = Some(WEB);
    let allowed = Verdict { allowed_by: Some("web-only"), audited_by: Some("web"), ..Verdict::default() };
    assert_eq!(on(web, "/"), allowed);
    assert_eq!(on(web, "/admin"), Verdict { audited_by: Some("admin"), ..allowed });
    let denied = Verdict { refused: Some(Refusal::Denied("no-x")), audited_by: Some("web"), ..Verdict::default() };
    assert_eq!(on(web, "/x"), denied);
    assert_eq!(on(None, "/"), Verdict { refused: Some(Refusal::NotAllowed), ..Verdict::default() });
    // What is in doubt is recorded too: another reading of the path, and what a byte stream carries.
    assert_eq!(on(None, "/admin;x").audited_by, Some("admin"));
    assert_eq!(decide(&authorization, &subject(None, None)).audited_by, Some("admin"));
    let found = explain::explain(&authorization, &subject(web, Some(get("/admin", &headers))));
    assert_eq!((found.allowed, found.by.as_deref()), (true, Some("web-only")));
    assert_eq!(found.audited_by, ["admin", "web"]);
    // Nobody is kept out before it is known who comes.
    let (peer, destination) = ("10.0.0.9:1".parse().unwrap(), "10.0.0.5:8080".parse().unwrap());
    let all =
        gate(GateAction::Audit, vec![policy("all", Condition::Any, Condition::Source("10.0.0.0/8".parse().unwrap()))]);
    let audits = Authorization { gates: vec![all] };
    assert_eq!(addresses::refused_at_once(&audits, peer, destination), None);
    assert_eq!(datagrams::barriers(&audits), []);
}

#[test]
fn what_servers_may_read_differently_lets_nobody_in() {
    let headers = HeaderMap::new();
    let on =
        |matcher: StringMatch, path: &str| holds(&Condition::Path(matcher), &subject(None, Some(get(path, &headers))));
    assert_eq!(on(prefix("/admin"), "/admin%2Fx"), Some(true));
    assert_eq!(on(exact("/admin/x"), "/admin%2Fx"), None);
    assert_eq!(on(exact("/admin"), "/admin;x=1"), None);
    assert_eq!(on(prefix("/admin"), "//admin"), None);
    assert_eq!(on(exact("/shop"), "/other%20shop"), Some(false));
    let not = Condition::Not(Box::new(Condition::Path(exact("/admin"))));
    assert_eq!(holds(&not, &subject(None, Some(get("/x/..;/admin", &headers)))), None);
    for action in [GateAction::Allow, GateAction::Deny] {
        let doubtful = policy("p", Condition::Path(exact("/admin")), Condition::Any);
        let authorization = Authorization { gates: vec![gate(action, vec![doubtful])] };
        let verdict = decide(&authorization, &subject(None, Some(get("//admin", &headers))));
        assert!(verdict.refused.is_some(), "{action:?}");
    }
}

#[test]
fn several_values_of_a_header_that_do_not_agree_let_nobody_in() {
    let condition =
        |invert| Condition::Header(HeaderMatch { name: "role".to_owned(), matcher: exact("admin"), invert });
    let with = |values: &[&[u8]], invert| {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("role", HeaderValue::from_bytes(value).unwrap());
        }
        holds(&condition(invert), &subject(None, Some(get("/", &headers))))
    };
    assert_eq!(with(&[b"admin"], false), Some(true));
    assert_eq!(with(&[b"user"], false), Some(false));
    assert_eq!(with(&[], false), Some(false));
    assert_eq!(with(&[], true), Some(true));
    for invert in [false, true] {
        assert_eq!(with(&[b"user", b"admin"], invert), None);
        assert_eq!(with(&[b"admin", b"admin"], invert), None);
        assert_eq!(with(&[b"\xff"], invert), None);
        assert_eq!(with(&[b"a", b"b"], invert), Some(invert));
    }
}

#[test]
fn nothing_of_http_is_known_of_a_byte_stream_or_a_tunnel() {
    for condition in [
        Condition::Path(exact("/")),
        Condition::Header(HeaderMatch { name: "a".to_owned(), matcher: exact("b"), invert: false }),
    ] {
        assert_eq!(holds(&condition, &subject(Some(WEB), None)), None);
    }
    let headers = HeaderMap::new();
    let connect = route::Subject { method: &Method::CONNECT, ..get("/", &headers) };
    assert_eq!(holds(&Condition::Path(exact("/")), &subject(None, Some(connect))), None);
}

#[test]
fn the_connection_is_known() {
    let from = subject(Some(WEB), None);
    let range = |text: &str| text.parse().unwrap();
    for (condition, expected) in [
        (Condition::Port(8080..=8080), true),
        (Condition::Port(1..=80), false),
        (Condition::Source(range("10.0.0.0/8")), true),
        (Condition::Source(range("10.0.0.8/32")), false),
        (Condition::Source(range("fd00::/8")), false),
        (Condition::Destination(range("10.0.0.5/32")), true),
        (Condition::Authenticated, true),
        (Condition::Identity(prefix("spiffe://mesh.local/ns/shop/")), true),
        (Condition::Identity(prefix("spiffe://mesh.local/ns/sho/")), false),
    ] {
        assert_eq!(holds(&condition, &from), Some(expected), "{condition:?}");
    }
    assert_eq!(holds(&Condition::Authenticated, &subject(None, None)), Some(false));
}

/// Conditions of every shape, as text that both sides of a comparison can be made of.
#[derive(Clone, Debug)]
enum Shape {
    Any,
    Path(u8),
    Role(u8),
    Port(bool),
    Web,
    Not(Box<Shape>),
    All(Vec<Shape>),
    OneOf(Vec<Shape>),
}

fn shapes() -> impl Strategy<Value = Shape> {
    let leaf = prop_oneof![
        Just(Shape::Any),
        (0u8..3).prop_map(Shape::Path),
        (0u8..3).prop_map(Shape::Role),
        any::<bool>().prop_map(Shape::Port),
        Just(Shape::Web),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|it| Shape::Not(Box::new(it))),
            prop::collection::vec(inner.clone(), 1..3).prop_map(Shape::All),
            prop::collection::vec(inner, 1..3).prop_map(Shape::OneOf),
        ]
    })
}

fn condition(shape: &Shape) -> Condition {
    let text = |n: &u8| ["/a", "/b", "/a/b"][usize::from(*n)];
    match shape {
        Shape::Any => Condition::Any,
        Shape::Path(n) => Condition::Path(exact(text(n))),
        Shape::Role(n) => {
            Condition::Header(HeaderMatch { name: "role".to_owned(), matcher: exact(text(n)), invert: false })
        }
        Shape::Port(own) => Condition::Port(if *own { 8080..=8080 } else { 1..=2 }),
        Shape::Web => Condition::Identity(exact(WEB)),
        Shape::Not(it) => Condition::Not(Box::new(condition(it))),
        Shape::All(all) => Condition::All(all.iter().map(condition).collect()),
        Shape::OneOf(any) => Condition::OneOf(any.iter().map(condition).collect()),
    }
}

type Rules = Vec<(bool, Shape, Shape)>;

/// Allows and denies, as gates in their order.
fn authorization(rules: &[(bool, Shape, Shape)]) -> Authorization {
    let of = |allows: bool| {
        let rules = rules.iter().filter(|it| it.0 == allows);
        rules.map(|(_, permission, principal)| policy("p", condition(permission), condition(principal))).collect()
    };
    let gates = vec![gate(GateAction::Deny, of(false)), gate(GateAction::Allow, of(true))];
    Authorization { gates }
}

fn requests() -> impl Strategy<Value = (bool, Option<String>, Vec<String>)> {
    let path = prop::option::of(prop::sample::select(vec!["/a", "/b", "/a/b", "/a%2Fb", "//a", "/a;b"]));
    let roles = prop::collection::vec(prop::sample::select(vec!["/a", "/b", "x"]), 0..3);
    (any::<bool>(), path, roles)
        .prop_map(|(web, path, roles)| (web, path.map(str::to_owned), roles.into_iter().map(str::to_owned).collect()))
}

fn lets_in(authorization: &Authorization, (web, path, roles): &(bool, Option<String>, Vec<String>)) -> bool {
    let mut headers = HeaderMap::new();
    roles.iter().for_each(|role| _ = headers.append("role", HeaderValue::from_str(role).unwrap()));
    let request = path.as_deref().map(|path| get(path, &headers));
    decide(authorization, &subject(web.then_some(WEB), request)).refused.is_none()
}

proptest! {
    #[test]
    fn less_allowed_or_more_denied_never_lets_more_in(
        rules in prop::collection::vec((any::<bool>(), shapes(), shapes()), 1..6),
        request in requests(),
        removed in any::<prop::sample::Index>(),
    ) {
        let all = authorization(&rules);
        let at = removed.index(rules.len());
        let mut fewer: Rules = rules.clone();
        let (was_allow, ..) = fewer.remove(at);
        let less = authorization(&fewer);
        if was_allow {
            prop_assert!(!lets_in(&less, &request) || lets_in(&all, &request));
        } else {
            prop_assert!(!lets_in(&all, &request) || lets_in(&less, &request));
        }
    }

    #[test]
    fn the_order_of_rules_does_not_matter(
        rules in prop::collection::vec((any::<bool>(), shapes(), shapes()), 1..6).prop_shuffle(),
        request in requests(),
    ) {
        let mut reversed = rules.clone();
        reversed.reverse();
        prop_assert_eq!(lets_in(&authorization(&rules), &request), lets_in(&authorization(&reversed), &request));
    }
}
