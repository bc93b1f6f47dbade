//! Where in an object the pods are.

use serde_json::Value;

/// A pod, or the template of pods, within an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// JSON pointer to the object that holds it; "" for the document itself, more within lists.
    pub object: String,
    /// JSON pointer from the document on.
    pub pointer: String,
    /// `spec.template`, from the object on; "" for a Pod.
    pub path: String,
}

/// All templates of a document, which may be a list of objects. Kinds that make no pods have none.
pub fn templates(document: &Value) -> Vec<Template> {
    let mut found = Vec::new();
    collect(document, String::new(), &mut found);
    found
}

fn collect(value: &Value, at: String, found: &mut Vec<Template>) {
    let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
    let (version, kind) = (text("apiVersion"), text("kind"));
    if let (true, Some(Value::Array(items))) = (kind.ends_with("List"), value.get("items")) {
        for (index, item) in items.iter().enumerate() {
            collect(item, format!("{at}/items/{index}"), found);
        }
        return;
    }
    let group = version.split_once('/').map_or("", |(group, _)| group);
    let path = match (group, kind) {
        ("", "Pod") => "",
        ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        | ("batch", "Job")
        | ("", "ReplicationController") => "spec.template",
        ("", "PodTemplate") => "template",
        ("batch", "CronJob") => "spec.jobTemplate.spec.template",
        _ => return,
    };
    let steps = path.split('.').filter(|step| !step.is_empty());
    let pointer = steps.fold(at.clone(), |pointer, step| format!("{pointer}/{step}"));
    found.push(Template { object: at, pointer, path: path.to_owned() });
}
