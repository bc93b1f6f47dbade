//! What a permissive scope takes: ports that nobody declared are handed over as they are, and only once; and where an application
//! may listen.

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
    let own = "$(ip -4 -o addr show scope global | awk '{sub(\"/.*\", \"\", $4); print $4; exit}')";
    let serve = |port: u16, bind: &str| format!("python3 -m http.server {port} --bind {bind} & ");
    let apps = [(9999, "0.0.0.0"), (9997, "127.0.0.1"), (9996, own)].map(|(port, bind)| serve(port, bind)).concat();
    // The declared port is served at the machine's own address alone, and found healthy there.
    let all = format!("{apps} exec {} http --version v1 --listen {own}:9080", mesh.program("testapp").display());
    let reviews = mesh.run("reviews", &["--version", "v1", "--port", "9080:http"], &["/bin/sh", "-c", &all]).unwrap();
    mesh.discovered("reviews", "v1").unwrap();
    let address = mesh.addresses("reviews").unwrap()[0];

    for port in [9999, 9996] {
        let listing = mesh.curl("web", &["--retry", "3", "--retry-all-errors", &format!("http://{address}:{port}/")]);
        assert!(listing.as_ref().is_ok_and(|text| text.contains("Directory listing")), "{port}: {listing:?}");
    }
    // Nobody listens there, or only for the machine itself: the connection ends at once, and the proxy has not called itself
    // until nothing was left.
    for port in [9998, 9997] {
        let nobody =
            mesh.curl("web", &["--fail", "-w", "%{time_total}", &format!("http://{address}:{port}/")]).unwrap_err();
        assert!(!format!("{nobody:#}").contains("timed out"), "{nobody:#}");
    }
    let answer = mesh.curl("web", &["-o", "/dev/null", "-w", "%{http_code}", "http://reviews:9080/"]).unwrap();
    assert_eq!(answer.trim(), "200", "{}", reviews.tail());
}
