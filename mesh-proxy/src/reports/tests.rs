use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use http::Method;
use mesh_common::proto::telemetry::reports_server::{Reports as Service, ReportsServer};
use mesh_common::proto::telemetry::{Instruction, Labels, Series, Tap, TapEvent, TapFilter, TapLoss};
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tokio_stream::{Stream, StreamExt};
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::listen::{Direction, Downstream, Security};
use crate::telemetry::{Protocol, RequestRecord, TcpRecord, TelemetryOptions};
use crate::tls::tests::Authority;

fn series(encoded: &[u8]) -> Series {
    Series::decode(encoded).unwrap()
}

struct Peer {
    reports: Streaming<Report>,
    instructions: mpsc::UnboundedSender<Result<Instruction, Status>>,
}

impl Peer {
    async fn report(&mut self) -> Report {
        let next = tokio::time::timeout(Duration::from_secs(20), self.reports.next()).await;
        next.expect("the proxy says nothing").unwrap().unwrap()
    }

    fn ask_each(&self, interval_ms: u32) {
        self.instructions.send(Ok(Instruction { interval_ms, ..Instruction::default() })).unwrap();
    }

    /// Reads on until so many requests were told.
    async fn told(&mut self, requests: u64) {
        let mut sum = 0;
        while sum < requests {
            sum += count(&self.report().await);
        }
        assert_eq!(sum, requests);
    }
}

fn count(report: &Report) -> u64 {
    report.series.iter().flat_map(|it| series(it).counts.unwrap().requests).sum()
}

struct Fake(mpsc::UnboundedSender<Peer>);

#[tonic::async_trait]
impl Service for Fake {
    type StreamStream = Pin<Box<dyn Stream<Item = Result<Instruction, Status>> + Send>>;

    async fn stream(&self, request: Request<Streaming<Report>>) -> Result<Response<Self::StreamStream>, Status> {
        let (instructions, receiver) = mpsc::unbounded_channel();
        let _ = self.0.send(Peer { reports: request.into_inner(), instructions });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(receiver))))
    }
}

struct Bench {
    telemetry: Telemetry,
    tls: Tls,
    reports: Reports,
    streams: mpsc::UnboundedReceiver<Peer>,
}

impl Bench {
    /// With a control plane that cannot be reached so many times.
    async fn start(away: u32) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, streams) = mpsc::unbounded_channel();
        let service = ReportsServer::new(Fake(sender));
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
        let tried = Arc::new(AtomicU32::new(0));
        let dial = move || {
            let nth = tried.fetch_add(1, Ordering::Relaxed);
            async move {
                if nth < away {
                    return Err("away".to_owned());
                }
                let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
                endpoint.connect().await.map_err(|error| error.to_string())
            }
        };
        let telemetry = Telemetry::new(TelemetryOptions::default()).unwrap();
        let reporter = Reporter { workload: "web-1".into(), service: "web".into(), ..Reporter::default() };
        let tls = Tls::default();
        let reports = Reports::start(telemetry.clone(), tls.clone(), reporter, dial);
        Self { telemetry, tls, reports, streams }
    }

    async fn stream(&mut self) -> Peer {
        tokio::time::timeout(Duration::from_secs(20), self.streams.recv()).await.expect("no stream").unwrap()
    }

    fn requests(&self, count: u64) {
        let downstream = Downstream {
            peer: "10.0.0.1:40000".parse().unwrap(),
            original_destination: "240.240.0.5:9080".parse().unwrap(),
            direction: Direction::Outbound,
            identity: None,
            tls: false,
            alpn: None,
        };
        let record = RequestRecord {
            downstream: &downstream,
            method: &Method::GET,
            path: "/",
            authority: "reviews:9080",
            protocol: Protocol::Http11,
            status: 200,
            grpc_status: None,
            flags: "",
            duration: Duration::from_millis(12),
            upstream_duration: None,
            request_bytes: 0,
            response_bytes: 0,
            route: "",
            rule: None,
            called: "",
            cluster: "reviews.shop.svc.cluster.local:9080",
            endpoint: None,
            security: Security::MutualTls,
            attempts: 1,
            request_id: "",
            user_agent: "",
            detail: None,
            trace: None,
            noted: None,
        };
        (0..count).for_each(|_| self.telemetry.request(&record));
    }
}

#[tokio::test]
async fn tells_what_was_counted_and_the_rest_at_the_end() {
    let mut bench = Bench::start(0).await;
    bench.requests(5);
    let mut peer = bench.stream().await;
    let first = peer.report().await;
    assert_eq!(first.reporter.unwrap().workload, "web-1");
    assert!(first.series.is_empty(), "nothing is taken before somebody wants it");
    peer.ask_each(100);
    let report = peer.report().await;
    let Labels { service, mutual_tls, status, .. } = series(&report.series[0]).labels.unwrap();
    assert_eq!((service.as_str(), mutual_tls, status), ("reviews.shop.svc.cluster.local", true, 200));
    assert_eq!((count(&report), report.reporter), (5, None));
    // Silence is told too.
    assert_eq!(count(&peer.report().await), 0);
    bench.requests(3);
    peer.told(3).await;
}

#[tokio::test]
async fn the_last_report_does_not_wait_until_it_is_due() {
    let mut bench = Bench::start(0).await;
    let mut peer = bench.stream().await;
    peer.report().await;
    peer.ask_each(60_000);
    bench.requests(2);
    let end = tokio::spawn(bench.reports.end());
    assert_eq!(count(&peer.report().await), 2);
    drop(peer);
    end.await.unwrap();
}

#[tokio::test]
async fn what_is_counted_while_nobody_listens_is_told_once_somebody_does() {
    let mut bench = Bench::start(2).await;
    bench.requests(4);
    let mut peer = bench.stream().await;
    peer.report().await;
    peer.ask_each(60_000);
    // The control plane goes away, and another one comes.
    drop(peer);
    bench.requests(6);
    let mut peer = bench.stream().await;
    assert_eq!(peer.report().await.reporter.unwrap().service, "web");
    peer.ask_each(100);
    let report = peer.report().await;
    assert_eq!(count(&report), 10);
    assert!(report.covers_ms > 0);
}

#[tokio::test]
async fn a_proxy_ends_without_a_control_plane() {
    let bench = Bench::start(u32::MAX).await;
    bench.requests(1);
    let began = Instant::now();
    bench.reports.end().await;
    assert!(began.elapsed() < FAREWELL + Duration::from_secs(5));
}

#[tokio::test]
async fn the_certificate_is_told_first_and_whenever_it_is_another() {
    let mut bench = Bench::start(0).await;
    let authority = Authority::new();
    bench.tls.rotate(authority.svid("web"));
    let mut peer = bench.stream().await;
    let first = peer.report().await;
    // The stream may have begun before there was one.
    peer.ask_each(100);
    let mut next = first.certificate;
    while next.is_none() {
        next = peer.report().await.certificate;
    }
    let told = next.unwrap();
    assert_eq!((told.leaf, told.failure.as_str()), (bench.tls.chain().unwrap()[0].to_vec(), ""));
    let now = i64::try_from(std::time::SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
    assert!((now - 60_000..=now).contains(&told.since_unix_ms), "{}", told.since_unix_ms);
    assert_eq!(peer.report().await.certificate, None);

    bench.tls.not_renewed("the control plane is away".to_owned());
    let mut until = async |failure: &str| loop {
        if let Some(told) = peer.report().await.certificate {
            assert_eq!(told.failure, failure);
            return told;
        }
    };
    until("the control plane is away").await;
    bench.tls.rotate(authority.svid("web"));
    let leaf = bench.tls.chain().unwrap()[0].to_vec();
    assert_eq!(until("").await.leaf, leaf);
    // Another control plane knows nothing yet.
    drop(peer);
    let mut peer = bench.stream().await;
    assert_eq!(peer.report().await.certificate.unwrap().leaf, leaf);
}

impl Peer {
    fn tap(&self, taps: Vec<Tap>, taps_last_ms: u32) {
        // Counters are not in the way of what is told here.
        self.instructions.send(Ok(Instruction { interval_ms: 60_000, taps, taps_last_ms })).unwrap();
    }
}

impl Bench {
    /// Whether a tap is open at the proxy.
    async fn taps(&self, wanted: bool) {
        let is_so = async {
            while self.telemetry.taps().begin(&http::HeaderMap::new(), None).is_some() != wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), is_so).await.expect("a tap is open, or none is");
    }

    fn stream_ends(&self) {
        let (peer, to) = ("10.0.0.1:40000".parse().unwrap(), "240.240.0.5:9080".parse().unwrap());
        self.telemetry.tcp_closed(&TcpRecord {
            downstream: &Downstream::new(peer, to, Direction::Outbound),
            called: "stock.shop.svc.cluster.local:7000",
            cluster: "tcp:stock.shop.svc.cluster.local:7000",
            endpoint: None,
            security: Security::None,
            flags: "",
            duration: Duration::from_millis(12),
            received_bytes: 1,
            sent_bytes: 2,
            detail: None,
            verdict: None,
        });
    }
}

fn tap(max_rate: u32) -> Tap {
    Tap { id: 7, filter: Some(TapFilter::default()), max_rate, headers: Vec::new() }
}

#[tokio::test]
async fn a_tap_is_open_while_the_control_plane_says_so() {
    let mut bench = Bench::start(0).await;
    let mut peer = bench.stream().await;
    peer.report().await;
    bench.stream_ends();
    peer.tap(vec![tap(2)], 60_000);
    bench.taps(true).await;
    (0..5).for_each(|_| bench.stream_ends());
    let report = peer.report().await;
    assert_eq!((report.tapped.len(), report.not_told.clone()), (2, vec![TapLoss { tap: 7, count: 3 }]), "{report:?}");
    assert_eq!((report.series.len(), report.covers_ms, TapEvent::decode(&*report.tapped[0]).unwrap().tap), (0, 0, 7));
    peer.tap(Vec::new(), 60_000);
    bench.taps(false).await;
    // It ends by itself, if nobody says anything more of it.
    peer.tap(vec![tap(2)], 500);
    bench.taps(true).await;
    bench.taps(false).await;
    // And with the stream.
    peer.tap(vec![tap(2)], 60_000);
    bench.taps(true).await;
    drop(peer);
    bench.taps(false).await;
}
