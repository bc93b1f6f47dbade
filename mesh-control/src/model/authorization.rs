//! Who may do what at which workloads.

use std::collections::{BTreeMap, BTreeSet};

use mesh_common::resource::{AuthorizationBackend, AuthorizationPolicy, AuthorizationPolicySpec, Key, Kind};

use super::span::{Reach, Span};
use super::{Condition, Name, Protocol, Status};

/// A policy as it holds for a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorization {
    pub name: Name,
    pub reach: Reach,
    pub spec: AuthorizationPolicySpec,
}

/// All policies, in the order of their names.
#[derive(Debug, Default)]
pub(super) struct Authorizations {
    all: Vec<Policy>,
    /// Whom policies ask, with the namespaces of these policies.
    asked: BTreeSet<(String, Name)>,
    pub trust_domain: String,
}

#[derive(Debug)]
struct Policy {
    span: Span,
    policy: Authorization,
}

impl Authorization {
    /// The service that is asked, if one is, and its port.
    pub fn asks(&self) -> Option<(Name, u16)> {
        let backend = &self.spec.provider.as_ref()?.backend;
        Some((place(&self.name.namespace, backend), backend.port))
    }
}

fn place(namespace: &str, backend: &AuthorizationBackend) -> Name {
    Name::new(backend.namespace.as_deref().unwrap_or(namespace), &backend.name)
}

impl Authorizations {
    /// `port` tells what a service's port speaks.
    pub fn new(
        objects: &[&AuthorizationPolicy],
        trust_domain: &str,
        exists: impl Fn(&Name) -> bool,
        port: impl Fn(&Name, u16) -> Option<Protocol>,
        statuses: &mut BTreeMap<Key, Status>,
    ) -> Self {
        let mut all: Vec<Policy> = Vec::new();
        let mut asked = BTreeSet::new();
        for object in objects {
            let namespace = object.metadata.namespace_or_default();
            let key = Key::new(Kind::AuthorizationPolicy, namespace, &object.metadata.name);
            let conditions = &mut statuses.entry(key).or_default().conditions;
            let (span, condition) = Span::new(namespace, &object.spec.target_refs, &exists);
            conditions.push(condition);
            if let Some(provider) = &object.spec.provider {
                let service = place(namespace, &provider.backend);
                conditions.push(resolved(&service, provider.backend.port, provider.fail_open, &port));
                asked.insert((namespace.to_owned(), service));
            }
            let reach = span.reach;
            let name = Name::new(namespace, &object.metadata.name);
            all.push(Policy { span, policy: Authorization { name, reach, spec: object.spec.clone() } });
        }
        all.sort_by(|a, b| a.policy.name.cmp(&b.policy.name));
        Self { all, asked, trust_domain: trust_domain.to_owned() }
    }

    /// Those that hold for a workload of that namespace which serves these services.
    ///
    /// Who is asked by policies of a namespace is not itself behind any that asks of that namespace: each question would be
    /// one more request to ask about.
    pub fn of(&self, namespace: &str, services: &[impl AsRef<str>]) -> Vec<&Authorization> {
        let own: Vec<Name> = services.iter().map(|it| Name::new(namespace, it.as_ref())).collect();
        let is_asked = |policy: &Authorization| {
            let by = &policy.name.namespace;
            policy.spec.provider.is_some() && own.iter().any(|it| self.asked.contains(&(by.clone(), it.clone())))
        };
        let holding = self.all.iter().filter(|policy| policy.span.holds(namespace, services));
        holding.map(|policy| &policy.policy).filter(|policy| !is_asked(policy)).collect()
    }
}

/// Whether there is somebody to ask. As long as there is not, nobody answers.
fn resolved(service: &Name, number: u16, fail_open: bool, port: impl Fn(&Name, u16) -> Option<Protocol>) -> Condition {
    let outcome = if fail_open { "let in" } else { "refused" };
    match port(service, number) {
        Some(protocol) if protocol.may_be_http() => Condition::resolved(),
        Some(_) => {
            let what = format!("port {number} of the Service {service} is not one for HTTP or gRPC");
            Condition::unresolved("UnsupportedProtocol", format!("{what}, so what this would ask about is {outcome}"))
        }
        None => {
            let what = format!("there is no Service {service} with a port {number}");
            Condition::unresolved("BackendNotFound", format!("{what}, so what this would ask about is {outcome}"))
        }
    }
}
