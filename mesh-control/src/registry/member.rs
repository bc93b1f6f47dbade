//! Who may become a part of a service. The namespace is no bound for this: a token for one service account must not be
//! enough to get the requests that another one's service is sent.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_common::identity::Identity;
use mesh_common::names;
use mesh_common::resource::{ANNOTATION_SERVICE_ACCOUNTS, Key, Kind, Object, Service, WorkloadEntry};
use tonic::Status;

use crate::model::selectable_labels;

type Objects = BTreeMap<Key, Arc<Object>>;

/// A service that the entry would be a part of.
struct Joined<'a> {
    name: &'a str,
    declared: Option<&'a Service>,
}

/// Refuses an entry that would join a service of another service account, by the service's name or by a selector.
pub(super) fn refuse_foreign(
    identity: &Identity,
    key: &Key,
    entry: &WorkloadEntry,
    objects: &Objects,
) -> Result<(), Status> {
    let stored = match objects.get(key).map(Arc::as_ref) {
        Some(Object::WorkloadEntry(stored)) => Some(stored),
        _ => None,
    };
    for joined in joined(entry, &key.namespace, objects) {
        let name = joined.name;
        if let Some(accounts) = joined.accounts() {
            if accounts.split(',').any(|account| account.trim() == identity.service_account) {
                continue;
            }
            return Err(Status::permission_denied(format!(
                "service account {} is not among those that may serve {name}: add it to the annotation \
                 {ANNOTATION_SERVICE_ACCOUNTS} of Service {}/{name}, or use a token for one that is",
                identity.service_account, key.namespace
            )));
        }
        // Who is a part of it already stays one: what others do later must not throw it out.
        if stored.is_some_and(|stored| joined.has(stored)) {
            continue;
        }
        if let Some(other) = entries(objects, &key.namespace)
            .find(|other| other.spec.service_account != identity.service_account && joined.has(other))
        {
            let owner = match other.spec.service_account.as_str() {
                "" => "of no service account".to_owned(),
                account => format!("of service account {account}"),
            };
            return Err(Status::permission_denied(format!(
                "service {name} has workloads {owner}, and this one is of {}: use a token for the same service account, \
                 or list all that may serve it in the annotation {ANNOTATION_SERVICE_ACCOUNTS} of Service {}/{name}",
                identity.service_account, key.namespace
            )));
        }
    }
    Ok(())
}

fn joined<'a>(entry: &'a WorkloadEntry, namespace: &'a str, objects: &'a Objects) -> Vec<Joined<'a>> {
    let labels = selectable_labels(entry);
    let service = entry.spec.service.as_str();
    let mut joined: Vec<_> = of_namespace(objects, Kind::Service, namespace)
        .filter_map(|object| match object {
            Object::Service(declared) => Some(declared),
            _ => None,
        })
        .filter(|declared| declared.metadata.name == service || declared.spec.selects(&labels))
        .map(|declared| Joined { name: &declared.metadata.name, declared: Some(declared) })
        .collect();
    if !service.is_empty() && joined.iter().all(|joined| joined.name != service) {
        joined.push(Joined { name: service, declared: None });
    }
    joined
}

impl Joined<'_> {
    fn accounts(&self) -> Option<&str> {
        self.declared?.metadata.annotations.get(ANNOTATION_SERVICE_ACCOUNTS).map(String::as_str)
    }

    fn has(&self, entry: &WorkloadEntry) -> bool {
        let spec = &entry.spec;
        spec.service == self.name
            || match self.declared {
                Some(declared) => declared.spec.selects(&selectable_labels(entry)),
                // `reviews-v2` has the workloads of version v2 of `reviews`, unless somebody meant a service of that name.
                None => !spec.version.is_empty() && self.name == names::version_service(&spec.service, &spec.version),
            }
    }
}

fn entries<'a>(objects: &'a Objects, namespace: &'a str) -> impl Iterator<Item = &'a WorkloadEntry> {
    of_namespace(objects, Kind::WorkloadEntry, namespace).filter_map(|object| match object {
        Object::WorkloadEntry(entry) => Some(entry),
        _ => None,
    })
}

fn of_namespace<'a>(objects: &'a Objects, kind: Kind, namespace: &'a str) -> impl Iterator<Item = &'a Object> {
    let fits = move |key: &Key| key.kind == kind && key.namespace == namespace;
    objects.iter().filter(move |(key, _)| fits(key)).map(|(_, object)| object.as_ref())
}
