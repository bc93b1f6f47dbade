//! Who has changed what, for people: one row for each change. Pure.

use serde_json::Value;

use crate::output::{Cell, Table};

/// Differences that a row has room for.
const SHOWN: usize = 3;
/// Characters of a value.
const LENGTH: usize = 40;

pub fn table() -> Table {
    Table::new(&["TIME", "WHO", "CHANGE", "OBJECT", "REVISION", "WHAT"])
}

/// The cells of a record's row.
pub fn row(record: &Value) -> Vec<Cell> {
    let text = |pointer: &str| record.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let verb = match text("/verb") {
        "delete" => Cell::warn("delete"),
        verb => verb.into(),
    };
    let revision = record["revision"].as_u64().map(|revision| revision.to_string()).unwrap_or_default();
    let object = format!("{}/{}", text("/object/namespace"), text("/object/name"));
    vec![
        text("/time").split('.').next().unwrap_or_default().trim_end_matches('Z').replace('T', " ").into(),
        who(&record["who"]).into(),
        verb,
        format!("{} {object}", text("/object/kind")).into(),
        revision.into(),
        what(record).into(),
    ]
}

fn who(who: &Value) -> String {
    let named = |field: &str| who[field].as_str().map(str::to_owned);
    match who["kind"].as_str() {
        Some("user") => named("name")
            .or_else(|| who["uid"].as_u64().map(|uid| format!("uid {uid}")))
            .unwrap_or_else(|| "a user".to_owned()),
        Some(kind) => named("name").unwrap_or_else(|| kind.to_owned()),
        None => String::new(),
    }
}

fn what(record: &Value) -> String {
    if record["verb"] != "update" {
        return String::new();
    }
    let mut found = Vec::new();
    differences("", &record["before"], &record["after"], &mut found);
    if record["hidden"] == true {
        found.push("something that is not shown".to_owned());
    }
    let more = found.len().saturating_sub(SHOWN);
    found.truncate(SHOWN);
    let text = found.join(", ");
    if more > 0 { format!("{text}, and {more} more") } else { text }
}

/// `spec.rules[0].backendRefs[0].weight: 90 -> 50`
fn differences(at: &str, before: &Value, after: &Value, found: &mut Vec<String>) {
    match (before, after) {
        _ if before == after => {}
        (Value::Object(old), Value::Object(new)) => {
            let names = old.keys().chain(new.keys().filter(|name| !old.contains_key(*name)));
            for name in names {
                let at = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                differences(&at, &before[name], &after[name], found);
            }
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (i, (before, after)) in old.iter().zip(new).enumerate() {
                differences(&format!("{at}[{i}]"), before, after, found);
            }
        }
        _ => found.push(format!("{at}: {} -> {}", short(before), short(after))),
    }
}

fn short(value: &Value) -> String {
    let text = match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if text.chars().count() <= LENGTH { text } else { text.chars().take(LENGTH - 3).collect::<String>() + "..." }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(record: &Value) -> Vec<String> {
        row(record).into_iter().map(|cell| cell.text).collect()
    }

    #[test]
    fn a_change_is_shown_by_what_is_different() {
        let route =
            |weight: u32, more: Value| json!({"spec": {"rules": [{"weight": weight, "more": more}], "name": "x"}});
        let record = json!({
            "time": "2030-01-02T03:04:05.678Z", "who": {"kind": "user", "name": "ada", "uid": 1000}, "verb": "update",
            "object": {"kind": "HTTPRoute", "namespace": "shop", "name": "reviews"}, "revision": 12,
            "before": route(90, json!([1])), "after": route(50, json!(["x".repeat(50)])),
        });
        let what = format!("spec.rules[0].more[0]: 1 -> {}..., spec.rules[0].weight: 90 -> 50", "x".repeat(37));
        assert_eq!(texts(&record), ["2030-01-02 03:04:05", "ada", "update", "HTTPRoute shop/reviews", "12", &what]);
    }

    #[test]
    fn what_there_is_no_room_for_is_counted() {
        let many = |value: u32| json!({"a": value, "b": value, "c": [value, value], "d": {"e": value}});
        let record = json!({"verb": "update", "before": many(1), "after": many(2), "hidden": true});
        assert_eq!(what(&record), "a: 1 -> 2, b: 1 -> 2, c[0]: 1 -> 2, and 3 more");
        let longer = json!({"verb": "update", "before": {"a": [1]}, "after": {"a": [1, 2], "b": true}});
        assert_eq!(what(&longer), "a: [1] -> [1,2], b: - -> true");
    }

    #[test]
    fn whoever_it_was_has_a_name() {
        assert_eq!(who(&json!({"kind": "mesh-control"})), "mesh-control");
        assert_eq!(who(&json!({"kind": "user", "uid": 7})), "uid 7");
        assert_eq!(who(&json!({"kind": "user"})), "a user");
        assert_eq!(who(&json!({"kind": "workload", "name": "spiffe://a/ns/b/sa/c"})), "spiffe://a/ns/b/sa/c");
        let gone =
            json!({"verb": "delete", "before": {}, "object": {"kind": "Service", "namespace": "shop", "name": "a"}});
        assert_eq!(texts(&gone)[2..4], ["delete", "Service shop/a"]);
    }
}
