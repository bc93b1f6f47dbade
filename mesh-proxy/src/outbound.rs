//! The application's own connections: from where each wanted to go, to the cluster that serves it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_common::names::{is_virtual, outbound_listener};
use tokio::net::{TcpListener, TcpStream};

use crate::config::{HttpManager, Listener, NetworkFilter, TcpProxy};
use crate::detect::{self, Detected, Hello};
use crate::error::{Error, Kind};
use crate::inbound::Chosen;
use crate::listen::{self, Connections, Context, Direction, Downstream, Phase};
use crate::snapshot::Found;
use crate::{http, tcp};

/// Where a connection goes from here.
enum Path {
    Http(Arc<HttpManager>, Option<Chosen>),
    Tcp(Arc<TcpProxy>),
    /// Not for the mesh.
    Passthrough,
}

/// Takes the connections that the redirect sends here, until the proxy ends.
pub async fn serve(listener: TcpListener, connections: Connections, ctx: Arc<Context>) {
    listen::accept(listener, &connections, ctx.reached(Phase::Ending), |stream, peer| {
        connection(stream, peer, ctx.clone())
    })
    .await;
}

async fn connection(stream: TcpStream, peer: SocketAddr, ctx: Arc<Context>) {
    let local = stream.local_addr().map(listen::plain);
    match (local, Downstream::redirected(&stream, peer, Direction::Outbound)) {
        (Ok(local), Ok(downstream)) => take(stream, local, downstream, ctx).await,
        (Err(error), _) | (_, Err(error)) => {
            tracing::debug!(%peer, %error, "a connection was gone before it was looked at");
        }
    }
}

/// `local` is where the connection arrived, which is not where it was going.
async fn take(stream: TcpStream, local: SocketAddr, mut downstream: Downstream, ctx: Arc<Context>) {
    let began = Instant::now();
    let _active = ctx.telemetry.connection(Direction::Outbound);
    match route(&stream, local, &mut downstream, &ctx).await {
        Ok(Path::Http(manager, chosen)) => {
            http::serve_application(stream, Arc::new(downstream), manager, chosen, ctx).await;
        }
        Ok(Path::Tcp(filter)) => tcp::proxy(stream, &downstream, &filter, None, &ctx).await,
        Ok(Path::Passthrough) => tcp::passthrough(stream, &downstream, &ctx).await,
        Err(error) => tcp::refuse(stream, &downstream, tcp::To::default(), began, &error, &ctx),
    }
}

async fn route(
    stream: &TcpStream,
    local: SocketAddr,
    downstream: &mut Downstream,
    ctx: &Context,
) -> Result<Path, Error> {
    let destination = downstream.original_destination;
    refuse_loop(local, destination, ctx)?;
    match find(destination, ctx).await {
        Found::Yes(listener) => pick(stream, &listener, downstream, ctx).await,
        Found::Absent if is_virtual(destination.ip()) => {
            Err(Error::because(Kind::NoRoute, format_args!("nothing in the mesh has the address {destination}")))
        }
        Found::Unknown if is_virtual(destination.ip()) => {
            Err(Error::because(Kind::Configuration, format_args!("no listener for {destination}")))
        }
        // Nobody says how it wants to be called, but in plaintext it is not.
        Found::Unknown if ctx.store.load().is_workload(destination.ip()) => {
            Err(Error::because(Kind::Configuration, format_args!("no listener for the workload at {destination}")))
        }
        Found::Absent | Found::Unknown => Ok(Path::Passthrough),
    }
}

async fn find(destination: SocketAddr, ctx: &Context) -> Found<Arc<Listener>> {
    let name = outbound_listener(destination.ip(), destination.port());
    if let Some(listener) = ctx.store.load().listener(&name) {
        return Found::Yes(listener.clone());
    }
    ctx.store.listener(&name).await
}

async fn pick(
    stream: &TcpStream,
    listener: &Arc<Listener>,
    downstream: &mut Downstream,
    ctx: &Context,
) -> Result<Path, Error> {
    let port = downstream.original_destination.port();
    let detected = if detect::is_needed(listener, port) {
        // Who says something at once is heard in any case.
        let learned = ctx.learned.speaks_first(downstream.original_destination);
        let silence = if learned { Duration::ZERO } else { ctx.settings.detect_timeout };
        detect::peek(stream, silence, ctx.settings.handshake_timeout)
            .await
            .map_err(|error| Error::because(Kind::Downstream, error))?
    } else {
        Detected::Raw
    };
    let chain = detect::chain(listener, port, &detected).ok_or_else(|| no_chain(&detected))?;
    downstream.alpn = detected.plaintext_protocol().map(<[u8]>::to_vec);
    Ok(match &chain.filter {
        NetworkFilter::Http(manager) => Path::Http(manager.clone(), Chosen::new(listener, port, &detected)),
        NetworkFilter::Tcp(filter) => Path::Tcp(filter.clone()),
    })
}

fn no_chain(detected: &Detected) -> Error {
    match detected {
        Detected::Tls(Hello { server_name: Some(name), .. }) => {
            Error::because(Kind::NoRoute, format_args!("no route for TLS with the server name {name}"))
        }
        Detected::Tls(_) => Error::because(Kind::NoRoute, "no route for TLS without a server name"),
        _ => Error::because(Kind::NoRoute, "no filter chain for what the client speaks"),
    }
}

/// A connection that was not redirected was made to the proxy itself; passing it on would come back here for ever.
fn refuse_loop(local: SocketAddr, destination: SocketAddr, ctx: &Context) -> Result<(), Error> {
    let own = [ctx.settings.outbound_port, ctx.settings.inbound_port].contains(&destination.port());
    if destination == local || (own && destination.ip().is_loopback()) {
        return Err(Error::because(Kind::Denied, format_args!("{destination} is the proxy itself")));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
