//! What was changed in a pod, kept in the pod itself, and the way back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::Digest;

use super::interception::{ANNOTATION_INTERCEPTION, INTERCEPTION_CNI};
use super::options::Options;
use super::{CONTAINER_INIT, InjectConfig, InjectError, containers, list, object};
use crate::names::kubernetes::{CONTAINER_PROXY, LABEL_PROXY};
use crate::names::port;

pub const ANNOTATION_INJECTED: &str = "meshctl.dev/injected";
const PATH: &str = "metadata.annotations[meshctl.dev/injected]";

/// A value as it was: one, or none where there was none.
type Before = Vec<Value>;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Record {
    /// Version of who injected.
    version: String,
    /// It was the webhook that injected, and not `meshctl inject`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    webhook: bool,
    /// What the paths of the pod's hooks end with: who cannot read the pod cannot call them.
    #[serde(skip_serializing_if = "String::is_empty")]
    key: String,
    /// By path, what was there instead of a list or an object with something in it.
    empty: BTreeMap<String, Before>,
    /// Annotations that were added besides this one.
    annotations: Vec<String>,
    /// By container and field, what was there.
    containers: BTreeMap<String, BTreeMap<String, Before>>,
}

impl Record {
    /// `key` is nobody's to guess.
    pub(super) fn by_webhook(key: &str) -> Self {
        Self { webhook: true, key: key.to_owned(), ..Self::default() }
    }

    /// The same pod has the same key each time: else what is injected would differ from what was, and be rolled out again.
    pub(super) fn by_hand(pod: &Value) -> Self {
        let digest = sha2::Sha256::digest(pod.to_string());
        let key = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        Self { key, ..Self::default() }
    }

    pub(super) fn key(&self) -> &str {
        &self.key
    }

    pub(super) fn without_key(&mut self) {
        self.key.clear();
    }

    pub(super) fn is_by_webhook(&self) -> bool {
        self.webhook
    }

    /// Whether this version has injected.
    pub(super) fn is_ours(&self) -> bool {
        self.version == env!("CARGO_PKG_VERSION")
    }

    /// `None`: the pod is not injected.
    pub(super) fn read(pod: &Value) -> Result<Option<Self>, InjectError> {
        let annotation = object(pod, "metadata.annotations")?.and_then(|all| all.get(ANNOTATION_INJECTED));
        let Some(text) = annotation else { return Ok(None) };
        let record = text.as_str().and_then(|text| serde_json::from_str(text).ok());
        record.map(Some).ok_or_else(|| {
            let reason =
                "this annotation is written by the injection, and was changed since: remove it, and what was injected";
            InjectError::new(PATH, reason)
        })
    }

    pub(super) fn container(&mut self, name: &str, field: &str, before: Option<Value>) {
        let fields = self.containers.entry(name.to_owned()).or_default();
        fields.insert(field.to_owned(), before.into_iter().collect());
    }

    /// The list `spec.initContainers` or `spec.volumes`, made if it is not there.
    pub(super) fn list<'a>(&mut self, pod: &'a mut Value, field: &str) -> Result<&'a mut Vec<Value>, InjectError> {
        let path = format!("spec.{field}");
        list(pod, &path)?;
        let Some(Value::Object(spec)) = pod.get_mut("spec") else {
            return Err(InjectError::new("spec", "a pod needs a spec"));
        };
        if spec.get(field).and_then(Value::as_array).is_none_or(Vec::is_empty) {
            let before = spec.insert(field.to_owned(), Value::Array(Vec::new()));
            self.empty.entry(path.clone()).or_insert_with(|| before.into_iter().collect());
        }
        let items = spec.get_mut(field).and_then(Value::as_array_mut);
        items.ok_or_else(|| InjectError::new(path, "this must be a list"))
    }

    /// Marks the pod as injected. Nothing may be changed after this.
    pub(super) fn write(
        mut self,
        pod: &mut Value,
        options: &Options,
        config: &InjectConfig,
    ) -> Result<(), InjectError> {
        env!("CARGO_PKG_VERSION").clone_into(&mut self.version);
        self.map(pod, "labels")?.insert(LABEL_PROXY.to_owned(), "true".into());
        let scrape =
            [("scrape", "true".to_owned()), ("port", port::PROXY_METRICS.to_string()), ("path", "/metrics".to_owned())];
        let annotations = self.map(pod, "annotations")?;
        let mut added = Vec::new();
        for (name, value) in scrape.into_iter().filter(|_| options.scrape) {
            let key = format!("prometheus.io/{name}");
            annotations.insert(key.clone(), value.into());
            added.push(key);
        }
        if config.cni {
            annotations.insert(ANNOTATION_INTERCEPTION.to_owned(), INTERCEPTION_CNI.into());
            added.push(ANNOTATION_INTERCEPTION.to_owned());
        }
        self.annotations = added;
        let text = serde_json::to_string(&self).map_err(|error| InjectError::new("metadata", error.to_string()))?;
        self.map(pod, "annotations")?.insert(ANNOTATION_INJECTED.to_owned(), text.into());
        Ok(())
    }

    /// `metadata.labels` or `metadata.annotations`, made if it is not there.
    fn map<'a>(&mut self, pod: &'a mut Value, field: &str) -> Result<&'a mut Map<String, Value>, InjectError> {
        let path = format!("metadata.{field}");
        object(pod, &path)?;
        let Value::Object(root) = pod else { return Err(InjectError::new("", "a pod must be an object")) };
        let metadata = self.inner(root, "metadata", "metadata")?;
        self.inner(metadata, field, &path)
    }

    fn inner<'a>(
        &mut self,
        outer: &'a mut Map<String, Value>,
        field: &str,
        path: &str,
    ) -> Result<&'a mut Map<String, Value>, InjectError> {
        if outer.get(field).and_then(Value::as_object).is_none_or(Map::is_empty) {
            let before = outer.insert(field.to_owned(), Value::Object(Map::new()));
            self.empty.entry(path.to_owned()).or_insert_with(|| before.into_iter().collect());
        }
        let fields = outer.get_mut(field).and_then(Value::as_object_mut);
        fields.ok_or_else(|| InjectError::new(path, "this must be an object"))
    }
}

/// Whether the webhook wrote the annotation, so that the pod's template has no proxy.
pub fn is_by_webhook(annotation: &str) -> bool {
    serde_json::from_str(annotation).is_ok_and(|record: Record| record.is_by_webhook())
}

/// Takes the proxy out of the pod. A pod without one is returned as it is.
pub fn uninject(pod: &Value) -> Result<Value, InjectError> {
    let Some(record) = Record::read(pod)? else { return Ok(pod.clone()) };
    let named =
        |item: &Value, names: &[&str]| item.get("name").and_then(Value::as_str).is_some_and(|it| names.contains(&it));
    if !list(pod, "spec.initContainers")?.iter().any(|container| named(container, &[CONTAINER_PROXY])) {
        let reason = format!(
            "this annotation says that the pod is injected, but there is no container {CONTAINER_PROXY}: remove the annotation"
        );
        return Err(InjectError::new(PATH, reason));
    }

    let mut pod = pod.clone();
    for (field, names) in
        [("initContainers", &[CONTAINER_INIT, CONTAINER_PROXY][..]), ("volumes", &containers::VOLUMES)]
    {
        if let Some(Value::Array(items)) = pod.pointer_mut(&format!("/spec/{field}")) {
            items.retain(|item| !named(item, names));
        }
    }
    for (name, fields) in &record.containers {
        for field in ["containers", "initContainers"] {
            let Some(Value::Array(all)) = pod.pointer_mut(&format!("/spec/{field}")) else { continue };
            let found = all.iter_mut().filter(|container| named(container, &[name])).filter_map(Value::as_object_mut);
            found.for_each(|container| fields.iter().for_each(|(field, before)| restore(container, field, before)));
        }
    }
    if let Some(Value::Object(labels)) = pod.pointer_mut("/metadata/labels") {
        labels.remove(LABEL_PROXY);
    }
    if let Some(Value::Object(annotations)) = pod.pointer_mut("/metadata/annotations") {
        annotations.remove(ANNOTATION_INJECTED);
        record.annotations.iter().for_each(|key| drop(annotations.remove(key)));
    }
    // What is within `metadata` before `metadata` itself.
    for (path, before) in record.empty.iter().rev() {
        let (parent, field) = path.rsplit_once('.').unwrap_or(("", path));
        let parent = if parent.is_empty() { Some(&mut pod) } else { pod.get_mut(parent) };
        if let Some(parent) = parent.and_then(Value::as_object_mut)
            && parent.get(field).is_some_and(is_empty)
        {
            restore(parent, field, before);
        }
    }
    Ok(pod)
}

fn restore(object: &mut Map<String, Value>, field: &str, before: &[Value]) {
    match before.first() {
        Some(value) => drop(object.insert(field.to_owned(), value.clone())),
        None => drop(object.remove(field)),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}
