use std::net::IpAddr;

use k8s_openapi::api::discovery::v1 as discovery;
use mesh_common::resource::{
    ANNOTATION_PLACE_OF, Metadata, ServicePort, WorkloadEntry, WorkloadEntrySpec, WorkloadPort,
};

use super::{ANNOTATION_SOURCE, Fact};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// It makes slices of pods, which are known from the pods themselves.
const OF_PODS: &str = "endpointslice-controller.k8s.io";

/// Endpoints that somebody wrote for a Service without a selector: a controller of their own, or people.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::kubernetes) struct Slice {
    pub namespace: String,
    pub name: String,
    pub service: String,
    /// By name, and whether they are of UDP.
    ports: Vec<(String, u16, bool)>,
    endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq)]
struct Endpoint {
    address: IpAddr,
    healthy: bool,
    locality: Option<String>,
    /// Namespace and name of the pod that it says it is.
    pod: Option<Place>,
}

/// Namespace and name.
pub(in crate::kubernetes) type Place = (String, String);

pub(in crate::kubernetes) fn slice(slice: &discovery::EndpointSlice) -> Option<Fact> {
    let label = |name: &str| slice.metadata.labels.as_ref().and_then(|labels| labels.get(name));
    let service = label(SERVICE_NAME)?;
    if label(MANAGED_BY).is_some_and(|manager| manager == OF_PODS) || slice.address_type == "FQDN" {
        return None;
    }
    let port = |port: &discovery::EndpointPort| {
        let udp = match port.protocol.as_deref() {
            None | Some("TCP") => false,
            Some("UDP") => true,
            Some(_) => return None,
        };
        Some((port.name.clone().unwrap_or_default(), u16::try_from(port.port?).ok()?, udp))
    };
    let endpoints = slice.endpoints.iter().flat_map(|endpoint| {
        let conditions = endpoint.conditions.as_ref();
        let healthy = conditions.and_then(|conditions| conditions.ready) != Some(false);
        // All addresses of one endpoint are the same place; consumers take the first (and writers write one).
        let address = endpoint.addresses.first().and_then(|text| text.parse().ok());
        let locality = endpoint.zone.as_ref().map(|zone| format!("/{zone}"));
        let pod = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
        let pod = pod.and_then(|target| {
            let namespace = target.namespace.as_ref().or(slice.metadata.namespace.as_ref())?;
            Some((namespace.clone(), target.name.clone()?))
        });
        address.map(|address| Endpoint { address, healthy, locality, pod })
    });
    Some(Fact::Slice(Slice {
        namespace: slice.metadata.namespace.clone()?,
        name: slice.metadata.name.clone()?,
        service: service.clone(),
        ports: slice.ports.iter().flatten().filter_map(port).collect(),
        endpoints: endpoints.collect(),
    }))
}

impl Slice {
    /// The workloads behind a Service with these ports. `pod` tells which pod is called at an address, given the one that
    /// the endpoint says it is.
    pub fn entries<'p>(
        &self,
        service_ports: &[ServicePort],
        pod: impl Fn(IpAddr, Option<&Place>) -> Option<(&'p str, &'p str)>,
    ) -> Vec<WorkloadEntry> {
        let port = |(name, number, udp): &(String, u16, bool)| {
            let protocol = if *udp { "UDP" } else { "TCP" };
            let spoken = |port: &ServicePort| port.protocol.as_deref().unwrap_or("TCP") == protocol;
            let of_service = service_ports.iter().find(|port| port.name == *name && spoken(port))?;
            let name = Some(name.clone()).filter(|name| !name.is_empty());
            let protocol = udp.then(|| "udp".to_owned());
            Some(WorkloadPort { port: *number, service_port: Some(of_service.port), name, protocol })
        };
        let ports: Vec<WorkloadPort> = self.ports.iter().filter_map(port).collect();
        let entry = |endpoint: &Endpoint| {
            let place = endpoint.address.to_string().replace(['.', ':'], "-");
            let of = pod(endpoint.address, endpoint.pod.as_ref());
            let of = of.map(|(namespace, name)| (ANNOTATION_PLACE_OF.to_owned(), format!("{namespace}/{name}")));
            let source = (ANNOTATION_SOURCE.to_owned(), "EndpointSlice".to_owned());
            let annotations = [source].into_iter().chain(of).collect();
            let name = Metadata::new(&self.namespace, &format!("{}-{place}", self.name));
            let spec = WorkloadEntrySpec {
                service: self.service.clone(),
                addresses: vec![endpoint.address],
                ports: ports.clone(),
                healthy: Some(endpoint.healthy),
                locality: endpoint.locality.clone(),
                mesh: Some(false),
                ..WorkloadEntrySpec::default()
            };
            WorkloadEntry { metadata: Metadata { annotations, ..name }, spec }
        };
        self.endpoints.iter().map(entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn hand_written_endpoints_are_workloads_of_their_service() {
        let json = json!({
            "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
            "addressType": "IPv4",
            "endpoints": [
                {"addresses": ["172.16.0.2"], "conditions": {"ready": true}, "targetRef": {"kind": "Pod", "name": "api-0"}},
                {"addresses": ["172.16.0.3"], "conditions": {"ready": false}, "zone": "a", "targetRef": {"kind": "Node", "name": "n"}},
            ],
            "ports": [{"name": "https", "port": 6443, "protocol": "TCP"}, {"name": "gone", "port": 1}]
        });
        let Some(Fact::Slice(made)) = slice(&serde_json::from_value(json.clone()).unwrap()) else { panic!() };
        let port = ServicePort { name: "https".to_owned(), port: 443, ..ServicePort::default() };
        let asked = std::cell::RefCell::new(Vec::new());
        let pod = |address: IpAddr, said: Option<&Place>| {
            asked.borrow_mut().push(said.map(|(namespace, name)| format!("{namespace}/{name}")));
            address.to_string().ends_with('3').then_some(("shop", "db-0"))
        };
        let entries = made.entries(&[port], pod);
        assert_eq!(asked.take(), [Some("default/api-0".to_owned()), None]);
        assert_eq!((entries[0].place_of(), entries[1].place_of()), (None, Some(("shop", "db-0"))));
        assert_eq!(entries[0].metadata.name, "kubernetes-172-16-0-2");
        assert_eq!((entries[0].spec.ports[0].port, entries[0].spec.ports[0].service_port), (6443, Some(443)));
        assert_eq!(entries[0].spec.ports.len(), 1);
        assert_eq!((entries[1].spec.healthy, entries[1].spec.locality.as_deref()), (Some(false), Some("/a")));

        let mut managed = json;
        managed["metadata"]["labels"][MANAGED_BY] = OF_PODS.into();
        assert_eq!(slice(&serde_json::from_value(managed).unwrap()), None);
    }
}
