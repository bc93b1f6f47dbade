//! Connections to the application: from the port that a peer wanted, through mutual TLS, to the application itself.
//!
//! Everything that is not certain closes the connection: no listener, no chain, no certificate, no proof of identity.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use mesh_common::names::LISTENER_INBOUND;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::authorization::{self, Verdict, audit};
use crate::config::{DownstreamTls, FilterChain, Listener, NetworkFilter};
use crate::detect::{self, Detected};
use crate::error::{Error, Kind};
use crate::http::DownstreamIo;
use crate::listen::{self, Connections, Context, Direction, Downstream, Flight, Phase};
use crate::snapshot::Found;
use crate::telemetry::Event;
use crate::tls::peer_identity;
use crate::{http, limit, tcp};

mod chosen;

pub(crate) use chosen::{Chosen, NOT_TAKEN};

/// Takes the connections that the redirect sends here, until no peer comes any more.
pub async fn serve(listener: TcpListener, connections: Connections, ctx: Arc<Context>) {
    listen::accept(listener, &connections, ctx.reached(Phase::Closing), |stream, peer| {
        connection(stream, peer, ctx.clone())
    })
    .await;
}

async fn connection(stream: TcpStream, peer: SocketAddr, ctx: Arc<Context>) {
    let local = stream.local_addr().map(listen::plain);
    match (local, Downstream::redirected(&stream, peer, Direction::Inbound)) {
        (Ok(_), Ok(downstream)) if is_own(&downstream) => {
            let error = Error::because(Kind::Denied, "what goes to the application came back to the proxy");
            tcp::refuse(stream, &downstream, tcp::To::default(), Instant::now(), &error, &ctx);
        }
        (Ok(local), Ok(downstream)) => take(stream, local, downstream, ctx).await,
        (Err(error), _) | (_, Err(error)) => {
            tracing::debug!(%peer, %error, "a connection was gone before it was looked at");
        }
    }
}

/// Only the proxy goes from a loopback address to one that is none (over IPv4), and then to the application. Where the rules do
/// not let it through, the same connection would be made for ever.
fn is_own(downstream: &Downstream) -> bool {
    downstream.peer.ip().is_loopback() && !downstream.original_destination.ip().is_loopback()
}

/// `local` is where the connection arrived, which is not where it was going.
async fn take(stream: TcpStream, local: SocketAddr, mut downstream: Downstream, ctx: Arc<Context>) {
    let began = Instant::now();
    let arriving = ctx.in_flight.flight();
    let _active = ctx.telemetry.connection(Direction::Inbound);
    let chosen = match choose(&stream, local, &mut downstream, &ctx).await {
        Ok(chosen) => chosen,
        Err(Refused { error, policy }) => {
            // That nothing allows it is said of whatever is denied.
            let to = if policy.is_empty() { tcp::To::default() } else { tcp::To::refused_by(&policy) };
            return tcp::refuse(stream, &downstream, to, began, &error, &ctx);
        }
    };
    let limits = chosen.filter().limits().cloned();
    let mut place = match limits.as_deref().map_or(Ok(None), |limits| limit::connection(limits, &ctx)) {
        Ok(place) => place,
        Err(error) => return tcp::refuse(stream, &downstream, tcp::To::default(), began, &error, &ctx),
    };
    let mut identified = |downstream: &Downstream| match (limits.as_deref(), &mut place) {
        (Some(limits), Some(place)) => limit::identified(place, limits, downstream.identity.as_deref(), &ctx),
        _ => Ok(()),
    };
    let Some(tls) = &chosen.tls else {
        if let Err(error) = identified(&downstream) {
            return tcp::refuse(stream, &downstream, tcp::To::default(), began, &error, &ctx);
        }
        return dispatch(stream, downstream, chosen, arriving, ctx.clone()).await;
    };
    match handshake(stream, tls, &ctx).await {
        Ok(stream) => {
            describe_peer(&stream, &mut downstream);
            if tls.require_client_certificate && downstream.identity.is_none() {
                const WHY: &str = "the client's certificate has no identity of the mesh";
                audit::record_refusal(&ctx, Event::Stream, &downstream, || None, WHY);
                let error = Error::because(Kind::Denied, WHY);
                return tcp::refuse(stream, &downstream, tcp::To::default(), began, &error, &ctx);
            }
            if let Err(error) = identified(&downstream) {
                return tcp::refuse(stream, &downstream, tcp::To::default(), began, &error, &ctx);
            }
            dispatch(stream, downstream, chosen, arriving, ctx.clone()).await;
        }
        Err(error) => tcp::record_failure(&downstream, tcp::To::default(), began, &error, &ctx),
    }
}

/// Why there is no filter for a connection.
struct Refused {
    error: Error,
    /// The policy that denies it, if one does.
    policy: String,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self { error, policy: String::new() }
    }
}

/// The filter for this connection, and the TLS to end before it.
async fn choose(
    stream: &TcpStream,
    local: SocketAddr,
    downstream: &mut Downstream,
    ctx: &Context,
) -> Result<Chosen, Refused> {
    let destination = downstream.original_destination;
    let port = destination.port();
    // Without a redirect the peer connected to the proxy's own port, which belongs to no application.
    if destination == local || port == ctx.settings.inbound_port || port == ctx.settings.outbound_port {
        return Err(Error::because(Kind::Denied, format_args!("{destination} is the proxy itself")).into());
    }
    let listener = find(ctx).await?;
    refuse_at_once(&listener, downstream, ctx)?;
    let detected = if detect::is_needed(&listener, port) {
        detect::peek(stream, ctx.settings.detect_timeout, ctx.settings.handshake_timeout)
            .await
            .map_err(|error| Error::because(Kind::Downstream, error))?
    } else {
        Detected::Raw
    };
    downstream.alpn = detected.plaintext_protocol().map(<[u8]>::to_vec);
    Chosen::new(&listener, port, &detected).ok_or_else(|| no_chain(&detected, port).into())
}

/// Refuses, before a byte is read, whom no chain that the connection could take would let in.
fn refuse_at_once(listener: &Listener, downstream: &Downstream, ctx: &Context) -> Result<(), Refused> {
    let (peer, destination) = (downstream.peer, downstream.original_destination);
    let of_port = |chain: &&FilterChain| chain.matches.destination_port.is_none_or(|port| port == destination.port());
    let mut refusals = listener.chains.iter().filter(of_port).chain(&listener.default_chain).map(|chain| {
        let authorization = match &chain.filter {
            NetworkFilter::Http(manager) => &manager.authorization,
            NetworkFilter::Tcp(proxy) => &proxy.authorization,
        };
        authorization::addresses::refused_at_once(authorization, peer, destination)
    });
    // Without a chain it is refused as one that takes no such connection.
    let Some(Some(first)) = refusals.next() else { return Ok(()) };
    match refusals.all(|refusal| refusal.is_some()) {
        true => {
            let verdict = Verdict { refused: Some(first), ..Verdict::default() };
            audit::record(ctx, Event::Stream, downstream, || None, &verdict);
            Err(Refused { error: Error::because(Kind::Denied, first), policy: first.policy().to_owned() })
        }
        false => Ok(()),
    }
}

async fn find(ctx: &Context) -> Result<Arc<Listener>, Error> {
    if let Some(listener) = ctx.store.load().listener(LISTENER_INBOUND) {
        return Ok(listener.clone());
    }
    match ctx.store.listener(LISTENER_INBOUND).await {
        Found::Yes(listener) => Ok(listener),
        Found::Absent | Found::Unknown => Err(Error::because(Kind::Configuration, "no inbound listener")),
    }
}

fn no_chain(detected: &Detected, port: u16) -> Error {
    let why = match detected {
        Detected::Tls(_) => format!("port {port} takes no TLS but that of the mesh"),
        _ => format!("port {port} takes no plaintext"),
    };
    Error::because(Kind::NoRoute, why)
}

async fn handshake(stream: TcpStream, tls: &DownstreamTls, ctx: &Context) -> Result<TlsStream<TcpStream>, Error> {
    let config = ctx.tls.server(tls)?;
    let handshake = TlsAcceptor::from(config).accept(stream);
    match tokio::time::timeout(ctx.settings.handshake_timeout, handshake).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(Error::because(Kind::DownstreamProtocol, format_args!("TLS handshake: {error}"))),
        Err(_) => Err(Error::because(Kind::DownstreamProtocol, "the TLS handshake took too long")),
    }
}

fn describe_peer(stream: &TlsStream<TcpStream>, downstream: &mut Downstream) {
    let (_, connection) = stream.get_ref();
    downstream.tls = true;
    downstream.alpn = connection.alpn_protocol().map(<[u8]>::to_vec);
    downstream.identity = connection.peer_certificates().and_then(peer_identity).map(Arc::new);
}

async fn dispatch<IO: DownstreamIo>(
    io: IO,
    downstream: Downstream,
    chosen: Chosen,
    arriving: Flight,
    ctx: Arc<Context>,
) {
    match chosen.filter() {
        NetworkFilter::Http(manager) => {
            http::serve_peer(io, Arc::new(downstream), manager, chosen, arriving, ctx).await
        }
        NetworkFilter::Tcp(filter) => tcp::proxy(io, &downstream, &filter, Some(&chosen), &ctx).await,
    }
}

#[cfg(test)]
mod tests;
