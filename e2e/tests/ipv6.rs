//! IPv6 is intercepted and routed as IPv4 is: by name, by virtual address, and by a workload's own address.

#![allow(clippy::unwrap_used)]

use std::net::Ipv6Addr;
use std::process::Command;

use mesh_e2e::as_root_and_without;
use mesh_e2e::mesh::{Mesh, User, free_port};

as_root_and_without!(ipv6_goes_through_the_mesh);

fn ipv6_goes_through_the_mesh(user: User) {
    let mesh = Mesh::start(user).unwrap();
    let app = ["testapp", "http", "--listen", "[::]:9080"];
    let metrics = format!("127.0.0.1:{}", free_port().unwrap());
    let args = ["--version", "v1", "--port", "9080:http", "--metrics", metrics.as_str()];
    let _reviews = mesh.run("reviews", &args, &app).unwrap();
    mesh.discovered("reviews", "v1").unwrap();
    let of = |view: &str, key: &str| -> Ipv6Addr {
        let json: serde_json::Value =
            serde_json::from_str(&mesh.meshctl(&["get", view, "-o", "json"]).unwrap()).unwrap();
        let addresses = json.as_array().unwrap().iter().filter_map(|o| o[key].as_array()).flatten();
        addresses.filter_map(|a| a.as_str()?.parse().ok()).next().unwrap_or_else(|| panic!("no IPv6 address: {json}"))
    };
    let (virtual_address, own) = (of("services", "virtualAddresses"), of("workloads", "addresses"));
    let urls = [format!("[{virtual_address}]"), format!("[{own}]"), "reviews".to_owned()];
    let urls = urls.map(|host| format!("http://{host}:9080/"));
    let mut args = vec!["-6", "-w", "\n%{remote_ip}\n"];
    args.extend(urls.iter().map(String::as_str));
    let said = mesh.curl("web", &args).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    let virtual_address = virtual_address.to_string();
    assert_eq!(
        [lines[1], lines[3], lines[5]],
        [virtual_address.as_str(), &own.to_string(), &virtual_address],
        "{said}"
    );
    for reply in lines.iter().step_by(2) {
        let reply: serde_json::Value = serde_json::from_str(reply).unwrap();
        assert_eq!(reply["version"], "v1", "{said}");
    }
    // The server's proxy took them over mutual TLS.
    let metrics =
        Command::new("curl").args(["-sS", "-m", "5"]).arg(format!("http://{metrics}/metrics")).output().unwrap();
    let metrics = String::from_utf8(metrics.stdout).unwrap();
    let secured: Vec<&str> =
        metrics.lines().filter(|l| l.starts_with("mesh_requests_total{") && l.contains("mutual_tls")).collect();
    assert!(secured.len() == 1 && secured[0].ends_with(" 3"), "{metrics}");
}
