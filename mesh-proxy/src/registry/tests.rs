use std::pin::Pin;

use mesh_common::proto::workload::workload_registry_server::{WorkloadRegistry, WorkloadRegistryServer};
use mesh_common::proto::workload::{DepartRequest, DepartResponse, RegisterResponse};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

use super::*;

struct Peer {
    requests: Streaming<RegisterRequest>,
    responses: mpsc::UnboundedSender<Result<RegisterResponse, Status>>,
}

impl Peer {
    async fn request(&mut self) -> RegisterRequest {
        let next = tokio::time::timeout(Duration::from_secs(20), self.requests.next()).await;
        next.expect("the proxy says nothing").unwrap().unwrap()
    }

    fn confirm(&self) {
        let response = RegisterResponse { virtual_addresses: vec!["240.240.0.5".into()], grace_seconds: 30 };
        self.responses.send(Ok(response)).unwrap();
    }
}

struct Fake {
    streams: mpsc::UnboundedSender<Peer>,
}

#[tonic::async_trait]
impl WorkloadRegistry for Fake {
    type RegisterStream = Pin<Box<dyn Stream<Item = Result<RegisterResponse, Status>> + Send>>;

    async fn register(
        &self,
        request: Request<Streaming<RegisterRequest>>,
    ) -> Result<Response<Self::RegisterStream>, Status> {
        let (responses, receiver) = mpsc::unbounded_channel();
        let _ = self.streams.send(Peer { requests: request.into_inner(), responses });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(receiver))))
    }

    async fn depart(&self, _: Request<DepartRequest>) -> Result<Response<DepartResponse>, Status> {
        Err(Status::unimplemented("no test asks for it"))
    }
}

struct Bench {
    streams: mpsc::UnboundedReceiver<Peer>,
    healthy: watch::Sender<bool>,
    leaving: watch::Sender<bool>,
    running: tokio::task::JoinHandle<()>,
}

impl Bench {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, streams) = mpsc::unbounded_channel();
        let service = WorkloadRegistryServer::new(Fake { streams: sender });
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
        let workload = Workload {
            name: "reviews-v1-x".into(),
            namespace: "shop".into(),
            service: "reviews".into(),
            version: "v1".into(),
            addresses: vec!["10.0.0.1".parse().unwrap()],
            ports: vec![Port { port: 9080, protocol: "http".into(), service_port: 80 }],
            labels: BTreeMap::new(),
            locality: String::new(),
            weight: 0,
        };
        let dial = move || async move {
            let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
            endpoint.connect().await.map_err(|error| error.to_string())
        };
        let (healthy, health) = watch::channel(false);
        let (leaving, leave) = watch::channel(false);
        let running = tokio::spawn(run(workload, dial, health, leave));
        Self { streams, healthy, leaving, running }
    }

    async fn stream(&mut self) -> Peer {
        tokio::time::timeout(Duration::from_secs(20), self.streams.recv()).await.expect("no stream").unwrap()
    }
}

#[tokio::test]
async fn registers_tells_of_health_and_leaves() {
    let mut bench = Bench::start().await;
    let mut peer = bench.stream().await;
    let first = peer.request().await;
    let registration = first.registration.unwrap();
    assert_eq!((registration.name.as_str(), registration.addresses), ("reviews-v1-x", vec!["10.0.0.1".to_owned()]));
    assert_eq!((registration.ports[0].port, registration.ports[0].service_port), (9080, 80));
    assert!(!first.healthy);
    peer.confirm();
    bench.healthy.send(true).unwrap();
    let second = peer.request().await;
    assert!(second.healthy && second.registration.is_none());

    bench.leaving.send(true).unwrap();
    assert!(peer.request().await.leaving);
    assert!(!bench.running.is_finished());
    drop(peer);
    bench.running.await.unwrap();
}

#[tokio::test]
async fn registers_again_when_the_stream_breaks() {
    let mut bench = Bench::start().await;
    let mut peer = bench.stream().await;
    peer.request().await;
    peer.confirm();
    bench.healthy.send(true).unwrap();
    peer.request().await;
    drop(peer);
    let again = bench.stream().await.request().await;
    assert!(again.registration.is_some() && again.healthy);
}
