use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// Answers each connection with the next of the replies, and keeps what was asked.
async fn application(replies: &[&str]) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let replies: Vec<String> = replies.iter().map(|reply| reply.replace("PORT", &port.to_string())).collect();
    tokio::spawn({
        let asked = asked.clone();
        async move {
            for reply in replies {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4096];
                let length = stream.read(&mut request).await.unwrap();
                asked.lock().unwrap().push(String::from_utf8_lossy(&request[..length]).into_owned());
                stream.write_all(reply.as_bytes()).await.unwrap();
            }
        }
    });
    (port, asked)
}

fn prober(which: Which, action: Action) -> Prober {
    let probe = Probe { action, timeout_seconds: 1, key: which.is_hook().then(|| "secret".to_owned()) };
    Prober::new([("app".to_owned(), [(which, probe)].into())].into(), Some("10.9.8.7".parse().unwrap()))
}

fn http(port: u16) -> Action {
    Action::Http { port, path: "/health?x=1".into(), https: false, headers: vec![("X-Probe".into(), "yes".into())] }
}

async fn livez(action: Action) -> Result<String, Failure> {
    prober(Which::Livez, action).perform("/app-health/app/livez", &HeaderMap::new(), Instant::now()).await
}

#[tokio::test]
async fn judges_as_the_kubelet_does() {
    for (reply, good) in [
        ("HTTP/1.1 200 OK\r\n\r\n", true),
        ("HTTP/1.1 302 Found\r\nlocation: http://example.com/\r\n\r\n", true),
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", false),
        ("HTTP/1.1 500 Oh\r\n\r\n", false),
        ("garbage", false),
    ] {
        let (port, _) = application(&[reply]).await;
        assert_eq!(livez(http(port)).await.is_ok(), good, "{reply}");
    }
    let (port, _) = application(&["HTTP/1.1 500 Oh\r\n\r\n"]).await;
    assert_eq!(livez(http(port)).await.unwrap_err().status, StatusCode::INTERNAL_SERVER_ERROR);
    let (port, _) = application(&["HTTP/1.1 500 Oh\r\n\r\n"]).await;
    let hook = prober(Which::PreStop, http(port));
    hook.perform("/app-health/app/prestop/secret", &HeaderMap::new(), Instant::now()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_sleeps_counts_from_when_it_was_asked_for() {
    let probe = Probe { action: Action::Sleep { seconds: 5 }, timeout_seconds: 3600, key: None };
    let hook = Prober::new([("app".to_owned(), [(Which::PreStop, probe)].into())].into(), None);
    let asked = Instant::now();
    for (later, ends) in [(2, 5), (7, 7)] {
        tokio::time::sleep_until(asked + Duration::from_secs(later)).await;
        hook.perform("/app-health/app/prestop", &HeaderMap::new(), asked).await.unwrap();
        assert_eq!(asked.elapsed(), Duration::from_secs(ends));
    }
}

#[tokio::test]
async fn the_application_sees_the_kubelets_request() {
    let (port, asked) = application(&["HTTP/1.1 200 OK\r\n\r\n"]).await;
    let given = [("user-agent", "kube-probe/1.34"), ("authorization", "Bearer x"), ("x-forwarded-for", "10.0.0.1")];
    let given = given.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    let headers = given.into_iter().collect();
    prober(Which::Readyz, http(port)).perform("/app-health/app/readyz", &headers, Instant::now()).await.unwrap();
    let asked = asked.lock().unwrap()[0].to_lowercase();
    assert!(asked.starts_with("get /health?x=1 http/1.1\r\n"), "{asked}");
    for header in ["x-probe: yes".to_owned(), "user-agent: kube-probe/1.34".into(), format!("host: 10.9.8.7:{port}")] {
        assert!(asked.contains(&header), "{asked}");
    }
    // Anybody may ask: what an application might believe does not reach it.
    assert!(!asked.contains("authorization") && !asked.contains("x-forwarded-for"), "{asked}");
}

#[tokio::test]
async fn a_hook_needs_its_key() {
    let (port, _) = application(&["HTTP/1.1 200 OK\r\n\r\n"]).await;
    let hook = prober(Which::PreStop, http(port));
    for path in ["/app-health/app/prestop", "/app-health/app/prestop/", "/app-health/app/prestop/secres"] {
        let refused = hook.perform(path, &HeaderMap::new(), Instant::now()).await.unwrap_err();
        assert_eq!(refused.status, StatusCode::NOT_FOUND, "{path}");
        assert!(!hook.is_pre_stop(path));
    }
    assert!(hook.is_pre_stop("/app-health/app/prestop/secret"));
}

#[tokio::test]
async fn follows_redirects_within_the_pod() {
    let to_itself = "HTTP/1.1 301 Moved\r\nlocation: http://10.9.8.7:PORT/b\r\ncontent-length: 0\r\n\r\n";
    let (port, asked) =
        application(&["HTTP/1.1 302 Found\r\nlocation: /a\r\n\r\n", to_itself, "HTTP/1.1 503 No\r\n\r\n"]).await;
    assert_eq!(livez(http(port)).await.unwrap_err().status, StatusCode::SERVICE_UNAVAILABLE);
    let paths: Vec<_> = asked.lock().unwrap().iter().map(|it| it.split(' ').nth(1).unwrap().to_owned()).collect();
    assert_eq!(paths, ["/health?x=1", "/a", "/b"]);
}

#[tokio::test]
async fn asks_for_nothing_that_was_not_configured() {
    let prober = prober(Which::Livez, Action::Tcp { port: 1 });
    for path in ["/app-health/app/readyz", "/app-health/other/livez", "/app-health/app", "/app-health/app/livez/x"] {
        assert_eq!(
            prober.perform(path, &HeaderMap::new(), Instant::now()).await.unwrap_err().status,
            StatusCode::NOT_FOUND,
            "{path}"
        );
    }
}

#[tokio::test]
async fn connects_and_gives_up_in_time() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    livez(Action::Tcp { port }).await.unwrap();
    let silent = livez(http(port)).await.unwrap_err();
    assert!(silent.reason.contains("within 1 seconds"), "{silent:?}");
    drop(listener);
    assert!(livez(Action::Tcp { port }).await.unwrap_err().reason.contains("does not answer on port"));
    assert!(livez(Action::Grpc { port, service: String::new() }).await.is_err());
}

#[tokio::test]
async fn https_is_not_verified() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let svid = crate::tls::tests::Authority::new().svid("web");
    let config = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from((*svid.certificate).clone())));
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(stream).await.unwrap();
        let mut request = [0; 1024];
        let _ = stream.read(&mut request).await;
        stream.write_all(b"HTTP/1.1 204 Fine\r\n\r\n").await.unwrap();
    });
    livez(Action::Http { port, path: "/".into(), https: true, headers: vec![] }).await.unwrap();
}
