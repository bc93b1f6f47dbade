//! Who the proxy says that it is.

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::config::core::v3::node::UserAgentVersionType;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Struct, Value};
use mesh_common::names::{
    FEATURE_AUDIT, FEATURE_CUSTOM, FEATURE_FAULT, FEATURE_LIMITS, FEATURE_PEAK_EWMA, FEATURE_THROTTLE,
};

/// What the control plane cannot know from the certificate.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    pub workload: String,
    pub namespace: String,
    pub service: String,
    pub version: String,
    pub ports: Vec<u16>,
}

pub fn node(info: &NodeInfo) -> Node {
    let ports = info.ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
    let fields = [
        ("NAMESPACE", info.namespace.clone()),
        ("SERVICE", info.service.clone()),
        ("VERSION", info.version.clone()),
        ("WORKLOAD", info.workload.clone()),
        ("INBOUND_PORTS", ports),
    ];
    let fields = fields
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| (key.to_owned(), Value { kind: Some(Kind::StringValue(value)) }))
        .collect();
    Node {
        id: format!("{}.{}", info.workload, info.namespace),
        cluster: info.service.clone(),
        metadata: Some(Struct { fields }),
        user_agent_name: "mesh-proxy".to_owned(),
        user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion(env!("CARGO_PKG_VERSION").to_owned())),
        client_features: [
            FEATURE_AUDIT,
            FEATURE_CUSTOM,
            FEATURE_FAULT,
            FEATURE_LIMITS,
            FEATURE_PEAK_EWMA,
            FEATURE_THROTTLE,
        ]
        .map(str::to_owned)
        .to_vec(),
        ..Default::default()
    }
}
