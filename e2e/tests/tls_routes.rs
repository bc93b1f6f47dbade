//! TLS that is the application's own goes by its server name, through two proxies and as it is.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::Command;
use std::time::Duration;

use mesh_e2e::mesh::{Mesh, User};
use mesh_e2e::process::Process;

const ROUTE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: one}
spec:
  parentRefs: [{group: '', kind: Service, name: front}]
  hostnames: [one.example.com]
  rules: [{backendRefs: [{name: one, port: 8443}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: others}
spec:
  parentRefs: [{group: '', kind: Service, name: front}]
  hostnames: ['*.example.com']
  rules: [{backendRefs: [{name: two, port: 8443}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: missing}
spec:
  parentRefs: [{group: '', kind: Service, name: front}]
  hostnames: [nobody.example.com]
  rules: [{backendRefs: [{name: nobody, port: 8443}]}]
";

const TCP_ROUTE: &str = "---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: rest}
spec:
  parentRefs: [{group: '', kind: Service, name: front}]
  rules: [{backendRefs: [{name: two, port: 8443}]}]
";

#[test]
fn tls_goes_by_its_server_name() {
    let mesh = Mesh::start(User::Same).unwrap();
    let script = mesh.script("tls.py").unwrap();
    let (certificate, key) = (mesh.folder().join("own.pem"), mesh.folder().join("own.key"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"])
        .args(["-subj", "/CN=own", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert!(fs::metadata(&certificate).unwrap().len() > 0);
    let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
    let serve = |name: &str| -> Process {
        let app = ["/usr/bin/python3", &script, "serve", "8443", name, &certificate, &key];
        let server = mesh.run(name, &["--version", "v1", "--port", "8443"], &app).unwrap();
        mesh.discovered(name, "v1").unwrap();
        server
    };
    let _servers = ["front", "one", "two"].map(serve);
    let ask = |names: &[&str]| {
        let app = [&["/usr/bin/python3", &script, "ask", "front", "8443"], names].concat();
        let mut client = mesh.run("web", &[], &app).unwrap();
        let status = client.wait(Duration::from_secs(60)).unwrap();
        assert!(status.success(), "{}", client.tail());
        client.stdout().lines().map(str::to_owned).collect::<Vec<_>>()
    };

    assert_eq!(ask(&["one.example.com", "-"]), ["one.example.com: front one.example.com", "-: front None"]);

    mesh.apply(ROUTE).unwrap();
    let names =
        ["one.example.com", "a.example.com", "a.b.example.com", "example.com", "-", "nobody.example.com", "plain"];
    let expected = [
        "one.example.com: one one.example.com",
        "a.example.com: two a.example.com",
        "a.b.example.com: two a.b.example.com",
        "example.com: refused",
        "-: refused",
        "nobody.example.com: refused",
        "plain: front plain",
    ];
    assert_eq!(ask(&names), expected);

    mesh.apply(&format!("{ROUTE}{TCP_ROUTE}")).unwrap();
    let expected =
        ["one.example.com: one one.example.com", "example.com: two example.com", "-: two None", "plain: two plain"];
    assert_eq!(ask(&["one.example.com", "example.com", "-", "plain"]), expected);
}
