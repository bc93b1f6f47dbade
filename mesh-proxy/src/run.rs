//! Puts the parts together, in the order in which one needs the other, and takes them apart again.

use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use mesh_common::names::{ADMIN_SOCKET, LISTENER_INBOUND, SOCKET_MARK};
use mesh_common::proto::telemetry::Reporter;
use mesh_common::telemetry::LogFilter;
use mesh_proxy::admin::{Admin, Drain, DrainCallers, Readiness};
use mesh_proxy::bootstrap::{Bootstrap, nameservers};
use mesh_proxy::control::{dial, explain};
use mesh_proxy::dns::{Dns, DnsSockets, Inherited, Resolvers};
use mesh_proxy::identity::Authority;
use mesh_proxy::intercept::{Rules, can_mark, own_self_test, self_test};
use mesh_proxy::limit::RateLimits;
use mesh_proxy::listen::{
    Connections, Context, InFlight, Phase, everywhere, inherited_udp, inherited_unix_datagrams, tcp_listener,
};
use mesh_proxy::overload::{self, Overload};
use mesh_proxy::probe::Prober;
use mesh_proxy::registry::depart::{Departing, Departure, Patience};
use mesh_proxy::registry::{self, Standing, Workload, health};
use mesh_proxy::reports::Reports;
use mesh_proxy::snapshot::{Found, Store};
use mesh_proxy::telemetry::{LocalWorkload, Telemetry, TelemetryOptions};
use mesh_proxy::tls::Tls;
use mesh_proxy::udp::{self, Guard, UdpSockets};
use mesh_proxy::upstream::Upstreams;
use mesh_proxy::xds::{self, NodeInfo};
use mesh_proxy::{forward, inbound, outbound};
use tokio::net::UnixListener;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tonic::transport::Channel;

const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs until it is told to end; `data` is the runtime for traffic.
pub async fn run(bootstrap: Bootstrap, log: LogFilter, data: Handle) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut stop = Stop::new()?;
    let proxy = tokio::select! {
        started = Proxy::start(bootstrap, log, &data) => started?,
        () = stop.told() => {
            tracing::info!("told to end before it was ready");
            return Ok(());
        }
    };
    tracing::info!(after_ms = began.elapsed().as_millis(), "ready");
    stop.told().await;
    tracing::info!("told to end: leaving the mesh, then finishing what is open");
    tokio::select! {
        () = proxy.end() => tracing::info!("ended"),
        () = stop.told() => tracing::warn!("told again to end: closing what is open"),
    }
    Ok(())
}

/// SIGTERM, and Ctrl-C in a terminal.
pub struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    pub fn new() -> anyhow::Result<Self> {
        let on = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self { terminate: on(SignalKind::terminate())?, interrupt: on(SignalKind::interrupt())? })
    }

    pub async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

struct Proxy {
    telemetry: Telemetry,
    reports: Reports,
    inbound: Connections,
    outbound: Connections,
    drain_timeout: Duration,
    phase: watch::Sender<Phase>,
    departure: Departure,
}

impl Proxy {
    async fn start(bootstrap: Bootstrap, log: LogFilter, data: &Handle) -> anyhow::Result<Self> {
        let tls = Tls::default();
        let authority = Authority {
            address: bootstrap.control.clone(),
            token_file: bootstrap.token_file.clone(),
            trust_bundle: bootstrap.trust_bundle.clone(),
            state_dir: bootstrap.state_dir.clone(),
            ttl: bootstrap.certificate_ttl,
        };
        authority.first(&tls).await.context("cannot get a certificate")?;
        let identity = tls.identity().context("the certificate has no identity")?;
        let telemetry = Telemetry::new(TelemetryOptions {
            local: LocalWorkload {
                workload: bootstrap.workload.clone(),
                namespace: identity.namespace.clone(),
                service: bootstrap.service.clone(),
                version: bootstrap.version.clone(),
                identity: Some((*identity).clone()),
            },
            access_log: bootstrap.access_log,
            access_log_file: bootstrap.access_log_file.clone(),
            audit_log: bootstrap.audit_log.clone(),
            ..TelemetryOptions::default()
        })
        .context("cannot open the access log or the audit log")?;
        telemetry.install();
        data.spawn(telemetry.clone().upkeep());
        tokio::spawn({
            let tls = tls.clone();
            async move { authority.renew(&tls).await }
        });

        let reporter = Reporter {
            workload: bootstrap.workload.clone(),
            service: bootstrap.service.clone(),
            version: bootstrap.version.clone(),
            ..Reporter::default()
        };
        let reports = Reports::start(telemetry.clone(), tls.clone(), reporter, dialer(&bootstrap, &tls));

        let store = Store::new(Instant::now());
        follow_control_plane(&bootstrap, &identity.namespace, &tls, &store, &telemetry);
        let overload = Arc::new(Overload::default());
        overload::watch(&overload, bootstrap.settings.overload, &telemetry, data);
        let (phase, phases) = watch::channel(Phase::Serving);
        let ctx = Arc::new(Context {
            upstreams: Upstreams::new(store.clone(), tls.clone()),
            store: store.clone(),
            tls: tls.clone(),
            telemetry: telemetry.clone(),
            settings: bootstrap.settings.clone(),
            phase: phases,
            in_flight: InFlight::default(),
            rate_limits: RateLimits::default(),
            occupancy: Default::default(),
            overload: overload.clone(),
            learned: Default::default(),
        });
        let inbound = Connections::new(bootstrap.settings.max_connections);
        let outbound = inbound.beside();
        let (departure, asks) = Departure::new();
        let readiness = Readiness::waiting_for("the configuration");
        // From here on the data runtime's sockets are opened.
        let (standing, stands) = watch::channel(Standing::default());
        let drain = Drain { departure: departure.clone(), callers: drain_callers(&bootstrap) };
        let prober = Prober::new(bootstrap.probes.clone(), bootstrap.pod_ip);
        let admin = Admin::new(ctx.clone(), readiness.clone(), Some(log), Some(drain)).probing(prober);
        let registers = !bootstrap.addresses.is_empty();
        serve_admin(&bootstrap, if registers { admin.registering(stands) } else { admin }, data)?;
        wait_for_configuration(&store).await;
        readiness.wait_for("the redirect");
        test_redirect(&bootstrap).await?;
        guard_datagrams(&bootstrap, &ctx).await;
        serve_traffic(&bootstrap, &ctx, &inbound, &outbound, data)?;
        readiness.ready();

        let leaving = register(&bootstrap, &identity.namespace, &tls, standing);
        let departing = Departing {
            workload: bootstrap.workload.clone(),
            dial: dialer(&bootstrap, &tls),
            phase: phase.clone(),
            known: leaving.is_some() || bootstrap.drain_endpoint,
            leaving,
            in_flight: ctx.in_flight.clone(),
            patience: Patience::new(bootstrap.settings.drain_timeout, bootstrap.grace),
        };
        tokio::spawn(departing.run(asks));
        let drain_timeout = bootstrap.settings.drain_timeout;
        Ok(Self { telemetry, reports, inbound, outbound, drain_timeout, phase, departure })
    }

    /// First nobody comes any more, then who is here may finish, and last the application, which may need its own
    /// connections for that.
    async fn end(self) {
        self.departure.end().await;
        Phase::advance(&self.phase, Phase::Closing);
        let finish = async {
            self.inbound.all_ended().await;
            Phase::advance(&self.phase, Phase::Ending);
            self.outbound.all_ended().await;
        };
        if tokio::time::timeout(self.drain_timeout, finish).await.is_err() {
            let (inbound, outbound) = (self.inbound.open(), self.outbound.open());
            tracing::warn!(inbound, outbound, "closing connections that did not end in time");
        }
        self.reports.end().await;
        let telemetry = self.telemetry;
        telemetry.end_spans(FLUSH_TIMEOUT).await;
        let _ = tokio::task::spawn_blocking(move || telemetry.flush(FLUSH_TIMEOUT)).await;
    }
}

/// A way to call the control plane, with the certificate of the moment.
fn dialer(
    bootstrap: &Bootstrap,
    tls: &Tls,
) -> impl Fn() -> std::pin::Pin<Box<dyn Future<Output = Result<Channel, String>> + Send>> + Send + Sync + 'static {
    let (address, tls) = (bootstrap.control.clone(), tls.clone());
    move || {
        let (address, tls) = (address.clone(), tls.clone());
        Box::pin(async move {
            let config = tls.control().map_err(|error| error.to_string())?;
            dial(&address, config).await.map_err(|error| explain(&error))
        })
    }
}

fn follow_control_plane(bootstrap: &Bootstrap, namespace: &str, tls: &Tls, store: &Store, telemetry: &Telemetry) {
    let node = xds::node(&NodeInfo {
        workload: bootstrap.workload.clone(),
        namespace: namespace.to_owned(),
        service: bootstrap.service.clone(),
        version: bootstrap.version.clone(),
        ports: bootstrap.ports.iter().map(|it| it.port).collect(),
    });
    let (dial, store, telemetry) = (dialer(bootstrap, tls), store.clone(), telemetry.clone());
    tokio::spawn(async move { xds::run(store, node, dial, move |connected| telemetry.xds_connected(connected)).await });
}

/// Until the control plane has said what to do with connections to the application.
async fn wait_for_configuration(store: &Store) {
    loop {
        match store.listener(LISTENER_INBOUND).await {
            Found::Yes(_) => return,
            Found::Absent => {
                tracing::warn!("the control plane has no inbound listener for this workload: its ports stay closed");
                return;
            }
            Found::Unknown => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

/// While nobody listens on the ports yet, because the test does so itself.
async fn test_redirect(bootstrap: &Bootstrap) -> anyhow::Result<()> {
    if !bootstrap.intercepted {
        return Ok(());
    }
    let rules = Rules {
        outbound_port: bootstrap.settings.outbound_port,
        inbound_port: bootstrap.settings.inbound_port,
        dns_port: bootstrap.dns_port,
        mark: SOCKET_MARK,
        ..Rules::default()
    };
    let test = if can_mark(rules.mark) { self_test } else { own_self_test };
    let report = tokio::task::spawn_blocking(move || test(&rules)).await.context("the redirect test failed")??;
    tracing::info!(?report, "connections are redirected to this proxy");
    Ok(())
}

/// Who may not write rules, as in a pod, leaves datagrams to the application alone.
async fn guard_datagrams(bootstrap: &Bootstrap, ctx: &Arc<Context>) {
    if !bootstrap.intercepted || !can_mark(SOCKET_MARK) {
        return;
    }
    match Guard::begin(ctx.clone()).await {
        Ok(guard) => drop(tokio::spawn(guard.follow())),
        Err(error) => tracing::warn!(%error, "datagrams to the application are not judged by policies"),
    }
}

fn drain_callers(bootstrap: &Bootstrap) -> DrainCallers {
    match (bootstrap.drain_endpoint, bootstrap.addresses.is_empty()) {
        (false, _) => DrainCallers::Nobody,
        (true, false) => DrainCallers::Local,
        (true, true) => DrainCallers::Everybody,
    }
}

fn serve_admin(bootstrap: &Bootstrap, admin: Admin, data: &Handle) -> anyhow::Result<()> {
    let _runtime = data.enter();
    let admin = Arc::new(admin);
    let ready = tcp_listener(bootstrap.ready).with_context(|| format!("cannot listen at {}", bootstrap.ready))?;
    let metrics = tcp_listener(bootstrap.metrics).with_context(|| format!("cannot listen at {}", bootstrap.metrics))?;
    if let Some(local) = bootstrap.state_dir.as_deref().and_then(admin_socket) {
        data.spawn(admin.clone().serve_local(local));
    }
    data.spawn(admin.clone().serve_ready(ready));
    data.spawn(admin.serve_metrics(metrics));
    Ok(())
}

/// For its owner only. Nobody needs it to serve traffic, so nothing fails when it cannot be.
fn admin_socket(folder: &Path) -> Option<UnixListener> {
    let path = folder.join(ADMIN_SOCKET);
    let _ = fs::remove_file(&path);
    let open = || {
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        io::Result::Ok(listener)
    };
    open().inspect_err(|error| tracing::warn!(path = %path.display(), %error, "there is no admin socket")).ok()
}

fn serve_traffic(
    bootstrap: &Bootstrap,
    ctx: &Arc<Context>,
    inbound: &Connections,
    outbound: &Connections,
    data: &Handle,
) -> anyhow::Result<()> {
    let _runtime = data.enter();
    let listen = |port| tcp_listener(everywhere(port)).with_context(|| format!("cannot listen on port {port}"));
    let (to_outbound, to_inbound) =
        (listen(bootstrap.settings.outbound_port)?, listen(bootstrap.settings.inbound_port)?);
    data.spawn(outbound::serve(to_outbound, outbound.clone(), ctx.clone()));
    data.spawn(inbound::serve(to_inbound, inbound.clone(), ctx.clone()));
    if bootstrap.intercepted {
        match UdpSockets::bind(bootstrap.settings.outbound_port) {
            Ok(sockets) => drop(data.spawn(udp::serve(sockets, ctx.clone()))),
            // As in a pod: there, the rules hand no datagrams over either.
            Err(error) => {
                tracing::info!(%error, "datagrams to services are left alone: the proxy may not intercept them")
            }
        }
    }
    for forward in &bootstrap.forwards {
        let listener =
            tcp_listener(forward.bind).with_context(|| format!("cannot listen at {} for a forward", forward.bind))?;
        let (routes, connections, ctx) = (forward.routes.clone(), outbound.clone(), ctx.clone());
        data.spawn(async move { forward::serve(&routes, listener, connections, ctx).await });
    }
    if let Some(port) = bootstrap.dns_port {
        let sockets = DnsSockets::bind(port).with_context(|| format!("cannot listen for DNS on port {port}"))?;
        let dns = Dns::new(ctx.store.clone(), resolvers(bootstrap)?, ctx.telemetry.clone());
        data.spawn(Arc::new(dns).serve(sockets));
    }
    Ok(())
}

/// Resolvers for all names that are not the mesh's.
fn resolvers(bootstrap: &Bootstrap) -> anyhow::Result<Resolvers> {
    let udp = bootstrap.dns_upstream_fd.map(inherited_udp).transpose().context("cannot use --dns-upstream-fd")?;
    let whole = bootstrap.dns_upstream_whole_fd.map(inherited_unix_datagrams).transpose();
    let whole = whole.context("cannot use --dns-upstream-whole-fd")?;
    let addresses = match &bootstrap.dns_upstreams {
        Some(addresses) => addresses.clone(),
        None => match std::fs::read_to_string("/etc/resolv.conf") {
            Ok(text) => nameservers(&text),
            Err(error) => {
                tracing::warn!(%error, "without /etc/resolv.conf only names of the mesh resolve; see --dns-upstream");
                Vec::new()
            }
        },
    };
    Ok(Resolvers::new(addresses, udp.map(|udp| Inherited { udp, whole })))
}

/// Tells of the workload, until the result turns true. Nothing to register where the application only calls others and nobody
/// knows where it is, or where a platform knows all that.
fn register(
    bootstrap: &Bootstrap,
    namespace: &str,
    tls: &Tls,
    standing: watch::Sender<Standing>,
) -> Option<watch::Sender<bool>> {
    if bootstrap.addresses.is_empty() {
        return None;
    }
    let workload = Workload {
        name: bootstrap.workload.clone(),
        namespace: namespace.to_owned(),
        service: bootstrap.service.clone(),
        version: bootstrap.version.clone(),
        addresses: bootstrap.addresses.clone(),
        ports: bootstrap.ports.clone(),
        labels: bootstrap.labels.clone(),
        locality: bootstrap.locality.clone(),
        weight: bootstrap.weight,
    };
    let (healthy, health) = watch::channel(false);
    let first_port = bootstrap.ports.iter().find(|it| it.protocol != "udp").map(|it| it.port);
    tokio::spawn(health::watch(bootstrap.health.clone(), bootstrap.addresses.clone(), first_port, healthy));
    let (leaving, leave) = watch::channel(false);
    tokio::spawn(registry::run(workload, dialer(bootstrap, tls), health, leave, standing));
    Some(leaving)
}
