//! Puts the proxy into a pod, and takes it out again.
//!
//! In: a pod or a pod template as JSON, and what to inject. Out: the same with the proxy in it, or the reason why it stays
//! as it is, or an error that names the field and says what to write. Everything that this module does not know stays as
//! it was. What was changed is recorded in an annotation of the pod, from which [`uninject`] makes the original again.

mod admission;
mod containers;
mod error;
mod interception;
mod options;
mod probes;
mod record;
mod template;

use serde_json::{Map, Value};

pub use admission::{Admission, admit};
pub use error::InjectError;
pub use interception::{ANNOTATION_INTERCEPTION, Exclusions, by_cni};
pub use options::{ANNOTATION_PREFIX, check_log_filter};
pub use probes::{Action, Probe, Probes, Which, warnings};
pub use record::{ANNOTATION_INJECTED, is_by_webhook, uninject};
pub use template::{Template, templates};

use crate::names::kubernetes::LABEL_INJECTION;
use options::Options;
use record::Record;

const CONTAINER_INIT: &str = "mesh-init";

/// What is injected where the pod's annotations say nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InjectConfig {
    pub image: String,
    /// `IfNotPresent`, `Always` or `Never`
    pub pull_policy: String,
    /// `https://mesh-control.mesh-system.svc:15012`
    pub control: String,
    /// Requests, as Kubernetes writes quantities.
    pub cpu: String,
    pub memory: String,
    pub log: String,
    /// `off`, `text` or `json`
    pub access_log: String,
    /// The nodes have the mesh's CNI plugin, which writes the interception rules instead of an init container.
    pub cni: bool,
}

impl Default for InjectConfig {
    fn default() -> Self {
        Self {
            image: concat!("ghcr.io/meshctl/mesh-proxy:", env!("CARGO_PKG_VERSION")).to_owned(),
            pull_policy: "IfNotPresent".to_owned(),
            control: "https://mesh-control.mesh-system.svc:15012".to_owned(),
            cpu: "10m".to_owned(),
            memory: "32Mi".to_owned(),
            log: "info".to_owned(),
            access_log: "off".to_owned(),
            cni: false,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Injected(Value),
    Skipped(Skipped),
}

/// Why a pod stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Skipped {
    #[error("its label {LABEL_INJECTION} is `disabled`")]
    OptedOut,
    #[error("it is in the network of its node (hostNetwork), where connections cannot be intercepted")]
    HostNetwork,
    #[error("it runs on Windows, where there is no proxy")]
    Windows,
}

/// Injects the proxy. One that is in the pod already is replaced, so that the result depends on the original only.
pub fn inject(pod: &Value, config: &InjectConfig) -> Result<Outcome, InjectError> {
    let pod = uninject(pod)?;
    let record = Record::by_hand(&pod);
    inject_into(pod, config, record)
}

fn inject_into(mut pod: Value, config: &InjectConfig, mut record: Record) -> Result<Outcome, InjectError> {
    if let Some(reason) = skipped(&pod)? {
        return Ok(Outcome::Skipped(reason));
    }
    let options = Options::read(&pod, config)?;
    containers::check(&pod, config)?;
    let probes = probes::take(&mut pod, &mut record)?;
    containers::add(&mut pod, config, &options, &probes, &mut record)?;
    record.write(&mut pod, &options, config)?;
    Ok(Outcome::Injected(pod))
}

/// Why a pod without the proxy would stay without, if it would.
pub fn skipped(pod: &Value) -> Result<Option<Skipped>, InjectError> {
    let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str);
    let windows =
        text("/spec/os/name") == Some("windows") || text("/spec/nodeSelector/kubernetes.io~1os") == Some("windows");
    Ok(if options::opted_out(pod)? {
        Some(Skipped::OptedOut)
    } else if pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true)) {
        Some(Skipped::HostNetwork)
    } else if windows {
        Some(Skipped::Windows)
    } else {
        None
    })
}

/// The object at this path (`spec.securityContext`), where null counts as absent.
fn object<'a>(value: &'a Value, path: &str) -> Result<Option<&'a Map<String, Value>>, InjectError> {
    match at(value, path) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(fields)) => Ok(Some(fields)),
        Some(_) => Err(InjectError::new(path, "this must be an object")),
    }
}

/// The list at this path, where null counts as empty.
fn list<'a>(value: &'a Value, path: &str) -> Result<&'a [Value], InjectError> {
    match at(value, path) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(items)) => Ok(items),
        Some(_) => Err(InjectError::new(path, "this must be a list")),
    }
}

fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(value, |value, key| value.get(key))
}

#[cfg(test)]
mod tests;
