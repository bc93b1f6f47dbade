use http::HeaderName;

use crate::limit::Rate;

/// How many requests the application is given, by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestLimit {
    pub rate: Rate,
    pub by: LimitBy,
}

/// Who has a bucket of its own. Whoever can't be told by that shares one with the likes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitBy {
    Nobody,
    Identity,
    Header(HeaderName),
}
