//! Requests that ask a policy for one thing and the application for another, over real sockets.

use super::smuggling::Witness;
use super::*;
use crate::config::{Condition, Gate, GateAction, HeaderMatch, Policy, StringMatch};

fn denies(what: Condition) -> Authorization {
    let policy = Policy { name: "no".to_owned(), permissions: vec![what], principals: vec![Condition::Any] };
    Authorization { gates: vec![Gate { action: GateAction::Deny, dry_run: false, policies: vec![policy] }] }
}

fn header(name: &str, matcher: StringMatch) -> Condition {
    Condition::Header(HeaderMatch { name: name.to_owned(), matcher, invert: false })
}

async fn guarded(witness: &Witness, authorization: Authorization, direction: Direction) -> Proxy {
    let resources = [
        Resource::Cluster(Arc::new(cluster("app", UpstreamHttp::Http1))),
        Resource::Endpoints(endpoints("app", vec![endpoint(witness.app.address)])),
        Resource::Routes(Arc::new(to(forward(&[("app", 1)])))),
    ];
    let downstream = Downstream { direction, ..downstream() };
    Proxy::new(resources, ProxyOptions { downstream, authorization, ..ProxyOptions::default() }).await
}

async fn status(proxy: &Proxy, head: &str) -> String {
    let mut stream = proxy.raw().await;
    stream.write_all(head.as_bytes()).await.unwrap();
    let text = read_until(&mut stream, "\r\n\r\n").await;
    text.split(' ').nth(1).unwrap().to_owned()
}

async fn paths_are_refused(paths: &[&str]) {
    let witness = Witness::new().await;
    let no_admin = denies(Condition::Path(StringMatch::Prefix("/admin".to_owned())));
    let proxy = guarded(&witness, no_admin, Direction::Inbound).await;
    for path in paths {
        let mut stream = proxy.raw().await;
        let head = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut text = String::new();
        soon(stream.read_to_string(&mut text)).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 403 ") || text.starts_with("HTTP/1.1 400 "), "{path}: {text}");
    }
    assert_eq!(witness.seen(), [""; 0]);
    assert_eq!(status(&proxy, "HEAD /public HTTP/1.1\r\nHost: a\r\n\r\n").await, "200");
}

#[tokio::test]
async fn cve_2021_31920_slashes_several_and_escaped() {
    paths_are_refused(&[
        "/admin",
        "//admin",
        "///admin/x",
        "/%2fadmin",
        "/%2Fadmin",
        "/\\admin",
        "/%5cadmin",
        "/x/..//admin",
    ])
    .await;
}

#[tokio::test]
async fn cve_2021_39156_a_fragment_in_the_path() {
    paths_are_refused(&["/admin#x", "/admin#/../public", "/public/../admin#"]).await;
}

#[tokio::test]
async fn paths_that_are_written_otherwise() {
    paths_are_refused(&[
        "/%61dmin",
        "/./admin",
        "/x/../admin",
        "/x/%2e%2e/admin",
        "/x/..%2fadmin",
        "/x/..;/admin",
        "/admin;x=1",
        "/;x/admin",
        "/%2561dmin",
        "/admin%00",
        "/admin%0a",
        "http://a/admin",
        "http://a//admin",
        "/../admin",
    ])
    .await;
}

#[tokio::test]
async fn cve_2021_39155_case_and_dots_of_the_host() {
    let witness = Witness::new().await;
    let no_admin = denies(header(":authority", StringMatch::Prefix("admin.test".to_owned())));
    let proxy = guarded(&witness, no_admin, Direction::Inbound).await;
    for host in ["admin.test", "Admin.Test", "ADMIN.TEST:80", "admin.test.", "aDmin.test.:80"] {
        assert_eq!(status(&proxy, &format!("HEAD / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await, "403", "{host}");
        assert_eq!(status(&proxy, &format!("HEAD http://{host}/ HTTP/1.1\r\nHost: x\r\n\r\n")).await, "403", "{host}");
    }
    assert_eq!(witness.seen(), [""; 0]);
    assert_eq!(status(&proxy, "HEAD / HTTP/1.1\r\nHost: public.test\r\n\r\n").await, "200");
}

#[tokio::test]
async fn the_host_s_one_form_is_what_the_application_gets() {
    let app =
        App::http1(|request| async move { reply(request.headers()[http::header::HOST].as_bytes().to_vec()) }).await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut stream = proxy.raw().await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: App.Test.:80\r\n\r\n").await.unwrap();
    read_until(&mut stream, "app.test:80").await;
}

/// Of a header with several values, each counts, in one line or in several.
#[tokio::test]
async fn cve_2020_25017_and_cve_2026_26308_several_values_of_a_header() {
    let witness = Witness::new().await;
    let no_admin = denies(header("x-role", StringMatch::Exact("admin".to_owned())));
    let proxy = guarded(&witness, no_admin, Direction::Inbound).await;
    for lines in [
        "X-Role: admin",
        "X-Role: user\r\nX-Role: admin",
        "x-role: admin\r\nX-ROLE: user",
        "X-Role: admin\r\nX-Role: admin",
    ] {
        let head = format!("HEAD / HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n");
        assert_eq!(status(&proxy, &head).await, "403", "{lines}");
    }
    assert_eq!(witness.seen(), [""; 0]);
    assert_eq!(status(&proxy, "HEAD / HTTP/1.1\r\nHost: a\r\nX-Role: user\r\n\r\n").await, "200");
}

/// The headers by which proxies tell each other who asked mean nothing from outside.
#[tokio::test]
async fn cve_2024_45806_headers_of_the_mesh_from_outside() {
    let app = App::http1(|request| async move {
        let name = |name: &str| name.starts_with("x-mesh-") || name == "x-forwarded-client-cert";
        reply(format!("<{}>", request.headers().keys().filter(|it| name(it.as_str())).count()))
    })
    .await;
    let witness = Witness { app, seen: Default::default() };
    let proxy = guarded(&witness, Authorization::default(), Direction::Inbound).await;
    let mut stream = proxy.raw().await;
    let forged = "X-Forwarded-Client-Cert: URI=spiffe://mesh.local/ns/a/sa/admin\r\nX-Mesh-Downstream-Protocol: h2\r\n";
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: a\r\n{forged}\r\n").as_bytes()).await.unwrap();
    let text = read_until(&mut stream, ">").await;
    assert!(text.ends_with("<0>"), "{text}");
}

#[tokio::test]
async fn cve_2026_33186_a_grpc_path_without_a_slash() {
    let witness = Witness::new().await;
    let proxy = guarded(&witness, Authorization::default(), Direction::Inbound).await;
    let stream = TcpStream::connect(proxy.address).await.unwrap();
    let (reading, mut writing) = stream.into_split();
    let mut block = b"\x83\x86\x01\x08app.test".to_vec();
    block.extend(b"\x04\x10shop.Reviews/Get");
    block.extend(b"\x0f\x10\x10application/grpc");
    let length = u8::try_from(block.len()).unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    bytes.extend([0, 0, length, 1, 5, 0, 0, 0, 1]);
    bytes.extend(block);
    writing.write_all(&bytes).await.unwrap();
    // Whatever is said to it, it goes no further; what comes after the next ping's answer was said before.
    writing.write_all(b"\0\0\x08\x06\0\0\0\0\x0012345678").await.unwrap();
    let mut reading = reading;
    let mut text = Vec::new();
    soon(async {
        while !text.windows(8).any(|it| it == b"12345678") {
            let mut piece = [0; 1000];
            match reading.read(&mut piece).await {
                Ok(n @ 1..) => text.extend_from_slice(&piece[..n]),
                _ => break,
            }
        }
    })
    .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!((witness.seen(), witness.app.connections()), (vec![], 0));
}
