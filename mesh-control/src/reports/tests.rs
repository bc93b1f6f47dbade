//! The service as proxies meet it: real gRPC over the loopback.

use futures_util::StreamExt;
use jiff::Timestamp;
use mesh_common::identity::Identity;
use mesh_common::proto::telemetry::reports_client::ReportsClient;
use mesh_common::proto::telemetry::{
    Certificate, Counts, Instruction, Labels, Report, Reporter, Series, TapEvent, TapLoss,
};
use prost::Message;
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
        verified: Instant::now(),
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
        series: vec![Series { labels: Some(Labels::default()), counts: Some(counts) }.encode_to_vec()],
        ..Report::default()
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

#[tokio::test]
async fn a_proxy_tells_of_its_own_certificate_and_of_no_other() {
    let bench = Bench::start().await;
    let dir = tempfile::tempdir().unwrap();
    let ca = crate::ca::Ca::open(&dir.path().join("ca"), "mesh.local", Timestamp::now()).unwrap();
    let leaf = |account: &str| {
        let identity = Identity::new("mesh.local", "shop", account).unwrap();
        let issued = ca.issue_with_key(&identity, Duration::from_secs(60), Timestamp::now()).unwrap();
        x509_parser::pem::parse_x509_pem(issued.chain_pem.as_bytes()).unwrap().1.contents
    };
    let says = |leaf: Vec<u8>, since_unix_ms: i64, failure: &str| {
        Some(Certificate { leaf, since_unix_ms, failure: failure.to_owned() })
    };
    let (first, second) = (leaf("web"), leaf("web"));
    let begin = Report { certificate: says(first, 7, ""), ..reporter("web") };
    let (reports, mut instructions) = bench.stream(Some("web"), begin).await.unwrap();
    soon(instructions.message()).await.unwrap();
    let told = bench.reports.certificates();
    assert_eq!((told.len(), told[0].id.as_str(), told[0].since_unix_ms), (1, "web-1.shop", 7));
    assert_eq!((told[0].service.as_str(), told[0].failure.as_str()), ("web.shop.svc.cluster.local", ""));
    let serial = told[0].certificate.clone().unwrap().serial;

    // Another one, and then one report that says nothing of it.
    reports.send(Report { certificate: says(second, 8, &"x".repeat(5000)), ..Report::default() }).unwrap();
    reports.send(requests(1)).unwrap();
    bench.until(|it| !it.traffic.is_empty()).await;
    let told = bench.reports.certificates();
    assert_ne!(told[0].certificate.clone().unwrap().serial, serial);
    assert_eq!((told[0].since_unix_ms, told[0].failure.len()), (8, 1024));

    for wrong in [leaf("vault"), b"no certificate".to_vec()] {
        reports.send(Report { certificate: says(wrong, 9, ""), ..Report::default() }).ok();
        let begin = Report { certificate: says(leaf("vault"), 9, ""), ..reporter("web") };
        let (_other, mut refusal) = bench.stream(Some("web"), begin).await.unwrap();
        assert_eq!(soon(refusal.message()).await.unwrap_err().code(), Code::InvalidArgument);
    }
    assert_eq!(soon(instructions.message()).await.unwrap_err().code(), Code::InvalidArgument);
    // Who is gone serves nothing.
    bench.until(|it| it.proxies == 0).await;
    assert_eq!(bench.reports.certificates(), []);
}

fn response(it: TapResponse) -> (usize, u64, Option<u32>) {
    (it.events.len(), it.not_shown, it.asked.map(|asked| asked.proxies))
}

#[tokio::test]
async fn a_tap_reaches_the_proxies_and_what_they_tell_its_reader() {
    let bench = Bench::start().await;
    let (reports, mut instructions) = bench.stream(Some("web"), reporter("web")).await.unwrap();
    assert_eq!(soon(instructions.message()).await.unwrap().unwrap().taps, []);
    let request = TapRequest { max_rate: 5, headers: vec!["end-user".into()], ..TapRequest::default() };
    let mut tap = Box::pin(bench.reports.tap(request, Instant::now()).unwrap().1);
    let told = soon(tap.next()).await.unwrap().unwrap();
    assert_eq!(told.asked.unwrap().identities, ["spiffe://mesh.local/ns/shop/sa/web"]);
    let instruction = soon(instructions.message()).await.unwrap().unwrap();
    let open = &instruction.taps[0];
    assert_eq!((instruction.interval_ms, instruction.taps_last_ms), (1000, 30_000));
    assert_eq!((open.max_rate, open.headers.as_slice()), (5, &["end-user".to_owned()][..]));

    // Counters and events may come together or not.
    let event = TapEvent { tap: open.id, path: "/a".into(), ..TapEvent::default() }.encode_to_vec();
    let not_told = vec![TapLoss { tap: open.id, count: 12 }];
    reports.send(Report { tapped: vec![event.clone()], not_told, ..Report::default() }).unwrap();
    let told = soon(tap.next()).await.unwrap().unwrap();
    assert_eq!(told.events[0].reporter.clone().unwrap().workload, "web-1");
    assert_eq!(response(told), (1, 12, None));
    reports.send(Report { tapped: vec![event], ..requests(3) }).unwrap();
    assert_eq!(response(soon(tap.next()).await.unwrap().unwrap()), (1, 0, None));
    bench.until(|it| !it.traffic.is_empty()).await;

    // Another proxy that comes meanwhile is asked too, at once.
    let (_other, mut instructions_of_other) = bench.stream(Some("db"), reporter("db")).await.unwrap();
    assert_eq!(soon(instructions_of_other.message()).await.unwrap().unwrap().taps, instruction.taps);
    assert_eq!(response(soon(tap.next()).await.unwrap().unwrap()), (0, 0, Some(2)));

    // And who taps goes away.
    drop(tap);
    assert_eq!(soon(instructions.message()).await.unwrap().unwrap().taps, []);
    assert_eq!(soon(instructions_of_other.message()).await.unwrap().unwrap().taps, []);
}

#[tokio::test]
async fn a_report_that_is_larger_in_memory_than_any_proxys_is_refused() {
    let bench = Bench::start().await;
    for series in [vec![Vec::new(); 100_000], vec![b"no series".to_vec()]] {
        let (reports, mut instructions) = bench.stream(Some("web"), reporter("web")).await.unwrap();
        soon(instructions.message()).await.unwrap();
        reports.send(Report { series: series.clone(), ..Report::default() }).unwrap();
        assert_eq!(soon(instructions.message()).await.unwrap_err().code(), Code::InvalidArgument);
        let (_reports, mut instructions) =
            bench.stream(Some("web"), Report { series, ..reporter("web") }).await.unwrap();
        assert_eq!(soon(instructions.message()).await.unwrap_err().code(), Code::InvalidArgument);
    }
    // Too large even for that.
    let (reports, mut instructions) = bench.stream(Some("web"), reporter("web")).await.unwrap();
    soon(instructions.message()).await.unwrap();
    reports.send(Report { tapped: vec![vec![0; 3 << 20]], ..Report::default() }).unwrap();
    soon(async { while let Ok(Some(_)) = instructions.message().await {} }).await;
}

/// As many series as one may have, of names as long as they may be in Kubernetes.
#[test]
fn the_largest_report_of_a_proxy_is_taken() {
    let name = |length: usize| "x".repeat(length);
    let labels = Labels {
        direction: 2,
        protocol: 1,
        caller: format!("spiffe://cluster.local/ns/{}/sa/{}", name(63), name(63)),
        service: format!("{}.{}.svc.cluster.local", name(63), name(63)),
        version: name(63),
        route: format!("HTTPRoute/{}/{}/10", name(63), name(63)),
        mutual_tls: true,
        status: 503,
        grpc_status: Some(14),
        flags: "UAEX".into(),
    };
    let counts = Counts { buckets: (0..31).collect(), requests: vec![10_000; 31], opened: 1_000, closed: 1_000 };
    let series = Series { labels: Some(labels), counts: Some(counts) }.encode_to_vec();
    let report = Report { series: vec![series; 2_004], tapped: vec![vec![0; 256 << 10]], ..reporter("web") };
    assert!(report.encoded_len() < super::service::REPORT_BYTES, "{}", report.encoded_len());
}
