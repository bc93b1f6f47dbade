use http::HeaderName;
use mesh_common::jwt::Jwks;

use super::StringMatch;
use crate::jwt::Cache;

/// Envoy's JWT filter: whose tokens prove who asks for something. A request needs none, and each that it has must be good.
#[derive(Debug)]
pub struct JwtAuthn {
    /// In the order of their names; no two of one issuer.
    pub providers: Vec<JwtProvider>,
    /// Of one header, those with the longest prefix first.
    pub places: Vec<TokenPlace>,
    /// What tells claims: never taken from a client.
    pub claim_headers: Vec<HeaderName>,
    pub cache: Cache,
}

/// An issuer.
#[derive(Debug)]
pub struct JwtProvider {
    pub issuer: String,
    /// None: any.
    pub audiences: Vec<String>,
    pub jwks: Jwks,
    /// The application gets the token too.
    pub forward: bool,
    /// Claims by the way to them.
    pub outputs: Vec<(HeaderName, Vec<String>)>,
    /// Claims that are lists of words in one text.
    pub words: Vec<String>,
    /// Seconds.
    pub leeway: f64,
}

/// Where tokens are looked for.
#[derive(Debug)]
pub struct TokenPlace {
    pub at: TokenAt,
    /// Indices of those who take them from there.
    pub providers: Vec<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenAt {
    Header {
        name: HeaderName,
        prefix: String,
    },
    /// Of the query.
    Param(String),
    Cookie(String),
}

/// What one claim of the request's token has to be.
#[derive(Debug)]
pub struct ClaimMatch {
    /// The claim's name, and those of members in it.
    pub path: Vec<String>,
    pub value: ValueMatch,
}

#[derive(Debug)]
pub enum ValueMatch {
    Text(StringMatch),
    Number(f64),
    Bool(bool),
    /// Any value but null.
    Present,
    /// One entry of a list.
    Entry(Box<ValueMatch>),
    OneOf(Vec<ValueMatch>),
}
