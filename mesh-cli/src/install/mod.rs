//! What `meshctl install`, `upgrade` and `uninstall` do: the chart as it lies in `deploy/`, rendered here, and written to the
//! cluster by server-side apply.

pub mod chart;
pub mod gateway;
pub mod injected;
pub mod manifest;
pub mod proxies;
pub mod prune;
pub mod remove;
pub mod rollout;
pub mod values;

/// As which client the API server knows our fields.
pub const FIELD_MANAGER: &str = "meshctl";
/// The namespace of the control plane.
pub const NAMESPACE: &str = mesh_common::resource::MESH_NAMESPACE;
/// The name of the control plane's Deployment, and of most that belongs to it.
pub const CONTROL: &str = "mesh-control";
/// Where the plugin for nodes is, if there is one.
pub const PLUGIN_NAMESPACE: &str = "kube-system";
/// Of the namespace: the settings that the mesh was installed with.
pub const ANNOTATION_VALUES: &str = "meshctl.dev/values";
/// Of the Deployment: the version that is installed.
pub const LABEL_VERSION: &str = "app.kubernetes.io/version";
/// Of everything in the chart: `mesh`.
pub const LABEL_PART_OF: &str = "app.kubernetes.io/part-of";
/// What the control plane's pods are selected by.
pub const SELECTOR: &str = "app.kubernetes.io/name=mesh-control";
