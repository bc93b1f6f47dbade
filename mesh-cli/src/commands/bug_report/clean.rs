//! What goes into a report, without its secrets.

use mesh_common::secrets::{REDACTED, is_secret_header, redacted, shown_text, without_private_keys};
use serde_json::Value;

/// Certificates, which look like keys.
const CERTIFICATES: [&str; 4] = ["inline_bytes", "inlineBytes", "inline_string", "caBundle"];
/// Fields of a log that only sound as if they had secrets.
const OTHERS: [&str; 2] = ["authority", "key"];

/// What a command has printed: a document, or lines.
pub fn output(text: &str) -> String {
    match serde_json::from_str::<Value>(text) {
        Ok(value) => document(&value),
        Err(_) => log(text),
    }
}

pub fn document(value: &Value) -> String {
    format!("{:#}\n", shown(redacted(value)))
}

/// Lines, some of which may be JSON.
pub fn log(text: &str) -> String {
    without_private_keys(text).lines().map(|line| self::line(line) + "\n").collect()
}

fn line(line: &str) -> String {
    let Ok(Value::Object(mut fields)) = serde_json::from_str(line) else { return shown_text(line).into_owned() };
    for (name, value) in &mut fields {
        if value.is_string() && is_secret_header(name) && !OTHERS.contains(&name.as_str()) {
            *value = REDACTED.into();
        }
    }
    shown(redacted(&fields.into())).to_string()
}

/// With every text as it may be shown.
fn shown(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let field = |(name, value): (String, Value)| match CERTIFICATES.contains(&name.as_str()) {
                true if value.is_string() => (name, value),
                _ => (name, shown(value)),
            };
            Value::Object(fields.into_iter().map(field).collect())
        }
        Value::Array(all) => all.into_iter().map(shown).collect(),
        Value::String(text) => shown_text(&text).into(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str =
        r#"{"headers": [{"name": "authorization", "value": "Bearer s3cret"}, {"name": "x", "value": "y"}]}"#;

    #[test]
    fn documents_lose_their_secrets_and_nothing_else() {
        let text = output(JSON);
        assert!(!text.contains("s3cret") && text.contains("\"y\""), "{text}");
        let certificate = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgVcB/UNPxalR9zDYAjQIf";
        let text = output(&format!(
            r#"[{{"message": "GET /a?token=s3cret", "trusted_ca": {{"inline_bytes": "{certificate}"}}, "other": "{certificate}"}}]"#
        ));
        assert!(text.contains("GET /a?[redacted]") && text.matches(certificate).count() == 1, "{text}");
        assert_eq!(output(""), "");
    }

    #[test]
    fn lines_stay_lines() {
        let text = log(&format!("INFO a: GET /a?token=s3cret status=200\n{JSON}\n"));
        assert!(!text.contains("s3cret") && text.contains("status=200") && text.contains("\"y\""), "{text}");
        let access = r#"{"path": "/a?token=s3cret", "authority": "reviews", "session": "s3cret"}"#;
        let text = log(&format!("{access}\n{access}\n"));
        let one = r#"{"authority":"reviews","path":"/a?[redacted]","session":"[redacted]"}"#;
        assert_eq!(text, format!("{one}\n{one}\n"));
        let key = "-----BEGIN PRIVATE KEY-----\nMs3cret\n-----END PRIVATE KEY-----\nb\n";
        assert_eq!(log(key), "[redacted]\nb\n");
        assert_eq!(log(""), "");
    }
}
