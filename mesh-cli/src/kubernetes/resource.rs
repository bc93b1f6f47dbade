//! Which path of the API server each kind is at.

use kube::core::{ApiResource, GroupVersionKind};
use mesh_common::resource::Kind;

/// Kinds whose plural is not what English says.
const PLURALS: [(&str, &str); 2] = [("NetworkPolicy", "networkpolicies"), ("ReferenceGrant", "referencegrants")];

/// Of an object as it is written in a manifest.
pub fn of(api_version: &str, kind: &str) -> ApiResource {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let gvk = GroupVersionKind::gvk(group, version, kind);
    match (Kind::ALL.into_iter().find(|k| k.as_str() == kind), PLURALS.iter().find(|(name, _)| *name == kind)) {
        (Some(kind), _) => ApiResource::from_gvk_with_plural(&gvk, kind.plural()),
        (None, Some((_, plural))) => ApiResource::from_gvk_with_plural(&gvk, plural),
        (None, None) => ApiResource::from_gvk(&gvk),
    }
}

/// Of an object of the mesh, in the version that all API servers with these definitions know.
pub fn of_kind(kind: Kind) -> ApiResource {
    of(kind.served_version(), kind.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plurals_are_those_of_the_api_server() {
        let path = |api_version: &str, kind: &str| of(api_version, kind).plural;
        assert_eq!(path("meshctl.dev/v1alpha1", "TrafficPolicy"), "trafficpolicies");
        assert_eq!(path("policy/v1", "PodDisruptionBudget"), "poddisruptionbudgets");
        assert_eq!(path("rbac.authorization.k8s.io/v1", "ClusterRole"), "clusterroles");
        let webhooks = "admissionregistration.k8s.io/v1";
        assert_eq!(path(webhooks, "MutatingWebhookConfiguration"), "mutatingwebhookconfigurations");
        assert_eq!(path("apiextensions.k8s.io/v1", "CustomResourceDefinition"), "customresourcedefinitions");
        assert_eq!(path("v1", "Service"), "services");
        assert_eq!(of_kind(Kind::TcpRoute).version, "v1");
    }
}
