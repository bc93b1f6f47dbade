//! From the model to xDS resources, for one kind of asker: a pure function, so that equal askers share equal bytes.
//!
//! In: a [`Model`] and a [`Scope`]. Out: resources as `docs/reference/xds.md` describes them.

mod scope;

use envoy_types::pb::google::protobuf::Any;

pub use scope::{ClientKind, ResourceType, Scope};

use crate::model::Model;

/// The resource of that name, if there is one for this asker.
pub fn resource(_model: &Model, _scope: &Scope, _resource_type: ResourceType, _name: &str) -> Option<Any> {
    None
}

/// Names of all resources of a type that this asker may see: the answer to a wildcard.
pub fn names(_model: &Model, _scope: &Scope, _resource_type: ResourceType) -> Vec<String> {
    Vec::new()
}
