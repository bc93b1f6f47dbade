//! Who may do what: the same objects, compiled to the bytes that a proxy gets and decided as the proxy does; and a mesh
//! whose proxies do.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use mesh_control::compile::ClientKind;
use mesh_control::model::Keys;
use mesh_e2e::mesh::{Mesh, User};
use mesh_e2e::reviews;
use mesh_proxy::authorization::{Subject, decide};
use mesh_proxy::config::{Authorization, Listener, NetworkFilter};
use mesh_proxy::path::canonical;
use mesh_proxy::route;
use proptest::prelude::*;

/// What the proxy of `reviews` gets, with these policies: `namespace/name: spec`.
fn listener(policies: &[(&str, &str)]) -> Arc<Listener> {
    let object = |(name, spec): &(&str, &str)| {
        let (namespace, name) = name.split_once('/').unwrap();
        format!(
            "apiVersion: meshctl.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{namespace: {namespace}, name: {name}}}\nspec: {spec}\n"
        )
    };
    let objects: Vec<_> = policies.iter().map(object).collect();
    reviews::listener(&objects, &Keys::default(), ClientKind::Mesh).unwrap()
}

fn gates(listener: &Listener, http: bool) -> &Authorization {
    let of_port = listener.chains.iter().filter(|chain| chain.matches.destination_port == Some(9080));
    let mut found = of_port.filter_map(|chain| match &chain.filter {
        NetworkFilter::Http(manager) if http => Some(&manager.authorization),
        NetworkFilter::Tcp(proxy) if !http => Some(&proxy.authorization),
        _ => None,
    });
    found.next().unwrap()
}

#[derive(Clone, Copy, Debug)]
struct Asked<'a> {
    /// Namespace and service account; "" if it proves none.
    from: &'a str,
    method: &'a str,
    host: &'a str,
    path: &'a str,
    headers: &'a [(&'a str, &'a str)],
}

const GET: Asked<'static> = Asked { from: "shop/web", method: "GET", host: "reviews:9080", path: "/", headers: &[] };

fn identity(from: &str) -> Option<String> {
    let (namespace, account) = from.split_once('/')?;
    Some(format!("spiffe://mesh.local/ns/{namespace}/sa/{account}"))
}

/// Whether the request is let in; one whose path has no form is not.
fn lets_in(listener: &Listener, asked: Asked<'_>) -> bool {
    let mut headers = HeaderMap::new();
    for (name, value) in asked.headers {
        headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap());
    }
    let method: Method = asked.method.parse().unwrap();
    let (path, query) = asked.path.split_once('?').map_or((asked.path, None), |(path, query)| (path, Some(query)));
    let Ok(path) = canonical(path) else { return false };
    let request =
        route::Subject { method: &method, authority: asked.host, path: &path, query, headers: &headers, grpc: false };
    decide(gates(listener, true), &subject(identity(asked.from).as_deref(), Some(request))).refused.is_none()
}

fn takes_stream(listener: &Listener, from: &str) -> bool {
    decide(gates(listener, false), &subject(identity(from).as_deref(), None)).refused.is_none()
}

fn subject<'a>(identity: Option<&'a str>, request: Option<route::Subject<'a>>) -> Subject<'a> {
    let (peer, destination) = ("10.1.0.9:40000".parse().unwrap(), "10.1.0.1:9080".parse().unwrap());
    Subject { peer, destination, identity, request, claims: None }
}

#[test]
fn sources_are_who_they_prove_to_be() {
    let allow = |source: &str| listener(&[("shop/p", &format!("{{rules: [{{from: [{source}]}}]}}"))]);
    for (source, inside, outside) in [
        (
            "{identities: ['spiffe://mesh.local/ns/shop/sa/web']}",
            &["shop/web"][..],
            &["shop/webx", "other/web", ""][..],
        ),
        ("{identities: ['*']}", &["shop/web", "other/x"], &[""]),
        ("{identities: ['*/sa/web']}", &["shop/web", "other/web"], &["shop/api", ""]),
        ("{namespaces: [shop]}", &["shop/web", "shop/api"], &["shopping/web", "other/web", ""]),
        ("{notNamespaces: [shop]}", &["other/web"], &["shop/web", ""]),
        ("{serviceAccounts: [web]}", &["shop/web"], &["other/web", "shop/webx", ""]),
        ("{serviceAccounts: [other/web]}", &["other/web"], &["shop/web"]),
        ("{namespaces: [shop], notServiceAccounts: [web]}", &["shop/api"], &["shop/web", "other/api"]),
        ("{trustDomains: [mesh.local]}", &["shop/web"], &[""]),
        ("{trustDomains: [far.example], namespaces: [shop]}", &[], &["shop/web", ""]),
        ("{ipBlocks: [10.1.0.0/24]}", &["shop/web", ""], &[]),
        ("{ipBlocks: [10.1.0.9], notIdentities: ['*']}", &[""], &["shop/web"]),
        ("{notIpBlocks: [10.0.0.0/8]}", &[], &["shop/web"]),
    ] {
        let listener = allow(source);
        for from in inside {
            assert!(lets_in(&listener, Asked { from, ..GET }), "{source} lets {from} in");
            assert!(takes_stream(&listener, from), "{source} takes the streams of {from}");
        }
        for from in outside {
            assert!(!lets_in(&listener, Asked { from, ..GET }), "{source} keeps {from} out");
            assert!(!takes_stream(&listener, from), "{source} refuses the streams of {from}");
        }
    }
}

#[test]
fn operations_are_what_is_asked_for() {
    let post = Asked { method: "POST", ..GET };
    let on = |path| Asked { path, ..GET };
    for (operation, inside, outside) in [
        ("{methods: [GET, HEAD]}", vec![GET], vec![post]),
        ("{notMethods: [POST]}", vec![GET], vec![post]),
        ("{ports: [9080]}", vec![GET], vec![]),
        ("{notPorts: [9080]}", vec![], vec![GET]),
        (
            "{paths: [/a]}",
            vec![on("/a"), on("/a?x=1"), on("/b/../a"), on("/%61")],
            vec![on("/a/"), on("/A"), on("/a/b")],
        ),
        ("{paths: ['/a*']}", vec![on("/a"), on("/ab/c")], vec![on("/b/a")]),
        ("{paths: ['*.css']}", vec![on("/x/y.css")], vec![on("/x.css/y")]),
        ("{paths: ['/u/{*}/x']}", vec![on("/u/1/x")], vec![on("/u/1/2/x"), on("/u//x"), on("/u/1/x/")]),
        ("{paths: ['/u/{**}']}", vec![on("/u/1/2")], vec![on("/v/1")]),
        ("{grpc: [shop.Ratings]}", vec![on("/shop.Ratings/Get")], vec![on("/shop.Ratingsx/Get"), on("/shop.Ratings")]),
        ("{grpc: [shop.Ratings/Get]}", vec![on("/shop.Ratings/Get")], vec![on("/shop.Ratings/Set")]),
        (
            "{hosts: [reviews]}",
            vec![GET, Asked { host: "REVIEWS", ..GET }, Asked { host: "reviews.", ..GET }],
            vec![Asked { host: "xreviews", ..GET }, Asked { host: "reviews.evil.com", ..GET }],
        ),
        (
            "{headers: [{name: x-team, values: [a, 'b*']}]}",
            vec![Asked { headers: &[("x-team", "a")], ..GET }, Asked { headers: &[("x-team", "bc")], ..GET }],
            vec![
                GET,
                Asked { headers: &[("x-team", "c")], ..GET },
                Asked { headers: &[("x-team", "a"), ("x-team", "z")], ..GET },
            ],
        ),
        (
            "{headers: [{name: x-team, notValues: ['*']}]}",
            vec![GET],
            vec![Asked { headers: &[("x-team", "a")], ..GET }],
        ),
        ("{methods: [GET], paths: [/a]}", vec![on("/a")], vec![Asked { path: "/a", ..post }, on("/b")]),
    ] {
        let allows = listener(&[("shop/p", &format!("{{rules: [{{to: [{operation}]}}]}}"))]);
        let denies = listener(&[("shop/p", &format!("{{action: DENY, rules: [{{to: [{operation}]}}]}}"))]);
        for asked in inside {
            assert!(lets_in(&allows, asked), "ALLOW {operation}: {asked:?}");
            assert!(!lets_in(&denies, asked), "DENY {operation}: {asked:?}");
        }
        for asked in outside {
            assert!(!lets_in(&allows, asked), "ALLOW {operation}: {asked:?}");
        }
        // Speaking something else goes round no policy.
        if !operation.to_lowercase().contains("ports") {
            assert!(!takes_stream(&allows, "shop/web") && !takes_stream(&denies, "shop/web"), "{operation}");
        }
    }
}

/// Each of these was, somewhere, a way round a rule about paths.
#[test]
fn nobody_goes_round_a_rule_about_a_path() {
    let denies = listener(&[("shop/p", "{action: DENY, rules: [{to: [{paths: ['/admin*']}]}]}")]);
    assert!(lets_in(&denies, GET));
    for path in [
        "/admin",
        "/admin/x",
        "/%61dmin",
        "/x/../admin",
        "/x/%2e%2e/admin",
        "/./admin",
        "//admin",
        "/x/..;/admin",
        "/;/admin",
        "/admin;x=1",
        "\\admin",
        "/x/..\\admin",
        "/%2Fadmin",
        "/x%2F..%2Fadmin",
        "/%5Cadmin",
        "admin",
        "/..",
        "/%",
        "/admin%00",
    ] {
        assert!(!lets_in(&denies, Asked { path, ..GET }), "{path}");
    }
    let allows = listener(&[("shop/p", "{rules: [{to: [{paths: ['/public/*']}]}]}")]);
    assert!(lets_in(&allows, Asked { path: "/public/a", ..GET }));
    for path in
        ["/public/../admin", "/public/%2e%2e/admin", "/public/..%2fadmin", "/public/..;/admin", "/public\\..\\admin"]
    {
        assert!(!lets_in(&allows, Asked { path, ..GET }), "{path}");
    }
}

#[test]
fn wider_policies_that_override_cannot_be_loosened() {
    let web = "{from: [{serviceAccounts: [shop/web]}]}";
    let mesh = ("mesh-system/all", format!("{{overrides: true, rules: [{web}]}}"));
    let own = ("shop/own", "{targetRefs: [{kind: Service, name: reviews}], rules: [{}]}".to_owned());
    let from = |listener: &Listener, from| lets_in(listener, Asked { from, ..GET });
    let both = listener(&[(mesh.0, &mesh.1), (own.0, &own.1)]);
    assert!(from(&both, "shop/web") && !from(&both, "shop/api"));
    // Without `overrides` the narrower one adds to it.
    let added = listener(&[(mesh.0, &format!("{{rules: [{web}]}}")), (own.0, &own.1)]);
    assert!(from(&added, "shop/web") && from(&added, "shop/api"));
    // And what overrides is not enough where something else is to allow it.
    let narrower = listener(&[(mesh.0, &mesh.1), ("shop/own", "{rules: [{to: [{methods: [POST]}]}]}")]);
    assert!(!from(&narrower, "shop/web"));
    for other in ["other/p", "shop/q"] {
        let spec = "{action: DENY, targetRefs: [{kind: Service, name: ratings}], rules: [{}]}";
        assert!(from(&listener(&[(other, spec)]), "shop/web"), "{other} is about another service");
    }
    assert!(from(&listener(&[("other/p", "{action: DENY, rules: [{}]}")]), "shop/web"), "another namespace");
    assert!(!from(&listener(&[("shop/p", "{}")]), "shop/web"), "no rule allows nothing");
    assert!(from(&listener(&[("shop/p", "{dryRun: true}")]), "shop/web"), "a trial decides nothing");
}

#[test]
fn an_audit_records_what_it_matches_and_what_may_be_that() {
    let rules = "[{from: [{serviceAccounts: [web]}], to: [{paths: [/a]}]}]";
    let listener = listener(&[("shop/a", &format!("{{action: AUDIT, rules: {rules}}}")), ("shop/none", "{}")]);
    let by = |from: &str, path: Option<&str>| {
        let headers = HeaderMap::new();
        let method = Method::GET;
        let request = path.map(|path| route::Subject {
            method: &method,
            authority: "reviews:9080",
            path,
            query: None,
            headers: &headers,
            grpc: false,
        });
        let verdict = decide(gates(&listener, path.is_some()), &subject(identity(from).as_deref(), request));
        (verdict.refused.is_some(), verdict.audited_by.map(str::to_owned))
    };
    let recorded = Some("shop/a[0]".to_owned());
    assert_eq!(by("shop/web", Some("/a")), (true, recorded.clone()));
    assert_eq!(by("shop/web", Some("/b")), (true, None));
    assert_eq!(by("shop/api", Some("/a")), (true, None));
    // As a DENY would refuse them: other readings, and streams that may be anything.
    assert_eq!(by("shop/web", Some("/a;b")), (true, recorded.clone()));
    assert_eq!(by("shop/web", None), (true, recorded));
    assert_eq!(by("shop/api", None), (true, None));
}

fn rule() -> impl Strategy<Value = String> {
    let from = prop::sample::select(vec![
        "",
        "from: [{namespaces: [shop]}], ",
        "from: [{serviceAccounts: [web]}], ",
        "from: [{notNamespaces: [other]}], ",
        "from: [{identities: ['*']}, {ipBlocks: [10.2.0.0/16]}], ",
    ]);
    let to = prop::sample::select(vec![
        "",
        "to: [{methods: [GET]}]",
        "to: [{paths: ['/a*']}, {paths: [/b]}]",
        "to: [{notPaths: [/a]}]",
        "to: [{ports: [9080]}]",
        "to: [{headers: [{name: role, values: [admin]}]}]",
    ]);
    (from, to).prop_map(|(from, to)| format!("{{{from}{to}}}"))
}

fn policies() -> impl Strategy<Value = Vec<(String, String)>> {
    let policy = (
        any::<bool>(),
        any::<bool>(),
        prop::sample::select(vec!["mesh-system", "shop"]),
        prop::collection::vec(rule(), 1..3),
    );
    let policies = prop::collection::vec(policy, 1..5);
    policies.prop_map(|all| {
        let spec = |(deny, overrides, _, rules): &(bool, bool, &str, Vec<String>)| {
            let action = if *deny { "DENY" } else { "ALLOW" };
            format!("{{action: {action}, overrides: {}, rules: [{}]}}", *overrides && !deny, rules.join(", "))
        };
        all.iter().enumerate().map(|(i, policy)| (format!("{}/p{i}", policy.2), spec(policy))).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    /// Names decide the order in which policies are looked at, and nothing else. One that is more takes nothing away if it
    /// allows beside others, and lets in nobody if it denies.
    #[test]
    fn the_names_of_policies_do_not_matter_and_a_deny_only_takes_away(
        policies in policies(),
        from in prop::sample::select(vec!["shop/web", "shop/api", "other/web", ""]),
        method in prop::sample::select(vec!["GET", "POST"]),
        path in prop::sample::select(vec!["/", "/a", "/a/b", "/b", "/%61", "//a", "/a;x"]),
        role in prop::option::of(prop::sample::select(vec!["admin", "user"])),
        audited in rule(),
    ) {
        let headers: Vec<(&str, &str)> = role.into_iter().map(|role| ("role", role)).collect();
        let asked = Asked { from, method, path, headers: &headers, ..GET };
        let all: Vec<(&str, &str)> = policies.iter().map(|(name, spec)| (name.as_str(), spec.as_str())).collect();
        let verdict = lets_in(&listener(&all), asked);
        let renamed: Vec<(String, &str)> = policies.iter().enumerate().map(|(i, (name, spec))| {
            (format!("{}/q{}", name.split_once('/').unwrap().0, policies.len() - i), spec.as_str())
        }).collect();
        let renamed: Vec<(&str, &str)> = renamed.iter().map(|(name, spec)| (name.as_str(), *spec)).collect();
        prop_assert_eq!(verdict, lets_in(&listener(&renamed), asked));
        if let Some(deny) = all.iter().position(|(_, spec)| spec.contains("DENY")) {
            let mut fewer = all.clone();
            fewer.remove(deny);
            prop_assert!(!verdict || lets_in(&listener(&fewer), asked));
        }
        // An AUDIT decides nothing, whatever it is about.
        let audit = format!("{{action: AUDIT, rules: [{audited}]}}");
        let more: Vec<(&str, &str)> = all.iter().copied().chain([("shop/audit", audit.as_str())]).collect();
        prop_assert_eq!(verdict, lets_in(&listener(&more), asked));
    }
}

const POLICIES: &str = "apiVersion: meshctl.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: readers}
spec:
  targetRefs: [{kind: Service, name: reviews}]
  rules:
  - {from: [{serviceAccounts: [web]}], to: [{methods: [GET]}]}
---
apiVersion: meshctl.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: no-admin}
spec:
  action: DENY
  rules: [{to: [{paths: ['/admin*']}]}]
";

#[test]
fn proxies_refuse_whom_no_policy_lets_in() {
    let mesh = Mesh::start(User::Same).unwrap();
    let _reviews = mesh.echo("reviews", "v1").unwrap();
    let status = |account: &str, args: &[&str]| {
        let all: Vec<&str> =
            ["-o", "/dev/null", "-w", "%{http_code}", "--path-as-is"].iter().chain(args).copied().collect();
        mesh.curl(account, &all).map(|text| text.trim().to_owned())
    };
    assert_eq!(status("other", &["http://reviews:9080/"]).unwrap(), "200");

    // A connection that is open when the policies come is held to them, without ever being closed.
    let load = mesh
        .load("other", &["--url", "http://reviews:9080/", "--rate", "50", "--seconds", "60", "--connections", "2"])
        .unwrap();
    load.flowing().unwrap();
    mesh.apply(POLICIES).unwrap();
    for (account, args, expected) in [
        ("web", &["http://reviews:9080/"][..], "200"),
        ("web", &["-X", "POST", "http://reviews:9080/"], "403"),
        ("web", &["http://reviews:9080/admin/x"], "403"),
        ("web", &["http://reviews:9080//admin"], "403"),
        ("web", &["http://reviews:9080/x/%2e%2e/admin"], "403"),
        ("web", &["http://reviews:9080/%"], "400"),
        ("other", &["http://reviews:9080/"], "403"),
    ] {
        assert_eq!(status(account, args).unwrap(), expected, "{account} {args:?}");
    }
    let check = |from: &str, path: &str| {
        mesh.meshctl_output(&["authz", "check", "--from", from, "--to", "reviews", "--method", "GET", "--path", path])
    };
    let said = |output: &std::process::Output| String::from_utf8_lossy(&output.stdout).into_owned();
    let allowed = check("web", "/").unwrap();
    assert!(allowed.status.success() && said(&allowed).contains("default/readers[0]"), "{}", said(&allowed));
    let denied = check("web", "/admin").unwrap();
    assert!(said(&denied).contains("DENIED") && said(&denied).contains("default/no-admin[0]"), "{}", said(&denied));
    let stranger = check("other", "/").unwrap();
    assert!(
        said(&stranger).contains("DENIED") && said(&stranger).contains("default/readers[0]"),
        "{}",
        said(&stranger)
    );

    let listed = mesh.meshctl(&["authz", "list", "reviews"]).unwrap();
    assert!(listed.contains("default/readers[0]") && listed.contains("default/no-admin[0]"), "{listed}");
    let report = load.stop().unwrap();
    assert!(report.by_status.contains_key(&403) && report.by_status.contains_key(&200), "{report:?}");
    assert_eq!(report.closed, 0, "{report:?}");
}
