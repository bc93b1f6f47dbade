//! Objects of the mesh in the API server, in the form in which the standalone mesh gives them.

use kube::api::{Api, DynamicObject, ListParams, PartialObjectMeta, Patch, PatchParams, PostParams};
use kube::core::response::StatusCause;
use mesh_common::proto::control::ObjectVersion;
use mesh_common::resource::{Key, Kind, Object};
use serde_json::Value;

use super::Cluster;
use crate::failure::{Failure, sentence};
use crate::install::FIELD_MANAGER;
use crate::install::manifest::{Outcome, plain};

/// Objects of one answer of the API server.
const PAGE: u32 = 500;

/// What became of an object, and its version now.
pub struct Taken {
    pub outcome: Outcome,
    pub version: ObjectVersion,
}

/// Why an object was not taken.
pub enum Refused {
    /// It has another version by now.
    Conflict(String),
    Failed(Failure),
}

impl Refused {
    pub fn into_failure(self) -> Failure {
        match self {
            Self::Conflict(message) => Failure::refused(sentence(&message)),
            Self::Failed(failure) => failure,
        }
    }
}

impl<E: Into<Failure>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Those of a kind (or of all), in a namespace (or in all), with a name (or with any): as JSON that the mesh's own types have
/// room for, with the status. What cannot be read is told, beside the rest.
pub async fn list(
    cluster: &Cluster,
    kind: Option<Kind>,
    namespace: &str,
    name: &str,
) -> Result<(Vec<Value>, Vec<String>), Failure> {
    let (mut found, mut unreadable) = (Vec::new(), Vec::new());
    for each in Kind::ALL.into_iter().filter(|each| kind.is_none_or(|kind| kind == *each)) {
        let api = cluster.dynamic(&cluster.kind(each).await, Some(namespace).filter(|n| !n.is_empty()));
        let listed = match pages(&api, name).await {
            Ok(listed) => listed,
            Err(kube::Error::Api(status)) if status.code == 404 && kind.is_none() => continue,
            Err(kube::Error::Api(status)) if status.code == 404 => {
                return Err(Failure::not_found(format!("This cluster does not know the kind {each}."))
                    .hint("`meshctl install` brings the kinds of the mesh; `meshctl check` tells what is missing."));
            }
            Err(error) => return Err(error.into()),
        };
        for object in listed {
            match readable(each, &object) {
                Ok(json) => found.push(json),
                Err(problem) => unreadable.push(problem),
            }
        }
    }
    Ok((found, unreadable))
}

async fn pages(api: &Api<DynamicObject>, name: &str) -> kube::Result<Vec<DynamicObject>> {
    let mut params = ListParams::default().limit(PAGE);
    if !name.is_empty() {
        params = params.fields(&format!("metadata.name={name}"));
    }
    let mut found = Vec::new();
    loop {
        let page = api.list(&params).await?;
        found.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(found),
        }
    }
}

fn readable(kind: Kind, live: &DynamicObject) -> Result<Value, String> {
    let (object, _) = typed(kind, live)?;
    let mut json = object.to_json();
    if let Some(status) = live.data.get("status").filter(|_| kind != Kind::Service) {
        json["status"] = status.clone();
    }
    Ok(json)
}

/// With the paths of fields that our types do not have.
fn typed(kind: Kind, live: &DynamicObject) -> Result<(Object, Vec<String>), String> {
    let problem = |error: &dyn std::fmt::Display| {
        let metadata = &live.metadata;
        let place = metadata.namespace.as_deref().unwrap_or_default();
        format!("{kind} {place}/{}: {error}", metadata.name.as_deref().unwrap_or_default())
    };
    let mut json = serde_json::to_value(live).map_err(|error| problem(&error))?;
    json["apiVersion"] = kind.api_version().into();
    json["kind"] = kind.as_str().into();
    let (object, left_out) = Object::from_newer_json(&json.to_string()).map_err(|error| problem(&error))?;
    Ok((object, left_out))
}

/// Creates or changes one object as its user, by server-side apply; or, if it says which version of it was changed, in the
/// place of that version.
/// Fields of others are taken only by `force`.
pub async fn write(cluster: &Cluster, object: &Object, dry_run: bool, force: bool) -> Result<Taken, Refused> {
    let key = object.key();
    let resource = cluster.kind(key.kind).await;
    let api = cluster.dynamic(&resource, Some(&key.namespace));
    let before = api.get_opt(&key.name).await?;
    let mut json = object.to_json();
    json["apiVersion"] = resource.api_version.clone().into();
    let after = match (&object.metadata().resource_version, &before) {
        (Some(version), Some(before)) => {
            if before.metadata.resource_version.as_ref() != Some(version) {
                return Err(Refused::Conflict(format!("{key} was changed meanwhile")));
            }
            let params = PostParams { dry_run, field_manager: Some(FIELD_MANAGER.to_owned()) };
            let replaced = api.replace(&key.name, &params, &with_changes(before, object)?).await;
            replaced.map_err(|error| conflict(&key, error))?
        }
        (Some(_), None) => return Err(Refused::Conflict(format!("{key} was deleted meanwhile"))),
        (None, _) => {
            if let Some(metadata) = json["metadata"].as_object_mut() {
                for field in ["generation", "creationTimestamp", "uid"] {
                    metadata.remove(field);
                }
            }
            let mut params = PatchParams { dry_run, force, ..PatchParams::apply(FIELD_MANAGER) };
            let mut applied = api.patch(&key.name, &params, &Patch::Apply(&json)).await;
            // What was changed by `route` or `edit` is of the same owner, though the API server tells an update from an apply.
            if applied
                .as_ref()
                .is_err_and(|error| owners(error).is_some_and(|all| all.iter().all(|(_, by)| by == FIELD_MANAGER)))
            {
                params.force = true;
                applied = api.patch(&key.name, &params, &Patch::Apply(&json)).await;
            }
            applied.map_err(|error| not_ours(&key, error))?
        }
    };
    let outcome = match &before {
        None => Outcome::Created,
        Some(before) if plain(before) == plain(&after) => Outcome::Unchanged,
        Some(_) => Outcome::Configured,
    };
    let resource_version = after.metadata.resource_version.unwrap_or_default();
    Ok(Taken { outcome, version: version(&key, resource_version) })
}

/// The live object with what we know of it changed. Fields that we do not know would be lost, so then it is not touched.
fn with_changes(live: &DynamicObject, object: &Object) -> Result<DynamicObject, Failure> {
    let (_, left_out) = typed(object.kind(), live).map_err(Failure::refused)?;
    if !left_out.is_empty() {
        let message = format!("{} has fields that meshctl does not know: {}.", object.key(), left_out.join(", "));
        return Err(Failure::refused(message).hint("Change it with `kubectl edit`, which keeps them."));
    }
    let mut changed = live.clone();
    changed.metadata.labels = Some(object.metadata().labels.clone());
    changed.metadata.annotations = Some(object.metadata().annotations.clone());
    changed.data["spec"] = object.to_json()["spec"].clone();
    Ok(changed)
}

fn conflict(key: &Key, error: kube::Error) -> Refused {
    match error {
        kube::Error::Api(status) if status.code == 409 => Refused::Conflict(format!("{key} was changed meanwhile")),
        error => named(key, error.into()).into(),
    }
}

/// Server-side apply takes no field from whoever else has set it.
fn not_ours(key: &Key, error: kube::Error) -> Failure {
    let Some(owners) = owners(&error) else { return named(key, error.into()) };
    let owned: Vec<String> = owners.iter().map(|(field, by)| format!("{field} (of {by})")).collect();
    Failure::refused(format!("{key}: others have set fields to something else: {}.", owned.join(", "))).hint(
        "`meshctl apply --force-conflicts` takes them over. Or leave them out of what you apply, or change them with the program \
         that owns them.",
    )
}

/// The fields that somebody else owns, and who, if it is that what was refused.
fn owners(error: &kube::Error) -> Option<Vec<(String, String)>> {
    let kube::Error::Api(status) = error else { return None };
    let causes = status.details.as_ref().map(|details| details.causes.iter()).into_iter().flatten();
    let owner = |cause: &StatusCause| {
        // `conflict with "helm" using ...`, and nothing else names the owner.
        let by = cause.message.split('"').nth(1).unwrap_or("somebody else").to_owned();
        (cause.field.clone(), by)
    };
    let owners: Vec<_> = causes.filter(|cause| cause.reason == "FieldManagerConflict").map(owner).collect();
    Some(owners).filter(|owners| status.code == 409 && !owners.is_empty())
}

/// The failure, with the object that it is about.
pub fn named(key: &Key, failure: Failure) -> Failure {
    Failure { message: format!("{key}: {}", failure.message), ..failure }
}

/// The newest version that there is, asked for where the user has to do with objects.
pub async fn newest(cluster: &Cluster, kind: Kind, namespace: &str) -> Result<u64, Failure> {
    let api = cluster.dynamic(&cluster.kind(kind).await, Some(namespace));
    let list = api.list_metadata(&ListParams::default().limit(1)).await?;
    Ok(number(&list.metadata.resource_version.unwrap_or_default()))
}

/// The versions of all objects of the mesh, as they are now, and the newest version that there is of anything.
pub async fn versions(cluster: &Cluster) -> Result<(Vec<ObjectVersion>, u64), Failure> {
    let (mut found, mut newest) = (Vec::new(), 0);
    for kind in Kind::ALL {
        match cluster.dynamic(&cluster.kind(kind).await, None).list_metadata(&ListParams::default()).await {
            Ok(list) => {
                newest = newest.max(number(&list.metadata.resource_version.unwrap_or_default()));
                found.extend(list.items.into_iter().map(|object| of_metadata(kind, object)));
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok((found, newest))
}

fn of_metadata(kind: Kind, object: PartialObjectMeta<DynamicObject>) -> ObjectVersion {
    let metadata = object.metadata;
    let key = Key::new(kind, &metadata.namespace.unwrap_or_default(), &metadata.name.unwrap_or_default());
    version(&key, metadata.resource_version.unwrap_or_default())
}

/// Without a version: it is gone.
pub fn version(key: &Key, resource_version: String) -> ObjectVersion {
    let Key { kind, namespace, name } = key.clone();
    ObjectVersion { kind: kind.as_str().to_owned(), namespace, name, resource_version }
}

/// The API server's versions are numbers of one sequence.
pub fn number(version: &str) -> u64 {
    version.parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn live(json: Value) -> DynamicObject {
        serde_json::from_value(json).unwrap()
    }

    fn route(extra: Value) -> DynamicObject {
        let mut json = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": "r", "namespace": "shop", "resourceVersion": "7", "managedFields": [{"manager": "kubectl"}],
                         "finalizers": ["example.com/keep"]},
            "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "web"}], "rules": [{}]},
            "status": {"parents": []},
        });
        json["spec"]["rules"][0] = extra;
        live(json)
    }

    #[test]
    fn a_route_is_read_with_its_status_and_without_what_is_the_api_servers() {
        let json = readable(Kind::HttpRoute, &route(json!({"novel": 1}))).unwrap();
        assert_eq!((&json["status"], &json["metadata"]["resourceVersion"]), (&json!({"parents": []}), &json!("7")));
        assert!(json["metadata"].get("managedFields").is_none() && json["spec"]["rules"][0].get("novel").is_none());
        assert!(crate::objects::read(&json.to_string()).is_ok());
    }

    #[test]
    fn a_change_keeps_what_it_is_not_about_and_loses_nothing_unknown() {
        let before = route(json!({}));
        let (object, _) = typed(Kind::HttpRoute, &before).unwrap();
        let Object::HttpRoute(mut changed) = object.clone() else { panic!() };
        changed.spec.rules.clear();
        let after = with_changes(&before, &Object::HttpRoute(changed)).unwrap();
        assert_eq!(after.metadata.finalizers, before.metadata.finalizers);
        assert_eq!(after.data["status"], before.data["status"]);
        assert_ne!(after.data["spec"], before.data["spec"]);
        let failure = with_changes(&route(json!({"novel": 1})), &object).unwrap_err();
        assert!(failure.message.contains("spec.rules[0].novel"), "{failure}");
    }

    #[test]
    fn services_of_all_kinds_can_be_read() {
        let service = |spec: Value| {
            let json = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "shop"},
                "spec": spec, "status": {"loadBalancer": {}}});
            readable(Kind::Service, &live(json)).unwrap()
        };
        let dns = json!({"type": "ClusterIP", "clusterIP": "10.96.0.10", "sessionAffinity": "None", "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
            {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53, "nodePort": 30053}]});
        let read = service(dns);
        let ports = read["spec"]["ports"].as_array().unwrap();
        assert_eq!((ports.len(), &ports[0]["protocol"]), (2, &json!("UDP")));
        assert!(read.get("status").is_none());
        let alias =
            service(json!({"type": "ExternalName", "externalName": "db.example.com", "sessionAffinity": "None"}));
        assert_eq!(alias["spec"]["externalName"], "db.example.com");
    }
}
