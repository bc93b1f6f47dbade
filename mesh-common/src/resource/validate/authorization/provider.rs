//! Who is asked by a `CUSTOM` policy.

use super::super::super::{AuthorizationHttp, AuthorizationProtocol, AuthorizationProvider};
use super::super::Errors;
use super::super::fields::{is_token, label};
use super::{each, pattern};

/// Longer, and clients would not wait for it.
const MAX_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);
/// A proxy holds as much of each request that is asked about.
const MAX_BODY: u32 = 64 << 10;
const MAX_PREFIX: usize = 256;

pub(super) fn check(provider: &AuthorizationProvider, errors: &mut Errors) {
    let path = "spec.provider";
    label(errors, &format!("{path}.backend.name"), &provider.backend.name);
    if let Some(namespace) = &provider.backend.namespace {
        label(errors, &format!("{path}.backend.namespace"), namespace);
    }
    let zero = provider.backend.port == 0;
    errors.add_if(zero, format!("{path}.backend.port"), "a port is a number from 1 to 65535");
    let unfit = provider.timeout.is_some_and(|it| it.is_zero() || it.get() > MAX_TIMEOUT);
    errors.add_if(unfit, format!("{path}.timeout"), "this must be longer than zero, and 60s at most");
    let unfit = provider.status_on_error.is_some_and(|it| !(400..600).contains(&it));
    errors.add_if(unfit, format!("{path}.statusOnError"), "a status of a refusal is from 400 to 599");
    if let Some(body) = &provider.include_body {
        let unfit = !(1..=MAX_BODY).contains(&body.max_bytes);
        errors.add_if(unfit, format!("{path}.includeBody.maxBytes"), format!("this must be from 1 to {MAX_BODY}"));
        let unfit = body.as_bytes && provider.protocol == AuthorizationProtocol::Http;
        errors.add_if(unfit, format!("{path}.includeBody.asBytes"), "over HTTP a body is bytes anyway");
    }
    if let Some(it) = &provider.http {
        let other = provider.protocol != AuthorizationProtocol::Http;
        errors.add_if(other, format!("{path}.http"), "this is for `protocol: Http`");
        http(it, errors, &format!("{path}.http"));
    }
}

fn http(http: &AuthorizationHttp, errors: &mut Errors, path: &str) {
    let prefix = &http.path_prefix;
    let plain =
        prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~".contains(&b)) && prefix.len() <= MAX_PREFIX;
    let unfit = !prefix.is_empty() && (!prefix.starts_with('/') || prefix.ends_with('/') || !plain);
    errors.add_if(
        unfit,
        format!("{path}.pathPrefix"),
        "a prefix is a plain path with `/` at its beginning, and not at its end",
    );
    each(errors, path, "includeHeaders", &http.include_headers, header);
    each(errors, path, "headersToUpstream", &http.headers_to_upstream, header);
    each(errors, path, "headersToDownstream", &http.headers_to_downstream, header);
}

fn header(errors: &mut Errors, path: &str, text: &str) {
    if !pattern(errors, path, text) {
        return;
    }
    let bare = text.trim_matches('*');
    errors.add_if(!is_token(bare), path, format!("{text:?} is not the name of an HTTP header"));
    // Who is asked for, and where a message ends, are not for them to say.
    let fixed = ["host", "content-length", "transfer-encoding", "connection"];
    let fixed = fixed.iter().any(|it| it.eq_ignore_ascii_case(text));
    errors.add_if(fixed, path, format!("{text} is of each message for itself"));
}
