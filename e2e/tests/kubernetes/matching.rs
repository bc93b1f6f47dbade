//! Requests go where their headers and cookies say.

use std::time::Duration;

use anyhow::ensure;
use mesh_e2e::cluster::{Cluster, apps};
use mesh_e2e::process::eventually;
use serde_json::{Value, json};

pub fn check(cluster: &Cluster) -> anyhow::Result<()> {
    let namespace = cluster.meshed("matching")?;
    namespace.shop(&["web"])?;
    let to = |version: &str| apps::backends(&[(&format!("reviews-{version}"), 1)]);
    let header = json!({"headers": [{"name": "end-user", "value": "jason"}]});
    let cookie =
        json!({"headers": [{"type": "RegularExpression", "name": "cookie", "value": r"(.*;\s*)?beta=yes(;.*)?"}]});
    let rules: Value = json!([{"matches": [header, cookie], "backendRefs": to("v2")}, {"backendRefs": to("v1")}]);
    namespace.apply(&[apps::http_route("reviews", rules)])?;
    namespace.condition("httproute/reviews", "Accepted", "True")?;
    let goes = |headers: &[&str], version: &str| -> anyhow::Result<()> {
        let named: Vec<&str> = headers.iter().flat_map(|header| ["--header", header]).collect();
        let args = [&["--url", "http://reviews:9080/", "--requests", "50"][..], &named].concat();
        for protocol in [None, Some("--http2"), Some("--grpc")] {
            let args = args.iter().copied().chain(protocol).collect::<Vec<_>>();
            let report = namespace.load("web", &args)?;
            ensure!(report.by_version.get(version) == Some(&50), "{headers:?} {protocol:?}: {report:?}");
        }
        Ok(())
    };
    eventually(Duration::from_secs(10), || goes(&["end-user: jason"], "v2"))?;
    goes(&[], "v1")?;
    goes(&["End-User: jason"], "v2")?;
    goes(&["end-user: jason2"], "v1")?;
    goes(&["cookie: session=1; beta=yes"], "v2")?;
    goes(&["cookie: beta=yes; session=1"], "v2")?;
    goes(&["cookie: alphabeta=yes"], "v1")
}
