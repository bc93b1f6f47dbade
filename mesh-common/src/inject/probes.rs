//! Probes and hooks of the application, which the proxy performs for the kubelet: it has no certificate of the mesh, so a
//! workload that takes nothing but mutual TLS would not answer it.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::record::Record;
use super::{InjectError, list};
use crate::names::path::{APP_HEALTH, DRAIN};
use crate::names::port;

/// By container, all that the proxy may be asked to perform.
pub type Probes = BTreeMap<String, BTreeMap<Which, Probe>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Which {
    Livez,
    Readyz,
    Startupz,
    PostStart,
    PreStop,
}

impl Which {
    pub const ALL: [Self; 5] = [Self::Livez, Self::Readyz, Self::Startupz, Self::PostStart, Self::PreStop];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Livez => "livez",
            Self::Readyz => "readyz",
            Self::Startupz => "startupz",
            Self::PostStart => "poststart",
            Self::PreStop => "prestop",
        }
    }

    /// To the kubelet a hook has succeeded when it was answered, whatever the status.
    pub fn is_hook(self) -> bool {
        matches!(self, Self::PostStart | Self::PreStop)
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the kubelet would have done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Probe {
    #[serde(rename = "do")]
    pub action: Action,
    pub timeout_seconds: u64,
    /// Of a hook: who asks for it must know this. A probe may be asked for by anybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Action {
    Http {
        port: u16,
        path: String,
        #[serde(default)]
        https: bool,
        #[serde(default)]
        headers: Vec<(String, String)>,
    },
    Tcp {
        port: u16,
    },
    Grpc {
        port: u16,
        #[serde(default)]
        service: String,
    },
    /// Of a preStop hook: until so much time has passed since the kubelet asked.
    Sleep {
        seconds: u64,
    },
}

/// Where the kubelet finds it.
fn path(container: &str, which: Which, key: Option<&str>) -> String {
    let key = key.map(|key| format!("/{key}")).unwrap_or_default();
    format!("{APP_HEALTH}{container}/{which}{key}")
}

const PROBES: [(&str, Which); 3] =
    [("livenessProbe", Which::Livez), ("readinessProbe", Which::Readyz), ("startupProbe", Which::Startupz)];
const HOOKS: [(&str, Which); 2] = [("postStart", Which::PostStart), ("preStop", Which::PreStop)];

/// The kubelet waits for hooks as long as the pod's grace period allows, which ends them.
const HOOK_TIMEOUT: u64 = 3600;

/// Points the pod's probes and hooks at the proxy, and gives each container that has no hook for it one that lets the
/// proxy leave the mesh before the container is told to stop.
pub(super) fn take(pod: &mut Value, record: &mut Record) -> Result<Probes, InjectError> {
    let mut probes = Probes::new();
    for field in ["initContainers", "containers"] {
        for index in 0..list(pod, &format!("spec.{field}"))?.len() {
            let path = format!("spec.{field}[{index}]");
            let Some(Value::Object(container)) = pod.pointer_mut(&format!("/spec/{field}/{index}")) else {
                return Err(InjectError::new(path, "this must be a container"));
            };
            // Other init containers can have no probes, and nobody calls them.
            if field == "initContainers" && container.get("restartPolicy") != Some(&json!("Always")) {
                continue;
            }
            let taken = take_from(container, &path, field == "containers", record)?;
            if let (false, Some(name)) = (taken.is_empty(), container.get("name").and_then(Value::as_str)) {
                probes.insert(name.to_owned(), taken);
            }
        }
    }
    if probes.values().flatten().all(|(which, _)| !which.is_hook()) {
        record.without_key();
    }
    Ok(probes)
}

fn take_from(
    container: &mut Map<String, Value>,
    path: &str,
    application: bool,
    record: &mut Record,
) -> Result<BTreeMap<Which, Probe>, InjectError> {
    let Some(name) = container.get("name").and_then(Value::as_str).map(str::to_owned) else {
        return Err(InjectError::new(format!("{path}.name"), "a container needs a name"));
    };
    let mut taken = BTreeMap::new();
    for (field, which) in PROBES {
        let Some(Value::Object(probe)) = container.get(field) else { continue };
        let seconds = probe.get("timeoutSeconds").and_then(Value::as_u64).filter(|seconds| *seconds > 0);
        let Some(action) = action(probe, container, &format!("{path}.{field}"))? else { continue };
        taken.insert(which, Probe { action, timeout_seconds: seconds.unwrap_or(1), key: None });
        let mut rewritten = probe.clone();
        point_at_proxy(&mut rewritten, &self::path(&name, which, None));
        record.container(&name, field, container.insert(field.to_owned(), rewritten.into()));
    }
    let before = container.get("lifecycle").cloned();
    let mut lifecycle = match &before {
        Some(Value::Object(lifecycle)) => lifecycle.clone(),
        _ => Map::new(),
    };
    for (field, which) in HOOKS {
        let Some(Value::Object(hook)) = lifecycle.get(field) else { continue };
        let path = format!("{path}.lifecycle.{field}");
        let action = match action(hook, container, &path)? {
            None if which == Which::PreStop => sleep(hook),
            action => action,
        };
        let Some(action) = action else { continue };
        let key = record.key().to_owned();
        let mut rewritten = hook.clone();
        point_at_proxy(&mut rewritten, &self::path(&name, which, Some(&key)));
        taken.insert(which, Probe { action, timeout_seconds: HOOK_TIMEOUT, key: Some(key) });
        lifecycle.insert(field.to_owned(), rewritten.into());
    }
    if application && lifecycle.get("preStop").is_none_or(Value::is_null) {
        lifecycle.insert("preStop".to_owned(), json!({ "httpGet": { "path": DRAIN, "port": port::READY } }));
    }
    let after = Value::Object(lifecycle);
    if before.as_ref() != Some(&after) && (before.is_some() || after != json!({})) {
        record.container(&name, "lifecycle", before);
        container.insert("lifecycle".to_owned(), after);
    }
    Ok(taken)
}

/// What others have made of the probes and hooks of an injected container since, in the container as it was before.
pub(super) fn keep_changes(container: &mut Map<String, Value>, injected: &Map<String, Value>) {
    for (field, _) in PROBES {
        let now = injected.get(field).cloned();
        let changed = match (container.get(field), now) {
            // All but what it does.
            (Some(Value::Object(before)), Some(Value::Object(mut now))) if is_at_proxy(&now) => {
                ACTIONS.iter().for_each(|action| drop(now.remove(*action)));
                let actions = before.iter().filter(|(name, _)| ACTIONS.contains(&name.as_str()));
                now.extend(actions.map(|(name, action)| (name.clone(), action.clone())));
                Some(Value::Object(now))
            }
            (_, now) => now,
        };
        put(container, field, changed);
    }
    let Some(Value::Object(now)) = injected.get("lifecycle") else { return };
    let before = container.get("lifecycle").and_then(Value::as_object).cloned().unwrap_or_default();
    let mut lifecycle = before.clone();
    for (field, _) in HOOKS {
        match now.get(field) {
            Some(Value::Object(hook)) if is_at_proxy(hook) => {}
            hook => put(&mut lifecycle, field, hook.cloned()),
        }
    }
    if lifecycle != before {
        container.insert("lifecycle".to_owned(), lifecycle.into());
    }
}

fn put(fields: &mut Map<String, Value>, field: &str, value: Option<Value>) {
    match value {
        Some(value) => drop(fields.insert(field.to_owned(), value)),
        None => drop(fields.remove(field)),
    }
}

const ACTIONS: [&str; 4] = ["httpGet", "tcpSocket", "grpc", "sleep"];

/// Whether it is what [`take`] has made of a probe or a hook.
fn is_at_proxy(handler: &Map<String, Value>) -> bool {
    let http = handler.get("httpGet");
    let path = http.and_then(|http| http.get("path")?.as_str()).unwrap_or_default();
    let at_proxy = http.and_then(|http| http.get("port")?.as_u64()) == Some(port::READY.into());
    at_proxy && (path == DRAIN || path.starts_with(APP_HEALTH))
}

fn point_at_proxy(handler: &mut Map<String, Value>, path: &str) {
    ACTIONS.iter().for_each(|action| drop(handler.remove(*action)));
    handler.insert("httpGet".to_owned(), json!({ "path": path, "port": port::READY }));
}

/// `None`: not over the network, or to another host, which the proxy has nothing to do with.
fn action(
    handler: &Map<String, Value>,
    container: &Map<String, Value>,
    path: &str,
) -> Result<Option<Action>, InjectError> {
    let handler_of = |kind: &str| match handler.get(kind) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(fields)) => Ok(Some(fields)),
        Some(_) => Err(InjectError::new(format!("{path}.{kind}"), "this must be an object")),
    };
    let text = |fields: &Map<String, Value>, field: &str| {
        fields.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    if let Some(http) = handler_of("httpGet")? {
        if !text(http, "host").is_empty() {
            return Ok(None);
        }
        let request = text(http, "path");
        return Ok(Some(Action::Http {
            port: number(http, container, &format!("{path}.httpGet"))?,
            path: if request.starts_with('/') { request } else { format!("/{request}") },
            https: text(http, "scheme") == "HTTPS",
            headers: headers(http, &format!("{path}.httpGet"))?,
        }));
    }
    if let Some(tcp) = handler_of("tcpSocket")? {
        let elsewhere = !text(tcp, "host").is_empty();
        let port = number(tcp, container, &format!("{path}.tcpSocket"))?;
        return Ok((!elsewhere).then_some(Action::Tcp { port }));
    }
    if let Some(grpc) = handler_of("grpc")? {
        let port = number(grpc, container, &format!("{path}.grpc"))?;
        return Ok(Some(Action::Grpc { port, service: text(grpc, "service") }));
    }
    Ok(None)
}

/// People write it to outlast the callers that have not heard yet, which is what the proxy knows better. What is none, or
/// lasts for longer than a hook may here, is left to the kubelet.
fn sleep(hook: &Map<String, Value>) -> Option<Action> {
    let seconds = hook.get("sleep")?.get("seconds")?.as_u64()?;
    (seconds < HOOK_TIMEOUT).then_some(Action::Sleep { seconds })
}

/// What the mesh can't do for a pod that is in it, and how to help: a command is run by the kubelet in the container, and
/// nobody asks the proxy meanwhile.
pub fn warnings(pod: &Value) -> Vec<String> {
    let containers = pod.pointer("/spec/containers").and_then(Value::as_array);
    let runs = |container: &&Value| container.pointer("/lifecycle/preStop/exec").is_some_and(Value::is_object);
    let warning = |container: &Value| {
        let name = container.get("name").and_then(Value::as_str).unwrap_or_default();
        let url = format!("http://localhost:{}{DRAIN}", port::READY);
        format!(
            "container {name}: its preStop hook runs a command, so callers are not waited for before it ends; let the command get {url} first, or leave the hook out"
        )
    };
    containers.into_iter().flatten().filter(runs).map(warning).collect()
}

fn headers(http: &Map<String, Value>, path: &str) -> Result<Vec<(String, String)>, InjectError> {
    let Some(Value::Array(headers)) = http.get("httpHeaders") else { return Ok(Vec::new()) };
    let header = |(index, header): (usize, &Value)| {
        let text = |field: &str| header.get(field).and_then(Value::as_str).map(str::to_owned);
        let wrong = || InjectError::new(format!("{path}.httpHeaders[{index}]"), "a header needs a name and a value");
        Ok((text("name").ok_or_else(wrong)?, text("value").unwrap_or_default()))
    };
    headers.iter().enumerate().map(header).collect()
}

/// A port by its number, or by the name that the container gives it.
fn number(handler: &Map<String, Value>, container: &Map<String, Value>, path: &str) -> Result<u16, InjectError> {
    let wrong = |reason: String| InjectError::new(format!("{path}.port"), reason);
    let valid = |number: u64| {
        let port = u16::try_from(number).ok().filter(|port| *port > 0);
        port.ok_or_else(|| wrong(format!("{number} is not a port: write a number from 1 to 65535")))
    };
    match handler.get("port") {
        Some(Value::Number(number)) => valid(number.as_u64().unwrap_or(0)),
        Some(Value::String(name)) => {
            let ports = container.get("ports").and_then(Value::as_array);
            let named = ports.into_iter().flatten().find(|port| port.get("name").and_then(Value::as_str) == Some(name));
            match named.and_then(|port| port.get("containerPort")?.as_u64()) {
                Some(number) => valid(number),
                // As the kubelet reads a string that is the name of no port.
                None => valid(name.parse().map_err(|_| {
                    wrong(format!("the container has no port with the name {name:?}: add it to its `ports`"))
                })?),
            }
        }
        _ => Err(wrong("a port is needed: its number, or its name".to_owned())),
    }
}
