//! Between the wire's types and ours.

use std::collections::BTreeSet;

use mesh_common::proto::control::{ObjectKey, Proxy, ServiceView, WorkloadView};
use mesh_common::proto::telemetry::TapParty;
use mesh_common::resource::{DEFAULT_NAMESPACE, Key, Kind, Object};
use tonic::Status;

use super::objects::ApplyError;
use crate::model::{Model, Service, Workload};
use crate::store::StoreError;

/// "" is nothing.
pub(super) fn given(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

pub(super) fn kind(text: &str) -> Result<Option<Kind>, Status> {
    given(text).map(Kind::parse).transpose().map_err(|error| Status::invalid_argument(error.to_string()))
}

pub(super) fn key(key: &ObjectKey) -> Result<Key, Status> {
    let kind = kind(&key.kind)?.ok_or_else(|| Status::invalid_argument("an object's key needs a kind"))?;
    if key.name.is_empty() {
        return Err(Status::invalid_argument("an object's key needs a name"));
    }
    Ok(Key::new(kind, given(&key.namespace).unwrap_or(DEFAULT_NAMESPACE), &key.name))
}

pub(super) fn object_key(key: &Key) -> ObjectKey {
    ObjectKey { kind: key.kind.to_string(), namespace: key.namespace.clone(), name: key.name.clone() }
}

pub(super) fn with_status(key: &Key, object: &Object, model: &Model) -> String {
    let mut json = object.to_json();
    let status = model.status(key);
    if status.as_object().is_some_and(|status| !status.is_empty()) {
        json["status"] = status;
    }
    json.to_string()
}

pub(super) fn status(error: ApplyError) -> Status {
    let text = error.to_string();
    let ApplyError::Store(error) = error else { return Status::invalid_argument(text) };
    match error {
        StoreError::Conflict { .. } | StoreError::Vanished { .. } => Status::aborted(text),
        StoreError::NotFound(_) => Status::not_found(text),
        StoreError::Twice(_) | StoreError::TooLarge { .. } | StoreError::Batch(_) => Status::invalid_argument(text),
        StoreError::Full => Status::resource_exhausted(text),
        _ => {
            tracing::error!(error = text, "the store failed");
            Status::unavailable(text)
        }
    }
}

/// Adds what a proxy knows of a caller that is a workload of this service: its certificate. The caller may have said something
/// here; that does not count.
pub(super) fn name_identities(party: &mut TapParty, model: &Model) {
    let is_it = |service: &&Service| service.name.name == party.name && service.name.namespace == party.namespace;
    let workloads = model.services().filter(is_it).flat_map(|service| &service.workloads);
    let identities: BTreeSet<String> =
        workloads.filter_map(|workload| workload.identity.as_ref().map(ToString::to_string)).collect();
    party.identities = identities.into_iter().collect();
}

/// Services as people know them: those made for each version show as versions of their workloads.
pub(super) fn services(model: &Model, proxies: &[Proxy]) -> Vec<ServiceView> {
    let connected: BTreeSet<&str> = proxies.iter().map(|proxy| proxy.id.as_str()).collect();
    let workload = |workload: &Workload| WorkloadView {
        name: workload.name.name.clone(),
        version: workload.version.clone(),
        addresses: workload.addresses.iter().map(ToString::to_string).collect(),
        identity: workload.identity.as_ref().map(ToString::to_string).unwrap_or_default(),
        healthy: workload.healthy,
        connected: connected.contains(format!("{}.{}", workload.name.name, workload.name.namespace).as_str()),
    };
    let view = |service: &Service| ServiceView {
        namespace: service.name.namespace.clone(),
        name: service.name.name.clone(),
        virtual_addresses: service.virtual_addresses.iter().map(ToString::to_string).collect(),
        ports: service.all_ports().map(|port| u32::from(port.number)).collect::<BTreeSet<_>>().into_iter().collect(),
        workloads: service.workloads.iter().map(|entry| workload(entry)).collect(),
    };
    model.services().filter(|service| service.version_of.is_none()).map(view).collect()
}
