//! What the three programs share: protobuf types, identities, resource kinds, the names of xDS resources, TLS by SPIFFE
//! identity, and telemetry setup.
//!
//! In: text (YAML, tokens, certificates). Out: validated values without any platform's types. No I/O beyond logging, the files of `rotating`, and what `process` reads of
//! the process itself.

pub mod certificate;
#[cfg(test)]
mod fuzzing;
pub mod identity;
pub mod inject;
pub mod jwt;
pub mod metrics;
pub mod names;
pub mod process;
pub mod proto;
pub mod reports;
pub mod resource;
pub mod rotating;
pub mod secrets;
pub mod tap;
pub mod telemetry;
pub mod tls;
pub mod token;
