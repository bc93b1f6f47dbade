//! What is written of one change.

use jiff::Timestamp;
use mesh_common::resource::{Key, Object};
use mesh_common::secrets::{LAST_APPLIED, redacted};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::who::Who;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub time: Timestamp,
    pub who: Who,
    pub verb: Verb,
    pub object: Subject,
    /// That holds the change; none of what has no revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Value>,
    /// Something has changed that is not shown.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hidden: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    Create,
    Update,
    Delete,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    pub kind: String,
    pub namespace: String,
    pub name: String,
}

impl Record {
    /// Of an object that is another now.
    pub fn of(
        time: Timestamp,
        who: &Who,
        revision: u64,
        before: Option<&Object>,
        after: Option<&Object>,
    ) -> Option<Self> {
        let verb = match (before, after) {
            (None, Some(_)) => Verb::Create,
            (Some(_), Some(_)) => Verb::Update,
            (Some(_), None) => Verb::Delete,
            (None, None) => return None,
        };
        let key = after.or(before)?.key();
        let [before, after] = [before, after].map(|object| object.map(meant));
        let [shown_before, shown_after] = [&before, &after].map(|json| json.as_ref().map(redacted));
        let hidden = verb == Verb::Update && before != after && shown_before == shown_after;
        let (who, object, revision) = (who.clone(), Subject::from(&key), Some(revision));
        Some(Self { time, who, verb, object, revision, before: shown_before, after: shown_after, hidden })
    }

    /// Of a thing that has no revision: one that is made, or goes, with what is to be known of it.
    pub fn of_thing(time: Timestamp, who: &Who, verb: Verb, object: Subject, facts: Value) -> Self {
        let (before, after) = match verb {
            Verb::Delete => (Some(facts), None),
            Verb::Create | Verb::Update => (None, Some(facts)),
        };
        Self { time, who: who.clone(), verb, object, revision: None, before, after, hidden: false }
    }

    pub(super) fn line(&self) -> String {
        // Text and numbers, with keys that are text.
        let mut line = serde_json::to_string(self).unwrap_or_default();
        line.push('\n');
        line
    }
}

impl From<&Key> for Subject {
    fn from(key: &Key) -> Self {
        Self { kind: key.kind.to_string(), namespace: key.namespace.clone(), name: key.name.clone() }
    }
}

/// What somebody has written, without what the store gives to it.
fn meant(object: &Object) -> Value {
    let mut json = object.to_json();
    if let Some(metadata) = json.get_mut("metadata").and_then(Value::as_object_mut) {
        for given in ["resourceVersion", "generation", "creationTimestamp", "uid"] {
            metadata.remove(given);
        }
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            // Where it alone is another, nothing is that could be hidden.
            annotations.remove(LAST_APPLIED);
        }
    }
    json
}
