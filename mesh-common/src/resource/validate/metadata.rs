use super::super::{Kind, MESH_NAMESPACE, Object};
use super::Errors;
use super::fields::{label, mesh_label};

pub(super) fn check(object: &Object, errors: &mut Errors) {
    let kind = object.kind();
    let metadata = object.metadata();
    match kind {
        // These names become parts of DNS names.
        Kind::Service | Kind::WorkloadEntry => label(errors, "metadata.name", &metadata.name),
        _ => {
            let fits = metadata.name.len() <= 253 && metadata.name.split('.').all(|part| mesh_label(part).is_ok());
            let message = format!(
                "{:?} is not a name: lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit",
                metadata.name
            );
            errors.add_if(!fits, "metadata.name", message);
        }
    }
    if !metadata.namespace.is_empty() {
        label(errors, "metadata.namespace", &metadata.namespace);
    }
    if kind == Kind::MeshConfig {
        errors.add_if(
            metadata.name != "default",
            "metadata.name",
            "there is one MeshConfig, and its name is `default`",
        );
        let elsewhere = !matches!(metadata.namespace.as_str(), "" | MESH_NAMESPACE);
        errors.add_if(
            elsewhere,
            "metadata.namespace",
            format!("the MeshConfig is in the namespace `{MESH_NAMESPACE}`"),
        );
    }
    if let Some(time) = &metadata.creation_timestamp {
        let wrong = time.parse::<jiff::Timestamp>().is_err();
        errors.add_if(
            wrong,
            "metadata.creationTimestamp",
            "this is not an RFC 3339 time, such as 2026-01-31T12:00:00Z",
        );
    }
}
