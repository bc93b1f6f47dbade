//! All objects that there are, at one revision: what every source makes, and all that the rest knows of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use mesh_common::resource::{Key, Kind, Object};

use crate::model::Accounts;

/// All objects at one revision.
#[derive(Debug)]
pub struct Objects {
    pub revision: u64,
    pub objects: BTreeMap<Key, Arc<Object>>,
    pub committed_at: Instant,
    /// The newest resourceVersion of each kind that the source has come to, where versions are not of one object alone.
    pub seen: BTreeMap<Kind, u64>,
    /// The accounts that there are, where a platform tells.
    pub accounts: Option<Arc<Accounts>>,
}

impl Objects {
    /// Objects of a kind, in a namespace, with a name; nothing given matches everything.
    pub fn select<'a>(
        &'a self,
        kind: Option<Kind>,
        namespace: Option<&'a str>,
        name: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Key, &'a Arc<Object>)> {
        self.objects.iter().filter(move |(key, _)| {
            kind.is_none_or(|kind| key.kind == kind)
                && namespace.is_none_or(|namespace| key.namespace == namespace)
                && name.is_none_or(|name| key.name == name)
        })
    }
}
