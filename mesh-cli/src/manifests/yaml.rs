//! YAML that every reader takes for the same, YAML 1.1 or 1.2: whatever one of them could take for something else than a
//! string is in quotes.

use serde_json::{Map, Value};

/// All documents, with a line of dashes between them.
pub fn to_yaml(documents: &[Value]) -> String {
    let mut out = String::new();
    for (index, document) in documents.iter().enumerate() {
        if index > 0 {
            out.push_str("---\n");
        }
        match document {
            Value::Object(fields) if !fields.is_empty() => map(&mut out, fields, 0),
            Value::Array(items) if !items.is_empty() => list(&mut out, items, 0),
            scalar => out.push_str(&format!("{}\n", inline(scalar, 0))),
        }
    }
    out
}

/// The cursor is where the first key goes; the others begin at `indent`.
fn map(out: &mut String, fields: &Map<String, Value>, indent: usize) {
    let mut entries: Vec<_> = fields.iter().collect();
    entries.sort_by_key(|(key, _)| rank(key));
    for (index, (key, value)) in entries.into_iter().enumerate() {
        if index > 0 {
            spaces(out, indent);
        }
        out.push_str(&string(key));
        out.push(':');
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                out.push('\n');
                spaces(out, indent + 2);
                map(out, fields, indent + 2);
            }
            Value::Array(items) if !items.is_empty() => {
                out.push('\n');
                spaces(out, indent);
                list(out, items, indent);
            }
            scalar => out.push_str(&format!(" {}\n", inline(scalar, indent + 2))),
        }
    }
}

fn list(out: &mut String, items: &[Value], indent: usize) {
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            spaces(out, indent);
        }
        out.push_str("- ");
        match item {
            Value::Object(fields) if !fields.is_empty() => map(out, fields, indent + 2),
            Value::Array(items) if !items.is_empty() => list(out, items, indent + 2),
            scalar => out.push_str(&format!("{}\n", inline(scalar, indent + 2))),
        }
    }
}

fn spaces(out: &mut String, count: usize) {
    out.extend(std::iter::repeat_n(' ', count));
}

/// The usual order of an object's fields; others follow in that of the alphabet.
fn rank(key: &str) -> usize {
    const FIRST: [&str; 6] = ["apiVersion", "kind", "name", "namespace", "metadata", "spec"];
    match FIRST.iter().position(|first| *first == key) {
        Some(position) => position,
        None if key == "status" => FIRST.len() + 1,
        None => FIRST.len(),
    }
}

fn inline(value: &Value, indent: usize) -> String {
    match value {
        Value::String(text) => literal(text, indent).unwrap_or_else(|| string(text)),
        // Numbers, truth values, null, and what is empty: as in JSON.
        other => other.to_string(),
    }
}

/// Text of several lines as such, where nothing in it could get lost.
fn literal(text: &str, indent: usize) -> Option<String> {
    let (body, header) = match text.strip_suffix('\n') {
        Some(body) => (body, "|"),
        None => (text, "|-"),
    };
    let plain = |line: &str| {
        line.chars().all(|c| c == '\t' || is_printable(c)) && !line.ends_with([' ', '\t']) && !line.starts_with('\t')
    };
    let fits =
        body.contains('\n') && !body.ends_with('\n') && !body.starts_with([' ', '\n']) && body.split('\n').all(plain);
    if !fits {
        return None;
    }
    let mut out = header.to_owned();
    for line in body.split('\n') {
        out.push('\n');
        if !line.is_empty() {
            spaces(&mut out, indent);
            out.push_str(line);
        }
    }
    Some(out)
}

fn string(text: &str) -> String {
    if is_plain(text) {
        return text.to_owned();
    }
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if is_printable(c) => out.push(c),
            c if u32::from(c) <= 0xffff => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push_str(&format!("\\U{:08x}", u32::from(c))),
        }
    }
    out.push('"');
    out
}

/// What needs no quotes: words, paths and image names that begin with a letter and are no keyword.
fn is_plain(text: &str) -> bool {
    const KEYWORDS: [&str; 10] = ["y", "yes", "n", "no", "on", "off", "true", "false", "null", "nan"];
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'/' | b'-' | b':');
    text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'/')
        && text.bytes().all(allowed)
        && !text.ends_with(':')
        && !KEYWORDS.iter().any(|keyword| keyword.eq_ignore_ascii_case(text))
}

/// As YAML understands it, without the line breaks and marks that only some readers know.
fn is_printable(c: char) -> bool {
    matches!(c, ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..='\u{10ffff}')
        && !matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}')
}
