//! The proxy of a workload of `reviews` without any I/O: the same code as that of the control plane and of the proxy, from
//! objects through bytes to what the proxy decides by.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail, ensure};
use mesh_common::names::LISTENER_INBOUND;
use mesh_common::resource::parse_yaml;
use mesh_control::compile::{ClientKind, ResourceType, Scope, resource};
use mesh_control::model::{Keys, Settings, build};
use mesh_proxy::config::Listener;
use mesh_proxy::config::decode::decode;
use mesh_proxy::snapshot::{Resource, Type};

const WORKLOAD: &str = "apiVersion: meshctl.dev/v1alpha1
kind: WorkloadEntry
metadata: {name: reviews-1, namespace: shop}
spec: {service: reviews, version: v1, addresses: [10.1.0.1], ports: [{port: 9080, protocol: http}], serviceAccount: reviews, mesh: true}
";

/// Its inbound listener, with these objects beside its own.
pub fn listener(objects: &[String], keys: &Keys, client: ClientKind) -> anyhow::Result<Arc<Listener>> {
    let text = [WORKLOAD.to_owned()].iter().chain(objects).cloned().collect::<Vec<_>>().join("\n---\n");
    let objects = parse_yaml("test", &text).map_err(|errors| anyhow!("{errors:?}\n{text}"))?;
    let objects: BTreeMap<_, _> = objects.into_iter().map(|object| (object.key(), Arc::new(object))).collect();
    let settings = Settings { trust_domain: "mesh.local".to_owned() };
    let scope = Scope {
        namespace: "shop".to_owned(),
        identity: None,
        service: "reviews".to_owned(),
        version: "v1".to_owned(),
        workload: "reviews-1".to_owned(),
        inbound_ports: Vec::new(),
        client,
        faults: true,
        throttles: true,
        peak_ewma: true,
        limits: true,
        audits: true,
        asks: true,
        locality: Default::default(),
    };
    let compiled = || {
        let model = build(&objects, &settings, &Default::default()).with_keys(&Arc::new(keys.clone()));
        resource(&model, &scope, ResourceType::Listener, LISTENER_INBOUND).context("there is no listener")
    };
    let any = compiled()?;
    ensure!(any.value == compiled()?.value, "the same objects make other bytes");
    match decode(Type::Listener, &any.value).map_err(|rejected| anyhow!("{rejected:?}"))? {
        Resource::Listener(listener) => Ok(listener),
        other => bail!("{other:?}"),
    }
}
