//! Checks of single fields that several kinds have.

use std::collections::BTreeSet;

use super::super::{Duration, HeaderFilter, MatchType, NamedMatch, TargetRef};
use super::Errors;

const MAX_HEADERS: usize = 16;
const MAX_VALUE: usize = 4096;

pub(super) fn at_most(errors: &mut Errors, path: &str, count: usize, most: usize) {
    errors.add_if(count > most, path, format!("there are {count} entries, but at most {most} are allowed"));
}

/// A regular expression, which has to match the whole text.
pub(super) fn regex(errors: &mut Errors, path: &str, pattern: &str) {
    // Bounds what one pattern may cost each proxy.
    let compiled = regex::RegexBuilder::new(pattern).size_limit(1 << 20).build();
    if let Err(error) = compiled {
        let text = error.to_string();
        let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
        errors.add(path, format!("this regular expression can't be used: {reason}"));
    }
}

/// RFC 9110, a header's name.
pub(super) fn is_token(name: &str) -> bool {
    let symbol = |b: u8| b"!#$%&'*+-.^_`|~".contains(&b);
    (1..=256).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || symbol(b))
}

fn is_header_value(value: &str) -> bool {
    value.len() <= MAX_VALUE && value.bytes().all(|b| b == b'\t' || (0x20..0x7f).contains(&b))
}

pub(super) fn header_name(errors: &mut Errors, path: &str, name: &str) -> bool {
    errors.add_if(!is_token(name), path, format!("{name:?} is not the name of an HTTP header"));
    is_token(name)
}

pub(super) fn header_matches(errors: &mut Errors, path: &str, matches: &[NamedMatch]) {
    at_most(errors, path, matches.len(), MAX_HEADERS);
    let mut seen = BTreeSet::new();
    for (i, matched) in matches.iter().enumerate() {
        header_name(errors, &format!("{path}[{i}].name"), &matched.name);
        let first = seen.insert(matched.name.to_ascii_lowercase());
        errors.add_if(
            !first,
            format!("{path}[{i}].name"),
            "this header is matched twice; write one regular expression",
        );
        value_match(errors, &format!("{path}[{i}].value"), matched);
    }
}

pub(super) fn query_matches(errors: &mut Errors, path: &str, matches: &[NamedMatch]) {
    at_most(errors, path, matches.len(), MAX_HEADERS);
    let mut seen = BTreeSet::new();
    for (i, matched) in matches.iter().enumerate() {
        errors.add_if(matched.name.is_empty(), format!("{path}[{i}].name"), "a query parameter has a name");
        let first = seen.insert(&matched.name);
        errors.add_if(
            !first,
            format!("{path}[{i}].name"),
            "this parameter is matched twice; write one regular expression",
        );
        value_match(errors, &format!("{path}[{i}].value"), matched);
    }
}

fn value_match(errors: &mut Errors, path: &str, matched: &NamedMatch) {
    let wrong = matched.value.is_empty() || matched.value.len() > MAX_VALUE;
    errors.add_if(wrong, path, format!("a value of 1 to {MAX_VALUE} bytes is needed"));
    if matched.match_type == Some(MatchType::RegularExpression) {
        regex(errors, path, &matched.value);
    }
}

pub(super) fn header_filter(errors: &mut Errors, path: &str, filter: &HeaderFilter) {
    let empty = filter.set.is_empty() && filter.add.is_empty() && filter.remove.is_empty();
    errors.add_if(empty, path, "nothing to `set`, `add` or `remove`");
    let changes = [("set", &filter.set), ("add", &filter.add)];
    let mut seen = BTreeSet::new();
    for (field, headers) in changes {
        at_most(errors, &format!("{path}.{field}"), headers.len(), MAX_HEADERS);
        for (i, header) in headers.iter().enumerate() {
            let path = format!("{path}.{field}[{i}]");
            changed_header(errors, &format!("{path}.name"), &header.name, &mut seen);
            let wrong = !is_header_value(&header.value);
            errors.add_if(wrong, format!("{path}.value"), "a header's value is ASCII text without control characters");
        }
    }
    at_most(errors, &format!("{path}.remove"), filter.remove.len(), MAX_HEADERS);
    for (i, name) in filter.remove.iter().enumerate() {
        changed_header(errors, &format!("{path}.remove[{i}]"), name, &mut seen);
    }
}

fn changed_header(errors: &mut Errors, path: &str, name: &str, seen: &mut BTreeSet<String>) {
    if !header_name(errors, path, name) {
        return;
    }
    let host = name.eq_ignore_ascii_case("host");
    errors.add_if(host, path, "the host can't be changed as a header; use a URLRewrite filter with `hostname`");
    let first = seen.insert(name.to_ascii_lowercase());
    errors.add_if(!first, path, format!("the header {name} is changed twice by one filter"));
}

/// A host name without a port. RFC 1123.
pub(super) fn hostname(errors: &mut Errors, path: &str, name: &str, wildcard: bool) {
    let bare = if wildcard { name.strip_prefix("*.").unwrap_or(name) } else { name };
    let fits = bare.len() <= 253 && bare.split('.').all(|label| mesh_label(label).is_ok());
    errors.add_if(!fits, path, format!("{name:?} is not a host name in lower case, without a port"));
}

/// The check's own sentence, if the text isn't a DNS label.
pub(super) fn mesh_label(text: &str) -> Result<(), String> {
    crate::identity::check_label(text).map_err(|e| e.to_string())
}

pub(super) fn label(errors: &mut Errors, path: &str, text: &str) {
    if let Err(message) = mesh_label(text) {
        errors.add(path, message);
    }
}

pub(super) fn not_zero(errors: &mut Errors, path: &str, duration: Option<Duration>) {
    errors.add_if(duration.is_some_and(Duration::is_zero), path, "this must be longer than zero");
}

/// Targets that a policy may have, by kind.
pub(super) fn targets(errors: &mut Errors, targets: &[TargetRef], kinds: &[&str]) {
    at_most(errors, "spec.targetRefs", targets.len(), 16);
    for (i, target) in targets.iter().enumerate() {
        let path = format!("spec.targetRefs[{i}]");
        if !kinds.contains(&target.kind.as_str()) {
            errors.add(
                format!("{path}.kind"),
                format!("{:?} can't be a target here, only {}", target.kind, kinds.join(", ")),
            );
            continue;
        }
        let group = super::super::Kind::parse(&target.kind).map(|k| k.group()).unwrap_or_default();
        let fits = target.group.is_empty() || target.group == group || (group.is_empty() && target.group == "core");
        errors.add_if(!fits, format!("{path}.group"), format!("the group of {} is {group:?}", target.kind));
        errors.add_if(target.name.is_empty(), format!("{path}.name"), "the name of the target is needed");
        errors.add_if(targets[..i].contains(target), path, "this target is named twice");
    }
}
