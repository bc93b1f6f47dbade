//! From the command line to a running control plane, and back to nothing.

mod kubernetes;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use jiff::Timestamp;
use mesh_common::jwt::Jwks;
use mesh_common::proto::ca::certificate_authority_server::CertificateAuthorityServer;
use mesh_common::proto::workload::workload_registry_server::WorkloadRegistryServer;
use mesh_common::telemetry::LogFilter;
use mesh_control::api::MeshService;
use mesh_control::args::{Args, Mode};
use mesh_control::auth::{Authenticator, Transport};
use mesh_control::ca::{Ca, CaService, ServerTls};
use mesh_control::housekeeping::House;
use mesh_control::jwks::{self, Fetcher};
use mesh_control::model::{Addresses, Fetched, Keys, Settings};
use mesh_control::registry::{Registry, RegistryService, Workloads};
use mesh_control::reports::{Reports, ReportsService};
use mesh_control::serve::{Door, DoorTls, Limits, Listener, bind_tcp, bind_unix, grpc, remove};
use mesh_control::snapshot;
use mesh_control::status::{StatusServer, install_metrics};
use mesh_control::store::Store;
use mesh_control::trail::{self, Trail};
use mesh_control::xds::Xds;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::transport::server::Router;

/// Name of the store's note.
const ADDRESSES: &str = "virtual-addresses";
const KEYS: &str = "issuers-keys";
/// How long open calls may take to end once we are told to.
const FAREWELL: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_secs(1);

pub(crate) async fn run(args: Args, log: LogFilter) -> anyhow::Result<()> {
    match args.mode {
        Mode::Standalone => standalone(args, log).await,
        Mode::Kubernetes => kubernetes::run(args, log).await,
    }
}

async fn standalone(args: Args, log: LogFilter) -> anyhow::Result<()> {
    let data = args.data.clone().context("--data is needed: the folder of the store and the certificate authority")?;
    // Asked for first, so that no moment is left in which they end the process without cleaning up.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let metrics = install_metrics().context("cannot collect metrics")?;

    let now = Timestamp::now();
    let store = open_store(&data).await?;
    let audit = data.join(trail::FILE);
    let opened = Trail::open(&audit).with_context(|| format!("cannot open the audit log {}", audit.display()));
    store.keep_trail(opened?);
    let ca = Arc::new(Ca::open(&data.join("ca"), &args.trust_domain, now)?);
    let tls = Arc::new(ServerTls::new(ca.clone(), &subject_names(&args), args.certificate_life(), now)?);
    let sockets = Sockets::bind(&args, &data).await?;

    let settings = Settings { trust_domain: args.trust_domain.clone() };
    let fetcher = Arc::new(Fetcher::default());
    let keys = Arc::new(jwks::first(&store.current(), kept_keys(&store), &fetcher).await);
    let first = snapshot::first(&store.current(), &keys, &settings, &given_addresses(&store)?);
    let keep = {
        let store = store.clone();
        move |addresses: &Addresses| keep_addresses(&store, addresses)
    };
    keep(first.model.addresses());
    let (publish, snapshots) = watch::channel(Arc::new(first));
    let (keys, fetched) = watch::channel(keys);
    tokio::spawn(snapshot::publish(store.watch(), fetched, settings.clone(), publish, keep));
    let keep = {
        let store = store.clone();
        move |keys: &Keys| keep_keys(&store, keys)
    };
    tokio::spawn(jwks::keep(store.watch(), keys, fetcher, keep));
    let auth = Authenticator::Tokens(store.tokens());
    let xds = Xds::new(snapshots.clone(), ca.clone(), auth.clone());
    tokio::spawn(xds.clone().observe());
    let registry = Registry::new(store.clone(), Instant::now());
    let reports = Reports::new(Instant::now());

    let for_proxies = || {
        grpc()
            .add_service(xds.ads())
            .add_service(CertificateAuthorityServer::new(CaService::new(ca.clone(), auth.clone())))
            .add_service(WorkloadRegistryServer::new(RegistryService::new(
                Workloads::Registered(registry.clone()),
                auth.clone(),
                snapshots.clone(),
                xds.clone(),
            )))
            .add_service(ReportsService::server(reports.clone(), auth.clone()))
    };
    let operator = MeshService {
        objects: store.watch(),
        store: Some(store.clone()),
        ca: ca.clone(),
        tls: tls.clone(),
        xds: xds.clone(),
        snapshots: snapshots.clone(),
        reports: reports.clone(),
        settings,
        log: Some(log),
        data_dir: std::path::absolute(&data)?,
        started: Instant::now(),
        listeners: sockets.addresses.clone(),
    };

    let (stop, stopping) = watch::channel(false);
    let mut servers = Servers { tasks: JoinSet::new(), stopping };
    let door_tls = DoorTls::new(&tls)?;
    let tls_door = |name, listener| Door {
        name,
        listener,
        tls: Some(door_tls.clone()),
        transport: Transport::Tls,
        limits: Limits::default(),
    };
    servers.spawn(tls_door("xds", Listener::Tcp(sockets.xds)), for_proxies());
    servers.spawn(tls_door("proxy", Listener::Unix(sockets.proxy)), for_proxies());
    if let Some(listener) = sockets.plaintext {
        let listener = Listener::Tcp(listener);
        let transport = Transport::Loopback;
        let door = Door { name: "plaintext", listener, tls: None, transport, limits: Limits::default() };
        servers.spawn(door, grpc().add_service(xds.ads()));
    }
    let listener = Listener::Unix(sockets.control);
    let door = Door { name: "control", listener, tls: None, transport: Transport::Unix, limits: Limits::default() };
    servers.spawn(door, grpc().add_service(operator.server()).add_service(xds.csds()));

    let (ready, is_ready) = watch::channel(true);
    if let Some(listener) = sockets.metrics {
        tokio::spawn(StatusServer { metrics, ready: is_ready }.serve(listener));
    }
    tokio::spawn(keep_house(House { store, registry: registry.clone(), tls }));
    say_ready(&args, &sockets.addresses);

    let failed = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        failed = servers.tasks.join_next() => failed,
    };
    tracing::info!("stopping");
    ready.send_replace(false);
    // Streams end with us; that is no reason to take the workloads out.
    registry.close();
    stop.send_replace(true);
    let all_ended = async { while servers.tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(FAREWELL, all_ended).await;
    for name in [CONTROL_SOCKET, PROXY_SOCKET] {
        remove(&data.join(name)).with_context(|| format!("cannot remove {name}"))?;
    }
    match failed {
        Some(Ok(Err(error))) => Err(error).context("a server ended by itself"),
        Some(Err(error)) => Err(error).context("a server ended by itself"),
        _ => Ok(()),
    }
}

const CONTROL_SOCKET: &str = "control.sock";
const PROXY_SOCKET: &str = "proxy.sock";

/// Everything that is listened on; taken before anything is served, so that a port in use is found at once.
struct Sockets {
    xds: TcpListener,
    plaintext: Option<TcpListener>,
    metrics: Option<TcpListener>,
    control: UnixListener,
    proxy: UnixListener,
    /// As people write them.
    addresses: Vec<String>,
}

impl Sockets {
    async fn bind(args: &Args, data: &Path) -> anyhow::Result<Self> {
        let xds = bind_tcp(args.listen_xds, "--listen-xds").await?;
        let plaintext = match args.listen_plaintext.0 {
            Some(address) => Some(bind_tcp(address, "--listen-plaintext").await?),
            None => None,
        };
        let metrics = match args.metrics_address() {
            Some(address) => Some(bind_tcp(address, "--listen-metrics").await?),
            None => None,
        };
        let [control_path, proxy_path] = [CONTROL_SOCKET, PROXY_SOCKET].map(|name| data.join(name));
        let control = bind_unix(&control_path, 0o600)?;
        // Whoever can reach it has to show a certificate or a token, as on the network.
        let proxy = bind_unix(&proxy_path, 0o666)?;

        let mut addresses = vec![format!("xds={}", xds.local_addr()?)];
        for (name, listener) in [("plaintext", &plaintext), ("metrics", &metrics)] {
            if let Some(listener) = listener {
                addresses.push(format!("{name}={}", listener.local_addr()?));
            }
        }
        addresses.push(format!("proxy=unix:{}", std::path::absolute(proxy_path)?.display()));
        addresses.push(format!("control=unix:{}", std::path::absolute(control_path)?.display()));
        Ok(Self { xds, plaintext, metrics, control, proxy, addresses })
    }
}

struct Servers {
    tasks: JoinSet<Result<(), tonic::transport::Error>>,
    stopping: watch::Receiver<bool>,
}

impl Servers {
    fn spawn(&mut self, door: Door, router: Router) {
        let mut stopping = self.stopping.clone();
        self.tasks.spawn(async move {
            let stop = async {
                // An error says that the sender is gone, which is a reason to stop as well.
                let _ = stopping.wait_for(|stop| *stop).await;
            };
            router.serve_with_incoming_shutdown(door.incoming(), stop).await
        });
    }
}

/// The virtual addresses that were given before: applications hold them from DNS, across restarts of the control plane.
fn given_addresses(store: &Store) -> anyhow::Result<Addresses> {
    let Some(note) = store.note(ADDRESSES) else { return Ok(Addresses::default()) };
    serde_json::from_slice(note).context("the virtual addresses in the store cannot be read")
}

fn keep_addresses(store: &Store, addresses: &Addresses) {
    let kept = serde_json::to_vec(addresses).map_err(anyhow::Error::from);
    if let Err(error) = kept.and_then(|note| Ok(store.write_note(ADDRESSES, note)?)) {
        tracing::error!(%error, "virtual addresses are not kept: some may move when the control plane is restarted");
    }
}

/// The keys that were fetched before: an issuer may be away when the control plane is restarted.
fn kept_keys(store: &Store) -> Keys {
    let note: BTreeMap<String, String> =
        store.note(KEYS).and_then(|note| serde_json::from_slice(note).ok()).unwrap_or_default();
    let good = note.into_iter().filter(|(_, jwks)| Jwks::parse(jwks).is_ok_and(|keys| !keys.is_empty()));
    Keys(good.map(|(uri, jwks)| (uri, Fetched { jwks: Some(jwks.into()), error: None })).collect())
}

fn keep_keys(store: &Store, keys: &Keys) {
    let fetched: BTreeMap<&str, &str> =
        keys.0.iter().filter_map(|(uri, fetched)| Some((uri.as_str(), fetched.jwks.as_deref()?))).collect();
    let kept = serde_json::to_vec(&fetched).map_err(anyhow::Error::from);
    if let Err(error) = kept.and_then(|note| Ok(store.write_note(KEYS, note)?)) {
        tracing::error!(%error, "the keys of issuers are not kept: they have to be fetched when the control plane is restarted");
    }
}

async fn open_store(data: &Path) -> anyhow::Result<Store> {
    let data = data.to_owned();
    let store = tokio::task::spawn_blocking(move || Store::open(&data)).await??;
    let objects = store.current();
    tracing::info!(objects = objects.objects.len(), revision = objects.revision, "opened the store");
    Ok(store)
}

fn subject_names(args: &Args) -> Vec<String> {
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    let address: IpAddr = args.listen_xds.ip();
    if !address.is_unspecified() {
        names.push(address.to_string());
    }
    names.extend(args.san.iter().cloned());
    names.sort();
    names.dedup();
    names
}

async fn keep_house(house: House) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        house.tick(Timestamp::now(), Instant::now()).await;
    }
}

/// One line on standard output, for programs that start this one and wait for it.
fn say_ready(args: &Args, addresses: &[String]) {
    tracing::info!(trust_domain = args.trust_domain, listeners = addresses.join(" "), "ready");
    let mut out = std::io::stdout().lock();
    // Nobody has to read it.
    let _ = writeln!(out, "READY {}", addresses.join(" ")).and_then(|()| out.flush());
}
