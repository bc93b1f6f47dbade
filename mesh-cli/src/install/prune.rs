//! What an earlier installation has written, and this version with these settings does not want any more.

use std::collections::BTreeSet;

use kube::api::{ListParams, ObjectMeta};
use serde_json::json;

use super::chart;
use super::manifest::Manifest;
use super::values::Values;
use super::{FIELD_MANAGER, LABEL_PART_OF};
use crate::failure::Failure;
use crate::kubernetes::Cluster;

/// Of the kinds and the namespaces that the chart has, the objects that we have written and that it does not have with these
/// values. What somebody else has written stays, whatever its labels are.
pub async fn superfluous(cluster: &Cluster, values: &Values) -> Result<Vec<Manifest>, Failure> {
    let wanted: BTreeSet<String> = chart::render(values)?.iter().map(ToString::to_string).collect();
    let mut looked = BTreeSet::new();
    let mut found = Vec::new();
    for known in chart::everything(values)? {
        let (resource, namespace) = (known.resource(), known.namespace());
        if !looked.insert((known.kind().to_owned(), namespace.map(str::to_owned))) {
            continue;
        }
        let ours = ListParams::default().labels(&format!("{LABEL_PART_OF}=mesh"));
        let listed = match cluster.dynamic(&resource, namespace).list_metadata(&ours).await {
            Ok(listed) => listed.items,
            // A kind of others that this cluster does not have, such as a PodMonitor.
            Err(kube::Error::Api(status)) if status.code == 404 => continue,
            Err(error) => return Err(error.into()),
        };
        for object in listed {
            let manifest = Manifest(json!({
                "apiVersion": resource.api_version, "kind": resource.kind,
                "metadata": {"name": object.metadata.name, "namespace": object.metadata.namespace},
            }));
            if is_ours(&object.metadata) && !wanted.contains(&manifest.to_string()) {
                found.push(manifest);
            }
        }
    }
    Ok(found)
}

fn is_ours(metadata: &ObjectMeta) -> bool {
    let ours =
        |manager: Option<&str>, operation: Option<&str>| manager == Some(FIELD_MANAGER) && operation == Some("Apply");
    let fields = metadata.managed_fields.iter().flatten();
    let deleted = metadata.deletion_timestamp.is_some();
    !deleted && fields.into_iter().any(|fields| ours(fields.manager.as_deref(), fields.operation.as_deref()))
}
