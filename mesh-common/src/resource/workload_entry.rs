use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{ANNOTATION_EXCLUDED_PORTS, ANNOTATION_PLACE_OF, LABEL_REGISTERED, WorkloadEntry};
use crate::names::kubernetes::LABEL_PROXY;

/// What a port may speak, when it is told.
pub const PROTOCOLS: [&str; 5] = ["http", "http2", "grpc", "tcp", "udp"];

impl WorkloadEntry {
    /// A proxy registered it, and it goes when the proxy goes.
    pub fn registered(&self) -> bool {
        self.metadata.labels.get(LABEL_REGISTERED).is_some_and(|value| value == "true")
    }

    /// Its proxy is a `mesh-proxy` that takes the connections to all of its ports, whether anybody names them or not.
    pub fn intercepted(&self) -> bool {
        self.registered() || self.metadata.labels.get(LABEL_PROXY).is_some_and(|value| value == "true")
    }

    /// Ports that its proxy leaves to the application.
    pub fn excluded_ports(&self) -> Vec<u16> {
        let text = self.metadata.annotations.get(ANNOTATION_EXCLUDED_PORTS).map_or("", String::as_str);
        text.split(',').filter_map(|port| port.trim().parse().ok()).collect()
    }

    /// Namespace and name of the workload that this is only another place of.
    pub fn place_of(&self) -> Option<(&str, &str)> {
        self.metadata.annotations.get(ANNOTATION_PLACE_OF)?.split_once('/')
    }

    /// It has a proxy, so it is called over mutual TLS.
    pub fn in_mesh(&self) -> bool {
        self.spec.mesh.unwrap_or_else(|| self.registered())
    }
}

/// A process, a VM or any host that serves or calls services.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct WorkloadEntrySpec {
    /// "" for one that only calls others.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<WorkloadPort>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service_account: String,
    /// `region/zone/subzone`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locality: Option<String>,
    /// Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthy: Option<bool>,
    /// It has a proxy of the mesh, so it is called over mutual TLS. Default: true if it registered itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct WorkloadPort {
    pub port: u16,
    /// The service's port. Default: the same number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_port: Option<u16>,
    /// `http`, `http2`, `grpc`, `tcp` or `udp`. Default: one of the others than `udp`, detected for each connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}
