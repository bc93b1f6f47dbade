//! The control plane: takes objects, keeps them, and tells every proxy what it needs to know.
//!
//! In: Kubernetes-shaped objects and registrations of workloads. Out: xDS v3 resources, certificates, status.

pub mod auth;
pub mod ca;
pub mod compile;
pub mod model;
pub mod snapshot;
pub mod store;
pub mod xds;
