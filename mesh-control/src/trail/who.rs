//! Who makes a change.

use mesh_common::identity::Identity;
use serde::{Deserialize, Serialize};

use crate::auth::Peer;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Who {
    /// The control plane itself, because time passes.
    #[default]
    MeshControl,
    /// Who has opened the operator's socket, by the kernel's word. Without a uid it is not known who that was.
    User {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        uid: Option<u32>,
    },
    /// A proxy that registers its workload, with this SPIFFE ID.
    Workload { name: String },
}

impl Who {
    /// Who calls on the operator's socket.
    pub fn operator(peer: Option<&Peer>) -> Self {
        let uid = peer.and_then(|peer| peer.user);
        let users = || std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        Self::User { name: uid.and_then(|uid| name_in(&users(), uid)), uid }
    }

    pub fn workload(identity: &Identity) -> Self {
        Self::Workload { name: identity.to_string() }
    }

    /// Whether this text is a part of the name, or the uid.
    pub fn is(&self, text: &str) -> bool {
        match self {
            Self::MeshControl => "mesh-control".contains(text),
            Self::User { name, uid } => {
                name.as_ref().is_some_and(|name| name.contains(text)) || uid.is_some_and(|uid| uid.to_string() == text)
            }
            Self::Workload { name } => name.contains(text),
        }
    }
}

/// The user's name in the text of `/etc/passwd`.
fn name_in(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid.to_string()).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_names() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n# no user\nada:x:1000:1000::/home/ada:/bin/sh\n";
        assert_eq!(name_in(passwd, 1000).as_deref(), Some("ada"));
        assert_eq!(name_in(passwd, 0).as_deref(), Some("root"));
        assert_eq!(name_in(passwd, 7), None);
        let ada = Who::User { name: Some("ada".into()), uid: Some(1000) };
        assert!(ada.is("ada") && ada.is("1000") && !ada.is("100") && !ada.is("bob"));
        assert_eq!(serde_json::to_string(&ada).unwrap(), r#"{"kind":"user","name":"ada","uid":1000}"#);
        assert_eq!(serde_json::to_string(&Who::MeshControl).unwrap(), r#"{"kind":"mesh-control"}"#);
        assert_eq!(Who::operator(None), Who::User { name: None, uid: None });
    }
}
