//! The objects that users write: Kubernetes-shaped, in Gateway API and in our own group.
//!
//! In: YAML or JSON. Out: typed objects, kept as they were written (defaults are filled in by the model, not here), or
//! errors with file, line, column and field path.

mod authorization_policy;
mod direct_response;
mod duration;
mod endpoint_health;
mod fault;
mod gateway;
mod grpc_route;
mod http_route;
mod kind;
mod limits;
mod mesh_config;
mod metadata;
mod parse;
mod peer_authentication;
mod quantity;
mod reference_grant;
mod request_authentication;
mod service;
mod tcp_route;
mod telemetry;
mod tls_route;
mod traffic_policy;
mod udp_route;
mod validate;
mod workload_entry;

use serde::{Deserialize, Serialize};

pub use authorization_policy::*;
pub use direct_response::*;
pub use duration::{Duration, DurationError};
pub use endpoint_health::*;
pub use fault::*;
pub use gateway::*;
pub use grpc_route::*;
pub use http_route::*;
pub use kind::{GATEWAY_GROUP, Key, Kind, MESH_GROUP, UnknownKind};
pub use limits::*;
pub use mesh_config::*;
pub use metadata::Metadata;
pub use parse::{Located, ParseError, parse_located, parse_yaml};
pub use peer_authentication::*;
pub use quantity::{ByteRate, ByteRateError, ByteSize, ByteSizeError};
pub use reference_grant::*;
pub use request_authentication::*;
pub use service::*;
pub use tcp_route::*;
pub use telemetry::*;
pub use tls_route::*;
pub use traffic_policy::*;
pub use udp_route::*;
pub use validate::{FieldError, validate};
pub use workload_entry::*;

/// Where objects without a namespace live.
pub const DEFAULT_NAMESPACE: &str = "default";
/// The namespace whose policies hold for the whole mesh.
pub const MESH_NAMESPACE: &str = "mesh-system";
/// Label of a [`WorkloadEntry`] that a proxy registered and that goes when the proxy goes.
pub const LABEL_REGISTERED: &str = "meshctl.dev/registered";
/// Label of a [`WorkloadEntry`] whose proxy has not been heard of for some time, or whose node has not. Set by the registry and
/// by the source alone.
pub const LABEL_LOST: &str = "meshctl.dev/lost";
/// Annotation of a workload whose proxy leaves these ports to the application, such as `22,9000`.
pub const ANNOTATION_EXCLUDED_PORTS: &str = "meshctl.dev/exclude-inbound-ports";
/// Label of a [`WorkloadEntry`] that stands for a workload of a platform which is ending it. Set by the source alone.
pub const LABEL_TERMINATING: &str = "meshctl.dev/terminating";
/// Annotation of a [`WorkloadEntry`] that is no workload of its own, but a place where a service calls another one: that
/// one's `namespace/name`. Set by the source alone.
pub const ANNOTATION_PLACE_OF: &str = "meshctl.dev/place-of";

/// Annotation of a Service: the service accounts whose workloads may register for it, with commas. Without it, those of
/// the first that did.
pub const ANNOTATION_SERVICE_ACCOUNTS: &str = "meshctl.dev/service-accounts";

/// An object of one kind.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Resource<S> {
    pub metadata: Metadata,
    pub spec: S,
}

pub type Service = Resource<ServiceSpec>;
pub type HttpRoute = Resource<HttpRouteSpec>;
pub type GrpcRoute = Resource<GrpcRouteSpec>;
pub type TcpRoute = Resource<TcpRouteSpec>;
pub type TlsRoute = Resource<TlsRouteSpec>;
pub type UdpRoute = Resource<UdpRouteSpec>;
pub type ReferenceGrant = Resource<ReferenceGrantSpec>;
pub type TrafficPolicy = Resource<TrafficPolicySpec>;
pub type FaultInjection = Resource<FaultInjectionSpec>;
pub type DirectResponse = Resource<DirectResponseSpec>;
pub type PeerAuthentication = Resource<PeerAuthenticationSpec>;
pub type RequestAuthentication = Resource<RequestAuthenticationSpec>;
pub type AuthorizationPolicy = Resource<AuthorizationPolicySpec>;
pub type Telemetry = Resource<TelemetrySpec>;
pub type WorkloadEntry = Resource<WorkloadEntrySpec>;
pub type MeshConfig = Resource<MeshConfigSpec>;

/// An object of any kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    Service(Service),
    HttpRoute(HttpRoute),
    GrpcRoute(GrpcRoute),
    TcpRoute(TcpRoute),
    TlsRoute(TlsRoute),
    UdpRoute(UdpRoute),
    ReferenceGrant(ReferenceGrant),
    TrafficPolicy(TrafficPolicy),
    FaultInjection(FaultInjection),
    DirectResponse(DirectResponse),
    PeerAuthentication(PeerAuthentication),
    RequestAuthentication(RequestAuthentication),
    AuthorizationPolicy(AuthorizationPolicy),
    Telemetry(Telemetry),
    WorkloadEntry(WorkloadEntry),
    MeshConfig(MeshConfig),
}

/// Runs the same expression on whichever resource the object is.
macro_rules! each {
    ($object:expr, $resource:ident => $body:expr) => {
        match $object {
            Object::Service($resource) => $body,
            Object::HttpRoute($resource) => $body,
            Object::GrpcRoute($resource) => $body,
            Object::TcpRoute($resource) => $body,
            Object::TlsRoute($resource) => $body,
            Object::UdpRoute($resource) => $body,
            Object::ReferenceGrant($resource) => $body,
            Object::TrafficPolicy($resource) => $body,
            Object::FaultInjection($resource) => $body,
            Object::DirectResponse($resource) => $body,
            Object::PeerAuthentication($resource) => $body,
            Object::RequestAuthentication($resource) => $body,
            Object::AuthorizationPolicy($resource) => $body,
            Object::Telemetry($resource) => $body,
            Object::WorkloadEntry($resource) => $body,
            Object::MeshConfig($resource) => $body,
        }
    };
}

macro_rules! into_object {
    ($($variant:ident($spec:ty)),* $(,)?) => {
        $(impl From<Resource<$spec>> for Object {
            fn from(resource: Resource<$spec>) -> Self {
                Self::$variant(resource)
            }
        })*
    };
}

into_object! {
    Service(ServiceSpec),
    HttpRoute(HttpRouteSpec),
    GrpcRoute(GrpcRouteSpec),
    TcpRoute(TcpRouteSpec),
    TlsRoute(TlsRouteSpec),
    UdpRoute(UdpRouteSpec),
    ReferenceGrant(ReferenceGrantSpec),
    TrafficPolicy(TrafficPolicySpec),
    FaultInjection(FaultInjectionSpec),
    DirectResponse(DirectResponseSpec),
    PeerAuthentication(PeerAuthenticationSpec),
    RequestAuthentication(RequestAuthenticationSpec),
    AuthorizationPolicy(AuthorizationPolicySpec),
    Telemetry(TelemetrySpec),
    WorkloadEntry(WorkloadEntrySpec),
    MeshConfig(MeshConfigSpec),
}

impl Object {
    /// Reads one JSON object. Its status, if any, is dropped.
    pub fn from_json(text: &str) -> Result<Self, ParseError> {
        parse::from_json(text)
    }

    /// Like [`from_json`](Self::from_json), for objects that somebody else has taken already, perhaps by a newer schema:
    /// what is not known here is left out, and the paths of what was left out are given.
    pub fn from_newer_json(text: &str) -> Result<(Self, Vec<String>), ParseError> {
        parse::from_newer_json(text)
    }

    pub fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::HttpRoute(_) => Kind::HttpRoute,
            Self::GrpcRoute(_) => Kind::GrpcRoute,
            Self::TcpRoute(_) => Kind::TcpRoute,
            Self::TlsRoute(_) => Kind::TlsRoute,
            Self::UdpRoute(_) => Kind::UdpRoute,
            Self::ReferenceGrant(_) => Kind::ReferenceGrant,
            Self::TrafficPolicy(_) => Kind::TrafficPolicy,
            Self::FaultInjection(_) => Kind::FaultInjection,
            Self::DirectResponse(_) => Kind::DirectResponse,
            Self::PeerAuthentication(_) => Kind::PeerAuthentication,
            Self::RequestAuthentication(_) => Kind::RequestAuthentication,
            Self::AuthorizationPolicy(_) => Kind::AuthorizationPolicy,
            Self::Telemetry(_) => Kind::Telemetry,
            Self::WorkloadEntry(_) => Kind::WorkloadEntry,
            Self::MeshConfig(_) => Kind::MeshConfig,
        }
    }

    pub fn metadata(&self) -> &Metadata {
        each!(self, resource => &resource.metadata)
    }

    pub fn metadata_mut(&mut self) -> &mut Metadata {
        each!(self, resource => &mut resource.metadata)
    }

    /// An object without a namespace is in `default`, but for the MeshConfig.
    pub fn key(&self) -> Key {
        let metadata = self.metadata();
        let namespace = match self.kind() {
            Kind::MeshConfig => MESH_NAMESPACE,
            _ => metadata.namespace_or_default(),
        };
        Key::new(self.kind(), namespace, &metadata.name)
    }

    /// Puts the object in this namespace if it names none.
    pub fn set_default_namespace(&mut self, namespace: &str) {
        let mesh_wide = self.kind() == Kind::MeshConfig;
        let metadata = self.metadata_mut();
        if metadata.namespace.is_empty() {
            metadata.namespace = if mesh_wide { MESH_NAMESPACE } else { namespace }.to_owned();
        }
    }

    pub fn to_json(&self) -> serde_json::Value {
        let body = each!(self, resource => serde_json::to_value(resource));
        let mut object = serde_json::Map::new();
        object.insert("apiVersion".to_owned(), self.kind().api_version().into());
        object.insert("kind".to_owned(), self.kind().as_str().into());
        // Our own types have string keys and finite numbers only, so there is nothing that JSON can't hold.
        if let Ok(serde_json::Value::Object(fields)) = body {
            object.extend(fields);
        }
        object.into()
    }

    pub fn to_yaml(&self) -> String {
        json_to_yaml(&self.to_json())
    }
}

/// YAML for people: `apiVersion`, `kind`, `metadata`, `spec`, `status` in that order.
pub fn json_to_yaml(value: &serde_json::Value) -> String {
    parse::to_yaml(value)
}
