use std::time::Duration;

use mesh_common::identity::Identity;
use mesh_common::proto::telemetry::{Tap, TapFilter, TapVerdict};
use mesh_common::tls::{TrustBundle, certified_key};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls_pki_types::{PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;

use super::*;
use crate::config::{
    AtATime, Authorization, Balancer, ChainMatch, Cluster, Condition, Discovery, Endpoint, EndpointHealth, Endpoints,
    FilterChain, Gate, GateAction, Limits, Policy, PortLimits, PortRate, Spread, TcpProxy, Transport, UpstreamHttp,
    UpstreamTls, WeightedClusters,
};
use crate::limit::RateLimits;
use crate::listen::{InFlight, Phase, Settings};
use crate::pace::Rate;
use crate::snapshot::{Resource, Store, Type, Update};
use crate::telemetry::{Telemetry, TelemetryOptions};
use crate::tls::{Svid, Tls};
use crate::upstream::Upstreams;

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// TLS of a workload.
    fn tls(&self, account: &str) -> Tls {
        let identity = Identity::new("mesh.local", "default", account).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&key, &self.0).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let tls = Tls::default();
        tls.rotate(Svid {
            identity,
            certificate: certified_key(vec![leaf.der().clone()], key).unwrap(),
            bundle: TrustBundle::new("mesh.local", vec![self.0.der().clone()]).unwrap(),
            not_after: i64::MAX,
        });
        tls
    }
}

const PORT: u16 = 9080;

fn chain(transport: Transport, protocols: &[&str]) -> FilterChain {
    FilterChain {
        matches: ChainMatch {
            destination_port: Some(PORT),
            transport: Some(transport),
            application_protocols: protocols.iter().map(|it| (*it).to_owned()).collect(),
            ..ChainMatch::default()
        },
        tls: (transport == Transport::Tls).then(|| DownstreamTls {
            require_client_certificate: true,
            alpn: protocols.iter().map(|it| it.as_bytes().to_vec()).collect(),
        }),
        filter: NetworkFilter::Tcp(Arc::new(TcpProxy {
            stat_prefix: String::new(),
            authorization: Authorization::default(),
            clusters: WeightedClusters::single("inbound:9080"),
            idle_timeout: Duration::ZERO,
            fault: None,
            hash_source: false,
            limits: None,
        })),
    }
}

/// The application behind the proxy.
fn application(address: SocketAddr) -> Resource {
    let endpoint = Endpoint::at(address);
    let endpoints = Endpoints { name: "inbound:9080".into(), endpoints: vec![Arc::new(endpoint)] };
    let limits = Limits { max_connections: 10, max_pending: 10, max_requests: 10, max_retries: 3, retry_budget: None };
    Resource::Cluster(Arc::new(Cluster {
        name: "inbound:9080".into(),
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

fn context(tls: Tls, chains: Vec<FilterChain>, application: Option<Resource>) -> Arc<Context> {
    let listener = Listener { name: LISTENER_INBOUND.into(), chains, default_chain: None, udp: None };
    context_with(tls, Store::of([Resource::Listener(Arc::new(listener))].into_iter().chain(application)))
}

fn context_with(tls: Tls, store: Store) -> Arc<Context> {
    Arc::new(Context {
        upstreams: Upstreams::new(store.clone(), tls.clone()),
        store,
        tls,
        telemetry: Telemetry::new(TelemetryOptions::default()).unwrap(),
        settings: Settings { detect_timeout: Duration::ZERO, ..Settings::default() },
        phase: watch::channel(Phase::Serving).1,
        in_flight: InFlight::default(),
        rate_limits: RateLimits::default(),
        occupancy: Default::default(),
        overload: Default::default(),
        learned: Default::default(),
    })
}

fn strict() -> Vec<FilterChain> {
    vec![chain(Transport::Tls, &["mesh-h2"]), chain(Transport::Tls, &["mesh-tcp"])]
}

/// A peer whose connection, as the redirect would have it, was going to `port`.
async fn peer(port: u16, ctx: &Arc<Context>) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, peer) = listener.accept().await.unwrap();
    let downstream = Downstream::new(peer, ([10, 0, 0, 9], port).into(), Direction::Inbound);
    tokio::spawn(take(stream, listener.local_addr().unwrap(), downstream, ctx.clone()));
    client
}

async fn is_reset(mut client: TcpStream) -> bool {
    client.read(&mut [0; 8]).await.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
}

async fn recorded(ctx: &Context, labels: &[&str]) {
    let text = || ctx.telemetry.render();
    for _ in 0..1000 {
        let closed = |line: &str| {
            line.starts_with("mesh_tcp_connections_closed_total") && labels.iter().all(|it| line.contains(it))
        };
        if text().lines().any(closed) {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("no {labels:?} in\n{}", text());
}

async fn mutual_tls(
    stream: TcpStream,
    tls: &Tls,
    alpn: &[u8],
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let reviews = Identity::new("mesh.local", "default", "reviews").unwrap();
    let cluster = UpstreamTls { identities: vec![reviews], alpn: vec![], sni: String::new() };
    let config = tls.client(&cluster, alpn).unwrap();
    TlsConnector::from(config).connect(ServerName::try_from("reviews").unwrap(), stream).await
}

#[tokio::test]
async fn strict_ports_refuse_all_but_mutual_tls() {
    let ctx = context(Authority::new().tls("reviews"), strict(), None);
    for bytes in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x00\x01\x02"]
    {
        let mut client = peer(PORT, &ctx).await;
        client.write_all(bytes).await.unwrap();
        assert!(is_reset(client).await, "{bytes:?}");
    }
    // A port that nobody declared.
    assert!(is_reset(peer(9999, &ctx).await).await);
    recorded(&ctx, &[r#"response_flags="NR""#]).await;
}

#[tokio::test]
async fn the_proxy_itself_is_no_destination() {
    let ctx = context(Tls::default(), strict(), None);
    for port in [15001, 15006] {
        assert!(is_reset(peer(port, &ctx).await).await);
    }
    recorded(&ctx, &[r#"response_flags="UAEX""#]).await;
}

#[tokio::test]
async fn without_a_listener_nothing_gets_in() {
    let ctx = context(Tls::default(), vec![], None);
    assert!(is_reset(peer(PORT, &ctx).await).await);
    recorded(&ctx, &[r#"response_flags="NR""#]).await;
}

#[tokio::test]
async fn strangers_fail_in_the_handshake() {
    let ctx = context(Authority::new().tls("reviews"), strict(), None);
    let stranger = Authority::new().tls("web");
    let stream = peer(PORT, &ctx).await;
    assert!(mutual_tls(stream, &stranger, b"mesh-tcp").await.is_err());
    recorded(&ctx, &[r#"response_flags="DPE""#]).await;
}

#[tokio::test]
async fn a_byte_stream_reaches_the_application_with_the_identity_of_the_peer() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let authority = Authority::new();
    let ctx = context(authority.tls("reviews"), strict(), Some(application(app.local_addr().unwrap())));
    let serving = tokio::spawn(async move {
        let (mut stream, _) = app.accept().await.unwrap();
        let mut question = String::new();
        stream.read_to_string(&mut question).await.unwrap();
        stream.write_all(format!("{question} yourself").as_bytes()).await.unwrap();
    });
    let mut stream = mutual_tls(peer(PORT, &ctx).await, &authority.tls("web"), b"mesh-tcp").await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "hello yourself");
    serving.await.unwrap();
    drop(stream);
    let identity = r#"source_identity="spiffe://mesh.local/ns/default/sa/web""#;
    recorded(&ctx, &[identity, r#"security="mutual_tls""#, r#"response_flags="-""#]).await;
}

#[tokio::test]
async fn permissive_ports_take_plaintext_too() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut chains = strict();
    chains.push(chain(Transport::Raw, &[]));
    let ctx = context(Authority::new().tls("reviews"), chains, Some(application(app.local_addr().unwrap())));
    let mut client = peer(PORT, &ctx).await;
    let (mut stream, _) = app.accept().await.unwrap();
    // A protocol in which the server speaks first.
    stream.write_all(b"220 ready").await.unwrap();
    drop(stream);
    let mut text = String::new();
    client.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "220 ready");
    drop(client);
    recorded(&ctx, &[r#"security="none""#, r#"response_flags="-""#]).await;
}

/// An application that greets whoever comes and stays until they go.
async fn greeter() -> SocketAddr {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = app.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = app.accept().await.unwrap();
            tokio::spawn(async move {
                stream.write_all(b"hello").await.unwrap();
                let _ = stream.read(&mut [0; 8]).await;
            });
        }
    });
    address
}

/// `chains` that share a limit on connections.
fn limited(chains: Vec<FilterChain>, max: Option<u32>, per_caller: Option<u32>) -> Vec<FilterChain> {
    let connections = Some(AtATime { max, per_caller });
    under(chains, PortLimits { connections, ..PortLimits::none("inbound:9080") })
}

fn under(mut chains: Vec<FilterChain>, limits: PortLimits) -> Vec<FilterChain> {
    let limits = Arc::new(limits);
    for chain in &mut chains {
        let NetworkFilter::Tcp(proxy) = &mut chain.filter else { panic!("no TCP proxy") };
        Arc::get_mut(proxy).unwrap().limits = Some(limits.clone());
    }
    chains
}

/// One that is greeted.
async fn greeted<S: tokio::io::AsyncRead + Unpin>(stream: &mut S) -> bool {
    let mut text = [0; 5];
    stream.read_exact(&mut text).await.is_ok_and(|_| text == *b"hello")
}

#[tokio::test]
async fn connections_over_the_limit_are_closed_whatever_they_speak() {
    let authority = Authority::new();
    let chains = limited(strict().into_iter().chain([chain(Transport::Raw, &[])]).collect(), Some(2), None);
    let ctx = context(authority.tls("reviews"), chains, Some(application(greeter().await)));
    let mut plain = peer(PORT, &ctx).await;
    assert!(greeted(&mut plain).await);
    let web = authority.tls("web");
    let mut secure = mutual_tls(peer(PORT, &ctx).await, &web, b"mesh-tcp").await.unwrap();
    assert!(greeted(&mut secure).await);
    assert!(is_reset(peer(PORT, &ctx).await).await);
    // Before a key was computed with.
    assert!(mutual_tls(peer(PORT, &ctx).await, &web, b"mesh-tcp").await.is_err());
    recorded(&ctx, &[r#"response_flags="UO""#]).await;
    let metrics = ctx.telemetry.render();
    assert!(metrics.contains(r#"mesh_limits_hit_total{limit="connections"} 2"#), "{metrics}");
    // Whoever goes makes room.
    drop(plain);
    recorded(&ctx, &[r#"response_flags="-""#]).await;
    tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            let mut next = peer(PORT, &ctx).await;
            if greeted(&mut next).await {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_caller_s_connections_are_told_from_those_of_others() {
    let authority = Authority::new();
    let chains = limited(strict(), None, Some(1));
    let ctx = context(authority.tls("reviews"), chains, Some(application(greeter().await)));
    let (web, shop) = (authority.tls("web"), authority.tls("shop"));
    let mut first = mutual_tls(peer(PORT, &ctx).await, &web, b"mesh-tcp").await.unwrap();
    assert!(greeted(&mut first).await);
    // Who that is says the handshake.
    let mut second = mutual_tls(peer(PORT, &ctx).await, &web, b"mesh-tcp").await.unwrap();
    assert!(!greeted(&mut second).await);
    let mut other = mutual_tls(peer(PORT, &ctx).await, &shop, b"mesh-tcp").await.unwrap();
    assert!(greeted(&mut other).await);
    let identity = r#"source_identity="spiffe://mesh.local/ns/default/sa/web""#;
    recorded(&ctx, &[identity, r#"response_flags="UO""#]).await;
    let metrics = ctx.telemetry.render();
    assert!(metrics.contains(r#"mesh_limits_hit_total{limit="connections_per_caller"} 1"#), "{metrics}");
}

/// With the rules of the mesh, and an application that listens on the machine's own address alone: past the redirect, and never
/// back into the proxy. A port that nobody named is not looked for on the loopback address.
#[test]
fn an_application_is_called_where_it_listens() {
    const NAME: &str = "inbound::tests::an_application_is_called_where_it_listens";
    if !crate::intercept::tests::runs_in_namespace(NAME) {
        return;
    }
    crate::intercept::apply(&crate::intercept::Rules::default()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        for (listen, greeting) in [
            ("10.77.0.2:9080", "pod"),
            ("127.0.0.1:9081", "loopback"),
            ("10.77.0.2:9090", "unnamed"),
            ("127.0.0.1:9091", "secret"),
        ] {
            let app = TcpListener::bind(listen).await.unwrap();
            tokio::spawn(async move {
                loop {
                    app.accept().await.unwrap().0.write_all(greeting.as_bytes()).await.unwrap();
                }
            });
        }
        let named = |port: u16| {
            let mut chain = chain(Transport::Raw, &[]);
            chain.matches.destination_port = Some(port);
            let NetworkFilter::Tcp(filter) = &chain.filter else { panic!() };
            let (stat_prefix, idle_timeout) = (filter.stat_prefix.clone(), filter.idle_timeout);
            let clusters = WeightedClusters::single(&format!("inbound:{port}"));
            chain.filter = NetworkFilter::Tcp(Arc::new(TcpProxy {
                stat_prefix,
                authorization: Authorization::default(),
                clusters,
                idle_timeout,
                fault: None,
                hash_source: false,
                limits: None,
            }));
            chain
        };
        let rest = FilterChain {
            matches: ChainMatch::default(),
            tls: None,
            filter: NetworkFilter::Tcp(Arc::new(TcpProxy {
                stat_prefix: String::new(),
                authorization: Authorization::default(),
                clusters: WeightedClusters::single("passthrough"),
                idle_timeout: Duration::ZERO,
                fault: None,
                hash_source: false,
                limits: None,
            })),
        };
        let listener = Listener {
            name: LISTENER_INBOUND.into(),
            chains: vec![named(9080), named(9081)],
            default_chain: Some(rest),
            udp: None,
        };
        let cluster = |name: &str, discovery: Discovery| {
            let Resource::Cluster(local) = application(([127, 0, 0, 1], 1).into()) else { panic!() };
            Resource::Cluster(Arc::new(Cluster { name: name.into(), discovery, ..Cluster::clone(&local) }))
        };
        let at = |port: u16| {
            let Resource::Cluster(local) = application(([127, 0, 0, 1], port).into()) else { panic!() };
            cluster(&format!("inbound:{port}"), local.discovery.clone())
        };
        let passthrough = cluster("passthrough", Discovery::OriginalDestination);
        let store = Store::of([Resource::Listener(Arc::new(listener)), at(9080), at(9081), passthrough]);
        let tls = Tls::default();
        // As long as it is there, connections are taken.
        let (_serving, phase) = watch::channel(Phase::Serving);
        let ctx = Arc::new(Context {
            upstreams: Upstreams::new(store.clone(), tls.clone()),
            store,
            tls,
            telemetry: Telemetry::new(TelemetryOptions::default()).unwrap(),
            settings: Settings { detect_timeout: Duration::ZERO, ..Settings::default() },
            phase,
            in_flight: InFlight::default(),
            rate_limits: RateLimits::default(),
            occupancy: Default::default(),
            overload: Default::default(),
            learned: Default::default(),
        });
        let proxy = listen::tcp_listener(listen::everywhere(15006)).unwrap();
        tokio::spawn(serve(proxy, Connections::new(100), ctx.clone()));
        // As the proxy of a peer on this machine would.
        let call = async |port: u16| {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            listen::mark(&socket);
            let answer = async {
                let mut stream = socket.connect(([10, 77, 0, 2], port).into()).await?;
                let mut text = String::new();
                stream.read_to_string(&mut text).await.map(|_| text)
            };
            answer.await.unwrap_or_else(|error: std::io::Error| error.kind().to_string())
        };
        for (port, expected) in [
            (9080, "pod"),
            (9081, "loopback"),
            (9090, "unnamed"),
            (9091, "connection reset"),
            (9999, "connection reset"),
        ] {
            assert_eq!(call(port).await, expected, "{port}");
        }
    });
}

fn tapped(ctx: &Context) {
    let tap = Tap { id: 1, filter: Some(TapFilter::default()), ..Tap::default() };
    ctx.telemetry.taps().set(vec![tap], std::time::Instant::now());
}

/// What a tap is told of the policies.
async fn told(ctx: &Context) -> Vec<(TapVerdict, String)> {
    for _ in 0..2000 {
        let events = ctx.telemetry.taps().take().0;
        if !events.is_empty() {
            return events.into_iter().map(|event| (event.verdict(), event.policy)).collect();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("nothing is told");
}

fn gate(action: GateAction, policy: &str) -> Gate {
    let policy = Policy { name: policy.into(), permissions: vec![Condition::Any], principals: vec![Condition::Any] };
    Gate { action, dry_run: false, policies: vec![policy] }
}

fn nobody() -> Authorization {
    Authorization { gates: vec![Gate { action: GateAction::Allow, dry_run: false, policies: Vec::new() }] }
}

fn guarded(mut chain: FilterChain, authorization: Authorization) -> FilterChain {
    if let NetworkFilter::Tcp(filter) = &chain.filter {
        let clusters = WeightedClusters::single("inbound:9080");
        let (stat_prefix, idle_timeout) = (filter.stat_prefix.clone(), filter.idle_timeout);
        let proxy = TcpProxy {
            stat_prefix,
            authorization,
            clusters,
            idle_timeout,
            fault: None,
            hash_source: false,
            limits: None,
        };
        chain.filter = NetworkFilter::Tcp(Arc::new(proxy));
    }
    chain
}

#[tokio::test]
async fn a_stream_that_no_policy_lets_in_is_reset() {
    let tls = Authority::new().tls("reviews");
    let ctx = context(tls.clone(), vec![guarded(chain(Transport::Tls, &["mesh-tcp"]), nobody())], None);
    let mut stream = mutual_tls(peer(PORT, &ctx).await, &tls, b"mesh-tcp").await.unwrap();
    assert!(stream.read(&mut [0; 8]).await.is_err());
    recorded(&ctx, &[r#"response_flags="UAEX""#, "sa/reviews"]).await;
}

#[tokio::test]
async fn a_stream_that_is_open_is_held_to_a_policy_that_comes_later() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let store = Store::new(Instant::now());
    let ctx = context_with(Tls::default(), store.clone());
    let put = |ty, resource| {
        store.apply(ty, Update { resources: vec![("1".to_owned(), resource)], ..Update::default() });
    };
    let change = |chains| {
        let listener = Listener { name: LISTENER_INBOUND.into(), chains, default_chain: None, udp: None };
        put(Type::Listener, Resource::Listener(Arc::new(listener)));
    };
    // What nobody asks for is not kept; the question is polled first.
    tokio::join!(biased; store.listener(LISTENER_INBOUND), async { change(vec![chain(Transport::Raw, &[])]) });
    let application = application(app.local_addr().unwrap());
    tokio::join!(biased; store.cluster("inbound:9080"), async { put(Type::Cluster, application) });
    tapped(&ctx);
    let mut client = peer(PORT, &ctx).await;
    let (mut served, _) = app.accept().await.unwrap();
    client.write_all(b"a").await.unwrap();
    served.read_exact(&mut [0]).await.unwrap();

    change(vec![guarded(chain(Transport::Raw, &[]), Authorization::default())]);
    client.write_all(b"b").await.unwrap();
    served.read_exact(&mut [0]).await.unwrap();
    change(vec![guarded(chain(Transport::Raw, &[]), nobody())]);
    assert!(is_reset(client).await);
    assert!(served.read(&mut [0]).await.is_err());
    recorded(&ctx, &[r#"response_flags="UAEX""#]).await;
    assert_eq!(told(&ctx).await, [(TapVerdict::Denied, String::new())]);

    // The one that has ended it is told, and not the one that had let it in.
    let allow = || gate(GateAction::Allow, "open");
    let ended = [
        vec![guarded(
            chain(Transport::Raw, &[]),
            Authorization { gates: vec![gate(GateAction::Deny, "shut"), allow()] },
        )],
        strict(),
    ];
    for (chains, policy) in ended.into_iter().zip(["shut", ""]) {
        change(vec![guarded(chain(Transport::Raw, &[]), Authorization { gates: vec![allow()] })]);
        let client = peer(PORT, &ctx).await;
        let (served, _) = app.accept().await.unwrap();
        change(chains);
        assert!(is_reset(client).await);
        assert_eq!(told(&ctx).await, [(TapVerdict::Denied, policy.to_owned())]);
        drop(served);
    }
    change(vec![guarded(chain(Transport::Raw, &[]), Authorization { gates: vec![allow()] })]);
    let client = peer(PORT, &ctx).await;
    drop((app.accept().await.unwrap(), client));
    assert_eq!(told(&ctx).await, [(TapVerdict::Allowed, "open".to_owned())]);
}

/// Before a byte is read: the clients say nothing, and nobody waits for them to.
#[tokio::test]
async fn addresses_that_no_policy_lets_in_are_reset_at_once() {
    let only_from = |range: &str| {
        let from = Condition::Source(range.parse().unwrap());
        let policy = Policy { name: "p".into(), permissions: vec![Condition::Any], principals: vec![from] };
        Authorization { gates: vec![Gate { action: GateAction::Allow, dry_run: false, policies: vec![policy] }] }
    };
    for (range, lets_in) in [("192.0.2.0/24", false), ("127.0.0.0/8", true)] {
        let chains = ["mesh-h2", "mesh-tcp"].map(|alpn| guarded(chain(Transport::Tls, &[alpn]), only_from(range)));
        let mut ctx = context(Authority::new().tls("reviews"), chains.into(), None);
        Arc::get_mut(&mut ctx).unwrap().settings.detect_timeout = Duration::from_secs(3600);
        tapped(&ctx);
        let client = peer(PORT, &ctx).await;
        // One that may be let in is waited for.
        let patience = Duration::from_millis(if lets_in { 300 } else { 5000 });
        let reset = tokio::time::timeout(patience, is_reset(client)).await;
        assert_eq!(reset.unwrap_or(false), !lets_in, "{range}");
        if !lets_in {
            recorded(&ctx, &[r#"response_flags="UAEX""#, "unknown"]).await;
            assert_eq!(told(&ctx).await, [(TapVerdict::Denied, String::new())]);
        }
    }
    let mut shut = Authorization { gates: vec![gate(GateAction::Deny, "shut")] };
    shut.gates[0].policies[0].principals = vec![Condition::Source("127.0.0.0/8".parse().unwrap())];
    let ctx = context(Authority::new().tls("reviews"), vec![guarded(chain(Transport::Tls, &["mesh-tcp"]), shut)], None);
    tapped(&ctx);
    assert!(is_reset(peer(PORT, &ctx).await).await);
    assert_eq!(told(&ctx).await, [(TapVerdict::Denied, "shut".to_owned())]);
    // While one chain could let it in, the connection is looked at.
    let chains = vec![
        guarded(chain(Transport::Tls, &["mesh-h2"]), only_from("192.0.2.0/24")),
        guarded(chain(Transport::Tls, &["mesh-tcp"]), Authorization::default()),
    ];
    let tls = Authority::new().tls("reviews");
    let ctx = context(tls.clone(), chains, None);
    assert!(mutual_tls(peer(PORT, &ctx).await, &tls, b"mesh-tcp").await.is_ok());
}

#[tokio::test]
async fn byte_streams_keep_to_the_bandwidth_of_their_caller() {
    let authority = Authority::new();
    let down = Some(PortRate { max: None, per_caller: Rate::new(10) });
    let limits = PortLimits { down, ..PortLimits::none("inbound:9080") };
    let ctx = context(authority.tls("reviews"), under(strict(), limits), Some(application(greeter().await)));
    for account in ["web", "shop"] {
        let mut stream = mutual_tls(peer(PORT, &ctx).await, &authority.tls(account), b"mesh-tcp").await.unwrap();
        let began = Instant::now();
        assert!(greeted(&mut stream).await);
        // Two of five bytes are saved.
        assert!(began.elapsed() >= Duration::from_millis(250), "{:?}", began.elapsed());
    }
    let metrics = ctx.telemetry.render();
    assert!(metrics.contains(r#"mesh_limits_delayed_total{limit="bandwidth_down"} 2"#), "{metrics}");
}
