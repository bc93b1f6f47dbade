//! Why a verdict is what it is, for people: by the code that the proxy decides with.

use super::{Answer, Refusal, Subject, ask, holds, matches};
use crate::config::{Authorization, Condition, HeaderMatch, Policy, StringMatch, ValueMatch};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    pub allowed: bool,
    /// The policy that denies, or the one of the last gate that allows; none if no policy has a say.
    pub by: Option<String>,
    /// Whether `by` denies because what it looks at may be read in several ways.
    pub uncertain: bool,
    /// Of those that would have allowed it, the one that comes nearest.
    pub nearest: Option<Missed>,
    /// What policies on trial would say: that they deny it, or that none allows it (`""`).
    pub would_refuse: Option<String>,
    /// All policies that want it recorded.
    pub audited_by: Vec<String>,
}

/// A policy that does not match, and what it asks for beyond what there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missed {
    pub policy: String,
    pub needs: Vec<String>,
}

pub fn explain(authorization: &Authorization, subject: &Subject<'_>) -> Explanation {
    let mut explanation = Explanation { allowed: true, ..Explanation::default() };
    for gate in &authorization.gates {
        match ask(gate, subject) {
            Answer::Refuses(refusal) if gate.dry_run => {
                explanation.would_refuse.get_or_insert_with(|| refusal.policy().to_owned());
            }
            Answer::Refuses(Refusal::Denied(policy)) => {
                let denying = gate.policies.iter().find(|it| it.name == policy);
                let uncertain = denying.is_some_and(|it| matches(it, subject).is_none());
                return Explanation { allowed: false, by: Some(policy.to_owned()), uncertain, ..explanation };
            }
            Answer::Refuses(_) => {
                let missed = gate.policies.iter().map(|policy| missed(policy, subject));
                let nearest = missed.min_by_key(|missed| missed.needs.len());
                return Explanation { allowed: false, by: None, nearest, ..explanation };
            }
            Answer::Allows(policy) if !gate.dry_run => explanation.by = Some(policy.to_owned()),
            Answer::Records(_) => {
                let recording = gate.policies.iter().filter(|policy| matches(policy, subject) != Some(false));
                explanation.audited_by.extend(recording.map(|policy| policy.name.clone()));
            }
            Answer::Allows(_) | Answer::Nothing => (),
        }
    }
    explanation
}

/// What a policy looks at, in words: who, and what they want.
pub fn in_words(policy: &Policy) -> (String, String) {
    (any_of(&policy.principals), any_of(&policy.permissions))
}

fn missed(policy: &Policy, subject: &Subject<'_>) -> Missed {
    let mut needs = missing_of_one(&policy.principals, subject);
    needs.extend(missing_of_one(&policy.permissions, subject));
    Missed { policy: policy.name.clone(), needs }
}

/// What would have to be so for one of the conditions to hold: as little as possible.
fn missing_of_one(conditions: &[Condition], subject: &Subject<'_>) -> Vec<String> {
    let each = conditions.iter().map(|condition| missing(condition, subject));
    let shortest = each.min_by_key(Vec::len).unwrap_or_default();
    // Several of them that ask for one thing each are one thing to ask for.
    let alike = shortest.len() == 1 && conditions.iter().all(|it| missing(it, subject).len() == 1);
    if alike { vec![any_of(conditions)] } else { shortest }
}

fn missing(condition: &Condition, subject: &Subject<'_>) -> Vec<String> {
    if holds(condition, subject) == Some(true) {
        return Vec::new();
    }
    match condition {
        Condition::All(all) => all.iter().flat_map(|condition| missing(condition, subject)).collect(),
        Condition::OneOf(any) => missing_of_one(any, subject),
        other => vec![words(other)],
    }
}

fn any_of(conditions: &[Condition]) -> String {
    conditions.iter().map(words).collect::<Vec<_>>().join(" or ")
}

fn words(condition: &Condition) -> String {
    match condition {
        Condition::Any => "anything".to_owned(),
        Condition::All(all) => all.iter().map(words).collect::<Vec<_>>().join(" and "),
        Condition::OneOf(any) => any_of(any),
        Condition::Not(condition) => format!("not ({})", words(condition)),
        Condition::Header(matcher) => header(matcher),
        Condition::Path(matcher) => format!("path {}", text(matcher)),
        Condition::Port(range) if range.start() == range.end() => format!("port {}", range.start()),
        Condition::Port(range) => format!("port {} to {}", range.start(), range.end()),
        Condition::Destination(range) => format!("a destination in {range}"),
        Condition::Source(range) => format!("an address in {range}"),
        Condition::Authenticated => "any identity".to_owned(),
        Condition::Claim(matcher) => format!("claim {} {}", matcher.path.join("."), value(&matcher.value)),
        Condition::Identity(matcher) => format!("identity {}", text(matcher)),
    }
}

fn value(matcher: &ValueMatch) -> String {
    match matcher {
        ValueMatch::Text(matcher) => text(matcher),
        ValueMatch::Number(number) => number.to_string(),
        ValueMatch::Bool(wanted) => wanted.to_string(),
        ValueMatch::Present => "of any value".to_owned(),
        ValueMatch::Entry(matcher) => value(matcher),
        ValueMatch::OneOf(matchers) => {
            // The same for each kind that the value may be of.
            let mut all: Vec<String> = matchers.iter().map(value).collect();
            all.dedup();
            all.join(" or ")
        }
    }
}

fn header(matcher: &HeaderMatch) -> String {
    let name = match matcher.name.as_str() {
        ":method" => "method".to_owned(),
        ":authority" => "host".to_owned(),
        name => format!("header {name}"),
    };
    let not = if matcher.invert { "not " } else { "" };
    format!("{not}{name} {}", text(&matcher.matcher))
}

fn text(matcher: &StringMatch) -> String {
    match matcher {
        StringMatch::Exact(text) => text.clone(),
        StringMatch::Prefix(text) => format!("{text}*"),
        StringMatch::Suffix(text) => format!("*{text}"),
        StringMatch::Contains(text) => format!("*{text}*"),
        StringMatch::Regex(regex) => format!("like {regex}"),
        StringMatch::Present(true) => "of any value".to_owned(),
        StringMatch::Present(false) => "not there".to_owned(),
    }
}
