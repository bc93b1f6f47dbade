//! The control plane: takes objects, keeps them, and tells every proxy what it needs to know.
//!
//! In: Kubernetes-shaped objects and registrations of workloads. Out: xDS v3 resources, certificates, status.

pub mod api;
pub mod args;
pub mod auth;
pub mod ca;
pub mod certificates;
pub mod compile;
pub mod housekeeping;
pub mod jwks;
pub mod kubernetes;
pub mod model;
pub mod objects;
pub mod registry;
pub mod reports;
pub mod serve;
pub mod snapshot;
pub mod status;
pub mod store;
pub mod trail;
pub mod xds;
