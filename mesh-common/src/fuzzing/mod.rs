//! What must hold for any input, one function for each parser: it never panics, and what it takes comes out as it went in.
//!
//! The tests feed them valid input that was damaged: as many of each as PROPTEST_CASES says, 256 without it.

use crate::identity::Identity;
use crate::inject::{Probes, by_cni};
use crate::resource::{Duration, Object, parse_yaml};
use crate::token::JoinToken;

mod damaged;
mod tests;

/// Objects as users write them.
pub fn resources(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = Object::from_json(text);
    let _ = Object::from_newer_json(text);
    let Ok(objects) = parse_yaml("input", text) else { return };
    for object in objects {
        let json = object.to_json().to_string();
        assert_eq!(Object::from_json(&json).as_ref(), Ok(&object), "by JSON: {json}");
        let yaml = object.to_yaml();
        assert_eq!(parse_yaml("written", &yaml), Ok(vec![object]), "by YAML: {yaml}");
    }
}

/// SPIFFE IDs, join tokens and durations.
pub fn words(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(identity) = text.parse::<Identity>() {
        assert_eq!(identity.to_string(), text);
    }
    if let Ok(token) = text.parse::<JoinToken>() {
        assert!(token.reveal().eq_ignore_ascii_case(text.trim()));
    }
    if let Ok(duration) = text.parse::<Duration>() {
        assert_eq!(duration.to_string().parse(), Ok(duration));
    }
}

/// What the injector tells a proxy about probes, and a container runtime the plugin of the node's network.
pub fn json(bytes: &[u8]) {
    if let Ok(probes) = serde_json::from_slice::<Probes>(bytes) {
        let text = serde_json::to_vec(&probes).expect("it was JSON");
        assert_eq!(serde_json::from_slice::<Probes>(&text).ok(), Some(probes));
    }
    if let Ok(annotations) = serde_json::from_slice(bytes) {
        let _ = by_cni(&annotations);
    }
}
