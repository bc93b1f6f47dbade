//! The data plane: accepts intercepted connections, decides where each goes, and takes it there.
//!
//! In: Envoy xDS v3 resources from `mesh-control` (decoded by [`config`], held by [`snapshot`]) and the application's
//! traffic. Out: the same traffic at the endpoint that was chosen, over mutual TLS, and telemetry about it.

pub mod admin;
pub mod application;
pub mod authorization;
pub mod bootstrap;
pub mod cni;
pub mod config;
pub mod control;
pub mod detect;
pub mod dns;
pub mod error;
pub mod ext_authz;
pub mod fault;
pub mod forward;
#[cfg(test)]
mod fuzzing;
mod hash;
pub mod http;
pub mod identity;
pub mod inbound;
pub mod intercept;
pub mod jwt;
pub mod limit;
pub mod listen;
mod mirror;
pub mod outbound;
pub mod overload;
mod pace;
pub mod path;
pub mod probe;
pub mod registry;
pub mod reports;
pub mod retry;
pub mod route;
pub mod snapshot;
pub mod tap;
pub mod tcp;
pub mod telemetry;
pub mod tls;
pub mod trace;
pub mod udp;
pub mod upstream;
pub mod xds;
