//! What the CNI plugin of a node reads in a pod's annotations.

use serde_json::{Map, Value, json};

use super::InjectError;
use super::options::Annotations;

/// Who writes the interception rules, if it is no init container. Set by the injection only.
pub const ANNOTATION_INTERCEPTION: &str = "meshctl.dev/interception";
pub(super) const INTERCEPTION_CNI: &str = "cni";

/// What the pod wants to be left alone, besides what always is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exclusions {
    pub inbound_ports: Vec<u16>,
    pub outbound_ports: Vec<u16>,
    /// Ranges like `10.0.0.0/8`.
    pub outbound_cidrs: Vec<String>,
}

/// Whether the plugin has to write rules for a pod with these annotations, and which.
pub fn by_cni(annotations: &Map<String, Value>) -> Result<Option<Exclusions>, InjectError> {
    let pod = json!({ "metadata": { "annotations": annotations } });
    let annotations = Annotations::new(&pod)?;
    match annotations.get("interception") {
        None => Ok(None),
        Some(INTERCEPTION_CNI) => Ok(Some(Exclusions {
            inbound_ports: annotations.ports("exclude-inbound-ports")?,
            outbound_ports: annotations.ports("exclude-outbound-ports")?,
            outbound_cidrs: annotations.cidrs("exclude-outbound-cidrs")?,
        })),
        Some(other) => {
            let path = format!("metadata.annotations[{ANNOTATION_INTERCEPTION}]");
            Err(InjectError::new(path, format!("{other:?} is not known; the injection writes {INTERCEPTION_CNI:?}")))
        }
    }
}
