use std::pin::Pin;

use mesh_common::proto::workload::workload_registry_server::{WorkloadRegistry, WorkloadRegistryServer};
use mesh_common::proto::workload::{DepartRequest, DepartResponse, RegisterResponse};
use tokio::sync::oneshot;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

use super::depart::{Departing, Departure, Patience, Stays};
use super::*;
use crate::listen::{InFlight, Phase};

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
    departs: mpsc::UnboundedSender<Question>,
}

/// A question about a departure, and where to answer.
struct Question(DepartRequest, oneshot::Sender<Result<DepartResponse, Status>>);

impl Question {
    fn gone(self, gone: bool) {
        let waiting_for = if gone { vec![] } else { vec!["web".to_owned()] };
        self.1.send(Ok(DepartResponse { gone, waiting_for, last: false })).unwrap();
    }

    fn last(self) {
        self.1.send(Ok(DepartResponse { gone: false, waiting_for: vec![], last: true })).unwrap();
    }
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

    async fn depart(&self, request: Request<DepartRequest>) -> Result<Response<DepartResponse>, Status> {
        let (reply, answer) = oneshot::channel();
        let _ = self.departs.send(Question(request.into_inner(), reply));
        answer.await.unwrap_or_else(|_| Err(Status::unavailable("stopping"))).map(Response::new)
    }
}

struct Bench {
    streams: mpsc::UnboundedReceiver<Peer>,
    healthy: watch::Sender<bool>,
    leaving: watch::Sender<bool>,
    standing: watch::Receiver<Standing>,
    running: tokio::task::JoinHandle<()>,
}

impl Bench {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, streams) = mpsc::unbounded_channel();
        let (departs, _) = mpsc::unbounded_channel();
        let service = WorkloadRegistryServer::new(Fake { streams: sender, departs });
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
        let (sender, standing) = watch::channel(Standing::Unknown);
        let running = tokio::spawn(run(workload, dial, health, leave, sender));
        Self { streams, healthy, leaving, standing, running }
    }

    /// A stream that the control plane has confirmed.
    async fn registered(&mut self) -> Peer {
        let mut peer = self.stream().await;
        peer.request().await;
        peer.confirm();
        peer
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
    let mut peer = bench.registered().await;
    bench.healthy.send(true).unwrap();
    peer.request().await;
    drop(peer);
    let again = bench.stream().await.request().await;
    assert!(again.registration.is_some() && again.healthy);
}

#[tokio::test]
async fn a_refusal_is_known_also_in_the_middle_of_an_outage() {
    let mut bench = Bench::start().await;
    let peer = bench.registered().await;
    bench.standing.wait_for(|it| *it == Standing::Registered).await.unwrap();
    drop(peer);
    bench.standing.wait_for(|it| *it == Standing::Unknown).await.unwrap();
    // A failure that is none, and then a refusal.
    for (status, standing) in [
        (Status::unavailable("starting"), Standing::Unknown),
        (Status::permission_denied("not yours"), Standing::Refused("not yours".to_owned())),
        (Status::unavailable("stopping"), Standing::Unknown),
        (Status::unimplemented("no registry here"), Standing::Refused("no registry here".to_owned())),
        (Status::resource_exhausted("too much to do"), Standing::Unknown),
    ] {
        bench.stream().await.responses.send(Err(status)).unwrap();
        bench.standing.changed().await.unwrap();
        assert_eq!(*bench.standing.borrow_and_update(), standing);
    }
    let _peer = bench.registered().await;
    bench.standing.wait_for(|it| *it == Standing::Registered).await.unwrap();
}

/// A workload that may depart, and a control plane that answers as the test does.
struct Leaver {
    questions: mpsc::UnboundedReceiver<Question>,
    departure: Departure,
    phase: watch::Receiver<Phase>,
    leaving: watch::Receiver<bool>,
    in_flight: InFlight,
}

impl Leaver {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (streams, _) = mpsc::unbounded_channel();
        let (departs, questions) = mpsc::unbounded_channel();
        let service = WorkloadRegistryServer::new(Fake { streams, departs });
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
        let dial = move || async move {
            let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
            endpoint.connect().await.map_err(|error| error.to_string())
        };
        Self::over(dial, questions)
    }

    fn over<D, F>(dial: D, questions: mpsc::UnboundedReceiver<Question>) -> Self
    where
        D: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<Channel, String>> + Send + 'static,
    {
        let (sender, phase) = watch::channel(Phase::Serving);
        let (leave, leaving) = watch::channel(false);
        let (departure, asks) = Departure::new();
        let in_flight = InFlight::default();
        let departing = Departing {
            workload: "reviews-v1-x".into(),
            dial,
            phase: sender,
            leaving: Some(leave),
            known: true,
            in_flight: in_flight.clone(),
            patience: Patience::new(Duration::from_secs(20), None),
        };
        tokio::spawn(departing.run(asks));
        Self { questions, departure, phase, leaving, in_flight }
    }

    async fn question(&mut self) -> Question {
        tokio::time::timeout(Duration::from_secs(20), self.questions.recv()).await.expect("no question").unwrap()
    }

    fn drain(&self) -> tokio::task::JoinHandle<Result<(), Stays>> {
        let departure = self.departure.clone();
        tokio::spawn(async move { departure.drain().await })
    }

    fn end(&self) -> tokio::task::JoinHandle<()> {
        let departure = self.departure.clone();
        tokio::spawn(async move { departure.end().await })
    }
}

#[tokio::test]
async fn nothing_happens_unless_the_control_plane_confirms_that_the_application_ends() {
    let mut leaver = Leaver::start().await;
    let drain = leaver.drain();
    let Question(request, reply) = leaver.question().await;
    assert_eq!((request.name.as_str(), request.wait_ms, request.ending), ("reviews-v1-x", 0, false));
    reply.send(Err(Status::failed_precondition("it stays"))).unwrap();
    assert_eq!(drain.await.unwrap(), Err(Stays::Refused("it stays".into())));
    assert_eq!((*leaver.phase.borrow(), *leaver.leaving.borrow()), (Phase::Serving, false));

    // Once it is confirmed, peers are told, and each caller is answered when all peers know.
    let first = leaver.drain();
    let question = leaver.question().await;
    let second = leaver.drain();
    question.gone(false);
    let again = leaver.question().await;
    assert!(again.0.wait_ms > 1000 && !again.0.ending);
    assert_eq!((*leaver.phase.borrow(), *leaver.leaving.borrow()), (Phase::Draining, true));
    again.gone(false);
    assert!(!first.is_finished() && !second.is_finished());
    // And when the application has answered what they had sent before.
    let request = leaver.in_flight.flight();
    leaver.question().await.gone(true);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!first.is_finished() && !second.is_finished());
    drop(request);
    assert_eq!((first.await.unwrap(), second.await.unwrap()), (Ok(()), Ok(())));

    // Then the proxy ends without asking again, and so does a caller that comes late.
    leaver.end().await.unwrap();
    assert_eq!(leaver.drain().await.unwrap(), Ok(()));
    assert!(leaver.questions.try_recv().is_err());
}

#[tokio::test]
async fn the_last_one_of_a_service_serves_on_until_there_is_another() {
    let mut leaver = Leaver::start().await;
    let drain = leaver.drain();
    leaver.question().await.last();
    let question = leaver.question().await;
    assert!(question.0.wait_ms > 1000 && !question.0.ending);
    assert_eq!(*leaver.phase.borrow(), Phase::Serving);
    question.gone(true);
    let question = leaver.question().await;
    assert_eq!(*leaver.phase.borrow(), Phase::Draining);
    question.gone(true);
    assert_eq!(drain.await.unwrap(), Ok(()));
}

#[test]
fn some_of_the_time_that_an_application_has_to_end_is_left_for_itself() {
    let seconds = |all: [u64; 2]| all.map(Duration::from_secs);
    let of = |finish, grace: Option<u64>| {
        let patience = Patience::new(Duration::from_secs(finish), grace.map(Duration::from_secs));
        [patience.peers, patience.finish]
    };
    assert_eq!(of(5, None), seconds([10, 5]));
    assert_eq!(of(60, None), seconds([10, 60]));
    assert_eq!(of(5, Some(30)), seconds([10, 5]));
    assert_eq!(of(5, Some(600)), seconds([10, 5]));
    assert_eq!(of(5, Some(6)), seconds([2, 1]));
    assert_eq!(of(5, Some(0)), seconds([0, 0]));
}

#[tokio::test]
async fn a_signal_to_the_proxy_needs_no_confirmation() {
    let mut leaver = Leaver::start().await;
    let drain = leaver.drain();
    let unanswered = leaver.question().await;
    let end = leaver.end();
    let question = leaver.question().await;
    assert!(question.0.ending);
    assert_eq!(*leaver.phase.borrow(), Phase::Draining);
    question.gone(true);
    end.await.unwrap();
    assert_eq!(drain.await.unwrap(), Ok(()));
    drop(unanswered);
}

#[tokio::test(start_paused = true)]
async fn without_a_control_plane_a_drain_is_refused_and_neither_is_put_off_for_long() {
    let (_departs, questions) = mpsc::unbounded_channel();
    let leaver = Leaver::over(|| async { Err("connection refused".to_owned()) }, questions);
    let began = tokio::time::Instant::now();
    assert_eq!(leaver.departure.drain().await, Err(Stays::Unconfirmed("connection refused".into())));
    let took = began.elapsed();
    assert!((Duration::from_secs(2)..Duration::from_secs(3)).contains(&took), "{took:?}");
    assert_eq!(*leaver.phase.borrow(), Phase::Serving);
    let began = tokio::time::Instant::now();
    leaver.departure.end().await;
    assert!(began.elapsed() < Duration::from_secs(3));
    assert_eq!(*leaver.phase.borrow(), Phase::Draining);

    // Whoever is told to end does not wait for the confirmation of what was asked before.
    let (_departs, questions) = mpsc::unbounded_channel();
    let leaver = Leaver::over(|| async { Err("connection refused".to_owned()) }, questions);
    let (drain, began) = (leaver.drain(), tokio::time::Instant::now());
    tokio::task::yield_now().await;
    leaver.departure.end().await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(drain.await.unwrap(), Ok(()));
}

/// A replica of the control plane that goes away in this moment must not keep an application from draining.
#[tokio::test(start_paused = true)]
async fn a_drain_is_asked_for_again_when_the_first_questions_fail() {
    let (departs, questions) = mpsc::unbounded_channel();
    let failures = std::sync::atomic::AtomicU32::new(0);
    let dial = move || {
        let failed = failures.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < 3;
        let service =
            WorkloadRegistryServer::new(Fake { streams: mpsc::unbounded_channel().0, departs: departs.clone() });
        async move {
            if failed {
                return Err("connection refused".to_owned());
            }
            let (ours, theirs) = tokio::io::duplex(64 << 10);
            let accepted = tokio_stream::once(Ok::<_, std::io::Error>(theirs));
            tokio::spawn(Server::builder().add_service(service).serve_with_incoming(accepted));
            let mut ours = Some(hyper_util::rt::TokioIo::new(ours));
            let connector =
                tower::service_fn(move |_: http::Uri| std::future::ready(ours.take().ok_or(std::fmt::Error)));
            let endpoint = Endpoint::from_static("http://control");
            endpoint.connect_with_connector(connector).await.map_err(|error| error.to_string())
        }
    };
    let mut leaver = Leaver::over(dial, questions);
    let drain = leaver.drain();
    // The fourth is heard, and the replica stops before it answers.
    drop(leaver.question().await);
    leaver.question().await.gone(false);
    leaver.question().await.gone(true);
    assert_eq!(drain.await.unwrap(), Ok(()));
    assert_eq!(*leaver.phase.borrow(), Phase::Draining);
}

#[tokio::test]
async fn a_control_plane_with_too_much_to_do_is_asked_to_drain_again_and_one_that_refuses_is_not() {
    let mut leaver = Leaver::start().await;
    let drain = leaver.drain();
    leaver.question().await.1.send(Err(Status::resource_exhausted("too much to do"))).unwrap();
    leaver.question().await.1.send(Err(Status::invalid_argument("no such name"))).unwrap();
    assert_eq!(drain.await.unwrap(), Err(Stays::Refused("no such name".into())));
}

#[tokio::test]
async fn callers_beyond_a_limit_are_sent_away() {
    let mut leaver = Leaver::start().await;
    let first = leaver.drain();
    let question = leaver.question().await;
    let many: Vec<_> = (0..40).map(|_| leaver.drain()).collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(many.iter().filter(|it| it.is_finished()).count() >= 20);
    question.1.send(Err(Status::failed_precondition("it stays"))).unwrap();
    assert!(first.await.unwrap().is_err());
}
