//! The `status` that an object should have. Pure.

use jiff::Timestamp;
use mesh_common::names::kubernetes::CONTROLLER;
use mesh_common::resource::{GATEWAY_GROUP, Kind};
use serde_json::{Map, Value, json};

use super::Standing;

/// What to write, or nothing if the object has it. `model` is the status that the model gives, without times.
pub(super) fn wanted(kind: Kind, standing: &Standing, model: &Value, now: Timestamp) -> Option<Value> {
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now).to_string();
    let (field, fresh) = match kind {
        // Neither has a status that is ours.
        Kind::Service | Kind::ReferenceGrant => return None,
        _ if kind.group() == GATEWAY_GROUP => ("parents", parents(standing, model, &now)),
        _ => {
            let given = list(model, "conditions");
            let given = if given.is_empty() { vec![accepted()] } else { given };
            ("conditions", conditions(given, standing, &list(&standing.status, "conditions"), &now))
        }
    };
    let fresh = Value::Array(fresh);
    let current = standing.status.get(field).cloned().unwrap_or_else(|| json!([]));
    (fresh != current).then(|| json!({field: fresh}))
}

fn parents(standing: &Standing, model: &Value, now: &str) -> Vec<Value> {
    let current = list(&standing.status, "parents");
    let ours = |parent: &Value| parent["controllerName"] == CONTROLLER;
    // What is said of the route as a whole holds for each of its parents.
    let whole = list(model, "conditions");
    let known: Vec<(Value, Vec<Value>)> = if standing.refused.is_empty() {
        list(model, "parents").iter().map(|parent| (parent["parentRef"].clone(), list(parent, "conditions"))).collect()
    } else {
        standing.parents.as_array().into_iter().flatten().map(|parent| (parent.clone(), Vec::new())).collect()
    };
    let mut fresh = Vec::new();
    for (reference, of_parent) in known {
        let before = current.iter().find(|parent| ours(parent) && parent["parentRef"] == reference);
        let before = before.map(|parent| list(parent, "conditions")).unwrap_or_default();
        let given = of_parent.into_iter().chain(whole.iter().cloned()).collect();
        fresh.push(json!({
            "parentRef": reference,
            "controllerName": CONTROLLER,
            "conditions": conditions(given, standing, &before, now),
        }));
    }
    // Each where it was: two controllers that put themselves last would write for ever.
    let mut parents = Vec::new();
    for parent in &current {
        if !ours(parent) {
            parents.push(parent.clone());
        } else if let Some(at) = fresh.iter().position(|fresh| fresh["parentRef"] == parent["parentRef"]) {
            parents.push(fresh.remove(at));
        }
    }
    parents.extend(fresh);
    parents
}

/// One condition of each type: what is not so goes before what is, and messages are joined.
fn conditions(mut given: Vec<Value>, standing: &Standing, before: &[Value], now: &str) -> Vec<Value> {
    if !standing.refused.is_empty() {
        let message = format!("not taken, what was before stays in force: {}", standing.refused.join("; "));
        given.insert(
            0,
            json!({"type": "Accepted", "status": "False", "reason": "UnsupportedValue", "message": message}),
        );
    }
    if !standing.left_out.is_empty() {
        let message = format!("not known to this version and without effect: {}", standing.left_out.join(", "));
        given.push(json!({"type": "FullyApplied", "status": "False", "reason": "UnknownField", "message": message}));
    }
    let mut made: Vec<Map<String, Value>> = Vec::new();
    for condition in given {
        let Value::Object(condition) = condition else { continue };
        match made.iter_mut().find(|known| known["type"] == condition["type"]) {
            None => made.push(condition),
            Some(known) if known["status"] == "True" => *known = condition,
            Some(known) if condition["status"] == "False" => {
                let text =
                    |condition: &Map<String, Value>| condition["message"].as_str().unwrap_or_default().to_owned();
                let (said, more) = (text(known), text(&condition));
                if !said.split("; ").any(|part| part == more) {
                    known.insert("message".to_owned(), format!("{said}; {more}").into());
                }
            }
            Some(_) => {}
        }
    }
    for condition in &mut made {
        let same = |old: &&Value| old["type"] == condition["type"] && old["status"] == condition["status"];
        let since = before.iter().find(same).and_then(|old| old["lastTransitionTime"].as_str()).unwrap_or(now);
        condition.insert("lastTransitionTime".to_owned(), since.into());
        condition.insert("observedGeneration".to_owned(), standing.generation.unwrap_or_default().into());
        // The API server takes no longer ones.
        if let Some(Value::String(message)) = condition.get_mut("message") {
            let end = message.char_indices().nth(4096).map_or(message.len(), |(at, _)| at);
            message.truncate(end);
        }
    }
    made.into_iter().map(Value::Object).collect()
}

fn accepted() -> Value {
    json!({"type": "Accepted", "status": "True", "reason": "Accepted", "message": ""})
}

pub(super) fn list(value: &Value, field: &str) -> Vec<Value> {
    value.get(field).and_then(Value::as_array).cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_route_keeps_what_other_controllers_say() {
        let parent = json!({"group": "", "kind": "Service", "name": "web"});
        let model = json!({
            "parents": [{"parentRef": parent, "controllerName": CONTROLLER, "conditions": [
                accepted(), {"type": "ResolvedRefs", "status": "True", "reason": "ResolvedRefs", "message": ""}]}],
            "conditions": [{"type": "FullyApplied", "status": "False", "reason": "HostnamesIgnored", "message": "no"}]
        });
        let other = json!({"parentRef": {"name": "in"}, "controllerName": "example.com/other", "conditions": []});
        let mut standing = Standing { generation: Some(2), status: json!({"parents": [other]}), ..Standing::default() };
        let first = wanted(Kind::HttpRoute, &standing, &model, at("2030-01-01T00:00:00.5Z")).unwrap();
        assert_eq!(first["parents"][0], other);
        let ours = &first["parents"][1]["conditions"];
        assert_eq!(ours.as_array().unwrap().len(), 3);
        assert_eq!(
            (&ours[0]["observedGeneration"], &ours[0]["lastTransitionTime"]),
            (&json!(2), &json!("2030-01-01T00:00:00Z"))
        );

        // Nor is it when another controller has put itself last, and ours are not more than there are parents.
        let mut reversed = list(&first, "parents");
        reversed.reverse();
        reversed.push(reversed[0].clone());
        standing.status = json!({"parents": reversed});
        let once = wanted(Kind::HttpRoute, &standing, &model, at("2030-01-02T00:00:00Z")).unwrap();
        reversed.pop();
        assert_eq!(once, json!({"parents": reversed}));
        standing.status = once;
        assert_eq!(wanted(Kind::HttpRoute, &standing, &model, at("2030-01-02T00:00:00Z")), None);

        // Written once, it is not written again; a new generation keeps the time.
        standing.status = first;
        assert_eq!(wanted(Kind::HttpRoute, &standing, &model, at("2030-01-02T00:00:00Z")), None);
        standing.generation = Some(3);
        let second = wanted(Kind::HttpRoute, &standing, &model, at("2030-01-02T00:00:00Z")).unwrap();
        let condition = &second["parents"][1]["conditions"][0];
        assert_eq!(
            (&condition["observedGeneration"], &condition["lastTransitionTime"]),
            (&json!(3), &json!("2030-01-01T00:00:00Z"))
        );
    }

    #[test]
    fn what_is_refused_or_left_out_is_said() {
        let parents = json!([{"group": "", "kind": "Service", "name": "web"}]);
        let refused = Standing { refused: vec!["no such filter".to_owned()], parents, ..Standing::default() };
        let status = wanted(Kind::HttpRoute, &refused, &json!({}), at("2030-01-01T00:00:00Z")).unwrap();
        let condition = &status["parents"][0]["conditions"][0];
        assert_eq!((&condition["status"], &condition["reason"]), (&json!("False"), &json!("UnsupportedValue")));

        let left_out = Standing { left_out: vec!["spec.novel".to_owned()], ..Standing::default() };
        let status = wanted(Kind::TrafficPolicy, &left_out, &json!({}), at("2030-01-01T00:00:00Z")).unwrap();
        assert_eq!(status["conditions"][0]["type"], "Accepted");
        assert_eq!(status["conditions"][1]["reason"], "UnknownField");
        assert_eq!(wanted(Kind::ReferenceGrant, &left_out, &json!({}), at("2030-01-01T00:00:00Z")), None);
    }

    #[test]
    fn there_is_one_condition_of_each_type() {
        let no = |message: &str| json!({"type": "Accepted", "status": "False", "reason": "TargetNotFound", "message": message});
        let model = json!({"conditions": [accepted(), no("a"), accepted(), no("b"), no("b")]});
        let status = wanted(Kind::FaultInjection, &Standing::default(), &model, at("2030-01-01T00:00:00Z")).unwrap();
        assert_eq!(status["conditions"].as_array().unwrap().len(), 1);
        assert_eq!(status["conditions"][0]["message"], "a; b");
    }
}
