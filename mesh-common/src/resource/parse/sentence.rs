//! The messages of parsers, in words that say what to do.

use super::super::Kind;

/// Text that isn't YAML.
pub(super) fn syntax(error: &serde_saphyr::Error) -> String {
    // In words for who writes the file: the other ones name settings of the parser.
    let text = error.without_snippet().render_with_formatter(&serde_saphyr::UserMessageFormatter);
    // The position is shown in front of the message already.
    let text = text.split(" at line ").next().unwrap_or_default();
    let text = text.lines().next().unwrap_or_default();
    let text = text.strip_prefix("error: ").unwrap_or(text);
    format!("this is not YAML that can be read: {text}")
}

pub(super) fn unknown_kind(kind: &str) -> String {
    let known = Kind::ALL.map(Kind::as_str);
    match nearest(kind, &known) {
        Some(near) => format!("`{kind}` is not a kind known here; did you mean `{near}`?"),
        None => format!("`{kind}` is not a kind known here; the kinds are {}", known.join(", ")),
    }
}

/// The name in "missing field `name`".
pub(super) fn missing_field(message: &str) -> Option<&str> {
    message.strip_prefix("missing field `")?.split('`').next()
}

/// A value whose shape is wrong, from serde's message.
pub(super) fn shape(message: &str) -> String {
    if let Some(field) = missing_field(message) {
        return format!("the field `{field}` is required here");
    }
    if let Some((name, known)) = unknown(message, "unknown field `") {
        return match nearest(name, &known) {
            Some(near) => format!("unknown field `{name}`; did you mean `{near}`?"),
            None if known.is_empty() => format!("unknown field `{name}`; there can be no fields here"),
            None => format!("unknown field `{name}`; the fields here are {}", known.join(", ")),
        };
    }
    if let Some((name, known)) = unknown(message, "unknown variant `") {
        let list = known.join(", ");
        return match nearest(name, &known) {
            Some(near) => format!("`{name}` is not one of {list}; did you mean `{near}`?"),
            None => format!("`{name}` is not one of {list}"),
        };
    }
    let wrong = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "));
    if let Some((found, expected)) = wrong.and_then(|text| text.split_once(", expected ")) {
        let found = plain(found);
        let scalar = ["integer", "floating point", "boolean"].iter().any(|kind| found.starts_with(kind));
        return match expected {
            "a string" if scalar => format!("this is the {found}, but must be a string: put it in quotes"),
            _ => format!("this is the {found}, but must be {}", expected_in_words(expected)),
        };
    }
    message.to_owned()
}

fn plain(found: &str) -> String {
    match found {
        "null" | "unit value" => "null".to_owned(),
        "map" => "object given".to_owned(),
        "sequence" => "list given".to_owned(),
        _ => found.to_owned(),
    }
}

fn expected_in_words(expected: &str) -> &str {
    match expected {
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "i32" | "i64" | "u64" => "a whole number",
        "f64" => "a number",
        "a sequence" => "a list",
        "a map" => "an object",
        _ if expected.starts_with("struct ") => "an object",
        _ => expected,
    }
}

/// The name that is not known, and the names that are.
fn unknown<'a>(message: &'a str, prefix: &str) -> Option<(&'a str, Vec<&'a str>)> {
    let rest = message.strip_prefix(prefix)?;
    let (name, rest) = rest.split_once("`, ").unwrap_or((rest.trim_end_matches('`'), ""));
    Some((name, rest.split('`').skip(1).step_by(2).collect()))
}

/// The known name that was probably meant.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let lower = name.to_ascii_lowercase();
    let distance = |k: &&'a str| (edits(&lower, &k.to_ascii_lowercase()), *k);
    let (edits, near) = known.iter().map(distance).min()?;
    (edits <= 1 + name.len() / 4).then_some(near)
}

/// Levenshtein distance, with a swap of neighbours as one edit.
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let change = usize::from(a[i - 1] != b[j - 1]);
                let mut best = (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + change);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(rows[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_the_nearest() {
        assert_eq!(
            shape("unknown field `backendRef`, expected one of `name`, `backendRefs`"),
            "unknown field `backendRef`; did you mean `backendRefs`?"
        );
        assert_eq!(
            shape("unknown field `zzz`, expected `name` or `port`"),
            "unknown field `zzz`; the fields here are name, port"
        );
        assert_eq!(
            shape("unknown variant `exact`, expected `Exact` or `RegularExpression`"),
            "`exact` is not one of Exact, RegularExpression; did you mean `Exact`?"
        );
    }

    #[test]
    fn says_how_to_mend_it() {
        assert_eq!(
            shape("invalid type: integer `5`, expected a string"),
            "this is the integer `5`, but must be a string: put it in quotes"
        );
        assert_eq!(
            shape("invalid value: integer `70000`, expected u16"),
            "this is the integer `70000`, but must be a whole number from 0 to 65535"
        );
        assert_eq!(shape("missing field `name`"), "the field `name` is required here");
    }
}
