//! What a proxy was configured with, read from the control plane's client status: any xDS resource as JSON, and tables of
//! the five kinds that people look at. Pure.

mod clusters;
mod endpoints;
mod json;
mod listeners;
mod names;
mod routes;
mod secrets;
mod text;

use envoy_types::pb::envoy::service::status::v3::ConfigStatus;
use envoy_types::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use mesh_common::names as types;
use serde::Serialize;
use serde_json::Value;

use crate::output::{Cell, Table};
pub use json::Types;

/// Which part of a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Where connections are taken and what becomes of them
    #[value(alias = "listener")]
    Listeners,
    /// Where requests go
    #[value(alias = "route")]
    Routes,
    /// How upstreams are connected to
    #[value(alias = "cluster")]
    Clusters,
    /// Where upstreams are
    #[value(alias = "endpoint")]
    Endpoints,
    /// Certificates and trust bundles, without keys
    #[value(alias = "secret")]
    Secrets,
    /// DNS names that were asked for
    #[value(alias = "name")]
    Names,
    /// All of these
    All,
}

impl Part {
    pub const EACH: [Self; 6] =
        [Self::Listeners, Self::Routes, Self::Clusters, Self::Endpoints, Self::Secrets, Self::Names];

    pub fn title(self) -> &'static str {
        match self {
            Self::Listeners => "Listeners",
            Self::Routes => "Routes",
            Self::Clusters => "Clusters",
            Self::Endpoints => "Endpoints",
            Self::Secrets => "Secrets",
            Self::Names => "Names",
            Self::All => "All",
        }
    }

    fn type_url(self) -> Option<&'static str> {
        match self {
            Self::Listeners => Some(types::TYPE_LISTENER),
            Self::Routes => Some(types::TYPE_ROUTE),
            Self::Clusters => Some(types::TYPE_CLUSTER),
            Self::Endpoints => Some(types::TYPE_ENDPOINTS),
            Self::Secrets => Some(types::TYPE_SECRET),
            Self::Names => Some(types::TYPE_NAME),
            Self::All => None,
        }
    }
}

/// One resource as the proxy has it, or was sent it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    pub name: String,
    /// `type.googleapis.com/envoy.config.cluster.v3.Cluster`
    #[serde(rename = "type")]
    pub type_url: String,
    pub version: String,
    /// `SYNCED`, `NOT_SENT`, `STALE` (sent, not yet acknowledged), `ERROR` (rejected), `UNKNOWN`, or `OWN`
    /// for what the proxy made itself.
    pub status: String,
    /// Why the proxy rejected it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// With Envoy's own field names.
    pub resource: Value,
}

/// The resources of a part, by name.
pub fn entries(types: &Types, configs: &[GenericXdsConfig], part: Part) -> Vec<Entry> {
    let meant = configs.iter().filter(|c| part.type_url().is_none_or(|url| url == c.type_url));
    let mut entries: Vec<Entry> = meant.map(|config| entry(types, config)).collect();
    entries.sort_by(|a, b| (&a.type_url, &a.name).cmp(&(&b.type_url, &b.name)));
    entries
}

fn entry(types: &Types, config: &GenericXdsConfig) -> Entry {
    let status = ConfigStatus::try_from(config.config_status).unwrap_or(ConfigStatus::Unknown);
    Entry {
        name: config.name.clone(),
        type_url: config.type_url.clone(),
        version: config.version_info.clone(),
        status: status.as_str_name().to_owned(),
        error: config.error_state.as_ref().map(|e| e.details.clone()).filter(|d| !d.is_empty()),
        resource: config.xds_config.as_ref().map(|any| types.any(&any.type_url, &any.value)).unwrap_or(Value::Null),
    }
}

/// A secret of a proxy that made its own key; it did not come over xDS.
pub fn own_secret(resource: Value) -> Entry {
    Entry {
        name: text::text(&resource["name"]).to_owned(),
        type_url: types::TYPE_SECRET.to_owned(),
        version: String::new(),
        status: "OWN".to_owned(),
        error: None,
        resource,
    }
}

/// The table of a part; `all` has none of its own.
pub fn table(part: Part, entries: &[Entry]) -> Table {
    match part {
        Part::Listeners => listeners::table(entries),
        Part::Routes => routes::table(entries),
        Part::Clusters => clusters::table(entries),
        Part::Endpoints => endpoints::table(entries),
        Part::Secrets => secrets::table(entries),
        Part::Names => names::table(entries),
        Part::All => Table::new(&["NAME"]),
    }
}

fn state(entry: &Entry) -> Cell {
    match entry.status.as_str() {
        "SYNCED" => Cell::good("synced"),
        "ERROR" => Cell::bad("REJECTED"),
        "STALE" => Cell::warn("waiting"),
        "NOT_SENT" => Cell::dim("not sent"),
        other => Cell::dim(other.to_lowercase()),
    }
}

#[cfg(test)]
mod tests;
