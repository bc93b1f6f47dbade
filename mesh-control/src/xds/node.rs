//! Who is at the other end of a stream, from what it says (its node) and what it has proven (its caller).

use envoy_types::pb::envoy::config::core::v3::node::UserAgentVersionType;
use envoy_types::pb::envoy::config::core::v3::{Locality, Node};
use envoy_types::pb::google::protobuf::value::Kind;
use mesh_common::names;
use prost::Message;

use super::session::Order;
use crate::auth::Caller;
use crate::compile::{ClientKind, Scope};

const NODE_BYTES: usize = 64 << 10;
const TEXT_BYTES: usize = 253;
const INBOUND_PORTS: usize = 64;
const DEFAULT_NAMESPACE: &str = "default";

/// Why a node cannot be served.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NodeError {
    #[error("the first request of a stream must hold a node with an id")]
    NoId,
    #[error("the node has more than {NODE_BYTES} bytes without its extensions; send less metadata")]
    TooLarge,
    #[error("the node speaks for the workload {node:?}, but its token was made for the pod {token:?}")]
    OtherPod { node: String, token: String },
    #[error("{0} of the node has more than {TEXT_BYTES} bytes")]
    LongText(&'static str),
    #[error(
        "INBOUND_PORTS in the node's metadata is {0:?}; it must be up to {INBOUND_PORTS} port numbers with commas between them"
    )]
    Ports(String),
}

/// A client as the control plane knows it.
#[derive(Clone, Debug)]
pub struct Client {
    /// As sent, without the list of extensions.
    pub node: Node,
    pub user_agent: String,
    pub scope: Scope,
}

impl Client {
    pub fn new(mut node: Node, caller: &Caller) -> Result<Self, NodeError> {
        // Envoy lists all of its hundreds of extensions; nothing here needs them.
        node.extensions.clear();
        if node.id.is_empty() {
            return Err(NodeError::NoId);
        }
        if node.encoded_len() > NODE_BYTES {
            return Err(NodeError::TooLarge);
        }
        if node.id.len() > TEXT_BYTES {
            return Err(NodeError::LongText("the id"));
        }
        let namespace = match &caller.identity {
            // Never from the node where there is proof.
            Some(identity) => identity.namespace.clone(),
            None => text(&node, "NAMESPACE")?.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned()),
        };
        let client = client_kind(&node.user_agent_name);
        let scope = Scope {
            identity: caller.identity.clone(),
            service: text(&node, "SERVICE")?.unwrap_or_default(),
            version: text(&node, "VERSION")?.unwrap_or_default(),
            workload: match text(&node, "WORKLOAD")? {
                Some(workload) => workload,
                None => node.id.strip_suffix(&format!(".{namespace}")).unwrap_or_default().to_owned(),
            },
            inbound_ports: inbound_ports(&node)?,
            client,
            faults: knows(&node, names::FEATURE_FAULT),
            throttles: knows(&node, names::FEATURE_THROTTLE),
            peak_ewma: knows(&node, names::FEATURE_PEAK_EWMA),
            limits: knows(&node, names::FEATURE_LIMITS),
            audits: client == ClientKind::Envoy || knows(&node, names::FEATURE_AUDIT),
            asks: client == ClientKind::Envoy || knows(&node, names::FEATURE_CUSTOM),
            locality: locality(&node)?,
            namespace,
        };
        if let Some(pod) = caller.pod.as_ref().filter(|pod| **pod != scope.workload) {
            return Err(NodeError::OtherPod { node: scope.workload, token: pod.clone() });
        }
        Ok(Self { user_agent: user_agent(&node), node, scope })
    }

    /// How responses to this client must follow each other.
    pub fn order(&self) -> Order {
        match self.scope.client {
            ClientKind::Envoy => Order::WaitForWarm,
            ClientKind::Mesh | ClientKind::Grpc => Order::AnswerAtOnce,
        }
    }
}

fn knows(node: &Node, feature: &str) -> bool {
    node.client_features.iter().any(|known| known == feature)
}

fn locality(node: &Node) -> Result<[String; 3], NodeError> {
    let Locality { region, zone, sub_zone } = node.locality.clone().unwrap_or_default();
    let locality = [region, zone, sub_zone];
    if locality.iter().any(|part| part.len() > TEXT_BYTES) {
        return Err(NodeError::LongText("the locality"));
    }
    Ok(locality)
}

fn client_kind(user_agent_name: &str) -> ClientKind {
    if user_agent_name == "mesh-proxy" {
        ClientKind::Mesh
    } else if user_agent_name.to_ascii_lowercase().starts_with("grpc") {
        ClientKind::Grpc
    } else {
        ClientKind::Envoy
    }
}

fn user_agent(node: &Node) -> String {
    let version = match &node.user_agent_version_type {
        Some(UserAgentVersionType::UserAgentVersion(version)) => version.clone(),
        Some(UserAgentVersionType::UserAgentBuildVersion(build)) => {
            let version = build.version.unwrap_or_default();
            format!("{}.{}.{}", version.major_number, version.minor_number, version.patch)
        }
        None => return node.user_agent_name.clone(),
    };
    format!("{}/{version}", node.user_agent_name)
}

/// A string of the node's metadata; an empty one counts as missing.
fn text(node: &Node, key: &'static str) -> Result<Option<String>, NodeError> {
    let value = node.metadata.as_ref().and_then(|metadata| metadata.fields.get(key));
    match value.and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(text)) if text.len() > TEXT_BYTES => Err(NodeError::LongText(key)),
        Some(Kind::StringValue(text)) if !text.is_empty() => Ok(Some(text.clone())),
        _ => Ok(None),
    }
}

fn inbound_ports(node: &Node) -> Result<Vec<u16>, NodeError> {
    let Some(text) = text(node, "INBOUND_PORTS")? else { return Ok(Vec::new()) };
    let parsed: Result<Vec<u16>, _> = text.split(',').map(|port| port.trim().parse()).collect();
    match parsed {
        Ok(mut ports) if ports.len() <= INBOUND_PORTS && !ports.contains(&0) => {
            ports.sort_unstable();
            ports.dedup();
            Ok(ports)
        }
        _ => Err(NodeError::Ports(text)),
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::{BuildVersion, Extension};
    use envoy_types::pb::envoy::r#type::v3::SemanticVersion;
    use envoy_types::pb::google::protobuf::{Struct, Value};
    use mesh_common::identity::Identity;

    use super::*;
    use crate::auth::Transport;

    fn node(id: &str, metadata: &[(&str, &str)]) -> Node {
        let value = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
        let fields = metadata.iter().map(|(key, text)| ((*key).to_owned(), value(text))).collect();
        Node { id: id.to_owned(), metadata: Some(Struct { fields }), ..Node::default() }
    }

    fn caller(identity: Option<&str>) -> Caller {
        let identity = identity.map(|id| id.parse::<Identity>().unwrap());
        Caller { identity, pod: None, address: "127.0.0.1:1".to_owned(), transport: Transport::Loopback, process: None }
    }

    #[test]
    fn proof_goes_before_what_the_node_says() {
        let asks = node("web-1.shop", &[("NAMESPACE", "other"), ("SERVICE", "web"), ("VERSION", "v1")]);
        let client = Client::new(asks.clone(), &caller(Some("spiffe://mesh.local/ns/shop/sa/web"))).unwrap();
        assert_eq!((client.scope.namespace.as_str(), client.scope.workload.as_str()), ("shop", "web-1"));
        assert_eq!((client.scope.service.as_str(), client.scope.version.as_str()), ("web", "v1"));
        let client = Client::new(asks, &caller(None)).unwrap();
        assert_eq!((client.scope.namespace.as_str(), client.scope.identity), ("other", None));
        assert_eq!(Client::new(node("x", &[]), &caller(None)).unwrap().scope.namespace, "default");
    }

    #[test]
    fn programs_are_told_apart() {
        for (name, kind, order) in [
            ("mesh-proxy", ClientKind::Mesh, Order::AnswerAtOnce),
            ("envoy", ClientKind::Envoy, Order::WaitForWarm),
            ("gRPC C-core", ClientKind::Grpc, Order::AnswerAtOnce),
            ("", ClientKind::Envoy, Order::WaitForWarm),
        ] {
            let asks = Node { user_agent_name: name.to_owned(), ..node("x", &[]) };
            let client = Client::new(asks, &caller(None)).unwrap();
            assert_eq!((client.scope.client, client.order()), (kind, order), "{name}");
        }
        let version = SemanticVersion { major_number: 1, minor_number: 40, patch: 2 };
        let build = BuildVersion { version: Some(version), metadata: None };
        let envoy = Node {
            user_agent_name: "envoy".to_owned(),
            user_agent_version_type: Some(UserAgentVersionType::UserAgentBuildVersion(build)),
            extensions: vec![Extension { name: "x".repeat(NODE_BYTES), ..Extension::default() }],
            ..node("x", &[])
        };
        assert_eq!(Client::new(envoy, &caller(None)).unwrap().user_agent, "envoy/1.40.2");
    }

    #[test]
    fn a_pods_token_speaks_for_that_pod_only() {
        let of = |pod: &str| Caller { pod: Some(pod.to_owned()), ..caller(Some("spiffe://mesh.local/ns/shop/sa/web")) };
        assert!(Client::new(node("web-1.shop", &[]), &of("web-1")).is_ok());
        let error = Client::new(node("web-1.shop", &[]), &of("web-2")).unwrap_err();
        assert_eq!(error, NodeError::OtherPod { node: "web-1".to_owned(), token: "web-2".to_owned() });
    }

    #[test]
    fn ports_and_features_are_read() {
        let mut asks = node("x", &[("INBOUND_PORTS", "9090, 9080,9080")]);
        asks.client_features = vec![names::FEATURE_FAULT.to_owned()];
        let client = Client::new(asks, &caller(None)).unwrap();
        assert_eq!((client.scope.inbound_ports, client.scope.faults), (vec![9080, 9090], true));
    }

    #[test]
    fn what_cannot_be_served_is_refused() {
        let refused = |node| Client::new(node, &caller(None)).unwrap_err();
        assert_eq!(refused(node("", &[])), NodeError::NoId);
        assert_eq!(refused(node(&"x".repeat(254), &[])), NodeError::LongText("the id"));
        assert_eq!(refused(node("x", &[("SERVICE", &"x".repeat(254))])), NodeError::LongText("SERVICE"));
        assert_eq!(refused(node("x", &[("else", &"x".repeat(NODE_BYTES))])), NodeError::TooLarge);
        for ports in ["a", "0", "70000", "1,,2"] {
            assert_eq!(refused(node("x", &[("INBOUND_PORTS", ports)])), NodeError::Ports(ports.to_owned()));
        }
    }
}
