use kube::api::DynamicObject;
use mesh_common::names::kubernetes::CONTROLLER;
use mesh_common::resource::{Kind, Object, validate};
use serde_json::Value;

use super::{Fact, Written};

/// An object of Gateway API or of our own group. Routes are taken with those parents that are Services; nothing is made of
/// a route that has none, which is another controller's. `api_version` is the one in which it was read.
pub(in crate::kubernetes) fn object(kind: Kind, api_version: &'static str, given: &DynamicObject) -> Option<Fact> {
    let mut json = serde_json::to_value(given).ok()?;
    json["apiVersion"] = kind.api_version().into();
    json["kind"] = kind.as_str().into();
    let status = json.get("status").cloned().unwrap_or(Value::Null);
    let mut ours = Value::Null;
    if let Some(parents) = json.pointer_mut("/spec/parentRefs").and_then(Value::as_array_mut) {
        parents.retain(is_service);
        if parents.is_empty() {
            let (uid, generation) = (given.metadata.uid.clone(), given.metadata.generation);
            return is_in(&status).then_some(Fact::Left { api_version, uid, generation, status });
        }
        ours = Value::Array(parents.clone());
    }
    let refused = |reasons| Fact::Refused {
        api_version,
        reasons,
        uid: given.metadata.uid.clone(),
        generation: given.metadata.generation,
        status: status.clone(),
        parents: ours,
    };
    Some(match Object::from_newer_json(&json.to_string()) {
        Err(error) => refused(vec![error.to_string()]),
        // Without the field that is not known, a policy may let in whom it was to keep out.
        Ok((Object::AuthorizationPolicy(_) | Object::RequestAuthentication(_), left_out)) if !left_out.is_empty() => {
            refused(vec![format!("{} is not known to this version of the mesh", left_out.join(", "))])
        }
        Ok((object, left_out)) => {
            let errors = validate(&object).into_iter().filter(|error| !for_the_model(&error.path));
            let reasons: Vec<String> = errors.map(|error| error.to_string()).collect();
            if reasons.is_empty() {
                Fact::Object(Written { object, api_version, status, left_out })
            } else {
                refused(reasons)
            }
        }
    })
}

/// Whether we have said something about a route.
fn is_in(status: &Value) -> bool {
    let parents = status.get("parents").and_then(Value::as_array);
    parents.into_iter().flatten().any(|parent| parent["controllerName"] == CONTROLLER)
}

fn is_service(parent: &Value) -> bool {
    let text = |field: &str| parent.get(field).and_then(Value::as_str);
    text("kind") == Some("Service") && matches!(text("group"), Some("" | "core"))
}

/// What is wrong with a backend makes that backend unusable, and not the route.
fn for_the_model(path: &str) -> bool {
    path.contains(".backendRef") && (path.ends_with(".kind") || path.ends_with(".port"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn route(parents: Value, rule: Value) -> Option<Fact> {
        let json = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": "r", "namespace": "shop", "generation": 3, "managedFields": [{"manager": "kubectl"}]},
            "spec": {"parentRefs": parents, "rules": [rule]},
            "status": {"parents": []}
        });
        object(Kind::HttpRoute, "gateway.networking.k8s.io/v1", &serde_json::from_value(json).unwrap())
    }

    #[test]
    fn routes_of_services_are_taken_and_others_left() {
        let service = json!({"group": "", "kind": "Service", "name": "web"});
        let gateway = json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "in"});
        let rule = json!({"backendRefs": [{"group": "x", "kind": "ServiceImport", "name": "web"}], "novel": 1});
        assert_eq!(route(json!([gateway]), rule.clone()), None);
        let Some(Fact::Object(written)) = route(json!([gateway, service]), rule) else { panic!() };
        let Object::HttpRoute(taken) = &written.object else { panic!() };
        assert_eq!((taken.spec.parent_refs.len(), taken.metadata.generation), (1, Some(3)));
        assert_eq!(written.left_out, ["spec.rules[0].novel"]);
        assert_eq!(written.status, json!({"parents": []}));

        let Some(Fact::Refused { reasons, .. }) =
            route(json!([service]), json!({"filters": [{"type": "ExternalAuth"}]}))
        else {
            panic!()
        };
        assert!(reasons[0].contains("`ExternalAuth` is not one of"), "{reasons:?}");
        let regex = json!({"matches": [{"path": {"type": "RegularExpression", "value": "("}}]});
        assert!(matches!(route(json!([service]), regex), Some(Fact::Refused { .. })));
    }
}
