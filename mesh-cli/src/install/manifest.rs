//! One object of an installation: writing it by server-side apply, and saying what that changes.

use std::fmt;

use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::ApiResource;
use serde_json::Value;

use super::FIELD_MANAGER;
use crate::failure::Failure;
use crate::kubernetes::{Cluster, resource};

/// An object as JSON, with apiVersion, kind and a name.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest(pub Value);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Created,
    Configured,
    Unchanged,
}

/// A field that an upgrade changes.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    pub path: String,
    pub before: Value,
    pub after: Value,
}

impl Manifest {
    fn text(&self, pointer: &str) -> Option<&str> {
        self.0.pointer(pointer)?.as_str()
    }

    pub fn kind(&self) -> &str {
        self.text("/kind").unwrap_or_default()
    }

    pub fn name(&self) -> &str {
        self.text("/metadata/name").unwrap_or_default()
    }

    pub fn namespace(&self) -> Option<&str> {
        self.text("/metadata/namespace")
    }

    pub fn resource(&self) -> ApiResource {
        resource::of(self.text("/apiVersion").unwrap_or_default(), self.kind())
    }

    pub async fn live(&self, cluster: &Cluster) -> Result<Option<DynamicObject>, Failure> {
        let api = cluster.dynamic(&self.resource(), self.namespace());
        match api.get(self.name()).await {
            Ok(object) => Ok(Some(object)),
            // Also where the cluster does not know the kind at all.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(self.failed("read", error)),
        }
    }

    /// Our fields get our values, whoever had set them before; fields of others stay.
    pub async fn apply(&self, cluster: &Cluster) -> Result<Outcome, Failure> {
        let before = self.live(cluster).await?;
        let after = self.patch(cluster, &PatchParams::apply(FIELD_MANAGER).force()).await?;
        Ok(match before {
            None => Outcome::Created,
            Some(before) if before.metadata.resource_version == after.metadata.resource_version => Outcome::Unchanged,
            Some(_) => Outcome::Configured,
        })
    }

    /// What [`Manifest::apply`] would change; `None`: it would be created.
    pub async fn differences(&self, cluster: &Cluster) -> Result<Option<Vec<Difference>>, Failure> {
        let Some(before) = self.live(cluster).await? else { return Ok(None) };
        let after = self.patch(cluster, &PatchParams::apply(FIELD_MANAGER).force().dry_run()).await?;
        let mut found = Vec::new();
        compare(&plain(&before), &plain(&after), String::new(), &mut found);
        Ok(Some(found))
    }

    async fn patch(&self, cluster: &Cluster, params: &PatchParams) -> Result<DynamicObject, Failure> {
        let api = cluster.dynamic(&self.resource(), self.namespace());
        api.patch(self.name(), params, &Patch::Apply(&self.0)).await.map_err(|error| self.failed("write", error))
    }

    fn failed(&self, what: &str, error: kube::Error) -> Failure {
        let failure = Failure::from(error);
        Failure { message: format!("Cannot {what} the {self}: {}", failure.message), ..failure }
    }
}

/// `Deployment mesh-system/mesh-control`
impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace() {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind(), self.name()),
            None => write!(f, "{} {}", self.kind(), self.name()),
        }
    }
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &Value| match value {
            Value::Null => "nothing".to_owned(),
            Value::Object(_) | Value::Array(_) => "...".to_owned(),
            other => other.to_string(),
        };
        write!(f, "{}: {} -> {}", self.path, shown(&self.before), shown(&self.after))
    }
}

/// Without what the API server keeps for itself.
pub fn plain(object: &DynamicObject) -> Value {
    let mut value = serde_json::to_value(object).unwrap_or_default();
    if let Some(map) = value.as_object_mut() {
        map.remove("status");
    }
    if let Some(metadata) = value.pointer_mut("/metadata").and_then(Value::as_object_mut) {
        for field in ["managedFields", "resourceVersion", "generation", "uid", "creationTimestamp"] {
            metadata.remove(field);
        }
    }
    value
}

fn compare(before: &Value, after: &Value, path: String, found: &mut Vec<Difference>) {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match (before, after) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in old {
                compare(value, new.get(key).unwrap_or(&Value::Null), below(key), found);
            }
            for (key, value) in new.iter().filter(|(key, _)| !old.contains_key(*key)) {
                compare(&Value::Null, value, below(key), found);
            }
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (index, (old, new)) in old.iter().zip(new).enumerate() {
                compare(old, new, format!("{path}[{index}]"), found);
            }
        }
        _ if before == after => {}
        _ => found.push(Difference { path, before: before.clone(), after: after.clone() }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn differences_name_the_fields() {
        let before = json!({"spec": {"replicas": 2, "containers": [{"image": "a:1", "args": ["x"]}], "gone": 1}});
        let after = json!({"spec": {"replicas": 2, "containers": [{"image": "a:2", "args": ["x", "y"]}]}});
        let mut found = Vec::new();
        compare(&before, &after, String::new(), &mut found);
        let told: Vec<String> = found.iter().map(ToString::to_string).collect();
        let expected = [
            "spec.containers[0].args: ... -> ...",
            "spec.containers[0].image: \"a:1\" -> \"a:2\"",
            "spec.gone: 1 -> nothing",
        ];
        assert_eq!(told, expected);
    }
}
