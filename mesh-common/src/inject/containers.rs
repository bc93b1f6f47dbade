//! What is added to a pod: two init containers and three volumes.

use serde_json::{Map, Value, json};

use super::options::Options;
use super::probes::Probes;
use super::record::Record;
use super::{CONTAINER_INIT, InjectConfig, InjectError, list, object};
use crate::names::kubernetes::{CONTAINER_PROXY, TRUST_BUNDLE, TRUST_BUNDLE_KEY};
use crate::names::{PROXY_UID, TOKEN_AUDIENCE, port};

const VOLUME_TOKEN: &str = "mesh-token";
const VOLUME_TRUST: &str = "mesh-trust";
const VOLUME_STATE: &str = "mesh-state";
pub(super) const VOLUMES: [&str; 3] = [VOLUME_TOKEN, VOLUME_TRUST, VOLUME_STATE];

/// The variable that tells the proxy what to do for the kubelet; there only if there is something.
pub(super) const PROBES: &str = "MESH_PROBES";

const TOKEN_FOLDER: &str = "/var/run/secrets/mesh/token";
const TRUST_FOLDER: &str = "/var/run/secrets/mesh/trust";
const STATE_FOLDER: &str = "/var/run/mesh";

/// Seconds. A pod that has as many to end has all the time that its proxy may take; so have pods that do not say.
const ENOUGH_GRACE: u64 = 30;

/// Refuses pods in which the proxy would not work, or would not see what it has to.
pub(super) fn check(pod: &Value, config: &InjectConfig) -> Result<(), InjectError> {
    if object(pod, "spec")?.is_none() {
        return Err(InjectError::new("spec", "a pod needs a spec"));
    }
    check_uid(object(pod, "spec.securityContext")?, "spec.securityContext")?;
    if list(pod, "spec.containers")?.is_empty() {
        return Err(InjectError::new("spec.containers", "a pod needs a container"));
    }
    let mut names = Vec::new();
    for field in ["initContainers", "containers"] {
        for (index, container) in list(pod, &format!("spec.{field}"))?.iter().enumerate() {
            let path = format!("spec.{field}[{index}]");
            let Some(name) = container.get("name").and_then(Value::as_str) else {
                return Err(InjectError::new(format!("{path}.name"), "a container needs a name"));
            };
            if [CONTAINER_INIT, CONTAINER_PROXY].contains(&name) {
                let reason = format!("the container {name} is the mesh's own: give yours another name");
                return Err(InjectError::new(format!("{path}.name"), reason));
            }
            if names.contains(&name) {
                return Err(InjectError::new(format!("{path}.name"), format!("there are two containers {name:?}")));
            }
            names.push(name);
            let within = |error: InjectError| error.within(&path);
            check_uid(object(container, "securityContext").map_err(within)?, &format!("{path}.securityContext"))?;
        }
    }
    for (index, volume) in list(pod, "spec.volumes")?.iter().enumerate() {
        if let Some(name) = volume.get("name").and_then(Value::as_str).filter(|name| VOLUMES.contains(name)) {
            let reason = format!("the volume {name} is the mesh's own: give yours another name");
            return Err(InjectError::new(format!("spec.volumes[{index}].name"), reason));
        }
    }
    check_dns(pod, config)
}

/// What runs as the proxy's user is taken for the proxy.
fn check_uid(security: Option<&Map<String, Value>>, path: &str) -> Result<(), InjectError> {
    match security.and_then(|security| security.get("runAsUser")?.as_u64()) {
        Some(uid) if uid == u64::from(PROXY_UID) => {
            let reason =
                format!("{PROXY_UID} is the proxy's user, whose connections are not intercepted: take another");
            Err(InjectError::new(format!("{path}.runAsUser"), reason))
        }
        _ => Ok(()),
    }
}

/// With the node's DNS the control plane has no name.
fn check_dns(pod: &Value, config: &InjectConfig) -> Result<(), InjectError> {
    let control_is_name = config.control.contains(".svc");
    if control_is_name && pod.pointer("/spec/dnsPolicy").and_then(Value::as_str) == Some("Default") {
        let reason = "with the node's own DNS the proxy cannot find the control plane: write ClusterFirst, or leave the pod out of the mesh";
        return Err(InjectError::new("spec.dnsPolicy", reason));
    }
    Ok(())
}

/// Ours go before the pod's own init containers, so that these are in the mesh as well.
pub(super) fn add(
    pod: &mut Value,
    config: &InjectConfig,
    options: &Options,
    probes: &Probes,
    record: &mut Record,
) -> Result<(), InjectError> {
    let grace = pod.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_u64);
    let init_containers = record.list(pod, "initContainers")?;
    let init = (!config.cni).then(|| init(config, options));
    let proxy = proxy(config, options, probes, grace)?;
    init_containers.splice(0..0, init.into_iter().chain([proxy]));
    record.list(pod, "volumes")?.extend(volumes());
    Ok(())
}

/// Writes the interception rules, proves that they work, and ends. The only container with a capability.
fn init(config: &InjectConfig, options: &Options) -> Value {
    let ports = |ports: &mut dyn Iterator<Item = u16>| ports.map(|port| port.to_string()).collect::<Vec<_>>().join(",");
    let own = [port::READY, port::PROXY_METRICS];
    let inbound = ports(&mut own.into_iter().chain(options.exclude_inbound_ports.iter().copied()));
    let mut args = vec![
        "intercept".to_owned(),
        "--uid".to_owned(),
        PROXY_UID.to_string(),
        "--test".to_owned(),
        "--exclude-inbound-ports".to_owned(),
        inbound,
    ];
    if !options.exclude_outbound_ports.is_empty() {
        args.push("--exclude-outbound-ports".to_owned());
        args.push(ports(&mut options.exclude_outbound_ports.iter().copied()));
    }
    if !options.exclude_outbound_cidrs.is_empty() {
        args.extend(["--exclude-cidrs".to_owned(), options.exclude_outbound_cidrs.join(",")]);
    }
    json!({
        "name": CONTAINER_INIT,
        "image": config.image,
        "imagePullPolicy": config.pull_policy,
        "args": args,
        "resources": resources(options),
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "add": ["NET_ADMIN"], "drop": ["ALL"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
    })
}

/// A native sidecar: it is ready before any other container starts, and does not keep a Job from ending.
/// `grace`: how long the pod has to end, in seconds.
fn proxy(config: &InjectConfig, options: &Options, probes: &Probes, grace: Option<u64>) -> Result<Value, InjectError> {
    let mut args = vec![
        "run".to_owned(),
        format!("--control={}", config.control),
        format!("--token-file={TOKEN_FOLDER}/token"),
        format!("--trust-bundle={TRUST_FOLDER}/{TRUST_BUNDLE_KEY}"),
        format!("--state-dir={STATE_FOLDER}"),
        "--workload=$(POD_NAME)".to_owned(),
        "--intercept=yes".to_owned(),
        "--drain-endpoint".to_owned(),
        format!("--ready-addr=[::]:{}", port::READY),
        format!("--metrics-addr=[::]:{}", port::PROXY_METRICS),
        format!("--log={}", options.log),
        format!("--access-log={}", options.access_log),
    ];
    if let Some(allowed) = &options.audit_log {
        args.extend(["--audit-log=-".to_owned(), format!("--audit-log-allowed={allowed}")]);
    }
    args.extend(grace.filter(|grace| *grace < ENOUGH_GRACE).map(|grace| format!("--grace={grace}")));
    args.extend(options.max_lag.map(|lag| format!("--max-lag={lag}")));
    args.extend(options.version.as_ref().map(|version| format!("--version={version}")));
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let mut env = vec![field("POD_NAME", "metadata.name"), field("POD_IP", "status.podIP")];
    if !probes.is_empty() {
        let text =
            serde_json::to_string(probes).map_err(|error| InjectError::new("spec.containers", error.to_string()))?;
        // The kubelet would take $(X) for a variable.
        env.push(json!({ "name": PROBES, "value": text.replace('$', "\\u0024") }));
    }
    let mount = |name: &str, path: &str, read_only: bool| match read_only {
        true => json!({ "name": name, "mountPath": path, "readOnly": true }),
        false => json!({ "name": name, "mountPath": path }),
    };
    Ok(json!({
        "name": CONTAINER_PROXY,
        "image": config.image,
        "imagePullPolicy": config.pull_policy,
        "restartPolicy": "Always",
        "args": args,
        "env": env,
        "resources": resources(options),
        // Answers when the proxy is ready, not before: the application need not wait for the next probe.
        "startupProbe": {
            "httpGet": { "path": "/started", "port": port::READY },
            "periodSeconds": 1,
            "timeoutSeconds": 10,
            "failureThreshold": 60,
        },
        "securityContext": {
            "runAsUser": PROXY_UID,
            "runAsGroup": PROXY_UID,
            "runAsNonRoot": true,
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "volumeMounts": [
            mount(VOLUME_TOKEN, TOKEN_FOLDER, true),
            mount(VOLUME_TRUST, TRUST_FOLDER, true),
            mount(VOLUME_STATE, STATE_FOLDER, false),
        ],
    }))
}

fn resources(options: &Options) -> Value {
    let mut resources = json!({ "requests": { "cpu": options.cpu, "memory": options.memory } });
    for (name, limit) in [("cpu", &options.cpu_limit), ("memory", &options.memory_limit)] {
        if let Some(limit) = limit {
            resources["limits"][name] = limit.as_str().into();
        }
    }
    resources
}

fn volumes() -> [Value; 3] {
    let token = json!({ "audience": TOKEN_AUDIENCE, "expirationSeconds": 3600, "path": "token" });
    [
        // Not the pod's usual token: only the control plane accepts this one, and it is there even where
        // automountServiceAccountToken is off.
        json!({ "name": VOLUME_TOKEN, "projected": { "sources": [{ "serviceAccountToken": token }] } }),
        json!({ "name": VOLUME_TRUST, "configMap": { "name": TRUST_BUNDLE } }),
        json!({ "name": VOLUME_STATE, "emptyDir": { "medium": "Memory", "sizeLimit": "4Mi" } }),
    ]
}
