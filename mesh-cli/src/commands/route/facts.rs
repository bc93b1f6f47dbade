//! What is known of a service before its route is edited: ports, versions, protocol.

use std::collections::BTreeSet;

use mesh_common::names::version_label;
use mesh_common::proto::control::ServiceView;
use mesh_common::resource::{Kind, Object};

use super::Target;
use crate::client::Control;
use crate::failure::Failure;
use crate::objects;
use crate::routes::edit::{self, Protocol};
use crate::routes::shares::Share;

/// Protocols in which no requests can be told apart.
const BYTE_STREAMS: [&str; 8] = ["tcp", "tls", "https", "kubernetes.io/wss", "mongo", "mysql", "postgres", "redis"];

pub struct Facts {
    pub namespace: String,
    /// All that it has.
    pub ports: Vec<u16>,
    /// The one that is meant, if that is clear.
    pub port: Option<u16>,
    pub protocol: Protocol,
}

impl Facts {
    /// Fails for a service or a version that nobody knows, unless that is meant.
    pub async fn gather(
        control: &Control,
        namespace: &str,
        target: &Target,
        shares: &[Share],
        force: bool,
    ) -> Result<Self, Failure> {
        let services = objects::services(control).await?;
        let view = match known_service(&services, namespace, &target.service) {
            Ok(view) => Some(view),
            Err(_) if force => None,
            Err(failure) => return Err(failure),
        };
        let declared = objects::list_kinds(control, &[Kind::Service, Kind::WorkloadEntry], namespace).await?;
        let declared: Vec<Object> = declared.into_iter().map(|s| s.object).collect();
        if let (Some(view), false) = (view, force) {
            known_versions(view, &declared, shares)?;
        }
        let ports: Vec<u16> =
            view.map(|v| v.ports.iter().filter_map(|p| u16::try_from(*p).ok()).collect()).unwrap_or_default();
        let port = match (target.port, ports.as_slice()) {
            (Some(port), known) if known.is_empty() || known.contains(&port) || force => Some(port),
            (Some(port), known) => {
                let message = format!("{} has no port {port}; it has {}.", target.service, listed(known));
                return Err(Failure::not_found(message).hint("With --force the port is taken anyway."));
            }
            (None, [only]) => Some(*only),
            (None, _) => None,
        };
        let protocol = protocol_of(&declared, &target.service, port);
        Ok(Self { namespace: namespace.to_owned(), ports, port, protocol })
    }
}

pub fn known_service<'a>(services: &'a [ServiceView], namespace: &str, name: &str) -> Result<&'a ServiceView, Failure> {
    services.iter().find(|s| s.namespace == namespace && s.name == name).ok_or_else(|| {
        let known: BTreeSet<&str> =
            services.iter().filter(|s| s.namespace == namespace).map(|s| s.name.as_str()).collect();
        let elsewhere = services.iter().find(|s| s.name == name);
        let failure = Failure::not_found(format!("There is no service {name} in the namespace {namespace}."));
        match elsewhere {
            Some(other) => {
                failure.hint(format!("There is one in the namespace {}: add -n {}.", other.namespace, other.namespace))
            }
            None if known.is_empty() => failure.hint("No service is known there; `meshctl get services -A` shows all."),
            None => failure.hint(format!("The services there: {}.", known.into_iter().collect::<Vec<_>>().join(", "))),
        }
    })
}

/// A version exists when a workload says that it has it, or when somebody declared a Service with its name.
fn known_versions(service: &ServiceView, declared: &[Object], shares: &[Share]) -> Result<(), Failure> {
    let of_workloads = service.workloads.iter().map(|w| w.version.as_str()).filter(|v| !v.is_empty());
    let of_services = declared.iter().filter(|o| o.kind() == Kind::Service);
    let of_services =
        of_services.filter_map(|o| edit::version_of(&service.name, &o.metadata().name)).filter(|v| !v.is_empty());
    let known: BTreeSet<&str> = of_workloads.chain(of_services).collect();
    let labels: BTreeSet<String> = known.iter().map(|version| version_label(version)).collect();
    let unknown = shares.iter().map(|s| s.version.as_str()).filter(|v| !labels.contains(&version_label(v)));
    let unknown: Vec<&str> = unknown.collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let message = match unknown.as_slice() {
        [one] => format!("{} has no version {one}.", service.name),
        many => format!("{} has no versions {}.", service.name, many.join(", ")),
    };
    let known = match known.is_empty() {
        true => "None of its workloads has a version".to_owned(),
        false => format!("It has {}", known.into_iter().collect::<Vec<_>>().join(", ")),
    };
    Err(Failure::not_found(message).hint(format!("{known}. With --force the weight is set for a version to come.")))
}

/// From the declared port, or else from what the workloads say of theirs.
fn protocol_of(declared: &[Object], service: &str, port: Option<u16>) -> Protocol {
    let of_service = declared.iter().filter_map(|object| match object {
        Object::Service(s) if s.metadata.name == service => {
            s.spec.ports.iter().find(|p| port.is_none_or(|port| port == p.port))
        }
        _ => None,
    });
    let of_service = of_service.map(|p| match p.protocol.as_deref() {
        Some("UDP") => "udp".to_owned(),
        _ => p.app_protocol.clone().unwrap_or_else(|| prefix(&p.name)),
    });
    let of_workloads = declared.iter().filter_map(|object| match object {
        Object::WorkloadEntry(w) if w.spec.service == service => {
            w.spec.ports.iter().find(|p| port.is_none_or(|port| port == p.service_port.unwrap_or(p.port)))
        }
        _ => None,
    });
    let of_workloads = of_workloads.filter_map(|p| p.protocol.clone());
    let known = of_service.chain(of_workloads).find(|p| !p.is_empty()).unwrap_or_default();
    match known.to_ascii_lowercase().as_str() {
        "grpc" => Protocol::Grpc,
        "udp" => Protocol::Udp,
        known if BYTE_STREAMS.contains(&known) => Protocol::Tcp,
        _ => Protocol::Http,
    }
}

/// Kubernetes' older habit: the protocol is the first word of the port's name.
fn prefix(port_name: &str) -> String {
    let word = port_name.split('-').next().unwrap_or_default();
    let known = ["http", "http2", "grpc"].contains(&word) || BYTE_STREAMS.contains(&word);
    if known { word.to_owned() } else { String::new() }
}

pub fn listed(ports: &[u16]) -> String {
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use mesh_common::proto::control::WorkloadView;

    use super::*;
    use crate::failure::Exit;

    fn reviews() -> ServiceView {
        let workload = |version: &str| WorkloadView { version: version.into(), ..WorkloadView::default() };
        ServiceView {
            namespace: "default".into(),
            name: "reviews".into(),
            ports: vec![9080],
            workloads: vec![workload("v1"), workload("v2")],
            ..ServiceView::default()
        }
    }

    fn share(text: &str) -> Share {
        text.parse().unwrap()
    }

    #[test]
    fn an_unknown_version_is_refused_with_those_that_are_known() {
        assert!(known_versions(&reviews(), &[], &[share("v1=1"), share("v2=1")]).is_ok());
        let failure = known_versions(&reviews(), &[], &[share("v3=1")]).unwrap_err();
        assert_eq!(failure.exit, Exit::NotFound);
        assert_eq!(failure.message, "reviews has no version v3.");
        assert!(failure.hint.unwrap().contains("It has v1, v2"));

        let mut dotted = reviews();
        dotted.workloads[0].version = "1.2.3".into();
        assert!(known_versions(&dotted, &[], &[share("1.2.3=1"), share("1-2-3=1")]).is_ok());
        assert!(known_versions(&dotted, &[], &[share("1.2.4=1")]).unwrap_err().hint.unwrap().contains("1.2.3, v2"));
    }

    #[test]
    fn a_service_in_another_namespace_is_pointed_at() {
        let failure = known_service(&[reviews()], "shop", "reviews").unwrap_err();
        assert!(failure.hint.unwrap().contains("-n default"));
        let failure = known_service(&[reviews()], "default", "review").unwrap_err();
        assert_eq!(failure.hint.unwrap(), "The services there: reviews.");
    }

    #[test]
    fn the_protocol_is_the_declared_ports() {
        let yaml = "apiVersion: v1\nkind: Service\nmetadata: {name: ratings, namespace: default}\n\
                    spec: {ports: [{port: 9080, name: grpc-api}, {port: 70, name: stock, appProtocol: tcp}, {port: 71, name: dns, protocol: UDP}]}\n";
        let declared = mesh_common::resource::parse_yaml("test", yaml).unwrap();
        assert_eq!(protocol_of(&declared, "ratings", Some(9080)), Protocol::Grpc);
        assert_eq!(protocol_of(&declared, "ratings", Some(70)), Protocol::Tcp);
        assert_eq!(protocol_of(&declared, "ratings", Some(71)), Protocol::Udp);
        assert_eq!(protocol_of(&declared, "other", Some(70)), Protocol::Http);
    }
}
