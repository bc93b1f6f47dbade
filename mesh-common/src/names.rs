//! Names that the control plane and the proxies must agree on: xDS resources, ALPN protocols, metadata keys, ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// HTTP requests between proxies, multiplexed over HTTP/2.
pub const ALPN_H2: &[u8] = b"mesh-h2";
/// One HTTP/1.1 connection between proxies, for upgrades.
pub const ALPN_HTTP1: &[u8] = b"mesh-http/1.1";
/// A byte stream between proxies.
pub const ALPN_TCP: &[u8] = b"mesh-tcp";

pub const LISTENER_INBOUND: &str = "inbound";
pub const LISTENER_OUTBOUND: &str = "outbound";
pub const CLUSTER_PASSTHROUGH: &str = "passthrough";
pub const SECRET_IDENTITY: &str = "default";
pub const SECRET_ROOTS: &str = "ROOTCA";

/// Key of [`crate::proto::extensions::WorkloadInfo`] in an endpoint's typed metadata.
pub const METADATA_WORKLOAD: &str = "mesh";
/// What Envoy's expressions call the SPIFFE ID of the peer.
pub const EXPR_CALLER_IDENTITY: &str = "connection.uri_san_peer_certificate";
/// How many callers or values of a header one limit tells apart; all beyond share a bucket.
pub const LIMIT_KEYS: u32 = 10_000;
/// Filter name under which routes carry faults.
pub const FILTER_FAULT: &str = "envoy.filters.http.fault";
/// Proves who asks for something; what it found out is under this name for other filters.
pub const FILTER_JWT: &str = "envoy.filters.http.jwt_authn";
/// Where in there a token's claims are.
pub const JWT_PAYLOAD: &str = "payload";
/// Claims that are lists of words in one text.
pub const JWT_WORDS: [&str; 2] = ["scope", "permission"];
/// Decides who may do what; what its shadow rules found is under this name for other filters.
pub const FILTER_RBAC: &str = "envoy.filters.http.rbac";
/// Asks somebody else about a request.
pub const FILTER_EXT_AUTHZ: &str = "envoy.filters.http.ext_authz";
/// Before this, the prefix of an RBAC filter's shadow rules: where the name of the one that matches is.
pub const SHADOW_POLICY: &str = "shadow_effective_policy_id";
pub const FILTER_CORS: &str = "envoy.filters.http.cors";
/// Client feature of nodes that understand [`crate::proto::extensions::Fault`].
pub const FEATURE_FAULT: &str = "mesh.extensions.v1.Fault";
/// It understands [`Throttle`](crate::proto::extensions::Throttle) as a kind of fault.
pub const FEATURE_THROTTLE: &str = "mesh.extensions.v1.Throttle";
/// It understands [`PeakEwma`](crate::proto::extensions::PeakEwma).
pub const FEATURE_PEAK_EWMA: &str = "mesh.extensions.v1.PeakEwma";
/// It understands [`Limits`](crate::proto::extensions::Limits).
pub const FEATURE_LIMITS: &str = "mesh.extensions.v1.Limits";
/// It takes RBAC filters with the action `LOG`.
pub const FEATURE_AUDIT: &str = "mesh.authorization.audit";
/// It asks others by external authorization filters.
pub const FEATURE_CUSTOM: &str = "mesh.authorization.custom";
/// Request header between proxies: `http/1.1` or `h2`, the version that the calling application spoke.
pub const HEADER_DOWNSTREAM_PROTOCOL: &str = "x-mesh-downstream-protocol";

pub const TYPE_LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
pub const TYPE_ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
pub const TYPE_CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
pub const TYPE_ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
pub const TYPE_SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
pub const TYPE_NAME: &str = "type.googleapis.com/mesh.workload.v1.Name";

/// Ports, the field's conventions.
pub mod port {
    pub const OUTBOUND: u16 = 15001;
    pub const INBOUND: u16 = 15006;
    pub const XDS_PLAINTEXT: u16 = 15010;
    pub const XDS: u16 = 15012;
    pub const CONTROL_METRICS: u16 = 15014;
    /// `mesh.control.v1` in Kubernetes, on the loopback of mesh-control's pod.
    pub const OPERATOR: u16 = 15016;
    pub const WEBHOOK: u16 = 15017;
    pub const READY: u16 = 15021;
    pub const DNS: u16 = 15053;
    pub const PROXY_METRICS: u16 = 15090;
}

/// Paths at a proxy's ready port and at its admin socket that other parts of the mesh ask for.
pub mod path {
    /// Before a container and one of its probes or hooks.
    pub const APP_HEALTH: &str = "/app-health/";
    /// Answered when nobody calls the application any more.
    pub const DRAIN: &str = "/drain";
    /// What the control plane makes of the workload.
    pub const REGISTRATION: &str = "/registration";
}

/// For whom the tokens of service accounts are made that proxies show.
pub const TOKEN_AUDIENCE: &str = "mesh-control";

/// In a proxy's state folder: what its ready port answers to callers on the same machine.
pub const ADMIN_SOCKET: &str = "admin.sock";

/// The user that the proxy runs as in a pod; the redirect leaves its connections alone.
pub const PROXY_UID: u32 = 1337;

/// The mark of the proxy's own sockets, which the redirect leaves alone.
pub const SOCKET_MARK: u32 = 0x6d65_7368;

/// The mark of the application's datagrams to virtual addresses, which the redirect hands to the proxy.
pub const DATAGRAM_MARK: u32 = 0x6d65_7364;

/// The priority (SO_PRIORITY, which needs no right) of what the proxy sends to the application on its own machine, and of
/// nothing else that it sends: the redirect lets it through.
pub const PRIORITY_TO_APPLICATION: u32 = 5;

/// Addresses and prefix lengths of the ranges from which the control plane gives addresses to services: 240.240.0.0/16
/// and fd00:6d65:7368::/64. They exist only inside the mesh.
pub const VIRTUAL_RANGES: [(IpAddr, u8); 2] = [
    (IpAddr::V4(Ipv4Addr::new(240, 240, 0, 0)), 16),
    (IpAddr::V6(Ipv6Addr::new(0xfd00, 0x6d65, 0x7368, 0, 0, 0, 0, 0)), 64),
];

/// Whether an address is in one of the [`VIRTUAL_RANGES`].
pub fn is_virtual(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => address.octets()[..2] == [240, 240],
        IpAddr::V6(address) => address.segments()[..4] == [0xfd00, 0x6d65, 0x7368, 0],
    }
}

/// `<service>.<namespace>.svc.cluster.local`
pub fn fqdn(service: &str, namespace: &str) -> String {
    format!("{service}.{namespace}.svc.{CLUSTER_DOMAIN}")
}

/// The same of what a workload serves, which may be nothing: "" then.
pub fn served_fqdn(service: &str, namespace: &str) -> String {
    if service.is_empty() { String::new() } else { fqdn(service, namespace) }
}

/// Name of the service that the workloads of one version of a service make: `reviews-v2`. It need not be one that a service
/// can have: it may be too long.
pub fn version_service(service: &str, version: &str) -> String {
    format!("{service}-{}", version_label(version))
}

/// A version as it is in names. It is what a label's value may be, and names are DNS labels: `1.2.3` and `RC_1` are `1-2-3`
/// and `rc-1` there.
pub fn version_label(version: &str) -> String {
    version.to_ascii_lowercase().replace(['.', '_'], "-")
}

/// In place of a service, where there were more than can be told apart.
pub const OVERFLOW: &str = "overflow";

/// Name of the cluster, its endpoints and, for HTTP, the route configuration of a service port.
pub fn service_port(service: &str, namespace: &str, port: u16) -> String {
    format!("{service}.{namespace}.svc.{CLUSTER_DOMAIN}:{port}")
}

/// Name of the byte-stream cluster of a port whose protocol is unknown.
pub fn tcp_cluster(service_port: &str) -> String {
    format!("tcp:{service_port}")
}

/// Begins the names of listeners and clusters for datagrams.
pub const UDP_PREFIX: &str = "udp:";

/// Name of the cluster of a service's UDP port: the same number may be a TCP port too.
pub fn udp_cluster(service_port: &str) -> String {
    format!("{UDP_PREFIX}{service_port}")
}

/// Name of the listener for datagrams to this address.
pub fn udp_listener(address: IpAddr, port: u16) -> String {
    format!("{UDP_PREFIX}{}", SocketAddr::new(address, port))
}

/// Name of the cluster, which there never is, of a backend that a route refers to but must not or cannot use.
pub fn unresolved_cluster(service_port: &str) -> String {
    format!("unresolved:{service_port}")
}

/// Begins the name of the cluster of one workload, called at its own address.
pub const DIRECT_PREFIX: &str = "direct:";

/// Name of the cluster of one workload, called at its own address.
pub fn direct_cluster(address: SocketAddr) -> String {
    format!("{DIRECT_PREFIX}{address}")
}

/// Name of the listener for connections to this address.
pub fn outbound_listener(address: IpAddr, port: u16) -> String {
    SocketAddr::new(address, port).to_string()
}

/// Name of the cluster of an application's own port.
pub fn inbound_cluster(port: u16) -> String {
    format!("inbound:{port}")
}

/// Names in a cluster.
pub mod kubernetes {
    /// The ConfigMap in each namespace with the roots of the mesh, under the key [`TRUST_BUNDLE_KEY`].
    pub const TRUST_BUNDLE: &str = "mesh-trust-bundle";
    pub const TRUST_BUNDLE_KEY: &str = "root.pem";
    /// Label of pods that have a proxy; its value is `true`.
    pub const LABEL_PROXY: &str = "meshctl.dev/proxy";
    /// The native sidecar in such a pod.
    pub const CONTAINER_PROXY: &str = "mesh-proxy";
    /// Label of namespaces and pods: `enabled` or `disabled`; the pod's goes before the namespace's.
    pub const LABEL_INJECTION: &str = "mesh-injection";
    /// As which controller of Gateway API we write a route's status.
    pub const CONTROLLER: &str = "meshctl.dev/mesh-control";
    pub const INJECTOR: &str = "mesh-injector";
    pub const VALIDATOR: &str = "mesh-validator";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_addresses_are_told_from_others() {
        for text in ["240.240.0.1", "240.240.255.255", "::ffff:240.240.1.1", "fd00:6d65:7368::1"] {
            assert!(is_virtual(text.parse().unwrap()), "{text}");
        }
        for text in ["240.241.0.1", "10.0.0.1", "fd00:6d65:7368:1::1", "::1"] {
            assert!(!is_virtual(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn versions_are_in_names_as_names_can_be() {
        for (version, name) in [
            ("v2", "reviews-v2"),
            ("1.2.3", "reviews-1-2-3"),
            ("1.2.3-RC_1", "reviews-1-2-3-rc-1"),
            ("a--b", "reviews-a--b"),
        ] {
            assert_eq!(version_service("reviews", version), name);
            crate::identity::check_label(name).unwrap();
        }
    }

    #[test]
    fn listener_names_put_ipv6_in_brackets() {
        assert_eq!(outbound_listener("fd00::1".parse().unwrap(), 80), "[fd00::1]:80");
        assert_eq!(outbound_listener("240.240.0.5".parse().unwrap(), 9080), "240.240.0.5:9080");
    }
}
