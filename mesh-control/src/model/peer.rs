//! Who takes plaintext.

use std::collections::BTreeMap;

use mesh_common::resource::{Key, Kind, MESH_NAMESPACE, PeerAuthentication, PeerAuthenticationSpec, PeerMode};

use super::{Age, Condition, Name, Status};

#[derive(Debug, Default)]
pub(super) struct Peers {
    mesh: Option<PeerAuthenticationSpec>,
    namespaces: BTreeMap<String, PeerAuthenticationSpec>,
    services: BTreeMap<Name, PeerAuthenticationSpec>,
}

impl Peers {
    pub fn new(
        objects: &[&PeerAuthentication],
        exists: impl Fn(&Name) -> bool,
        statuses: &mut BTreeMap<Key, Status>,
    ) -> Self {
        let mut peers = Self::default();
        let mut ordered = objects.to_vec();
        ordered.sort_by_cached_key(|object| Age::of(&object.metadata));
        for object in ordered {
            let namespace = object.metadata.namespace_or_default();
            let key = Key::new(Kind::PeerAuthentication, namespace, &object.metadata.name);
            let spec = &object.spec;
            let conditions = &mut statuses.entry(key).or_default().conditions;
            if spec.target_refs.is_empty() {
                let fresh = if namespace == MESH_NAMESPACE {
                    peers.mesh.is_none().then(|| peers.mesh = Some(spec.clone())).is_some()
                } else {
                    insert(&mut peers.namespaces, namespace.to_owned(), spec)
                };
                conditions.push(accepted(fresh));
            }
            for target in &spec.target_refs {
                let name = Name::new(namespace, &target.name);
                if !exists(&name) {
                    // It holds as soon as the service is there, so it is kept all the same.
                    let message = format!("there is no Service {}/{} yet", name.namespace, name.name);
                    conditions.push(Condition::not_accepted("TargetNotFound", message));
                    insert(&mut peers.services, name, spec);
                } else {
                    let fresh = insert(&mut peers.services, name, spec);
                    conditions.push(accepted(fresh));
                }
            }
        }
        peers
    }

    /// The mode of a workload's port. `services` are those that the workload serves, in any order: when they differ, the
    /// strict one holds.
    pub fn mode(&self, namespace: &str, services: &[impl AsRef<str>], port: u16) -> PeerMode {
        let of = |spec: &PeerAuthenticationSpec| spec.ports.get(&port.to_string()).copied().or(spec.mode);
        let own = services.iter().filter_map(|s| of(self.services.get(&Name::new(namespace, s.as_ref()))?));
        let own = own.reduce(|a, b| if a == b { a } else { PeerMode::Strict });
        let wider = || self.namespaces.get(namespace).and_then(of).or_else(|| self.mesh.as_ref().and_then(of));
        own.or_else(wider).unwrap_or_default()
    }
}

fn insert<K: Ord>(map: &mut BTreeMap<K, PeerAuthenticationSpec>, key: K, spec: &PeerAuthenticationSpec) -> bool {
    let fresh = !map.contains_key(&key);
    if fresh {
        map.insert(key, spec.clone());
    }
    fresh
}

fn accepted(fresh: bool) -> Condition {
    if fresh {
        Condition::accepted()
    } else {
        Condition::not_accepted("Conflicted", "an older PeerAuthentication has the same target")
    }
}
