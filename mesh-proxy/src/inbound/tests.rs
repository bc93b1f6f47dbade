use std::time::Duration;

use mesh_common::identity::Identity;
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
use crate::config::{ChainMatch, FilterChain, TcpProxy, Transport, UpstreamTls, WeightedClusters};
use crate::listen::Settings;
use crate::snapshot::{Resource, Store};
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
        },
        tls: (transport == Transport::Tls).then(|| DownstreamTls {
            require_client_certificate: true,
            alpn: protocols.iter().map(|it| it.as_bytes().to_vec()).collect(),
        }),
        filter: NetworkFilter::Tcp(Arc::new(TcpProxy {
            stat_prefix: String::new(),
            clusters: WeightedClusters::single("inbound:9080"),
            idle_timeout: Duration::ZERO,
            fault: None,
        })),
    }
}

fn context(tls: Tls, chains: Vec<FilterChain>) -> Arc<Context> {
    let listener = Listener { name: LISTENER_INBOUND.into(), chains, default_chain: None };
    let store = Store::of([Resource::Listener(Arc::new(listener))]);
    Arc::new(Context {
        upstreams: Upstreams::new(store.clone(), tls.clone()),
        store,
        tls,
        telemetry: Telemetry::new(TelemetryOptions::default()).unwrap(),
        settings: Settings { detect_timeout: Duration::ZERO, ..Settings::default() },
        drain: watch::channel(false).1,
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
    let ctx = context(Authority::new().tls("reviews"), strict());
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
    let ctx = context(Tls::default(), strict());
    for port in [15001, 15006] {
        assert!(is_reset(peer(port, &ctx).await).await);
    }
    recorded(&ctx, &[r#"response_flags="UAEX""#]).await;
}

#[tokio::test]
async fn without_a_listener_nothing_gets_in() {
    let ctx = context(Tls::default(), vec![]);
    assert!(is_reset(peer(PORT, &ctx).await).await);
    recorded(&ctx, &[r#"response_flags="NR""#]).await;
}

#[tokio::test]
async fn strangers_fail_in_the_handshake() {
    let ctx = context(Authority::new().tls("reviews"), strict());
    let stranger = Authority::new().tls("web");
    let stream = peer(PORT, &ctx).await;
    assert!(mutual_tls(stream, &stranger, b"mesh-tcp").await.is_err());
    recorded(&ctx, &[r#"response_flags="DPE""#]).await;
}
