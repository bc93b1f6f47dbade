//! Services and workloads as the mesh sees them: what is declared and what registered itself, in one list.

use std::collections::{BTreeMap, BTreeSet};

use mesh_common::proto::control::{Proxy, ServiceView, WorkloadView};
use mesh_common::resource::WorkloadEntry;
use serde::Serialize;

use crate::output::{Cell, Table};

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    pub namespace: String,
    pub name: String,
    pub virtual_addresses: Vec<String>,
    pub ports: Vec<u32>,
    pub versions: Vec<String>,
    pub workloads: Vec<Workload>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    pub namespace: String,
    pub name: String,
    pub service: String,
    pub version: String,
    pub addresses: Vec<String>,
    /// SPIFFE ID; "" for one outside the mesh.
    pub identity: String,
    pub healthy: bool,
    /// Its proxy has a stream to the control plane.
    pub connected: bool,
}

/// Services without the ones that are only a version of another.
pub fn services(views: &[ServiceView]) -> Vec<Service> {
    let mut services: Vec<Service> = views.iter().filter(|view| !is_version(views, view)).map(service).collect();
    services.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    services
}

fn service(view: &ServiceView) -> Service {
    let workloads: Vec<Workload> = view.workloads.iter().map(|w| workload(view, w)).collect();
    let versions: BTreeSet<&str> = workloads.iter().map(|w| w.version.as_str()).filter(|v| !v.is_empty()).collect();
    Service {
        namespace: view.namespace.clone(),
        name: view.name.clone(),
        virtual_addresses: view.virtual_addresses.clone(),
        ports: view.ports.clone(),
        versions: versions.into_iter().map(str::to_owned).collect(),
        workloads,
    }
}

/// `reviews-v1`, where `reviews` has a workload of version `v1`.
fn is_version(views: &[ServiceView], view: &ServiceView) -> bool {
    views.iter().any(|whole| {
        let version = view.name.strip_prefix(&whole.name).and_then(|rest| rest.strip_prefix('-'));
        whole.namespace == view.namespace
            && version.is_some_and(|version| whole.workloads.iter().any(|w| w.version == version))
    })
}

fn workload(of: &ServiceView, view: &WorkloadView) -> Workload {
    Workload {
        namespace: of.namespace.clone(),
        name: view.name.clone(),
        service: of.name.clone(),
        version: view.version.clone(),
        addresses: view.addresses.clone(),
        identity: view.identity.clone(),
        healthy: view.healthy,
        connected: view.connected,
    }
}

/// Workloads of services, and those that only call others: these are known by their entries and proxies only.
pub fn workloads(views: &[ServiceView], entries: &[WorkloadEntry], proxies: &[Proxy]) -> Vec<Workload> {
    let mut all: BTreeMap<(String, String), Workload> = BTreeMap::new();
    for service in services(views) {
        for workload in service.workloads {
            all.entry((workload.namespace.clone(), workload.name.clone())).or_insert(workload);
        }
    }
    for entry in entries {
        let (namespace, name) = (entry.metadata.namespace_or_default(), &entry.metadata.name);
        all.entry((namespace.to_owned(), name.clone())).or_insert_with(|| {
            let proxy = proxies.iter().find(|p| p.id == format!("{name}.{namespace}"));
            Workload {
                namespace: namespace.to_owned(),
                name: name.clone(),
                service: entry.spec.service.clone(),
                version: entry.spec.version.clone(),
                addresses: entry.spec.addresses.iter().map(ToString::to_string).collect(),
                identity: proxy.map(|p| p.identity.clone()).unwrap_or_default(),
                healthy: entry.spec.healthy.unwrap_or(true),
                connected: proxy.is_some(),
            }
        });
    }
    all.into_values().collect()
}

pub fn service_table(services: &[Service], namespaces: bool) -> Table {
    let mut table = Table::new(match namespaces {
        true => &["NAMESPACE", "NAME", "VERSIONS", "HEALTHY", "PORTS", "ADDRESS", "+MORE ADDRESSES"],
        false => &["NAME", "VERSIONS", "HEALTHY", "PORTS", "ADDRESS", "+MORE ADDRESSES"],
    });
    for service in services {
        let (first, more) = first_and_more(&service.virtual_addresses);
        let mut cells = vec![
            service.name.clone().into(),
            service.versions.join(", ").into(),
            health(service),
            service.ports.iter().map(u32::to_string).collect::<Vec<_>>().join(", ").into(),
            first.into(),
            more.into(),
        ];
        if namespaces {
            cells.insert(0, service.namespace.clone().into());
        }
        table.row(cells);
    }
    table
}

fn first_and_more(addresses: &[String]) -> (String, String) {
    addresses.split_first().map(|(first, more)| (first.clone(), more.join(", "))).unwrap_or_default()
}

/// `2 of 3`
fn health(service: &Service) -> Cell {
    let healthy = service.workloads.iter().filter(|w| w.healthy).count();
    let text = format!("{healthy} of {}", service.workloads.len());
    match (healthy, service.workloads.len()) {
        (0, _) => Cell::bad(text),
        (some, all) if some < all => Cell::warn(text),
        _ => Cell::good(text),
    }
}

pub fn workload_table(workloads: &[Workload], namespaces: bool) -> Table {
    let mut table = Table::new(match namespaces {
        true => {
            &["NAMESPACE", "NAME", "SERVICE", "VERSION", "ADDRESS", "HEALTHY", "PROXY", "+MORE ADDRESSES", "+IDENTITY"]
        }
        false => &["NAME", "SERVICE", "VERSION", "ADDRESS", "HEALTHY", "PROXY", "+MORE ADDRESSES", "+IDENTITY"],
    });
    for workload in workloads {
        let (first, more) = first_and_more(&workload.addresses);
        let mut cells = vec![
            workload.name.clone().into(),
            workload.service.clone().into(),
            workload.version.clone().into(),
            first.into(),
            if workload.healthy { Cell::good("yes") } else { Cell::bad("no") },
            match (workload.connected, workload.identity.is_empty()) {
                (true, _) => Cell::good("connected"),
                (false, true) => Cell::dim("none"),
                (false, false) => Cell::warn("away"),
            },
            more.into(),
            workload.identity.clone().into(),
        ];
        if namespaces {
            cells.insert(0, workload.namespace.clone().into());
        }
        table.row(cells);
    }
    table
}

#[cfg(test)]
mod tests {
    use mesh_common::resource::{Metadata, Resource, WorkloadEntrySpec};

    use super::*;

    fn view(name: &str, versions: &[&str]) -> ServiceView {
        let workload = |version: &&str| WorkloadView {
            name: format!("{name}-{version}-x"),
            version: (*version).to_owned(),
            addresses: vec!["10.0.0.1".into()],
            identity: "spiffe://mesh.local/ns/default/sa/reviews".into(),
            healthy: *version != "v3",
            connected: true,
        };
        ServiceView {
            namespace: "default".into(),
            name: name.into(),
            virtual_addresses: vec!["240.240.0.5".into(), "fd00::5".into()],
            ports: vec![9080],
            workloads: versions.iter().map(workload).collect(),
        }
    }

    #[test]
    fn versions_are_part_of_their_service() {
        let services = services(&[view("reviews", &["v1", "v3"]), view("reviews-v1", &["v1"]), view("web", &[])]);
        let names: Vec<&str> = services.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["reviews", "web"]);
        let text = service_table(&services, false).render(false, false, None);
        assert_eq!(text.lines().nth(1).unwrap(), "reviews  v1, v3    1 of 2   9080   240.240.0.5");
    }

    #[test]
    fn workloads_that_only_call_are_listed_too() {
        let entry = Resource { metadata: Metadata::new("default", "web-1"), spec: WorkloadEntrySpec::default() };
        let proxy =
            Proxy { id: "web-1.default".into(), identity: "spiffe://m/ns/default/sa/web".into(), ..Proxy::default() };
        let all = workloads(&[view("reviews", &["v1"])], &[entry], &[proxy]);
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].service.as_str(), all[0].healthy), ("reviews", true));
        assert_eq!((all[1].name.as_str(), all[1].connected, all[1].healthy), ("web-1", true, true));
    }
}
