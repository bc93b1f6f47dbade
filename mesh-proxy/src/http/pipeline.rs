//! What happens to a request: identify the route, inject faults, answer it here or forward it, record it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use super::connection::Connection;
use super::deadline::Deadline;
use super::exchange::Exchange;
use super::head::{Head, apply, remove_hop_by_hop};
use super::request_body::{Gate, RequestBody, Upload};
use super::response_body::{Content, ResponseBody};
use super::{reply, upgrade};
use crate::config::{Action, Fault, Forward, Route, RouteSource, RouteTable, WeightedCluster};
use crate::error::{Error, Kind};
use crate::fault::{self, End};
use crate::snapshot::Found;
use crate::upstream::{Failed, Held, Target, UpstreamBody, View};
use crate::{mirror, retry, route};

/// Why there is no response.
enum Ended {
    Error(Error),
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
    let start = Instant::now();
    conn.signals.serving();
    let (parts, body) = request.into_parts();
    let head = Head::new(parts, &conn.downstream);
    let mut exchange = Exchange::begin(&conn, &head, start);
    let mut deadline = Deadline::none(&conn.timers, start);
    let grpc = head.grpc;
    let response = match respond(&conn, head, body, &mut exchange, &mut deadline).await {
        Ok(response) => response,
        Err(Ended::Error(error)) => {
            let response = reply::error(&error, grpc);
            exchange.error = Some(error);
            response
        }
        Err(Ended::Abort(http, code)) => {
            exchange.error = Some(Kind::Fault.into());
            reply::abort(http, code, grpc)
        }
        Err(Ended::Reset) => {
            exchange.error = Some(Kind::Fault.into());
            conn.signals.reset();
            return Err(h2::Reason::INTERNAL_ERROR.into());
        }
    };
    exchange.answered(response.status(), response.headers());
    Ok(finish(response, exchange, deadline))
}

async fn respond(
    conn: &Arc<Connection>,
    head: Head,
    body: Incoming,
    exchange: &mut Exchange,
    deadline: &mut Deadline,
) -> Result<Response<Content>, Ended> {
    let route = find_route(conn, &head).await?;
    exchange.route = Some(route.clone());
    if let Some(fault) = &route.fault {
        inject(fault, &head).await?;
    }
    let mut response = match &route.action {
        Action::Direct { status, body } => reply::plain(*status, body.clone()),
        Action::Redirect(redirect) => reply::redirect(redirect, &route.matches.path, &head),
        Action::Forward(forward) => self::forward(conn, head, body, &route, forward, exchange, deadline).await?,
    };
    apply(&route.response_headers, response.headers_mut());
    Ok(response)
}

async fn find_route(conn: &Connection, head: &Head) -> Result<Arc<Route>, Error> {
    let find = |table: &RouteTable| {
        let missing = || Error::because(Kind::NoRoute, format_args!("in {}", table.name));
        route::find(table, &head.subject()).cloned().ok_or_else(missing)
    };
    match &conn.manager.routes {
        RouteSource::Inline(table) => find(table),
        RouteSource::Rds(name) => {
            if let Some(table) = conn.ctx.store.load().routes(name) {
                return find(table);
            }
            match Box::pin(conn.ctx.store.routes(name)).await {
                Found::Yes(table) => find(&table),
                Found::Absent => {
                    Err(Error::because(Kind::NoRoute, format_args!("there is no route configuration {name}")))
                }
                Found::Unknown => Err(Error::because(Kind::Configuration, format_args!("route configuration {name}"))),
            }
        }
    }
}

async fn inject(fault: &Fault, head: &Head) -> Result<(), Ended> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let verdict = fault::decide(fault, &head.subject(), i64::try_from(now.as_millis()).unwrap_or(i64::MAX));
    if !verdict.delay.is_zero() {
        Box::pin(tokio::time::sleep(verdict.delay)).await;
    }
    match verdict.end {
        None => Ok(()),
        Some(End::Abort { http, grpc }) => Err(Ended::Abort(http, grpc)),
        Some(End::Reset) => Err(Ended::Reset),
    }
}

async fn forward(
    conn: &Arc<Connection>,
    mut head: Head,
    body: Incoming,
    route: &Route,
    forward: &Forward,
    exchange: &mut Exchange,
    deadline: &mut Deadline,
) -> Result<Response<Content>, Ended> {
    let choice = forward.clusters.pick().ok_or(Kind::NoCluster)?;
    exchange.cluster = Some(choice.cluster.clone());
    let view = conn.ctx.upstreams.view(&choice.cluster).await?;
    exchange.held = Some(view.usage.request(&view.cluster.limits)?);
    change(&mut head, route, forward, choice)?;
    let idle = forward.idle_timeout.unwrap_or(conn.manager.stream_idle_timeout);
    *deadline = Deadline::new(&conn.timers, exchange.start, forward.timeout, idle, head.grpc_deadline(exchange.start));
    exchange.upload = Upload::new(body, forward.retry.retries > 0 || head.is_idempotent(), exchange.start);
    for mirror in &forward.mirrors {
        mirror::send(mirror, &head, exchange.upload.as_ref(), conn);
    }
    let downstream = head.upgrade.take();
    let mut response = tries(conn, &mut head, &view, forward, exchange, deadline).await?;
    if let Some(upload) = &exchange.upload {
        upload.settle();
    }
    deadline.answered(exchange.answered_upstream.unwrap_or(exchange.start));
    tidy(&mut response, &head.method, downstream);
    apply(&choice.response_headers, response.headers_mut());
    Ok(response.map(Content::Upstream))
}

/// What the route makes of the request.
fn change(head: &mut Head, route: &Route, forward: &Forward, choice: &WeightedCluster) -> Result<(), Error> {
    if let Some(rewrite) = &forward.rewrite_path {
        head.rewrite_path(rewrite, &route.matches.path)?;
    }
    if let Some(host) = &forward.rewrite_host {
        head.rewrite_host(host);
    }
    head.mutate(&route.request_headers);
    head.mutate(&choice.request_headers);
    Ok(())
}

/// Sends the request until there is a response to take or nothing more to try.
async fn tries(
    conn: &Arc<Connection>,
    head: &mut Head,
    view: &Arc<View>,
    forward: &Forward,
    exchange: &mut Exchange,
    deadline: &mut Deadline,
) -> Result<Response<UpstreamBody>, Ended> {
    let policy = &forward.retry;
    let mut tries = Tries { left: policy.retries, tried: Vec::new(), renewed: false, held: None };
    loop {
        let target = view.choose(&conn.downstream, &tries.tried)?;
        deadline.begin_try(policy.per_try_timeout, Instant::now());
        exchange.attempts += 1;
        let outcome =
            try_once(head, &target, exchange.upload.as_ref(), tries.may_go_on(head, exchange), deadline).await;
        let address = target.address();
        exchange.target = Some(target);
        match outcome {
            Ok(response) => {
                exchange.answered_upstream = Some(Instant::now());
                let wanted = retry::on_response(&policy.on, response.status(), response.headers());
                if !(wanted && tries.take(view, exchange)) {
                    return Ok(response);
                }
            }
            Err(Failed { error, stale, .. }) => {
                if stale && tries.renew(head, exchange) {
                    continue;
                }
                let wanted = retry::on_error(&policy.on, error.kind, head.is_idempotent());
                if !(wanted && tries.take(view, exchange)) {
                    return Err(error.into());
                }
            }
        }
        tries.tried.push(address);
        let wait = retry::backoff(policy, policy.retries - tries.left, fastrand::f64());
        if let Err(kind) = deadline.limit(exchange.upload.as_ref(), Box::pin(tokio::time::sleep(wait))).await {
            return Err(kind.into());
        }
    }
}

/// What a request has left to try.
struct Tries {
    left: u32,
    tried: Vec<SocketAddr>,
    /// Was sent again once because the pool's connection had been closed.
    renewed: bool,
    /// The retry's share of the cluster's budget.
    held: Option<Held>,
}

impl Tries {
    /// Whether the request's head must be kept for another try.
    fn may_go_on(&self, head: &Head, exchange: &Exchange) -> bool {
        self.left > 0 || (!self.renewed && head.is_idempotent() && can_replay(exchange))
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
    fn renew(&mut self, head: &Head, exchange: &Exchange) -> bool {
        let again = !self.renewed && head.is_idempotent() && can_replay(exchange);
        self.renewed |= again;
        again
    }
}

fn can_replay(exchange: &Exchange) -> bool {
    exchange.upload.as_ref().is_none_or(Upload::can_replay)
}

async fn try_once(
    head: &mut Head,
    target: &Target,
    upload: Option<&Upload>,
    keep: bool,
    deadline: &mut Deadline,
) -> Result<Response<UpstreamBody>, Failed> {
    let gate = head.expects.then(|| Arc::new(Gate::new()));
    let version = head.version_for(target);
    let body = match upload {
        None => RequestBody::empty(),
        Some(upload) => upload.body(gate.clone()),
    };
    let mut request = head.request(body, target, version, keep)?;
    if let Some(gate) = gate.filter(|_| upload.is_some()) {
        hyper::ext::on_informational(&mut request, move |response| {
            if response.status() == StatusCode::CONTINUE {
                gate.open();
            }
        });
    }
    match deadline.limit(upload, target.send(request, version)).await {
        Ok(outcome) => outcome,
        Err(kind) => Err(Error::new(kind).into()),
    }
}

/// Makes the response one of this connection.
fn tidy(response: &mut Response<UpstreamBody>, method: &Method, downstream: Option<OnUpgrade>) {
    let status = response.status();
    let switches = status == StatusCode::SWITCHING_PROTOCOLS;
    let tunnel = switches || (*method == Method::CONNECT && status.is_success());
    let protocol = response.headers().get(http::header::UPGRADE).cloned();
    remove_hop_by_hop(response.headers_mut());
    if let Some(protocol) = protocol.filter(|_| switches) {
        response.headers_mut().insert(http::header::UPGRADE, protocol);
        response.headers_mut().insert(http::header::CONNECTION, http::HeaderValue::from_static("upgrade"));
    }
    let upstream = response.extensions_mut().remove::<OnUpgrade>();
    if tunnel && let (Some(downstream), Some(upstream)) = (downstream, upstream) {
        response.extensions_mut().insert(Tunnel(downstream, upstream));
    }
    *response.version_mut() = http::Version::HTTP_11;
}

/// Both sides of a tunnel that begins after the response's head.
#[derive(Clone)]
struct Tunnel(OnUpgrade, OnUpgrade);

fn finish(mut response: Response<Content>, exchange: Box<Exchange>, deadline: Deadline) -> Response<ResponseBody> {
    if let Some(Tunnel(downstream, upstream)) = response.extensions_mut().remove::<Tunnel>() {
        upgrade::tunnel(downstream, upstream, exchange);
        return response.map(|_| ResponseBody::none());
    }
    response.map(|content| ResponseBody::new(content, exchange, deadline))
}

#[cfg(test)]
pub(super) fn size_of_future(conn: Arc<Connection>) -> usize {
    fn of<F: Future>(_: impl Fn(Arc<Connection>, Request<Incoming>) -> F, _: Arc<Connection>) -> usize {
        size_of::<F>()
    }
    of(handle, conn)
}
