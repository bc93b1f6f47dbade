//! Where in an object the pods are.

use serde_json::Value;

/// A pod, or the template of pods, within an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// JSON pointer to the object that holds it; "" for the document itself, more within lists.
    pub object: String,
    /// Of that object, which need not say it itself in a list of one kind.
    pub kind: String,
    /// JSON pointer from the document on.
    pub pointer: String,
    /// `spec.template`, from the object on; "" for a Pod.
    pub path: String,
}

/// All templates of a document, which may be a list of objects. Kinds that make no pods have none.
pub fn templates(document: &Value) -> Vec<Template> {
    let mut found = Vec::new();
    collect(document, String::new(), ("", ""), &mut found);
    found
}

/// `of`: the version and the kind that a list says its items are of.
fn collect(value: &Value, at: String, of: (&str, &str), found: &mut Vec<Template>) {
    let text = |field: &str| value.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
    let (version, kind) = (text("apiVersion").unwrap_or(of.0), text("kind").unwrap_or(of.1));
    if let (Some(of), Some(Value::Array(items))) = (kind.strip_suffix("List"), value.get("items")) {
        // `DeploymentList`; a `List` is of anything.
        let of = if of.is_empty() { ("", "") } else { (version, of) };
        for (index, item) in items.iter().enumerate() {
            collect(item, format!("{at}/items/{index}"), of, found);
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
    found.push(Template { object: at, kind: kind.to_owned(), pointer, path: path.to_owned() });
}
