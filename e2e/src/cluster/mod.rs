//! A real Kubernetes with images of this build in it. `E2E_CLUSTER` says which (see `e2e/kubernetes/cluster`).

pub mod apps;
mod namespace;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

pub use namespace::Namespace;

/// What `e2e/kubernetes/images` makes.
const IMAGES: [&str; 4] = ["mesh-proxy", "mesh-control", "testapp", "prometheus"];

/// A cluster that goes away when it is dropped, if it was made for the test.
pub struct Cluster {
    kubeconfig: PathBuf,
}

impl Cluster {
    pub fn up() -> anyhow::Result<Self> {
        let printed = run(script("cluster").arg("up"), None)?;
        let cluster = Self { kubeconfig: printed.trim().into() };
        let archives = tempfile::tempdir()?;
        print!("{}", run(script("images").arg(programs()?).arg(archives.path()), None)?);
        let files = IMAGES.map(|name| archives.path().join(format!("{name}.tar")));
        run(script("cluster").arg("import").args(files), None)?;
        Ok(cluster)
    }

    pub fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        run(self.kubectl_command().args(args), None)
    }

    /// The same with something on standard input.
    pub fn kubectl_with(&self, args: &[&str], input: &str) -> anyhow::Result<String> {
        run(self.kubectl_command().args(args), Some(input))
    }

    pub fn kubectl_command(&self) -> Command {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        command
    }

    pub fn meshctl(&self, args: &[&str]) -> anyhow::Result<String> {
        self.meshctl_with(args, &[])
    }

    /// With more in its environment.
    pub fn meshctl_with(&self, args: &[&str], environment: &[(&str, &str)]) -> anyhow::Result<String> {
        let environment = environment.iter().copied();
        run(self.meshctl_command(args)?.envs(environment), None)
    }

    /// With something on standard input.
    pub fn meshctl_on(&self, args: &[&str], input: &str) -> anyhow::Result<String> {
        run(&mut self.meshctl_command(args)?, Some(input))
    }

    fn meshctl_command(&self, args: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(programs()?.join("meshctl"));
        command.args(args).env("KUBECONFIG", &self.kubeconfig);
        Ok(command)
    }

    /// What somebody types in the repository's folder who has the mesh's programs and this cluster's kubeconfig, and what is
    /// answered, notes among it.
    pub fn shell(&self, line: &str) -> anyhow::Result<String> {
        let path = format!("{}:{}", programs()?.display(), std::env::var("PATH").unwrap_or_default());
        let line = format!("exec 2>&1; {line}");
        let mut bash = Command::new("bash");
        bash.args(["-o", "pipefail", "-c", &line]).current_dir(repository());
        run(bash.env("PATH", path).env("KUBECONFIG", &self.kubeconfig), None)
    }

    /// Applies a manifest, written as JSON or YAML.
    pub fn apply(&self, manifest: &str) -> anyhow::Result<()> {
        self.kubectl_with(&["apply", "-f", "-"], manifest).map(drop)
    }

    /// Objects as `kubectl get <args>` gives them.
    pub fn get(&self, args: &[&str]) -> anyhow::Result<Value> {
        let text = self.kubectl(&[&["get", "-o", "json"], args].concat())?;
        serde_json::from_str(&text).with_context(|| format!("kubectl get {args:?} gave no JSON"))
    }

    /// A path of the API server.
    pub fn raw(&self, path: &str) -> anyhow::Result<Value> {
        let text = self.kubectl(&["get", "--raw", path])?;
        serde_json::from_str(&text).with_context(|| format!("{path} gave no JSON: {text}"))
    }

    /// Makes a namespace that goes away with the value, labelled so that its pods are in the mesh.
    pub fn meshed(&self, name: &str) -> anyhow::Result<Namespace<'_>> {
        Namespace::new(self, name, true)
    }

    /// The same for pods outside of the mesh.
    pub fn unmeshed(&self, name: &str) -> anyhow::Result<Namespace<'_>> {
        Namespace::new(self, name, false)
    }

    /// The same for a namespace that was just made by what is tested.
    pub fn adopt(&self, name: &str) -> anyhow::Result<Namespace<'_>> {
        Namespace::adopt(self, name)
    }

    /// The names of those that were made for the tests.
    pub fn namespaces_of_tests(&self) -> anyhow::Result<String> {
        self.kubectl(&["get", "namespaces", "-l", namespace::LABEL, "-o", "name"])
    }

    /// Takes away all namespaces that were made for the tests, whoever should have done it.
    pub fn without_namespaces(&self) -> anyhow::Result<()> {
        self.kubectl(&["delete", "namespaces", "-l", namespace::LABEL, "--timeout=120s"]).map(drop)
    }

    /// Waits until a Deployment runs as it should.
    pub fn rolled_out(&self, namespace: &str, deployment: &str) -> anyhow::Result<()> {
        let deployment = format!("deployment/{deployment}");
        self.kubectl(&["-n", namespace, "rollout", "status", "--timeout=120s", &deployment]).map(drop)
    }

    /// Resident memory of each injected proxy, in bytes, by `<namespace>/<pod>`, as the kubelets last measured it.
    pub fn proxy_memory(&self) -> anyhow::Result<Vec<(String, u64)>> {
        let mut found = Vec::new();
        for node in self.kubectl(&["get", "nodes", "-o", "name"])?.lines() {
            let node = node.trim_start_matches("node/");
            let summary = self.raw(&format!("/api/v1/nodes/{node}/proxy/stats/summary"))?;
            for pod in summary["pods"].as_array().into_iter().flatten() {
                let reference = &pod["podRef"];
                let name = [&reference["namespace"], &reference["name"]].map(|part| part.as_str().unwrap_or_default());
                let containers = pod["containers"].as_array().into_iter().flatten();
                let proxy = containers.into_iter().find(|container| container["name"] == "mesh-proxy");
                let bytes = proxy.and_then(|container| container["memory"]["rssBytes"].as_u64());
                found.extend(bytes.map(|bytes| (name.join("/"), bytes)));
            }
        }
        Ok(found)
    }

    /// Ends the API server with SIGKILL, and starts it again so much later. Not possible in a cluster that was there before.
    pub fn kill_apiserver(&self, away: Duration) -> anyhow::Result<()> {
        run(script("cluster").arg("kill-apiserver").arg(away.as_secs().to_string()), None).map(drop)
    }

    /// The nodes' folder of CNI plugins, and that of their configuration.
    pub fn cni(&self) -> anyhow::Result<(String, String)> {
        let printed = run(script("cluster").arg("cni"), None)?;
        let (bin, conf) = printed.trim().split_once(' ').context("two folders expected")?;
        Ok((bin.to_owned(), conf.to_owned()))
    }

    /// The files of a node's network configuration, by name. Nobody may look at them in a cluster that was there before.
    pub fn cni_files(&self) -> anyhow::Result<Vec<(String, Value)>> {
        let printed = run(script("cluster").arg("cni-files"), None)?;
        let file = |text: &str| {
            let (name, content) = text.split_once(" <==\n").context("the name of a file expected")?;
            Ok((name.to_owned(), serde_json::from_str(content).with_context(|| format!("{name} is no JSON"))?))
        };
        printed.split("==> ").skip(1).map(file).collect()
    }

    /// A service account's token of these two parts, signed as the API server does. Only where it gives us its key.
    pub fn sign_token(&self, parts: &str) -> anyhow::Result<String> {
        Ok(run(script("cluster").arg("sign-token"), Some(parts))?.trim().to_owned())
    }

    /// What the mesh's service accounts have asked of the API server. Only a cluster that was made for the test tells.
    pub fn audit(&self) -> anyhow::Result<Vec<Value>> {
        let printed = run(script("cluster").arg("audit"), None)?;
        printed.lines().map(|line| serde_json::from_str(line).context("no audit event")).collect()
    }

    /// Ends a pod of one container with SIGKILL, for good. In a cluster that was there before it is told to end as usual.
    pub fn kill(&self, namespace: &str, pod: &str) -> anyhow::Result<()> {
        if self.is_ours() {
            let found = self.get(&["pod", pod, "-n", namespace])?;
            let id = found["status"]["containerStatuses"][0]["containerID"].as_str().context("it does not run")?;
            run(script("cluster").arg("kill").arg(id.trim_start_matches("containerd://")), None)?;
        }
        let now = ["--grace-period=0", "--force"];
        self.kubectl(&[&["-n", namespace, "delete", "pod", pod], &now[..]].concat()).map(drop)
    }

    /// The cluster was made for the test.
    pub fn is_ours(&self) -> bool {
        std::env::var("E2E_CLUSTER").as_deref() != Ok("kubeconfig")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = run(script("cluster").arg("down"), None) {
            eprintln!("{error:#}");
        }
    }
}

pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn script(name: &str) -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("kubernetes").join(name))
}

pub fn programs() -> anyhow::Result<PathBuf> {
    std::env::var_os("MESH_E2E_PROGRAMS").map(PathBuf::from).context("MESH_E2E_PROGRAMS is not set")
}

/// What the command printed, if it ended well.
pub fn run(command: &mut Command, input: Option<&str>) -> anyhow::Result<String> {
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    ensure!(output.status.success(), "{command:?}: {}\n{stdout}\n{stderr}", output.status);
    Ok(stdout)
}
