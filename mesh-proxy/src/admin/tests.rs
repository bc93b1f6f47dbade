use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mesh_common::inject::{Action, Probe, Which};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::*;
use crate::config::Name;
use crate::limit::RateLimits;
use crate::listen::{InFlight, Phase, Settings};
use crate::registry::depart::{Departing, Patience};
use crate::snapshot::{Resource, Store};
use crate::telemetry::{Telemetry, TelemetryOptions};
use crate::tls::Tls;
use crate::tls::tests::Authority;
use crate::upstream::Upstreams;

struct Running {
    ready: SocketAddr,
    metrics: SocketAddr,
    readiness: Readiness,
    phase: watch::Sender<Phase>,
}

fn admin() -> (Arc<Admin>, Readiness, watch::Sender<Phase>) {
    admin_with(None)
}

fn admin_with(drain: Option<Drain>) -> (Arc<Admin>, Readiness, watch::Sender<Phase>) {
    let name = Name {
        addresses: vec!["240.240.0.5".parse().unwrap()],
        ttl_seconds: 30,
        canonical: "reviews.default".into(),
        alias: None,
    };
    let store = Store::of([Resource::Name("reviews".into(), Arc::new(name))]);
    let tls = Tls::default();
    let (sender, phase) = watch::channel(Phase::Serving);
    let ctx = Context {
        upstreams: Upstreams::new(store.clone(), tls.clone()),
        store,
        tls,
        telemetry: Telemetry::new(TelemetryOptions::default()).unwrap(),
        settings: Settings::default(),
        phase,
        in_flight: InFlight::default(),
        rate_limits: RateLimits::default(),
        occupancy: Default::default(),
        overload: Default::default(),
        learned: Default::default(),
    };
    let readiness = Readiness::waiting_for("a certificate");
    (Arc::new(Admin::new(Arc::new(ctx), readiness.clone(), None, drain)), readiness, sender)
}

async fn start() -> Running {
    let (admin, readiness, phase) = admin();
    let ready = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let metrics = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let running =
        Running { ready: ready.local_addr().unwrap(), metrics: metrics.local_addr().unwrap(), readiness, phase };
    tokio::spawn(admin.clone().serve_ready(ready));
    tokio::spawn(admin.serve_metrics(metrics));
    running
}

/// Status and body.
async fn send(address: SocketAddr, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    let status = reply.split(' ').nth(1).unwrap().parse().unwrap();
    (status, reply.split_once("\r\n\r\n").unwrap().1.to_owned())
}

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    send(address, &format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")).await
}

#[tokio::test]
async fn readiness_says_what_is_missing() {
    let running = start().await;
    assert_eq!(get(running.ready, "/ready").await, (503, "waiting for a certificate\n".into()));
    assert_eq!(get(running.ready, "/healthz").await.0, 200);
    running.readiness.wait_for("the redirect");
    assert_eq!(get(running.ready, "/ready").await, (503, "waiting for the redirect\n".into()));
    running.readiness.ready();
    assert_eq!(get(running.ready, "/ready").await, (200, "ready\n".into()));
    running.phase.send(Phase::Draining).unwrap();
    assert_eq!(get(running.ready, "/ready").await, (503, "draining\n".into()));
}

#[tokio::test]
async fn metrics_on_their_port_and_nothing_else() {
    let running = start().await;
    let (status, text) = get(running.metrics, "/metrics").await;
    assert_eq!(status, 200);
    assert!(text.contains("mesh_proxy_build_info{version="), "{text}");
    assert_eq!(get(running.metrics, "/config_dump").await.0, 404);
    assert_eq!(send(running.metrics, "POST /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.0, 405);
    let mut garbage = TcpStream::connect(running.metrics).await.unwrap();
    garbage.write_all(b"\x16\x03\x01\x00\xffgarbage\r\n\r\n").await.unwrap();
    let mut reply = vec![];
    garbage.read_to_end(&mut reply).await.ok();
    assert!(reply.starts_with(b"HTTP/1.1 400"));
}

#[tokio::test]
async fn the_configuration_can_be_read_locally() {
    let running = start().await;
    let (status, text) = get(running.ready, "/config_dump").await;
    assert_eq!(status, 200);
    let dump: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(dump["names"][0]["addresses"][0], "240.240.0.5");
    assert_eq!(get(running.ready, "/version").await.0, 200);
    assert_eq!(get(running.ready, "/nothing").await.0, 404);
    // A browser that was led here by a name.
    let rebound = "GET /config_dump HTTP/1.1\r\nhost: evil.example:15021\r\nconnection: close\r\n\r\n";
    assert_eq!(send(running.ready, rebound).await.0, 403);
}

#[test]
fn secrets_are_shown_as_an_envoy_shows_them_and_without_the_key() {
    let (admin, ..) = admin();
    let dump = || dump::config(&admin.ctx.store.load(), &admin.ctx.upstreams, &admin.ctx.tls);
    assert_eq!(dump()["secrets"], serde_json::json!([]), "there is no certificate yet");
    let svid = Authority::new().svid("web");
    let (chain, roots) = (svid.certificate.cert.clone(), svid.bundle.roots().to_vec());
    admin.ctx.tls.rotate(svid);
    let secrets = &dump()["secrets"];
    let read = |secret: &serde_json::Value, kind: &str, what: &str| -> Vec<CertificateDer<'static>> {
        let text = secret[kind][what]["inline_string"].as_str().unwrap();
        CertificateDer::pem_slice_iter(text.as_bytes()).map(Result::unwrap).collect()
    };
    assert_eq!((&secrets[0]["name"], &secrets[1]["name"]), (&"default".into(), &"ROOTCA".into()));
    assert_eq!(read(&secrets[0], "tls_certificate", "certificate_chain"), chain);
    assert_eq!(read(&secrets[1], "validation_context", "trusted_ca"), roots);
    assert!(!secrets.to_string().to_lowercase().contains("private"), "{secrets}");
}

#[test]
fn only_loopback_callers_are_local() {
    let request = |host: &str| Request::builder().header(HOST, host).body(()).unwrap();
    let loopback = "127.0.0.1:1".parse().unwrap();
    for host in ["127.0.0.1:15021", "localhost", "localhost:15021", "[::1]:15021", "127.0.0.1"] {
        assert!(is_local(loopback, &request(host)), "{host}");
        assert!(!is_local("10.0.0.1:1".parse().unwrap(), &request(host)), "{host}");
    }
    assert!(!is_local(loopback, &request("localhost.evil.example")));
}

#[test]
fn query_values_are_decoded() {
    assert_eq!(query_value("a=1&filter=mesh%5Fproxy%3Ddebug,info", "filter").unwrap(), "mesh_proxy=debug,info");
    assert_eq!(query_value("filters=1", "filter"), None);
    assert_eq!(query_value("filter=%zz", "filter"), None);
    assert_eq!(query_value("filter=%f", "filter"), None);
}

#[tokio::test]
async fn the_local_socket_answers_without_an_address() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let (admin, _readiness, _phase) = admin();
    tokio::spawn(admin.serve_local(listener));
    let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
    stream.write_all(b"GET /config_dump HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 200") && reply.contains("240.240.0.5"), "{reply}");
}

#[tokio::test]
async fn only_who_may_makes_the_workload_depart() {
    let (departure, asks) = Departure::new();
    let (phase, phases) = watch::channel(Phase::Serving);
    let dials = Arc::new(AtomicUsize::new(0));
    let counted = dials.clone();
    let departing = Departing {
        workload: "a".into(),
        dial: move || {
            counted.fetch_add(1, Ordering::Relaxed);
            async { Err::<tonic::transport::Channel, _>("no control plane".to_owned()) }
        },
        phase,
        leaving: None,
        known: true,
        in_flight: InFlight::default(),
        patience: Patience::new(Duration::ZERO, None),
    };
    tokio::spawn(departing.run(asks));
    let request =
        |method: &str, host: &str| Request::builder().method(method).uri("/drain").header(HOST, host).body(());
    let (here, kubelet) = ("127.0.0.1:7".parse().unwrap(), "10.0.0.1:7".parse().unwrap());
    for (callers, from_here, from_elsewhere) in [
        (DrainCallers::Nobody, false, false),
        (DrainCallers::Local, true, false),
        (DrainCallers::Everybody, true, true),
    ] {
        let (admin, ..) = admin_with(Some(Drain { departure: departure.clone(), callers }));
        for method in ["GET", "POST"] {
            let request = request(method, "127.0.0.1:15021").unwrap();
            assert_eq!(admin.drain_for(here, &request).is_some(), from_here, "{callers:?}");
            assert_eq!(admin.drain_for(kubelet, &request).is_some(), from_elsewhere, "{callers:?}");
            assert!(admin.drain_for(LOCAL, &request).is_some());
        }
        assert!(admin.drain_for(here, &request("PUT", "127.0.0.1").unwrap()).is_none());
        if callers == DrainCallers::Local {
            assert!(admin.drain_for(here, &request("GET", "evil.example").unwrap()).is_none());
        }
    }

    // Whoever asks, it stays while nobody confirms that it is to end.
    let (admin, ..) = admin_with(Some(Drain { departure: departure.clone(), callers: DrainCallers::Everybody }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let hook = Action::Http { port: address.port(), path: "/ready".into(), https: false, headers: vec![] };
    let hook = Probe { action: hook, timeout_seconds: 5, key: None };
    let probes = BTreeMap::from([("app".to_owned(), BTreeMap::from([(Which::PreStop, hook)]))]);
    let admin = Arc::into_inner(admin).unwrap().probing(Prober::new(probes, None));
    tokio::spawn(Arc::new(admin).serve_ready(listener));
    // So does one with a hook of its own, which is performed after the control plane was asked.
    let hook = format!("{}app/prestop", path::APP_HEALTH);
    let hook = tokio::spawn(async move { get(address, &hook).await });
    while dials.load(Ordering::Relaxed) == 0 {
        assert!(!hook.is_finished());
        tokio::task::yield_now().await;
    }
    let (status, text) = get(address, "/drain").await;
    assert!(status == 503 && text.contains("no control plane"), "{status} {text}");
    assert_eq!(hook.await.unwrap(), (200, "503 Service Unavailable\n".to_owned()));
    assert_eq!(*phases.borrow(), Phase::Serving);
    departure.end().await;
    assert_eq!(get(address, "/drain").await, (200, "nobody calls the application any more\n".to_owned()));
}
