use http::header::HeaderValue;

use super::StringMatch;

/// Who may read a route's responses in a browser (<https://fetch.spec.whatwg.org/#http-cors-protocol>).
#[derive(Debug)]
pub struct Cors {
    pub origins: Vec<StringMatch>,
    /// Every origin may.
    pub any_origin: bool,
    pub methods: CorsList,
    pub headers: CorsList,
    /// Response headers that scripts may read.
    pub exposed: Option<HeaderValue>,
    /// Seconds that a browser may keep the answer to a preflight.
    pub max_age: Option<HeaderValue>,
    /// Also for requests with cookies or a client certificate.
    pub credentials: bool,
    /// Preflights of other origins are the application's to answer.
    pub forwards_others: bool,
}

/// What a browser may ask for.
#[derive(Debug)]
pub enum CorsList {
    None,
    All,
    These(HeaderValue),
}
