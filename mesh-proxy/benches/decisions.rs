//! What a connection or a request costs before it goes anywhere: each decision alone, without sockets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use divan::{Bencher, black_box};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use mesh_proxy::config::{
    Action, HeaderMatch, HeaderMutation, LimitBy, PathMatch, RequestLimit, Route, RouteMatch, RouteTable, StringMatch,
    VirtualHost,
};
use mesh_proxy::detect;
use mesh_proxy::limit::{Rate, RateLimits};
use mesh_proxy::route::{self, Subject};

fn main() {
    divan::main();
}

fn route(path: PathMatch, headers: Vec<HeaderMatch>) -> Arc<Route> {
    Arc::new(Route {
        name: "route".to_owned(),
        matches: RouteMatch { path, method: None, headers, query: Vec::new(), grpc: false },
        action: Action::Direct { status: StatusCode::OK, body: Default::default() },
        request_headers: HeaderMutation::default(),
        response_headers: HeaderMutation::default(),
        cors: None,
        fault: None,
    })
}

/// A service's table: routes that do not match, and a last one for everything.
fn table(others: usize, by_header: bool) -> RouteTable {
    let header = |i: usize| HeaderMatch {
        name: "x-user".to_owned(),
        matcher: StringMatch::Exact(format!("user-{i}")),
        invert: false,
    };
    let other = |i: usize| match by_header {
        true => route(PathMatch::Prefix("/".to_owned()), vec![header(i)]),
        false => route(PathMatch::SegmentPrefix(format!("/api/v{i}")), Vec::new()),
    };
    let mut routes: Vec<_> = (0..others).map(other).collect();
    routes.push(route(PathMatch::Prefix("/".to_owned()), Vec::new()));
    let host = VirtualHost { name: "reviews".to_owned(), domains: vec!["*".to_owned()], routes };
    RouteTable { name: "reviews".to_owned(), virtual_hosts: vec![host], ignore_port: true }
}

fn headers() -> HeaderMap {
    let pairs = [("accept", "*/*"), ("user-agent", "curl"), ("x-user", "somebody"), ("x-request-id", "1")];
    pairs.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).into_iter().collect()
}

fn find(bencher: Bencher<'_, '_>, table: &RouteTable) {
    let headers = headers();
    let method = Method::GET;
    let subject = Subject {
        method: &method,
        authority: "reviews:9080",
        path: "/reviews/1",
        query: None,
        headers: &headers,
        grpc: false,
    };
    bencher.bench_local(|| route::find(black_box(table), black_box(&subject)).is_some());
}

#[divan::bench(args = [0, 10, 100])]
fn route_by_path(bencher: Bencher<'_, '_>, others: usize) {
    find(bencher, &table(others, false));
}

#[divan::bench(args = [10, 100])]
fn route_by_header(bencher: Bencher<'_, '_>, others: usize) {
    find(bencher, &table(others, true));
}

#[divan::bench]
fn detect_http1(bencher: Bencher<'_, '_>) {
    bencher.bench_local(|| detect::classify(black_box(b"GET /reviews/1 HTTP/1.1\r\nHost: reviews:9080\r\n\r\n")));
}

#[divan::bench(args = [1, 10_000])]
fn limit_by_header(bencher: Bencher<'_, '_>, users: u32) {
    let name = HeaderName::from_static("x-user");
    let rate = Rate::new(1_000_000, Duration::from_secs(1), 1_000_000).expect("a rate");
    let limit = RequestLimit { rate, by: LimitBy::Header(name.clone()) };
    let limits = RateLimits::default();
    let of = |i: u32| HeaderMap::from_iter([(name.clone(), HeaderValue::from(i))]);
    let all: Vec<HeaderMap> = (0..users).map(of).collect();
    let mut next = all.iter().cycle();
    bencher.bench_local(|| {
        let headers = next.next().expect("it has no end");
        limits.take("inbound:9080", &limit, None, headers, Instant::now()).allowed
    });
}
