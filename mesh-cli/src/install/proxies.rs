//! How the mesh of a cluster makes proxies: what its injector goes by, whoever has installed it.

use k8s_openapi::api::apps::v1::Deployment;
use mesh_common::inject::InjectConfig;

use super::{CONTROL, LABEL_VERSION, NAMESPACE};
use crate::failure::Failure;
use crate::kubernetes::Cluster;

/// With the version that is installed. `None`: there is none.
pub async fn injected(cluster: &Cluster) -> Result<Option<(String, InjectConfig)>, Failure> {
    let deployment = cluster.namespaced::<Deployment>(NAMESPACE).get_opt(CONTROL).await?;
    Ok(deployment.map(|deployment| {
        let config = of_deployment(&deployment);
        (deployment.metadata.labels.and_then(|mut labels| labels.remove(LABEL_VERSION)).unwrap_or_default(), config)
    }))
}

/// As mesh-control reads its environment.
fn of_deployment(deployment: &Deployment) -> InjectConfig {
    let pod = deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let container = pod.and_then(|pod| pod.containers.iter().find(|container| container.name == CONTROL));
    let env = |name: &str| {
        let found = container?.env.iter().flatten().find(|variable| variable.name == name);
        found.and_then(|variable| variable.value.clone())
    };
    let default = InjectConfig::default();
    InjectConfig {
        image: env("MESH_PROXY_IMAGE").unwrap_or(default.image),
        pull_policy: env("MESH_PROXY_PULL_POLICY").unwrap_or(default.pull_policy),
        cpu: env("MESH_PROXY_CPU").unwrap_or(default.cpu),
        memory: env("MESH_PROXY_MEMORY").unwrap_or(default.memory),
        log: env("MESH_PROXY_LOG").unwrap_or(default.log),
        cni: env("MESH_CNI").is_some_and(|flag| flag == "true"),
        ..InjectConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::chart;

    #[test]
    fn the_settings_of_an_installation_are_those_of_its_proxies() {
        let injected = |settings: &[&str]| {
            let mut values = chart::defaults().unwrap();
            settings.iter().for_each(|setting| values.set(&setting.parse().unwrap()).unwrap());
            let manifests = chart::render(&values).unwrap();
            let deployment = manifests.into_iter().find(|manifest| manifest.kind() == "Deployment").unwrap();
            of_deployment(&serde_json::from_value(deployment.0).unwrap())
        };
        assert_eq!(injected(&[]), InjectConfig::default());
        let all = [
            "image.registry=registry.example/mesh",
            "image.tag=7",
            "image.pullPolicy=Always",
            "proxy.cpu=20m",
            "proxy.memory=64Mi",
            "proxy.log=debug",
            "cni.enabled=true",
        ];
        let expected = InjectConfig {
            image: "registry.example/mesh/mesh-proxy:7".to_owned(),
            pull_policy: "Always".to_owned(),
            cpu: "20m".to_owned(),
            memory: "64Mi".to_owned(),
            log: "debug".to_owned(),
            cni: true,
            ..InjectConfig::default()
        };
        assert_eq!(injected(&all), expected);
    }
}
