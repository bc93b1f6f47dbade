use mesh_common::identity::Identity;
use mesh_common::names;

/// What is known about an asker. Askers with equal scopes get equal bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scope {
    pub namespace: String,
    /// `None` for an asker on the loopback that proved nothing.
    pub identity: Option<Identity>,
    /// "" if it serves none.
    pub service: String,
    pub version: String,
    /// Name of its WorkloadEntry, "" if it has none.
    pub workload: String,
    /// Ports of the application behind an asker that has no registered workload.
    pub inbound_ports: Vec<u16>,
    pub client: ClientKind,
    /// It understands [`mesh_common::proto::extensions::Fault`].
    pub faults: bool,
    /// It understands [`mesh_common::proto::extensions::Throttle`] among them.
    pub throttles: bool,
    /// It understands [`mesh_common::proto::extensions::PeakEwma`].
    pub peak_ewma: bool,
    /// It understands [`mesh_common::proto::extensions::Limits`].
    pub limits: bool,
    /// It takes RBAC filters with the action `LOG`: every Envoy, and each mesh-proxy but old ones.
    pub audits: bool,
    /// It takes external authorization filters: every Envoy, and each mesh-proxy but old ones.
    pub asks: bool,
    /// Region, zone and sub-zone of an asker that has no registered workload, by its own account.
    pub locality: [String; 3],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientKind {
    /// `mesh-proxy`.
    Mesh,
    Envoy,
    /// A proxyless gRPC client.
    Grpc,
}

/// Types that are compiled from the model. Secrets come from the certificate authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceType {
    Cluster,
    Endpoints,
    Listener,
    Route,
    Name,
}

impl ResourceType {
    pub const ALL: [Self; 5] = [Self::Cluster, Self::Endpoints, Self::Listener, Self::Route, Self::Name];

    pub fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => names::TYPE_CLUSTER,
            Self::Endpoints => names::TYPE_ENDPOINTS,
            Self::Listener => names::TYPE_LISTENER,
            Self::Route => names::TYPE_ROUTE,
            Self::Name => names::TYPE_NAME,
        }
    }
}
