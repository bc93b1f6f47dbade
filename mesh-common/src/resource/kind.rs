use std::fmt;

pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
pub const MESH_GROUP: &str = "meshctl.dev";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Service,
    HttpRoute,
    GrpcRoute,
    TcpRoute,
    TlsRoute,
    UdpRoute,
    ReferenceGrant,
    TrafficPolicy,
    FaultInjection,
    DirectResponse,
    PeerAuthentication,
    RequestAuthentication,
    AuthorizationPolicy,
    Telemetry,
    WorkloadEntry,
    MeshConfig,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a kind; the kinds are {}", Kind::ALL.map(Kind::as_str).join(", "))]
pub struct UnknownKind {
    pub text: String,
}

impl Kind {
    pub const ALL: [Self; 16] = [
        Self::Service,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::TcpRoute,
        Self::TlsRoute,
        Self::UdpRoute,
        Self::ReferenceGrant,
        Self::TrafficPolicy,
        Self::FaultInjection,
        Self::DirectResponse,
        Self::PeerAuthentication,
        Self::RequestAuthentication,
        Self::AuthorizationPolicy,
        Self::Telemetry,
        Self::WorkloadEntry,
        Self::MeshConfig,
    ];

    /// Takes what people type: kind, plural or short name in any case, with or without the group
    /// (`httproutes.gateway.networking.k8s.io`).
    pub fn parse(text: &str) -> Result<Self, UnknownKind> {
        let lower = text.to_ascii_lowercase();
        let is = |kind: &Self| {
            let name = match lower.split_once('.') {
                Some((name, group)) if group == kind.group() => name,
                Some(_) => return false,
                None => lower.as_str(),
            };
            name == kind.plural() || name == kind.singular() || kind.short_names().contains(&name)
        };
        Self::ALL.into_iter().find(is).ok_or_else(|| UnknownKind { text: text.to_owned() })
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TcpRoute => "TCPRoute",
            Self::TlsRoute => "TLSRoute",
            Self::UdpRoute => "UDPRoute",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::TrafficPolicy => "TrafficPolicy",
            Self::FaultInjection => "FaultInjection",
            Self::DirectResponse => "DirectResponse",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::RequestAuthentication => "RequestAuthentication",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::Telemetry => "Telemetry",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::MeshConfig => "MeshConfig",
        }
    }

    pub fn singular(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::HttpRoute => "httproute",
            Self::GrpcRoute => "grpcroute",
            Self::TcpRoute => "tcproute",
            Self::TlsRoute => "tlsroute",
            Self::UdpRoute => "udproute",
            Self::ReferenceGrant => "referencegrant",
            Self::TrafficPolicy => "trafficpolicy",
            Self::FaultInjection => "faultinjection",
            Self::DirectResponse => "directresponse",
            Self::PeerAuthentication => "peerauthentication",
            Self::RequestAuthentication => "requestauthentication",
            Self::AuthorizationPolicy => "authorizationpolicy",
            Self::Telemetry => "telemetry",
            Self::WorkloadEntry => "workloadentry",
            Self::MeshConfig => "meshconfig",
        }
    }

    pub fn plural(self) -> &'static str {
        match self {
            Self::Service => "services",
            Self::HttpRoute => "httproutes",
            Self::GrpcRoute => "grpcroutes",
            Self::TcpRoute => "tcproutes",
            Self::TlsRoute => "tlsroutes",
            Self::UdpRoute => "udproutes",
            Self::ReferenceGrant => "referencegrants",
            Self::TrafficPolicy => "trafficpolicies",
            Self::FaultInjection => "faultinjections",
            Self::DirectResponse => "directresponses",
            Self::PeerAuthentication => "peerauthentications",
            Self::RequestAuthentication => "requestauthentications",
            Self::AuthorizationPolicy => "authorizationpolicies",
            Self::Telemetry => "telemetries",
            Self::WorkloadEntry => "workloadentries",
            Self::MeshConfig => "meshconfigs",
        }
    }

    pub fn short_names(self) -> &'static [&'static str] {
        match self {
            Self::Service => &["svc"],
            Self::ReferenceGrant => &["refgrant"],
            Self::TrafficPolicy => &["tp"],
            Self::FaultInjection => &["fault", "faults"],
            Self::DirectResponse => &["dr"],
            Self::PeerAuthentication => &["pa"],
            Self::RequestAuthentication => &["ra"],
            Self::AuthorizationPolicy => &["ap"],
            Self::WorkloadEntry => &["we", "workload", "workloads"],
            _ => &[],
        }
    }

    /// "" is the core group.
    pub fn group(self) -> &'static str {
        match self {
            Self::Service => "",
            Self::HttpRoute
            | Self::GrpcRoute
            | Self::TcpRoute
            | Self::TlsRoute
            | Self::UdpRoute
            | Self::ReferenceGrant => GATEWAY_GROUP,
            _ => MESH_GROUP,
        }
    }

    /// The version that the standalone mesh writes.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::TcpRoute | Self::UdpRoute => "gateway.networking.k8s.io/v1alpha2",
            Self::ReferenceGrant => "gateway.networking.k8s.io/v1beta1",
            other => other.api_versions()[0],
        }
    }

    /// All versions that are read, the newest first; they have the same schema. Which of them an API server serves depends on
    /// its definitions.
    pub fn api_versions(self) -> &'static [&'static str] {
        match self {
            Self::Service => &["v1"],
            Self::HttpRoute => &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"],
            Self::GrpcRoute => &["gateway.networking.k8s.io/v1"],
            Self::TcpRoute | Self::UdpRoute => &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha2"],
            Self::TlsRoute => &[
                "gateway.networking.k8s.io/v1",
                "gateway.networking.k8s.io/v1alpha3",
                "gateway.networking.k8s.io/v1alpha2",
            ],
            Self::ReferenceGrant => &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"],
            _ => &["meshctl.dev/v1alpha1"],
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What an object is called.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_the_newest_version_comes_first() {
        for kind in Kind::ALL {
            let versions = kind.api_versions();
            assert!(versions.contains(&kind.api_version()), "{kind}");
            let stable = versions.iter().position(|version| !version.contains("alpha") && !version.contains("beta"));
            assert!(stable.is_none_or(|at| at == 0), "{kind}: {versions:?}");
        }
    }

    #[test]
    fn takes_what_people_type() {
        for kind in Kind::ALL {
            for text in [kind.as_str(), kind.singular(), kind.plural()].iter().chain(kind.short_names()) {
                assert_eq!(Kind::parse(text), Ok(kind), "{text}");
            }
        }
        assert_eq!(Kind::parse("HTTPRoutes.gateway.networking.k8s.io"), Ok(Kind::HttpRoute));
        assert!(Kind::parse("httproutes.example.com").is_err());
        assert!(Kind::parse("pods").unwrap_err().to_string().contains("WorkloadEntry"));
    }
}
