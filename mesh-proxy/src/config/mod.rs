//! Runtime configuration: what the data path reads. Each type is made only by decoding an xDS resource (parse, don't
//! validate), so that whoever holds one need not check it again. A resource that cannot be decoded is refused with a
//! reason (NACK) and what was there before stays.

mod authorization;
mod cluster;
mod cors;
pub mod decode;
mod endpoint_health;
mod ext_authz;
mod jwt;
mod limit;
mod listener;
mod route;
mod tracing;
mod weighted;

pub use authorization::*;
pub use cluster::*;
pub use cors::*;
pub use endpoint_health::*;
pub use ext_authz::*;
pub use jwt::*;
pub use limit::*;
pub use listener::*;
pub use route::*;
pub use tracing::*;
pub use weighted::*;

/// A DNS name of the mesh, from `mesh.workload.v1.Name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    pub addresses: Vec<std::net::IpAddr>,
    pub ttl_seconds: u32,
    pub canonical: String,
    /// Another name that it stands for.
    pub alias: Option<hickory_proto::rr::Name>,
}
