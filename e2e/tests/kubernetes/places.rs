//! Services whose pods are on their node's own network, whose endpoints somebody wrote down, and that are only another name
//! for one; one that keeps each caller at one of its pods; and versions that are no names.

use std::time::Duration;

use anyhow::{Context, ensure};
use mesh_e2e::cluster::{Cluster, Namespace, apps};
use mesh_e2e::process::eventually;
use serde_json::json;

/// On the node, where nothing else should listen.
const NODE_PORT: u16 = 19_481;

pub fn check(cluster: &Cluster) -> anyhow::Result<()> {
    let namespace = cluster.meshed("places")?;
    namespace.shop(&["web"])?;
    on_the_node(&namespace)?;
    written_down(&namespace)?;
    affinity(&namespace)?;
    versions(&namespace)?;
    another_name(&namespace)
}

/// Such a pod gets no proxy, and callers in the mesh reach it all the same, in plaintext.
fn on_the_node(namespace: &Namespace) -> anyhow::Result<()> {
    let mut server = apps::server("node-agent", "v1");
    let pod = &mut server["spec"]["template"]["spec"];
    pod["hostNetwork"] = true.into();
    let container = &mut pod["containers"][0];
    container["args"] = json!(["http", "--version", "v1", "--listen", format!("0.0.0.0:{NODE_PORT}")]);
    container["ports"] = json!([{"containerPort": NODE_PORT}]);
    container["readinessProbe"]["httpGet"]["port"] = NODE_PORT.into();
    let mut service = apps::service("node-agent");
    service["spec"]["ports"][0]["targetPort"] = NODE_PORT.into();
    namespace.apply(&[server, service])?;
    namespace.rolled_out("node-agent-v1")?;
    let pod = namespace.get(&["pods", "-l", "app=node-agent"])?;
    ensure!(pod["items"][0]["spec"]["initContainers"].is_null(), "it was injected: {pod}");
    eventually(Duration::from_secs(10), || {
        let report = namespace.load("web", &["--url", "http://node-agent:9080/", "--requests", "50"])?;
        ensure!(report.good() == 50 && report.by_version.get("v1") == Some(&50), "{report:?}");
        Ok(())
    })
}

/// A pod of the mesh is called over mutual TLS by a Service without a selector too, and still at its own address.
fn written_down(namespace: &Namespace) -> anyhow::Result<()> {
    let pods = namespace.get(&["pods", "-l", "app=reviews,version=v2"])?;
    let address = pods["items"][0]["status"]["podIP"].as_str().context("reviews-v2 has no address")?;
    let (family, host) = match address.contains(':') {
        true => ("IPv6", format!("[{address}]")),
        false => ("IPv4", address.to_owned()),
    };
    let mut service = apps::service("leader");
    service["spec"] = json!({"ports": [{"name": "http", "port": apps::PORT}]});
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "leader", "labels": {"kubernetes.io/service-name": "leader"}},
        "addressType": family, "endpoints": [{"addresses": [address]}],
        "ports": [{"name": "http", "port": apps::PORT}],
    });
    namespace.apply(&[service, slice])?;
    for url in ["http://leader:9080/", &format!("http://{host}:9080/")] {
        let before = namespace.over_mtls("reviews", "inbound")?;
        eventually(Duration::from_secs(10), || {
            let report = namespace.load("web", &["--url", url, "--requests", "50"])?;
            ensure!(report.by_version.get("v2") == Some(&50), "{url}: {report:?}");
            Ok(())
        })?;
        let secured = namespace.over_mtls("reviews", "inbound")? - before;
        ensure!(secured >= 50, "{url}: {secured} requests over mutual TLS");
    }
    Ok(())
}

/// With `sessionAffinity: ClientIP` a caller's requests go to one pod, and without it to both.
fn affinity(namespace: &Namespace) -> anyhow::Result<()> {
    for (name, affinity, versions) in [("spread", "None", 2), ("sticky", "ClientIP", 1)] {
        let mut service = apps::service(name);
        service["spec"]["selector"]["app"] = "reviews".into();
        service["spec"]["sessionAffinity"] = affinity.into();
        namespace.apply(&[service])?;
        eventually(Duration::from_secs(10), || {
            let report = namespace.load("web", &["--url", &format!("http://{name}:9080/"), "--requests", "50"])?;
            ensure!((report.good(), report.by_version.len()) == (50, versions), "{name}: {report:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// Versions as Helm's charts write them are split by.
fn versions(namespace: &Namespace) -> anyhow::Result<()> {
    let mut objects = vec![apps::service("tools")];
    for (name, version) in [("tools-old", "1.2.3"), ("tools-new", "1.2.4")] {
        let mut server = apps::server("tools", version);
        server["metadata"]["name"] = name.into();
        objects.push(server);
    }
    namespace.apply(&objects)?;
    ["tools-old", "tools-new"].iter().try_for_each(|name| namespace.rolled_out(name))?;
    let split = ["-n", &namespace.name, "route", "set-weight", "tools", "1.2.3=90", "1.2.4=10", "--wait"];
    namespace.cluster.meshctl(&split)?;
    let report = namespace.load("web", &["--url", "http://tools:9080/", "--requests", "1000"])?;
    let of = |version: &str| report.by_version.get(version).copied().unwrap_or_default();
    ensure!((of("1.2.3"), of("1.2.4")) == (900, 100), "{report:?}");
    Ok(())
}

/// What is called by an ExternalName is what it stands for, with its routes; no route leads to the name itself.
fn another_name(namespace: &Namespace) -> anyhow::Result<()> {
    let target = "reviews.places.svc.cluster.local";
    let alias = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "books"},
        "spec": {"type": "ExternalName", "externalName": target},
    });
    let rules = json!([{"backendRefs": apps::backends(&[("reviews-v1", 0), ("reviews-v2", 1)])}]);
    namespace.apply(&[alias, apps::http_route("reviews", rules)])?;
    namespace.condition("httproute/reviews", "Accepted", "True")?;
    for url in ["http://books:9080/", "http://books.places.svc.cluster.local:9080/"] {
        eventually(Duration::from_secs(10), || {
            let report = namespace.load("web", &["--url", url, "--requests", "50"])?;
            ensure!(report.by_version.get("v2") == Some(&50), "{url}: {report:?}");
            Ok(())
        })?;
    }
    let mut route = apps::http_route("reviews", json!([{"backendRefs": apps::backends(&[("books", 1)])}]));
    route["metadata"]["name"] = "to-the-name".into();
    namespace.apply(&[route])?;
    let (reason, message) = namespace.condition("httproute/to-the-name", "ResolvedRefs", "False")?;
    ensure!(reason == "BackendNotFound" && message.contains(&format!("only another name for {target}")), "{message}");
    Ok(())
}
