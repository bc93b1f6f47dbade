//! Local listeners that lead to one service of the mesh, for clients that are not intercepted: a browser on the host.

use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use mesh_common::names::LISTENER_INBOUND;
use tokio::net::{TcpListener, TcpStream};

use crate::config::{Authorization, HttpManager, NetworkFilter, RouteSource, Tracing};
use crate::http;
use crate::listen::{self, Bind, BindError, Connections, Context, Direction, Downstream, Phase};

/// Envoy's defaults.
const IDLE: Duration = Duration::from_secs(3600);
const STREAM_IDLE: Duration = Duration::from_secs(300);

/// `LISTEN=SERVICE_FQDN:PORT`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    pub bind: Bind,
    /// Name of the service port's route configuration, `FQDN:PORT`.
    pub routes: String,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ForwardError {
    #[error(
        "{0:?} is not a forward; write LISTEN=SERVICE_FQDN:PORT, for instance 127.0.0.1:8080=web.default.svc.cluster.local:80"
    )]
    Form(String),
    #[error(transparent)]
    Bind(#[from] BindError),
}

impl FromStr for Forward {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Self, ForwardError> {
        let form = || ForwardError::Form(text.to_owned());
        let (bind, routes) = text.split_once('=').ok_or_else(form)?;
        let (service, port) = routes.rsplit_once(':').ok_or_else(form)?;
        let port = port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(form)?;
        if service.is_empty() {
            return Err(form());
        }
        Ok(Self { bind: bind.parse()?, routes: format!("{}:{port}", service.to_ascii_lowercase()) })
    }
}

/// Takes connections for the service until the proxy ends. They are the application's own as far as the mesh is
/// concerned: they show this proxy's identity.
pub async fn serve(routes: &str, listener: TcpListener, connections: Connections, ctx: Arc<Context>) {
    let manager = |tracing| {
        Arc::new(HttpManager {
            jwt: None,
            stat_prefix: routes.to_owned(),
            authorizers: Vec::new(),
            authorization: Authorization::default(),
            routes: RouteSource::Rds(routes.to_owned()),
            idle_timeout: IDLE,
            stream_idle_timeout: STREAM_IDLE,
            limit: None,
            limits: None,
            tracing,
        })
    };
    let handle = |stream, peer| connection(stream, peer, manager(tracing(&ctx)), ctx.clone());
    listen::accept(listener, &connections, ctx.reached(Phase::Ending), handle).await;
}

/// No listener of the control plane says it, so it is that of the workload's other requests.
fn tracing(ctx: &Context) -> Option<Arc<Tracing>> {
    let snapshot = ctx.store.load();
    let chains = snapshot.listener(LISTENER_INBOUND)?.chains.iter();
    let mut managers = chains.filter_map(|chain| match &chain.filter {
        NetworkFilter::Http(manager) => Some(manager),
        NetworkFilter::Tcp(_) => None,
    });
    managers.find_map(|manager| manager.tracing.clone())
}

async fn connection(stream: TcpStream, peer: SocketAddr, manager: Arc<HttpManager>, ctx: Arc<Context>) {
    let _active = ctx.telemetry.connection(Direction::Outbound);
    let original_destination = match stream.local_addr() {
        Ok(address) => listen::plain(address),
        Err(error) => {
            tracing::debug!(%peer, %error, "a connection was gone before it was looked at");
            return;
        }
    };
    let downstream = Downstream::new(peer, original_destination, Direction::Outbound);
    http::serve(stream, Arc::new(downstream), manager, ctx).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards_from_the_command_line() {
        let forward: Forward = "127.0.0.1:8080=Web.default.svc.cluster.local:80".parse().unwrap();
        assert_eq!(forward.bind, Bind::Address("127.0.0.1:8080".parse().unwrap()));
        assert_eq!(forward.routes, "web.default.svc.cluster.local:80");
        assert_eq!("fd:5=a:1".parse::<Forward>().unwrap().bind, Bind::Inherited(5));
        for text in
            ["", "127.0.0.1:8080", "127.0.0.1:8080=web", "127.0.0.1:8080=:80", "127.0.0.1:8080=web:0", "x=web:80"]
        {
            assert!(text.parse::<Forward>().is_err(), "{text}");
        }
    }
}
