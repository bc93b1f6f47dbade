//! Which path of the API server each kind is at.

use std::collections::{BTreeMap, BTreeSet};

use kube::Client;
use kube::core::{ApiResource, GroupVersionKind};
use mesh_common::resource::{GATEWAY_GROUP, Kind};

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

/// Of an object of the mesh, in the newest version that is known here.
pub fn newest(kind: Kind) -> ApiResource {
    of(kind.api_versions()[0], kind.as_str())
}

/// Gateway API's kinds, each in the newest version of those that are known here and served there. Mostly one question answers
/// that. What cannot be asked is left out: whoever needs it meets the reason.
pub async fn served(client: &Client) -> BTreeMap<Kind, ApiResource> {
    let mut wanted: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| kind.group() == GATEWAY_GROUP).collect();
    let mut served = BTreeMap::new();
    let longest = wanted.iter().map(|kind| kind.api_versions().len()).max().unwrap_or_default();
    for age in 0..longest {
        let versions: BTreeSet<&str> = wanted.iter().filter_map(|kind| kind.api_versions().get(age)).copied().collect();
        for version in versions {
            let Ok(there) = client.list_api_group_resources(version).await else { continue };
            wanted.retain(|kind| {
                let found = kind.api_versions().get(age) == Some(&version)
                    && there.resources.iter().any(|resource| resource.name == kind.plural());
                if found {
                    served.insert(*kind, of(version, kind.as_str()));
                }
                !found
            });
        }
    }
    served
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
        assert_eq!(newest(Kind::TcpRoute).version, "v1");
    }
}
