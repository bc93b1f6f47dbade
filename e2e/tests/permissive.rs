//! What a permissive scope takes: ports that nobody declared are handed over as they are, and only once.

#![allow(clippy::unwrap_used)]

use mesh_e2e::mesh::{Mesh, User};

const PERMISSIVE: &str = "apiVersion: meshctl.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: migrating}
spec: {mode: PERMISSIVE}
";

#[test]
fn undeclared_ports_reach_the_application() {
    let mesh = Mesh::start(User::Same).unwrap();
    mesh.apply(PERMISSIVE).unwrap();
    let both = format!(
        "python3 -m http.server 9999 --bind 127.0.0.1 & exec {} http --version v1",
        mesh.program("testapp").display()
    );
    let reviews = mesh.run("reviews", &["--version", "v1", "--port", "9080:http"], &["/bin/sh", "-c", &both]).unwrap();
    mesh.discovered("reviews", "v1").unwrap();
    let address = mesh.addresses("reviews").unwrap()[0];

    let listing = mesh.curl("web", &[&format!("http://{address}:9999/")]).unwrap();
    assert!(listing.contains("Directory listing"), "{listing}");
    // Nobody listens there: the connection ends at once, and the proxy has not called itself until nothing was left.
    let nobody = mesh.curl("web", &["-w", "%{time_total}", &format!("http://{address}:9998/")]).unwrap_err();
    assert!(!format!("{nobody:#}").contains("timed out"), "{nobody:#}");
    let answer = mesh.curl("web", &["-o", "/dev/null", "-w", "%{http_code}", "http://reviews:9080/"]).unwrap();
    assert_eq!(answer.trim(), "200", "{}", reviews.tail());
}
