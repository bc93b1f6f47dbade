use super::super::DirectResponseSpec;
use super::Errors;
use super::fields::is_token;

/// Envoy takes no more.
const MAX_BODY: usize = 4096;

pub(super) fn check(spec: &DirectResponseSpec, errors: &mut Errors) {
    let status = spec.status;
    errors.add_if(!(200..=599).contains(&status), "spec.status", "a status is from 200 to 599");
    let body = spec.body.as_deref().unwrap_or_default();
    errors.add_if(body.len() > MAX_BODY, "spec.body", format!("a body of at most {MAX_BODY} bytes is allowed"));
    let none = matches!(status, 204 | 205 | 304) && !body.is_empty();
    errors.add_if(none, "spec.body", format!("a response with the status {status} has no body"));
    if let Some(content_type) = &spec.content_type {
        errors.add_if(body.is_empty(), "spec.contentType", "without a `body` there is nothing that has a type");
        let parts: Vec<&str> = content_type.split(';').next().unwrap_or_default().trim().split('/').collect();
        let fits = matches!(parts.as_slice(), [kind, name] if is_token(kind) && is_token(name));
        let plain = content_type.len() <= 256 && content_type.bytes().all(|b| (0x20..0x7f).contains(&b));
        errors.add_if(!(fits && plain), "spec.contentType", "this is not a media type, such as `application/json`");
    }
}
