use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use envoy_types::pb::envoy::config::cluster::v3::Cluster as PbCluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse, Resource as PbResource};
use envoy_types::pb::google::protobuf::Any;
use prost::Message;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::snapshot::Found;

/// One stream, as the control plane sees it.
struct Peer {
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::UnboundedSender<Result<DeltaDiscoveryResponse, Status>>,
}

impl Peer {
    async fn request(&mut self) -> DeltaDiscoveryRequest {
        let next = tokio::time::timeout(Duration::from_secs(20), self.requests.next()).await;
        next.expect("the proxy says nothing").unwrap().unwrap()
    }

    fn send(&self, nonce: &str, resources: Vec<PbResource>, removed: &[&str]) {
        let response = DeltaDiscoveryResponse {
            type_url: Type::Cluster.url().to_owned(),
            nonce: nonce.to_owned(),
            resources,
            removed_resources: removed.iter().map(|it| (*it).to_owned()).collect(),
            ..Default::default()
        };
        self.responses.send(Ok(response)).unwrap();
    }
}

/// Hands its streams to the test.
struct Fake {
    streams: mpsc::UnboundedSender<Peer>,
}

type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Fake {
    type StreamAggregatedResourcesStream = Outgoing<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Outgoing<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("delta only"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (responses, receiver) = mpsc::unbounded_channel();
        let _ = self.streams.send(Peer { requests: request.into_inner(), responses });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(receiver))))
    }
}

/// A control plane on the loopback address, and a client of it with its store.
struct Bench {
    store: Store,
    streams: mpsc::UnboundedReceiver<Peer>,
    dials: Arc<AtomicUsize>,
    events: Arc<Mutex<Vec<bool>>>,
}

impl Bench {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, streams) = mpsc::unbounded_channel();
        let service = AggregatedDiscoveryServiceServer::new(Fake { streams: sender });
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
        let store = Store::new(Instant::now());
        let (dials, events) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let dial = {
            let dials = dials.clone();
            move || dial(address, dials.fetch_add(1, Ordering::Relaxed))
        };
        let info = NodeInfo { workload: "w".into(), namespace: "ns".into(), ports: vec![80, 81], ..Default::default() };
        let connected = {
            let events = events.clone();
            move |it| events.lock().unwrap().push(it)
        };
        tokio::spawn({
            let store = store.clone();
            async move { run(store, node(&info), dial, connected).await }
        });
        Self { store, streams, dials, events }
    }

    async fn stream(&mut self) -> Peer {
        tokio::time::timeout(Duration::from_secs(20), self.streams.recv()).await.expect("no stream").unwrap()
    }

    async fn becomes(&self, reachable: bool) {
        let change = async {
            while self.store.reachable() != reachable {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), change).await.expect("it stays as it was");
    }

    fn ask(&self, name: &'static str) -> tokio::task::JoinHandle<Found<Arc<crate::config::Cluster>>> {
        let store = self.store.clone();
        tokio::spawn(async move { store.cluster(name).await })
    }
}

async fn dial(address: SocketAddr, attempt: usize) -> Result<Channel, String> {
    // The second one fails, as if the control plane were still starting.
    if attempt == 1 {
        return Err("connection refused".into());
    }
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    endpoint.connect().await.map_err(|error| error.to_string())
}

fn cluster(name: &str, version: &str) -> PbResource {
    let ty = Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst as i32));
    resource(name, version, PbCluster { name: name.to_owned(), cluster_discovery_type: ty, ..Default::default() })
}

fn bad_cluster(name: &str, version: &str) -> PbResource {
    let ty = Some(ClusterDiscoveryType::Type(DiscoveryType::LogicalDns as i32));
    resource(name, version, PbCluster { name: name.to_owned(), cluster_discovery_type: ty, ..Default::default() })
}

fn resource(name: &str, version: &str, pb: PbCluster) -> PbResource {
    let any = Any { type_url: Type::Cluster.url().to_owned(), value: pb.encode_to_vec() };
    PbResource { name: name.to_owned(), version: version.to_owned(), resource: Some(any), ..Default::default() }
}

#[tokio::test]
async fn subscribes_when_asked_and_acknowledges_when_in_force() {
    let mut bench = Bench::start().await;
    let asker = bench.ask("a");
    let mut peer = bench.stream().await;
    let first = peer.request().await;
    assert_eq!(
        (first.type_url.as_str(), &first.resource_names_subscribe[..]),
        (Type::Cluster.url(), &["a".into()][..])
    );
    let node = first.node.unwrap();
    assert_eq!((node.id.as_str(), node.user_agent_name.as_str()), ("w.ns", "mesh-proxy"));
    assert_eq!(
        node.client_features,
        [
            "mesh.authorization.audit",
            "mesh.authorization.custom",
            "mesh.extensions.v1.Fault",
            "mesh.extensions.v1.Limits",
            "mesh.extensions.v1.PeakEwma",
            "mesh.extensions.v1.Throttle"
        ]
    );
    peer.send("n1", vec![cluster("a", "1")], &[]);
    assert!(matches!(asker.await.unwrap(), Found::Yes(_)));
    let ack = peer.request().await;
    assert_eq!((ack.response_nonce.as_str(), ack.error_detail), ("n1", None));
    // On the same stream, without the node again.
    let asker = bench.ask("missing");
    let second = peer.request().await;
    assert_eq!(second.resource_names_subscribe, ["missing"]);
    assert!(second.node.is_none());
    peer.send("n2", vec![], &["missing"]);
    assert!(matches!(asker.await.unwrap(), Found::Absent));
    assert_eq!(peer.request().await.response_nonce, "n2");
    assert_eq!(*bench.events.lock().unwrap(), [true]);
}

#[tokio::test]
async fn refuses_with_the_reason_and_keeps_what_was_there() {
    let mut bench = Bench::start().await;
    let (a, b, c) = (bench.ask("a"), bench.ask("b"), bench.ask("c"));
    let mut peer = bench.stream().await;
    peer.request().await;
    peer.send("n1", vec![cluster("a", "1")], &[]);
    assert!(matches!(a.await.unwrap(), Found::Yes(_)));
    while peer.request().await.response_nonce != "n1" {}
    let old = bench.store.load().cluster("a").cloned().unwrap();
    let wrong_name = PbResource { name: "c".into(), ..cluster("x", "1") };
    peer.send("n2", vec![bad_cluster("a", "2"), cluster("b", "1"), wrong_name], &[]);
    assert!(matches!(b.await.unwrap(), Found::Yes(_)), "the good ones of a response are taken");
    assert!(matches!(c.await.unwrap(), Found::Unknown));
    let nack = peer.request().await;
    assert_eq!(nack.response_nonce, "n2");
    let reason = nack.error_detail.unwrap().message;
    assert!(reason.contains("a: type: LOGICAL_DNS is not supported"), "{reason}");
    assert!(reason.contains("c: its own name is \"x\""), "{reason}");
    assert!(Arc::ptr_eq(&old, bench.store.load().cluster("a").unwrap()));
}

#[tokio::test]
async fn a_type_that_was_not_asked_for_is_refused() {
    let mut bench = Bench::start().await;
    bench.ask("a");
    let mut peer = bench.stream().await;
    peer.request().await;
    let response =
        DeltaDiscoveryResponse { type_url: "type.googleapis.com/x.Y".into(), nonce: "n".into(), ..Default::default() };
    peer.responses.send(Ok(response)).unwrap();
    assert!(peer.request().await.error_detail.is_some());
}

#[tokio::test]
async fn comes_back_with_what_it_has_and_drops_what_is_gone_meanwhile() {
    let mut bench = Bench::start().await;
    let (a, b) = (bench.ask("a"), bench.ask("b"));
    let mut peer = bench.stream().await;
    let mut names = Vec::new();
    while names.len() < 2 {
        names.extend(peer.request().await.resource_names_subscribe);
    }
    peer.send("n1", vec![cluster("a", "1"), cluster("b", "7")], &[]);
    assert!(matches!((a.await.unwrap(), b.await.unwrap()), (Found::Yes(_), Found::Yes(_))));
    drop(peer);

    // The first attempt to come back fails: what is here stays, and who asks for more is told so at once.
    bench.becomes(false).await;
    assert!(bench.store.load().cluster("a").is_some());
    assert!(matches!(bench.ask("c").await.unwrap(), Found::Unknown));

    let mut peer = bench.stream().await;
    assert_eq!(bench.dials.load(Ordering::Relaxed), 3);
    // A stream that is open is enough: where nothing has changed, the control plane says nothing.
    bench.becomes(true).await;
    let again = peer.request().await;
    assert!(again.node.is_some());
    assert_eq!(again.initial_resource_versions.len(), 2);
    assert_eq!(again.initial_resource_versions["b"], "7");
    peer.send("n1", vec![], &["b"]);
    while peer.request().await.response_nonce != "n1" {}
    assert!(bench.store.load().cluster("a").is_some());
    assert!(bench.store.load().cluster("b").is_none());
    assert_eq!(*bench.events.lock().unwrap(), [true, false, true]);
}
