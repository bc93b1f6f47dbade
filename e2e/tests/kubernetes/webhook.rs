//! With no control plane, no pod comes into a meshed namespace without a proxy, and traffic goes on. With no webhook pods
//! slip through, and are found.

use std::time::Duration;

use anyhow::ensure;
use mesh_e2e::cluster::{Cluster, apps};
use mesh_e2e::process::eventually;

pub fn check(cluster: &Cluster) -> anyhow::Result<()> {
    let namespace = cluster.meshed("webhook")?;
    namespace.shop(&["web"])?;
    // What a proxy has not asked for yet, it cannot know later.
    let calls = ["--url", "http://reviews:9080/", "--requests", "500"];
    namespace.load("web", &calls)?;
    let control = |args: &[&str]| cluster.kubectl(&[&["-n", "mesh-system"], args].concat());
    control(&["scale", "deployment/mesh-control", "--replicas=0"])?;
    control(&["delete", "pods", "--all", "--grace-period=1", "--wait=false"])?;
    eventually(Duration::from_secs(60), || {
        let pods = control(&["get", "pods", "-o", "name"])?;
        ensure!(pods.is_empty(), "{pods}");
        Ok(())
    })?;
    let report = namespace.load("web", &calls)?;
    ensure!(report.good() == 500, "{report:?}");
    let slipping = apps::load("slipped", &["--url", "http://reviews:9080/"]);
    let refused = match namespace.apply(std::slice::from_ref(&slipping)) {
        Ok(()) => "taken".to_owned(),
        Err(error) => error.to_string(),
    };
    ensure!(refused.contains("failed calling webhook \"namespace.injector.meshctl.dev\""), "{refused}");

    cluster.kubectl(&["delete", "mutatingwebhookconfiguration", "mesh-injector"])?;
    namespace.apply(&[slipping])?;
    // Installing again mends the rest, and finds the pod.
    let found = cluster.meshctl(&["install"]).unwrap_or_else(|error| error.to_string());
    ensure!(found.contains("1 pods of the mesh have no proxy: webhook/slipped"), "{found}");
    namespace.delete(&["pod/slipped"])?;
    cluster.meshctl(&["check"]).map(drop)
}
