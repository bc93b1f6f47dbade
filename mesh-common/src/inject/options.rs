//! What a pod's labels and annotations ask for.

use std::net::IpAddr;

use serde_json::Value;

use super::record::ANNOTATION_INJECTED;
use super::{InjectConfig, InjectError, object};
use crate::names::kubernetes::{LABEL_INJECTION, LABEL_PROXY};
use crate::resource::Duration;

pub const ANNOTATION_PREFIX: &str = "meshctl.dev/";

const NAMES: [&str; 12] = [
    "exclude-inbound-ports",
    "exclude-outbound-ports",
    "exclude-outbound-cidrs",
    "proxy-cpu",
    "proxy-memory",
    "proxy-cpu-limit",
    "proxy-memory-limit",
    "proxy-max-lag",
    "log-level",
    "access-log",
    "audit-log",
    "audit-log-allowed",
];

/// The annotations and defaults together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) exclude_inbound_ports: Vec<u16>,
    pub(super) exclude_outbound_ports: Vec<u16>,
    pub(super) exclude_outbound_cidrs: Vec<String>,
    pub(super) cpu: String,
    pub(super) memory: String,
    pub(super) cpu_limit: Option<String>,
    pub(super) memory_limit: Option<String>,
    /// Milliseconds.
    pub(super) max_lag: Option<u128>,
    pub(super) log: String,
    pub(super) access_log: String,
    /// Decisions about access go to standard output, and these percents of those that let something in.
    pub(super) audit_log: Option<String>,
    /// From the usual labels, for metrics.
    pub(super) version: Option<String>,
    /// Nobody has said what Prometheus is to scrape in this pod.
    pub(super) scrape: bool,
}

impl Options {
    pub(super) fn read(pod: &Value, config: &InjectConfig) -> Result<Self, InjectError> {
        let annotations = Annotations::new(pod)?;
        annotations.refuse_unknown()?;
        let cpu_limit = annotations.quantity("proxy-cpu-limit")?;
        let memory_limit = annotations.quantity("proxy-memory-limit")?;
        Ok(Self {
            exclude_inbound_ports: annotations.ports("exclude-inbound-ports")?,
            exclude_outbound_ports: annotations.ports("exclude-outbound-ports")?,
            exclude_outbound_cidrs: annotations.cidrs("exclude-outbound-cidrs")?,
            cpu: annotations.request("proxy-cpu", &config.cpu, cpu_limit.as_deref())?,
            memory: annotations.request("proxy-memory", &config.memory, memory_limit.as_deref())?,
            cpu_limit,
            memory_limit,
            max_lag: annotations.duration("proxy-max-lag")?.map(|lag| lag.as_millis()),
            log: annotations.log(&config.log)?,
            access_log: annotations.access_log(&config.access_log)?,
            audit_log: annotations.audit_log()?,
            version: version(pod),
            scrape: !annotations.0.iter().any(|(key, _)| key.starts_with("prometheus.io/")),
        })
    }
}

/// Whether the pod's label keeps the proxy out.
pub(super) fn opted_out(pod: &Value) -> Result<bool, InjectError> {
    let Some(labels) = object(pod, "metadata.labels")? else { return Ok(false) };
    if labels.contains_key(LABEL_PROXY) {
        let reason = "this label is set by the injection itself: remove it";
        return Err(InjectError::new(format!("metadata.labels[{LABEL_PROXY}]"), reason));
    }
    match labels.get(LABEL_INJECTION).map(|value| value.as_str().unwrap_or_default()) {
        None | Some("enabled") => Ok(false),
        Some("disabled") => Ok(true),
        Some(_) => {
            let reason = "write `enabled` or `disabled`, or remove the label to do as the namespace's says";
            Err(InjectError::new(format!("metadata.labels[{LABEL_INJECTION}]"), reason))
        }
    }
}

fn version(pod: &Value) -> Option<String> {
    let labels = pod.get("metadata")?.get("labels")?;
    let found = labels.get("version").or_else(|| labels.get("app.kubernetes.io/version"));
    found.and_then(Value::as_str).filter(|version| !version.is_empty()).map(str::to_owned)
}

/// In the order of their names.
pub(super) struct Annotations<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Annotations<'a> {
    pub(super) fn new(pod: &'a Value) -> Result<Self, InjectError> {
        let mut all = Vec::new();
        for (key, value) in object(pod, "metadata.annotations")?.into_iter().flatten() {
            match value.as_str() {
                Some(text) => all.push((key.as_str(), text)),
                None => {
                    let reason = "the value of an annotation is a string: put it in quotes";
                    return Err(InjectError::new(format!("metadata.annotations[{key}]"), reason));
                }
            }
        }
        Ok(Self(all))
    }

    /// A misspelt annotation would be a wish that silently is not granted.
    fn refuse_unknown(&self) -> Result<(), InjectError> {
        for (key, _) in &self.0 {
            let Some(name) = key.strip_prefix(ANNOTATION_PREFIX) else { continue };
            if NAMES.contains(&name) || *key == ANNOTATION_INJECTED {
                continue;
            }
            let reason = match name {
                "inject" => format!(
                    "whether a pod is injected is said by a label: write {LABEL_INJECTION}: \"disabled\" or \"enabled\" under metadata.labels"
                ),
                _ => format!("no annotation of the mesh has this name; there are {}", NAMES.join(", ")),
            };
            return Err(error(name, reason));
        }
        Ok(())
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a str> {
        let found = self.0.iter().find(|(key, _)| key.strip_prefix(ANNOTATION_PREFIX) == Some(name));
        found.map(|(_, value)| value.trim())
    }

    /// The parts between commas.
    fn parts(&self, name: &str) -> impl Iterator<Item = &'a str> {
        self.get(name).unwrap_or_default().split(',').map(str::trim).filter(|part| !part.is_empty())
    }

    pub(super) fn ports(&self, name: &str) -> Result<Vec<u16>, InjectError> {
        let port = |part: &str| {
            part.parse().ok().filter(|port| *port > 0).ok_or_else(|| {
                error(name, format!("{part:?} is not a port: write numbers from 1 to 65535 with commas between them"))
            })
        };
        self.parts(name).map(port).collect()
    }

    fn duration(&self, name: &str) -> Result<Option<std::time::Duration>, InjectError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let duration = text.parse::<Duration>().map_err(|e| error(name, format!("{e}")))?;
        Ok(Some(duration.get()))
    }

    pub(super) fn cidrs(&self, name: &str) -> Result<Vec<String>, InjectError> {
        let cidr = |part: &str| match is_cidr(part) {
            true => Ok(part.to_owned()),
            false => {
                let example = "write ranges like 10.0.0.0/8 or fd00::/8 with commas between them";
                Err(error(name, format!("{part:?} is not a range of addresses: {example}")))
            }
        };
        self.parts(name).map(cidr).collect()
    }

    fn quantity(&self, name: &str) -> Result<Option<String>, InjectError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        match amount(text) {
            Some(_) => Ok(Some(text.to_owned())),
            None => {
                let example = if name.contains("cpu") { "100m or 0.5" } else { "64Mi or 1Gi" };
                Err(error(name, format!("{text:?} is not a quantity: write something like {example}")))
            }
        }
    }

    /// The default gives way to a limit below it; what the user wrote does not.
    fn request(&self, name: &str, default: &str, limit: Option<&str>) -> Result<String, InjectError> {
        let own = self.quantity(name)?;
        let request = own.as_deref().unwrap_or(default);
        match limit {
            Some(limit) if amount(limit) < amount(request) && own.is_none() => Ok(limit.to_owned()),
            Some(limit) if amount(limit) < amount(request) => Err(error(
                name,
                format!("{request} is more than {limit}, which {ANNOTATION_PREFIX}{name}-limit allows"),
            )),
            _ => Ok(request.to_owned()),
        }
    }

    fn log(&self, default: &str) -> Result<String, InjectError> {
        let text = self.get("log-level").unwrap_or(default);
        check_log_filter(text).map_err(|reason| error("log-level", reason))?;
        Ok(text.to_owned())
    }

    fn access_log(&self, default: &str) -> Result<String, InjectError> {
        match self.get("access-log").unwrap_or(default) {
            format @ ("off" | "text" | "json") => Ok(format.to_owned()),
            other => Err(error("access-log", format!("{other:?} is not a format: write off, text or json"))),
        }
    }

    fn audit_log(&self) -> Result<Option<String>, InjectError> {
        let share = self.get("audit-log-allowed").unwrap_or("0");
        if !share.parse::<f64>().is_ok_and(|percent| (0.0..=100.0).contains(&percent)) {
            return Err(error("audit-log-allowed", format!("{share:?} is not a share in percent, from 0 to 100")));
        }
        match self.get("audit-log").unwrap_or("off") {
            "off" => Ok(None),
            "on" => Ok(Some(share.to_owned())),
            other => Err(error("audit-log", format!("{other:?} is not a value: write on or off"))),
        }
    }
}

fn error(name: &str, reason: impl Into<String>) -> InjectError {
    InjectError::new(format!("metadata.annotations[{ANNOTATION_PREFIX}{name}]"), reason)
}

fn is_cidr(text: &str) -> bool {
    let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
    let Ok(address) = address.parse::<IpAddr>() else { return false };
    let bits = if address.is_ipv4() { 32 } else { 128 };
    prefix.is_none_or(|prefix| prefix.parse::<u8>().is_ok_and(|prefix| prefix <= bits))
}

/// How much a Kubernetes quantity is.
fn amount(text: &str) -> Option<f64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1_048_576.0,
        "Gi" => 1_073_741_824.0,
        "Ti" => 1_099_511_627_776.0,
        _ => return None,
    };
    number.parse::<f64>().ok().map(|number| number * factor).filter(|amount| *amount > 0.0)
}

/// Whether the proxy would understand the levels. It would take a misspelt level for the name of a module.
pub fn check_log_filter(text: &str) -> Result<(), String> {
    let is_level = |text: &str| {
        ["off", "error", "warn", "info", "debug", "trace"].iter().any(|level| level.eq_ignore_ascii_case(text))
    };
    let is_module =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':');
    let wrong = text.split(',').map(str::trim).find(|part| match part.split_once('=') {
        Some((module, level)) => !is_module(module) || !is_level(level),
        None => !is_level(part),
    });
    match wrong {
        None => Ok(()),
        Some(part) => Err(format!(
            "{part:?} is not a log level: write error, warn, info, debug or trace, or levels of modules like mesh_proxy::dns=debug,info"
        )),
    }
}
