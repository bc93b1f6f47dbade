//! `meshctl proxy`: what the proxies have, as the control plane knows it.

use clap::Subcommand;
use envoy_types::pb::envoy::service::status::v3::ClientStatusRequest;
use envoy_types::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use envoy_types::pb::envoy::r#type::matcher::v3::{NodeMatcher, StringMatcher, string_matcher};
use jiff::Timestamp;
use mesh_common::proto::control::{ListProxiesRequest, Proxy};

use crate::client::Control;
use crate::commands::Context;
use crate::dump::{self, Part, Types};
use crate::failure::Failure;
use crate::local::{self, AdminProxy};
use crate::output::Format;
use crate::views::proxies;

/// Inspect the proxies
///
/// Works for mesh-proxy, Envoy and gRPC clients alike. A proxy is named by its id, by its workload's name, or by a
/// beginning of it that no other of the namespace has.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl proxy status
  meshctl proxy status web
  meshctl proxy config routes web
  meshctl proxy config all web -o json")]
pub struct Args {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Status(Status),
    Config(Config),
    LogLevel(LogLevel),
}

/// Show which proxies are connected and what they have acknowledged
///
/// For each type of resource: `synced` (the proxy has acknowledged all that concerns it), `waiting` (not yet), `REJECTED`
/// (it refused the last change and stays with what it had), or - when it has not asked for any. With a name, everything
/// about one proxy, and its own words for what it rejected.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl proxy status
  meshctl proxy status -o wide
  meshctl proxy status reviews-v2")]
struct Status {
    /// Only this proxy, with all details
    #[arg(value_name = "PROXY")]
    proxy: Option<String>,
}

/// Show the configuration of a proxy
///
/// Tables show what matters at a glance; -o json and yaml show every field under Envoy's own names. Private keys are never
/// shown.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl proxy config routes web
  meshctl proxy config endpoints web --name reviews
  meshctl proxy config listeners reviews-v2 -o yaml")]
struct Config {
    /// Which part
    #[arg(value_name = "PART")]
    part: Part,
    /// The proxy
    #[arg(value_name = "PROXY")]
    proxy: String,
    /// Only resources whose name contains this
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
}

/// Change what a proxy logs
///
/// For proxies in Kubernetes, and for those that were started with `meshctl run` (or the demo) on this machine. The filter has the syntax of RUST_LOG: a
/// level (error, warn, info, debug, trace), or levels for parts of the program. It holds until the proxy ends.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl proxy log-level web debug
  meshctl proxy log-level reviews-v2 info,mesh_proxy::xds=trace")]
struct LogLevel {
    /// The proxy
    #[arg(value_name = "PROXY")]
    proxy: String,
    /// The new filter
    #[arg(value_name = "FILTER")]
    filter: String,
}

pub async fn run(context: &Context, args: Args) -> Result<(), Failure> {
    match args.command {
        Action::Status(args) => status(context, &args).await,
        Action::Config(args) => config(context, &args).await,
        Action::LogLevel(args) => log_level(context, &args).await,
    }
}

async fn status(context: &Context, args: &Status) -> Result<(), Failure> {
    let control = context.connect().await?;
    let listed = control.mesh().list_proxies(ListProxiesRequest {}).await?.into_inner();
    let (out, now) = (&context.out, Timestamp::now());
    if let Some(name) = &args.proxy {
        let view = proxies::view(find(&listed.proxies, name, context.namespace())?);
        if !out.for_people() {
            return out.data(&view);
        }
        let (lines, table) = proxies::details(&view, now);
        lines.iter().try_for_each(|line| out.line(line))?;
        out.line("")?;
        out.table(&table)?;
        let rejections = proxies::rejections(&view);
        return rejections.iter().try_for_each(|line| out.line(&format!("\n{line}")));
    }
    let namespace = context.namespace.as_deref();
    let shown = listed.proxies.iter().filter(|p| namespace.is_none_or(|n| n == p.namespace));
    let views: Vec<proxies::View> = shown.map(proxies::view).collect();
    match out.format {
        Format::Json | Format::Yaml => out.data(&views),
        Format::Name => views.iter().try_for_each(|view| out.line(&view.id)),
        _ if views.is_empty() => {
            out.note("No proxy is connected.");
            Ok(())
        }
        _ => out.table(&proxies::table(&views, now)),
    }
}

async fn config(context: &Context, args: &Config) -> Result<(), Failure> {
    let control = context.connect().await?;
    let listed = control.mesh().list_proxies(ListProxiesRequest {}).await?.into_inner();
    let id = &find(&listed.proxies, &args.proxy, context.namespace())?.id;
    let configs = fetch(&control, id).await?;
    let types =
        Types::load().map_err(|e| Failure::new(format!("The built-in protobuf descriptors are broken: {e}.")))?;
    let own = own_secrets(&control, id).await;
    let named = |part: Part| {
        let mut entries = dump::entries(&types, &configs, part);
        if matches!(part, Part::Secrets | Part::All) {
            entries.extend(own.clone());
        }
        entries.retain(|entry| args.name.as_ref().is_none_or(|text| entry.name.contains(text)));
        entries
    };
    let out = &context.out;
    match (out.format, args.part) {
        (Format::Json | Format::Yaml, part) => out.data(&named(part)),
        (Format::Name, part) => named(part).iter().try_for_each(|entry| out.line(&entry.name)),
        (_, Part::All) => {
            let parts =
                Part::EACH.into_iter().map(|part| (part, named(part))).filter(|(_, entries)| !entries.is_empty());
            for (index, (part, entries)) in parts.enumerate() {
                let gap = if index == 0 { "" } else { "\n" };
                out.line(&format!("{gap}{}", part.title()))?;
                out.table(&dump::table(part, &entries))?;
            }
            Ok(())
        }
        (_, part) => {
            let entries = named(part);
            if entries.is_empty() {
                out.note(&nothing(id, part));
                return Ok(());
            }
            out.table(&dump::table(part, &entries))?;
            let errors = entries.iter().filter_map(|e| Some((e, e.error.as_ref()?)));
            errors.into_iter().try_for_each(|(e, error)| out.line(&format!("\n{} was rejected: {error}", e.name)))
        }
    }
}

async fn log_level(context: &Context, args: &LogLevel) -> Result<(), Failure> {
    let control = context.connect().await?;
    let listed = control.mesh().list_proxies(ListProxiesRequest {}).await?.into_inner();
    let id = &find(&listed.proxies, &args.proxy, context.namespace())?.id;
    let proxy = AdminProxy::find(&control, id).ok_or_else(|| local::elsewhere(id, "/logging?filter=FILTER"))?;
    let said = proxy.set_log_filter(&args.filter).await?;
    if context.out.for_people() {
        return context.out.line(&format!("{id} logs by {said}"));
    }
    context.out.data(&serde_json::json!({"proxy": id, "filter": args.filter}))
}

/// A mesh-proxy makes its own key, so its secrets do not come with its configuration; it says itself what it has.
async fn own_secrets(control: &Control, id: &str) -> Vec<dump::Entry> {
    let Some(proxy) = AdminProxy::find(control, id) else { return Vec::new() };
    let secrets = proxy.state().await.map(|state| state.secrets).unwrap_or_default();
    secrets.into_iter().map(dump::own_secret).collect()
}

fn find<'a>(proxies: &'a [Proxy], name: &str, namespace: &str) -> Result<&'a Proxy, Failure> {
    proxies::find(proxies, name, namespace).map_err(|candidates| match candidates.as_slice() {
        [] => Failure::not_found(format!("No proxy {name} is connected."))
            .hint("`meshctl proxy status` shows those that are."),
        several => Failure::not_found(format!("{} proxies begin with {name}: {}.", several.len(), several.join(", ")))
            .hint("Write enough of the name to tell them apart."),
    })
}

fn nothing(id: &str, part: Part) -> String {
    match part {
        Part::Secrets => format!("{id} gets no secrets from the control plane: it makes its own keys."),
        part => {
            let what = part.title().to_lowercase();
            format!("{id} has no {what}: it subscribes to what its application uses, when it uses it.")
        }
    }
}

/// All resources of one client, by Envoy's client status discovery service.
pub(super) async fn fetch(control: &Control, id: &str) -> Result<Vec<GenericXdsConfig>, Failure> {
    let exact = StringMatcher {
        match_pattern: Some(string_matcher::MatchPattern::Exact(id.to_owned())),
        ..StringMatcher::default()
    };
    let matcher = NodeMatcher { node_id: Some(exact), ..NodeMatcher::default() };
    let request = ClientStatusRequest { node_matchers: vec![matcher], ..ClientStatusRequest::default() };
    let response = control.client_status().fetch_client_status(request).await?.into_inner();
    let of_it = response.config.into_iter().filter(|c| c.node.as_ref().is_none_or(|node| node.id == id));
    Ok(of_it.flat_map(|config| config.generic_xds_configs).collect())
}
