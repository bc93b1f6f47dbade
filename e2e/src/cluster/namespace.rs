//! A namespace of one check, and the traffic in it.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::{Cluster, apps};
use crate::app::load::Report;
use crate::process::eventually;

/// That all namespaces of the tests have.
pub(super) const LABEL: &str = "mesh-e2e";

pub struct Namespace<'a> {
    pub cluster: &'a Cluster,
    pub name: String,
}

impl<'a> Namespace<'a> {
    pub(super) fn new(cluster: &'a Cluster, name: &str, meshed: bool) -> anyhow::Result<Self> {
        let mut labels = json!({LABEL: "kubernetes"});
        if meshed {
            labels["mesh-injection"] = "enabled".into();
        }
        let manifest = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        // One that is there already is somebody's, and must not go away with the value.
        cluster.kubectl_with(&["create", "-f", "-"], &manifest.to_string())?;
        Ok(Self { cluster, name: name.to_owned() })
    }

    pub(super) fn adopt(cluster: &'a Cluster, name: &str) -> anyhow::Result<Self> {
        let namespace = Self { cluster, name: name.to_owned() };
        cluster.kubectl(&["label", "namespace", name, &format!("{LABEL}=kubernetes")])?;
        Ok(namespace)
    }

    pub fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        self.cluster.kubectl(&[&["-n", &self.name], args].concat())
    }

    /// The same with something on standard input.
    pub fn kubectl_with(&self, args: &[&str], input: &str) -> anyhow::Result<String> {
        self.cluster.kubectl_with(&[&["-n", &self.name], args].concat(), input)
    }

    pub fn apply(&self, objects: &[Value]) -> anyhow::Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        self.kubectl_with(&["apply", "-f", "-"], &list).map(drop)
    }

    pub fn get(&self, args: &[&str]) -> anyhow::Result<Value> {
        self.cluster.get(&[&["-n", &self.name], args].concat())
    }

    pub fn delete(&self, args: &[&str]) -> anyhow::Result<()> {
        self.kubectl(&[&["delete", "--timeout=60s"], args].concat()).map(drop)
    }

    /// Two versions of `reviews` behind one Service, and clients of the given service accounts, all running.
    pub fn shop(&self, clients: &[&str]) -> anyhow::Result<()> {
        let mut objects = vec![apps::service("reviews")];
        let mut deployments = Vec::new();
        for version in ["v1", "v2"] {
            objects.push(apps::server("reviews", version));
            deployments.push(format!("reviews-{version}"));
        }
        for client in clients {
            objects.extend([apps::service_account(client), apps::client(client)]);
            deployments.push((*client).to_owned());
        }
        self.apply(&objects)?;
        deployments.iter().try_for_each(|deployment| self.rolled_out(deployment))
    }

    pub fn rolled_out(&self, deployment: &str) -> anyhow::Result<()> {
        self.cluster.rolled_out(&self.name, deployment)
    }

    /// What a program sees that runs in the application's container of a client.
    pub fn exec(&self, client: &str, args: &[&str]) -> anyhow::Result<String> {
        let deployment = format!("deployment/{client}");
        self.kubectl(&[&["exec", &deployment, "-c", "app", "--", "/testapp"], args].concat())
    }

    /// What the client sees of the requests that it sends.
    pub fn load(&self, client: &str, args: &[&str]) -> anyhow::Result<Report> {
        report(&self.exec(client, &[&["load"], args].concat())?)
    }

    /// What the proxies of the pods with this label `app` count.
    pub fn metrics(&self, app: &str) -> anyhow::Result<String> {
        let pods = self.get(&["pods", "-l", &format!("app={app}")])?;
        let names = pods["items"].as_array().into_iter().flatten().filter_map(|pod| pod["metadata"]["name"].as_str());
        let path = |name: &str| format!("/api/v1/namespaces/{}/pods/{name}:15090/proxy/metrics", self.name);
        names.map(|name| self.cluster.kubectl(&["get", "--raw", &path(name)])).collect()
    }

    /// Requests over mutual TLS that the proxies of the pods with this label `app` count, `inbound` or `outbound`.
    pub fn over_mtls(&self, app: &str, direction: &str) -> anyhow::Result<u64> {
        let metrics = self.metrics(app)?;
        let direction = format!("direction=\"{direction}\"");
        let of_requests = |line: &&str| {
            line.starts_with("mesh_requests_total{")
                && line.contains(&direction)
                && line.contains("security=\"mutual_tls\"")
        };
        let count = |line: &str| Ok(line.rsplit(' ').next().unwrap_or_default().parse::<u64>()?);
        metrics.lines().filter(of_requests).map(count).sum()
    }

    /// Tells a pod of [`apps::load`] to end.
    pub fn stop(&self, pod: &str) -> anyhow::Result<()> {
        self.kubectl(&["exec", pod, "-c", "app", "--", "/testapp", "stop"]).map(drop)
    }

    /// What it saw, once it has ended.
    pub fn ended(&self, pod: &str) -> anyhow::Result<Report> {
        self.kubectl(&["wait", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=300s", &format!("pod/{pod}")])?;
        report(&self.kubectl(&["logs", pod, "-c", "app"])?)
    }

    /// What came of a Job of [`apps::job`], which has to end by itself.
    pub fn job(&self, name: &str, args: &[&str]) -> anyhow::Result<Report> {
        self.apply(&[apps::job(name, args)])?;
        self.completed(name)
    }

    /// The same of a Job that is there.
    pub fn completed(&self, name: &str) -> anyhow::Result<Report> {
        let job = format!("job/{name}");
        self.kubectl(&["wait", "--for=condition=Complete", "--timeout=60s", &job])?;
        report(&self.kubectl(&["logs", &job, "-c", "app"])?)
    }

    /// Waits until an object's condition of this type has this status; gives its reason and message.
    pub fn condition(&self, object: &str, of: &str, status: &str) -> anyhow::Result<(String, String)> {
        eventually(Duration::from_secs(20), || {
            let found = self.get(&[object])?;
            let of_route = found["status"]["parents"][0]["conditions"].as_array();
            let conditions = of_route.or(found["status"]["conditions"].as_array());
            let condition = conditions.and_then(|all| all.iter().find(|c| c["type"] == of));
            let condition =
                condition.with_context(|| format!("{object} has no condition {of}: {}", found["status"]))?;
            ensure!(condition["status"] == status, "{object}: {condition}");
            ensure!(condition["observedGeneration"] == found["metadata"]["generation"], "{object}: {condition}");
            let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
            Ok((text("reason"), text("message")))
        })
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        // What still ends in it is in nobody's way.
        let _ = self.cluster.kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
    }
}

/// Logs also have what the client said before.
fn report(text: &str) -> anyhow::Result<Report> {
    let line = text.trim().lines().last().unwrap_or_default();
    serde_json::from_str(line).with_context(|| format!("not a report: {text}"))
}
