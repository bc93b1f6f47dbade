//! Objects as they lie in the control plane: reading, writing and deleting them, and changing one that others may change
//! at the same time.

use mesh_common::proto::control::apply_result::Outcome;
use mesh_common::proto::control::mesh_client::MeshClient;
use mesh_common::proto::control::{
    ApplyRequest, ApplyResult, DeleteRequest, DeleteResponse, ListRequest, ListServicesRequest, ObjectKey,
    Precondition, ServiceView,
};
use mesh_common::resource::{Key, Kind, Object};
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::client::Control;
use crate::commands::Context;
use crate::failure::Failure;
use crate::output::Format;

/// How often a change is made again on what somebody else changed meanwhile.
const TRIES: u32 = 5;

/// An object and all that the control plane says of it, its status included.
#[derive(Clone, Debug)]
pub struct Stored {
    pub object: Object,
    pub json: Value,
}

/// Which objects are meant. Empty: all.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    pub kind: Option<Kind>,
    pub namespace: String,
    pub name: String,
}

/// What became of an object.
#[derive(Clone, Debug)]
pub struct Written {
    pub result: ApplyResult,
    pub revision: u64,
}

pub async fn list(control: &Control, selection: &Selection) -> Result<Vec<Stored>, Failure> {
    let request = ListRequest {
        kind: selection.kind.map(|k| k.as_str().to_owned()).unwrap_or_default(),
        namespace: selection.namespace.clone(),
        name: selection.name.clone(),
    };
    let listed = control.mesh().list(request).await?.into_inner();
    listed.objects.iter().map(|text| read(text)).collect()
}

/// All objects of some kinds in a namespace (`""`: in all).
pub async fn list_kinds(control: &Control, kinds: &[Kind], namespace: &str) -> Result<Vec<Stored>, Failure> {
    let mut all = Vec::new();
    for kind in kinds {
        let selection = Selection { kind: Some(*kind), namespace: namespace.to_owned(), name: String::new() };
        all.extend(list(control, &selection).await?);
    }
    Ok(all)
}

/// Reads an object that the control plane sent.
pub fn read(text: &str) -> Result<Stored, Failure> {
    let newer = |error: String| {
        Failure::new(format!("The control plane sent an object that cannot be read: {error}"))
            .hint("It is probably newer than this meshctl; `meshctl version` shows both.")
    };
    let (object, left_out) = Object::from_newer_json(text).map_err(|e| newer(e.to_string()))?;
    if let Some(field) = left_out.first() {
        return Err(newer(format!("{field} is not a field of a {}.", object.kind())));
    }
    let json = serde_json::from_str(text).map_err(|e| newer(e.to_string()))?;
    Ok(Stored { object, json })
}

pub async fn services(control: &Control) -> Result<Vec<ServiceView>, Failure> {
    Ok(control.mesh().list_services(ListServicesRequest {}).await?.into_inner().services)
}

/// Writes one object.
pub async fn apply(control: &Control, object: &Object) -> Result<Written, Failure> {
    Ok(apply_one(&mut control.mesh(), object).await?)
}

async fn apply_one(mesh: &mut MeshClient<Channel>, object: &Object) -> Result<Written, tonic::Status> {
    let request = ApplyRequest { objects: vec![object.to_json().to_string()], ..ApplyRequest::default() };
    let response = mesh.apply(request).await?.into_inner();
    let result = response.results.into_iter().next().unwrap_or_default();
    Ok(Written { result, revision: response.revision })
}

/// What a change comes to, decided on the objects as they are now.
pub enum Change {
    Write(Box<Object>),
    Delete(Vec<Key>),
    Nothing,
}

/// What was done.
pub enum Done {
    Written(Box<Object>, Written),
    Deleted(Vec<ObjectKey>, u64),
    Nothing,
}

/// Reads, lets `decide` make up its mind, and writes; when somebody else was faster, all of it again.
pub async fn change<D>(control: &Control, kinds: &[Kind], namespace: &str, mut decide: D) -> Result<Done, Failure>
where
    D: FnMut(&[Object]) -> Result<Change, Failure>,
{
    let mut mesh = control.mesh();
    for _ in 0..TRIES {
        let objects = list_kinds(control, kinds, namespace).await?.into_iter().map(|s| s.object).collect::<Vec<_>>();
        match decide(&objects)? {
            Change::Nothing => return Ok(Done::Nothing),
            // What is gone by then is gone all the same.
            Change::Delete(keys) => match delete_as_read(&mut mesh, &keys, &objects).await {
                Ok(response) if response.deleted.is_empty() => return Ok(Done::Nothing),
                Ok(response) => return Ok(Done::Deleted(response.deleted, response.revision)),
                Err(status) if status.code() == tonic::Code::Aborted => {}
                Err(status) => return Err(status.into()),
            },
            Change::Write(object) => match apply_one(&mut mesh, &object).await {
                Ok(written) => return Ok(Done::Written(object, written)),
                Err(status) if status.code() == tonic::Code::Aborted => {}
                Err(status) => return Err(status.into()),
            },
        }
    }
    Err(Failure::refused(format!("The object was changed by somebody else {TRIES} times in a row."))
        .hint("See what else writes it, and try again."))
}

/// Deletes those that nobody has changed since they were read.
async fn delete_as_read(
    mesh: &mut MeshClient<Channel>,
    keys: &[Key],
    read: &[Object],
) -> Result<DeleteResponse, tonic::Status> {
    let precondition = |object: &Object| {
        let metadata = object.metadata();
        Precondition {
            key: Some(to_proto(&object.key())),
            resource_version: metadata.resource_version.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
        }
    };
    let preconditions = read.iter().filter(|object| keys.contains(&object.key())).map(precondition).collect();
    let request = DeleteRequest { keys: keys.iter().map(to_proto).collect(), ignore_missing: true, preconditions };
    Ok(mesh.delete(request).await?.into_inner())
}

pub fn to_proto(key: &Key) -> ObjectKey {
    ObjectKey { kind: key.kind.as_str().to_owned(), namespace: key.namespace.clone(), name: key.name.clone() }
}

/// `HTTPRoute default/reviews`
pub fn name_of(key: Option<&ObjectKey>) -> String {
    key.map(|k| format!("{} {}/{}", k.kind, k.namespace, k.name)).unwrap_or_default()
}

/// Says which objects are gone.
pub fn report_deleted(context: &Context, deleted: &[ObjectKey]) -> Result<(), Failure> {
    let out = &context.out;
    match (out.format, deleted) {
        (Format::Json | Format::Yaml, _) => {
            let named = |k: &ObjectKey| json!({"kind": k.kind, "namespace": k.namespace, "name": k.name});
            out.data(&deleted.iter().map(named).collect::<Vec<_>>())
        }
        (Format::Name, _) => {
            deleted.iter().try_for_each(|k| out.line(&format!("{}/{}", k.kind.to_lowercase(), k.name)))
        }
        (_, []) => {
            out.note("There is nothing to delete.");
            Ok(())
        }
        (_, some) => some.iter().try_for_each(|key| out.line(&format!("{} deleted", name_of(Some(key))))),
    }
}

pub fn outcome(result: &ApplyResult) -> &'static str {
    match result.outcome() {
        Outcome::Created => "created",
        Outcome::Configured => "configured",
        Outcome::Unchanged => "unchanged",
        Outcome::Unspecified => "applied",
    }
}
