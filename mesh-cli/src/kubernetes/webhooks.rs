//! What the API server says when a webhook is in the way, and whose it is.

/// The webhook that it could not call: `failed calling webhook "x": ...`
pub fn not_called(message: &str) -> Option<&str> {
    named(message, "failed calling webhook \"")
}

/// The webhook that has refused: `admission webhook "x" denied the request: ...`
pub fn refused_by(message: &str) -> Option<&str> {
    let name = named(message, "admission webhook \"")?;
    message.contains(&format!("\"{name}\" denied the request")).then_some(name)
}

pub fn is_ours(webhook: &str) -> bool {
    webhook.ends_with(".meshctl.dev")
}

/// The first that is named, before any reason that a webhook gives in its own words.
fn named<'a>(message: &'a str, before: &str) -> Option<&'a str> {
    let (_, rest) = message.split_once(before)?;
    rest.split_once('"').map(|(name, _)| name)
}
