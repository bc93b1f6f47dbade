//! What DNS names mean.

use mesh_common::proto::workload::Name;

use super::Scope;
use crate::model::{Called, Model, Service};

/// A virtual address stays, so its name may be kept for a while.
const TTL_SECONDS: u32 = 30;
/// Workloads come and go.
const HEADLESS_TTL_SECONDS: u32 = 5;

pub(super) fn name(model: &Model, scope: &Scope, question: &str) -> Option<Name> {
    let Some(service) = model.service_by_dns(question, &scope.namespace) else {
        let (alias, canonical) = model.alias_by_dns(question, &scope.namespace)?;
        let (name, alias) = (question.to_owned(), alias.to_owned());
        return Some(Name { name, canonical, alias, ttl_seconds: TTL_SECONDS, ..Name::default() });
    };
    let addresses = if service.headless { of_workloads(service) } else { service.virtual_addresses.clone() };
    Some(Name {
        name: question.to_owned(),
        addresses: addresses.iter().map(ToString::to_string).collect(),
        ttl_seconds: if service.headless { HEADLESS_TTL_SECONDS } else { TTL_SECONDS },
        canonical: service.fqdn.clone(),
        alias: String::new(),
    })
}

fn of_workloads(service: &Service) -> Vec<std::net::IpAddr> {
    let called = Called::of(service.workloads.iter().map(|workload| &**workload));
    let called = service.workloads.iter().filter(|it| service.ready_or_not || called.includes(it));
    called.flat_map(|workload| workload.addresses.iter().copied()).collect()
}

/// Every name under which each service is known.
pub(super) fn names(model: &Model, scope: &Scope) -> Vec<String> {
    let mut names = Vec::new();
    for name in model.services().map(|service| &service.name).chain(model.aliases()) {
        if name.namespace == scope.namespace {
            names.push(name.name.clone());
        }
        names.push(format!("{}.{}", name.name, name.namespace));
        names.push(format!("{}.{}.svc", name.name, name.namespace));
        names.push(mesh_common::names::fqdn(&name.name, &name.namespace));
    }
    names
}
