use http::uri::PathAndQuery;
use http::{Method, Uri};

use crate::path::{PathError, canonical};

/// Gives the path its canonical form, before anybody matches it. A tunnel has no path, and `*` is the server as a whole.
pub(super) fn make_canonical(uri: &mut Uri, method: &Method) -> Result<(), PathError> {
    let path = uri.path();
    if *method == Method::CONNECT || (path == "*" && *method == Method::OPTIONS) {
        return Ok(());
    }
    // Of an absolute form: the root.
    let form = canonical(if path.is_empty() && uri.authority().is_some() { "/" } else { path })?;
    if form == path {
        return Ok(());
    }
    let target = match uri.query() {
        Some(query) => format!("{form}?{query}"),
        None => form.into_owned(),
    };
    let mut parts = std::mem::take(uri).into_parts();
    // It has only characters that were in a path before, or stand for themselves.
    parts.path_and_query = Some(PathAndQuery::try_from(target).map_err(|_| PathError::Control)?);
    *uri = Uri::from_parts(parts).map_err(|_| PathError::Control)?;
    Ok(())
}
