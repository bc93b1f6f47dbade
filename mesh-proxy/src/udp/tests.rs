//! Datagrams through real sockets. Where the kernel hands them over, in a namespace of its own.

use std::net::UdpSocket as StdSocket;

use tokio::net::UdpSocket;
use tokio::sync::watch;

use super::*;
use crate::config::{
    Balancer, Cluster, Discovery, Endpoint, EndpointHealth, Endpoints, HeaderMutation, Limits, Listener, Spread,
    UdpProxy, UpstreamHttp, WeightedCluster, WeightedClusters,
};
use crate::http::tests::put;
use crate::intercept::{self, Rules};
use crate::limit::RateLimits;
use crate::listen::{InFlight, Settings};
use crate::snapshot::{Resource, Store};
use crate::telemetry::{Telemetry, TelemetryOptions};
use crate::tls::Tls;
use crate::upstream::Upstreams;

fn context(resources: Vec<Resource>, max_udp_sessions: usize) -> Arc<Context> {
    with_store(Store::of(resources), max_udp_sessions)
}

fn with_store(store: Store, max_udp_sessions: usize) -> Arc<Context> {
    let tls = Tls::default();
    let (phase, phases) = watch::channel(Phase::Serving);
    // Without anybody who could say so, the proxy is at its end.
    std::mem::forget(phase);
    Arc::new(Context {
        upstreams: Upstreams::new(store.clone(), tls.clone()),
        store,
        tls,
        telemetry: Telemetry::new(TelemetryOptions::default()).unwrap(),
        settings: Settings { max_udp_sessions, ..Settings::default() },
        phase: phases,
        in_flight: InFlight::default(),
        rate_limits: RateLimits::default(),
        occupancy: Default::default(),
        learned: Default::default(),
        overload: Default::default(),
    })
}

fn listener(at: &str, clusters: &[(&str, u32)], idle_timeout: Duration) -> Resource {
    let choice = |(name, weight): &(&str, u32)| WeightedCluster {
        cluster: (*name).into(),
        weight: *weight,
        request_headers: HeaderMutation::default(),
        response_headers: HeaderMutation::default(),
    };
    let udp = UdpProxy {
        stat_prefix: "echo".into(),
        clusters: WeightedClusters::new(clusters.iter().map(choice).collect()),
        idle_timeout,
        hash_source: false,
    };
    Resource::Listener(Arc::new(Listener {
        name: format!("udp:{at}"),
        chains: vec![],
        default_chain: None,
        udp: Some(Arc::new(udp)),
    }))
}

fn cluster(name: &str, endpoints: &[SocketAddr], max_connections: u32) -> Resource {
    let endpoints = endpoints.iter().map(|it| Arc::new(Endpoint::at(*it))).collect();
    let endpoints = Endpoints { name: name.into(), endpoints };
    let limits = Limits { max_connections, max_pending: 1, max_requests: 1, max_retries: 1, retry_budget: None };
    Resource::Cluster(Arc::new(Cluster {
        name: name.into(),
        discovery: Discovery::Static(Arc::new(endpoints)),
        balancer: Balancer::RoundRobin,
        spread: Spread::default(),
        connect_timeout: Duration::from_secs(5),
        tls: None,
        tls_always: false,
        http: UpstreamHttp::Downstream,
        limits,
        health: EndpointHealth::default(),
    }))
}

/// Answers each datagram with a name before it.
async fn echo(at: &str, name: &'static str) -> SocketAddr {
    let socket = UdpSocket::bind(at).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = vec![0; MAX_DATAGRAM];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            let reply = [name.as_bytes(), b" ", &buffer[..length]].concat();
            socket.send_to(&reply[..reply.len().min(65_507)], peer).await.unwrap();
        }
    });
    address
}

/// A connected socket takes only what seems to come from whom it is connected to.
async fn client(to: &str) -> UdpSocket {
    let to: SocketAddr = to.parse().unwrap();
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).await.unwrap();
    socket.connect(to).await.unwrap();
    socket
}

async fn reply(socket: &UdpSocket) -> Option<String> {
    let mut buffer = vec![0; MAX_DATAGRAM];
    match tokio::time::timeout(Duration::from_millis(800), socket.recv(&mut buffer)).await {
        Ok(Ok(length)) => Some(String::from_utf8_lossy(&buffer[..length]).into_owned()),
        Ok(Err(error)) => Some(error.kind().to_string()),
        Err(_) => None,
    }
}

async fn ask(socket: &UdpSocket, text: &str) -> Option<String> {
    socket.send(text.as_bytes()).await.unwrap();
    reply(socket).await
}

async fn metric(ctx: &Context, line: &str) {
    for _ in 0..200 {
        if ctx.telemetry.render().lines().any(|it| it == line) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let text = ctx.telemetry.render();
    let udp: Vec<_> = text.lines().filter(|it| it.starts_with("mesh_udp")).collect();
    panic!("no {line} in\n{}", udp.join("\n"));
}

/// Runs the test of this name, with what it returns, in a namespace whose datagrams are handed over.
fn inside<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F) {
    if !intercept::tests::runs_in_namespace(&format!("udp::tests::{name}")) {
        return;
    }
    intercept::apply(&Rules { udp: true, ..Rules::default() }).unwrap();
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(test());
}

fn serve_here(ctx: &Arc<Context>) {
    tokio::spawn(serve(UdpSockets::bind(ctx.settings.outbound_port).unwrap(), ctx.clone()));
}

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn replies_come_from_where_the_client_sent_to() {
    inside("replies_come_from_where_the_client_sent_to", || async {
        let mut resources = vec![];
        for (at, own) in [("240.240.0.5:9000", "10.77.0.2:0"), ("[fd00:6d65:7368::5]:9000", "[fd77::2]:0")] {
            let address = echo(own, "echo").await;
            resources.extend([listener(at, &[(at, 1)], MINUTE), cluster(at, &[address], 10)]);
        }
        let ctx = context(resources, 100);
        serve_here(&ctx);
        // The application's own socket at the same port is in nobody's way.
        let own = StdSocket::bind("0.0.0.0:9000").unwrap();
        for at in ["240.240.0.5:9000", "[fd00:6d65:7368::5]:9000"] {
            let client = client(at).await;
            assert_eq!(ask(&client, "one").await.as_deref(), Some("echo one"), "{at}");
            assert_eq!(ask(&client, "two").await.as_deref(), Some("echo two"), "{at}");
            assert_eq!(ask(&client, "").await.as_deref(), Some("echo "), "{at}");
            let long = "x".repeat(60_000);
            assert_eq!(ask(&client, &long).await.map(|it| it.len()), Some(60_005), "{at}");
        }
        metric(&ctx, "mesh_udp_sessions_active 2").await;
        drop(own);
        // What no service has, and what is none of the mesh's business.
        assert_eq!(ask(&client("240.240.0.6:9000").await, "x").await, None);
        metric(&ctx, "mesh_udp_datagrams_dropped_total{reason=\"configuration\"} 1").await;
        let elsewhere = echo("10.77.0.2:0", "direct").await;
        assert_eq!(ask(&client(&elsewhere.to_string()).await, "x").await.as_deref(), Some("direct x"));
    });
}

#[test]
fn sessions_are_spread_by_weight_and_stay() {
    inside("sessions_are_spread_by_weight_and_stay", || async {
        let (one, two) = (echo("127.0.0.1:0", "one").await, echo("127.0.0.1:0", "two").await);
        let at = "240.240.0.5:9000";
        let ctx = context(
            vec![
                listener(at, &[("one", 9), ("two", 1)], MINUTE),
                cluster("one", &[one], 1000),
                cluster("two", &[two], 1000),
            ],
            100,
        );
        serve_here(&ctx);
        let mut of_two = 0;
        let mut clients = Vec::new();
        for _ in 0..20 {
            let client = client(at).await;
            let first = ask(&client, "x").await.unwrap();
            of_two += usize::from(first == "two x");
            clients.push((client, first));
        }
        assert_eq!(of_two, 2);
        for (client, first) in &clients {
            assert_eq!(ask(client, "x").await.as_ref(), Some(first));
        }
        metric(&ctx, "mesh_udp_sessions_active 20").await;
    });
}

#[test]
fn a_session_stays_when_its_route_leads_to_its_endpoint_by_another_cluster() {
    inside("a_session_stays_when_its_route_leads_to_its_endpoint_by_another_cluster", || async {
        let (one, two) = (echo("127.0.0.1:0", "one").await, echo("127.0.0.1:0", "two").await);
        let at = "240.240.0.5:9000";
        let store = Store::new(Instant::now());
        put(&store, cluster("one", &[one], 1000)).await;
        put(&store, cluster("two", &[two], 1000)).await;
        put(&store, cluster("both", &[two, one], 1000)).await;
        let routed = async |to: &str| put(&store, listener(at, &[(to, 1)], MINUTE)).await;
        routed("one").await;
        let ctx = with_store(store.clone(), 100);
        serve_here(&ctx);
        let mut clients = Vec::new();
        for _ in 0..4 {
            let client = client(at).await;
            assert_eq!(ask(&client, "x").await.as_deref(), Some("one x"));
            clients.push(client);
        }
        routed("both").await;
        for client in &clients {
            assert_eq!(ask(client, "x").await.as_deref(), Some("one x"));
        }
        routed("two").await;
        for client in &clients {
            assert_eq!(ask(client, "x").await.as_deref(), Some("two x"));
        }
        metric(&ctx, "mesh_udp_sessions_active 4").await;
    });
}

#[test]
fn an_endpoint_that_refuses_is_left_for_another() {
    inside("an_endpoint_that_refuses_is_left_for_another", || async {
        let alive = echo("127.0.0.1:0", "alive").await;
        let dead = StdSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let at = "240.240.0.5:9000";
        let ctx = context(vec![listener(at, &[("c", 1)], MINUTE), cluster("c", &[dead, alive], 1000)], 100);
        serve_here(&ctx);
        let mut lost = 0;
        for _ in 0..4 {
            let client = client(at).await;
            // Of those that get the dead one first, one datagram is lost.
            lost += usize::from(ask(&client, "x").await.is_none());
            for _ in 0..2 {
                assert_eq!(ask(&client, "x").await.as_deref(), Some("alive x"));
            }
        }
        assert!((1..=4).contains(&lost), "{lost}");
        metric(&ctx, &format!("mesh_udp_datagrams_dropped_total{{reason=\"refused\"}} {lost}")).await;
    });
}

#[test]
fn there_are_limits_to_sessions_and_idle_ones_end() {
    inside("there_are_limits_to_sessions_and_idle_ones_end", || async {
        let (wide, narrow) = ("240.240.0.5:9000", "240.240.0.6:9000");
        let address = echo("127.0.0.1:0", "echo").await;
        let idle = Duration::from_millis(1500);
        let resources = vec![
            listener(wide, &[("wide", 1)], idle),
            cluster("wide", &[address], 1000),
            listener(narrow, &[("narrow", 1)], MINUTE),
            cluster("narrow", &[address], 1),
        ];
        let ctx = context(resources, 4);
        serve_here(&ctx);
        // Of the cluster: one.
        let first = client(narrow).await;
        assert_eq!(ask(&first, "x").await.as_deref(), Some("echo x"));
        assert_eq!(ask(&client(narrow).await, "x").await, None);
        metric(&ctx, "mesh_udp_datagrams_dropped_total{reason=\"overflow\"} 1").await;
        // Of all: four.
        let clients = [client(wide).await, client(wide).await, client(wide).await];
        for client in &clients {
            assert_eq!(ask(client, "x").await.as_deref(), Some("echo x"));
        }
        assert_eq!(ask(&client(wide).await, "x").await, None);
        metric(&ctx, "mesh_udp_datagrams_dropped_total{reason=\"overflow\"} 2").await;
        // Those of the wide one end by themselves, and leave room.
        metric(&ctx, "mesh_udp_sessions_active 1").await;
        assert_eq!(ask(&client(wide).await, "x").await.as_deref(), Some("echo x"));
        assert_eq!(ask(&first, "x").await.as_deref(), Some("echo x"));
    });
}

#[test]
fn nobody_answers_while_no_proxy_runs() {
    inside("nobody_answers_while_no_proxy_runs", || async {
        let own = echo("0.0.0.0:9000", "own").await;
        let client = client("240.240.0.5:9000").await;
        // It goes to no socket of this machine by accident.
        assert_eq!(ask(&client, "x").await, None, "{own}");
        intercept::remove().unwrap();
        intercept::remove().unwrap();
    });
}
