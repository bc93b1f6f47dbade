//! What policies ask of claims.

use serde_json::Value;

use super::Claims;
use crate::config::{ClaimMatch, ValueMatch};
use crate::route;

/// The claim at the end of the way.
pub(super) fn at<'c>(claims: &'c Claims, way: &[String]) -> Option<&'c Value> {
    let (first, rest) = way.split_first()?;
    let found = rest.iter().try_fold(claims.get(first)?, |value, name| value.get(name.as_str()))?;
    (!found.is_null()).then_some(found)
}

/// `scope: "read write"` is two words.
pub(super) fn split_words(claims: &mut Claims, names: &[String]) {
    for name in names {
        if let Some(value) = claims.get_mut(name)
            && let Value::String(text) = value
        {
            *value = text.split(' ').filter(|word| !word.is_empty()).collect();
        }
    }
}

/// Whether a claim is what it has to be; it is not if it is not there. `None` if it is of a kind that the rule has no word for:
/// what was meant then is not certain.
pub fn holds(matcher: &ClaimMatch, claims: Option<&Claims>) -> Option<bool> {
    match claims.and_then(|claims| at(claims, &matcher.path)) {
        None => Some(false),
        Some(value) => is(&matcher.value, value),
    }
}

fn is(matcher: &ValueMatch, value: &Value) -> Option<bool> {
    match (matcher, value) {
        (ValueMatch::Text(text), Value::String(value)) => Some(route::text_matches(text, value)),
        (ValueMatch::Number(number), Value::Number(value)) => value.as_f64().map(|it| it == *number),
        (ValueMatch::Bool(wanted), Value::Bool(value)) => Some(wanted == value),
        (ValueMatch::Present, _) => Some(true),
        (ValueMatch::Entry(matcher), Value::Array(entries)) => {
            let mut result = Some(false);
            for entry in entries {
                match is(matcher, entry) {
                    Some(true) => return Some(true),
                    Some(false) => (),
                    None => result = None,
                }
            }
            result
        }
        // One that has a word for this kind of value is certain, whatever the others are for.
        (ValueMatch::OneOf(matchers), value) => {
            let mut result = None;
            for matcher in matchers {
                match is(matcher, value) {
                    Some(true) => return Some(true),
                    Some(false) => result = Some(false),
                    None => (),
                }
            }
            result
        }
        _ => None,
    }
}
