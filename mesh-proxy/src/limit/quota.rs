use http::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// What a request has left in its bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    pub allowed: bool,
    pub remaining: u32,
    /// Until the bucket is full again; for one that was refused, until the next can pass.
    pub seconds: u64,
    pub limit: u32,
    /// In seconds.
    pub window: u64,
}

impl Quota {
    /// Tells the client, as draft-ietf-httpapi-ratelimit-headers-10 has it. What the application says of limits of its own stays.
    pub fn tell(&self, headers: &mut HeaderMap) {
        let Self { allowed, remaining, seconds, limit, window } = self;
        append(headers, RATE_LIMIT_POLICY, format!("\"mesh\";q={limit};w={window}"));
        append(headers, RATE_LIMIT, format!("\"mesh\";r={remaining};t={seconds}"));
        if !allowed {
            headers.insert(RETRY_AFTER, HeaderValue::from(*seconds));
        }
    }
}

fn append(headers: &mut HeaderMap, name: HeaderName, value: String) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.append(name, value);
    }
}
