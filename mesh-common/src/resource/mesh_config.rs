use serde::{Deserialize, Serialize};

use super::Retries;

/// Settings of the whole mesh. There is one, `default` in `mesh-system`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct MeshConfigSpec {
    /// Set when the mesh is made and fixed from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_domain: Option<String>,
    /// What holds where no TrafficPolicy says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<Retries>,
}
