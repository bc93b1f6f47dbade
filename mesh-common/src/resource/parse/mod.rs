//! Text to typed objects. As many errors as can be found are reported at once: what is wrong is taken out of the tree and
//! the rest is read again.

mod sentence;
mod tree;

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;

use super::{Kind, Object, Resource, validate};
use tree::{Node, Position, Value};

/// Larger inputs are refused unread.
const MAX_INPUT: usize = 16 << 20;
/// Twice of what an object needs; reading takes stack for each level.
const MAX_DEPTH: usize = 32;
/// More errors than this about one object help nobody.
const MAX_ERRORS: usize = 20;
/// An object of which more is unknown than this is not one that can be understood.
const MAX_LEFT_OUT: usize = 200;
/// Metadata that only an API server works with.
const DROPPED_METADATA: [&str; 7] = [
    "managedFields",
    "ownerReferences",
    "finalizers",
    "selfLink",
    "generateName",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
];

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParseError {
    /// File name, or "" for an object that did not come from a file.
    pub source: String,
    /// From 1; 0 if unknown.
    pub line: u64,
    pub column: u64,
    /// `HTTPRoute default/reviews`, or as much as is known of it.
    pub object: String,
    /// `spec.rules[0].matches`; "" for the whole document.
    pub path: String,
    pub message: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.source.is_empty(), self.line) {
            (false, 0) => write!(f, "{}: ", self.source)?,
            (false, line) => write!(f, "{}:{line}:{}: ", self.source, self.column)?,
            (true, 0) => {}
            (true, line) => write!(f, "line {line}, column {}: ", self.column)?,
        }
        for part in [&self.object, &self.path] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for ParseError {}

/// An object, and where in its text it begins; both count from 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Located {
    pub object: Object,
    pub line: u64,
    pub column: u64,
}

/// Reads and validates every object of a YAML stream: several documents, `List`s, JSON. All of them are good, or the
/// errors are returned.
pub fn parse_yaml(source_name: &str, text: &str) -> Result<Vec<Object>, Vec<ParseError>> {
    let located = parse_located(source_name, text)?;
    Ok(located.into_iter().map(|it| it.object).collect())
}

/// The same, with where each object is.
pub fn parse_located(source_name: &str, text: &str) -> Result<Vec<Located>, Vec<ParseError>> {
    let mut reader = Reader { source: source_name.to_owned(), ..Reader::default() };
    match documents(text) {
        Ok(nodes) => nodes.into_iter().for_each(|node| reader.document(node)),
        Err(error) => reader.errors.push(ParseError { source: source_name.to_owned(), ..error }),
    }
    if reader.errors.is_empty() { Ok(reader.objects) } else { Err(reader.errors) }
}

pub(super) fn from_json(text: &str) -> Result<Object, ParseError> {
    read_json(text, Reader { skip_validation: true, ..Reader::default() }).map(|(object, _)| object)
}

/// The object, and the paths of fields that are not known here and were left out.
pub(super) fn from_newer_json(text: &str) -> Result<(Object, Vec<String>), ParseError> {
    read_json(text, Reader { skip_validation: true, newer: true, ..Reader::default() })
}

fn read_json(text: &str, mut reader: Reader) -> Result<(Object, Vec<String>), ParseError> {
    if text.len() > MAX_INPUT {
        return Err(too_large(text.len()));
    }
    let value = serde_json::from_str(text).map_err(|e| ParseError {
        line: e.line() as u64,
        column: e.column() as u64,
        message: format!("this is not JSON: {e}"),
        ..ParseError::default()
    })?;
    reader.object(Node::from_json(value));
    match (reader.objects.pop(), reader.errors.into_iter().next()) {
        (_, Some(error)) => Err(error),
        (Some(located), None) => Ok((located.object, reader.left_out)),
        (None, None) => Err(ParseError { message: "there is no object here".to_owned(), ..ParseError::default() }),
    }
}

fn documents(text: &str) -> Result<Vec<Node>, ParseError> {
    if text.len() > MAX_INPUT {
        return Err(too_large(text.len()));
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_documents: 10_000,
            max_nodes: 2_000_000,
            max_events: 4_000_000,
            max_aliases: 1_000,
            max_anchors: 1_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 100_000,
        },
        strict_booleans: true,
        with_snippet: false,
    };
    serde_saphyr::from_multiple_with_options::<Node>(text, options).map_err(|error| {
        let position = error.location().map(Position::from).unwrap_or_default();
        ParseError {
            line: position.line,
            column: position.column,
            message: sentence::syntax(&error),
            ..ParseError::default()
        }
    })
}

fn too_large(length: usize) -> ParseError {
    ParseError {
        message: format!(
            "{} MiB are too many at once (at most {} MiB): split them into several files",
            length >> 20,
            MAX_INPUT >> 20
        ),
        ..ParseError::default()
    }
}

#[derive(Default)]
struct Reader {
    source: String,
    skip_validation: bool,
    /// Fields that are not known here are left out, for the sake of those that are.
    newer: bool,
    left_out: Vec<String>,
    objects: Vec<Located>,
    errors: Vec<ParseError>,
}

impl Reader {
    /// An object, or a `List` of them.
    fn document(&mut self, node: Node) {
        let kind = node.entry("kind").and_then(|e| e.node.as_str()).unwrap_or_default();
        if !kind.ends_with("List") {
            return self.object(node);
        }
        match node.entry("items").map(|e| &e.node.value) {
            Some(Value::List(items)) => {
                for item in items.clone() {
                    self.document(item.node);
                }
            }
            Some(Value::Null) | None => {}
            Some(_) => self.error("", node.at, "items", "this must be a list of objects"),
        }
    }

    fn object(&mut self, mut node: Node) {
        if !matches!(node.value, Value::Map(_)) {
            return self.error("", node.at, "", "an object with apiVersion, kind and metadata is expected here");
        }
        let Some(kind) = self.kind(&node) else { return };
        let Position { line, column } = node.at;
        node.remove("apiVersion");
        node.remove("kind");
        node.remove("status");
        if let Some(metadata) = node.entry_mut("metadata") {
            DROPPED_METADATA.iter().for_each(|key| metadata.node.remove(key));
        }
        let object = match kind {
            Kind::Service => self.typed(kind, node).map(Object::Service),
            Kind::HttpRoute => self.typed(kind, node).map(Object::HttpRoute),
            Kind::GrpcRoute => self.typed(kind, node).map(Object::GrpcRoute),
            Kind::TcpRoute => self.typed(kind, node).map(Object::TcpRoute),
            Kind::TlsRoute => self.typed(kind, node).map(Object::TlsRoute),
            Kind::UdpRoute => self.typed(kind, node).map(Object::UdpRoute),
            Kind::ReferenceGrant => self.typed(kind, node).map(Object::ReferenceGrant),
            Kind::TrafficPolicy => self.typed(kind, node).map(Object::TrafficPolicy),
            Kind::FaultInjection => self.typed(kind, node).map(Object::FaultInjection),
            Kind::DirectResponse => self.typed(kind, node).map(Object::DirectResponse),
            Kind::PeerAuthentication => self.typed(kind, node).map(Object::PeerAuthentication),
            Kind::RequestAuthentication => self.typed(kind, node).map(Object::RequestAuthentication),
            Kind::AuthorizationPolicy => self.typed(kind, node).map(Object::AuthorizationPolicy),
            Kind::Telemetry => self.typed(kind, node).map(Object::Telemetry),
            Kind::WorkloadEntry => self.typed(kind, node).map(Object::WorkloadEntry),
            Kind::MeshConfig => self.typed(kind, node).map(Object::MeshConfig),
        };
        self.objects.extend(object.map(|object| Located { object, line, column }));
    }

    fn kind(&mut self, node: &Node) -> Option<Kind> {
        let text = |key: &str| node.entry(key).and_then(|e| Some((e.node.as_str()?.to_owned(), e.node.at)));
        let (Some((version, version_at)), Some((kind, kind_at))) = (text("apiVersion"), text("kind")) else {
            let missing = if text("kind").is_none() { "kind" } else { "apiVersion" };
            self.error("", node.at, missing, "this is required, and must be a string");
            return None;
        };
        let Some(found) = Kind::ALL.into_iter().find(|k| k.as_str() == kind) else {
            self.error("", kind_at, "kind", &sentence::unknown_kind(&kind));
            return None;
        };
        if !found.api_versions().contains(&version.as_str()) {
            let message = format!("{kind} is known as {}, not {version}", found.api_versions().join(" or "));
            self.error("", version_at, "apiVersion", &message);
            return None;
        }
        Some(found)
    }

    fn typed<S>(&mut self, kind: Kind, mut node: Node) -> Option<Resource<S>>
    where
        Resource<S>: DeserializeOwned + Clone + Into<Object>,
    {
        let whole = node.clone();
        let label = label(kind, &node);
        let mut seen: Vec<String> = Vec::new();
        let tries = if self.newer { MAX_LEFT_OUT } else { MAX_ERRORS };
        for _ in 0..tries {
            let error = match serde_path_to_error::deserialize::<_, Resource<S>>(node.to_json()) {
                Ok(resource) if seen.is_empty() => return self.validated(&label, &whole, resource),
                Ok(_) => break,
                Err(error) => error,
            };
            let place = Place::find(&mut node, error.path());
            let message = error.inner().to_string();
            if self.newer && message.starts_with("unknown field ") && place.take_out(&mut node) {
                self.left_out.push(place.path);
                continue;
            }
            let field = sentence::missing_field(&message).map(|name| place.child(name));
            // A field that was taken out because its value is wrong isn't missing.
            let known = field.as_ref().is_some_and(|path| seen.contains(path));
            if !known {
                self.error(&label, place.at, &place.path, &sentence::shape(&message));
            }
            seen.push(place.path.clone());
            if !place.take_out(&mut node) {
                break;
            }
        }
        if self.errors.is_empty() {
            self.error(&label, whole.at, "", "too much of it is not known here");
        }
        None
    }

    fn validated<S>(&mut self, label: &str, whole: &Node, resource: Resource<S>) -> Option<Resource<S>>
    where
        Resource<S>: Clone + Into<Object>,
    {
        if self.skip_validation {
            return Some(resource);
        }
        let problems = validate(&resource.clone().into());
        for problem in &problems {
            self.error(label, locate(whole, &problem.path), &problem.path, &problem.message);
        }
        problems.is_empty().then_some(resource)
    }

    fn error(&mut self, object: &str, at: Position, path: &str, message: &str) {
        self.errors.push(ParseError {
            source: self.source.clone(),
            line: at.line,
            column: at.column,
            object: object.to_owned(),
            path: path.to_owned(),
            message: message.to_owned(),
        });
    }
}

/// What to call an object that can't be read yet.
fn label(kind: Kind, node: &Node) -> String {
    let field = |key: &str| node.entry("metadata").and_then(|m| m.node.entry(key)).and_then(|e| e.node.as_str());
    match (field("namespace"), field("name")) {
        (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
        (None, Some(name)) => format!("{kind} {name}"),
        _ => kind.to_string(),
    }
}

/// Where an error is: its path as written, and the steps to it in the tree as it is now.
struct Place {
    at: Position,
    path: String,
    steps: Vec<Step>,
}

enum Step {
    Key(String),
    Nth(usize),
}

impl Place {
    fn find(root: &mut Node, path: &serde_path_to_error::Path) -> Self {
        let mut place = Self { at: root.at, path: String::new(), steps: Vec::new() };
        let mut node = &*root;
        for segment in path {
            match (segment, &node.value) {
                (Segment::Map { key }, Value::Map(_)) => {
                    let Some(entry) = node.entry(key) else { break };
                    place.path = place.child(key);
                    place.at = entry.at;
                    place.steps.push(Step::Key(key.clone()));
                    node = &entry.node;
                }
                (Segment::Seq { index }, Value::List(items)) => {
                    let Some(item) = items.get(*index) else { break };
                    place.path.push_str(&format!("[{}]", item.index));
                    place.at = item.node.at;
                    place.steps.push(Step::Nth(*index));
                    node = &item.node;
                }
                _ => break,
            }
        }
        place
    }

    fn child(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Removes the node. False if it is the root, or has gone.
    fn take_out(&self, root: &mut Node) -> bool {
        let Some((last, steps)) = self.steps.split_last() else { return false };
        let mut node = root;
        for step in steps {
            let next = match (step, &mut node.value) {
                (Step::Key(key), Value::Map(entries)) => {
                    entries.iter_mut().find(|e| e.key == *key).map(|e| &mut e.node)
                }
                (Step::Nth(n), Value::List(items)) => items.get_mut(*n).map(|i| &mut i.node),
                _ => None,
            };
            let Some(next) = next else { return false };
            node = next;
        }
        match (last, &mut node.value) {
            (Step::Key(key), Value::Map(entries)) => entries.retain(|e| e.key != *key),
            (Step::Nth(n), Value::List(items)) if *n < items.len() => drop(items.remove(*n)),
            _ => return false,
        }
        true
    }
}

/// The position of a path, or of as much of it as was written.
fn locate(root: &Node, path: &str) -> Position {
    let mut at = root.at;
    let mut node = root;
    for part in path.split(['.', '[']) {
        let next = match (&node.value, part.strip_suffix(']')) {
            (Value::List(items), Some(index)) => {
                items.iter().find(|i| i.index.to_string() == index).map(|i| (i.node.at, &i.node))
            }
            _ => node.entry(part).map(|e| (e.at, &e.node)),
        };
        let Some(found) = next else { break };
        (at, node) = found;
    }
    at
}

/// YAML with the fields of an object in the usual order.
pub(super) fn to_yaml(value: &serde_json::Value) -> String {
    // JSON values have string keys and finite numbers: there is nothing that YAML can't hold.
    serde_saphyr::to_string(&Ordered(value)).unwrap_or_default()
}

struct Ordered<'a>(&'a serde_json::Value);

impl Serialize for Ordered<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;

        let serde_json::Value::Object(fields) = self.0 else { return self.0.serialize(serializer) };
        let first = ["apiVersion", "kind", "metadata", "spec", "status"];
        let mut map = serializer.serialize_map(Some(fields.len()))?;
        for key in first {
            if let Some(value) = fields.get(key) {
                map.serialize_entry(key, value)?;
            }
        }
        for (key, value) in fields.iter().filter(|(key, _)| !first.contains(&key.as_str())) {
            if key == "items" {
                let items: Vec<_> = value.as_array().into_iter().flatten().map(Ordered).collect();
                map.serialize_entry(key, &items)?;
            } else {
                map.serialize_entry(key, value)?;
            }
        }
        map.end()
    }
}

#[cfg(test)]
mod tests;
