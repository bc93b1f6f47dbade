//! What is wrong is refused, or said in its status, with what a person can do about it.

use std::time::Duration;

use anyhow::{Context, ensure};
use mesh_e2e::cluster::{Cluster, Namespace, apps};
use mesh_e2e::process::eventually;
use serde_json::{Value, json};

pub fn check(cluster: &Cluster) -> anyhow::Result<()> {
    let namespace = cluster.meshed("refusals")?;
    namespace.apply(&[apps::service("reviews")])?;
    objects(&namespace)?;
    annotations(&namespace)?;
    missing(&namespace)?;
    nobody(&namespace)?;
    other_namespace(cluster, &namespace)?;
    conflict(&namespace)
}

/// By the schema, its rules in CEL, or the webhook: before the object is stored.
fn objects(namespace: &Namespace) -> anyhow::Result<()> {
    let targets = json!([{"group": "", "kind": "Service", "name": "reviews"}]);
    let fault = |fault: Value| json!({"targetRefs": targets, "faults": [fault]});
    let cases = [
        ("FaultInjection", fault(json!({"percent": 101, "reset": {}})), "less than or equal to 100"),
        (
            "FaultInjection",
            fault(json!({"percent": 10, "reset": {}, "delay": {"duration": "1s"}})),
            "exactly one of `delay`",
        ),
        ("FaultInjection", fault(json!({"percent": 10})), "exactly one of `delay`"),
        ("FaultInjection", fault(json!({"percent": 10, "delay": {"duration": "0s"}})), "longer than zero"),
        ("FaultInjection", json!({"targetRefs": [], "faults": [{"percent": 1, "reset": {}}]}), "at least 1 items"),
        ("PeerAuthentication", json!({"targetRefs": targets}), "`mode` or `ports` is needed"),
        ("PeerAuthentication", json!({"mode": "OFF"}), "\"STRICT\", \"PERMISSIVE\""),
        ("RequestAuthentication", json!({"jwtRules": []}), "at least 1 items"),
        ("RequestAuthentication", json!({"jwtRules": [{"issuer": "a"}]}), "one of `jwks` and `jwksUri`"),
        ("RequestAuthentication", json!({"jwtRules": [{"issuer": "a", "jwksUri": "http://a/k"}]}), "jwksUri"),
        (
            "RequestAuthentication",
            json!({"jwtRules": [{"issuer": "a", "jwksUri": "https://a/k", "clockSkew": "11m"}]}),
            "from 1s to 10m",
        ),
        ("AuthorizationPolicy", json!({"rules": [{"from": [{"requestPrincipals": ["nobody"]}]}]}), "requestPrincipals"),
        ("TrafficPolicy", json!({"targetRefs": targets, "loadBalancer": {"policy": "Best"}}), "LeastRequest"),
        ("TrafficPolicy", json!({"targetRefs": targets, "timeout": {"request": "1s"}}), "timeout"),
    ];
    for (kind, spec, reason) in cases.into_iter().chain(by_rules(&targets)) {
        let object =
            json!({"apiVersion": "meshctl.dev/v1alpha1", "kind": kind, "metadata": {"name": "wrong"}, "spec": spec});
        refused(namespace, &object, reason)?;
    }
    Ok(())
}

/// What fits the schema, and is still nothing that anybody can mean.
fn by_rules(targets: &Value) -> Vec<(&'static str, Value, &'static str)> {
    let target = &targets[0];
    let mut port = target.clone();
    port["sectionName"] = "http".into();
    let policy = |field: &str, value: Value| json!({"targetRefs": targets, field: value});
    vec![
        ("TrafficPolicy", json!({"targetRefs": [target, target]}), "a target is named twice"),
        ("TrafficPolicy", policy("loadBalancer", json!({"policy": "RingHash"})), "what requests have in common"),
        (
            "TrafficPolicy",
            policy("loadBalancer", json!({"policy": "RoundRobin", "hash": [{"header": "x-user"}]})),
            "only `policy: RingHash` and `policy: Maglev` go by a hash",
        ),
        (
            "TrafficPolicy",
            policy("timeouts", json!({"request": "1s", "perTry": "2s"})),
            "one try can't take longer than the whole request",
        ),
        (
            "TrafficPolicy",
            json!({"targetRefs": targets, "timeouts": {"perTry": "1s"}, "retries": {"perTryTimeout": "1s"}}),
            "are the same; set one of them",
        ),
        ("TrafficPolicy", policy("retries", json!({"on": ["sometimes"]})), "a status from 400 to 599, or one of"),
        (
            "TrafficPolicy",
            policy("retries", json!({"backoff": {"base": "1s", "max": "10ms"}})),
            "`max` is less than `base`",
        ),
        (
            "TrafficPolicy",
            policy("limits", json!({"requests": {"rate": 10, "by": "Header"}})),
            "`header` goes with `by: Header`",
        ),
        (
            "TrafficPolicy",
            policy("limits", json!({"concurrentRequests": {"max": 1, "perCaller": 2}})),
            "more than all callers together may have",
        ),
        ("TrafficPolicy", policy("outlierDetection", json!({"interval": "5s"})), "and `successRate` is needed"),
        (
            "TrafficPolicy",
            policy("healthCheck", json!({"http": {"path": "/"}, "tcp": {}})),
            "exactly one of `http`, `grpc` and `tcp`",
        ),
        ("MeshConfig", json!({"retries": {"attempts": 1}}), "there is one MeshConfig, and its name is `default`"),
        ("MeshConfig", json!({"retries": {"perTryTimeout": "0s"}}), "`perTryTimeout` must be longer than zero"),
        ("WorkloadEntry", json!({"version": "v1"}), "a version is the version of a service: set `service`"),
        ("WorkloadEntry", json!({"service": "reviews"}), "a workload that serves needs an address"),
        ("WorkloadEntry", json!({"addresses": ["10.0.0"]}), "this is not an IP address"),
        ("WorkloadEntry", json!({"addresses": ["224.0.0.1"]}), "this is not the address of one machine"),
        ("WorkloadEntry", json!({"mesh": true}), "which is in its certificate: set `serviceAccount`"),
        ("WorkloadEntry", json!({"ports": [{"port": 80}, {"port": 80}]}), "a port is there twice"),
        ("DirectResponse", json!({"status": 204, "body": "x"}), "a response with this status has no body"),
        ("DirectResponse", json!({"status": 200, "contentType": "text/html"}), "nothing that has a type"),
        ("DirectResponse", json!({"status": 100}), "greater than or equal to 200"),
        ("AuthorizationPolicy", json!({"action": "DENY"}), "a DENY without a rule refuses nothing"),
        (
            "AuthorizationPolicy",
            json!({"action": "DENY", "overrides": true, "rules": [{}]}),
            "`overrides` is for `action: ALLOW`",
        ),
        ("AuthorizationPolicy", json!({"dryRun": true, "overrides": true}), "set one of `overrides` and `dryRun`"),
        ("AuthorizationPolicy", json!({"targetRefs": [port]}), "name workload ports in `to[].ports`"),
        (
            "AuthorizationPolicy",
            json!({"rules": [{"from": [{"claims": [{"path": ["groups"]}]}]}]}),
            "`values` or `notValues` is needed",
        ),
    ]
}

/// A pod that asks for something that there is not.
fn annotations(namespace: &Namespace) -> anyhow::Result<()> {
    let mut pod = apps::load("wrong", &[]);
    pod["metadata"]["annotations"] = json!({"meshctl.dev/exclude-inbound-port": "22"});
    refused(namespace, &pod, "there are exclude-inbound-ports")
}

fn refused(namespace: &Namespace, object: &Value, reason: &str) -> anyhow::Result<()> {
    match namespace.apply(std::slice::from_ref(object)) {
        Ok(()) => anyhow::bail!("taken: {object}"),
        Err(error) => {
            let text = error.to_string();
            ensure!(text.contains(reason), "{object} is refused, but without {reason:?}: {text}");
            Ok(())
        }
    }
}

/// What depends on other objects is stored, and its status says what is missing.
fn missing(namespace: &Namespace) -> anyhow::Result<()> {
    let rules = json!([{"backendRefs": apps::backends(&[("nowhere", 1)])}]);
    namespace.apply(&[apps::http_route("reviews", rules.clone())])?;
    let (reason, message) = namespace.condition("httproute/reviews", "ResolvedRefs", "False")?;
    ensure!(reason == "BackendNotFound" && message.contains("no Service refusals/nowhere"), "{reason}: {message}");
    let mut orphan = apps::http_route("nobody", rules);
    orphan["metadata"]["name"] = "orphan".into();
    namespace.apply(&[orphan])?;
    let (reason, message) = namespace.condition("httproute/orphan", "Accepted", "False")?;
    ensure!(message.contains("nobody"), "{reason}: {message}");
    Ok(())
}

/// Who is named and not there may come, so the object is accepted; but it is said, for as long as it is so.
fn nobody(namespace: &Namespace) -> anyhow::Result<()> {
    let targets = json!([{"group": "", "kind": "Service", "name": "reviews"}]);
    let object = |kind: &str, spec: Value| json!({"apiVersion": "meshctl.dev/v1alpha1", "kind": kind, "metadata": {"name": "nobody"}, "spec": spec});
    let faults = json!([{"percent": 1, "reset": {}}]);
    let objects = [
        object(
            "FaultInjection",
            json!({"targetRefs": targets, "from": [{"serviceAccount": "nobody"}], "faults": faults}),
        ),
        object(
            "AuthorizationPolicy",
            json!({"targetRefs": targets, "action": "AUDIT", "rules": [{"from": [{"serviceAccounts": ["nobody"]}]}]}),
        ),
    ];
    namespace.apply(&objects)?;
    for object in ["faultinjection/nobody", "authorizationpolicy/nobody"] {
        let (reason, message) = namespace.condition(object, "FullyApplied", "False")?;
        ensure!(
            reason == "CallerNotFound" && message.contains("ServiceAccount refusals/nobody"),
            "{reason}: {message}"
        );
        namespace.condition(object, "Accepted", "True")?;
    }
    let found = namespace.cluster.meshctl(&["check"])?;
    ensure!(found.contains("FaultInjection refusals/nobody"), "{found}");
    namespace.apply(&[apps::service_account("nobody")])?;
    for object in ["faultinjection/nobody", "authorizationpolicy/nobody"] {
        eventually(Duration::from_secs(20), || {
            let status = namespace.get(&[object])?["status"].clone();
            ensure!(!status.to_string().contains("FullyApplied"), "{object}: {status}");
            Ok(())
        })?;
    }
    namespace.delete(&["faultinjection/nobody", "authorizationpolicy/nobody"])
}

/// A backend in another namespace needs that namespace's consent.
fn other_namespace(cluster: &Cluster, namespace: &Namespace) -> anyhow::Result<()> {
    let other = cluster.meshed("refusals-other")?;
    other.apply(&[apps::service("stock")])?;
    let mut backends = apps::backends(&[("stock", 1)]);
    backends[0]["namespace"] = "refusals-other".into();
    namespace.apply(&[apps::http_route("reviews", json!([{"backendRefs": backends}]))])?;
    let (reason, message) = namespace.condition("httproute/reviews", "ResolvedRefs", "False")?;
    ensure!(reason == "RefNotPermitted" && message.contains("ReferenceGrant"), "{reason}: {message}");
    other.apply(&[json!({
        "apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "ReferenceGrant", "metadata": {"name": "stock"},
        "spec": {
            "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "refusals"}],
            "to": [{"group": "", "kind": "Service", "name": "stock"}],
        },
    })])?;
    namespace.condition("httproute/reviews", "ResolvedRefs", "True").map(drop)
}

/// Of two routes for the same requests the older one wins, and the other one says so. By their names it would be the other way.
fn conflict(namespace: &Namespace) -> anyhow::Result<()> {
    namespace.delete(&["httproutes", "--all"])?;
    namespace.shop(&["web"])?;
    let to = |name: &str, version: &str| {
        let mut route = apps::http_route("reviews", json!([{"backendRefs": apps::backends(&[(version, 1)])}]));
        route["metadata"]["name"] = name.into();
        route
    };
    namespace.apply(&[to("z-older", "reviews-v1")])?;
    namespace.condition("httproute/z-older", "Accepted", "True")?;
    let older = created(namespace, "z-older")?;
    // Creation times are whole seconds, and within one the name would decide.
    eventually(Duration::from_secs(20), || {
        namespace.apply(&[to("a-newer", "reviews-v2")])?;
        let newer = created(namespace, "a-newer")?;
        if newer <= older {
            namespace.delete(&["httproute/a-newer"])?;
        }
        ensure!(newer > older, "{newer} is not after {older}");
        Ok(())
    })?;
    let (reason, message) = namespace.condition("httproute/a-newer", "FullyApplied", "False")?;
    ensure!(reason == "Conflicted" && message.contains("refusals/z-older, which is older"), "{reason}: {message}");
    let first = namespace.get(&["httproute/z-older"])?;
    ensure!(!first.to_string().contains("Conflicted"), "{first}");

    let answers = || {
        let report = namespace.load("web", &["--url", "http://reviews:9080/", "--requests", "100"])?;
        ensure!(report.good() == 100 && report.failed == 0, "{report:?}");
        anyhow::Ok(report.by_version)
    };
    // What the older one says, once all proxies know of both.
    namespace.cluster.meshctl(&["-n", &namespace.name, "wait"])?;
    let given = answers()?;
    ensure!(given == [("v1".to_owned(), 100)].into(), "of the older and the newer one: {given:?}");
    // And it was the other one that held the newer one back.
    namespace.delete(&["httproute/z-older"])?;
    eventually(Duration::from_secs(10), || {
        let given = answers()?;
        ensure!(given == [("v2".to_owned(), 100)].into(), "of the newer one alone: {given:?}");
        Ok(())
    })
}

/// When the API server says that it was; two of these compare like their texts.
fn created(namespace: &Namespace, route: &str) -> anyhow::Result<String> {
    let found = namespace.get(&["httproute", route])?;
    Ok(found["metadata"]["creationTimestamp"].as_str().context("it was never created")?.to_owned())
}
