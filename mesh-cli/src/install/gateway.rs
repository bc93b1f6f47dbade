//! Gateway API's own kinds: installed where they are missing, or older than ours, and never taken back.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use mesh_common::resource::MESH_GROUP;
use serde_json::Value;

use super::chart::documents;
use super::manifest::Manifest;
use crate::failure::Failure;
use crate::kubernetes::Cluster;

const ANNOTATION_VERSION: &str = "gateway.networking.k8s.io/bundle-version";
const RELEASES: &str = "https://github.com/kubernetes-sigs/gateway-api/releases/download";
const ANNOTATION_CHANNEL: &str = "gateway.networking.k8s.io/channel";

/// Of the standard channel.
const CRDS: [(&str, &str); 8] = [
    ("gatewayclasses", include_str!("../../../deploy/gateway-api/gateway.networking.k8s.io_gatewayclasses.yaml")),
    ("gateways", include_str!("../../../deploy/gateway-api/gateway.networking.k8s.io_gateways.yaml")),
    ("grpcroutes", include_str!("../../../deploy/gateway-api/gateway.networking.k8s.io_grpcroutes.yaml")),
    ("httproutes", include_str!("../../../deploy/gateway-api/gateway.networking.k8s.io_httproutes.yaml")),
    ("referencegrants", include_str!("../../../deploy/gateway-api/gateway.networking.k8s.io_referencegrants.yaml")),
    ("tcproutes", include_str!("../../../deploy/gateway-api/gateway.networking.k8s.io_tcproutes.yaml")),
    ("tlsroutes", include_str!("../../../deploy/gateway-api/gateway.networking.k8s.io_tlsroutes.yaml")),
    ("udproutes", include_str!("../../../deploy/gateway-api/gateway.networking.k8s.io_udproutes.yaml")),
];

pub fn crds() -> Result<Vec<Manifest>, Failure> {
    CRDS.iter().map(|(name, text)| Ok(documents(name, text)?.remove(0))).collect()
}

/// The version of ours.
pub fn version() -> Result<String, Failure> {
    let first = documents(CRDS[0].0, CRDS[0].1)?.remove(0);
    Ok(annotation(&first.0, ANNOTATION_VERSION).unwrap_or_default().to_owned())
}

/// What is to be done about one of the kinds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    Install,
    Upgrade {
        from: String,
    },
    /// It is there, and as new as ours or newer, or somebody else's.
    Leave {
        version: String,
    },
}

pub async fn plan(manifest: &Manifest, cluster: &Cluster) -> Result<Plan, Failure> {
    let live = manifest.live(cluster).await?;
    let live = live.map(|object| serde_json::to_value(object).unwrap_or_default());
    Ok(decide(live.as_ref(), annotation(&manifest.0, ANNOTATION_VERSION).unwrap_or_default()))
}

fn decide(live: Option<&Value>, ours: &str) -> Plan {
    let Some(live) = live else { return Plan::Install };
    let version = annotation(live, ANNOTATION_VERSION).unwrap_or_default().to_owned();
    // The experimental channel has fields that the standard one would drop from objects; its owner upgrades it.
    let standard = annotation(live, ANNOTATION_CHANNEL) == Some("standard");
    match (parse(&version), parse(ours)) {
        (Some(theirs), Some(ours)) if theirs < ours && standard => Plan::Upgrade { from: version },
        _ => Plan::Leave { version },
    }
}

/// What to do about a definition that is not as the mesh needs it. One that `meshctl` would not renew is somebody else's, who
/// may have more than the mesh to do with it.
pub fn how_to_renew(live: &CustomResourceDefinition) -> String {
    if live.spec.group == MESH_GROUP {
        return "`meshctl install` puts back what belongs to the mesh".to_owned();
    }
    let ours = version().unwrap_or_default();
    let json = serde_json::to_value(live).unwrap_or_default();
    if let Plan::Upgrade { from } = decide(Some(&json), &ours) {
        return format!("`meshctl upgrade` renews Gateway API from {from} to {ours}");
    }
    let version = annotation(&json, ANNOTATION_VERSION).unwrap_or_default();
    if parse(version) > parse(&ours) {
        return format!(
            "it is of Gateway API {version}, which is newer than the mesh's {ours}: take a newer version of the mesh"
        );
    }
    let channel = annotation(&json, ANNOTATION_CHANNEL).filter(|it| *it == "experimental").unwrap_or("standard");
    format!(
        "somebody else looks after this definition, so meshctl leaves it alone. Have it renewed in the way in which it was \
         installed, or try what `kubectl apply --server-side --dry-run=server -f {RELEASES}/{ours}/{channel}-install.yaml` says, \
         and then do it"
    )
}

fn annotation<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object["metadata"]["annotations"][name].as_str()
}

/// `v1.6.3`; a pre-release counts as its release.
fn parse(version: &str) -> Option<[u32; 3]> {
    let (version, _) = version.split_once('-').unwrap_or((version, ""));
    let mut parts = version.strip_prefix('v')?.split('.').map(|part| part.parse().ok());
    Some([parts.next()??, parts.next()??, parts.next()??])
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use mesh_common::resource::GATEWAY_GROUP;
    use serde_json::json;

    use super::*;

    fn live(version: &str, channel: &str) -> Value {
        json!({"metadata": {"annotations": {ANNOTATION_VERSION: version, ANNOTATION_CHANNEL: channel}}})
    }

    #[test]
    fn what_is_newer_or_of_another_kind_is_left_alone() {
        let leave = |version: &str| Plan::Leave { version: version.to_owned() };
        assert_eq!(decide(None, "v1.6.3"), Plan::Install);
        assert_eq!(decide(Some(&live("v1.6.3", "standard")), "v1.6.3"), leave("v1.6.3"));
        assert_eq!(decide(Some(&live("v1.10.0", "standard")), "v1.6.3"), leave("v1.10.0"));
        assert_eq!(decide(Some(&live("v1.5.9", "experimental")), "v1.6.3"), leave("v1.5.9"));
        assert_eq!(decide(Some(&json!({"metadata": {}})), "v1.6.3"), leave(""));
        let upgrade = Plan::Upgrade { from: "v1.5.9".to_owned() };
        assert_eq!(decide(Some(&live("v1.5.9", "standard")), "v1.6.3"), upgrade);
    }

    #[test]
    fn what_is_ours_to_renew_is_renewed_by_meshctl() {
        let told = |version: &str, channel: &str| {
            let mut json = live(version, channel);
            json["spec"] = json!({"group": GATEWAY_GROUP, "names": {"kind": "TCPRoute", "plural": "tcproutes"},
                "scope": "Namespaced", "versions": []});
            how_to_renew(&serde_json::from_value(json).unwrap())
        };
        let ours = version().unwrap();
        assert_eq!(told("v1.0.0", "standard"), format!("`meshctl upgrade` renews Gateway API from v1.0.0 to {ours}"));
        for (version, channel) in [("v1.0.0", "experimental"), (ours.as_str(), "standard"), ("", "standard")] {
            let told = told(version, channel);
            assert!(told.contains(&format!("/{ours}/{channel}-install.yaml")), "{told}");
            assert!(!told.contains("meshctl upgrade"), "{told}");
        }
        assert!(told("v99.0.0", "standard").contains("take a newer version of the mesh"));
    }

    #[test]
    fn all_are_of_one_version_and_of_the_standard_channel() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/gateway-api");
        let files = std::fs::read_dir(folder).unwrap();
        let yaml = files.filter(|f| f.as_ref().unwrap().path().extension().is_some_and(|e| e == "yaml"));
        assert_eq!(yaml.count(), CRDS.len());
        let version = version().unwrap();
        assert!(parse(&version).is_some());
        for crd in crds().unwrap() {
            assert_eq!(annotation(&crd.0, ANNOTATION_VERSION), Some(version.as_str()), "{crd}");
            assert_eq!(annotation(&crd.0, ANNOTATION_CHANNEL), Some("standard"), "{crd}");
        }
    }
}
