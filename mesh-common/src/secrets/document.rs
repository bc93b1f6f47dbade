//! Secrets in documents: keys, and what a route writes into headers that prove who somebody is. Objects of the mesh have them in
//! fields of Gateway API's names, configurations of proxies in those of Envoy's.

use serde_json::{Map, Value};

use super::{LAST_APPLIED, REDACTED, is_secret, is_secret_header, shown_address};

/// Fields that hold keys, whatever is in them.
const FIELDS: [&str; 4] = ["jwks", "private_key", "privateKey", "session_ticket_keys"];
/// Fields beside the name of a header that say what is in it.
const VALUES: [&str; 12] = [
    "value",
    "values",
    "notValues",
    "rawValue",
    "raw_value",
    "stringMatch",
    "string_match",
    "safe_regex_match",
    "exact_match",
    "prefix_match",
    "suffix_match",
    "contains_match",
];

/// The same without what is secret in it.
pub fn redacted(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            // The same once more, as text in which nothing would be hidden.
            let all = fields.iter().filter(|(name, _)| *name != LAST_APPLIED);
            Value::Object(all.map(|(name, it)| (name.clone(), field(fields, name, it))).collect())
        }
        Value::Array(all) => Value::Array(all.iter().map(redacted).collect()),
        Value::String(text) if text.contains("PRIVATE KEY-----") => REDACTED.into(),
        other => other.clone(),
    }
}

fn field(fields: &Map<String, Value>, name: &str, value: &Value) -> Value {
    let named = || ["name", "key"].iter().find_map(|it| fields.get(*it)?.as_str()).unwrap_or_default();
    let header = VALUES.contains(&name) && is_secret_header(named());
    let secret = header || FIELDS.contains(&name) || (value.is_string() && is_secret(name));
    if secret { REDACTED.into() } else { without_credentials(name, redacted(value)) }
}

/// A URI may have somebody's name and password before its host, or a key in its query.
fn without_credentials(name: &str, value: Value) -> Value {
    match value {
        Value::String(text) if name.to_ascii_lowercase().ends_with("uri") => shown_address(&text).into(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_not_shown_and_all_else_is() {
        let applied = json!({"kubectl.kubernetes.io/last-applied-configuration": "{\"value\": \"s3cret\"}"});
        assert_eq!(redacted(&json!({"annotations": applied})), json!({"annotations": {}}));
        let route = json!({
            "metadata": {"name": "r", "annotations": {"api-token": "s3cret", "note": "PRIVATE key is elsewhere"}},
            "spec": {"rules": [{
                "matches": [{"headers": [{"name": "Authorization", "value": "Basic s3cret"}, {"name": "end-user", "value": "jason"}]}],
                "filters": [
                    {"requestHeaderModifier": {"set": [{"name": "X-Api-Key", "value": "s3cret"}, {"name": "x-team", "value": "a"}, {"name": "x-session-id", "value": "s3cret"}]}},
                    {"extensionRef": {"name": "maintenance"}},
                ],
                "timeouts": {"request": "1s"},
            }]},
        });
        let shown = redacted(&route);
        assert!(!shown.to_string().contains("s3cret"), "{shown}");
        assert_eq!(shown.pointer("/spec/rules/0/matches/0/headers/1/value"), Some(&"jason".into()));
        assert_eq!(shown.pointer("/spec/rules/0/filters/0/requestHeaderModifier/set/1/value"), Some(&"a".into()));
        assert_eq!(
            shown.pointer("/spec/rules/0/filters/0/requestHeaderModifier/set/0/name"),
            Some(&"X-Api-Key".into())
        );
        assert_eq!(shown.pointer("/metadata/annotations/note"), Some(&"PRIVATE key is elsewhere".into()));
        assert_eq!(shown.pointer("/spec/rules/0/timeouts"), route.pointer("/spec/rules/0/timeouts"));

        let rules = json!({"jwtRules": [
            {"issuer": "https://a", "jwks": "{\"keys\": [\"s3cret\"]}"},
            {"issuer": "https://b", "jwksUri": "https://me:s3cret@b.example/keys?k=s3cret"},
            {"issuer": "https://c", "jwksUri": "https://c.example/a@b"},
        ]});
        let shown = redacted(&rules);
        assert!(!shown.to_string().contains("s3cret"), "{shown}");
        assert_eq!(shown.pointer("/jwtRules/1/jwksUri"), Some(&"https://[redacted]@b.example/keys?[redacted]".into()));
        assert_eq!(shown.pointer("/jwtRules/2"), rules.pointer("/jwtRules/2"));
        let config = json!({"route": {
            "request_headers_to_add": [{"header": {"key": "Authorization", "value": "Basic s3cret"}}],
            "match": {"headers": [{"name": "cookie", "string_match": {"exact": "s3cret"}}, {"name": "a", "string_match": {"exact": "b"}}]},
        }});
        let shown = redacted(&config);
        assert!(!shown.to_string().contains("s3cret"), "{shown}");
        assert_eq!(shown.pointer("/route/match/headers/1"), config.pointer("/route/match/headers/1"));
        let key = json!({"tls_certificate": {"private_key": {"inline_bytes": "s3cret"}}});
        assert_eq!(redacted(&key), json!({"tls_certificate": {"private_key": "[redacted]"}}));
        let body = json!({"body": "-----BEGIN PRIVATE KEY-----\ns3cret"});
        assert_eq!(redacted(&body), json!({"body": "[redacted]"}));
    }
}
