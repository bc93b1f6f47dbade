//! Which objects a command line means: `httproute reviews`, `httproute/reviews`, `services`, `all`.

use mesh_common::resource::{Key, Kind};

use crate::failure::Failure;

/// What `get` can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Stored objects of a kind.
    Objects(Kind),
    /// Stored objects of all kinds.
    All,
    /// Services as the mesh sees them, declared or not.
    Services,
    /// Workloads as the mesh sees them.
    Workloads,
}

/// `KIND`, or `KIND/NAME`.
pub fn what(text: &str) -> Result<(What, Option<String>), Failure> {
    let (kind, name) = match text.split_once('/') {
        Some((kind, name)) => (kind, Some(name.to_owned())),
        None => (text, None),
    };
    let what = match kind.to_ascii_lowercase().as_str() {
        "all" => What::All,
        "services" => What::Services,
        "workloads" | "workload" => What::Workloads,
        _ => What::Objects(kind_of(kind)?),
    };
    Ok((what, name))
}

/// A kind of stored objects.
pub fn kind_of(text: &str) -> Result<Kind, Failure> {
    Kind::parse(text).map_err(|error| Failure::usage(crate::failure::sentence(&error.to_string())))
}

/// Keys of `KIND NAME...` or `KIND/NAME...`.
pub fn keys(words: &[String], namespace: &str) -> Result<Vec<Key>, Failure> {
    let place = |kind: Kind| if kind == Kind::MeshConfig { mesh_common::resource::MESH_NAMESPACE } else { namespace };
    let key = |kind: Kind, name: &str| Key::new(kind, place(kind), name);
    let Some((first, rest)) = words.split_first() else { return Ok(Vec::new()) };
    if first.contains('/') {
        return words
            .iter()
            .map(|word| match word.split_once('/') {
                Some((kind, name)) if !name.is_empty() => Ok(key(kind_of(kind)?, name)),
                _ => Err(Failure::usage(format!("`{word}` must be KIND/NAME, like the others."))),
            })
            .collect();
    }
    let kind = kind_of(first)?;
    Ok(rest.iter().map(|name| key(kind, name)).collect())
}

/// `httproute/reviews`
pub fn short(key: &Key) -> String {
    format!("{}/{}", key.kind.singular(), key.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn views_come_before_kinds_of_the_same_name() {
        assert_eq!(what("services").unwrap(), (What::Services, None));
        assert_eq!(what("service").unwrap(), (What::Objects(Kind::Service), None));
        assert_eq!(what("HTTPRoute/reviews").unwrap(), (What::Objects(Kind::HttpRoute), Some("reviews".into())));
        assert!(what("pods").is_err());
    }

    #[test]
    fn names_follow_their_kind() {
        let wanted = [Key::new(Kind::HttpRoute, "shop", "a"), Key::new(Kind::HttpRoute, "shop", "b")];
        assert_eq!(keys(&words(&["httproute", "a", "b"]), "shop").unwrap(), wanted);
        assert_eq!(keys(&words(&["httproute/a", "httproutes/b"]), "shop").unwrap(), wanted);
        assert!(keys(&words(&["httproute/a", "b"]), "shop").is_err());
        assert_eq!(keys(&words(&["meshconfig", "default"]), "shop").unwrap()[0].namespace, "mesh-system");
    }
}
