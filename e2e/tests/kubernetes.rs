//! The mesh in a real Kubernetes: installed, applications injected by the webhook, a canary and a fault by plain objects,
//! and taken out again. `E2E_CLUSTER` says which cluster (see `e2e/kubernetes/cluster`).

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

/// A cluster that goes away with the test.
struct Cluster {
    kubeconfig: PathBuf,
}

impl Cluster {
    fn up() -> anyhow::Result<Self> {
        let printed = run(Command::new(script("cluster")).arg("up"))?;
        let cluster = Self { kubeconfig: printed.trim().into() };
        let archives = tempfile::tempdir()?;
        let printed = run(Command::new(script("images")).arg(programs()?).arg(archives.path()))?;
        println!("{printed}");
        let files = ["mesh-proxy", "mesh-control", "testapp"].map(|name| archives.path().join(format!("{name}.tar")));
        run(Command::new(script("cluster")).arg("import").args(files))?;
        Ok(cluster)
    }

    fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        run(Command::new("kubectl").arg("--kubeconfig").arg(&self.kubeconfig).args(args))
    }

    fn meshctl(&self, args: &[&str]) -> anyhow::Result<String> {
        run(Command::new(programs()?.join("meshctl")).args(args).env("KUBECONFIG", &self.kubeconfig))
    }

    fn apply(&self, object: &Value) -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("object.json");
        std::fs::write(&file, serde_json::to_vec(object)?)?;
        self.kubectl(&["apply", "-f", &file.display().to_string()]).map(drop)
    }

    /// What a client of this service account saw of 1,000 requests to `reviews`. It is a Job, so it also ends by itself.
    fn load(&self, name: &str, account: &str) -> anyhow::Result<Value> {
        let load = ["load", "--url", "http://reviews:9080/", "--connections", "4", "--requests", "1000"];
        self.apply(&json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"backoffLimit": 0, "template": {"spec": {
                "restartPolicy": "Never", "serviceAccountName": account,
                "containers": [{"name": "app", "image": "mesh-e2e/testapp:1", "imagePullPolicy": "Never", "args": load}],
            }}},
        }))?;
        let job = format!("job/{name}");
        self.kubectl(&["-n", "shop", "wait", "--for=jsonpath={.status.terminating}=0", "--timeout=60s", &job])?;
        self.kubectl(&["-n", "shop", "wait", "--for=condition=Complete", "--timeout=60s", &job])?;
        let logs = self.kubectl(&["-n", "shop", "logs", &job, "-c", "app"])?;
        serde_json::from_str(logs.trim()).with_context(|| logs.clone())
    }

    /// Everything that an installation could leave behind.
    fn leftovers(&self) -> anyhow::Result<String> {
        self.kubectl(&[
            "get",
            "namespaces,crds,clusterroles,clusterrolebindings,mutatingwebhookconfigurations,validatingwebhookconfigurations",
            "-o",
            "name",
        ])
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new(script("cluster")).arg("down")) {
            eprintln!("{error:#}");
        }
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kubernetes").join(name)
}

fn programs() -> anyhow::Result<PathBuf> {
    std::env::var_os("MESH_E2E_PROGRAMS").map(PathBuf::from).context("MESH_E2E_PROGRAMS is not set")
}

/// What the command printed, if it ended well.
fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    ensure!(output.status.success(), "{command:?}: {}\n{stdout}\n{stderr}", output.status);
    Ok(stdout)
}

fn weights(v1: u32, v2: u32) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "reviews", "namespace": "shop"},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "reviews"}],
            "rules": [{"backendRefs": [
                {"name": "reviews-v1", "port": 9080, "weight": v1},
                {"name": "reviews-v2", "port": 9080, "weight": v2},
            ]}],
        },
    })
}

#[test]
fn canary_and_faults_in_a_real_cluster() {
    let cluster = Cluster::up().unwrap();
    let before = cluster.leftovers().unwrap();
    let installed = cluster.meshctl(&["install"]).unwrap();
    assert!(installed.contains("All is well."), "{installed}");
    let again = cluster.meshctl(&["install"]).unwrap();
    assert!(again.contains("Nothing had to be changed"), "{again}");

    let shop = script("manifests/shop.yaml").display().to_string();
    cluster.kubectl(&["apply", "-f", &shop]).unwrap();
    for deployment in ["deployment/reviews-v1", "deployment/reviews-v2"] {
        cluster.kubectl(&["-n", "shop", "rollout", "status", "--timeout=90s", deployment]).unwrap();
    }

    for (v1, v2) in [(100, 0), (90, 10), (50, 50), (0, 100)] {
        cluster.apply(&weights(v1, v2)).unwrap();
        let accepted = "--for=jsonpath={.status.parents[0].conditions[?(@.type==\"Accepted\")].status}=True";
        cluster.kubectl(&["-n", "shop", "wait", accepted, "--timeout=30s", "httproute/reviews"]).unwrap();
        let report = cluster.load(&format!("canary-{v1}-{v2}"), "default").unwrap();
        assert_eq!((&report["failed"], &report["by_status"]), (&json!(0), &json!({"200": 1000})), "{report}");
        let share = |version: &str| report["by_version"][version].as_u64().unwrap_or(0);
        assert_eq!((share("v1"), share("v2")), (u64::from(v1) * 10, u64::from(v2) * 10), "{report}");
    }

    let fault = json!({
        "apiVersion": "meshctl.dev/v1alpha1", "kind": "FaultInjection",
        "metadata": {"name": "half", "namespace": "shop"},
        "spec": {
            "targetRefs": [{"group": "", "kind": "Service", "name": "reviews"}],
            "from": [{"serviceAccount": "web"}],
            "faults": [{"percent": 50, "abort": {"httpStatus": 503}}],
        },
    });
    cluster.apply(&fault).unwrap();
    let hit = cluster.load("fault-web", "web").unwrap();
    assert_eq!(hit["by_status"], json!({"200": 500, "503": 500}), "{hit}");
    let spared = cluster.load("fault-others", "default").unwrap();
    assert_eq!(spared["by_status"], json!({"200": 1000}), "{spared}");
    let mut wrong = fault;
    wrong["spec"]["faults"][0]["percent"] = json!(101);
    let refused = cluster.apply(&wrong).unwrap_err().to_string();
    assert!(refused.contains("percent"), "{refused}");

    cluster.kubectl(&["delete", "namespace", "shop", "--timeout=90s"]).unwrap();
    cluster.meshctl(&["uninstall", "--yes", "--gateway-api-crds"]).unwrap();
    assert_eq!(cluster.leftovers().unwrap(), before);
}
