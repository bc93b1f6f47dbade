use k8s_openapi::api::core::v1 as core;
use mesh_common::names::kubernetes::{CONTAINER_PROXY, LABEL_PROXY};
use mesh_common::resource::{
    ANNOTATION_EXCLUDED_PORTS, LABEL_LOST, LABEL_REGISTERED, LABEL_TERMINATING, Metadata, WorkloadEntry,
    WorkloadEntrySpec, WorkloadPort,
};

use super::{ANNOTATION_SOURCE, Fact};

/// A pod as a workload, without the locality, which is its node's.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::kubernetes) struct Pod {
    pub node: String,
    /// On its node's own network, so its addresses are not its own.
    pub on_node: bool,
    pub entry: WorkloadEntry,
}

/// Nothing for a pod that has ended. One on its node's own network has its node's addresses, and never a proxy.
pub(in crate::kubernetes) fn pod(pod: &core::Pod) -> Option<Fact> {
    let (metadata, spec, status) = (&pod.metadata, pod.spec.as_ref()?, pod.status.as_ref());
    let phase = status.and_then(|status| status.phase.as_deref());
    let on_node = spec.host_network == Some(true);
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return None;
    }
    let mut labels = metadata.labels.clone().unwrap_or_default();
    labels.retain(|name, _| ![LABEL_REGISTERED, LABEL_TERMINATING, LABEL_LOST].contains(&name.as_str()));
    if metadata.deletion_timestamp.is_some() {
        labels.insert(LABEL_TERMINATING.to_owned(), "true".to_owned());
    }
    let readiness = readiness(spec, status);
    if readiness == Readiness::Lost {
        labels.insert(LABEL_LOST.to_owned(), "true".to_owned());
    }
    let version = labels.get("version").or_else(|| labels.get("app.kubernetes.io/version"));
    let account = spec.service_account_name.clone().filter(|name| !name.is_empty());
    let spec = WorkloadEntrySpec {
        service: String::new(),
        version: version.cloned().unwrap_or_default(),
        addresses: addresses(status),
        ports: ports(spec),
        service_account: account.unwrap_or_else(|| "default".to_owned()),
        healthy: Some(readiness != Readiness::No),
        mesh: Some(!on_node && labels.get(LABEL_PROXY).is_some_and(|value| value == "true")),
        ..WorkloadEntrySpec::default()
    };
    let given = metadata.annotations.as_ref().and_then(|annotations| annotations.get(ANNOTATION_EXCLUDED_PORTS));
    let excluded = given.map(|ports| (ANNOTATION_EXCLUDED_PORTS.to_owned(), ports.clone()));
    let annotations = [(ANNOTATION_SOURCE.to_owned(), "Pod".to_owned())].into_iter().chain(excluded).collect();
    let name = Metadata::new(metadata.namespace.as_deref()?, metadata.name.as_deref()?);
    let entry = WorkloadEntry { metadata: Metadata { labels, annotations, ..name }, spec };
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
    Some(Fact::Pod(Pod { node, on_node, entry }))
}

#[derive(Clone, Copy, PartialEq)]
enum Readiness {
    Yes,
    No,
    /// It was ready when its node was last heard of.
    Lost,
}

/// A kubelet says that a pod is ready if its containers are and its gates hold, so whoever takes that back alone is not the
/// kubelet but the node controller, which has not heard of the node for some time.
fn readiness(spec: &core::PodSpec, status: Option<&core::PodStatus>) -> Readiness {
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let holds = |wanted: &str| conditions.iter().any(|it| it.type_ == wanted && it.status == "True");
    let gates = || spec.readiness_gates.iter().flatten().all(|gate| holds(&gate.condition_type));
    match holds("Ready") {
        true => Readiness::Yes,
        false if holds("ContainersReady") && gates() => Readiness::Lost,
        false => Readiness::No,
    }
}

fn addresses(status: Option<&core::PodStatus>) -> Vec<std::net::IpAddr> {
    let Some(status) = status else { return Vec::new() };
    let several = status.pod_ips.as_deref().unwrap_or_default().iter().map(|ip| ip.ip.as_str());
    let mut addresses: Vec<_> = several.chain(status.pod_ip.as_deref()).filter_map(|text| text.parse().ok()).collect();
    let mut seen = std::collections::BTreeSet::new();
    addresses.retain(|address| seen.insert(*address));
    addresses
}

/// TCP and UDP ports of containers that run for as long as the pod does, without those of the proxy.
fn ports(spec: &core::PodSpec) -> Vec<WorkloadPort> {
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let containers = spec.containers.iter().chain(sidecars).filter(|container| container.name != CONTAINER_PROXY);
    let mut ports: Vec<WorkloadPort> = Vec::new();
    for port in containers.flat_map(|container| container.ports.iter().flatten()) {
        let protocol = match port.protocol.as_deref() {
            None | Some("TCP") => None,
            Some("UDP") => Some("udp".to_owned()),
            Some(_) => continue,
        };
        let Some(number) = u16::try_from(port.container_port).ok().filter(|number| *number > 0) else {
            continue;
        };
        // A port may have several names, and a Service chooses it by any of them.
        let name = port.name.clone().filter(|name| !name.is_empty());
        if !ports.iter().any(|known| known.port == number && known.protocol == protocol && known.name == name) {
            ports.push(WorkloadPort { port: number, name, protocol, ..WorkloadPort::default() });
        }
    }
    ports
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn reviews() -> Value {
        json!({
            "metadata": {
                "name": "reviews-v1-7d8c-x2x4", "namespace": "shop", "uid": "1f", "resourceVersion": "811",
                "labels": {"app": "reviews", "version": "v1", "meshctl.dev/proxy": "true", "pod-template-hash": "7d8c"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "reviews-v1-7d8c", "uid": "1e"}]
            },
            "spec": {
                "nodeName": "node1", "serviceAccountName": "reviews",
                "initContainers": [
                    {"name": "migrate", "ports": [{"containerPort": 1}]},
                    {"name": "mesh-proxy", "restartPolicy": "Always", "ports": [{"containerPort": 15090, "name": "http-metrics"}]},
                    {"name": "cache", "restartPolicy": "Always", "ports": [{"containerPort": 6379, "protocol": "TCP"}]}
                ],
                "containers": [{"name": "app", "ports": [
                    {"containerPort": 9080, "name": "http", "protocol": "TCP"},
                    {"containerPort": 53, "name": "dns", "protocol": "UDP"}
                ]}]
            },
            "status": {
                "phase": "Running", "podIP": "10.244.0.7", "podIPs": [{"ip": "10.244.0.7"}, {"ip": "fd00:10::7"}],
                "conditions": [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "True"}]
            }
        })
    }

    fn convert(json: Value) -> Option<Pod> {
        match pod(&serde_json::from_value(json).unwrap()) {
            Some(Fact::Pod(pod)) => Some(pod),
            None => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_pod_is_a_workload() {
        let Pod { node, on_node, entry } = convert(reviews()).unwrap();
        assert!(!on_node);
        assert_eq!((node.as_str(), entry.metadata.name.as_str()), ("node1", "reviews-v1-7d8c-x2x4"));
        let addresses: Vec<String> = entry.spec.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.244.0.7", "fd00:10::7"]);
        let ports: Vec<_> =
            entry.spec.ports.iter().map(|p| (p.port, p.name.as_deref(), p.protocol.as_deref())).collect();
        assert_eq!(ports, [(9080, Some("http"), None), (53, Some("dns"), Some("udp")), (6379, None, None)]);
        assert_eq!((entry.spec.version.as_str(), entry.spec.service_account.as_str()), ("v1", "reviews"));
        assert_eq!((entry.spec.healthy, entry.spec.mesh), (Some(true), Some(true)));
        assert!(entry.intercepted() && entry.excluded_ports().is_empty());
        let mut pod = reviews();
        pod["metadata"]["annotations"] = json!({"meshctl.dev/exclude-inbound-ports": "22, 9000", "other": "x"});
        let entry = convert(pod).unwrap().entry;
        assert_eq!((entry.excluded_ports(), entry.metadata.annotations.len()), (vec![22, 9000], 2));
    }

    #[test]
    fn a_port_has_all_of_its_names() {
        let mut pod = reviews();
        pod["spec"]["containers"][0]["ports"] = json!([
            {"containerPort": 80, "name": "a"}, {"containerPort": 80, "name": "b"}, {"containerPort": 80, "name": "b"},
            {"containerPort": 80, "name": "c", "protocol": "UDP"}, {"containerPort": 80}, {"containerPort": 80},
        ]);
        let ports = convert(pod).unwrap().entry.spec.ports;
        let ports: Vec<_> = ports.iter().map(|p| (p.port, p.name.as_deref(), p.protocol.as_deref())).collect();
        let tcp = [(80, Some("a"), None), (80, Some("b"), None), (80, None, None), (6379, None, None)];
        assert_eq!(ports.iter().filter(|port| port.2.is_none()).copied().collect::<Vec<_>>(), tcp);
        assert!(ports.contains(&(80, Some("c"), Some("udp"))));
    }

    #[test]
    fn one_that_ends_says_so_and_one_that_has_ended_is_not_there() {
        let mut pod = reviews();
        pod["metadata"]["deletionTimestamp"] = json!("2030-01-01T00:00:00Z");
        let entry = convert(pod).unwrap().entry;
        assert_eq!((entry.spec.healthy, entry.metadata.labels[LABEL_TERMINATING].as_str()), (Some(true), "true"));
        let mut pod = reviews();
        pod["status"]["phase"] = json!("Succeeded");
        assert_eq!(convert(pod), None);
    }

    #[test]
    fn one_is_lost_whose_node_is_not_heard_of() {
        let of = |ready: &str, containers: &str, gate: Option<&str>| {
            let mut pod = reviews();
            pod["metadata"]["labels"]["meshctl.dev/lost"] = json!("true");
            pod["spec"]["readinessGates"] = json!([{"conditionType": "example.com/ok"}]);
            let mut conditions = vec![("Ready", ready), ("ContainersReady", containers)];
            conditions.extend(gate.map(|status| ("example.com/ok", status)));
            let condition = |(name, status): (&str, &str)| json!({"type": name, "status": status});
            pod["status"]["conditions"] = conditions.into_iter().map(condition).collect();
            let entry = convert(pod).unwrap().entry;
            (entry.spec.healthy.unwrap(), entry.metadata.labels.contains_key(LABEL_LOST))
        };
        assert_eq!(of("False", "True", Some("True")), (true, true));
        assert_eq!(of("Unknown", "True", Some("True")), (true, true));
        assert_eq!(of("True", "True", Some("True")), (true, false));
        assert_eq!(of("False", "False", Some("True")), (false, false));
        assert_eq!(of("False", "True", Some("False")), (false, false));
        assert_eq!(of("False", "True", None), (false, false));
    }

    #[test]
    fn one_on_its_nodes_network_is_called_in_plaintext() {
        let mut pod = reviews();
        pod["spec"]["hostNetwork"] = json!(true);
        let Pod { on_node, entry, .. } = convert(pod).unwrap();
        assert!(on_node);
        assert_eq!((entry.in_mesh(), entry.spec.addresses.len(), entry.spec.healthy), (false, 2, Some(true)));
    }

    #[test]
    fn what_is_not_there_yet_has_its_default() {
        let bare = json!({"metadata": {"name": "x", "namespace": "d", "labels": {"meshctl.dev/terminating": "true"}},
            "spec": {"containers": []}});
        let Pod { node, entry, .. } = convert(bare).unwrap();
        assert_eq!((node.as_str(), entry.spec.service_account.as_str()), ("", "default"));
        assert_eq!((entry.spec.healthy, entry.spec.mesh), (Some(false), Some(false)));
        assert!(entry.spec.addresses.is_empty() && entry.metadata.labels.is_empty());
    }
}
