use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name as DnsName, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::sync::watch;

use super::*;
use crate::config::{
    Action, Authorization, ChainMatch, Endpoint, Endpoints, FilterChain, Name, RouteSource, UpstreamHttp,
    WeightedClusters,
};
use crate::dns::{Dns, DnsSockets, Resolvers};
use crate::http::tests::{manager, put, route, table};
use crate::intercept;
use crate::limit::RateLimits;
use crate::listen::{InFlight, Phase, Settings};
use crate::snapshot::{Resource, Store, Type, Update};
use crate::telemetry::{Telemetry, TelemetryOptions};
use crate::tls::Tls;
use crate::upstream::Upstreams;

fn context(resources: impl IntoIterator<Item = Resource>) -> Arc<Context> {
    patient(Duration::ZERO, resources)
}

fn patient(detect_timeout: Duration, resources: impl IntoIterator<Item = Resource>) -> Arc<Context> {
    with_store(detect_timeout, Store::of(resources))
}

fn with_store(detect_timeout: Duration, store: Store) -> Arc<Context> {
    let tls = Tls::default();
    Arc::new(Context {
        upstreams: Upstreams::new(store.clone(), tls.clone()),
        store,
        tls,
        telemetry: Telemetry::new(TelemetryOptions::default()).unwrap(),
        settings: Settings { detect_timeout, ..Settings::default() },
        phase: watch::channel(Phase::Serving).1,
        in_flight: InFlight::default(),
        rate_limits: RateLimits::default(),
        occupancy: Default::default(),
        overload: Default::default(),
        learned: Default::default(),
    })
}

/// A client whose connection, as the redirect would have it, was going to `destination`.
async fn client(destination: &str, ctx: &Arc<Context>) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, peer) = listener.accept().await.unwrap();
    let local = stream.local_addr().unwrap();
    let downstream = Downstream::new(peer, destination.parse().unwrap_or(local), Direction::Outbound);
    tokio::spawn(take(stream, local, downstream, ctx.clone()));
    client
}

async fn is_reset(mut client: TcpStream) -> bool {
    client.read(&mut [0; 8]).await.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
}

/// Waits for the record, which is written after the connection's end.
async fn recorded(ctx: &Context, flags: &str) {
    let flags = format!("response_flags=\"{flags}\"");
    let text = || ctx.telemetry.render();
    for _ in 0..1000 {
        if text().lines().any(|it| it.starts_with("mesh_tcp_connections_closed_total") && it.contains(&flags)) {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("no {flags} in\n{}", text());
}

#[tokio::test]
async fn the_proxy_itself_is_no_destination() {
    let ctx = context([]);
    for destination in ["not redirected", "127.0.0.1:15001", "[::1]:15006"] {
        assert!(is_reset(client(destination, &ctx).await).await, "{destination}");
    }
    recorded(&ctx, "UAEX").await;
}

#[tokio::test]
async fn virtual_addresses_never_leave_the_mesh() {
    let ctx = context([]);
    assert!(is_reset(client("240.240.0.5:80", &ctx).await).await);
    recorded(&ctx, "NFCF").await;
    assert!(is_reset(client("[fd00:6d65:7368::5]:80", &ctx).await).await);
}

#[tokio::test]
async fn what_is_not_of_the_mesh_is_passed_through() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ctx = context([]);
    let mut client = client(&server.local_addr().unwrap().to_string(), &ctx).await;
    let (mut accepted, _) = server.accept().await.unwrap();
    accepted.write_all(b"hello").await.unwrap();
    drop(accepted);
    let mut text = String::new();
    client.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello");
    drop(client);
    recorded(&ctx, "-").await;
}

/// Decision 16: only a control plane knows how to call it, and there is none.
#[tokio::test]
async fn a_known_workload_is_not_called_in_plaintext_without_a_listener() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let destination = server.local_addr().unwrap().to_string();
    let endpoints = |mesh| {
        let endpoint = Endpoint { mesh, ..Endpoint::at("127.0.0.1:1".parse().unwrap()) };
        Resource::Endpoints(Arc::new(Endpoints { name: "reviews".into(), endpoints: vec![Arc::new(endpoint)] }))
    };
    let ctx = context([endpoints(true)]);
    assert!(is_reset(client(&destination, &ctx).await).await);
    recorded(&ctx, "NFCF").await;
    // An endpoint without a proxy is called as what is not of the mesh.
    let ctx = context([endpoints(false)]);
    let _client = client(&destination, &ctx).await;
    server.accept().await.unwrap();
}

#[tokio::test]
async fn a_listener_without_a_chain_for_it_refuses() {
    let listener = |chains| {
        let listener = Listener { name: "10.0.0.1:80".into(), chains, default_chain: None, udp: None };
        context([Resource::Listener(Arc::new(listener))])
    };
    let ctx = listener(Vec::<FilterChain>::new());
    assert!(is_reset(client("10.0.0.1:80", &ctx).await).await);
    recorded(&ctx, "NR").await;
}

const GREETING: &[u8] = b"220 mail.example.com ESMTP\r\n";

/// A server that greets who connects, and says what it hears.
async fn greeter() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.write_all(GREETING).await;
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

/// A port whose protocol is declared, or one where HTTP is told from the rest.
fn to_server(server: SocketAddr, declared: bool, detect_timeout: Duration) -> Arc<Context> {
    let tcp = NetworkFilter::Tcp(Arc::new(TcpProxy {
        stat_prefix: "mail".into(),
        authorization: Authorization::default(),
        clusters: WeightedClusters::single("mail"),
        idle_timeout: Duration::ZERO,
        fault: None,
        hash_source: false,
        limits: None,
    }));
    let chain = |protocols: &[&str], filter: NetworkFilter| FilterChain {
        matches: ChainMatch {
            destination_port: None,
            transport: None,
            server_names: vec![],
            application_protocols: protocols.iter().map(|it| (*it).to_owned()).collect(),
        },
        tls: None,
        filter,
    };
    let http = chain(&["http/1.1", "h2c"], tcp.clone());
    let chains = if declared { vec![] } else { vec![http] };
    let listener = Listener { name: "10.0.0.1:25".into(), chains, default_chain: Some(chain(&[], tcp)), udp: None };
    let endpoints = Endpoints { name: "mail".into(), endpoints: vec![Arc::new(Endpoint::at(server))] };
    let cluster = crate::http::tests::cluster("mail", UpstreamHttp::Http1);
    patient(
        detect_timeout,
        [
            Resource::Listener(Arc::new(listener)),
            Resource::Cluster(Arc::new(cluster)),
            Resource::Endpoints(Arc::new(endpoints)),
        ],
    )
}

async fn greeted(ctx: &Arc<Context>) -> Duration {
    let mut client = client("10.0.0.1:25", ctx).await;
    let began = Instant::now();
    let mut greeting = vec![0; GREETING.len()];
    tokio::time::timeout(Duration::from_secs(10), client.read_exact(&mut greeting)).await.unwrap().unwrap();
    assert_eq!(greeting, GREETING);
    began.elapsed()
}

#[tokio::test]
async fn who_waits_for_the_server_waits_once_and_never_where_the_port_is_declared() {
    let patience = Duration::from_secs(1);
    let server = greeter().await;
    let declared = to_server(server, true, patience);
    assert!(greeted(&declared).await < patience);
    let undeclared = to_server(server, false, patience);
    assert!(greeted(&undeclared).await >= patience);
    for _ in 0..3 {
        let took = greeted(&undeclared).await;
        assert!(took < patience, "{took:?}");
    }
    // Where the client speaks first after all, the next one is listened to again.
    let learned = &undeclared.learned;
    let destination = "10.0.0.1:25".parse().unwrap();
    assert!(learned.speaks_first(destination));
    learned.saw(destination, false);
    assert!(greeted(&undeclared).await >= patience);
}

/// One that answers everything itself.
fn answering(body: &'static str) -> Resource {
    let table = table(vec![route(Action::Direct { status: ::http::StatusCode::OK, body: body.into() })]);
    let manager = manager(RouteSource::Inline(Arc::new(table)));
    of_chains(vec![FilterChain {
        matches: ChainMatch::default(),
        tls: None,
        filter: NetworkFilter::Http(Arc::new(manager)),
    }])
}

fn of_chains(chains: Vec<FilterChain>) -> Resource {
    Resource::Listener(Arc::new(Listener { name: "10.0.0.1:80".into(), chains, default_chain: None, udp: None }))
}

#[tokio::test]
async fn a_connection_follows_its_listener() {
    let store = Store::new(Instant::now());
    let ctx = with_store(Duration::ZERO, store.clone());
    put(&store, answering("before")).await;
    let mut client = client("10.0.0.1:80", &ctx).await;
    // Without chains the application goes on as it began.
    for (resource, expected) in
        [(answering("before"), "before"), (answering("after"), "after"), (of_chains(vec![]), "before")]
    {
        let update = Update { resources: vec![("2".to_owned(), resource)], ..Update::default() };
        store.apply(Type::Listener, update);
        client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut text = String::new();
        while !text.ends_with(expected) {
            let mut piece = [0; 1024];
            let read = tokio::time::timeout(Duration::from_secs(10), client.read(&mut piece)).await.unwrap().unwrap();
            assert!(read > 0, "{text}");
            text.push_str(std::str::from_utf8(&piece[..read]).unwrap());
        }
    }
}

/// In a namespace of its own, with the rules that the mesh writes: what the kernel says of redirected connections, on
/// the sockets that the proxy uses, and that DNS replies find their way back.
#[test]
fn redirected_connections_say_where_they_were_going() {
    if !intercept::tests::runs_in_namespace("outbound::tests::redirected_connections_say_where_they_were_going") {
        return;
    }
    intercept::apply(&intercept::Rules::default()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = listen::tcp_listener(listen::everywhere(15001)).unwrap();
        for target in ["192.0.2.7:80", "[2001:db8::7]:80", "240.240.0.5:9080"] {
            let target: SocketAddr = target.parse().unwrap();
            let client = TcpStream::connect(target).await.unwrap();
            let (stream, peer) = listener.accept().await.unwrap();
            assert_eq!(listen::plain(peer), client.local_addr().unwrap());
            assert_eq!(listen::original_destination(&stream).unwrap(), target);
        }
        let direct = TcpStream::connect("127.0.0.1:15001").await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        assert_eq!(listen::original_destination(&stream).unwrap(), direct.peer_addr().unwrap());

        let name = Name {
            addresses: vec!["240.240.0.5".parse().unwrap()],
            ttl_seconds: 1,
            canonical: "reviews".into(),
            alias: None,
        };
        let store = Store::of([Resource::Name("reviews".into(), Arc::new(name))]);
        let telemetry = Telemetry::new(TelemetryOptions::default()).unwrap();
        let dns = Arc::new(Dns::new(store, Resolvers::default(), telemetry));
        tokio::spawn(dns.serve(DnsSockets::bind(15053).unwrap()));
        for (local, resolver) in [("0.0.0.0:0", "192.0.2.53:53"), ("[::]:0", "[2001:db8::53]:53")] {
            let mut query = Message::new(1, MessageType::Query, OpCode::Query);
            query.add_query(Query::query(DnsName::from_ascii("reviews.").unwrap(), RecordType::A));
            let query = query.to_vec().unwrap();
            // A connected socket takes replies from nobody but the resolver that it asked.
            let socket = UdpSocket::bind(local).await.unwrap();
            socket.connect(resolver).await.unwrap();
            socket.send(&query).await.unwrap();
            let mut buffer = [0; 512];
            let reply = tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut buffer)).await;
            let length = reply.unwrap_or_else(|_| panic!("no reply from {resolver}")).unwrap();
            assert_eq!(Message::from_vec(&buffer[..length]).unwrap().answers.len(), 1);

            let mut stream = TcpStream::connect(resolver).await.unwrap();
            stream.write_u16(u16::try_from(query.len()).unwrap()).await.unwrap();
            stream.write_all(&query).await.unwrap();
            assert!(stream.read_u16().await.unwrap() > 12);
        }
    });
}
