//! In a cluster: objects from the API server, keys from a Secret, identities from service accounts' tokens.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use jiff::Timestamp;
use mesh_common::names::{CLUSTER_DOMAIN, port};
use mesh_common::proto::ca::certificate_authority_server::CertificateAuthorityServer;
use mesh_common::proto::workload::workload_registry_server::WorkloadRegistryServer;
use mesh_common::telemetry::LogFilter;
use mesh_common::tls::{CONTROL_ACCOUNT, CONTROL_NAMESPACE};
use mesh_control::api::MeshService;
use mesh_control::args::Args;
use mesh_control::auth::{Authenticator, Transport};
use mesh_control::ca::{Ca, CaService, ServerTls};
use mesh_control::jwks::{self, Fetcher};
use mesh_control::kubernetes::webhook::{self, WebhookConfig};
use mesh_control::kubernetes::{Reviewer, Source, lead, open_ca};
use mesh_control::model::{Addresses, Keys, Settings};
use mesh_control::registry::{RegistryService, Workloads};
use mesh_control::reports::{Reports, ReportsService};
use mesh_control::serve::{Door, DoorTls, Limits, Listener, bind_tcp, grpc};
use mesh_control::snapshot;
use mesh_control::status::{StatusServer, install_metrics};
use mesh_control::xds::Xds;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::{FAREWELL, Servers, TICK, say_ready, subject_names};

pub(crate) async fn run(args: Args, log: LogFilter) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stopped = async move {
        tokio::select! {
            _ = terminate.recv() => (),
            _ = interrupt.recv() => (),
        }
    };
    let (stop, stopping) = watch::channel(false);
    // Closed when the leader's part has ended; before it has begun, when `serve` is dropped.
    let (leading, mut led) = mpsc::channel(1);
    let result = tokio::select! {
        result = serve(args, log, stopping, leading) => result,
        () = stopped => {
            tracing::info!("stopping");
            Ok(())
        }
    };
    stop.send_replace(true);
    // Proxies see their streams end and go to another replica, and another one leads.
    let _ = tokio::join!(tokio::time::sleep(FAREWELL / 10), tokio::time::timeout(FAREWELL, led.recv()));
    result
}

async fn serve(
    args: Args,
    log: LogFilter,
    stopping: watch::Receiver<bool>,
    leading: mpsc::Sender<Infallible>,
) -> anyhow::Result<()> {
    let metrics = install_metrics().context("cannot collect metrics")?;
    let (ready, is_ready) = watch::channel(false);
    let mut addresses = Vec::new();
    if let Some(address) = args.metrics_address() {
        let listener = bind_tcp(address, "--listen-metrics").await?;
        addresses.push(format!("metrics={}", listener.local_addr()?));
        tokio::spawn(StatusServer { metrics, ready: is_ready }.serve(listener));
    }
    let xds_listener = bind_tcp(args.listen_xds, "--listen-xds").await?;
    addresses.push(format!("xds={}", xds_listener.local_addr()?));
    let operator_address = (IpAddr::V4(Ipv4Addr::LOCALHOST), args.operator_port.unwrap_or(port::OPERATOR)).into();
    let operator_listener = bind_tcp(operator_address, "--operator-port").await?;
    addresses.push(format!("operator={}", operator_listener.local_addr()?));
    let webhook_listener = match args.listen_webhook.0 {
        Some(address) => Some(bind_tcp(address, "--listen-webhook").await?),
        None => None,
    };
    if let Some(listener) = &webhook_listener {
        addresses.push(format!("webhook={}", listener.local_addr()?));
    }

    let client = client().await.context("cannot find out how to reach the API server")?;
    let now = Timestamp::now();
    let ca = Arc::new(until_it_answers(|| open_ca(&client, &args.trust_domain, now)).await?);
    let tls = Arc::new(ServerTls::new(ca.clone(), &service_names(&args), args.certificate_life(), now)?);
    let source = Source::start(&client).await;

    let settings = Settings { trust_domain: args.trust_domain.clone() };
    let fetcher = Arc::new(Fetcher::default());
    let objects = source.objects.borrow().clone();
    let keys = Arc::new(jwks::first(&objects, Keys::default(), &fetcher).await);
    let first = snapshot::first(&objects, &keys, &settings, &Addresses::default());
    let (publish, snapshots) = watch::channel(Arc::new(first));
    let (keys, fetched) = watch::channel(keys);
    tokio::spawn(snapshot::publish(source.objects.clone(), fetched, settings.clone(), publish, |_| ()));
    tokio::spawn(jwks::keep(source.objects.clone(), keys, fetcher, |_| ()));
    let auth = Authenticator::Reviewer(Reviewer::new(client.clone(), &args.trust_domain));
    let xds = Xds::new(snapshots.clone(), ca.clone(), auth.clone());
    tokio::spawn(xds.clone().observe());
    let registry = RegistryService::new(Workloads::Discovered, auth.clone(), snapshots.clone(), xds.clone());
    let reports = Reports::new(Instant::now());
    let for_proxies = grpc()
        .add_service(xds.ads())
        .add_service(CertificateAuthorityServer::new(CaService::new(ca.clone(), auth.clone())))
        .add_service(WorkloadRegistryServer::new(registry))
        .add_service(ReportsService::server(reports.clone(), auth.clone()));
    let operator = MeshService {
        objects: source.objects.clone(),
        store: None,
        ca: ca.clone(),
        tls: tls.clone(),
        xds: xds.clone(),
        snapshots: snapshots.clone(),
        reports,
        settings,
        log: Some(log),
        data_dir: args.data.clone().unwrap_or_default(),
        started: Instant::now(),
        listeners: addresses.clone(),
    };

    let mut servers = Servers { tasks: JoinSet::new(), stopping: stopping.clone() };
    let (limits, listener) = (Limits::default(), Listener::Tcp(xds_listener));
    let door_tls = DoorTls::new(&tls)?;
    servers.spawn(Door { name: "xds", listener, tls: Some(door_tls), transport: Transport::Tls, limits }, for_proxies);
    // Who may forward a port to this pod is the cluster's operator; nobody else reaches its loopback.
    let (limits, listener) = (Limits::default(), Listener::Tcp(operator_listener));
    let door = Door { name: "operator", listener, tls: None, transport: Transport::Unix, limits };
    servers.spawn(door, grpc().add_service(operator.server()).add_service(xds.csds()));
    if let Some(listener) = webhook_listener {
        let config = WebhookConfig { inject: args.inject.config() };
        tokio::spawn(webhook::serve(listener, tls.config()?, config));
    }
    tokio::spawn(keep(tls));
    tokio::spawn(async move {
        lead(client, ca, source, snapshots, stopping).await;
        drop(leading);
    });

    ready.send_replace(true);
    say_ready(&args, &addresses);
    match servers.tasks.join_next().await {
        Some(Ok(Err(error))) => Err(error).context("a server ended by itself"),
        Some(Err(error)) => Err(error).context("a server ended by itself"),
        _ => Ok(()),
    }
}

/// The library's own retries would keep a status or an Event waiting for minutes; whoever writes here tries again by itself.
async fn client() -> anyhow::Result<kube::Client> {
    let mut config = kube::Config::infer().await?;
    config.default_retry = false;
    Ok(kube::Client::try_from(config)?)
}

/// An API server that is away is waited for: whoever restarts this process would do no better.
async fn until_it_answers<F: Future<Output = anyhow::Result<Ca>>>(ask: impl Fn() -> F) -> anyhow::Result<Ca> {
    let mut wait = Duration::from_millis(250);
    loop {
        match ask().await {
            Err(error) if error.downcast_ref::<kube::Error>().is_some_and(|e| !matches!(e, kube::Error::Api(_))) => {
                tracing::warn!(error = format!("{error:#}"), "the API server does not answer");
                tokio::time::sleep(wait.mul_f64(1.0 + fastrand::f64() / 2.0)).await;
                wait = (wait * 2).min(Duration::from_secs(10));
            }
            result => return result,
        }
    }
}

/// Names under which the Service of mesh-control is called.
fn service_names(args: &Args) -> Vec<String> {
    let mut names = subject_names(args);
    for suffix in ["", ".svc", &format!(".svc.{CLUSTER_DOMAIN}")] {
        names.push(format!("{CONTROL_ACCOUNT}.{CONTROL_NAMESPACE}{suffix}"));
    }
    names
}

async fn keep(tls: Arc<ServerTls>) {
    loop {
        tokio::time::sleep(TICK).await;
        tls.keep(Timestamp::now()).await;
    }
}
