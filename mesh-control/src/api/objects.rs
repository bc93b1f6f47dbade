//! Applying objects: all of them are looked at before one of them is taken.

use std::sync::Arc;

use mesh_common::proto::control::{ApplyResponse, ApplyResult, apply_result};
use mesh_common::resource::{DEFAULT_NAMESPACE, LABEL_REGISTERED, Object, validate};

use super::{MeshService, convert};
use crate::model;
use crate::store::{Outcome, Store, StoreError};

/// How many things that are wrong with a request are told at once.
const MAX_PROBLEMS: usize = 20;

#[derive(Debug, thiserror::Error)]
pub(super) enum ApplyError {
    /// One sentence for each thing that is wrong.
    #[error("{}", .0.join("\n"))]
    Invalid(Vec<String>),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl MeshService {
    /// Blocks until the objects are on the disk.
    pub(super) fn apply_objects(
        &self,
        store: &Store,
        texts: &[String],
        dry_run: bool,
    ) -> Result<ApplyResponse, ApplyError> {
        let objects = self.checked(store, texts)?;
        let applied = store.apply(objects.clone(), dry_run)?;

        // What they mean together with the others is known only now. It refuses nothing: what is missing may still come.
        let mut together = store.current().objects.clone();
        together.extend(objects.into_iter().map(|object| (object.key(), Arc::new(object))));
        let model = model::build(&together, &self.settings, self.snapshot().model.addresses());

        let results = applied
            .results
            .iter()
            .map(|(key, outcome)| {
                if !dry_run && *outcome != Outcome::Unchanged {
                    tracing::info!(object = %key, revision = applied.revision, ?outcome, "applied");
                }
                let outcome = match outcome {
                    Outcome::Created => apply_result::Outcome::Created,
                    Outcome::Configured => apply_result::Outcome::Configured,
                    Outcome::Unchanged => apply_result::Outcome::Unchanged,
                };
                ApplyResult {
                    key: Some(convert::object_key(key)),
                    outcome: outcome.into(),
                    warnings: model.warnings(key),
                }
            })
            .collect();
        Ok(ApplyResponse { results, revision: applied.revision })
    }

    fn checked(&self, store: &Store, texts: &[String]) -> Result<Vec<Object>, ApplyError> {
        let stored = store.current();
        let mut problems = Vec::new();
        let mut objects = Vec::with_capacity(texts.len());
        for (index, text) in texts.iter().enumerate() {
            let mut object = match Object::from_json(text) {
                Ok(object) => object,
                Err(error) => {
                    problems.push(format!("object {}: {error}", index + 1));
                    continue;
                }
            };
            object.set_default_namespace(DEFAULT_NAMESPACE);
            let key = object.key();
            problems.extend(validate(&object).into_iter().map(|error| format!("{key}: {error}")));
            problems.extend(self.reserved(&object, stored.objects.get(&key).map(Arc::as_ref)));
            objects.push(object);
        }
        if problems.is_empty() {
            return Ok(objects);
        }
        let more = problems.len().saturating_sub(MAX_PROBLEMS);
        problems.truncate(MAX_PROBLEMS);
        if more > 0 {
            problems.push(format!("and {more} more"));
        }
        Err(ApplyError::Invalid(problems))
    }

    /// What only mesh-control itself may set.
    fn reserved(&self, object: &Object, stored: Option<&Object>) -> Option<String> {
        let key = object.key();
        let registered = |object: &Object| object.metadata().labels.get(LABEL_REGISTERED).cloned();
        if registered(object).is_some() && stored.and_then(registered) != registered(object) {
            return Some(format!(
                "{key}: metadata.labels: {LABEL_REGISTERED} is set when a proxy registers its workload; remove it"
            ));
        }
        let Object::MeshConfig(config) = object else { return None };
        match config.spec.trust_domain.as_deref() {
            Some(asked) if asked != self.settings.trust_domain => Some(format!(
                "{key}: spec.trustDomain: it is {:?} since this mesh was made and can't be changed; remove the field",
                self.settings.trust_domain
            )),
            _ => None,
        }
    }
}
