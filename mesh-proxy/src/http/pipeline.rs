//! What happens to a request: identify the route, inject faults, answer it here or forward it, record it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::header::{CONNECTION, CONTENT_LENGTH, HeaderValue, SET_COOKIE, TRANSFER_ENCODING, UPGRADE};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use super::connection::Connection;
use super::cors::{self, Met};
use super::deadline::Deadline;
use super::exchange::Exchange;
use super::head::{Head, apply, concerns_connection, remove_hop_by_hop, tell_time_left};
use super::request_body::{Gate, RequestBody, Upload};
use super::response_body::{Content, ResponseBody};
use super::{hedge, reply, upgrade};
use crate::authorization::{self, Subject, Verdict, audit};
use crate::config::{
    Action, Authorization, Authorizer, Fault, Forward, HttpManager, RetryPolicy, Route, RouteSource, RouteTable,
    WeightedCluster,
};
use crate::error::{Error, Kind, Retry, Side};
use crate::ext_authz::{self, Denied, Refused};
use crate::fault::{self, End, Injected};
use crate::hash::{self, Keyed};
use crate::inbound::NOT_TAKEN;
use crate::jwt::{self, Verified};
use crate::limit::{self, LimitHit};
use crate::listen::{Direction, Security};
use crate::pace::Way;
use crate::snapshot::Found;
use crate::telemetry::{Asked, Event};
use crate::trace::Trace;
use crate::upstream::{Failed, Held, Outcome, Target, UpstreamBody, Version, View};
use crate::{mirror, retry, route};

/// Why there is no response.
pub(super) enum Ended {
    Error(Error),
    /// Somebody is to be asked about it, and nobody can be.
    Unaskable(Error),
    /// Somebody who was asked refuses it, or did not answer.
    Refused(Box<Denied>, Error),
    /// An injected abort.
    Abort(StatusCode, u32),
    /// An injected reset.
    Reset,
}

impl<E: Into<Error>> From<E> for Ended {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

/// Answers one request. An error resets the HTTP/2 stream, or ends the HTTP/1.1 connection.
pub(super) async fn handle(
    conn: Arc<Connection>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, h2::Error> {
    let mut exchange = Exchange::begin(conn, request);
    let grpc = exchange.head.grpc;
    let mut response = match respond(&mut exchange).await {
        Ok(response) => response,
        Err(Ended::Error(error)) if hands_back(&exchange, &error) => {
            exchange.error = Some(error);
            return Err(h2::Reason::REFUSED_STREAM.into());
        }
        Err(Ended::Error(error)) => {
            if error.kind == Kind::BodyTooLarge {
                exchange.conn.ctx.telemetry.limit_hit(LimitHit::SizeBody);
            }
            let mut response = reply::error(&error, grpc);
            if error.kind == Kind::Unauthenticated {
                reply::challenge(response.headers_mut(), exchange.head.authority());
            }
            exchange.error = Some(error);
            response
        }
        Err(Ended::Unaskable(error)) => {
            let response = reply::error(&error, grpc);
            exchange.error = Some(error);
            response
        }
        Err(Ended::Refused(denied, error)) => {
            exchange.error = Some(error);
            reply::denied(*denied, exchange.head.method == Method::HEAD, grpc)
        }
        Err(Ended::Abort(http, code)) => {
            exchange.error = Some(Kind::Fault.into());
            reply::abort(http, code, grpc)
        }
        Err(Ended::Reset) => {
            exchange.error = Some(Kind::Fault.into());
            // Over HTTP/2 the connection is also that of other requests.
            if exchange.head.version != http::Version::HTTP_2 {
                exchange.conn.signals.reset();
            }
            return Err(h2::Reason::INTERNAL_ERROR.into());
        }
    };
    if let Some(changes) = exchange.response_changes.take() {
        changes.iter().for_each(|change| change.apply(response.headers_mut()));
    }
    if let Some(cors) = exchange.route.as_ref().and_then(|route| route.cors.as_deref()) {
        cors::mark(cors, exchange.origin.as_ref(), response.headers_mut());
    }
    exchange.answered(response.status(), response.headers());
    // Of a client whose bytes may be read in several ways, no more are read.
    let unclear = exchange.head.flaw.is_some() && exchange.head.version != http::Version::HTTP_2;
    let last = exchange.conn.signals.is_leaving() || unclear;
    let quota = exchange.quota;
    let mut response = finish(response, exchange);
    if let Some(quota) = quota {
        quota.tell(response.headers_mut());
    }
    if last {
        response.headers_mut().entry(CONNECTION).or_insert(HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// A request that the application has not seen can go to another workload, and a proxy on the other side takes it there:
/// it is told so by HTTP/2's own word for that.
fn hands_back(exchange: &Exchange, error: &Error) -> bool {
    let downstream = &exchange.conn.downstream;
    downstream.direction == Direction::Inbound
        && downstream.security() == Security::MutualTls
        && exchange.head.version == http::Version::HTTP_2
        && (error.kind.side() == Side::Upstream || error.kind == Kind::Overloaded)
        && error.kind.retry() == Retry::Safe
}

async fn respond(exchange: &mut Exchange) -> Result<Response<Content>, Ended> {
    exchange.head.check()?;
    if let Some(scarce) = exchange.conn.ctx.overload.scarce() {
        return Err(Error::because(Kind::Overloaded, scarce.as_str()).into());
    }
    let manager = exchange.manager.clone().ok_or_else(|| not_taken(exchange))?;
    let token = authenticate(&manager, exchange)?;
    let asked = match manager.authorizers.as_slice() {
        [] => None,
        authorizers => Box::pin(ask(authorizers, &manager.authorization, exchange, token.as_deref())).await?,
    };
    authorize(&manager.authorization, exchange, token.as_deref(), asked)?;
    let route = find_route(&exchange.conn, &manager, &exchange.head).await?;
    exchange.route = Some(route.clone());
    exchange.deadline = deadline(exchange, &route);
    keep_limits(exchange, &manager)?;
    if let Some(cors) = &route.cors {
        match cors::meet(cors, &exchange.head) {
            Met::Allowed(origin) => exchange.origin = Some(origin),
            Met::Preflight(response, origin) => {
                exchange.origin = origin;
                return Ok(response);
            }
            Met::Other => (),
        }
    }
    if let Some(fault) = &route.fault {
        inject(fault, exchange).await?;
    }
    let mut response = match &route.action {
        Action::Direct { status, body } => reply::direct(*status, body.clone(), exchange.head.method == Method::HEAD),
        Action::Redirect(redirect) => reply::redirect(redirect, &route.matches.path, &exchange.head),
        Action::Forward(action) => forward(exchange, &route, action).await?,
    };
    apply(&route.response_headers, response.headers_mut());
    Ok(response)
}

/// Of a connection that was taken when it came.
fn not_taken(exchange: &Exchange) -> Error {
    let Exchange { conn, head, .. } = exchange;
    audit::record_refusal(&conn.ctx, Event::Request, &conn.downstream, || Some(asked(head)), NOT_TAKEN);
    Error::because(Kind::Denied, NOT_TAKEN)
}

/// The token that the request has, if any. One that is not good refuses it.
fn authenticate(manager: &HttpManager, exchange: &mut Exchange) -> Result<Option<Arc<Verified>>, Error> {
    let Some(authn) = &manager.jwt else { return Ok(None) };
    exchange.hide_tokens(authn);
    let Head { headers, uri, .. } = &mut exchange.head;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    jwt::admit(authn, headers, uri, now).map_err(|refused| {
        if let Some(noted) = &mut exchange.noted {
            noted.refused();
        }
        let (why, Exchange { conn, head, .. }) = (refused.to_string(), &*exchange);
        audit::record_refusal(&conn.ctx, Event::Request, &conn.downstream, || Some(asked(head)), &why);
        Error::because(Kind::Unauthenticated, why)
    })
}

/// Asks everybody who is to be asked about the request; the last policy by which somebody let it in.
async fn ask<'m>(
    authorizers: &'m [Authorizer],
    authorization: &Authorization,
    exchange: &mut Exchange,
    token: Option<&Verified>,
) -> Result<Option<&'m str>, Ended> {
    let refused = match ext_authz::ask(authorizers, exchange, token.map(|it| &it.claims)).await {
        Ok(asked) => return Ok(asked),
        Err(refused) => refused,
    };
    let (Refused::Unaskable(refusal, _) | Refused::By(refusal, ..)) = refused;
    // What is to be recorded is so in any case; nothing else is asked for any more.
    let audited_by = authorization::decide(authorization, &subject(exchange, token)).audited_by;
    tell(exchange, &Verdict { refused: Some(refusal), audited_by, ..Verdict::default() }, true);
    let because = |kind, why: Option<String>| match why {
        Some(why) => Error::because(kind, format_args!("{refusal}: {why}")),
        None => Error::because(kind, refusal),
    };
    Err(match refused {
        Refused::Unaskable(_, error) => Ended::Unaskable(because(error.kind, error.detail)),
        Refused::By(_, denied, why) => Ended::Refused(denied, because(Kind::Denied, why)),
    })
}

/// Whether the policies let the request in. `asked_by`: the policy by which somebody else has.
fn authorize(
    authorization: &Authorization,
    exchange: &mut Exchange,
    token: Option<&Verified>,
    asked_by: Option<&str>,
) -> Result<(), Error> {
    let has_gates = !authorization.gates.is_empty();
    if !has_gates && exchange.conn.downstream.direction == Direction::Outbound {
        // Nobody decides here; who is called does.
        return Ok(());
    }
    let mut verdict = Verdict::default();
    if has_gates {
        verdict = authorization::decide(authorization, &subject(exchange, token));
    }
    verdict.allowed_by = verdict.allowed_by.or(asked_by.filter(|_| verdict.refused.is_none()));
    tell(exchange, &verdict, has_gates || asked_by.is_some());
    verdict.enforce(&exchange.conn.ctx.telemetry)
}

/// What policies decide about.
fn subject<'a>(exchange: &'a Exchange, token: Option<&'a Verified>) -> Subject<'a> {
    let Exchange { conn, head, .. } = exchange;
    let subject = Subject::new(&conn.downstream, conn.identity.as_deref(), Some(head.subject()));
    Subject { claims: token.map(|it| &it.claims), ..subject }
}

/// Lets those know who watch. `decided`: some policy is about the request.
fn tell(exchange: &mut Exchange, verdict: &Verdict<'_>, decided: bool) {
    let Exchange { conn, head, trace, noted, .. } = exchange;
    if let Some(trace) = trace.as_mut().filter(|trace| trace.is_sampled()) {
        trace.policy(verdict.deciding());
    }
    if let Some(noted) = noted.as_mut().filter(|_| decided) {
        noted.decided(verdict);
    }
    audit::record(&conn.ctx, Event::Request, &conn.downstream, || Some(asked(head)), verdict);
}

/// What the audit log has of a request.
fn asked(head: &Head) -> Asked<'_> {
    Asked {
        method: &head.method,
        authority: head.authority(),
        path: head.path(),
        protocol: head.version.into(),
        request_id: head.request_id.to_str().unwrap_or_default(),
        headers: &head.headers,
    }
}

async fn find_route(conn: &Connection, manager: &HttpManager, head: &Head) -> Result<Arc<Route>, Error> {
    match &manager.routes {
        RouteSource::Inline(table) => find_in(table, head),
        RouteSource::Rds(name) => {
            if let Some(table) = conn.ctx.store.load().routes(name) {
                return find_in(table, head);
            }
            match Box::pin(conn.ctx.store.routes(name)).await {
                Found::Yes(table) => find_in(&table, head),
                Found::Absent => {
                    Err(Error::because(Kind::NoRoute, format_args!("there is no route configuration {name}")))
                }
                Found::Unknown => Err(Error::because(Kind::Configuration, format_args!("route configuration {name}"))),
            }
        }
    }
}

fn find_in(table: &RouteTable, head: &Head) -> Result<Arc<Route>, Error> {
    let missing = || Error::because(Kind::NoRoute, format_args!("in {}", table.name));
    route::find(table, &head.subject()).cloned().ok_or_else(missing)
}

fn deadline(exchange: &Exchange, route: &Route) -> Deadline {
    let Exchange { conn, start, head, .. } = exchange;
    let timeout = match &route.action {
        Action::Forward(it) => it.timeout,
        Action::Direct { .. } | Action::Redirect(_) => Duration::ZERO,
    };
    Deadline::new(&conn.timers, *start, timeout, exchange.idle_timeout(), head.grpc_deadline(*start))
}

/// Refuses what is more than the application takes.
fn keep_limits(exchange: &mut Exchange, manager: &HttpManager) -> Result<(), Error> {
    let Exchange { conn, head, quota, start, place, upload, down, .. } = exchange;
    let identity = conn.downstream.identity.as_deref();
    if let Some(limits) = &manager.limits {
        limit::size(limits, &conn.ctx, head.field_bytes, upload.as_ref())?;
        *place = limit::request(limits, &conn.ctx, identity)?;
        *down = limit::pacer(limits, &conn.ctx, identity, Way::Down);
        if let Some(upload) = upload
            && let Some(pacer) = limit::pacer(limits, &conn.ctx, identity, Way::Up)
        {
            upload.slow_down(pacer);
        }
    }
    let Some(limit) = &manager.limit else { return Ok(()) };
    let taken = conn.ctx.rate_limits.take(&manager.stat_prefix, limit, identity, &head.headers, *start);
    *quota = Some(taken);
    if taken.allowed {
        return Ok(());
    }
    conn.ctx.telemetry.limit_hit(LimitHit::Requests);
    Err(Kind::RateLimited.into())
}

async fn inject(fault: &Fault, exchange: &mut Exchange) -> Result<(), Ended> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let verdict = fault::decide(fault, &exchange.head.subject(), i64::try_from(now.as_millis()).unwrap_or(i64::MAX));
    if !verdict.delay.is_zero() {
        exchange.injected(Injected::Delay);
        // As slow as an upstream would be, and no slower than the client is to wait for one. Nothing reads the body
        // meanwhile: the time counts from the request's head.
        Box::pin(exchange.deadline.limit(None, tokio::time::sleep(verdict.delay))).await?;
    }
    // The time that the response takes counts from when it comes.
    fault::slow_down(&mut exchange.down, &verdict.throttles, Instant::now());
    exchange.slowed = !verdict.throttles.is_empty();
    if exchange.slowed {
        exchange.injected(Injected::Throttle);
    }
    match verdict.end {
        None => Ok(()),
        Some(End::Abort { http, grpc }) => {
            exchange.injected(Injected::Abort);
            Err(Ended::Abort(http, grpc))
        }
        Some(End::Reset) => {
            exchange.injected(Injected::Reset);
            Err(Ended::Reset)
        }
    }
}

async fn forward(exchange: &mut Exchange, route: &Route, forward: &Forward) -> Result<Response<Content>, Ended> {
    let choice = forward.clusters.pick().ok_or(Kind::NoCluster)?;
    exchange.cluster = Some(choice.cluster.clone());
    let view = exchange.conn.ctx.upstreams.view(&choice.cluster).await?;
    prepare(exchange, route, forward, choice, &view)?;
    let Keyed { key, cookies } = match forward.hash.as_slice() {
        [] => Keyed::default(),
        hash => hash::of_request(hash, &exchange.head.headers, exchange.conn.downstream.peer.ip()),
    };
    let mut response = if hedge::is_wanted(exchange, &forward.retry) {
        Box::pin(hedge::tries(exchange, &forward.retry, &view, key)).await?
    } else {
        tries(exchange, &forward.retry, &view, key).await?
    };
    if let Some(upload) = &exchange.upload {
        upload.settle();
    }
    tidy(&mut response, &exchange.head.method, exchange.head.upgrade.take())?;
    apply(&choice.response_headers, response.headers_mut());
    for cookie in cookies {
        response.headers_mut().append(SET_COOKIE, cookie);
    }
    Ok(response.map(Content::Upstream))
}

/// What the route makes of the request, before any of it is sent.
fn prepare(
    exchange: &mut Exchange,
    route: &Route,
    forward: &Forward,
    choice: &WeightedCluster,
    view: &Arc<View>,
) -> Result<(), Error> {
    let Exchange { conn, head, upload, held, trace, .. } = exchange;
    *held = Some(view.usage.request(&view.cluster.limits)?);
    if let Some(rewrite) = &forward.rewrite_path {
        head.rewrite_path(rewrite, &route.matches.path)?;
    }
    if let Some(host) = &forward.rewrite_host {
        head.rewrite_host(host);
    }
    head.mutate(&route.request_headers);
    head.mutate(&choice.request_headers);
    if let Some(upload) = upload
        && forward.retry.retries == 0
        && !head.is_idempotent()
    {
        upload.settle();
    }
    for mirror in &forward.mirrors {
        mirror::send(mirror, head, upload.as_ref(), trace.as_mut(), conn);
    }
    Ok(())
}

/// Sends the request until there is a response to take or nothing more to try.
async fn tries(
    exchange: &mut Exchange,
    policy: &RetryPolicy,
    view: &Arc<View>,
    key: Option<u64>,
) -> Result<Response<UpstreamBody>, Ended> {
    let mut tries = Tries::new(policy);
    // Of a policy that hedges, that is when another try begins and not when one ends.
    let per_try = if policy.hedges { Duration::ZERO } else { policy.per_try_timeout };
    loop {
        let now = Instant::now();
        exchange.deadline.begin_try(per_try, now);
        if let Some(kind) = exchange.deadline.passed(exchange.upload.as_ref(), now) {
            return Err(kind.into());
        }
        let target = exchange.target.insert(view.choose(&exchange.conn.downstream, &tries.tried, key)?);
        let address = target.address();
        exchange.tries(address, now);
        let outcome = try_once(exchange, tries.may_go_on(exchange)).await;
        let which = (exchange.attempts, now);
        let wait = match tries.next(exchange, policy, view, outcome, which) {
            Next::Done(result) => return result,
            Next::AtOnce => continue,
            Next::After(wait) => wait,
        };
        tries.tried.push(address);
        let waited = exchange.deadline.limit(exchange.upload.as_ref(), Box::pin(tokio::time::sleep(wait))).await;
        waited?;
    }
}

/// What follows a try. Taken apart as soon as it is made.
#[allow(clippy::large_enum_variant)]
pub(super) enum Next {
    Done(Result<Response<UpstreamBody>, Ended>),
    /// Another one that is not a retry.
    AtOnce,
    /// A retry.
    After(Duration),
}

/// Whether a retry can wait as long as the upstream asks: sooner would be no use.
fn is_patient(exchange: &Exchange, policy: &RetryPolicy, asked: Option<Duration>, now: Instant) -> bool {
    let in_time = |at| exchange.deadline.passed(exchange.upload.as_ref(), at).is_none();
    asked.is_none_or(|wait| wait <= policy.retry_after_max && now.checked_add(wait).is_some_and(in_time))
}

/// What a request has left to try.
pub(super) struct Tries {
    left: u32,
    pub(super) tried: Vec<SocketAddr>,
    /// Was sent again once because the pool's connection had been closed.
    renewed: bool,
    /// The retry's share of the cluster's budget.
    held: Option<Held>,
}

impl Tries {
    pub(super) fn new(policy: &RetryPolicy) -> Self {
        Self { left: policy.retries, tried: Vec::new(), renewed: false, held: None }
    }

    /// Takes note of what came of a try that nothing follows from.
    pub(super) fn observe(
        &self,
        exchange: &mut Exchange,
        outcome: Result<Response<UpstreamBody>, Failed>,
        (number, began): (u32, Instant),
    ) {
        let now = Instant::now();
        exchange.tried(number, &outcome);
        if let Some(target) = &exchange.target {
            target.took(now.saturating_duration_since(began), outcome.is_ok(), now);
        }
        match outcome {
            Ok(response) => exchange.observe_head(response.status(), response.headers(), now),
            Err(failed) => {
                if let Some(outcome) = Outcome::of_error(failed.error.kind) {
                    exchange.observe(outcome, || now);
                }
            }
        }
    }

    /// Takes a retry beside the tries that are under way. It is given back when what is returned is dropped.
    pub(super) fn take_another(&mut self, view: &View) -> Option<Held> {
        let held = (self.left > 0).then(|| view.usage.retry(&view.cluster.limits)).flatten()?;
        self.left -= 1;
        Some(held)
    }

    /// Takes note of what came of the try of that number that `began` then, and says what follows.
    pub(super) fn next(
        &mut self,
        exchange: &mut Exchange,
        policy: &RetryPolicy,
        view: &View,
        outcome: Result<Response<UpstreamBody>, Failed>,
        (number, began): (u32, Instant),
    ) -> Next {
        let now = Instant::now();
        exchange.tried(number, &outcome);
        exchange.deadline.end_try(now);
        if let Some(target) = &exchange.target {
            target.took(now.saturating_duration_since(began), outcome.is_ok(), now);
        }
        let asked = match outcome {
            Ok(response) => {
                exchange.answered_upstream = Some(now);
                exchange.observe_head(response.status(), response.headers(), now);
                let wanted = retry::on_response(&policy.on, response.status(), response.headers());
                let asked = retry::retry_after(policy, response.headers(), SystemTime::now).filter(|_| wanted);
                if !(wanted && is_patient(exchange, policy, asked, now) && self.take(view, exchange)) {
                    return Next::Done(Ok(response));
                }
                asked.unwrap_or_default()
            }
            Err(Failed { error, stale, .. }) => {
                if stale && self.renew(exchange) {
                    return Next::AtOnce;
                }
                if let Some(outcome) = Outcome::of_error(error.kind) {
                    exchange.observe(outcome, || now);
                }
                let wanted = retry::on_error(&policy.on, error.kind, exchange.head.is_idempotent())
                    && !(retry::is_silence(error.kind, now - began) && self.has_tried_all(view, exchange));
                if !(wanted && self.take(view, exchange)) {
                    return Next::Done(Err(error.into()));
                }
                Duration::ZERO
            }
        };
        Next::After(asked + retry::backoff(policy, policy.retries - self.left, fastrand::f64()))
    }

    /// A further try would go to an endpoint that has had one.
    fn has_tried_all(&self, view: &View, exchange: &Exchange) -> bool {
        let last = exchange.target.as_ref().map(Target::address);
        !view.has_any(|address| last != Some(address) && !self.tried.contains(&address))
    }

    /// Whether the request's head must be kept for another try.
    fn may_go_on(&self, exchange: &Exchange) -> bool {
        self.left > 0 || (!self.renewed && exchange.head.is_idempotent() && can_replay(exchange))
    }

    /// Takes a retry, if the policy has one left, the body can be sent again and the budget allows it.
    fn take(&mut self, view: &View, exchange: &Exchange) -> bool {
        if self.left == 0 || !can_replay(exchange) {
            return false;
        }
        // Only after the former one is given back.
        self.held = None;
        self.held = view.usage.retry(&view.cluster.limits);
        self.left -= u32::from(self.held.is_some());
        self.held.is_some()
    }

    /// A connection that was closed while it lay in the pool says nothing about the endpoint: once, and for requests that
    /// may be repeated, another one is taken without counting it as a retry.
    fn renew(&mut self, exchange: &Exchange) -> bool {
        let again = !self.renewed && exchange.head.is_idempotent() && can_replay(exchange);
        self.renewed |= again;
        again
    }
}

fn can_replay(exchange: &Exchange) -> bool {
    exchange.upload.as_ref().is_none_or(Upload::can_replay)
}

/// Sends the request to the target that was chosen. `keep`: another try may follow.
async fn try_once(exchange: &mut Exchange, keep: bool) -> Result<Response<UpstreamBody>, Failed> {
    let flow = exchange.flow();
    let Exchange { head, upload, target: Some(target), deadline, trace, .. } = exchange else {
        return Err(Error::new(Kind::NoHealthyUpstream).into());
    };
    let version = head.version_for(target);
    let request = request(head, (&*deadline, trace.as_ref()), upload.as_ref(), target, version, keep)?;
    match deadline.limit(upload.as_ref(), target.send(request, version, flow)).await {
        Ok(outcome) => outcome,
        Err(kind) => Err(Error::new(kind).into()),
    }
}

fn request(
    head: &mut Head,
    told: Told<'_>,
    upload: Option<&Upload>,
    target: &Target,
    version: Version,
    keep: bool,
) -> Result<Request<RequestBody>, Error> {
    let Some(upload) = upload else {
        return make_request(head, told, RequestBody::empty(), target, version, keep);
    };
    if !head.expects {
        return make_request(head, told, upload.body(None), target, version, keep);
    }
    let gate = Arc::new(Gate::new());
    let mut request = make_request(head, told, upload.body(Some(gate.clone())), target, version, keep)?;
    hyper::ext::on_informational(&mut request, move |response| {
        if response.status() == StatusCode::CONTINUE {
            gate.open();
        }
    });
    Ok(request)
}

/// What a try is told: how long its client still waits, and which trace it belongs to.
pub(super) type Told<'a> = (&'a Deadline, Option<&'a Trace>);

/// The request of one try.
pub(super) fn make_request(
    head: &mut Head,
    (deadline, trace): Told<'_>,
    body: RequestBody,
    target: &Target,
    version: Version,
    keep: bool,
) -> Result<Request<RequestBody>, Error> {
    let mut request = head.request(body, target, version, keep)?;
    if let Some(left) = deadline.client_waits(Instant::now()) {
        tell_time_left(request.headers_mut(), left);
    }
    if let Some(trace) = trace {
        trace.tell(request.headers_mut());
    }
    Ok(request)
}

/// Makes the response one of this connection.
fn tidy(response: &mut Response<UpstreamBody>, method: &Method, downstream: Option<OnUpgrade>) -> Result<(), Error> {
    let status = response.status();
    let switches = status == StatusCode::SWITCHING_PROTOCOLS;
    let tunnel = switches || (*method == Method::CONNECT && status.is_success());
    if response.headers().keys().any(|name| concerns_connection(name.as_str())) {
        // The former decides how the body was read, and the latter may not be believed then (RFC 9112, 6.3).
        if response.headers().contains_key(TRANSFER_ENCODING) {
            response.headers_mut().remove(CONTENT_LENGTH);
        }
        let protocol = response.headers_mut().remove(UPGRADE);
        remove_hop_by_hop(response.headers_mut());
        if let Some(protocol) = protocol.filter(|_| switches) {
            response.headers_mut().insert(UPGRADE, protocol);
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        }
    }
    let upstream = response.extensions_mut().remove::<OnUpgrade>();
    if tunnel && let (Some(downstream), Some(upstream)) = (downstream, upstream) {
        response.extensions_mut().insert(Tunnel(downstream, upstream));
    } else if switches {
        // The client asked for no other protocol, and goes on with this one.
        return Err(Error::because(Kind::UpstreamProtocol, "an upgrade that nobody asked for"));
    }
    *response.version_mut() = http::Version::HTTP_11;
    Ok(())
}

/// Both sides of a tunnel that begins after the response's head.
#[derive(Clone)]
struct Tunnel(OnUpgrade, OnUpgrade);

fn finish(mut response: Response<Content>, exchange: Box<Exchange>) -> Response<ResponseBody> {
    if let Some(Tunnel(downstream, upstream)) = response.extensions_mut().remove::<Tunnel>() {
        upgrade::tunnel(downstream, upstream, exchange);
        return response.map(|_| ResponseBody::none());
    }
    response.map(|content| ResponseBody::new(content, exchange))
}

#[cfg(test)]
pub(super) fn size_of_future(conn: Arc<Connection>) -> usize {
    fn of<F: Future>(_: impl Fn(Arc<Connection>, Request<Incoming>) -> F, _: Arc<Connection>) -> usize {
        size_of::<F>()
    }
    of(handle, conn)
}
