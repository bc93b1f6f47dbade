//! Ports that nobody names are called over mutual TLS too, where strict mode takes nothing else.

#![allow(clippy::unwrap_used)]

use mesh_e2e::mesh::{Mesh, User};

#[test]
fn ports_that_nobody_names_are_called_over_mutual_tls() {
    let mesh = Mesh::start(User::Same).unwrap();
    let testapp = mesh.program("testapp").display().to_string();
    // Strict is the default. HTTP on one port that nobody names, lines of text on another, and one for the machine alone.
    let all = format!(
        "{testapp} http --version unnamed --listen 0.0.0.0:7777 & {testapp} tcp --version lines --listen 0.0.0.0:7778 & \
         {testapp} http --version secret --listen 127.0.0.1:7779 & exec {testapp} http --version v1"
    );
    let server = mesh.run("reviews", &["--version", "v1", "--port", "9080:http"], &["/bin/sh", "-c", &all]).unwrap();
    mesh.discovered("reviews", "v1").unwrap();
    let address = mesh.addresses("reviews").unwrap()[0];

    let retry = ["--retry", "3", "--retry-all-errors"];
    let answer = mesh.curl("web", &[&retry[..], &[&format!("http://{address}:7777/")]].concat()).unwrap();
    assert!(answer.contains(r#""version":"unnamed""#), "{answer}\n{}", server.tail());
    let ask = format!(
        "import socket; s = socket.create_connection((\"{address}\", 7778), 10); s.sendall(b\"hello\\n\"); print(s.recv(100).decode())"
    );
    let mut client = mesh.run("web", &[], &["/usr/bin/python3", "-c", &ask]).unwrap();
    assert!(client.wait(std::time::Duration::from_secs(20)).unwrap().success(), "{}", client.tail());
    assert_eq!(client.stdout().trim(), "lines hello");
    assert!(mesh.curl("web", &["--fail", &format!("http://{address}:7779/")]).is_err());
}
