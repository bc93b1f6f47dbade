use std::net::SocketAddr;

use super::*;
use crate::config::*;

fn endpoints(name: &str, count: u16) -> Resource {
    let endpoint = |port| Endpoint::at(SocketAddr::from(([127, 0, 0, 1], port)));
    let endpoints = (1..=count).map(|port| Arc::new(endpoint(port))).collect();
    Resource::Endpoints(Arc::new(Endpoints { name: name.to_owned(), endpoints }))
}

fn cluster(name: &str) -> Resource {
    Resource::Cluster(Arc::new(Cluster {
        name: name.to_owned(),
        discovery: Discovery::Eds(name.to_owned()),
        balancer: Balancer::RoundRobin,
        spread: Spread::default(),
        connect_timeout: Duration::from_secs(1),
        tls: None,
        tls_always: false,
        http: UpstreamHttp::Http1,
        limits: Limits { max_connections: 1, max_pending: 1, max_requests: 1, max_retries: 1, retry_budget: None },
        health: EndpointHealth::default(),
    }))
}

fn table(name: &str, cluster: &str) -> Resource {
    table_of(name, vec![(PathMatch::Prefix("/".into()), WeightedClusters::single(cluster))])
}

fn table_of(name: &str, routes: Vec<(PathMatch, WeightedClusters)>) -> Resource {
    let routes = routes.into_iter().map(|(path, clusters)| Arc::new(route(path, clusters))).collect();
    let host = VirtualHost { name: String::new(), domains: vec!["*".into()], routes };
    Resource::Routes(Arc::new(RouteTable { name: name.to_owned(), virtual_hosts: vec![host], ignore_port: false }))
}

fn route(path: PathMatch, clusters: WeightedClusters) -> Route {
    let forward = Forward {
        clusters,
        timeout: Duration::ZERO,
        idle_timeout: None,
        retry: RetryPolicy {
            retries: 0,
            on: RetryOn::default(),
            per_try_timeout: Duration::ZERO,
            hedges: false,
            backoff_base: Duration::from_millis(25),
            backoff_max: Duration::from_millis(250),
            retry_after_max: Duration::ZERO,
        },
        rewrite_path: None,
        rewrite_host: None,
        mirrors: vec![],
        hash: vec![],
    };
    Route {
        name: String::new(),
        matches: RouteMatch { path, method: None, headers: vec![], query: vec![], grpc: false },
        action: Action::Forward(Box::new(forward)),
        request_headers: HeaderMutation::default(),
        response_headers: HeaderMutation::default(),
        cors: None,
        fault: None,
    }
}

fn listener(name: &str) -> Resource {
    Resource::Listener(Arc::new(Listener { name: name.to_owned(), chains: vec![], default_chain: None, udp: None }))
}

fn put(store: &Store, resource: Resource) {
    let ty = resource.ty();
    store.apply(ty, Update { resources: vec![("1".into(), resource)], ..Default::default() });
}

fn remove(store: &Store, ty: Type, name: &str) {
    store.apply(ty, Update { removed: vec![name.to_owned()], ..Default::default() });
}

fn subscribed(store: &Store) -> Vec<(Type, Vec<String>)> {
    store.changes().into_iter().map(|(ty, it)| (ty, it.subscribe)).collect()
}

fn ask(store: &Store, ty: Type, name: &str) {
    store.ask(ty, name);
}

#[tokio::test(start_paused = true)]
async fn concurrent_askers_share_one_subscription_and_its_answer() {
    let store = Store::new(Instant::now());
    let askers: Vec<_> = (0..3)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.cluster("a").await })
        })
        .collect();
    store.wanted().await;
    tokio::task::yield_now().await;
    assert_eq!(subscribed(&store), [(Type::Cluster, vec!["a".to_owned()])]);
    put(&store, cluster("a"));
    for asker in askers {
        assert!(matches!(asker.await.unwrap(), Found::Yes(it) if it.name == "a"));
    }
    // Found without a lock, and without another subscription for it. The endpoints come along.
    assert!(store.load().cluster("a").is_some());
    assert_eq!(subscribed(&store), [(Type::Endpoints, vec!["a".to_owned()])]);
}

#[tokio::test(start_paused = true)]
async fn the_answer_may_be_that_there_is_none() {
    let store = Store::new(Instant::now());
    let asker = tokio::spawn({
        let store = store.clone();
        async move { store.name("example.com").await }
    });
    store.wanted().await;
    remove(&store, Type::Name, "example.com");
    assert!(matches!(asker.await.unwrap(), Found::Absent));
    // Remembered, and taken back when it comes into being.
    assert!(matches!(store.name("example.com").await, Found::Absent));
    put(
        &store,
        Resource::Name(
            "example.com".into(),
            Arc::new(Name { addresses: vec![], ttl_seconds: 1, canonical: String::new(), alias: None }),
        ),
    );
    assert!(matches!(store.name("example.com").await, Found::Yes(_)));
}

#[tokio::test(start_paused = true)]
async fn a_question_that_nobody_answers_ends() {
    let store = Store::new(Instant::now());
    let asked = tokio::time::Instant::now();
    assert!(matches!(store.listener("1.2.3.4:80").await, Found::Unknown));
    assert_eq!(asked.elapsed(), WAIT);
}

/// As long as nobody says anything, only the first question takes its time.
#[tokio::test(start_paused = true)]
async fn a_control_plane_that_hangs_costs_one_question_its_time() {
    let store = Store::new(Instant::now());
    store.heard();
    ask(&store, Type::Listener, "known");
    put(&store, listener("known"));
    store.heard();
    let start = tokio::time::Instant::now();
    // It waits with the name, and is let go with it.
    let other = tokio::spawn({
        let store = store.clone();
        async move { store.listener("1.2.3.4:80").await }
    });
    tokio::task::yield_now().await;
    assert!(matches!(store.name("reviews").await, Found::Unknown));
    assert!(matches!(other.await.unwrap(), Found::Unknown));
    assert_eq!(start.elapsed(), NAME_WAIT);
    for new in ["ratings", "web"] {
        assert!(matches!(store.name(new).await, Found::Unknown));
    }
    assert!(matches!(store.listener("5.6.7.8:80").await, Found::Unknown));
    assert!(matches!(store.listener("known").await, Found::Yes(_)));
    assert_eq!(start.elapsed(), NAME_WAIT);
    // All that was asked for is there to be sent, and the first sign of life makes questions wait again.
    assert_eq!(store.changes().iter().map(|(_, it)| it.subscribe.len()).sum::<usize>(), 6);
    store.heard();
    let asker = tokio::spawn({
        let store = store.clone();
        async move { store.name("late").await }
    });
    tokio::time::sleep(NAME_WAIT / 2).await;
    remove(&store, Type::Name, "late");
    assert!(matches!(asker.await.unwrap(), Found::Absent));
}

#[tokio::test(start_paused = true)]
async fn one_answer_that_does_not_come_is_no_silence_while_others_do() {
    let store = Store::new(Instant::now());
    store.heard();
    let asker = tokio::spawn({
        let store = store.clone();
        async move { store.name("slow").await }
    });
    tokio::time::sleep(NAME_WAIT / 2).await;
    store.heard();
    assert!(matches!(asker.await.unwrap(), Found::Unknown));
    assert!(store.reachable());
}

#[tokio::test(start_paused = true)]
async fn without_a_control_plane_nobody_waits_but_the_name_is_remembered() {
    let store = Store::new(Instant::now());
    let asker = tokio::spawn({
        let store = store.clone();
        async move { store.cluster("a").await }
    });
    store.wanted().await;
    let asked = tokio::time::Instant::now();
    store.ended(false);
    assert!(matches!(asker.await.unwrap(), Found::Unknown));
    assert!(matches!(store.cluster("b").await, Found::Unknown));
    assert_eq!(asked.elapsed(), Duration::ZERO);
    let all = store.resubscribe();
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].1.subscribe.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_refused_resource_is_an_answer_too_and_changes_nothing_that_was_there() {
    let store = Store::new(Instant::now());
    ask(&store, Type::Cluster, "a");
    ask(&store, Type::Cluster, "b");
    put(&store, cluster("a"));
    store.apply(Type::Cluster, Update { refused: vec!["a".into(), "b".into()], ..Default::default() });
    assert!(matches!(store.cluster("a").await, Found::Yes(_)));
    let asked = tokio::time::Instant::now();
    assert!(matches!(store.cluster("b").await, Found::Unknown));
    assert_eq!(asked.elapsed(), Duration::ZERO);
}

#[test]
fn what_nobody_asked_for_is_not_kept() {
    let store = Store::new(Instant::now());
    put(&store, cluster("a"));
    assert!(store.load().cluster("a").is_none());
    assert_eq!(subscribed(&store), []);
}

#[test]
fn a_table_brings_its_clusters_and_they_their_endpoints() {
    let store = Store::new(Instant::now());
    ask(&store, Type::Routes, "r");
    store.changes();
    put(&store, table("r", "a"));
    assert_eq!(subscribed(&store), [(Type::Cluster, vec!["a".to_owned()])]);
    put(&store, cluster("a"));
    assert_eq!(subscribed(&store), [(Type::Endpoints, vec!["a".to_owned()])]);
}

#[test]
fn after_a_reconnect_the_control_plane_hears_all_names_and_the_versions_that_are_here() {
    let store = Store::new(Instant::now());
    ask(&store, Type::Cluster, "a");
    ask(&store, Type::Cluster, "gone");
    ask(&store, Type::Name, "n");
    store.changes();
    put(&store, cluster("a"));
    remove(&store, Type::Cluster, "gone");
    let all = store.resubscribe();
    let (_, clusters) = all.iter().find(|(ty, _)| *ty == Type::Cluster).unwrap();
    let mut names = clusters.subscribe.clone();
    names.sort();
    assert_eq!(names, ["a", "gone"]);
    assert_eq!(clusters.versions, [("a".to_owned(), "1".to_owned())]);
    // What was pending is part of it.
    assert!(store.changes().is_empty());
}

#[test]
fn what_is_idle_goes_and_what_is_used_stays() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let store = Store::new(start);
    for name in ["used", "idle"] {
        ask(&store, Type::Endpoints, name);
        put(&store, endpoints(name, 1));
    }
    store.changes();
    store.sweep(at(400));
    assert!(store.load().endpoints("used").is_some());
    // A look is no use.
    assert!(store.load().peek_endpoints("idle").is_some());
    store.sweep(at(700));
    assert!(store.load().endpoints("idle").is_none());
    assert!(store.load().endpoints("used").is_some());
    let changes = store.changes();
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].1.unsubscribe, ["idle"]);
    // The inbound listener is not forgotten when nobody calls for a night.
    ask(&store, Type::Listener, "inbound");
    store.sweep(at(100_000));
    assert_eq!(store.subscribed(Type::Listener), 1);
    assert_eq!(store.subscribed(Type::Endpoints), 0);
}

#[test]
fn nothing_is_forgotten_while_the_control_plane_is_gone() {
    let start = Instant::now();
    let store = Store::new(start);
    ask(&store, Type::Endpoints, "a");
    put(&store, endpoints("a", 1));
    store.ended(false);
    store.sweep(start + Duration::from_secs(100_000));
    assert!(store.load().endpoints("a").is_some());
    // Nor to make room for names that nobody can answer.
    for name in 0..11_000 {
        ask(&store, Type::Listener, &format!("192.0.2.1:{name}"));
    }
    assert!(store.load().endpoints("a").is_some());
}

#[test]
fn what_a_table_refers_to_is_as_alive_as_the_table() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let store = Store::new(start);
    ask(&store, Type::Routes, "r");
    put(&store, table("r", "a"));
    put(&store, cluster("a"));
    put(&store, endpoints("a", 1));
    store.sweep(at(599));
    assert!(store.load().routes("r").is_some());
    store.sweep(at(1000));
    // Nobody used the cluster, but a request that uses the table may at any time.
    assert!(store.load().routes("r").is_some());
    let snapshot = Snapshot::clone(&store.load());
    assert!(snapshot.clusters.contains_key("a") && snapshot.endpoints.contains_key("a"));
}

#[test]
fn a_removed_cluster_stays_until_no_request_can_look_for_it() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let store = Store::new(start);
    ask(&store, Type::Routes, "r");
    put(&store, table("r", "old"));
    put(&store, cluster("old"));
    put(&store, endpoints("old", 1));
    // A request holds the table while it is replaced and the cluster removed.
    let held = store.load().routes("r").cloned().unwrap();
    put(&store, table("r", "new"));
    put(&store, cluster("new"));
    remove(&store, Type::Cluster, "old");
    remove(&store, Type::Endpoints, "old");
    store.sweep(at(60));
    assert!(store.load().cluster("old").is_some());
    assert!(store.load().endpoints("old").is_some());
    drop(held);
    store.sweep(at(120));
    assert!(store.load().cluster("old").is_none());
    // The endpoints were the cluster's, which is gone since the last look.
    store.sweep(at(180));
    assert!(store.load().endpoints("old").is_none());
    assert!(store.load().cluster("new").is_some());
}

#[test]
fn a_removed_cluster_that_comes_back_stays() {
    let start = Instant::now();
    let store = Store::new(start);
    ask(&store, Type::Routes, "r");
    put(&store, table("r", "a"));
    put(&store, cluster("a"));
    remove(&store, Type::Cluster, "a");
    put(&store, cluster("a"));
    store.sweep(start + Duration::from_secs(60));
    assert!(store.load().cluster("a").is_some());
}

#[test]
fn the_number_of_names_is_bounded_and_the_least_recently_used_go() {
    let start = Instant::now();
    let store = Store::new(start);
    for i in 0..10_000 {
        if i % 1000 == 0 {
            store.sweep(start + Duration::from_secs(i / 1000));
        }
        ask(&store, Type::Name, &i.to_string());
        remove(&store, Type::Name, &i.to_string());
        store.changes();
    }
    assert_eq!(store.subscribed(Type::Name), 10_000);
    ask(&store, Type::Name, "one more");
    let all = store.subscribed(Type::Name);
    assert!((9_000..10_000).contains(&all), "{all}");
    let changes = store.changes();
    assert_eq!(changes[0].1.subscribe, ["one more"]);
    assert!(changes[0].1.unsubscribe.iter().all(|name| name.parse::<u64>().unwrap() < 1000));
}

fn split(weights: [u32; 2]) -> WeightedClusters {
    let choice = |(cluster, weight): (&str, u32)| WeightedCluster {
        cluster: cluster.into(),
        weight,
        request_headers: HeaderMutation::default(),
        response_headers: HeaderMutation::default(),
    };
    WeightedClusters::new(["v1", "v2"].into_iter().zip(weights).map(choice).collect())
}

#[test]
fn shares_stay_exact_while_the_table_changes_for_other_reasons() {
    let store = Store::new(Instant::now());
    store.ask(Type::Routes, "t");
    let mut canary = 0;
    for i in 0..1000 {
        // A route comes and goes before that of the split.
        let main = (PathMatch::Prefix("/".into()), split([99, 1]));
        let other = (PathMatch::Exact("/other".into()), split([99, 1]));
        put(&store, table_of("t", if i % 2 == 0 { vec![other, main] } else { vec![main] }));
        let snapshot = store.load();
        let Action::Forward(forward) = &snapshot.routes("t").unwrap().virtual_hosts[0].routes.last().unwrap().action
        else {
            panic!()
        };
        canary += u32::from(&*forward.clusters.pick().unwrap().cluster == "v2");
    }
    assert_eq!(canary, 10);
}

#[test]
fn shares_of_byte_streams_and_datagrams_stay_exact_too() {
    let tcp = || TcpProxy {
        stat_prefix: String::new(),
        authorization: Authorization::default(),
        clusters: split([9, 1]),
        idle_timeout: Duration::ZERO,
        fault: None,
        hash_source: false,
        limits: None,
    };
    let udp = || UdpProxy {
        stat_prefix: String::new(),
        clusters: split([9, 1]),
        idle_timeout: Duration::from_secs(1),
        hash_source: false,
    };
    let store = Store::new(Instant::now());
    store.ask(Type::Listener, "l");
    let mut canary = (0, 0);
    for _ in 0..100 {
        let chain =
            FilterChain { matches: ChainMatch::default(), tls: None, filter: NetworkFilter::Tcp(Arc::new(tcp())) };
        put(
            &store,
            Resource::Listener(Arc::new(Listener {
                name: "l".to_owned(),
                chains: vec![],
                default_chain: Some(chain),
                udp: Some(Arc::new(udp())),
            })),
        );
        let snapshot = store.load();
        let listener = snapshot.listener("l").unwrap();
        let NetworkFilter::Tcp(tcp) = &listener.default_chain.as_ref().unwrap().filter else { panic!() };
        canary.0 += u32::from(&*tcp.clusters.pick().unwrap().cluster == "v2");
        canary.1 += u32::from(&*listener.udp.as_ref().unwrap().clusters.pick().unwrap().cluster == "v2");
    }
    assert_eq!(canary, (10, 10));
}
