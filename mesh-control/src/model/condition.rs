use mesh_common::names::kubernetes::CONTROLLER;
use mesh_common::resource::ParentReference;
use serde::Serialize;
use serde_json::{Value, json};

/// One thing that is so, or isn't, about an object: a Kubernetes condition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// `Accepted`, `ResolvedRefs`, ...
    #[serde(rename = "type")]
    pub condition_type: &'static str,
    #[serde(serialize_with = "as_text")]
    pub status: bool,
    pub reason: &'static str,
    pub message: String,
}

/// Kubernetes writes `"True"` and `"False"`.
fn as_text<S: serde::Serializer>(status: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(if *status { "True" } else { "False" })
}

impl Condition {
    pub(super) fn accepted() -> Self {
        Self { condition_type: "Accepted", status: true, reason: "Accepted", message: String::new() }
    }

    pub(super) fn not_accepted(reason: &'static str, message: impl Into<String>) -> Self {
        Self { condition_type: "Accepted", status: false, reason, message: message.into() }
    }

    pub(super) fn resolved() -> Self {
        Self { condition_type: "ResolvedRefs", status: true, reason: "ResolvedRefs", message: String::new() }
    }

    pub(super) fn unresolved(reason: &'static str, message: impl Into<String>) -> Self {
        Self { condition_type: "ResolvedRefs", status: false, reason, message: message.into() }
    }

    /// Part of the object has no effect.
    pub(super) fn ignored(reason: &'static str, message: impl Into<String>) -> Self {
        Self { condition_type: "FullyApplied", status: false, reason, message: message.into() }
    }

    pub fn is_problem(&self) -> bool {
        !self.status
    }
}

/// Everything that is to be said about one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Status {
    pub conditions: Vec<Condition>,
    /// Of a route, by its parents.
    pub parents: Vec<(ParentReference, Vec<Condition>)>,
}

impl Status {
    pub fn all(&self) -> impl Iterator<Item = &Condition> {
        self.conditions.iter().chain(self.parents.iter().flat_map(|(_, conditions)| conditions))
    }

    pub fn to_json(&self) -> Value {
        let mut status = serde_json::Map::new();
        if !self.conditions.is_empty() {
            status.insert("conditions".to_owned(), json!(self.conditions));
        }
        if !self.parents.is_empty() {
            let parent = |(parent, conditions): &(ParentReference, Vec<Condition>)| json!({"parentRef": parent, "controllerName": CONTROLLER, "conditions": conditions});
            status.insert("parents".to_owned(), self.parents.iter().map(parent).collect());
        }
        Value::Object(status)
    }
}
