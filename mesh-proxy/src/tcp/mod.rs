//! Byte streams. In: a connection and where it may go. Out: the same bytes at the upstream, and a record of how it went.
//!
//! A stream that breaks on one side is reset on the other: a clean end would say that all bytes have arrived.

pub(crate) mod copy;
mod pipe;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_common::names::CLUSTER_PASSTHROUGH;
use tokio::net::{TcpSocket, TcpStream};

use crate::authorization::{self, Refusal, Subject, Verdict, audit};
use crate::config::{Endpoint, Fault, FaultKind, FaultRule, NetworkFilter, TcpProxy};
use crate::detect::Learned;
use crate::error::{Error, Kind, Side};
use crate::fault::{self, Injected, Throttle};
use crate::hash;
use crate::http::DownstreamIo;
use crate::inbound::{Chosen, NOT_TAKEN};
use crate::limit;
use crate::listen::{self, Context, Direction, Downstream, Security};
use crate::pace::Way;
use crate::telemetry::{Event, StreamMetrics, TcpRecord};
use crate::upstream::{TcpUpstream, UpstreamStream};

use copy::{Broken, Count, Paces};

const PASSTHROUGH_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const PASSTHROUGH_IDLE: Duration = Duration::from_secs(3600);

/// Where a connection goes, as far as that is known: what is not is empty.
#[derive(Clone, Copy, Debug, Default)]
pub struct To<'a> {
    /// The service's port that was called.
    pub called: &'a str,
    pub cluster: &'a str,
    /// What the policies say of it; `None` if none is about it.
    pub verdict: Option<Verdict<'a>>,
}

impl<'a> To<'a> {
    /// Nowhere: a policy does not let it in. The policy's name may be empty.
    pub fn refused_by(policy: &'a str) -> Self {
        Self { verdict: Some(Verdict { refused: Some(refusal(policy)), ..Verdict::default() }), ..Self::default() }
    }
}

fn refusal(policy: &str) -> Refusal<'_> {
    if policy.is_empty() { Refusal::NotAllowed } else { Refusal::Denied(policy) }
}

/// What a policy has ended that came later.
struct Revoked {
    error: Error,
    /// Its name, if it has one.
    policy: String,
}

/// Carries the connection to one of the proxy's clusters until it ends.
///
/// `chosen`, of a peer's connection, tells when it is not one that is taken any more.
pub(crate) async fn proxy<IO: DownstreamIo>(
    io: IO,
    downstream: &Downstream,
    filter: &TcpProxy,
    chosen: Option<&Chosen>,
    ctx: &Context,
) {
    let began = Instant::now();
    let mut to = To { called: &filter.stat_prefix, ..To::default() };
    if let Some(scarce) = ctx.overload.scarce() {
        return refuse(io, downstream, to, began, &Error::because(Kind::Overloaded, scarce.as_str()), ctx);
    }
    // Without policies, who is called decides about what goes out.
    if downstream.direction == Direction::Inbound || !filter.authorization.gates.is_empty() {
        let verdict = verdict(downstream, filter);
        audit::record(ctx, Event::Stream, downstream, || None, &verdict);
        to.verdict = (!filter.authorization.gates.is_empty()).then_some(verdict);
        if let Err(error) = verdict.enforce(&ctx.telemetry) {
            return refuse(io, downstream, to, began, &error, ctx);
        }
    }
    let paced = |way| {
        let limits = filter.limits.as_deref()?;
        limit::pacer(limits, ctx, downstream.identity.as_deref(), way)
    };
    let mut paces = Paces { forth: paced(Way::Up), back: paced(Way::Down), fault: false };
    if let Some(fault) = &filter.fault {
        match inject(fault, ctx).await {
            Ok(throttles) => {
                paces.fault = !throttles.is_empty();
                fault::slow_down(&mut paces.back, &throttles, Instant::now());
            }
            Err(error) => return refuse(io, downstream, to, began, &error, ctx),
        }
    }
    let Some(choice) = filter.clusters.pick() else {
        return refuse(io, downstream, to, began, &Kind::NoCluster.into(), ctx);
    };
    to.cluster = &choice.cluster;
    let key = filter.hash_source.then(|| hash::of_source(downstream.peer.ip()));
    match ctx.upstreams.connect_tcp(&choice.cluster, downstream, key).await {
        Ok(upstream) => {
            let idle = (!filter.idle_timeout.is_zero()).then_some(filter.idle_timeout);
            let revoked = revoked(downstream, chosen, ctx);
            carry(io, downstream, to, upstream, idle, paces, began, revoked, ctx).await;
        }
        Err(error) => refuse(io, downstream, to, began, &error, ctx),
    }
}

/// What the policies say of the connection.
fn verdict<'a>(downstream: &Downstream, filter: &'a TcpProxy) -> Verdict<'a> {
    if filter.authorization.gates.is_empty() {
        return Verdict::default();
    }
    let identity = downstream.identity.as_deref().map(ToString::to_string);
    authorization::decide(&filter.authorization, &Subject::new(downstream, identity.as_deref(), None))
}

/// Ends when a policy that came later does not let the connection in.
async fn revoked(downstream: &Downstream, chosen: Option<&Chosen>, ctx: &Context) -> Revoked {
    let Some(chosen) = chosen else { return std::future::pending().await };
    let mut changes = ctx.store.listener_changes();
    loop {
        match chosen.now(&ctx.store) {
            Some(NetworkFilter::Tcp(filter)) => {
                // What is on trial was counted when the connection came.
                let verdict = Verdict { would_refuse: None, ..verdict(downstream, &filter) };
                if let Some(refusal) = verdict.refused {
                    audit::record(ctx, Event::OpenStream, downstream, || None, &verdict);
                    let policy = refusal.policy().to_owned();
                    return Revoked { error: Error::because(Kind::Denied, refusal), policy };
                }
            }
            Some(NetworkFilter::Http(_)) | None => {
                audit::record_refusal(ctx, Event::OpenStream, downstream, || None, NOT_TAKEN);
                return Revoked { error: Error::because(Kind::Denied, NOT_TAKEN), policy: String::new() };
            }
        }
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Carries the connection to where it was going anyway, as it came.
pub async fn passthrough<IO: DownstreamIo>(io: IO, downstream: &Downstream, ctx: &Context) {
    let began = Instant::now();
    let to = To { cluster: CLUSTER_PASSTHROUGH, ..To::default() };
    let address = downstream.original_destination;
    match tokio::time::timeout(PASSTHROUGH_CONNECT_TIMEOUT, connect(address)).await {
        Ok(Ok(stream)) => {
            let endpoint = Endpoint::at(address);
            let upstream = TcpUpstream {
                io: UpstreamStream::Plain(stream),
                endpoint: Arc::new(endpoint),
                security: Security::None,
                _counted: None,
            };
            let always = std::future::pending();
            let (idle, paces) = (Some(PASSTHROUGH_IDLE), Paces::default());
            carry(io, downstream, to, upstream, idle, paces, began, always, ctx).await;
        }
        Ok(Err(error)) => {
            let error = Error::because(Kind::UpstreamConnect, format_args!("{address}: {error}"));
            refuse(io, downstream, to, began, &error, ctx);
        }
        Err(_) => {
            let error = Error::because(Kind::UpstreamConnect, format_args!("{address}: no answer in time"));
            refuse(io, downstream, to, began, &error, ctx);
        }
    }
}

/// Resets the connection and records why.
pub fn refuse<IO: DownstreamIo>(
    io: IO,
    downstream: &Downstream,
    to: To<'_>,
    began: Instant,
    error: &Error,
    ctx: &Context,
) {
    io.reset_on_close();
    drop(io);
    record_failure(downstream, to, began, error, ctx);
}

/// Records a connection that ended before it reached an upstream.
pub fn record_failure(downstream: &Downstream, to: To<'_>, began: Instant, error: &Error, ctx: &Context) {
    let security = match downstream.direction {
        Direction::Inbound => downstream.security(),
        Direction::Outbound => Security::None,
    };
    let detail = error.to_string();
    let denied = Verdict { refused: Some(refusal("")), ..Verdict::default() };
    let record = TcpRecord {
        downstream,
        called: to.called,
        cluster: to.cluster,
        endpoint: None,
        security,
        flags: error.kind.flag(),
        duration: began.elapsed(),
        received_bytes: 0,
        sent_bytes: 0,
        detail: Some(&detail),
        // Something else than a policy may have refused it.
        verdict: to.verdict.or((error.kind == Kind::Denied).then_some(denied)),
    };
    ctx.telemetry.tcp_closed(&record);
    log(downstream, error, ctx);
}

/// Carries bytes until both sides have ended, one breaks or the connection is revoked, and records it.
#[allow(clippy::too_many_arguments)]
async fn carry<IO: DownstreamIo>(
    mut io: IO,
    downstream: &Downstream,
    to: To<'_>,
    mut upstream: TcpUpstream,
    idle: Option<Duration>,
    paces: Paces,
    began: Instant,
    revoked: impl Future<Output = Revoked>,
    ctx: &Context,
) {
    let security = match downstream.direction {
        Direction::Inbound => downstream.security(),
        Direction::Outbound => upstream.security,
    };
    let mut record = TcpRecord {
        downstream,
        called: to.called,
        cluster: to.cluster,
        endpoint: Some(&upstream.endpoint),
        security,
        flags: "",
        duration: began.elapsed(),
        received_bytes: 0,
        sent_bytes: 0,
        detail: None,
        verdict: to.verdict,
    };
    let learns = downstream.direction == Direction::Outbound && to.cluster != CLUSTER_PASSTHROUGH;
    let mut counted = Counted {
        metrics: ctx.telemetry.tcp_opened(&record),
        received: 0,
        sent: 0,
        learned: learns.then_some((&ctx.learned, downstream.original_destination)),
    };
    let fault = paces.fault.then_some(Kind::Fault);
    let carried = async {
        let result = copy::copy(&mut io, &mut upstream.io, idle, paces, &mut counted).await;
        result.err().map(|broken| match broken {
            Broken::Downstream(error) => Error::because(Kind::Downstream, error),
            Broken::Upstream(error) => Error::because(Kind::UpstreamReset, error),
            Broken::Idle => Error::new(Kind::StreamIdle),
        })
    };
    let (error, revoked_by) = tokio::select! {
        error = carried => (error, None),
        revoked = revoked => (Some(revoked.error), Some(revoked.policy)),
    };
    if error.is_some() {
        io.reset_on_close();
        listen::reset_on_close(upstream.io.tcp());
    }
    drop(io);
    record.duration = began.elapsed();
    (record.received_bytes, record.sent_bytes) = (counted.received, counted.sent);
    let detail = error.as_ref().map(Error::to_string);
    record.detail = detail.as_deref();
    if let Some(policy) = &revoked_by {
        let before = record.verdict.unwrap_or_default();
        record.verdict = Some(Verdict { refused: Some(refusal(policy)), allowed_by: None, ..before });
    }
    record.flags = error.as_ref().map(|it| it.kind).or(fault).map_or("", Kind::flag);
    ctx.telemetry.tcp_closed(&record);
    if let Some(error) = &error {
        log(downstream, error, ctx);
    }
}

struct Counted<'a> {
    metrics: StreamMetrics,
    received: u64,
    sent: u64,
    /// Is told who speaks first.
    learned: Option<(&'a Learned, SocketAddr)>,
}

impl Counted<'_> {
    fn begun(&mut self, server_first: bool) {
        if let Some((learned, destination)) = self.learned.take() {
            learned.saw(destination, server_first);
        }
    }
}

impl Count for Counted<'_> {
    fn received(&mut self, bytes: u64) {
        self.begun(false);
        self.received += bytes;
        self.metrics.received(bytes);
    }

    fn sent(&mut self, bytes: u64) {
        self.begun(true);
        self.sent += bytes;
        self.metrics.sent(bytes);
    }
}

fn log(downstream: &Downstream, error: &Error, ctx: &Context) {
    let (peer, destination) = (downstream.peer, downstream.original_destination);
    let (direction, flags) = (downstream.direction.as_str(), error.kind.flag());
    if error.kind.side() == Side::Downstream || error.kind == Kind::Fault || !ctx.telemetry.may_log() {
        tracing::debug!(%peer, %destination, direction, flags, "connection failed: {error}");
    } else {
        tracing::info!(%peer, %destination, direction, flags, "connection failed: {error}");
    }
}

async fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    listen::mark(&socket);
    socket.set_nodelay(true)?;
    socket.connect(address).await
}

/// Byte streams can be delayed, reset and throttled; an abort, which needs HTTP, is a reset too.
async fn inject(fault: &Fault, ctx: &Context) -> Result<Vec<Throttle>, Error> {
    let mut throttles = Vec::new();
    for rule in &fault.rules {
        let now = jiff::Timestamp::now().as_millisecond();
        if !hits(rule, now) {
            continue;
        }
        match rule.kind {
            FaultKind::Delay(delay) => {
                ctx.telemetry.fault(Injected::Delay);
                tokio::time::sleep(delay).await;
            }
            FaultKind::Abort { .. } | FaultKind::Reset => {
                ctx.telemetry.fault(Injected::Reset);
                return Err(Error::because(Kind::Fault, &rule.name));
            }
            FaultKind::Throttle(rate) => {
                ctx.telemetry.fault(Injected::Throttle);
                throttles.push(Throttle::new(rate, rule.expires_unix_ms, now));
            }
        }
    }
    Ok(throttles)
}

fn hits(rule: &FaultRule, now_unix_ms: i64) -> bool {
    let over = rule.expires_unix_ms != 0 && rule.expires_unix_ms <= now_unix_ms;
    // A rule about headers is for HTTP.
    !over && rule.headers.is_empty() && rule.share.hit(rule.parts_per_million)
}

#[cfg(test)]
mod tests;
