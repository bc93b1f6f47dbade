//! Manifests of the test application. A check changes what it needs in them before it applies them.

use serde_json::{Value, json};

pub const IMAGE: &str = "docker.io/mesh-e2e/testapp:1";
pub const PORT: u16 = 9080;

/// `<name>-<version>`: a Deployment that serves HTTP/1.1, HTTP/2 and gRPC on one port.
pub fn server(name: &str, version: &str) -> Value {
    let mut deployment = deployment(&format!("{name}-{version}"), json!({"app": name, "version": version}));
    let container = &mut deployment["spec"]["template"]["spec"]["containers"][0];
    container["args"] = json!(["http", "--version", version]);
    container["ports"] = json!([{"containerPort": PORT}]);
    container["readinessProbe"] = json!({"httpGet": {"path": "/", "port": PORT}, "periodSeconds": 1});
    deployment
}

/// A Deployment of this name and service account in which [`super::Namespace::load`] runs clients.
pub fn client(name: &str) -> Value {
    let mut deployment = deployment(name, json!({"app": name}));
    deployment["spec"]["template"]["spec"]["serviceAccountName"] = name.into();
    deployment["spec"]["template"]["spec"]["containers"][0]["args"] = json!(["idle"]);
    deployment
}

/// A client that sends from its start on, until [`super::Namespace::stop`].
pub fn load(name: &str, args: &[&str]) -> Value {
    let args = ["load"].iter().chain(args).copied().collect::<Vec<_>>();
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"restartPolicy": "Never", "containers": [container(&args)]},
    })
}

/// A pod that does nothing.
pub fn idle(name: &str) -> Value {
    let mut pod = load(name, &[]);
    pod["spec"]["containers"][0]["args"] = json!(["idle"]);
    pod
}

/// A Job that sends and ends.
pub fn job(name: &str, args: &[&str]) -> Value {
    let pod = &load(name, args)["spec"];
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": {"spec": pod}},
    })
}

/// A CronJob that sends and ends, when somebody makes a Job from it.
pub fn cron_job(name: &str, args: &[&str]) -> Value {
    let template = &job(name, args)["spec"];
    json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": name},
        "spec": {"schedule": "0 0 1 1 *", "suspend": true, "jobTemplate": {"spec": template}},
    })
}

/// A Service for the servers of this name, of all versions.
pub fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": PORT}]},
    })
}

pub fn service_account(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}})
}

/// Routes all calls of a Service by these rules.
pub fn http_route(service: &str, rules: Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": service},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": service}], "rules": rules},
    })
}

/// A rule's backends, by weight.
pub fn backends(weights: &[(&str, u32)]) -> Value {
    weights.iter().map(|(name, weight)| json!({"name": name, "port": PORT, "weight": weight})).collect()
}

/// What the Pod Security level `restricted` asks of each container.
pub fn restrict(spec: &mut Value) {
    for container in spec["containers"].as_array_mut().into_iter().flatten() {
        container["securityContext"] = json!({
            "allowPrivilegeEscalation": false, "runAsNonRoot": true, "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        });
    }
}

fn deployment(name: &str, labels: Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container(&[])]}},
        },
    })
}

fn container(args: &[&str]) -> Value {
    json!({"name": "app", "image": IMAGE, "imagePullPolicy": "Never", "args": args})
}
