//! From Kubernetes' objects to ours. Pure, one file for each kind.

mod object;
mod pod;
mod service;
mod slice;

use k8s_openapi::api::core::v1::Node;
use mesh_common::resource::Object;
use serde_json::Value;

pub(super) use object::object;
pub(super) use pod::pod;
pub(super) use service::service;
pub(super) use slice::slice;

pub(super) use pod::Pod;
pub(super) use slice::{Place, Slice};

/// Annotation of what was made from something else, and has no status of its own in the API server.
pub const ANNOTATION_SOURCE: &str = "meshctl.dev/source";

/// What one of Kubernetes' objects says that matters to a mesh.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fact {
    Pod(Pod),
    /// `region/zone`
    Node(String),
    Slice(Slice),
    Service(Object),
    Object(Written),
    /// A route that is nobody's in the mesh any more, while its status says that it is.
    Left {
        api_version: &'static str,
        uid: Option<String>,
        generation: Option<i64>,
        status: Value,
    },
    /// An object that cannot be taken, with the reasons.
    Refused {
        api_version: &'static str,
        reasons: Vec<String>,
        uid: Option<String>,
        generation: Option<i64>,
        status: Value,
        parents: Value,
    },
}

/// An object that people wrote.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Written {
    pub object: Object,
    /// In which it was read, and its status is written.
    pub api_version: &'static str,
    pub status: Value,
    /// Paths of fields that are not known here.
    pub left_out: Vec<String>,
}

pub(super) fn node(node: &Node) -> Option<Fact> {
    let label = |name: &str| node.metadata.labels.as_ref()?.get(name).cloned();
    let [region, zone] = ["topology.kubernetes.io/region", "topology.kubernetes.io/zone"].map(label);
    let locality = match (region, zone) {
        (region, Some(zone)) => format!("{}/{zone}", region.unwrap_or_default()),
        (Some(region), None) => region,
        (None, None) => String::new(),
    };
    Some(Fact::Node(locality))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_in_a_region_and_a_zone_as_far_as_its_labels_say() {
        let [region, zone] = ["topology.kubernetes.io/region", "topology.kubernetes.io/zone"];
        for (labels, locality) in [
            (json!({region: "eu", zone: "eu-a", "kubernetes.io/os": "linux"}), "eu/eu-a"),
            (json!({zone: "eu-a"}), "/eu-a"),
            (json!({region: "eu"}), "eu"),
            (json!({}), ""),
        ] {
            let json = json!({"metadata": {"name": "node1", "labels": labels}});
            let made = node(&serde_json::from_value(json).unwrap());
            assert_eq!(made, Some(Fact::Node(locality.to_owned())), "{labels}");
        }
        let bare = serde_json::from_value(json!({"metadata": {"name": "node1"}})).unwrap();
        assert_eq!(node(&bare), Some(Fact::Node(String::new())));
    }
}
