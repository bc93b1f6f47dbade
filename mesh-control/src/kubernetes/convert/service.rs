use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use mesh_common::resource::{Metadata, Object, Resource, ServicePort, ServiceSpec, ServiceType, TargetPort};

use super::Fact;

pub(in crate::kubernetes) fn service(service: &core::Service) -> Option<Fact> {
    let (from, spec) = (&service.metadata, service.spec.as_ref()?);
    let selector = spec.selector.clone().unwrap_or_default();
    // Without a selector the endpoints are written by hand, with their own ports.
    let ports = spec.ports.iter().flatten().filter_map(|p| port(p, !selector.is_empty())).collect();
    let name = Metadata::new(from.namespace.as_deref()?, from.name.as_deref()?);
    let metadata = Metadata {
        labels: from.labels.clone().unwrap_or_default(),
        resource_version: from.resource_version.clone(),
        uid: from.uid.clone(),
        creation_timestamp: from.creation_timestamp.as_ref().map(|time| time.0.to_string()),
        ..name
    };
    if spec.type_.as_deref() == Some("ExternalName") {
        // Whatever else it says has no effect in Kubernetes either.
        let (service_type, external_name) = (Some(ServiceType::ExternalName), Some(spec.external_name.clone()?));
        let spec = ServiceSpec { service_type, external_name, ..ServiceSpec::default() };
        return Some(Fact::Service(Object::Service(Resource { metadata, spec })));
    }
    let spec = ServiceSpec {
        ports,
        selector,
        cluster_ip: spec.cluster_ip.clone().filter(|ip| !ip.is_empty()),
        cluster_ips: spec.cluster_ips.clone().unwrap_or_default(),
        publish_not_ready_addresses: spec.publish_not_ready_addresses,
        session_affinity: spec.session_affinity.clone(),
        ..ServiceSpec::default()
    };
    Some(Fact::Service(Object::Service(Resource { metadata, spec })))
}

fn port(port: &core::ServicePort, selected: bool) -> Option<ServicePort> {
    let protocol = match port.protocol.as_deref() {
        None | Some("TCP") => None,
        // What cannot be served is said of the Service.
        Some(other) => Some(other.to_owned()),
    };
    let target = match &port.target_port {
        Some(IntOrString::Int(number)) => u16::try_from(*number).ok().filter(|n| *n > 0).map(TargetPort::Number),
        Some(IntOrString::String(name)) => Some(TargetPort::Name(name.clone())),
        None => None,
    };
    let number = u16::try_from(port.port).ok()?;
    Some(ServicePort {
        name: port.name.clone().unwrap_or_default(),
        port: number,
        target_port: target.or(Some(TargetPort::Number(number))).filter(|_| selected),
        protocol,
        app_protocol: port.app_protocol.clone(),
        ..ServicePort::default()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn convert(spec: Value) -> Option<ServiceSpec> {
        let json = json!({"metadata": {"name": "s", "namespace": "shop", "creationTimestamp": "2030-01-01T00:00:00Z"}, "spec": spec});
        match service(&serde_json::from_value(json).unwrap()) {
            Some(Fact::Service(Object::Service(service))) => Some(service.spec),
            None => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn ports_are_taken_with_their_targets() {
        let spec = convert(json!({
            "type": "ClusterIP", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00:96::a"], "ipFamilyPolicy": "PreferDualStack",
            "selector": {"k8s-app": "kube-dns"}, "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": "dns-tcp"},
                {"name": "metrics", "port": 9153, "protocol": "TCP", "targetPort": 9154, "appProtocol": "http"}
            ]
        }))
        .unwrap();
        let targets: Vec<_> = spec.ports.iter().map(|p| (p.port, p.target_port.clone().unwrap())).collect();
        let expected = [TargetPort::Number(53), TargetPort::Name("dns-tcp".into()), TargetPort::Number(9154)];
        assert_eq!(targets, [53, 53, 9153].into_iter().zip(expected).collect::<Vec<_>>());
        assert_eq!((spec.cluster_ips.len(), spec.sticky()), (2, false));
        let sticky = convert(json!({"clusterIP": "10.96.0.11", "selector": {"a": "b"}, "sessionAffinity": "ClientIP"}));
        assert!(sticky.unwrap().sticky());
    }

    #[test]
    fn a_port_of_sctp_is_told_of_and_not_served() {
        let json = json!({
            "metadata": {"name": "s", "namespace": "shop"},
            "spec": {"clusterIP": "10.96.0.12", "selector": {"a": "b"}, "ports": [
                {"name": "a", "port": 9, "protocol": "SCTP"}, {"name": "b", "port": 9, "protocol": "TCP"}]}
        });
        let Some(Fact::Service(service)) = service(&serde_json::from_value(json).unwrap()) else { panic!() };
        let key = service.key();
        let objects = [(key.clone(), std::sync::Arc::new(service))].into();
        let settings = crate::model::Settings { trust_domain: "mesh.local".to_owned() };
        let model = crate::model::build(&objects, &settings, &crate::model::Addresses::default());
        assert_eq!(model.service("shop", "s").unwrap().all_ports().map(|p| &*p.name).collect::<Vec<_>>(), ["b"]);
        let said = model.warnings(&key);
        assert!(said.iter().any(|text| text.contains("port 9 is SCTP")), "{said:?}");
    }

    #[test]
    fn without_a_selector_the_endpoints_have_their_own_ports() {
        let spec =
            convert(json!({"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443, "targetPort": 6443}]}));
        assert_eq!(spec.unwrap().ports[0].target_port, None);
        let alias = convert(json!({"type": "ExternalName", "externalName": "db.example.com", "selector": {"a": "b"}}));
        let alias = alias.unwrap();
        assert_eq!((alias.external_name.as_deref(), alias.selector.len()), (Some("db.example.com"), 0));
        assert_eq!(convert(json!({"type": "ExternalName"})), None);
        let headless = convert(json!({"clusterIP": "None", "selector": {"a": "b"}, "publishNotReadyAddresses": true}));
        assert_eq!(headless.unwrap().publish_not_ready_addresses, Some(true));
    }
}
