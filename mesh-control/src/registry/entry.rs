//! From what a proxy says of its workload to the object that stands for it.

use mesh_common::identity::check_label;
use mesh_common::proto::workload::{Registration, WorkloadPort as ProtoPort};
use mesh_common::resource::{LABEL_REGISTERED, Metadata, WorkloadEntry, WorkloadEntrySpec, WorkloadPort};

use super::{Registrant, address};

const MAX_ADDRESSES: usize = 16;
const MAX_PORTS: usize = 100;
const MAX_LABELS: usize = 32;
const MAX_TEXT: usize = 253;
const MAX_WEIGHT: u32 = 1_000_000;
const PROTOCOLS: [&str; 6] = ["", "http", "http2", "grpc", "tcp", "udp"];

/// The service account and the namespace are the caller's own, whatever it says. The error is the end of a sentence.
pub(super) fn from_registration(
    registrant: &Registrant,
    registration: &Registration,
    healthy: bool,
) -> Result<WorkloadEntry, String> {
    let Registrant { identity, origin } = registrant;
    let Registration { name, namespace, service, version, addresses, ports, labels, locality, weight } = registration;
    if !namespace.is_empty() && *namespace != identity.namespace {
        return Err(format!("its namespace is {namespace:?}, but its identity is of {:?}", identity.namespace));
    }
    check_label(name).map_err(|error| format!("its name: {error}"))?;
    for (what, text) in [("service", service), ("version", version)] {
        if !text.is_empty() {
            check_label(text).map_err(|error| format!("its {what}: {error}"))?;
        }
    }
    if addresses.is_empty() && !service.is_empty() {
        return Err("it has no address where its service can be reached".to_owned());
    }
    if addresses.len() > MAX_ADDRESSES || ports.len() > MAX_PORTS || labels.len() > MAX_LABELS {
        return Err(format!(
            "it may have {MAX_ADDRESSES} addresses, {MAX_PORTS} ports and {MAX_LABELS} labels at most"
        ));
    }
    if *weight > MAX_WEIGHT {
        return Err(format!("its weight is more than {MAX_WEIGHT}"));
    }
    if locality.len() > MAX_TEXT || locality.chars().any(char::is_control) {
        return Err(format!("its locality is not printable text of {MAX_TEXT} bytes at most"));
    }
    let mut entry = WorkloadEntry {
        metadata: Metadata::new(&identity.namespace, name),
        spec: WorkloadEntrySpec {
            service: service.clone(),
            version: version.clone(),
            addresses: addresses.iter().map(|text| address::own(text, *origin)).collect::<Result<_, _>>()?,
            ports: ports.iter().map(port).collect::<Result<_, _>>()?,
            service_account: identity.service_account.clone(),
            locality: (!locality.is_empty()).then(|| locality.clone()),
            weight: (*weight > 0).then_some(*weight),
            healthy: Some(healthy),
            mesh: Some(true),
        },
    };
    for (key, value) in labels {
        entry.metadata.labels.insert(label(key)?.to_owned(), label_value(value)?.to_owned());
    }
    entry.metadata.labels.insert(LABEL_REGISTERED.to_owned(), "true".to_owned());
    Ok(entry)
}

fn port(port: &ProtoPort) -> Result<WorkloadPort, String> {
    let number = |value: u32| match u16::try_from(value) {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("{value} is not a port")),
    };
    let optional = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    if !PROTOCOLS.contains(&port.protocol.as_str()) {
        return Err(format!("{:?} is not a protocol; there are http, http2, grpc, tcp and udp", port.protocol));
    }
    if !port.name.is_empty() {
        check_label(&port.name).map_err(|error| format!("the name of a port: {error}"))?;
    }
    Ok(WorkloadPort {
        port: number(port.port)?,
        service_port: if port.service_port == 0 { None } else { Some(number(port.service_port)?) },
        protocol: optional(&port.protocol),
        name: optional(&port.name),
    })
}

/// A label's key as Kubernetes has it, roughly; our own group's labels are not for others to set.
fn label(key: &str) -> Result<&str, String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/');
    if key.is_empty() || key.len() > MAX_TEXT || !key.bytes().all(allowed) {
        return Err(format!("{key:?} is not a label"));
    }
    if key.starts_with("meshctl.dev/") {
        return Err(format!("the label {key} is set by the mesh alone"));
    }
    Ok(key)
}

fn label_value(value: &str) -> Result<&str, String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if value.len() <= 63 && value.bytes().all(allowed) {
        Ok(value)
    } else {
        Err(format!("{value:?} is not a label's value"))
    }
}
