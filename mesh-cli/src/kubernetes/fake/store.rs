//! Objects with versions, preconditions and owners of their fields: as much of the API server's own rules as decides what
//! meshctl does. Lists within objects are fields as a whole.

use std::collections::BTreeMap;

use http::Method;
use mesh_common::resource::{Key, Kind};
use serde_json::{Value, json};

use super::{Asked, status};

type Fields = BTreeMap<String, Value>;

#[derive(Default)]
pub struct Store {
    version: u64,
    /// By plural, namespace and name.
    objects: BTreeMap<(String, String, String), Stored>,
}

#[derive(Clone, Default, PartialEq)]
struct Stored {
    json: Value,
    owners: Vec<Owner>,
}

#[derive(Clone, PartialEq)]
struct Owner {
    manager: String,
    applies: bool,
    fields: Fields,
}

impl Store {
    /// What somebody writes by other means, as this program.
    pub fn put(&mut self, manager: &str, yaml: &str) {
        for object in mesh_common::resource::parse_yaml("test", yaml).unwrap() {
            let key = object.key();
            let json = object.to_json();
            let before = self.objects.get(&place(&key)).cloned().unwrap_or_default();
            self.keep(place(&key), replaced(&before, json, manager));
        }
    }

    /// The same of a kind that is not the mesh's own.
    pub fn put_other(&mut self, plural: &str, json: Value) {
        let text = |field: &str| json["metadata"][field].as_str().unwrap_or_default().to_owned();
        let place = (plural.to_owned(), text("namespace"), text("name"));
        self.keep(place, Stored { json, owners: Vec::new() });
    }

    pub fn remove(&mut self, kind: Kind, namespace: &str, name: &str) {
        self.version += 1;
        self.objects.remove(&place(&Key::new(kind, namespace, name)));
    }

    pub fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<Value> {
        self.objects.get(&place(&Key::new(kind, namespace, name))).map(|stored| stored.json.clone())
    }

    /// Takes the next version, as any change of anything in the cluster does.
    pub fn pass(&mut self) {
        self.version += 1;
    }

    pub fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn answer(&mut self, asked: &Asked, body: Value) -> Value {
        let place = (asked.plural.clone(), asked.namespace.clone(), asked.name.clone());
        let missing = || {
            status(
                404,
                &json!({"reason": "NotFound", "message": format!("{} {:?} not found", asked.plural, asked.name)}),
            )
        };
        let before = self.objects.get(&place).cloned();
        let result = match (&asked.method, before) {
            (&Method::GET, _) if asked.name.is_empty() => return self.list(asked),
            (&Method::GET, before) => return before.map_or_else(missing, |stored| stored.json),
            (&Method::PATCH, before) => applied(&before.unwrap_or_default(), body, asked),
            (_, None) => return missing(),
            (&Method::PUT, Some(before)) => {
                match body["metadata"]["resourceVersion"] == before.json["metadata"]["resourceVersion"] {
                    true => Ok(replaced(&before, body, asked.query.get("fieldManager").unwrap())),
                    false => Err(conflict(
                        asked,
                        "the object has been modified; please apply your changes to the latest version",
                    )),
                }
            }
            (_, Some(before)) => {
                let differs = ["uid", "resourceVersion"].into_iter().find(|field| {
                    let wanted = &body["preconditions"][*field];
                    !wanted.is_null() && *wanted != before.json["metadata"][*field]
                });
                if let Some(field) = differs {
                    return conflict(asked, &format!("the {field} in the precondition does not match"));
                }
                if !asked.dry_run {
                    self.version += 1;
                    self.objects.remove(&place);
                }
                return json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"});
            }
        };
        match result {
            Err(refusal) => refusal,
            Ok(stored) if asked.dry_run => stored.json,
            Ok(stored) => self.keep(place, stored),
        }
    }

    fn list(&self, asked: &Asked) -> Value {
        let name = asked.query.get("fieldSelector").and_then(|selector| selector.strip_prefix("metadata.name="));
        let fits = |(plural, namespace, of): &(String, String, String)| {
            *plural == asked.plural
                && (asked.namespace.is_empty() || asked.namespace == *namespace)
                && name.is_none_or(|name| name == of)
        };
        let items: Vec<&Value> =
            self.objects.iter().filter(|(place, _)| fits(place)).map(|(_, stored)| &stored.json).collect();
        json!({"kind": "List", "apiVersion": asked.api_version, "metadata": {"resourceVersion": self.version.to_string()}, "items": items})
    }

    fn keep(&mut self, place: (String, String, String), mut stored: Stored) -> Value {
        if self.objects.get(&place).is_none_or(|before| *before != stored) {
            self.version += 1;
            stored.json["metadata"]["resourceVersion"] = self.version.to_string().into();
            if stored.json["metadata"]["uid"].is_null() {
                stored.json["metadata"]["uid"] = format!("uid-{}", self.version).into();
            }
        }
        self.objects.entry(place).insert_entry(stored).get().json.clone()
    }
}

fn place(key: &Key) -> (String, String, String) {
    (key.kind.plural().to_owned(), key.namespace.clone(), key.name.clone())
}

fn conflict(asked: &Asked, why: &str) -> Value {
    let message = format!("Operation cannot be fulfilled on {} {:?}: {why}", asked.plural, asked.name);
    status(409, &json!({"reason": "Conflict", "message": message}))
}

/// Server-side apply.
fn applied(before: &Stored, body: Value, asked: &Asked) -> Result<Stored, Value> {
    let manager = asked.query.get("fieldManager").unwrap().as_str();
    let force = asked.query.get("force").is_some_and(|force| force == "true");
    let mut fields = Fields::new();
    leaves(&body, "", &mut fields);
    let ours = |owner: &Owner| owner.applies && owner.manager == manager;
    let mut causes = Vec::new();
    for owner in before.owners.iter().filter(|owner| !ours(owner)) {
        let taken =
            fields.iter().filter(|(path, value)| owner.fields.get(*path).is_some_and(|theirs| theirs != *value));
        let using = format!("conflict with {:?} using {}", owner.manager, asked.api_version);
        causes
            .extend(taken.map(|(path, _)| json!({"reason": "FieldManagerConflict", "message": using, "field": path})));
    }
    if !causes.is_empty() && !force {
        let told: Vec<String> = causes
            .iter()
            .map(|c| format!("{}: {}", c["message"].as_str().unwrap(), c["field"].as_str().unwrap()))
            .collect();
        let message = format!("Apply failed with {} conflicts: {}", causes.len(), told.join(", "));
        return Err(status(409, &json!({"reason": "Conflict", "message": message, "details": {"causes": causes}})));
    }
    let mut after = before.clone();
    for owner in &mut after.owners {
        owner.fields.retain(|path, theirs| fields.get(path).is_none_or(|value| value == theirs));
    }
    after.owners.retain(|owner| !ours(owner));
    merge(&mut after.json, body);
    after.owners.push(Owner { manager: manager.to_owned(), applies: true, fields });
    Ok(after)
}

/// An update: whoever changes a field owns it.
fn replaced(before: &Stored, body: Value, manager: &str) -> Stored {
    let (mut old, mut fields) = (Fields::new(), Fields::new());
    leaves(&before.json, "", &mut old);
    leaves(&body, "", &mut fields);
    fields.retain(|path, value| old.get(path) != Some(value));
    let mut after = Stored { json: body, owners: before.owners.clone() };
    for field in ["uid", "resourceVersion"] {
        after.json["metadata"][field] = before.json["metadata"][field].clone();
    }
    for owner in &mut after.owners {
        owner.fields.retain(|path, _| !fields.contains_key(path));
    }
    if !fields.is_empty() {
        after.owners.push(Owner { manager: manager.to_owned(), applies: false, fields });
    }
    after
}

/// Fields that have owners, by their paths.
fn leaves(value: &Value, path: &str, found: &mut Fields) {
    for (field, value) in value.as_object().into_iter().flatten() {
        let path = format!("{path}.{field}");
        let of_nobody = [
            "apiVersion",
            "kind",
            "metadata.name",
            "metadata.namespace",
            "metadata.uid",
            "metadata.resourceVersion",
            "status",
        ];
        match value {
            _ if of_nobody.iter().any(|it| path[1..] == **it) => {}
            Value::Object(_) => leaves(value, &path, found),
            _ => drop(found.insert(path, value.clone())),
        }
    }
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (field, value) in from {
                merge(into.entry(field).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}
