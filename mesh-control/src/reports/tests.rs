//! The service as proxies meet it: real gRPC over the loopback.

use jiff::Timestamp;
use mesh_common::identity::Identity;
use mesh_common::proto::telemetry::reports_client::ReportsClient;
use mesh_common::proto::telemetry::{Counts, Instruction, Labels, Report, Reporter, Series};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Status, Streaming};

use super::*;
use crate::auth::{Authenticator, Peer, PeerCertificate, Transport};
use crate::store::Store;

/// What the acceptor would say of the connection; here, the service account of its certificate is in a header.
fn describe(mut request: Request<()>) -> Result<Request<()>, Status> {
    let account = request.metadata().get("test-account").map(|value| value.to_str().unwrap().to_owned());
    let certificate = account.map(|account| PeerCertificate {
        identity: Identity::new("mesh.local", "shop", &account).unwrap(),
        not_after: Timestamp::now() + Duration::from_secs(60),
    });
    request.extensions_mut().insert(Peer::new("10.0.0.1:7".to_owned(), Transport::Tls, certificate));
    Ok(request)
}

/// What must not be waited for in vain.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("it does not come to that")
}

struct Bench {
    reports: Reports,
    channel: Channel,
    _dir: tempfile::TempDir,
}

impl Bench {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let auth = Authenticator::Tokens(Store::open(dir.path()).unwrap().tokens());
        let reports = Reports::new(Instant::now());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = InterceptedService::new(ReportsService::server(reports.clone(), auth), describe);
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        Self { reports, channel, _dir: dir }
    }

    async fn stream(
        &self,
        account: Option<&str>,
        first: Report,
    ) -> Result<(mpsc::UnboundedSender<Report>, Streaming<Instruction>), Status> {
        let (reports, receiver) = mpsc::unbounded_channel();
        reports.send(first).unwrap();
        let mut request = Request::new(UnboundedReceiverStream::new(receiver));
        if let Some(account) = account {
            request.metadata_mut().insert("test-account", account.parse().unwrap());
        }
        let instructions = ReportsClient::new(self.channel.clone()).stream(request).await?.into_inner();
        Ok((reports, instructions))
    }

    async fn until(&self, enough: impl Fn(&ListTrafficResponse) -> bool) -> ListTrafficResponse {
        let there = async {
            loop {
                let traffic = self.reports.traffic(Duration::MAX, Instant::now());
                if enough(&traffic) {
                    return traffic;
                }
                tokio::task::yield_now().await;
            }
        };
        soon(there).await
    }
}

fn reporter(service: &str) -> Report {
    let reporter = Reporter {
        workload: "web-1".into(),
        service: service.into(),
        identity: "spiffe://mesh.local/ns/bank/sa/vault".into(),
        ..Reporter::default()
    };
    Report { reporter: Some(reporter), ..Report::default() }
}

fn requests(count: u64) -> Report {
    let counts = Counts { buckets: vec![3], requests: vec![count], ..Counts::default() };
    Report {
        covers_ms: 1000,
        series: vec![Series { labels: Some(Labels::default()), counts: Some(counts) }],
        reporter: None,
    }
}

#[tokio::test]
async fn a_proxy_reports_as_whom_its_certificate_is() {
    let bench = Bench::start().await;
    let (reports, mut instructions) = bench.stream(Some("web"), reporter("web")).await.unwrap();
    assert_eq!(soon(instructions.message()).await.unwrap().unwrap().interval_ms, 1000);
    reports.send(requests(3)).unwrap();
    let answer = bench.until(|it| !it.traffic.is_empty()).await;
    let reporter = answer.traffic[0].reporter.clone().unwrap();
    // Whatever it says, it is of its own namespace.
    assert_eq!(reporter.identity, "spiffe://mesh.local/ns/shop/sa/web");
    assert_eq!(reporter.service, "web.shop.svc.cluster.local");
    assert_eq!((answer.proxies, answer.reporting), (1, vec![reporter.identity]));
    drop((reports, instructions));
    bench.until(|it| it.proxies == 0 && !it.traffic.is_empty()).await;
}

#[tokio::test]
async fn who_proves_nothing_or_says_nothing_reports_nothing() {
    let bench = Bench::start().await;
    let refused = bench.stream(None, reporter("web")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let (_reports, mut instructions) = bench.stream(Some("web"), requests(3)).await.unwrap();
    assert_eq!(soon(instructions.message()).await.unwrap_err().code(), Code::InvalidArgument);
    assert!(bench.reports.traffic(Duration::MAX, Instant::now()).reporting.is_empty());
}

#[tokio::test]
async fn of_two_streams_of_a_workload_the_later_one_counts() {
    let bench = Bench::start().await;
    let (old, mut told) = bench.stream(Some("web"), reporter("web")).await.unwrap();
    soon(told.message()).await.unwrap();
    let (new, mut instructions) = bench.stream(Some("web"), reporter("web")).await.unwrap();
    soon(instructions.message()).await.unwrap();
    old.send(requests(1)).unwrap();
    assert_eq!(soon(told.message()).await.unwrap_err().code(), Code::Aborted);
    new.send(requests(2)).unwrap();
    let answer = bench.until(|it| !it.traffic.is_empty()).await;
    assert_eq!(answer.traffic[0].series.clone().unwrap().counts.unwrap().requests, [2]);
    assert_eq!(answer.proxies, 1);
}
