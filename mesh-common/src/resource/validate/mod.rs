//! What can be known to be wrong from an object alone. What depends on other objects (a backend that does not exist, two
//! objects that want different things) is a condition, found by the model.

mod authorization;
mod cors;
mod direct_response;
mod endpoint_health;
mod fields;
mod limits;
mod load_balancer;
mod metadata;
mod policies;
mod request_authentication;
mod routes;
mod telemetry;
mod workloads;

use std::fmt;

use super::Object;

/// What is wrong with a field whose type is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// `spec.rules[0].matches[1].path.value`
    pub path: String,
    /// A sentence that says what to do.
    pub message: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

impl std::error::Error for FieldError {}

pub fn validate(object: &Object) -> Vec<FieldError> {
    let mut errors = Errors::default();
    metadata::check(object, &mut errors);
    match object {
        Object::Service(service) => workloads::service(&service.spec, &mut errors),
        Object::WorkloadEntry(entry) => workloads::entry(entry, &mut errors),
        Object::HttpRoute(route) => routes::http(&route.spec, &mut errors),
        Object::GrpcRoute(route) => routes::grpc(&route.spec, &mut errors),
        Object::TcpRoute(route) => routes::tcp(&route.spec, &mut errors),
        Object::TlsRoute(route) => routes::tls(&route.spec, &mut errors),
        Object::UdpRoute(route) => routes::udp(&route.spec, &mut errors),
        Object::ReferenceGrant(grant) => routes::grant(&grant.spec, &mut errors),
        Object::TrafficPolicy(policy) => policies::traffic(&policy.spec, &mut errors),
        Object::FaultInjection(fault) => policies::fault(&fault.spec, &mut errors),
        Object::DirectResponse(response) => direct_response::check(&response.spec, &mut errors),
        Object::PeerAuthentication(policy) => policies::peer(&policy.spec, &mut errors),
        Object::RequestAuthentication(policy) => request_authentication::policy(&policy.spec, &mut errors),
        Object::AuthorizationPolicy(policy) => authorization::policy(&policy.spec, &mut errors),
        Object::Telemetry(it) => telemetry::check(&it.spec, &mut errors),
        Object::MeshConfig(config) => policies::mesh(&config.spec, &mut errors),
    }
    errors.0
}

#[derive(Default)]
struct Errors(Vec<FieldError>);

impl Errors {
    fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.push(FieldError { path: path.into(), message: message.into() });
    }

    fn add_if(&mut self, wrong: bool, path: impl Into<String>, message: impl Into<String>) {
        if wrong {
            self.add(path, message);
        }
    }
}

#[cfg(test)]
mod tests;
