//! Which workloads a policy holds for.

use std::collections::BTreeSet;

use mesh_common::resource::{MESH_NAMESPACE, TargetRef};

use super::{Condition, Name};

/// How far a policy reaches, the widest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    Mesh,
    Namespace,
    Service,
}

#[derive(Debug)]
pub(super) struct Span {
    pub reach: Reach,
    pub namespace: String,
    /// Empty: all of its reach.
    pub services: BTreeSet<String>,
}

impl Span {
    /// A target that is not there yet gets the policy as soon as it is, so it is kept all the same.
    pub fn new(namespace: &str, targets: &[TargetRef], exists: impl Fn(&Name) -> bool) -> (Self, Condition) {
        let services: BTreeSet<_> = targets.iter().map(|target| target.name.clone()).collect();
        let missing = services.iter().find(|name| !exists(&Name::new(namespace, name)));
        let condition = match missing {
            Some(name) => {
                let message = format!("there is no Service {namespace}/{name} yet");
                Condition::not_accepted("TargetNotFound", message)
            }
            None => Condition::accepted(),
        };
        let reach = match (services.is_empty(), namespace) {
            (false, _) => Reach::Service,
            (true, MESH_NAMESPACE) => Reach::Mesh,
            (true, _) => Reach::Namespace,
        };
        (Self { reach, namespace: namespace.to_owned(), services }, condition)
    }

    /// Whether it holds for a workload of that namespace which serves these services.
    pub fn holds(&self, namespace: &str, services: &[impl AsRef<str>]) -> bool {
        match self.reach {
            Reach::Mesh => true,
            Reach::Namespace => self.namespace == namespace,
            Reach::Service => {
                self.namespace == namespace && services.iter().any(|it| self.services.contains(it.as_ref()))
            }
        }
    }
}
