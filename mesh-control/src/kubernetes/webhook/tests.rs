use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::*;

fn review(request: &Value) -> Vec<u8> {
    json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request })
        .to_string()
        .into_bytes()
}

fn response(request: &Value, decide: fn(&Value, &WebhookConfig) -> review::Decision) -> Value {
    let review = review::answer(&review(request), |request| decide(request, &WebhookConfig::default())).unwrap();
    assert_eq!(review["response"]["uid"], request["uid"]);
    review["response"].clone()
}

fn creation(pod: Value) -> Value {
    json!({ "uid": "1", "kind": { "group": "", "version": "v1", "kind": "Pod" }, "operation": "CREATE", "namespace": "shop", "object": pod })
}

fn pod() -> Value {
    json!({
        "metadata": { "annotations": { "a/b~c": "x" } },
        "spec": { "containers": [{ "name": "app", "readinessProbe": { "tcpSocket": { "port": 80 } } }] },
    })
}

/// Applies what the webhook's patches consist of.
fn patched(mut object: Value, patch: &[Value]) -> Value {
    for operation in patch {
        let (parent, key) = operation["path"].as_str().unwrap().rsplit_once('/').unwrap();
        let key = key.replace("~1", "/").replace("~0", "~");
        let parent = object.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        match operation["op"].as_str().unwrap() {
            "remove" => drop(parent.remove(&key).unwrap()),
            op => assert_eq!(parent.insert(key, operation["value"].clone()).is_some(), op == "replace"),
        }
    }
    object
}

#[test]
fn the_patch_makes_the_injected_pod() {
    let response = response(&creation(pod()), review::inject);
    assert_eq!((&response["allowed"], &response["patchType"]), (&json!(true), &json!("JSONPatch")));
    let patch = STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
    let patch: Vec<Value> = serde_json::from_slice(&patch).unwrap();
    let expected = mesh_common::inject::admit(&pod(), &InjectConfig::default(), "").unwrap().pod;
    assert_eq!(patched(pod(), &patch), expected);
    // Asked again, because others have changed something that is none of our business.
    let mut changed = expected.clone();
    changed["metadata"]["annotations"]["other"] = "x".into();
    let again = super::tests::response(&creation(changed), review::inject);
    assert_eq!((&again["allowed"], again.get("patch")), (&json!(true), None));
    // And back.
    assert_eq!(patched(expected.clone(), &patch::diff(&expected, &pod())), pod());
}

#[test]
fn a_container_that_others_add_after_us_has_its_probes_in_the_proxy() {
    let mut pod = mesh_common::inject::admit(&pod(), &InjectConfig::default(), "").unwrap().pod;
    let agent = json!({ "name": "agent", "livenessProbe": { "httpGet": { "path": "/agent", "port": 8200 } } });
    pod["spec"]["containers"].as_array_mut().unwrap().push(agent);
    let response = response(&creation(pod.clone()), review::inject);
    let patch = STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
    let patch: Vec<Value> = serde_json::from_slice(&patch).unwrap();
    let again = patched(pod, &patch);
    assert_eq!(
        again["spec"]["containers"][1]["livenessProbe"]["httpGet"],
        json!({ "path": "/app-health/agent/livez", "port": 15021 })
    );
    assert!(again["spec"]["initContainers"][1]["env"].to_string().contains("/agent"));
}

#[test]
fn a_pod_that_cannot_be_in_the_mesh_is_refused_and_others_are_left_alone() {
    let mut bad = pod();
    bad["metadata"]["annotations"]["meshctl.dev/log-level"] = "loud".into();
    let refused = response(&creation(bad), review::inject);
    assert_eq!(refused["allowed"], false);
    let message = refused["status"]["message"].as_str().unwrap();
    assert!(
        message.contains("metadata.annotations[meshctl.dev/log-level]: \"loud\"")
            && message.contains("mesh-injection: disabled"),
        "{message}"
    );

    let mut forged = pod();
    forged["metadata"]["annotations"]["meshctl.dev/injected"] = "{}".into();
    assert_eq!(response(&creation(forged), review::inject)["allowed"], false);

    let mut out = pod();
    out["metadata"]["labels"]["mesh-injection"] = "disabled".into();
    let out = response(&creation(out), review::inject);
    assert_eq!((&out["allowed"], &out["warnings"], out.get("patch")), (&json!(true), &json!([]), None));
    let mut host = pod();
    host["spec"]["hostNetwork"] = true.into();
    assert!(response(&creation(host), review::inject)["warnings"][0].as_str().unwrap().contains("hostNetwork"));
    let mut command = pod();
    command["spec"]["containers"][0]["lifecycle"] = json!({ "preStop": { "exec": { "command": ["x"] } } });
    assert!(response(&creation(command), review::inject)["warnings"][0].as_str().unwrap().contains("preStop"));
    let mut update = creation(pod());
    update["operation"] = "UPDATE".into();
    assert!(response(&update, review::inject).get("patch").is_none());
}

#[test]
fn objects_of_the_mesh_are_checked_and_routes_only_warned_about() {
    let request = |group: &str, kind: &str, spec: Value| {
        let version = if group == "meshctl.dev" { "v1alpha1" } else { "v1" };
        json!({ "uid": "2", "operation": "UPDATE", "kind": { "group": group, "version": version, "kind": kind },
            "object": { "apiVersion": format!("{group}/{version}"), "kind": kind, "metadata": { "name": "x", "namespace": "shop" }, "spec": spec } })
    };
    let fault = |spec| response(&request("meshctl.dev", "FaultInjection", spec), review::validate);
    let good = json!({ "targetRefs": [{ "kind": "Service", "name": "a" }], "faults": [{ "percent": 1, "abort": { "httpStatus": 503 } }] });
    assert_eq!(fault(good.clone())["allowed"], true, "{}", fault(good.clone()));
    let mut wrong = good;
    wrong["faultz"] = json!([]);
    wrong["faults"][0]["percent"] = json!(200);
    let refused = fault(wrong);
    assert_eq!(refused["allowed"], false);
    let message = refused["status"]["message"].as_str().unwrap();
    assert!(message.contains("spec.faultz: unknown field"), "{message}");

    let route = |spec| response(&request("gateway.networking.k8s.io", "HTTPRoute", spec), review::validate);
    let odd = |kind: &str| {
        json!({ "parentRefs": [{ "group": "", "kind": kind, "name": "a" }], "newField": 1,
        "rules": [{ "backendRefs": [{ "name": "a" }] }] })
    };
    let warned = route(odd("Service"));
    assert_eq!(warned["allowed"], true);
    assert!(warned["warnings"].to_string().contains("spec.rules[0].backendRefs[0].port"), "{warned}");
    // Another controller's.
    assert_eq!(route(odd("Gateway"))["warnings"], json!([]));
    let mut deleted = request("meshctl.dev", "FaultInjection", json!({ "x": 1 }));
    deleted["operation"] = "DELETE".into();
    assert_eq!(response(&deleted, review::validate)["allowed"], true);
}

#[test]
fn what_is_no_review_is_refused() {
    let refusal = |body: &[u8]| review::answer(body, |_| panic!("nothing to decide")).unwrap_err();
    assert!(refusal(b"{").contains("not JSON"));
    assert!(
        refusal(br#"{"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview"}"#)
            .contains("admission.k8s.io/v1")
    );
    assert!(refusal(&review(&json!(null))).contains("no request"));
    assert!(refusal(&review(&json!({}))).contains("no uid"));
}
