//! What is decided about one object. No I/O.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mesh_common::inject::{self, Admission, Skipped};
use mesh_common::names::kubernetes::LABEL_INJECTION;
use mesh_common::resource::{GATEWAY_GROUP, MESH_GROUP, Object, parse_yaml, validate as problems};
use serde_json::{Value, json};

use super::{WebhookConfig, patch};
use crate::store;

const API_VERSION: &str = "admission.k8s.io/v1";

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Decision {
    Allow { warnings: Vec<String> },
    Change { patch: Vec<Value>, warnings: Vec<String> },
    Deny { reason: String },
}

const ALLOW: Decision = Decision::Allow { warnings: Vec::new() };

/// The review with its answer, or why it is none.
pub(super) fn answer(body: &[u8], decide: impl FnOnce(&Value) -> Decision) -> Result<Value, String> {
    let review: Value = serde_json::from_slice(body).map_err(|error| format!("this is not JSON: {error}"))?;
    let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    if (text(&review, "apiVersion").as_str(), text(&review, "kind").as_str()) != (API_VERSION, "AdmissionReview") {
        return Err(format!("an AdmissionReview of {API_VERSION} is expected"));
    }
    let request = review.get("request").filter(|request| request.is_object()).ok_or("the review has no request")?;
    let uid = text(request, "uid");
    if uid.is_empty() {
        return Err("the request has no uid".to_owned());
    }
    let response = match decide(request) {
        Decision::Allow { warnings } => json!({ "uid": uid, "allowed": true, "warnings": warnings }),
        Decision::Change { patch, warnings } => json!({
            "uid": uid,
            "allowed": true,
            "warnings": warnings,
            "patchType": "JSONPatch",
            "patch": STANDARD.encode(Value::from(patch).to_string()),
        }),
        Decision::Deny { reason } => {
            json!({ "uid": uid, "allowed": false, "status": { "code": 422, "reason": "Invalid", "message": reason } })
        }
    };
    Ok(json!({ "apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response }))
}

/// Puts the proxy into a pod that is to be created, and adapts it when the API server asks again, because others have changed
/// the pod after us. Which namespaces are meshed is the API server's to know; the label of
/// the pod holds in any case.
pub(super) fn inject(request: &Value, config: &WebhookConfig) -> Decision {
    let is = |pointer: &str, text: &str| request.pointer(pointer).and_then(Value::as_str) == Some(text);
    if !is("/kind/kind", "Pod") || !is("/kind/group", "") || !is("/operation", "CREATE") {
        return ALLOW;
    }
    let Some(pod) = request.get("object").filter(|pod| pod.is_object()) else {
        return Decision::Deny { reason: "the request has no pod".to_owned() };
    };
    let Ok(key) = store::random_bytes::<16>().map(|bytes| bytes.map(|byte| format!("{byte:02x}")).concat()) else {
        return Decision::Deny { reason: "the system gives no random numbers".to_owned() };
    };
    match inject::admit(pod, &config.inject, &key) {
        Ok(Admission { pod: wanted, skipped }) => {
            let warnings = match skipped {
                None => inject::warnings(&wanted),
                Some(Skipped::OptedOut) => Vec::new(),
                Some(reason) => vec![format!("the pod is not in the mesh: {reason}")],
            };
            match patch::diff(pod, &wanted) {
                patch if patch.is_empty() => Decision::Allow { warnings },
                patch => Decision::Change { patch, warnings },
            }
        }
        Err(error) => {
            let out = format!("the label {LABEL_INJECTION}: disabled leaves the pod out of the mesh");
            Decision::Deny { reason: format!("the pod cannot be in the mesh: {error} ({out})") }
        }
    }
}

/// Refuses objects of the mesh's own kinds that it would not understand. A route is refused by nobody but its schema: it
/// may be for others as well, and what the mesh cannot do with it is said in its status; here it is a warning.
pub(super) fn validate(request: &Value, _config: &WebhookConfig) -> Decision {
    let deleted = request.get("operation").and_then(Value::as_str) == Some("DELETE");
    let Some(object) = request.get("object").filter(|object| object.is_object() && !deleted) else { return ALLOW };
    match request.pointer("/kind/group").and_then(Value::as_str) {
        Some(MESH_GROUP) => match parse_yaml("", &object.to_string()) {
            Ok(_) => ALLOW,
            Err(errors) => {
                let one = |error: &mesh_common::resource::ParseError| match error.path.as_str() {
                    "" => error.message.clone(),
                    path => format!("{path}: {}", error.message),
                };
                Decision::Deny { reason: errors.iter().map(one).collect::<Vec<_>>().join("; ") }
            }
        },
        Some(GATEWAY_GROUP) if for_services(object) => match Object::from_newer_json(&object.to_string()) {
            Ok((route, _)) => Decision::Allow { warnings: problems(&route).iter().map(ToString::to_string).collect() },
            Err(error) => Decision::Allow { warnings: vec![format!("the mesh cannot read this: {error}")] },
        },
        _ => ALLOW,
    }
}

/// Whether a route is for the mesh at all.
fn for_services(route: &Value) -> bool {
    let parents = route.pointer("/spec/parentRefs").and_then(Value::as_array);
    parents.into_iter().flatten().any(|parent| parent.get("kind").and_then(Value::as_str) == Some("Service"))
}
