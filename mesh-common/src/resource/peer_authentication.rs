use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::TargetRef;

/// Whether workloads take plaintext. Without `targetRefs` it holds for its namespace; in the mesh's own namespace, for all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PeerAuthenticationSpec {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub target_refs: Vec<TargetRef>,
    /// Default: what the wider scope says, and `STRICT` in the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<PeerMode>,
    /// By port number of the workload.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, PeerMode>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum PeerMode {
    /// Only mutual TLS with a certificate of the mesh.
    #[default]
    Strict,
    /// Mutual TLS, and everything else as it comes.
    Permissive,
}
