//! Who may do what at which workloads.

use std::collections::BTreeMap;

use mesh_common::resource::{AuthorizationPolicy, AuthorizationPolicySpec, Key, Kind};

use super::span::{Reach, Span};
use super::{Name, Status};

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
    pub trust_domain: String,
}

#[derive(Debug)]
struct Policy {
    span: Span,
    policy: Authorization,
}

impl Authorizations {
    pub fn new(
        objects: &[&AuthorizationPolicy],
        trust_domain: &str,
        exists: impl Fn(&Name) -> bool,
        statuses: &mut BTreeMap<Key, Status>,
    ) -> Self {
        let mut all: Vec<Policy> = Vec::new();
        for object in objects {
            let namespace = object.metadata.namespace_or_default();
            let key = Key::new(Kind::AuthorizationPolicy, namespace, &object.metadata.name);
            let conditions = &mut statuses.entry(key).or_default().conditions;
            let (span, condition) = Span::new(namespace, &object.spec.target_refs, &exists);
            conditions.push(condition);
            let reach = span.reach;
            let name = Name::new(namespace, &object.metadata.name);
            all.push(Policy { span, policy: Authorization { name, reach, spec: object.spec.clone() } });
        }
        all.sort_by(|a, b| a.policy.name.cmp(&b.policy.name));
        Self { all, trust_domain: trust_domain.to_owned() }
    }

    /// Those that hold for a workload of that namespace which serves these services.
    pub fn of(&self, namespace: &str, services: &[impl AsRef<str>]) -> Vec<&Authorization> {
        let holding = self.all.iter().filter(|policy| policy.span.holds(namespace, services));
        holding.map(|policy| &policy.policy).collect()
    }
}
