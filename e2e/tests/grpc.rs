//! A stock gRPC client, with no proxy, is routed by the same objects.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mesh_e2e::mesh::{Mesh, User, free_port, python};
use mesh_e2e::process::{Process, eventually};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/xds_client.py");

struct Client {
    child: Child,
}

impl Client {
    fn start(mesh: &Mesh, target: &str) -> Self {
        // The one of the documentation.
        let bootstrap =
            include_str!("../../docs/examples/grpc-bootstrap.json").replace("127.0.0.1:15010", &mesh.xds_plaintext);
        let mut command = Command::new(python().unwrap());
        command.args([SCRIPT, "client", target]).env("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap);
        let errors = std::fs::File::create(mesh.logs().join("grpc-client.err")).unwrap();
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors).spawn().unwrap();
        Self { child }
    }

    /// Calls so often, and gives how many calls each version answered.
    fn calls(&mut self, count: u32) -> (u64, u64) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{count}").unwrap();
        let mut line = String::new();
        BufReader::new(self.child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let report: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(report["errors"], serde_json::json!({}), "{report}");
        let of = |version: &str| report["versions"][version].as_u64().unwrap_or(0);
        (of("v1"), of("v2"))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_proxyless_client_follows_the_weights() {
    let mesh = Mesh::start(User::Same).unwrap();
    let mut servers = Vec::new();
    let mut objects = String::new();
    for version in ["v1", "v2"] {
        let port = free_port().unwrap();
        let mut command = Command::new(python().unwrap());
        command.args([SCRIPT, "server", &port.to_string(), version]);
        let server = Process::start(&format!("grpc-{version}"), command, &mesh.logs()).unwrap();
        eventually(Duration::from_secs(10), || {
            anyhow::ensure!(server.stdout().contains("serving"), "{}", server.tail());
            Ok(())
        })
        .unwrap();
        servers.push(server);
        objects += &format!(
            "---\napiVersion: meshctl.dev/v1alpha1\nkind: WorkloadEntry\nmetadata: {{name: ratings-{version}, namespace: default}}\n\
             spec:\n  service: ratings\n  version: {version}\n  addresses: [127.0.0.1]\n  mesh: false\n  \
             ports: [{{port: {port}, servicePort: 9090, protocol: grpc}}]\n"
        );
    }
    mesh.apply(&objects).unwrap();
    mesh.meshctl(&["route", "set-weight", "ratings", "v1=100", "v2=0"]).unwrap();
    let mut client = Client::start(&mesh, "xds:///ratings.default:9090");
    assert_eq!(client.calls(100), (100, 0));
    let (v1, v2) = {
        mesh.meshctl(&["route", "set-weight", "ratings", "v1=50", "v2=50"]).unwrap();
        mesh.wait().unwrap();
        client.calls(400)
    };
    // gRPC chooses at random: five standard deviations either way.
    assert!((150..=250).contains(&v1) && v1 + v2 == 400, "v1 {v1}, v2 {v2}");
    mesh.meshctl(&["route", "set-weight", "ratings", "v1=0", "v2=100"]).unwrap();
    mesh.wait().unwrap();
    // The acknowledgement comes a moment before the channel uses the new routes.
    eventually(Duration::from_secs(5), || {
        let (v1, _) = client.calls(20);
        anyhow::ensure!(v1 == 0, "{v1} calls still went to v1");
        Ok(())
    })
    .unwrap();
    assert_eq!(client.calls(100), (0, 100));
}
