//! `meshctl install`: the control plane into a cluster.

use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Namespace;
use mesh_common::identity::check_trust_domain;
use mesh_common::resource::json_to_yaml;

use crate::commands::{Context, check};
use crate::failure::{Exit, Failure, sentence};
use crate::install::manifest::{Manifest, Outcome};
use crate::install::values::{Setting, Values};
use crate::install::{ANNOTATION_VALUES, CONTROL, LABEL_VERSION, NAMESPACE, chart, gateway, prune, remove, rollout};
use crate::kubernetes::{Cluster, roots};
use crate::output::time::{human_duration, parse_positive_duration};

/// The oldest minor version of Kubernetes 1 whose API server takes our definitions.
const OLDEST: u32 = 31;
/// The setting that is fixed once the mesh is made.
const TRUST_DOMAIN: &str = "trustDomain";

/// Install the mesh in a Kubernetes cluster
///
/// Installs the kinds of Gateway API that are missing, our own kinds, and the control plane in the namespace mesh-system,
/// waits until it runs, and checks it. Doing it again changes nothing, and goes on where it was interrupted. Settings of an
/// earlier installation stay unless they are given anew.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl install
  meshctl install --context kind-shop --registry registry.example.com/mesh
  meshctl install --set control.replicas=3 --set trustDomain=example.com
  meshctl install --dry-run | less")]
pub struct Args {
    #[command(flatten)]
    settings: Settings,
    /// Print the manifests that would be applied, and change nothing. Without a cluster, those of a first installation
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    patience: Patience,
}

#[derive(Clone, Debug, clap::Args)]
pub struct Settings {
    /// A setting of the chart; may be given more than once
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<Setting>,
    /// Where images are pulled from: the same as --set image.registry
    #[arg(long, value_name = "REGISTRY")]
    registry: Option<String>,
    /// Version of the images: the same as --set image.tag
    #[arg(long, value_name = "VERSION")]
    tag: Option<String>,
}

#[derive(Clone, Debug, clap::Args)]
pub struct Patience {
    /// How long to wait for the control plane
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse_positive_duration)]
    wait_timeout: Duration,
}

pub async fn run(context: &Context, args: Args) -> Result<(), Failure> {
    if args.dry_run {
        return dry_run(context, &args.settings).await;
    }
    let began = Instant::now();
    let cluster = context.cluster().await?;
    greet(context, &cluster).await?;
    let values = chosen(&cluster, &args.settings).await?;
    let version = values.get("image.tag").unwrap_or_default();
    let changed = write(context, &cluster, &values, false, began + args.patience.wait_timeout).await?;
    let took = human_duration(began.elapsed());
    context.out.line(&match changed {
        0 => format!("Nothing had to be changed: version {version} of the mesh is installed."),
        _ => format!("Version {version} of the mesh is installed, after {took}."),
    })?;
    context.out.line("")?;
    check::cluster_only(context, &cluster).await
}

/// What is given now and what was given earlier, for the version that is here or for a first one.
async fn chosen(cluster: &Cluster, settings: &Settings) -> Result<Values, Failure> {
    let values = settings.values(&kept(cluster).await?)?;
    let version = values.get("image.tag").unwrap_or_default();
    match installed(cluster).await? {
        Some(installed) if installed != version => {
            Err(Failure::refused(format!("Version {installed} of the mesh is installed here, and this is {version}."))
                .hint("`meshctl upgrade` changes the version, and says before what else it changes."))
        }
        _ => {
            keeps_trust_domain(cluster, &values).await?;
            Ok(values)
        }
    }
}

/// Refuses values that name another trust domain than the mesh's roots are of: its certificate authority would not start.
pub async fn keeps_trust_domain(cluster: &Cluster, values: &Values) -> Result<(), Failure> {
    let made = roots::bundle(cluster, NAMESPACE).await?.and_then(|bundle| roots::trust_domain(&bundle));
    let wanted = values.get(TRUST_DOMAIN).unwrap_or_default();
    match made {
        Some(made) if made != wanted => {
            let message = format!("The mesh here is of the trust domain {made}, and {TRUST_DOMAIN} is {wanted}.");
            Err(Failure::refused(message).hint(format!(
                "`--set {TRUST_DOMAIN}={made}` keeps it. Another one is for another mesh: `meshctl uninstall` and \
                 `meshctl install` make it, and all pods of the mesh have to be started again."
            )))
        }
        _ => Ok(()),
    }
}

/// Prints what would be applied in the cluster; where there is none to ask, what a first installation applies.
async fn dry_run(context: &Context, settings: &Settings) -> Result<(), Failure> {
    let asked = async {
        let cluster = context.cluster().await?;
        let mut missing = Vec::new();
        for crd in gateway::crds()? {
            if gateway::plan(&crd, &cluster).await? == gateway::Plan::Install {
                missing.push(crd);
            }
        }
        Ok::<_, Failure>((chosen(&cluster, settings).await?, missing))
    };
    let (values, gateway_api) = match asked.await {
        Err(Failure { exit: Exit::Unreachable, message, .. }) => {
            context.out.note(&format!("No cluster was asked, so this is a first installation. {message}"));
            (settings.values(&[])?, gateway::crds()?)
        }
        known => known?,
    };
    print(context, &values, gateway_api)
}

/// Writes everything that is not as it should be, waits until it is in force, and gives how many objects were changed.
pub async fn write(
    context: &Context,
    cluster: &Cluster,
    values: &Values,
    renew_gateway_api: bool,
    deadline: Instant,
) -> Result<usize, Failure> {
    let mut steps = Steps { context, changed: 0 };
    let routes = gateway::crds()?;
    for crd in &routes {
        match gateway::plan(crd, cluster).await? {
            gateway::Plan::Install => steps.apply(cluster, crd).await?,
            gateway::Plan::Upgrade { .. } if renew_gateway_api => steps.apply(cluster, crd).await?,
            gateway::Plan::Upgrade { from } => {
                context.out.note(&format!("{crd} stays in version {from}; `meshctl upgrade` renews it"));
            }
            gateway::Plan::Leave { version } => {
                let version = if version.is_empty() { "an unknown version".to_owned() } else { version };
                context.out.line(&format!("{crd} is there ({version})"))?;
            }
        }
    }
    let own = chart::crds()?;
    for crd in &own {
        steps.apply(cluster, crd).await?;
    }
    rollout::established(cluster, &routes, deadline).await?;
    rollout::established(cluster, &own, deadline).await?;
    steps.apply(cluster, &chart::namespace(values)?).await?;
    for manifest in &chart::render(values)? {
        steps.apply(cluster, manifest).await?;
        // The control plane, which is written later, lets pods depend on what the nodes have.
        if manifest.kind() == "DaemonSet" {
            rollout::on_every_node(context, cluster, manifest, deadline).await?;
        }
    }
    rollout::available(cluster, deadline).await?;
    // No new pod depends any more on what is left of other settings or another version.
    for manifest in &prune::superfluous(cluster, values).await? {
        if manifest.kind() == "DaemonSet" {
            remove::withdraw(context, cluster, manifest, deadline).await?;
        }
        remove::delete(context, cluster, manifest).await?;
        steps.changed += 1;
    }
    Ok(steps.changed)
}

struct Steps<'a> {
    context: &'a Context,
    changed: usize,
}

impl Steps<'_> {
    async fn apply(&mut self, cluster: &Cluster, manifest: &Manifest) -> Result<(), Failure> {
        let outcome = manifest.apply(cluster).await?;
        if outcome != Outcome::Unchanged {
            self.changed += 1;
        }
        self.context.out.line(&format!("{manifest} {}", outcome.as_str()))
    }
}

impl Settings {
    /// The defaults, then what was given earlier, then what is given now.
    pub fn values(&self, kept: &[Setting]) -> Result<Values, Failure> {
        let mut values = chart::defaults()?;
        for setting in kept {
            // A setting of an older version that is not there any more has no effect any more.
            let _ = values.set(setting);
        }
        let short = [("image.registry", &self.registry), ("image.tag", &self.tag)];
        for (path, value) in short {
            if let Some(value) = value {
                let setting = format!("{path}={}", value.trim_end_matches('/'));
                values.set(&setting.parse().map_err(Failure::usage)?)?;
            }
        }
        self.set.iter().try_for_each(|setting| values.set(setting))?;
        let trust_domain = values.get(TRUST_DOMAIN).unwrap_or_default();
        check_trust_domain(&trust_domain).map_err(|error| Failure::usage(sentence(&error.to_string())))?;
        Ok(values)
    }
}

impl Patience {
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.wait_timeout
    }
}

/// Says which cluster it is, and refuses one that is too old.
pub async fn greet(context: &Context, cluster: &Cluster) -> Result<(), Failure> {
    let version = cluster.client.apiserver_version().await?;
    let minor: Option<u32> = version.minor.trim_end_matches('+').parse().ok();
    context
        .out
        .line(&format!("Kubernetes {} at {} (context {})", version.git_version, cluster.server, cluster.context))?;
    match minor {
        Some(minor) if version.major == "1" && minor < OLDEST => Err(Failure::refused(format!(
            "Kubernetes {} is too old for the mesh, which needs 1.{OLDEST} or newer.",
            version.git_version
        ))),
        _ => Ok(()),
    }
}

/// The version that meshctl has installed. What Helm has installed is Helm's to change.
pub async fn installed(cluster: &Cluster) -> Result<Option<String>, Failure> {
    let Some(deployment) = cluster.namespaced::<Deployment>(NAMESPACE).get_opt(CONTROL).await? else { return Ok(None) };
    let mut labels = deployment.metadata.labels.unwrap_or_default();
    if labels.get("app.kubernetes.io/managed-by").is_some_and(|manager| manager == "Helm") {
        let release = deployment.metadata.annotations.and_then(|mut all| all.remove("meta.helm.sh/release-name"));
        let release = release.unwrap_or_else(|| "RELEASE".to_owned());
        return Err(Failure::refused("The mesh was installed with Helm here, whose values are not known to meshctl.")
            .hint(format!("`helm upgrade {release} deploy/chart --namespace {NAMESPACE}` changes it.")));
    }
    Ok(labels.remove(LABEL_VERSION))
}

/// The settings that the mesh was installed with.
pub async fn kept(cluster: &Cluster) -> Result<Vec<Setting>, Failure> {
    let namespace = cluster.all::<Namespace>().get_opt(NAMESPACE).await?;
    let annotation = namespace.and_then(|n| n.metadata.annotations?.remove(ANNOTATION_VALUES));
    Ok(annotation.map(|text| chart::kept(&text)).unwrap_or_default())
}

fn print(context: &Context, values: &Values, gateway_api: Vec<Manifest>) -> Result<(), Failure> {
    let mut manifests = gateway_api;
    manifests.extend(chart::crds()?);
    manifests.push(chart::namespace(values)?);
    manifests.extend(chart::render(values)?);
    let texts: Vec<String> = manifests.iter().map(|manifest| json_to_yaml(&manifest.0)).collect();
    context.out.line(texts.join("---\n").trim_end())
}
