//! What is more than a request and a reply goes through two proxies unharmed: WebSocket, tunnels, 100-continue, trailers,
//! and streams of events.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use mesh_e2e::as_root_and_without;
use mesh_e2e::mesh::{Mesh, User};

as_root_and_without!(streams_pass);

fn streams_pass(user: User) {
    let mesh = Mesh::start(user).unwrap();
    let script = mesh.script("wire.py").unwrap();
    let server = ["/usr/bin/python3", script.as_str(), "serve", "9080"];
    let _server = mesh.run("wire", &["--version", "v1", "--port", "9080:http"], &server).unwrap();
    mesh.discovered("wire", "v1").unwrap();
    let scenes = ["/usr/bin/python3", &script, "websocket", "connect", "continue", "trailers", "events"];
    let mut client = mesh.run("web", &[], &scenes).unwrap();
    let status = client.wait(Duration::from_secs(60)).unwrap();
    assert!(status.success() && client.stdout().ends_with("as it should be\n"), "{}", client.tail());
}
