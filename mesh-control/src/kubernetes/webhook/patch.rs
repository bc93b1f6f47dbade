//! The difference of two objects as a JSON Patch (RFC 6902): members of objects one by one, lists and all else as a whole.

use serde_json::{Map, Value, json};

pub(super) fn diff(before: &Value, after: &Value) -> Vec<Value> {
    let mut operations = Vec::new();
    change(&mut operations, String::new(), before, after);
    operations
}

fn change(operations: &mut Vec<Value>, path: String, before: &Value, after: &Value) {
    match (before, after) {
        _ if before == after => {}
        (Value::Object(before), Value::Object(after)) => members(operations, &path, before, after),
        _ => operations.push(json!({ "op": "replace", "path": path, "value": after })),
    }
}

fn members(operations: &mut Vec<Value>, path: &str, before: &Map<String, Value>, after: &Map<String, Value>) {
    let at = |key: &str| format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"));
    for key in before.keys().filter(|key| !after.contains_key(*key)) {
        operations.push(json!({ "op": "remove", "path": at(key) }));
    }
    for (key, value) in after {
        match before.get(key) {
            Some(before) => change(operations, at(key), before, value),
            None => operations.push(json!({ "op": "add", "path": at(key), "value": value })),
        }
    }
}
