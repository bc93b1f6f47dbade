//! What the control plane answers, as rows for people and as stable JSON for programs. Pure; the clock is passed in.

pub mod audit;
pub mod certs;
pub mod findings;
pub mod mesh;
pub mod objects;
pub mod proxies;
pub mod rotation;
pub mod tap;
pub mod top;
pub mod topology;
pub mod traffic;
