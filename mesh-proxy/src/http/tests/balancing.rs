//! Which endpoint takes a request, by what the request has, by where the endpoint is and by how it answered before.

use std::collections::BTreeSet;

use http::header::SET_COOKIE;

use super::*;

const RING: Balancer = Balancer::RingHash { min_size: 1024, max_size: 1 << 20 };
const MAGLEV: Balancer = Balancer::Maglev { size: 65_537 };
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

async fn apps() -> Vec<App> {
    let mut apps = Vec::new();
    for name in NAMES {
        apps.push(App::named(name).await);
    }
    apps
}

fn resources(balancer: Balancer, hash: Vec<HashPolicy>, all: Vec<Endpoint>) -> [Resource; 3] {
    let action = Forward { hash, ..forward(&[("app", 1)]) };
    [
        Resource::Cluster(Arc::new(Cluster { balancer, ..cluster("app", UpstreamHttp::Http1) })),
        Resource::Endpoints(endpoints("app", all)),
        Resource::Routes(Arc::new(to(action))),
    ]
}

async fn hashing(balancer: Balancer, by: HashBy, apps: &[App]) -> Proxy {
    let all = apps.iter().map(|app| endpoint(app.address)).collect();
    Proxy::new(resources(balancer, vec![HashPolicy { by, terminal: true }], all), ProxyOptions::default()).await
}

/// The answer to a request with that header: its body, and the cookies that it sets.
async fn ask(proxy: &Proxy, name: &str, value: &str) -> (String, Vec<String>) {
    let mut stream = proxy.raw().await;
    let request = format!("GET / HTTP/1.1\r\nhost: app\r\n{name}: {value}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    soon(stream.read_to_string(&mut text)).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let cookies = head.lines().filter_map(|line| line.strip_prefix(&format!("{}: ", SET_COOKIE.as_str())));
    (body.to_owned(), cookies.map(str::to_owned).collect())
}

#[tokio::test]
async fn requests_with_the_same_header_go_to_the_same_endpoint() {
    let apps = apps().await;
    for balancer in [RING, MAGLEV] {
        let proxy = hashing(balancer, HashBy::Header(http::HeaderName::from_static("x-user")), &apps).await;
        let mut seen = BTreeSet::new();
        for user in 0..30 {
            let user = user.to_string();
            let (first, _) = ask(&proxy, "x-user", &user).await;
            assert_eq!(ask(&proxy, "x-user", &user).await.0, first, "{balancer:?}");
            seen.insert(first);
        }
        assert_eq!(seen.len(), NAMES.len(), "{balancer:?}: all have some");
        let mut without = BTreeSet::new();
        for _ in 0..30 {
            without.insert(ask(&proxy, "x-other", "1").await.0);
        }
        assert!(without.len() > 1, "{balancer:?}: nothing in common, nothing to keep together");
    }
}

#[tokio::test]
async fn a_client_without_the_cookie_gets_one_and_stays_where_it_is() {
    let apps = apps().await;
    let cookie = HashCookie { name: "session".into(), ttl: Some(Duration::from_secs(60)), path: "/shop".into() };
    let proxy = hashing(RING, HashBy::Cookie(cookie), &apps).await;
    let mut seen = BTreeSet::new();
    for _ in 0..20 {
        let (first, cookies) = ask(&proxy, "x-other", "1").await;
        assert_eq!(cookies.len(), 1);
        let (pair, attributes) = cookies[0].split_once("; ").unwrap();
        assert!(pair.starts_with("session=") && attributes == "Max-Age=60; Path=/shop; HttpOnly", "{cookies:?}");
        let again = ask(&proxy, "cookie", &format!("theme=dark; {pair}")).await;
        assert_eq!(again, (first.clone(), vec![]), "it is known, and given nothing more");
        seen.insert(first);
    }
    assert!(seen.len() > 1, "each client has a cookie of its own");
}

#[tokio::test]
async fn requests_from_one_address_go_to_one_endpoint() {
    let apps = apps().await;
    let proxy = hashing(MAGLEV, HashBy::Source, &apps).await;
    let mut seen = BTreeSet::new();
    for n in 0..20 {
        seen.insert(ask(&proxy, "x-user", &n.to_string()).await.0);
    }
    assert_eq!(seen.len(), 1, "{seen:?}");
    let all = || apps.iter().map(|app| endpoint(app.address)).collect();
    let [_, _, table] = resources(MAGLEV, vec![], all());
    proxy.put(table).await;
    // Byte streams have their own policy: here each address of a client has its own place.
    let mut places = BTreeSet::new();
    for n in 1..30 {
        let peer = SocketAddr::from(([127, 0, 0, n], 1));
        let key = crate::hash::of_source(peer.ip());
        let to = |upstream: crate::upstream::TcpUpstream| upstream.endpoint.address;
        let first = to(proxy.ctx.upstreams.connect_tcp("app", &downstream(), Some(key)).await.unwrap());
        let second = to(proxy.ctx.upstreams.connect_tcp("app", &downstream(), Some(key)).await.unwrap());
        assert_eq!(first, second);
        places.insert(first);
    }
    assert_eq!(places.len(), NAMES.len());
}

#[tokio::test]
async fn keys_of_an_endpoint_that_goes_move_and_no_others() {
    let apps = apps().await;
    let by = || HashBy::Header(http::HeaderName::from_static("x-user"));
    let proxy = hashing(RING, by(), &apps).await;
    let mut before = Vec::new();
    for user in 0..30 {
        before.push(ask(&proxy, "x-user", &user.to_string()).await.0);
    }
    let rest = apps[1..].iter().map(|app| endpoint(app.address)).collect();
    proxy.put(Resource::Endpoints(endpoints("app", rest))).await;
    for (user, before) in before.into_iter().enumerate() {
        let (now, _) = ask(&proxy, "x-user", &user.to_string()).await;
        assert!(now == before || before == "a", "{user}: {before} {now}");
        assert_ne!(now, "a");
    }
}

#[tokio::test]
async fn another_priority_takes_over_and_gives_back() {
    let apps = apps().await;
    let all = |healthy: bool| {
        let near = Endpoint { healthy, ..endpoint(apps[0].address) };
        let far = Endpoint { priority: 1, locality: "us/a".to_owned(), ..endpoint(apps[1].address) };
        vec![near, far]
    };
    let proxy = Proxy::new(resources(Balancer::LeastRequest, vec![], all(true)), ProxyOptions::default()).await;
    for (healthy, expected) in [(true, "a"), (false, "b"), (true, "a")] {
        proxy.put(Resource::Endpoints(endpoints("app", all(healthy)))).await;
        for _ in 0..10 {
            assert_eq!(ask(&proxy, "x-user", "1").await.0, expected);
        }
    }
}

#[tokio::test]
async fn a_retry_fails_over_to_the_next_priority() {
    let app = App::named("far").await;
    let near = nowhere().await;
    let on = RetryOn { connect_failure: true, ..RetryOn::default() };
    let mut action = forward(&[("app", 1)]);
    action.retry = RetryPolicy { retries: 1, on, ..action.retry };
    let all = vec![endpoint(near), Endpoint { priority: 1, ..endpoint(app.address) }];
    let [cluster, endpoints, _] = resources(Balancer::RoundRobin, vec![], all);
    let proxy = Proxy::new([cluster, endpoints, Resource::Routes(Arc::new(to(action)))], ProxyOptions::default()).await;
    for _ in 0..5 {
        assert_eq!(ask(&proxy, "x-user", "1").await.0, "far");
    }
}

#[tokio::test]
async fn peak_ewma_leaves_the_slow_endpoint_alone() {
    let slow = App::http1(|_| async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        reply("slow")
    })
    .await;
    let (one, two) = (App::named("one").await, App::named("two").await);
    let all = [&slow, &one, &two].map(|app| endpoint(app.address)).into();
    let balancer = Balancer::PeakEwma { decay: Duration::from_secs(10) };
    let proxy = Proxy::new(resources(balancer, vec![], all), ProxyOptions::default()).await;
    let mut slow = 0;
    for _ in 0..60 {
        slow += usize::from(ask(&proxy, "x-user", "1").await.0 == "slow");
    }
    assert!(slow <= 2, "{slow} of 60: once to know it");
}
