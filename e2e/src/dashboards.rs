//! The dashboards of `deploy/grafana`, as Grafana and the tests see them.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::Value;

pub struct Dashboard {
    pub name: String,
    pub json: Value,
    pub panels: Vec<Panel>,
}

pub struct Panel {
    pub id: u64,
    pub title: String,
    pub x: u64,
    pub y: u64,
    pub w: u64,
    pub h: u64,
    pub queries: Vec<String>,
}

pub fn all() -> anyhow::Result<Vec<Dashboard>> {
    let mut dashboards = Vec::new();
    for entry in std::fs::read_dir(deploy().join("grafana"))? {
        let path = entry?.path();
        let json: Value = serde_json::from_str(&std::fs::read_to_string(&path)?)
            .with_context(|| format!("{} is no JSON", path.display()))?;
        let panels = json["panels"].as_array().context("there are no panels")?;
        let panels: Option<Vec<Panel>> = panels.iter().map(panel).collect();
        let panels = panels.with_context(|| format!("{}: a panel lacks a field", path.display()))?;
        dashboards.push(Dashboard { name: path.display().to_string(), json, panels });
    }
    Ok(dashboards)
}

/// The folder of Prometheus' rules.
pub fn rules() -> PathBuf {
    deploy().join("prometheus")
}

impl Panel {
    /// The queries with everything chosen, over the last five minutes.
    pub fn queries_for_all(&self) -> impl Iterator<Item = String> + '_ {
        let all = |query: &String| {
            let names = ["$namespace", "$service", "$workload"];
            names.iter().fold(query.replace("$__rate_interval", "5m"), |query, name| query.replace(name, ".*"))
        };
        self.queries.iter().map(all)
    }
}

fn panel(json: &Value) -> Option<Panel> {
    let place = |name: &str| json["gridPos"][name].as_u64();
    let queries = json["targets"].as_array()?.iter().map(|target| Some(target["expr"].as_str()?.to_owned()));
    Some(Panel {
        id: json["id"].as_u64()?,
        title: json["title"].as_str()?.to_owned(),
        x: place("x")?,
        y: place("y")?,
        w: place("w")?,
        h: place("h")?,
        queries: queries.collect::<Option<_>>()?,
    })
}

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}
