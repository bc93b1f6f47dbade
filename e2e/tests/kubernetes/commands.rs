//! `meshctl` on a cluster does what it does on a standalone mesh: it reads and writes through the API server, and `--wait`
//! returns when a change is in force at all proxies.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use mesh_e2e::app::load::Report;
use mesh_e2e::cluster::{Cluster, Namespace, apps, run};
use mesh_e2e::process::eventually;
use serde_json::{Value, json};

pub fn check(cluster: &Cluster) -> anyhow::Result<()> {
    let namespace = cluster.meshed("commands")?;
    namespace.shop(&["web"])?;
    weights(&namespace)?;
    faults(&namespace)?;
    edit(&namespace)?;
    objects(&namespace)?;
    waits(&namespace)?;
    proxies(&namespace)?;
    flows(&namespace)?;
    operator(&namespace)?;
    logs(&namespace)?;
    cluster.meshctl(&["check"])?;
    let refused = meshctl(&namespace, &["token", "create", "--service-account", "web"]).unwrap_err().to_string();
    ensure!(refused.contains("token of its service account"), "{refused}");
    let refused = meshctl(&namespace, &["audit", "tail"]).unwrap_err().to_string();
    ensure!(refused.contains("its audit log has them"), "{refused}");
    Ok(())
}

/// Versions are labels of one Service's pods, or Services of their own; the route is made, or somebody has made it.
fn weights(namespace: &Namespace) -> anyhow::Result<()> {
    let set = |v1: u32, v2: u32| {
        meshctl(namespace, &["route", "set-weight", "reviews", &format!("v1={v1}"), &format!("v2={v2}"), "--wait"])?;
        let report = namespace.load("web", &LOAD)?;
        let expected = [("v1", v1), ("v2", v2)].into_iter().filter(|(_, weight)| *weight > 0);
        let expected: BTreeMap<String, u64> =
            expected.map(|(version, weight)| (version.to_owned(), u64::from(weight) * 10)).collect();
        ensure!((&report.by_version, report.good()) == (&expected, 1000), "{v1}/{v2}: {report:?}");
        Ok(())
    };
    set(90, 10)?;
    meshctl(namespace, &["route", "reset", "reviews"])?;
    ensure!(namespace.get(&["httproutes"])?["items"] == json!([]), "the route is still there");

    let of_version = |version: &str| {
        let mut service = apps::service(&format!("reviews-{version}"));
        service["spec"]["selector"] = json!({"app": "reviews", "version": version});
        service
    };
    namespace.apply(&[of_version("v1"), of_version("v2")])?;
    let header = json!({"matches": [{"headers": [{"name": "end-user", "value": "jason"}]}],
        "backendRefs": apps::backends(&[("reviews-v2", 1)])});
    let all = json!({"backendRefs": apps::backends(&[("reviews-v1", 1)])});
    namespace.apply(&[apps::http_route("reviews", json!([header, all]))])?;
    set(50, 50)?;
    let route = namespace.get(&["httproute/reviews"])?;
    ensure!(
        route["spec"]["rules"][0]["matches"][0]["headers"][0]["value"] == "jason",
        "the other rule is lost: {route}"
    );
    set(0, 100)
}

fn faults(namespace: &Namespace) -> anyhow::Result<()> {
    meshctl(
        namespace,
        &["fault", "abort", "reviews", "--percent", "50", "--status", "503", "--from", "web", "--wait"],
    )?;
    let report = namespace.load("web", &LOAD)?;
    ensure!((report.by_status.get(&503), report.good()) == (Some(&500), 500), "{report:?}");
    let listed: Value = serde_json::from_str(&meshctl(namespace, &["fault", "list", "-o", "json"])?)?;
    ensure!(listed.as_array().is_some_and(|faults| faults.len() == 1), "{listed}");
    meshctl(namespace, &["fault", "clear", "reviews", "--wait"])?;
    let report: Report = namespace.load("web", &LOAD)?;
    ensure!(report.good() == 1000, "{report:?}");
    Ok(())
}

/// Somebody who may see a namespace and write its routes needs only the Role of docs/kubernetes.md; without it, it is said what
/// is missing.
fn operator(namespace: &Namespace) -> anyhow::Result<()> {
    let cluster = namespace.cluster;
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/kubernetes.md"))?;
    let role =
        page.split("```").find_map(|block| block.strip_prefix("yaml\n").filter(|it| it.contains("mesh-operator")));
    cluster.apply(role.context("no Role on the page")?)?;
    let routes = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "routes"},
        "rules": [
            {"apiGroups": ["gateway.networking.k8s.io"], "resources": ["*"], "verbs": ["*"]},
            {"apiGroups": ["meshctl.dev"], "resources": ["*"], "verbs": ["*"]},
        ],
    });
    namespace.apply(&[apps::service_account("operator"), routes])?;
    let account = format!("--serviceaccount={}:operator", namespace.name);
    namespace.kubectl(&["create", "rolebinding", "routes", "--role=routes", &account])?;
    namespace.kubectl(&["create", "rolebinding", "view", "--clusterrole=view", &account])?;
    let token = namespace.kubectl(&["create", "token", "operator"])?;
    let mut config: Value =
        serde_json::from_str(&cluster.kubectl(&["config", "view", "--raw", "--minify", "-o", "json"])?)?;
    config["users"][0]["user"] = json!({"token": token.trim()});
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), config.to_string())?;
    let path = file.path().display().to_string();
    let as_operator =
        |args: &[&str]| cluster.meshctl_with(&[&["-n", &namespace.name], args].concat(), &[("KUBECONFIG", &path)]);
    let set = || as_operator(&["route", "set-weight", "reviews", "v1=30", "v2=70", "--wait"]);
    let refused = set().err().context("a port was forwarded without a right to")?.to_string();
    ensure!(refused.contains("mesh-system") && refused.contains("pods"), "{refused}");

    let binding = ["-n", "mesh-system", "create", "rolebinding", "mesh-operator", "--role=mesh-operator", &account];
    cluster.kubectl(&binding)?;
    eventually(Duration::from_secs(10), set)?;
    let report = namespace.load("web", &LOAD)?;
    let expected = [("v1".to_owned(), 300), ("v2".to_owned(), 700)].into();
    ensure!((&report.by_version, report.good()) == (&expected, 1000), "{report:?}");
    as_operator(&["proxy", "status"])?;
    cluster.kubectl(&["-n", "mesh-system", "delete", "rolebinding/mesh-operator", "role/mesh-operator"]).map(drop)
}

/// An editor that changes something, one that changes nothing, and one whose result is refused.
fn edit(namespace: &Namespace) -> anyhow::Result<()> {
    let with = |editor: &str| {
        let args = ["-n", &namespace.name, "edit", "httproute", "reviews", "--wait"];
        namespace.cluster.meshctl_with(&args, &[("EDITOR", editor), ("VISUAL", "")])
    };
    let swap = "sed -i -e s/reviews-v2/reviews-vX/ -e s/reviews-v1/reviews-v2/ -e s/reviews-vX/reviews-v1/";
    let edited = with(swap)?;
    ensure!(edited.contains("configured (revision "), "{edited}");
    let report = namespace.load("web", &LOAD)?;
    ensure!(report.by_version == [("v1".to_owned(), 1000)].into() && report.good() == 1000, "{report:?}");
    let before = namespace.get(&["httproute/reviews"])?;
    with("true")?;
    let renamed = with("sed -i 's/^  name: reviews$/  name: other/'");
    let refused = renamed.err().context("it was taken under another name")?.to_string();
    ensure!(refused.contains("must stay HTTPRoute") && refused.contains("kept in"), "{refused}");
    let after = namespace.get(&["httproute/reviews"])?;
    ensure!(before["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"], "{before} {after}");
    Ok(())
}

/// Without a change of its own, and for a revision that somebody else has printed.
fn waits(namespace: &Namespace) -> anyhow::Result<()> {
    let waited: Value = serde_json::from_str(&meshctl(namespace, &["wait", "-o", "json"])?)?;
    let proxies = waited["proxies"].as_u64().unwrap_or_default();
    ensure!(proxies >= 3 && waited["synced"] == waited["proxies"], "{waited}");
    let fault = meshctl(namespace, &["fault", "delay", "reviews", "--delay", "1ms", "-o", "json"])?;
    let revision = serde_json::from_str::<Value>(&fault)?["revision"].as_u64().context("no revision")?;
    let text = meshctl(namespace, &["wait", "--revision", &revision.to_string()])?;
    ensure!(text.contains(&format!("Revision {revision} is in force")), "{text}");
    let future = (revision + 1_000_000).to_string();
    let refused = meshctl(namespace, &["wait", "--revision", &future]).err().context("it was waited for")?.to_string();
    ensure!(refused.contains(&format!("has no revision {future} yet")), "{refused}");
    meshctl(namespace, &["fault", "clear", "reviews", "--wait"]).map(drop)
}

/// What `get` gives can be applied; what is not valid, is somebody else's or is not there is told as such.
fn objects(namespace: &Namespace) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("route.yaml");
    let path = file.display().to_string();
    let route = meshctl(namespace, &["get", "httproute", "reviews", "-o", "yaml"])?;
    ensure!(route.contains("ResolvedRefs"), "without its status: {route}");
    std::fs::write(&file, &route)?;
    let applied = meshctl(namespace, &["apply", "-f", &path])?;
    ensure!(applied.contains("unchanged"), "{applied}");

    let refusal = |object: &Value| -> anyhow::Result<String> {
        std::fs::write(&file, object.to_string())?;
        let refused = meshctl(namespace, &["apply", "-f", &path]).err().context("it was taken")?;
        Ok(refused.to_string())
    };
    let to = |version: &str| apps::http_route("reviews", json!([{"backendRefs": apps::backends(&[(version, 1)])}]));
    namespace.apply(&[to("reviews-v2")])?;
    let mut other = to("reviews-v1");
    let owned = refusal(&other)?;
    ensure!(owned.contains(".spec.rules (of kubectl-client-side-apply)"), "whose field it is: {owned}");
    ensure!(owned.contains("--force-conflicts"), "what to do: {owned}");
    std::fs::write(&file, other.to_string())?;
    meshctl(namespace, &["apply", "-f", &path, "--force-conflicts"])?;
    // What meshctl has changed in another way since is its own.
    meshctl(namespace, &["route", "set-weight", "reviews", "v1=1", "v2=1"])?;
    let applied = meshctl(namespace, &["apply", "-f", &path])?;
    ensure!(applied.contains("configured"), "{applied}");
    other["metadata"]["name"] = "other".into();
    other["spec"]["rules"][0]["backendRefs"][0]["weight"] = (-1).into();
    ensure!(refusal(&other)?.contains("weight"), "which field is wrong");

    let missing = meshctl(namespace, &["delete", "httproute", "nowhere"]).err().context("it was deleted")?;
    ensure!(missing.to_string().contains("does not exist"), "{missing}");
    meshctl(namespace, &["delete", "httproute", "reviews", "--wait"])?;
    let report = namespace.load("web", &LOAD)?;
    ensure!(report.good() == 1000 && report.by_version.len() == 2, "without a route, all versions serve: {report:?}");
    Ok(())
}

/// Where a pod of `reviews` is: there, where its node is.
fn locality(namespace: &Namespace) -> anyhow::Result<Option<String>> {
    let pods = namespace.get(&["pods", "-l", "app=reviews"])?;
    let node = pods["items"][0]["spec"]["nodeName"].as_str().context("reviews is on no node")?;
    let labels = &namespace.cluster.get(&["node", node])?["metadata"]["labels"];
    let label = |name: &str| labels[format!("topology.kubernetes.io/{name}")].as_str();
    let locality = label("region").zip(label("zone")).map(|(region, zone)| format!("{region}/{zone}"));
    ensure!(locality.is_some() || !namespace.cluster.is_ours(), "{node} has no labels that say where it is: {labels}");
    Ok(locality)
}

fn proxies(namespace: &Namespace) -> anyhow::Result<()> {
    let status: Value = serde_json::from_str(&meshctl(namespace, &["proxy", "status", "-o", "json"])?)?;
    let ids: Vec<&str> = status.as_array().into_iter().flatten().filter_map(|proxy| proxy["id"].as_str()).collect();
    let web = ids.iter().find(|id| id.starts_with("web-")).with_context(|| format!("web is not among {ids:?}"))?;
    ensure!(ids.len() == 3, "{ids:?}");
    let routes = meshctl(namespace, &["proxy", "config", "routes", web])?;
    ensure!(routes.contains("reviews"), "{routes}");
    let endpoints = meshctl(namespace, &["proxy", "config", "endpoints", web, "--name", "reviews", "-o", "wide"])?;
    match locality(namespace)? {
        Some(locality) => ensure!(endpoints.contains(&locality), "{locality}: {endpoints}"),
        None => println!("   not shown: the nodes of this cluster have no labels that say where they are"),
    }
    let secrets = meshctl(namespace, &["proxy", "config", "secrets", web])?;
    ensure!(secrets.contains(&format!("ns/{}/sa/web", namespace.name)), "{secrets}");
    // A proxy may report to another replica than the one that configures it.
    let certs: Value = serde_json::from_str(&meshctl(namespace, &["certs", "-o", "json"])?)?;
    let workloads: Vec<&Value> = certs["workloads"].as_array().into_iter().flatten().collect();
    let good = workloads.iter().filter(|it| it["status"] == "ok" && it["serial"].is_string()).count();
    ensure!((workloads.len(), good) == (3, 3), "{certs:#}");
    meshctl(namespace, &["proxy", "log-level", web, "debug"])?;
    meshctl(namespace, &["log-level", "info"])?;
    let services = meshctl(namespace, &["get", "services"])?;
    ensure!(services.contains("reviews"), "{services}");
    Ok(())
}

/// What the proxies report reaches whoever asks any replica, a moment later.
fn flows(namespace: &Namespace) -> anyhow::Result<()> {
    let report = namespace.load("web", &LOAD)?;
    ensure!(report.good() == 1000, "{report:?}");
    let asked = |command: &[&str]| -> anyhow::Result<Value> {
        let args = [command, &["--window", "1m", "-o", "json"]].concat();
        Ok(serde_json::from_str(&meshctl(namespace, &args)?)?)
    };
    let named = |value: &Value, name: &str| value.as_str().is_some_and(|text| text.starts_with(&format!("{name}.")));
    let requests = |row: &Value| row["requests"].as_u64().unwrap_or_default();
    eventually(Duration::from_secs(20), || {
        let top = asked(&["top", "--once"])?;
        let of_reviews = top.as_array().into_iter().flatten().filter(|row| named(&row["service"], "reviews"));
        let counted: u64 = of_reviews.map(requests).sum();
        ensure!(counted >= 1000, "{counted} requests to reviews: {top}");
        let topology = asked(&["topology"])?;
        let mut edges = topology["edges"].as_array().into_iter().flatten();
        let edge = edges.find(|edge| named(&edge["from"], "web") && named(&edge["to"], "reviews"));
        let edge = edge.with_context(|| format!("web does not call reviews: {topology}"))?;
        ensure!(requests(edge) >= 1000 && edge["mutualTls"] == 1.0, "{edge}");
        Ok(())
    })?;
    for command in [&["top", "--once"][..], &["topology"]] {
        let text = meshctl(namespace, &[command, &["--window", "1m"]].concat())?;
        ensure!(text.contains("reviews"), "{command:?}: {text}");
    }
    Ok(())
}

const LOAD: [&str; 6] = ["--url", "http://reviews:9080/", "--connections", "4", "--requests", "1000"];

/// Of the control plane and of a proxy, alone and in the archive for whoever is to help.
fn logs(namespace: &Namespace) -> anyhow::Result<()> {
    let control = meshctl(namespace, &["logs", "--lines", "5"])?;
    ensure!(control.lines().count() >= 5 && control.lines().all(|it| it.starts_with("mesh-control-")), "{control}");
    // It was told to say more.
    let web = meshctl(namespace, &["logs", "web"])?;
    ensure!(web.contains(" DEBUG "), "{web}");
    let secret = json!({"type": "RequestHeaderModifier",
        "requestHeaderModifier": {"set": [{"name": "authorization", "value": "Basic s3cret-of-commands"}]}});
    let rule = json!({"filters": [secret], "backendRefs": apps::backends(&[("reviews", 1)])});
    let mut route = apps::http_route("reviews", json!([rule]));
    route["metadata"]["name"] = "with-secret".into();
    namespace.apply(&[route])?;
    eventually(Duration::from_secs(20), || {
        let routes = meshctl(namespace, &["proxy", "config", "routes", "web", "-o", "json"])?;
        ensure!(routes.contains("s3cret-of-commands"), "{routes}");
        Ok(())
    })?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("report.tar.gz").display().to_string();
    meshctl(namespace, &["bug-report", "--file", &file, "--lines", "100", "--proxy", "web"])?;
    let list = run(Command::new("tar").args(["-tzf", &file]), None)?;
    let is_there = |begins: &str, ends: &str| list.lines().any(|line| line.contains(begins) && line.ends_with(ends));
    for part in ["cluster/nodes.json", "cluster/pods.json", "cluster/events.json", "objects.json", "check.txt"] {
        ensure!(is_there("/", part), "{part} is not in {list}");
    }
    for (begins, ends) in
        [("/proxies/web-", ".json"), ("/proxies/web-", ".log"), ("/control-plane/mesh-control-", ".log")]
    {
        ensure!(is_there(begins, ends), "{begins}*{ends} is not in {list}");
    }
    let all = run(Command::new("tar").args(["-xzOf", &file]), None)?;
    ensure!(
        all.contains("with-secret") && !all.contains("s3cret-of-commands"),
        "a header's value is in it, or no route"
    );
    ensure!(!all.contains("PRIVATE KEY"), "a private key is in it");
    namespace.delete(&["httproute/with-secret"])
}

fn meshctl(namespace: &Namespace, args: &[&str]) -> anyhow::Result<String> {
    namespace.cluster.meshctl(&[&["-n", &namespace.name], args].concat())
}
