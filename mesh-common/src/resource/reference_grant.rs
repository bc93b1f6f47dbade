use serde::{Deserialize, Serialize};

use super::{BackendObjectReference, Key, ReferenceGrant};

/// Lets objects of other namespaces refer to some of this one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ReferenceGrantSpec {
    pub from: Vec<ReferenceGrantFrom>,
    pub to: Vec<ReferenceGrantTo>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ReferenceGrantFrom {
    pub group: String,
    pub kind: String,
    pub namespace: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ReferenceGrantTo {
    /// "" is the core group, that of Services.
    #[serde(default)]
    pub group: String,
    pub kind: String,
    /// Default: all of that kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl ReferenceGrant {
    /// Whether it lets that object refer to a backend in the grant's own namespace.
    pub fn allows(&self, from: &Key, to: &BackendObjectReference) -> bool {
        let group = to.group.as_deref().unwrap_or_default();
        let kind = to.kind.as_deref().unwrap_or("Service");
        let from = self.spec.from.iter().any(|allowed| {
            allowed.group == from.kind.group()
                && allowed.kind == from.kind.as_str()
                && allowed.namespace == from.namespace
        });
        from && self.spec.to.iter().any(|allowed| {
            allowed.group == group && allowed.kind == kind && allowed.name.as_ref().is_none_or(|name| *name == to.name)
        })
    }
}
