//! One request and its response, from the head of the one to the last byte of the other, and the record that it leaves.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;

use super::connection::Connection;
use super::deadline::Deadline;
use super::head::{Head, text};
use super::request_body::Upload;
use crate::config::{Action, HttpManager, JwtAuthn, Route, RouteSource};
use crate::error::{Error, Kind};
use crate::ext_authz::Change;
use crate::fault::Injected;
use crate::jwt;
use crate::limit::{self, Place, Quota};
use crate::listen::{Direction, Security};
use crate::pace::{Pacer, Way};
use crate::retry::grpc_status;
use crate::tap::Noted;
use crate::telemetry::RequestRecord;
use crate::trace::Trace;
use crate::upstream::{Failed, Flow, Held, Outcome, Target, UpstreamBody};

/// How long a client may be silent before its body is looked at, where nobody says anything else.
const SILENCE: Duration = Duration::from_secs(300);

/// Recorded when it is dropped, whoever ends it: that happens exactly once, also when the client goes away.
pub(crate) struct Exchange {
    pub(crate) conn: Arc<Connection>,
    /// `None`: the connection is not one that is taken any more.
    pub(crate) manager: Option<Arc<HttpManager>>,
    pub(crate) start: Instant,
    /// The request as it goes on.
    pub(crate) head: Head,
    /// The request's body, if it has one.
    pub(crate) upload: Option<Upload>,
    pub(crate) deadline: Deadline,
    /// Where the client sent it.
    uri: Uri,
    host: Option<HeaderValue>,
    pub(crate) route: Option<Arc<Route>>,
    pub(crate) cluster: Option<Arc<str>>,
    pub(crate) target: Option<Target>,
    pub(crate) attempts: u32,
    /// Its share of the cluster's limits.
    pub(crate) held: Option<Held>,
    /// Its place among those that the application takes at a time.
    pub(crate) place: Option<Place>,
    /// What the response keeps to, if a fault or a limit slows it down.
    pub(crate) down: Option<Box<Pacer>>,
    /// A fault has slowed it down.
    pub(crate) slowed: bool,
    /// The endpoint has done well, if nothing breaks before the end.
    does_well: bool,
    pub(crate) answered_upstream: Option<Instant>,
    status: u16,
    grpc_status: Option<u32>,
    pub(crate) response_bytes: u64,
    /// Bytes from downstream after an upgrade.
    pub(crate) tunnelled: u64,
    pub(crate) error: Option<Error>,
    /// The origin whose scripts may read the response, by the route's CORS policy.
    pub(crate) origin: Option<HeaderValue>,
    /// What somebody who was asked about the request adds to its response.
    pub(crate) response_changes: Option<Box<[Change]>>,
    /// What the limit on requests has left.
    pub(crate) quota: Option<Quota>,
    /// `None`: nobody looks at traces.
    pub(crate) trace: Option<Trace>,
    /// `None`: no tap was open when it began.
    pub(crate) noted: Option<Box<Noted>>,
    /// The response was handed over to its end.
    complete: bool,
}

impl Exchange {
    /// How long nothing may move, in either direction; zero: for ever.
    pub(crate) fn idle_timeout(&self) -> Duration {
        match self.route.as_deref().map(|route| &route.action) {
            Some(Action::Forward(it)) => {
                let default = || self.manager.as_ref().map_or(Duration::ZERO, |manager| manager.stream_idle_timeout);
                it.idle_timeout.unwrap_or_else(default)
            }
            _ => Duration::ZERO,
        }
    }

    /// The beginning of the body, before any of it goes on, and whether there is more ([`Upload::peek`]). It is waited for as
    /// long as its client is not silent for too long and does not give up itself.
    pub(crate) async fn peek(&mut self, max: usize, partial: bool) -> Result<(Bytes, bool), Kind> {
        let Some(upload) = &self.upload else { return Ok((Bytes::new(), false)) };
        // Whoever reads the body has its client told to send it: nothing is left to wait for.
        self.head.expects = false;
        let idle = self.manager.as_ref().map_or(Duration::ZERO, |manager| manager.stream_idle_timeout);
        let idle = if idle.is_zero() { SILENCE } else { idle };
        let client = self.head.grpc_deadline(self.start);
        let mut deadline = Deadline::new(&self.conn.timers, self.start, Duration::ZERO, idle, client);
        let read = deadline.limit(Some(upload), upload.peek(max, partial)).await?;
        read.map_err(|error| error.kind())
    }

    /// What the client's bytes keep to after an upgrade.
    pub(crate) fn up(&self) -> Option<Box<Pacer>> {
        let limits = self.manager.as_ref()?.limits.as_deref()?;
        limit::pacer(limits, &self.conn.ctx, self.conn.downstream.identity.as_deref(), Way::Up)
    }

    /// Which connections it is for.
    pub(crate) fn flow(&self) -> Flow {
        if self.down.is_some() { Flow::Paced } else { Flow::Free }
    }

    /// Boxed, because it goes along with the request and then with the response.
    pub(crate) fn begin(conn: Arc<Connection>, request: Request<Incoming>) -> Box<Self> {
        let start = Instant::now();
        if conn.downstream.direction == Direction::Inbound {
            conn.ctx.in_flight.begun();
        }
        conn.signals.serving();
        let (parts, body) = request.into_parts();
        let mut head = Head::new(parts, &conn.downstream);
        if head.version == http::Version::HTTP_2 {
            head.one_too_many = !conn.signals.load.hold(head.size);
        } else {
            head.flaw = conn.signals.framing.begin().or(head.flaw);
        }
        let manager = conn.manager();
        let tracing = manager.as_ref().and_then(|manager| manager.tracing.as_ref());
        let trace = tracing.map(|tracing| Trace::begin(tracing, &head.headers, &conn.downstream, start));
        let authn = manager.as_ref().and_then(|manager| manager.jwt.as_ref());
        let noted = conn.ctx.telemetry.taps().begin(&head.headers, authn);
        Box::new(Self {
            start,
            uri: jwt::without_tokens(&head.uri, None),
            host: head.headers.get(http::header::HOST).cloned(),
            head,
            upload: Upload::new(body, start),
            deadline: Deadline::none(&conn.timers, start),
            manager,
            trace,
            noted,
            conn,
            route: None,
            cluster: None,
            target: None,
            attempts: 0,
            held: None,
            place: None,
            down: None,
            slowed: false,
            does_well: false,
            answered_upstream: None,
            status: 0,
            grpc_status: None,
            response_bytes: 0,
            tunnelled: 0,
            error: None,
            origin: None,
            response_changes: None,
            quota: None,
            complete: false,
        })
    }

    /// The request goes to the target that was chosen.
    pub(crate) fn tries(&mut self, address: SocketAddr, now: Instant) {
        self.attempts += 1;
        if let Some(noted) = self.noted.as_mut().filter(|_| self.conn.downstream.direction == Direction::Outbound) {
            noted.tries(address, now);
        }
        if let Some(trace) = self.trace.as_mut().filter(|_| self.conn.downstream.direction == Direction::Outbound) {
            trace.tries(address, now);
        }
    }

    /// What came of a try, by its number.
    pub(crate) fn tried(&mut self, number: u32, outcome: &Result<Response<UpstreamBody>, Failed>) {
        let status = || outcome.as_ref().map(|it| it.status().as_u16()).map_err(|failed| &failed.error);
        if let Some(trace) = &mut self.trace {
            trace.tried(number, status());
        }
        if let Some(noted) = &mut self.noted {
            noted.tried(number, status());
        }
    }

    pub(crate) fn injected(&mut self, what: Injected) {
        self.conn.ctx.telemetry.fault(what);
        if let Some(trace) = &mut self.trace {
            trace.fault(what);
        }
        if let Some(noted) = &mut self.noted {
            noted.fault(what);
        }
    }

    /// Nobody who reads the record may have what the client's token allows.
    pub(crate) fn hide_tokens(&mut self, authn: &JwtAuthn) {
        self.uri = jwt::without_tokens(&self.uri, Some(authn));
    }

    /// The head of the response is on its way.
    pub(crate) fn answered(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.status = status.as_u16();
        self.trailers(headers);
        if let Some(noted) = &mut self.noted {
            noted.answered(headers);
        }
    }

    /// Trailers, or the head of a response without messages.
    pub(crate) fn trailers(&mut self, trailers: &HeaderMap) {
        if self.head.grpc {
            self.grpc_status = grpc_status(trailers).or(self.grpc_status);
        }
    }

    /// What the endpoint's answer says of it. For gRPC that is the status, which mostly comes at the end.
    pub(crate) fn observe_head(&mut self, status: StatusCode, headers: &HeaderMap, now: Instant) {
        let outcome = match grpc_status(headers).filter(|_| self.head.grpc) {
            Some(code) => Outcome::of_grpc(code),
            None if self.head.grpc && status == StatusCode::OK => return,
            None => Outcome::of_status(status),
        };
        match outcome {
            Outcome::Success => self.does_well = true,
            failure => self.observe(failure, || now),
        }
    }

    pub(crate) fn observe_trailers(&self, trailers: &HeaderMap) {
        if let Some(code) = grpc_status(trailers).filter(|_| self.head.grpc) {
            self.observe(Outcome::of_grpc(code), Instant::now);
        }
    }

    pub(crate) fn observe(&self, outcome: Outcome, now: impl FnOnce() -> Instant) {
        if let Some(target) = &self.target {
            target.observe(outcome, now);
        }
    }

    pub(crate) fn complete(&mut self) {
        self.complete = true;
        if std::mem::take(&mut self.does_well) {
            self.observe(Outcome::Success, Instant::now);
        }
        // Nothing goes on upstream, whoever may keep the exchange.
        self.held = None;
        self.place = None;
    }

    fn record(&self) {
        let now = Instant::now();
        let downstream = &*self.conn.downstream;
        let gone = Error::new(Kind::Downstream);
        let error = self.error.as_ref().or((!self.complete).then_some(&gone));
        let detail = error.map(Error::to_string);
        let security = match (downstream.direction, &self.target) {
            (Direction::Inbound, _) => downstream.security(),
            (Direction::Outbound, Some(target)) => target.security(),
            (Direction::Outbound, None) => Security::None,
        };
        let authority = self.uri.authority().map_or_else(|| text(self.host.as_ref()), |it| it.as_str());
        let record = RequestRecord {
            downstream,
            method: &self.head.method,
            path: self.uri.path_and_query().map_or(self.uri.path(), |it| it.as_str()),
            authority,
            protocol: self.head.version.into(),
            status: self.status,
            grpc_status: self.grpc_status,
            flags: error.map(|error| error.kind).or(self.slowed.then_some(Kind::Fault)).map_or("", Kind::flag),
            duration: now.saturating_duration_since(self.start),
            upstream_duration: self.answered_upstream.map(|at| at.saturating_duration_since(self.start)),
            request_bytes: self.upload.as_ref().map_or(self.tunnelled, Upload::bytes),
            response_bytes: self.response_bytes,
            route: self.route.as_ref().map_or("", |route| &route.name),
            rule: self.route.as_deref(),
            called: match self.manager.as_ref().map(|manager| &manager.routes) {
                Some(RouteSource::Rds(name)) => name,
                Some(RouteSource::Inline(_)) | None => "",
            },
            cluster: self.cluster.as_deref().unwrap_or_default(),
            endpoint: self.target.as_ref().map(|target| &*target.endpoint),
            security,
            attempts: self.attempts,
            request_id: text(Some(&self.head.request_id)),
            user_agent: text(self.head.user_agent.as_ref()),
            detail: detail.as_deref(),
            trace: self.trace.as_ref().map(Trace::id),
            noted: self.noted.as_deref(),
        };
        self.conn.ctx.telemetry.request(&record);
        if let Some(trace) = self.trace.as_ref().filter(|trace| trace.is_sampled()) {
            let ctx = &self.conn.ctx;
            ctx.telemetry.spans().put(trace.provider(), &ctx.upstreams, trace.spans(&record, now));
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.record();
        if self.head.version == http::Version::HTTP_2 {
            let taken_back = self.status == 0 && !self.complete && self.error.is_none();
            self.conn.signals.load.over(self.head.size, taken_back.then(|| self.start.elapsed()));
        }
        self.conn.signals.served();
        if self.conn.downstream.direction == Direction::Inbound {
            self.conn.ctx.in_flight.over();
        }
    }
}
