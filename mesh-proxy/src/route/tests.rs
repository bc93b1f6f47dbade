use http::HeaderValue;
use proptest::prelude::*;

use super::*;
use crate::config::{Action, HeaderMutation, PathMatch, QueryMatch, RouteMatch, StringMatch};

fn any() -> RouteMatch {
    RouteMatch { path: PathMatch::Prefix("/".into()), method: None, headers: vec![], query: vec![], grpc: false }
}

fn route(name: &str, matches: RouteMatch) -> Arc<Route> {
    Arc::new(Route {
        name: name.to_owned(),
        matches,
        action: Action::Direct { status: http::StatusCode::OK, body: bytes::Bytes::new() },
        request_headers: HeaderMutation::default(),
        response_headers: HeaderMutation::default(),
        cors: None,
        fault: None,
    })
}

/// A table of virtual hosts that each have one route, named after the host's first domain.
fn hosts(domains: &[&[&str]]) -> RouteTable {
    let host = |domains: &&[&str]| VirtualHost {
        name: domains[0].to_owned(),
        domains: domains.iter().map(|&d| d.to_owned()).collect(),
        routes: vec![route(domains[0], any())],
    };
    RouteTable { name: "test".to_owned(), virtual_hosts: domains.iter().map(host).collect(), ignore_port: true }
}

fn table(routes: Vec<Arc<Route>>) -> RouteTable {
    let host = VirtualHost { name: "all".to_owned(), domains: vec!["*".to_owned()], routes };
    RouteTable { name: "test".to_owned(), virtual_hosts: vec![host], ignore_port: true }
}

struct Request {
    method: Method,
    authority: &'static str,
    target: String,
    headers: HeaderMap,
}

fn get(target: &str) -> Request {
    Request { method: Method::GET, authority: "reviews:9080", target: target.to_owned(), headers: HeaderMap::new() }
}

impl Request {
    fn to(mut self, authority: &'static str) -> Self {
        self.authority = authority;
        self
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        self
    }

    fn find<'t>(&self, table: &'t RouteTable) -> Option<&'t str> {
        let (path, query) =
            self.target.split_once('?').map_or((self.target.as_str(), None), |(path, query)| (path, Some(query)));
        let grpc = self.headers.get("content-type").is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"));
        let subject =
            Subject { method: &self.method, authority: self.authority, path, query, headers: &self.headers, grpc };
        find(table, &subject).map(|route| route.name.as_str())
    }
}

fn with_path(path: PathMatch) -> RouteTable {
    table(vec![route("hit", RouteMatch { path, ..any() })])
}

fn with_header(name: &str, matcher: StringMatch, invert: bool) -> RouteTable {
    let headers = vec![HeaderMatch { name: name.to_owned(), matcher, invert }];
    table(vec![route("hit", RouteMatch { headers, ..any() })])
}

fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(text.to_owned())
}

#[test]
fn virtual_hosts_are_chosen_in_envoys_order() {
    let table = hosts(&[&["*"], &["foo.*"], &["*.example.com"], &["*.b.example.com"], &["a.example.com"]]);
    for (authority, expected) in [
        ("a.example.com", "a.example.com"),
        ("A.EXAMPLE.com:8080", "a.example.com"),
        ("c.example.com", "*.example.com"),
        ("c.b.example.com:80", "*.b.example.com"),
        ("foo.org", "foo.*"),
        ("foo.example.com", "*.example.com"),
        ("bar.org", "*"),
        ("", "*"),
        ("[::1]:80", "*"),
    ] {
        assert_eq!(get("/").to(authority).find(&table), Some(expected), "{authority}");
    }
}

#[test]
fn without_a_virtual_host_nothing_matches() {
    assert_eq!(get("/").to("b").find(&hosts(&[&["a", "a.ns"]])), None);
    assert_eq!(get("/").to("a.ns").find(&hosts(&[&["a", "a.ns"]])), Some("a"));
    assert_eq!(get("/").find(&hosts(&[])), None);
}

#[test]
fn the_port_counts_unless_the_table_ignores_it() {
    let mut table = hosts(&[&["a"], &["a:80"]]);
    table.ignore_port = false;
    assert_eq!(get("/").to("a").find(&table), Some("a"));
    assert_eq!(get("/").to("a:80").find(&table), Some("a:80"));
    assert_eq!(get("/").to("a:81").find(&table), None);
    table.ignore_port = true;
    assert_eq!(get("/").to("a:81").find(&table), Some("a"));
}

#[test]
fn ports_are_told_from_ipv6_addresses() {
    for (authority, host) in [
        ("a:1", "a"),
        ("a", "a"),
        ("[::1]:80", "[::1]"),
        ("[::1]", "[::1]"),
        ("::1", "::1"),
        ("a:b", "a:b"),
        (":1", ":1"),
    ] {
        assert_eq!(without_port(authority), host);
    }
}

#[test]
fn a_segment_prefix_ends_at_a_slash() {
    let table = with_path(PathMatch::SegmentPrefix("/a".into()));
    for path in ["/a", "/a/", "/a/b", "/a?x=1"] {
        assert_eq!(get(path).find(&table), Some("hit"), "{path}");
    }
    for path in ["/ab", "/", "/b/a", "/A"] {
        assert_eq!(get(path).find(&table), None, "{path}");
    }
    let all = with_path(PathMatch::SegmentPrefix("/".into()));
    assert_eq!(get("/anything").find(&all), Some("hit"));
}

#[test]
fn other_paths() {
    let prefix = with_path(PathMatch::Prefix("/a".into()));
    assert_eq!(get("/ab").find(&prefix), Some("hit"));
    let whole = with_path(PathMatch::Exact("/a".into()));
    assert_eq!(get("/a?b").find(&whole), Some("hit"));
    assert_eq!(get("/a/").find(&whole), None);
    let regex = with_path(PathMatch::Regex(regex::Regex::new("^(?:/[0-9]+|/x)$").unwrap()));
    assert_eq!(get("/12").find(&regex), Some("hit"));
    assert_eq!(get("/12/").find(&regex), None);
    let encoded = with_path(PathMatch::Exact("/a%2Fb".into()));
    assert_eq!(get("/a%2Fb").find(&encoded), Some("hit"));
    assert_eq!(get("/a/b").find(&encoded), None);
}

#[test]
fn headers() {
    let table = with_header("end-user", exact("jason"), false);
    assert_eq!(get("/").with("end-user", "jason").find(&table), Some("hit"));
    assert_eq!(get("/").with("end-user", "jasons").find(&table), None);
    assert_eq!(get("/").find(&table), None);
    let several = with_header("x", exact("1,2"), false);
    assert_eq!(get("/").with("x", "1").with("x", "2").find(&several), Some("hit"));
    let inverted = with_header("x", exact("1"), true);
    assert_eq!(get("/").with("x", "1").find(&inverted), None);
    assert_eq!(get("/").find(&inverted), Some("hit"));
    let absent = with_header("x", StringMatch::Present(false), false);
    assert_eq!(get("/").find(&absent), Some("hit"));
    assert_eq!(get("/").with("x", "").find(&absent), None);
    let contains = with_header("x", StringMatch::Contains("b".into()), false);
    assert_eq!(get("/").with("x", "abc").find(&contains), Some("hit"));
    assert_eq!(get("/").with("x", "ac").find(&contains), None);
}

#[test]
fn pseudo_headers() {
    assert_eq!(get("/").find(&with_header(":method", exact("GET"), false)), Some("hit"));
    assert_eq!(get("/").find(&with_header(":authority", exact("reviews:9080"), false)), Some("hit"));
    assert_eq!(get("/a?b=c").find(&with_header(":path", exact("/a?b=c"), false)), Some("hit"));
}

#[test]
fn a_cookie_in_one_field_or_in_several() {
    let pattern = regex::Regex::new("^(?:(?:^|.*; ?)user=jason(?:;.*)?)$").unwrap();
    let table = with_header("cookie", StringMatch::Regex(pattern), false);
    assert_eq!(get("/").with("cookie", "a=b; user=jason").find(&table), Some("hit"));
    assert_eq!(get("/").with("cookie", "a=b").with("cookie", "user=jason").find(&table), Some("hit"));
    assert_eq!(get("/").with("cookie", "user=jasonx").find(&table), None);
}

#[test]
fn query_method_and_grpc() {
    let query = vec![QueryMatch { name: "v".into(), matcher: exact("2") }];
    let by_query = table(vec![route("hit", RouteMatch { query, ..any() })]);
    assert_eq!(get("/?a=1&v=2").find(&by_query), Some("hit"));
    assert_eq!(get("/?v=1&v=2").find(&by_query), None);
    assert_eq!(get("/").find(&by_query), None);
    let by_method = table(vec![route("hit", RouteMatch { method: Some(Method::POST), ..any() })]);
    assert_eq!(get("/").find(&by_method), None);
    let grpc = table(vec![route("hit", RouteMatch { grpc: true, ..any() })]);
    assert_eq!(get("/").find(&grpc), None);
    assert_eq!(get("/").with("content-type", "application/grpc+proto").find(&grpc), Some("hit"));
}

#[test]
fn the_first_route_that_matches_decides() {
    let one = RouteMatch { path: PathMatch::Exact("/a".into()), ..any() };
    let table = table(vec![route("one", one), route("two", any())]);
    assert_eq!(get("/a").find(&table), Some("one"));
    assert_eq!(get("/b").find(&table), Some("two"));
}

proptest! {
    #[test]
    fn a_segment_prefix_agrees_with_segments(prefix in "(/[a-c]{0,2}){1,3}", path in "(/[a-c]{0,2}){1,4}") {
        let trimmed = prefix.strip_suffix('/').unwrap_or(&prefix);
        let expected = path == trimmed || path.starts_with(&format!("{trimmed}/"));
        let table = with_path(PathMatch::SegmentPrefix(prefix.clone()));
        prop_assert_eq!(get(&path).find(&table).is_some(), expected);
    }

    #[test]
    fn an_exact_domain_beats_every_other(labels in prop::collection::vec("[a-z]{1,3}", 2..4), port in 1u16..) {
        let name: &'static str = labels.join(".").leak();
        let suffix = format!("*.{}", labels[1..].join("."));
        let prefix = format!("{}.*", labels[0]);
        let table = hosts(&[&["*"], &[&suffix], &[&prefix], &[name]]);
        prop_assert_eq!(get("/").to(name).find(&table), Some(name));
        let authority: &'static str = format!("{name}:{port}").leak();
        prop_assert_eq!(get("/").to(authority).find(&table), Some(name));
        let only_wild = hosts(&[&["*"], &[&prefix], &[&suffix]]);
        prop_assert_eq!(get("/").to(authority).find(&only_wild), Some(suffix.as_str()));
    }
}
