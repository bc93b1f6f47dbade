//! The service as clients meet it: real gRPC over the loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use envoy_types::pb::envoy::service::status::v3::client_status_discovery_service_client::ClientStatusDiscoveryServiceClient;
use envoy_types::pb::envoy::service::status::v3::{ClientStatusRequest, ConfigStatus};
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{NodeMatcher, StringMatcher};
use futures_util::StreamExt;
use jiff::Timestamp;
use mesh_common::proto::control::WaitProgress;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Status, Streaming};

use super::super::Xds;
use super::super::types::Type::*;
use super::{delta, error, sotw};
use crate::auth::{Authenticator, Peer, PeerCertificate, Transport};
use crate::ca::Ca;
use crate::model::{self, Settings};
use crate::snapshot::{Commit, Snapshot};
use crate::store::Store;

const WEB: &str = "spiffe://mesh.local/ns/shop/sa/web";

/// A control plane with nothing in it but its certificate authority.
struct Mesh {
    xds: Xds,
    snapshots: watch::Sender<Arc<Snapshot>>,
    channel: Channel,
    _dir: tempfile::TempDir,
}

impl Mesh {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Arc::new(Ca::open(&dir.path().join("ca"), "mesh.local", Timestamp::now()).unwrap());
        let tokens = Store::open(&dir.path().join("store")).unwrap().tokens();
        let (snapshots, receiver) = watch::channel(Arc::new(snapshot(1, None)));
        let xds = Xds::new(receiver, ca, Authenticator::Tokens(tokens));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let server = Server::builder()
            .add_service(InterceptedService::new(xds.ads(), describe))
            .add_service(xds.csds())
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        Self { xds, snapshots, channel, _dir: dir }
    }

    fn commit(&self) -> u64 {
        let before = self.snapshots.borrow().clone();
        let revision = before.revision + 1;
        self.snapshots.send_replace(Arc::new(snapshot(revision, Some(&before))));
        revision
    }

    async fn delta(&self, who: Option<&str>) -> Stream<DeltaDiscoveryRequest, DeltaDiscoveryResponse> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let request = signed(UnboundedReceiverStream::new(receiver), who);
        let mut client = AggregatedDiscoveryServiceClient::new(self.channel.clone());
        let responses = client.delta_aggregated_resources(request).await.unwrap().into_inner();
        Stream { requests: sender, responses }
    }

    async fn sotw(&self, who: Option<&str>) -> Stream<DiscoveryRequest, DiscoveryResponse> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let request = signed(UnboundedReceiverStream::new(receiver), who);
        let mut client = AggregatedDiscoveryServiceClient::new(self.channel.clone());
        let responses = client.stream_aggregated_resources(request).await.unwrap().into_inner();
        Stream { requests: sender, responses }
    }

    async fn status(&self, request: ClientStatusRequest) -> Result<Vec<(String, Vec<GenericXdsConfig>)>, Status> {
        let mut client = ClientStatusDiscoveryServiceClient::new(self.channel.clone());
        let answer = client.fetch_client_status(request).await?.into_inner();
        Ok(answer.config.into_iter().map(|config| (config.node.unwrap().id, config.generic_xds_configs)).collect())
    }

    /// All that a waiter is told.
    async fn waited(&self, revision: u64, timeout: Duration) -> Vec<WaitProgress> {
        self.xds.wait(revision, timeout).collect().await
    }

    async fn until_proxies(&self, count: usize) {
        while self.xds.proxies().len() != count {
            tokio::task::yield_now().await;
        }
    }
}

struct Stream<Q, R> {
    requests: mpsc::UnboundedSender<Q>,
    responses: Streaming<R>,
}

impl<Q, R> Stream<Q, R> {
    fn send(&self, request: Q) {
        self.requests.send(request).ok().unwrap();
    }

    async fn response(&mut self) -> R {
        self.responses.message().await.unwrap().unwrap()
    }

    async fn refusal(&mut self) -> Status {
        self.responses.message().await.map(|_| ()).unwrap_err()
    }
}

fn snapshot(revision: u64, previous: Option<&Snapshot>) -> Snapshot {
    let settings = Settings { trust_domain: "mesh.local".to_owned() };
    let model = model::build(&Default::default(), &settings, &Default::default());
    Snapshot::new(Commit { revision, at: std::time::Instant::now() }, &[], model, previous)
}

/// What the acceptor would have learned of the connection, here from a header.
fn describe(mut request: Request<()>) -> Result<Request<()>, Status> {
    let text = |key: &str| request.metadata().get(key).map(|value| value.to_str().unwrap().to_owned());
    let not_after = Timestamp::now() + Duration::from_secs(3600);
    let verified = std::time::Instant::now();
    let certificate =
        text("test-identity").map(|id| PeerCertificate { identity: id.parse().unwrap(), not_after, verified });
    let transport = if text("test-tls").is_some() { Transport::Tls } else { Transport::Loopback };
    request.extensions_mut().insert(Peer::new("127.0.0.1:7".to_owned(), transport, certificate));
    Ok(request)
}

fn signed<T>(message: T, who: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(who) = who {
        request.metadata_mut().insert("test-identity", who.parse().unwrap());
    }
    request
}

fn node(id: &str, user_agent_name: &str) -> Option<Node> {
    Some(Node { id: id.to_owned(), user_agent_name: user_agent_name.to_owned(), ..Node::default() })
}

fn exact(id: &str) -> NodeMatcher {
    let pattern = Some(MatchPattern::Exact(id.to_owned()));
    NodeMatcher { node_id: Some(StringMatcher { match_pattern: pattern, ..Default::default() }), ..Default::default() }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|resource| resource.name.as_str()).collect()
}

fn answer(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        ..DeltaDiscoveryRequest::default()
    }
}

/// Nothing here takes long; a test that hangs says so.
async fn soon<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), test).await.unwrap()
}

#[tokio::test]
async fn secrets_are_for_those_who_have_proven_who_they_are() {
    soon(async {
        let mesh = Mesh::start().await;
        let asks = |user_agent| DeltaDiscoveryRequest {
            node: node("x.shop", user_agent),
            ..delta(Secret, &["default", "ROOTCA"], &[])
        };

        let mut envoy = mesh.delta(Some(WEB)).await;
        envoy.send(asks("envoy"));
        let response = envoy.response().await;
        assert_eq!(names(&response), ["ROOTCA", "default"]);
        assert!(
            String::from_utf8_lossy(&response.resources[1].resource.as_ref().unwrap().value).contains("PRIVATE KEY")
        );

        for (who, user_agent) in [(None, "envoy"), (Some(WEB), "mesh-proxy")] {
            let mut other = mesh.delta(who).await;
            other.send(asks(user_agent));
            let response = other.response().await;
            assert_eq!(names(&response), ["ROOTCA"]);
            assert_eq!(response.removed_resources, ["default"]);
        }
    })
    .await;
}

#[tokio::test]
async fn status_shows_what_each_client_has_but_no_keys() {
    soon(async {
        let mesh = Mesh::start().await;
        let mut envoy = mesh.delta(Some(WEB)).await;
        envoy.send(DeltaDiscoveryRequest { node: node("envoy.shop", "envoy"), ..delta(Secret, &["default"], &[]) });
        let response = envoy.response().await;
        let mut other = mesh.sotw(None).await;
        other.send(DiscoveryRequest { node: node("grpc", "gRPC C-core"), ..sotw(Secret, &["ROOTCA"], "") });
        let sent = other.response().await;
        other.send(sotw(Secret, &["ROOTCA"], &sent.nonce));
        mesh.until_proxies(2).await;
        mesh.waited(1, Duration::ZERO).await;

        let only = ClientStatusRequest { node_matchers: vec![exact("envoy.shop")], ..Default::default() };
        let shown = mesh.status(only.clone()).await.unwrap();
        let [(id, resources)] = &shown[..] else { panic!("{shown:?}") };
        assert_eq!((id.as_str(), resources.len()), ("envoy.shop", 1));
        let secret = &resources[0];
        assert_eq!((secret.name.as_str(), secret.config_status()), ("default", ConfigStatus::Stale));
        assert_eq!(secret.version_info, response.resources[0].version);
        let text = String::from_utf8_lossy(&secret.xds_config.as_ref().unwrap().value).into_owned();
        assert!(text.contains("BEGIN CERTIFICATE") && !text.contains("PRIVATE KEY"), "{text}");

        envoy.send(DeltaDiscoveryRequest { error_detail: Some(error("no thanks")), ..answer(&response) });
        while mesh.status(only.clone()).await.unwrap()[0].1[0].config_status() != ConfigStatus::Error {}
        let failure = mesh.status(only).await.unwrap()[0].1[0].error_state.clone().unwrap();
        assert_eq!(failure.details, "no thanks");

        let brief = ClientStatusRequest { exclude_resource_contents: true, ..Default::default() };
        let shown = mesh.status(brief).await.unwrap();
        assert_eq!(shown.len(), 2);
        assert!(shown.iter().all(|(_, resources)| resources[0].xds_config.is_none()));
        let unclear = ClientStatusRequest { node_matchers: vec![NodeMatcher::default()], ..Default::default() };
        assert_eq!(mesh.status(unclear).await.unwrap_err().code(), Code::InvalidArgument);
    })
    .await;
}

#[tokio::test]
async fn a_proxy_is_listed_with_what_is_known_of_it() {
    soon(async {
        let mesh = Mesh::start().await;
        let mut stream = mesh.sotw(Some(WEB)).await;
        stream.send(DiscoveryRequest { node: node("web-1.shop", "envoy"), ..sotw(Cluster, &[], "") });
        let response = stream.response().await;
        stream.send(sotw(Cluster, &[], &response.nonce));
        assert!(mesh.waited(0, Duration::from_secs(10)).await.last().unwrap().done);
        let proxies = mesh.xds.proxies();
        let [proxy] = &proxies[..] else { panic!("{proxies:?}") };
        assert_eq!((proxy.id.as_str(), proxy.identity.as_str(), proxy.namespace.as_str()), ("web-1.shop", WEB, "shop"));
        assert_eq!((proxy.protocol.as_str(), proxy.address.as_str()), ("sotw", "127.0.0.1:7"));
        assert_eq!((proxy.synced_revision, proxy.types.len()), (1, 1));
        assert_eq!((proxy.types[0].r#type.as_str(), proxy.types[0].synced), ("CDS", true));
        assert!((Timestamp::now().as_millisecond() - proxy.connected_unix_ms).abs() < 60_000);
        drop(stream);
        mesh.until_proxies(0).await;
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_cannot_be_served_ends_alone() {
    soon(async {
        let mesh = Mesh::start().await;
        let mut good = mesh.delta(Some(WEB)).await;
        good.send(DeltaDiscoveryRequest { node: node("good", "mesh-proxy"), ..delta(Name, &["a"], &[]) });
        assert_eq!(good.response().await.removed_resources, ["a"]);

        let mut nameless = mesh.delta(Some(WEB)).await;
        nameless.send(delta(Name, &["a"], &[]));
        assert_eq!(nameless.refusal().await.code(), Code::InvalidArgument);
        let mut greedy = mesh.delta(Some(WEB)).await;
        greedy
            .send(DeltaDiscoveryRequest { node: node("bad", "mesh-proxy"), ..delta(Name, &[&"x".repeat(2000)], &[]) });
        assert_eq!(greedy.refusal().await.code(), Code::InvalidArgument);
        let mut huge = mesh.delta(Some(WEB)).await;
        huge.send(DeltaDiscoveryRequest {
            node: node("bad", "mesh-proxy"),
            ..delta(Name, &[&"x".repeat(5 << 20)], &[])
        });
        assert_eq!(huge.refusal().await.code(), Code::OutOfRange);
        mesh.until_proxies(1).await;

        let mut request = Request::new(tokio_stream::pending::<DeltaDiscoveryRequest>());
        request.metadata_mut().insert("test-tls", "yes".parse().unwrap());
        let mut client = AggregatedDiscoveryServiceClient::new(mesh.channel.clone());
        assert_eq!(client.delta_aggregated_resources(request).await.unwrap_err().code(), Code::Unauthenticated);

        good.send(delta(Name, &["b"], &[]));
        good.send(DeltaDiscoveryRequest { response_nonce: "1".to_owned(), ..delta(Name, &[], &[]) });
        assert_eq!(good.response().await.removed_resources, ["b"]);
    })
    .await;
}

#[tokio::test]
async fn waiting_ends_when_all_have_it_or_one_refuses() {
    soon(async {
        let mesh = Mesh::start().await;
        let progress = mesh.waited(1, Duration::from_secs(10)).await;
        assert!(progress.last().is_some_and(|last| last.done && last.proxies == 0));

        let mut slow = mesh.delta(Some(WEB)).await;
        slow.send(DeltaDiscoveryRequest { node: node("slow", "envoy"), ..delta(Secret, &["ROOTCA"], &[]) });
        let response = slow.response().await;
        let fast = mesh.delta(Some(WEB)).await;
        fast.send(DeltaDiscoveryRequest { node: node("fast", "mesh-proxy"), ..delta(Cluster, &["a"], &[]) });
        mesh.until_proxies(2).await;
        let revision = mesh.commit();
        let progress = mesh.waited(revision, Duration::from_millis(50)).await;
        let last = progress.last().unwrap();
        assert!(!last.done && last.pending.contains(&"slow".to_owned()), "{last:?}");

        // Who goes away is not waited for.
        drop(fast);
        mesh.until_proxies(1).await;
        let waiting = tokio::spawn({
            let waiting = mesh.xds.wait(revision, Duration::from_secs(10));
            async move { waiting.collect::<Vec<_>>().await }
        });
        slow.send(answer(&response));
        let progress = waiting.await.unwrap();
        let last = progress.last().unwrap();
        assert!(last.done && last.pending.is_empty() && last.synced == 1, "{last:?}");

        // A refusal is the end of the waiting, too.
        slow.send(delta(Secret, &["ROOTCA"], &[]));
        let response = slow.response().await;
        let revision = mesh.commit();
        slow.send(DeltaDiscoveryRequest { error_detail: Some(error("no")), ..answer(&response) });
        while mesh.xds.proxies()[0].types.iter().all(|ty| ty.nack.is_empty()) {
            tokio::task::yield_now().await;
        }
        let progress = mesh.waited(revision - 1, Duration::from_secs(10)).await;
        let last = progress.last().unwrap();
        assert!(!last.done && last.rejected == ["slow: SDS: no"], "{last:?}");
        // What came after has been refused by nobody, but the refusal stands and is told.
        let progress = mesh.waited(revision, Duration::from_secs(10)).await;
        let last = progress.last().unwrap();
        assert!(last.done && last.rejected == ["slow: SDS: no"], "{last:?}");
    })
    .await;
}

#[tokio::test]
async fn endpoints_are_told_when_no_stream_is_behind() {
    soon(async {
        let mesh = Mesh::start().await;
        assert!(mesh.xds.endpoints_told(1, Duration::from_secs(10)).await.is_empty());
        let mut proxy = mesh.delta(Some(WEB)).await;
        proxy.send(DeltaDiscoveryRequest { node: node("web", "mesh-proxy"), ..delta(Endpoints, &["a"], &[]) });
        let response = proxy.response().await;
        let revision = mesh.commit();
        assert_eq!(mesh.xds.endpoints_told(revision, Duration::from_millis(20)).await, ["web"]);
        let waiting = tokio::spawn({
            let xds = mesh.xds.clone();
            async move { xds.endpoints_told(revision, Duration::from_secs(10)).await }
        });
        proxy.send(answer(&response));
        assert!(waiting.await.unwrap().is_empty());
        // One that has gone has nothing to be told any more.
        proxy.send(delta(Endpoints, &["b"], &[]));
        proxy.response().await;
        let waiting = tokio::spawn({
            let xds = mesh.xds.clone();
            async move { xds.endpoints_told(revision + 1, Duration::from_secs(10)).await }
        });
        drop(proxy);
        assert!(waiting.await.unwrap().is_empty());
    })
    .await;
}
