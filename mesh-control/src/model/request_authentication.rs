//! Whose tokens prove who asks for something, and the keys that prove the tokens.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_common::resource::{JwtRule, Key, Kind, Object, RequestAuthentication};

use super::span::Span;
use super::{Age, Condition, Name, Status};

/// The keys that were fetched, by where they are from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys(pub BTreeMap<String, Fetched>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    /// The last good ones, as JSON in one form. `None`: there were none yet.
    pub jwks: Option<Arc<str>>,
    /// Why the last attempt failed, if it did.
    pub error: Option<String>,
}

/// From where keys have to be fetched, for these objects.
pub fn jwks_uris<'a>(objects: impl IntoIterator<Item = &'a Arc<Object>>) -> std::collections::BTreeSet<&'a str> {
    let rules = objects.into_iter().flat_map(|object| match &**object {
        Object::RequestAuthentication(object) => object.spec.jwt_rules.as_slice(),
        _ => &[],
    });
    rules.filter_map(|rule| rule.jwks_uri.as_deref()).collect()
}

/// The rules, the oldest first.
#[derive(Debug, Default)]
pub(super) struct RequestAuthentications {
    all: Vec<(Key, Span, Vec<JwtRule>)>,
}

impl RequestAuthentications {
    pub fn new(
        objects: &[&RequestAuthentication],
        exists: impl Fn(&Name) -> bool,
        statuses: &mut BTreeMap<Key, Status>,
    ) -> Self {
        let mut all: Vec<(Key, Span, Vec<JwtRule>)> = Vec::new();
        let mut ordered = objects.to_vec();
        ordered.sort_by_cached_key(|object| Age::of(&object.metadata));
        for object in ordered {
            let namespace = object.metadata.namespace_or_default();
            let key = Key::new(Kind::RequestAuthentication, namespace, &object.metadata.name);
            let (span, condition) = Span::new(namespace, &object.spec.target_refs, &exists);
            let conditions = &mut statuses.entry(key.clone()).or_default().conditions;
            conditions.push(condition);
            let same = |other: &Span| {
                let met = other.services.is_empty() || !other.services.is_disjoint(&span.services);
                other.namespace == span.namespace && other.reach == span.reach && met
            };
            let older = || all.iter().filter(|(_, other, _)| same(other)).flat_map(|(_, _, rules)| rules);
            let twice = object.spec.jwt_rules.iter().find(|it| older().any(|other| other.issuer == it.issuer));
            if let Some(rule) = twice {
                let text = format!("an older RequestAuthentication has a rule for {} and the same target", rule.issuer);
                conditions.push(Condition::ignored("Conflicted", text));
            }
            all.push((key, span, object.spec.jwt_rules.clone()));
        }
        Self { all }
    }

    /// Those that hold for a workload of that namespace which serves these services: one for each issuer, that of the narrowest
    /// reach and then the oldest; in the order of the issuers.
    pub fn of(&self, namespace: &str, services: &[impl AsRef<str>]) -> Vec<&JwtRule> {
        let mut holding: Vec<_> = self.all.iter().filter(|(_, span, _)| span.holds(namespace, services)).collect();
        holding.sort_by_key(|(_, span, _)| std::cmp::Reverse(span.reach));
        let mut found: BTreeMap<&str, &JwtRule> = BTreeMap::new();
        for rule in holding.into_iter().flat_map(|(_, _, rules)| rules) {
            found.entry(&rule.issuer).or_insert(rule);
        }
        found.into_values().collect()
    }

    /// Says of which objects there are keys.
    pub fn tell_keys(&self, keys: &Keys, statuses: &mut BTreeMap<Key, Status>) {
        for (key, _, rules) in &self.all {
            let mut uris = rules.iter().filter_map(|rule| rule.jwks_uri.as_ref()).peekable();
            if uris.peek().is_none() {
                continue;
            }
            let missing = uris.find_map(|uri| match keys.0.get(uri) {
                Some(Fetched { jwks: Some(_), .. }) => None,
                fetched => Some((uri, fetched.and_then(|it| it.error.as_deref()).unwrap_or("not fetched yet"))),
            });
            statuses.entry(key.clone()).or_default().conditions.push(match missing {
                None => Condition::resolved(),
                Some((uri, why)) => Condition::unresolved(
                    "KeysNotFetched",
                    format!("there are no keys from {uri} yet, so its tokens are refused: {why}"),
                ),
            });
        }
    }
}
