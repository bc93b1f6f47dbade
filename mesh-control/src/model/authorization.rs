//! Who may do what at which workloads.

use std::collections::{BTreeMap, BTreeSet};

use mesh_common::resource::{AuthorizationPolicy, AuthorizationPolicySpec, Key, Kind, MESH_NAMESPACE};

use super::{Condition, Name, Status};

/// How far a policy reaches, the widest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    Mesh,
    Namespace,
    Service,
}

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
    /// Empty: all of its reach.
    services: BTreeSet<String>,
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
            let services: BTreeSet<_> = object.spec.target_refs.iter().map(|target| target.name.clone()).collect();
            // A target that is not there yet gets the policy as soon as it is, so it is kept all the same.
            let missing: Vec<_> = services.iter().filter(|name| !exists(&Name::new(namespace, name))).collect();
            conditions.push(match missing.first() {
                Some(name) => {
                    let message = format!("there is no Service {namespace}/{name} yet");
                    Condition::not_accepted("TargetNotFound", message)
                }
                None => Condition::accepted(),
            });
            let reach = match (services.is_empty(), namespace) {
                (false, _) => Reach::Service,
                (true, MESH_NAMESPACE) => Reach::Mesh,
                (true, _) => Reach::Namespace,
            };
            let name = Name::new(namespace, &object.metadata.name);
            all.push(Policy { services, policy: Authorization { name, reach, spec: object.spec.clone() } });
        }
        all.sort_by(|a, b| a.policy.name.cmp(&b.policy.name));
        Self { all, trust_domain: trust_domain.to_owned() }
    }

    /// Those that hold for a workload of that namespace which serves these services.
    pub fn of(&self, namespace: &str, services: &[impl AsRef<str>]) -> Vec<&Authorization> {
        let holds = |policy: &&Policy| match policy.policy.reach {
            Reach::Mesh => true,
            Reach::Namespace => policy.policy.name.namespace == namespace,
            Reach::Service => {
                policy.policy.name.namespace == namespace
                    && services.iter().any(|it| policy.services.contains(it.as_ref()))
            }
        };
        self.all.iter().filter(holds).map(|policy| &policy.policy).collect()
    }
}
