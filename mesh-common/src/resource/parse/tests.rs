use proptest::prelude::*;

use super::super::{Kind, Object, parse_yaml};

const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: reviews
  namespace: shop
spec:
  parentRefs:
  - {group: '', kind: Service, name: reviews, port: 9080}
  rules:
  - backendRefs:
    - {name: reviews-v1, port: 9080, weight: 90}
    - {name: reviews-v2, port: 9080, weight: 10}
";

fn messages(text: &str) -> Vec<String> {
    parse_yaml("f.yaml", text).unwrap_err().iter().map(ToString::to_string).collect()
}

#[test]
fn documents_lists_and_json() {
    let list = "---\n# nothing here\n---\napiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: {name: a, creationTimestamp: null}\n  spec: {ports: [{port: 80}]}\n  status: {loadBalancer: {}}\n- {apiVersion: v1, kind: Service, metadata: {name: b, managedFields: [{manager: x}], ownerReferences: []}, spec: {ports: [{port: 80, targetPort: web}]}}\n";
    let objects = parse_yaml("f.yaml", &format!("{ROUTE}{list}")).unwrap();
    let keys: Vec<_> = objects.iter().map(|o| o.key().to_string()).collect();
    assert_eq!(keys, ["HTTPRoute shop/reviews", "Service default/a", "Service default/b"]);
    let json = serde_json::to_string_pretty(&objects[0].to_json()).unwrap();
    assert_eq!(parse_yaml("f.json", &json).unwrap(), objects[..1]);
    assert_eq!(parse_yaml("empty", "").unwrap(), []);
}

#[test]
fn a_key_that_is_there_twice_is_told_in_words_for_who_writes_the_file() {
    assert_eq!(
        messages("kind: Service\nkind: Service\n"),
        ["f.yaml:2:1: this is not YAML that can be read: duplicate mapping key `kind` is not allowed here"]
    );
}

#[test]
fn what_a_newer_schema_knows_is_left_out_and_told() {
    let route = parse_yaml("f.yaml", ROUTE).unwrap().remove(0);
    let mut json = route.to_json();
    json["spec"]["rules"][0]["backendRefs"][1]["quality"] = serde_json::json!({"of": ["service"]});
    json["spec"]["useDefaultGateways"] = "None".into();
    json["metadata"]["annotation"] = "x".into();
    let (read, mut left_out) = Object::from_newer_json(&json.to_string()).unwrap();
    assert_eq!(read, route);
    left_out.sort();
    assert_eq!(left_out, ["metadata.annotation", "spec.rules[0].backendRefs[1].quality", "spec.useDefaultGateways"]);
    assert!(Object::from_json(&json.to_string()).is_err());
    // What is known must be as it is known.
    json["spec"]["rules"][0]["filters"] = serde_json::json!([{"type": "ExternalAuth"}]);
    let error = Object::from_newer_json(&json.to_string()).unwrap_err().to_string();
    assert!(error.contains("spec.rules[0].filters[0].type: `ExternalAuth` is not one of"), "{error}");
}

#[test]
fn several_errors_at_once() {
    let text = ROUTE
        .replace("  rules:", "  hostname: a\n  rules:")
        .replace("weight: 90", "weight: much")
        .replace("port: 9080, weight: 10", "prot: 9080, weight: 10");
    assert_eq!(
        messages(&text),
        [
            "f.yaml:9:3: HTTPRoute shop/reviews: spec.hostname: unknown field `hostname`; did you mean `hostnames`?",
            "f.yaml:12:38: HTTPRoute shop/reviews: spec.rules[0].backendRefs[0].weight: this is the string \"much\", but must be a whole number from 0 to 4294967295",
            "f.yaml:13:26: HTTPRoute shop/reviews: spec.rules[0].backendRefs[1].prot: unknown field `prot`; did you mean `port`?",
        ]
    );
}

#[test]
fn what_is_missing_or_of_the_wrong_kind() {
    for (text, expected) in [
        ("a: [", "f.yaml:1:"),
        ("just text", "f.yaml:1:1: an object with apiVersion, kind and metadata is expected here"),
        ("kind: Service", "f.yaml:1:1: kind: this is required"),
        (
            "apiVersion: v1\nkind: Servcie\nmetadata: {name: a}",
            "f.yaml:2:7: kind: `Servcie` is not a kind known here; did you mean `Service`?",
        ),
        (
            "apiVersion: v2\nkind: Service\nmetadata: {name: a}",
            "f.yaml:1:13: apiVersion: Service is known as v1, not v2",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: 5}\nspec: {}",
            "f.yaml:3:12: Service: metadata.name: this is the integer `5`, but must be a string: put it in quotes",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {}\nspec: {ports: [{port: 1}]}",
            "f.yaml:3:1: Service: metadata: the field `name` is required here",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 70000}]}",
            "f.yaml:4:17: Service a: spec.ports[0].port: this is the integer `70000`",
        ),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: a, name: b}", "f.yaml:3:"),
    ] {
        let all = messages(text);
        let expected = expected.replace("kind: this is required", "apiVersion: this is required");
        assert!(all[0].starts_with(&expected), "{text}\n{all:#?}");
    }
}

#[test]
fn bombs_are_refused() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for i in 1..12 {
        let refs = vec![format!("*a{}", i - 1); 10].join(", ");
        bomb.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
    }
    assert_eq!(messages(&bomb).len(), 1);
    assert_eq!(messages(&"[".repeat(100_000)).len(), 1);
    assert_eq!(messages(&"a: ".repeat(100_000)).len(), 1);
    assert!(messages(&" ".repeat(17 << 20))[0].contains("split them"));
}

#[test]
fn yaml_is_written_in_the_usual_order_and_read_back() {
    let object = parse_yaml("f.yaml", ROUTE).unwrap().remove(0);
    let yaml = object.to_yaml();
    assert!(yaml.starts_with("apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n"), "{yaml}");
    assert_eq!(parse_yaml("again", &yaml).unwrap(), [object]);
}

proptest! {
    #[test]
    fn any_text_gives_objects_or_errors(text in "\\PC{0,200}") {
        let _ = parse_yaml("f.yaml", &text);
    }

    #[test]
    fn any_label_survives(value in "[ -~éß\\n\\t]{0,40}") {
        let mut object = parse_yaml("f.yaml", ROUTE).unwrap().remove(0);
        object.metadata_mut().annotations.insert("a".to_owned(), value);
        prop_assert_eq!(&parse_yaml("again", &object.to_yaml()).unwrap()[0], &object);
        prop_assert_eq!(&Object::from_json(&object.to_json().to_string()).unwrap(), &object);
        prop_assert_eq!(object.kind(), Kind::HttpRoute);
    }
}
