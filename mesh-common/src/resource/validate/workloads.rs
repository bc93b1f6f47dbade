use std::collections::BTreeSet;
use std::net::IpAddr;

use super::super::service::AFFINITY_CLIENT_IP;
use super::super::{PROTOCOLS, ServiceSpec, ServiceType, TargetPort, WorkloadEntry};
use super::Errors;
use super::fields::{at_most, hostname, label};

const MAX_PORTS: usize = 100;
const MAX_WEIGHT: u32 = 1_000_000;

pub(super) fn service(spec: &ServiceSpec, errors: &mut Errors) {
    at_most(errors, "spec.ports", spec.ports.len(), MAX_PORTS);
    if spec.service_type == Some(ServiceType::ExternalName) {
        return alias(spec, errors);
    }
    errors.add_if(
        spec.external_name.is_some(),
        "spec.externalName",
        "is for the type ExternalName: write that in `spec.type`",
    );
    let headless = spec.cluster_ip.as_deref() == Some("None");
    errors.add_if(spec.ports.is_empty() && !headless, "spec.ports", "a Service needs a port");
    let mut numbers = BTreeSet::new();
    let mut names = BTreeSet::new();
    for (i, port) in spec.ports.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        errors.add_if(port.port == 0, format!("{path}.port"), "a port is from 1 to 65535");
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let known = matches!(protocol, "TCP" | "UDP" | "SCTP");
        errors.add_if(
            !known,
            format!("{path}.protocol"),
            "a protocol is TCP, UDP or SCTP (see `appProtocol` for more)",
        );
        let first = numbers.insert((port.port, protocol));
        errors.add_if(!first, format!("{path}.port"), "this port is there twice");
        if port.name.is_empty() {
            let many = spec.ports.len() > 1;
            errors.add_if(many, format!("{path}.name"), "a Service with several ports names each of them");
        } else {
            label(errors, &format!("{path}.name"), &port.name);
            errors.add_if(!names.insert(&port.name), format!("{path}.name"), "another port has this name");
        }
        if let Some(TargetPort::Name(name)) = &port.target_port {
            label(errors, &format!("{path}.targetPort"), name);
        }
    }
    let known = matches!(spec.session_affinity.as_deref(), None | Some("None" | AFFINITY_CLIENT_IP));
    errors.add_if(!known, "spec.sessionAffinity", "session affinity is None or ClientIP");
    let addresses = spec.cluster_ip.iter().map(|ip| ("spec.clusterIP".to_owned(), ip));
    let more = spec.cluster_ips.iter().enumerate().map(|(i, ip)| (format!("spec.clusterIPs[{i}]"), ip));
    for (path, text) in addresses.chain(more) {
        let fits = text.is_empty() || text == "None" || text.parse::<IpAddr>().is_ok_and(usable);
        errors.add_if(!fits, path, format!("{text:?} is neither an IP address nor `None`"));
    }
}

/// A Service that is only another name for something.
fn alias(spec: &ServiceSpec, errors: &mut Errors) {
    match &spec.external_name {
        Some(name) => hostname(errors, "spec.externalName", name.strip_suffix('.').unwrap_or(name), false),
        None => errors.add("spec.externalName", "the type ExternalName needs the name that the Service stands for"),
    }
    let selects = "a Service of type ExternalName is only another name: it has no workloads and no address";
    errors.add_if(!spec.selector.is_empty(), "spec.selector", selects);
    let address = spec.cluster_ip.as_deref().is_some_and(|ip| !ip.is_empty()) || !spec.cluster_ips.is_empty();
    errors.add_if(address, "spec.clusterIP", selects);
}

pub(super) fn entry(entry: &WorkloadEntry, errors: &mut Errors) {
    let spec = &entry.spec;
    for (path, text) in [("spec.service", &spec.service), ("spec.version", &spec.version)] {
        if !text.is_empty() {
            label(errors, path, text);
        }
    }
    let orphan = spec.service.is_empty() && !spec.version.is_empty();
    errors.add_if(orphan, "spec.version", "a version is the version of a service: set `spec.service`");
    if !spec.service.is_empty() && !spec.version.is_empty() && spec.service.len() + spec.version.len() > 62 {
        errors.add("spec.version", "the service and its version make a DNS name together, so at most 62 characters");
    }
    let nowhere = !spec.service.is_empty() && spec.addresses.is_empty();
    errors.add_if(nowhere, "spec.addresses", "a workload that serves needs an address");
    at_most(errors, "spec.addresses", spec.addresses.len(), 16);
    for (i, address) in spec.addresses.iter().enumerate() {
        let path = format!("spec.addresses[{i}]");
        errors.add_if(!usable(*address), &path, format!("{address} is not the address of one machine"));
        errors.add_if(spec.addresses[..i].contains(address), path, "this address is there twice");
    }
    at_most(errors, "spec.ports", spec.ports.len(), MAX_PORTS);
    let mut own = BTreeSet::new();
    let mut served = BTreeSet::new();
    for (i, port) in spec.ports.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        let zero = port.port == 0 || port.service_port == Some(0);
        errors.add_if(zero, &path, "a port is from 1 to 65535");
        // A number means one port of TCP and another of UDP.
        let udp = port.protocol.as_deref() == Some("udp");
        errors.add_if(!own.insert((port.port, udp)), format!("{path}.port"), "this port is there twice");
        let number = port.service_port.unwrap_or(port.port);
        errors.add_if(!served.insert((number, udp)), &path, format!("two ports serve the service's port {number}"));
        let protocol = port.protocol.as_deref().unwrap_or_default();
        let known = protocol.is_empty() || PROTOCOLS.contains(&protocol);
        let message = format!("{protocol:?} is not one of {}; leave it out to have it detected", PROTOCOLS.join(", "));
        errors.add_if(!known, format!("{path}.protocol"), message);
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            label(errors, &format!("{path}.name"), name);
        }
    }
    if spec.service_account.is_empty() {
        let message = "a workload with a proxy of the mesh has a service account, which is in its certificate";
        errors.add_if(entry.in_mesh(), "spec.serviceAccount", message);
    } else {
        label(errors, "spec.serviceAccount", &spec.service_account);
    }
    let weight = spec.weight.unwrap_or(1);
    let wrong = !(1..=MAX_WEIGHT).contains(&weight);
    errors.add_if(
        wrong,
        "spec.weight",
        format!("a weight is from 1 to {MAX_WEIGHT}; `healthy: false` takes a workload out"),
    );
    let deep = spec.locality.as_deref().is_some_and(|l| l.split('/').count() > 3 || l.len() > 253);
    errors.add_if(deep, "spec.locality", "a locality is `region/zone/subzone`, or a part of it from the left");
}

/// An address that connections can be made to.
fn usable(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !(address.is_unspecified() || address.is_multicast() || broadcast)
}
