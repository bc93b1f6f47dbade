//! Keeps `deploy/crds` true: what the API server lets through is what can be read here, field by field. What may be in a
//! field is for the rules on both sides; this is for a field that only one of them knows, which the API server would drop
//! without a word, or which everybody here would refuse.

use std::collections::BTreeSet;

use mesh_common::resource::{Kind, MESH_GROUP, parse_yaml};
use serde_json::{Map, Value, json};

use crate::install::chart;

const UNKNOWN: &str = "nosuchfield";

#[test]
fn the_schemas_have_the_fields_that_can_be_read() {
    let mut seen = BTreeSet::new();
    for crd in chart::crds().unwrap() {
        let kind: Kind = crd.0["spec"]["names"]["kind"].as_str().map(|kind| Kind::parse(kind).unwrap()).unwrap();
        let versions = crd.0["spec"]["versions"].as_array().unwrap();
        assert_eq!(versions.len(), 1, "{kind}");
        let schema = &versions[0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        assert_eq!(differences(kind, schema), [""; 0], "{kind}");
        seen.insert(kind);
    }
    assert_eq!(seen, Kind::ALL.into_iter().filter(|kind| kind.group() == MESH_GROUP).collect());
}

#[test]
fn a_field_of_one_side_only_is_found() {
    let crds = chart::crds().unwrap();
    let fault = crds.iter().find(|crd| crd.0["spec"]["names"]["kind"] == "FaultInjection").unwrap();
    let schema = &fault.0["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    // At the top, in a list, and in a structure that has no fields.
    for place in
        ["/properties", "/properties/faults/items/properties", "/properties/faults/items/properties/abort/properties"]
    {
        let mut more = schema.clone();
        let fields = more.pointer_mut(place).unwrap().as_object_mut().unwrap();
        fields.insert("novel".to_owned(), json!({"type": "string"}));
        let found = differences(Kind::FaultInjection, &more);
        assert!(
            found.iter().any(|text| text.contains("only the schema") && text.contains("novel")),
            "{place}: {found:?}"
        );
    }
    let mut less = schema.clone();
    less["properties"].as_object_mut().unwrap().remove("expiresAt");
    less.pointer_mut("/properties/faults/items/properties/match/properties").unwrap().as_object_mut().unwrap().clear();
    let found = differences(Kind::FaultInjection, &less);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().all(|text| text.contains("only the program")), "{found:?}");
}

/// One line for each structure whose fields are not the same on both sides.
fn differences(kind: Kind, schema: &Value) -> Vec<String> {
    let mut structures = Vec::new();
    walk(schema, String::new(), &mut structures);
    let compare = |(pointer, of_schema): &(String, BTreeSet<String>)| {
        let at = format!("{kind} spec{pointer}");
        let readable = match readable(kind, &sample(schema), pointer) {
            Ok(fields) => fields,
            Err(refused) => return Some(format!("{at}: cannot be read: {refused}")),
        };
        let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).cloned().collect::<Vec<_>>().join(", ");
        let (ours, theirs) = (only(&readable, of_schema), only(of_schema, &readable));
        match (ours.is_empty(), theirs.is_empty()) {
            (true, true) => None,
            (false, _) => Some(format!("{at}: only the program knows {ours}")),
            (true, false) => Some(format!("{at}: only the schema knows {theirs}")),
        }
    };
    structures.iter().filter_map(compare).collect()
}

/// All structures in what a schema describes, the first of each list: where they are in its sample, and their fields.
fn walk(schema: &Value, pointer: String, structures: &mut Vec<(String, BTreeSet<String>)>) {
    match schema["type"].as_str() {
        Some("array") => walk(&schema["items"], format!("{pointer}/0"), structures),
        // One whose keys are free has no fields.
        Some("object") if schema.get("additionalProperties").is_none() => {
            let fields = properties(schema);
            structures.push((pointer.clone(), fields.keys().cloned().collect()));
            for (name, schema) in fields {
                walk(&schema, format!("{pointer}/{name}"), structures);
            }
        }
        _ => {}
    }
}

fn properties(schema: &Value) -> Map<String, Value> {
    schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default()
}

/// Something of the right shape with every field there is.
fn sample(schema: &Value) -> Value {
    let text = |field: &str| schema.get(field).map(Value::to_string).unwrap_or_default();
    match schema["type"].as_str().unwrap() {
        "array" => json!([sample(&schema["items"])]),
        "object" => properties(schema).into_iter().map(|(name, schema)| (name, sample(&schema))).collect(),
        "boolean" => json!(true),
        "integer" | "number" => schema.get("minimum").cloned().unwrap_or(json!(1)),
        "string" if schema.get("enum").is_some() => schema["enum"][0].clone(),
        "string" if text("format").contains("date-time") => json!("2030-01-01T00:00:00Z"),
        "string" if text("pattern").contains("(h|m|s|ms)") => json!("1s"),
        "string" if text("pattern").contains("[KMGT]i") => json!("1Ki"),
        "string" if text("x-kubernetes-validations").contains("isIP") => json!("10.0.0.1"),
        "string" => json!("x"),
        other => panic!("no sample of {other}"),
    }
}

/// The fields that can be read in one structure, as the error about an unknown one tells them.
fn readable(kind: Kind, spec: &Value, pointer: &str) -> Result<BTreeSet<String>, String> {
    let mut spec = spec.clone();
    let structure = spec.pointer_mut(pointer).and_then(Value::as_object_mut).unwrap();
    structure.insert(UNKNOWN.to_owned(), json!(1));
    let object =
        json!({"apiVersion": kind.api_version(), "kind": kind.as_str(), "metadata": {"name": "default"}, "spec": spec});
    let errors = parse_yaml("test", &object.to_string()).expect_err("an unknown field is taken");
    let unknown = format!("unknown field `{UNKNOWN}`; ");
    let Some(told) = errors.iter().find_map(|error| error.message.strip_prefix(&unknown)) else {
        return Err(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "));
    };
    match told.strip_prefix("the fields here are ") {
        Some(fields) => Ok(fields.split(", ").map(|field| field.trim_matches('`').to_owned()).collect()),
        None if told == "there can be no fields here" => Ok(BTreeSet::new()),
        None => Err(told.to_owned()),
    }
}
