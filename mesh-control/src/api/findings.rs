//! What is not as it should be, with what to do about it: the answers behind `meshctl check`.

use jiff::Timestamp;
use mesh_common::proto::control::{Finding, Proxy, finding::Level};
use mesh_common::tls::ROOT_ENDS_SOON;

use crate::model::{Called, Model, Service};
use crate::objects::Objects;

/// Errors first. A subject that was looked at and has nothing wrong says so.
pub(super) fn findings(
    model: &Model,
    objects: &Objects,
    proxies: &[Proxy],
    root_end: Timestamp,
    now: Timestamp,
) -> Vec<Finding> {
    let mut found = vec![root(root_end, now)];
    found.extend(rejections(proxies));
    found.extend(conditions(model, objects));
    found.extend(unserved(model));
    found.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    found
}

fn finding(level: Level, subject: impl Into<String>, message: impl Into<String>, remedy: &str) -> Finding {
    Finding { level: level.into(), subject: subject.into(), message: message.into(), remedy: remedy.to_owned() }
}

fn root(end: Timestamp, now: Timestamp) -> Finding {
    if now + ROOT_ENDS_SOON < end {
        return finding(Level::Ok, "root certificate", format!("valid until {end}"), "");
    }
    let remedy = "`meshctl certs rotate-root` replaces it; in Kubernetes it is done as docs/operations.md says";
    finding(Level::Warning, "root certificate", format!("it ends at {end}"), remedy)
}

fn rejections(proxies: &[Proxy]) -> Vec<Finding> {
    let standing: Vec<Finding> = proxies
        .iter()
        .flat_map(|proxy| proxy.types.iter().map(move |ty| (proxy, ty)))
        .filter(|(_, ty)| !ty.nack.is_empty())
        .map(|(proxy, ty)| {
            let message = format!("it rejected its {} configuration: {}", ty.r#type, ty.nack);
            let remedy =
                "it keeps the configuration before; change the object that the reason names, or update the proxy";
            finding(Level::Error, format!("proxy {}", proxy.id), message, remedy)
        })
        .collect();
    if !standing.is_empty() {
        return standing;
    }
    vec![finding(Level::Ok, "proxies", format!("{} connected, none rejects its configuration", proxies.len()), "")]
}

fn conditions(model: &Model, objects: &Objects) -> Vec<Finding> {
    let problems: Vec<Finding> = objects
        .objects
        .keys()
        .flat_map(|key| model.warnings(key).into_iter().map(move |message| (key, message)))
        .map(|(key, message)| {
            finding(Level::Warning, key.to_string(), message, "change the object, or apply what it refers to")
        })
        .collect();
    if !problems.is_empty() {
        return problems;
    }
    vec![finding(Level::Ok, "objects", format!("{} stored, all of them in force", objects.objects.len()), "")]
}

fn unserved(model: &Model) -> Vec<Finding> {
    let is_unserved = |service: &&Service| {
        let called = Called::of(service.workloads.iter().map(|workload| &**workload));
        service.version_of.is_none() && !service.workloads.iter().any(|workload| called.includes(workload))
    };
    let found: Vec<Finding> = model
        .services()
        .filter(is_unserved)
        .map(|service| {
            let message = match service.workloads.len() {
                0 => "it has no workload, so its callers get 503".to_owned(),
                count => format!("none of its workloads ({count}) is healthy, so its callers get 503"),
            };
            let subject = format!("Service {}/{}", service.name.namespace, service.name.name);
            let remedy = "start a workload for it with `meshctl run`, or see why its health check fails";
            finding(Level::Warning, subject, message, remedy)
        })
        .collect();
    if !found.is_empty() {
        return found;
    }
    vec![finding(Level::Ok, "services", "each has a healthy workload", "")]
}
