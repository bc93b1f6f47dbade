//! `meshctl top` and `meshctl topology` agree with what clients counted, to the last request, with nothing but the control
//! plane and the proxies.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use anyhow::ensure;
use mesh_e2e::app::load::Report;
use mesh_e2e::mesh::{Mesh, User};
use mesh_e2e::process::eventually;
use nix::sys::signal::Signal;
use serde_json::Value;

fn json(mesh: &Mesh, args: &[&str]) -> anyhow::Result<Value> {
    Ok(serde_json::from_str(&mesh.meshctl(&[args, &["-o", "json"]].concat())?)?)
}

fn full(service: &str) -> String {
    format!("{service}.default.svc.cluster.local")
}

/// Who serves nothing is known by its service account.
fn account(name: &str) -> String {
    format!("{name}.default")
}

/// The one that has these fields.
fn find<'a>(rows: &'a Value, fields: &[(&str, &str)]) -> anyhow::Result<&'a Value> {
    let fits = |row: &&Value| fields.iter().all(|(name, value)| row[name] == *value);
    let found: Vec<&Value> = rows.as_array().into_iter().flatten().filter(fits).collect();
    ensure!(found.len() == 1, "{} of {fields:?} in {rows:#}", found.len());
    Ok(found[0])
}

#[test]
fn top_and_topology_count_every_request_once() {
    let mesh = Mesh::start(User::Same).unwrap();
    let _v1 = mesh.echo("reviews", "v1").unwrap();
    let _v2 = mesh.echo("reviews", "v2").unwrap();
    let stock = ["--version", "v1", "--port", "7000:tcp"];
    let _stock = mesh.run("stock", &stock, &["testapp", "tcp", "--listen", "0.0.0.0:7000", "--version", "v1"]).unwrap();
    mesh.discovered("stock", "v1").unwrap();
    mesh.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: empty}\nspec: {ports: [{port: 9080, appProtocol: http}]}\n",
    )
    .unwrap();
    mesh.meshctl(&["route", "set-weight", "reviews", "v1=70", "v2=30"]).unwrap();
    mesh.meshctl(&["fault", "abort", "reviews", "--percent", "25", "--status", "503", "--from", "web"]).unwrap();
    mesh.wait().unwrap();

    // One that stays, and others that are gone when the question is asked.
    let testapp = mesh.program("testapp").display().to_string();
    let load = format!(
        "{testapp} load --requests 50 --url tcp://stock:7000 && {testapp} load --requests 30 --url http://empty:9080/ && \
         exec {testapp} load --requests 1000 --connections 4 --url http://reviews:9080/ --linger"
    );
    let web = mesh.run("web", &[], &["/bin/sh", "-c", &load]).unwrap();
    let other = ["--url", "http://reviews:9080/status/404", "--requests", "400", "--connections", "2"];
    let other = mesh.load("other", &other).unwrap().report().unwrap();
    eventually(Duration::from_secs(30), || {
        ensure!(web.stdout().lines().count() == 3, "the load is not over: {}", web.tail());
        Ok(())
    })
    .unwrap();
    let seen: Report = serde_json::from_str(web.stdout().lines().last().unwrap()).unwrap();
    assert_eq!(
        (seen.by_status[&200], seen.by_status[&503], other.by_status[&404]),
        (750, 250, 400),
        "{seen:?} {other:?}"
    );

    let check = || {
        let rows = json(&mesh, &["top", "callers", "--window", "1m"])?;
        let row =
            |caller: &str, service: &str| find(&rows, &[("caller", &account(caller)), ("service", &full(service))]);
        let reviews = row("web", "reviews")?;
        ensure!(reviews["requests"] == 1000 && reviews["failed"] == 250, "{reviews:#}");
        ensure!(reviews["responses"] == serde_json::json!({"200": 750, "503": 250}), "{reviews:#}");
        ensure!(reviews["flags"] == serde_json::json!({"FI": 250}) && reviews["success"] == 0.75, "{reviews:#}");
        ensure!(reviews["mutualTls"] == 1.0, "{reviews:#}");
        let others = row("other", "reviews")?;
        ensure!(others["requests"] == 400 && others["failed"] == 0 && others["responses"]["404"] == 400, "{others:#}");
        let empty = row("web", "empty")?;
        ensure!(empty["requests"] == 30 && empty["failed"] == 30 && empty["flags"]["UH"] == 30, "{empty:#}");
        let stock = row("web", "stock")?;
        ensure!(stock["requests"] == 0 && stock["connectionsOpened"] == 50, "{stock:#}");
        ensure!(stock["connectionsClosed"] == 50 && stock["connectionsFailed"] == 0, "{stock:#}");
        ensure!(rows.as_array().is_some_and(|rows| rows.len() == 4), "{rows:#}");

        // What no workload answered has no version.
        let rows = json(&mesh, &["top", "--service", "reviews", "--window", "1m"])?;
        for version in ["v1", "v2"] {
            let row = find(&rows, &[("version", version)])?;
            let by_clients = seen.by_version[version] + other.by_version[version];
            ensure!(row["requests"] == by_clients && row["failed"] == 0, "{by_clients}: {row:#}");
        }
        ensure!(find(&rows, &[("version", "")])?["requests"] == 250, "{rows:#}");
        let rows = json(&mesh, &["top", "routes", "--service", "reviews", "--from", "web", "--window", "1m"])?;
        ensure!(find(&rows, &[("route", "HTTPRoute/default/reviews/0")])?["requests"] == 1000, "{rows:#}");

        let topology = json(&mesh, &["topology", "--window", "1m"])?;
        let edge = |from: &str, to: &str| find(&topology["edges"], &[("from", &account(from)), ("to", &full(to))]);
        ensure!(edge("web", "reviews")?["requests"] == 1000 && edge("other", "reviews")?["requests"] == 400);
        ensure!(edge("web", "stock")?["connectionsOpened"] == 50 && edge("web", "empty")?["requests"] == 30);
        ensure!(topology["edges"].as_array().is_some_and(|edges| edges.len() == 4), "{topology:#}");
        ensure!(topology["nodes"].as_array().is_some_and(|nodes| nodes.len() == 5), "{topology:#}");
        Ok(())
    };
    eventually(Duration::from_secs(10), check).unwrap();
    // Nor does it become more.
    std::thread::sleep(Duration::from_secs(2));
    check().unwrap();

    // For people.
    let table = mesh.meshctl(&["top", "callers", "--window", "1m"]).unwrap();
    let line = table.lines().find(|line| line.starts_with("web.default ") && line.contains(" reviews ")).unwrap();
    assert!(line.contains("75.0%") && line.ends_with("yes"), "{table}");
    assert!(mesh.meshctl(&["topology", "--window", "1m"]).unwrap().contains("├─ reviews"));
    assert!(mesh.meshctl(&["topology", "--window", "1m", "--dot"]).unwrap().starts_with("digraph mesh {\n"));
}

/// Reports are in nobody's way, and go on by themselves.
#[test]
fn reports_go_on_after_the_control_plane_was_away() {
    let mut mesh = Mesh::start(User::Same).unwrap();
    let _reviews = mesh.echo("reviews", "v1").unwrap();
    // What waited for the control plane would wait for the two seconds that it is away.
    let load = ["--url", "http://reviews:9080/", "--connections", "8", "--rate", "100", "--slow", "2000"];
    let load = mesh.load("web", &load).unwrap();
    load.flowing().unwrap();
    let rate = |mesh: &Mesh| -> anyhow::Result<f64> {
        let rows = json(mesh, &["top"])?;
        Ok(find(&rows, &[("service", &full("reviews"))])?["requestsPerSecond"].as_f64().unwrap_or_default())
    };
    let is_right = |mesh: &Mesh| {
        eventually(Duration::from_secs(20), || {
            let rate = rate(mesh)?;
            ensure!((85.0..=115.0).contains(&rate), "{rate} requests in a second");
            Ok(())
        })
    };
    is_right(&mesh).unwrap();
    for _ in 0..2 {
        let mut control = mesh.control.take().unwrap();
        control.signal(Signal::SIGKILL).unwrap();
        control.wait(Duration::from_secs(5)).unwrap();
        std::thread::sleep(Duration::from_secs(2));
        mesh.start_control().unwrap();
        is_right(&mesh).unwrap();
    }
    let report = load.stop().unwrap();
    assert_eq!((report.failed, report.closed, report.good()), (0, 0, report.requests), "{report:?}");
    assert_eq!(report.slow, 0, "{report:?}");
}
