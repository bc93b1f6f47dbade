//! Requests across origins.

use super::*;

fn shop() -> Cors {
    Cors {
        origins: vec![StringMatch::Exact("https://shop.test".into()), StringMatch::Suffix(".shop.test".into())],
        any_origin: false,
        methods: CorsList::These(HeaderValue::from_static("GET, PUT")),
        headers: CorsList::These(HeaderValue::from_static("x-token")),
        exposed: Some(HeaderValue::from_static("x-total")),
        max_age: Some(HeaderValue::from_static("600")),
        credentials: true,
        forwards_others: false,
    }
}

/// The application says something of CORS itself, and counts its requests.
async fn with(cors: Cors) -> (Proxy, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let app = App::http1(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        async {
            let mut response = reply("ok");
            response.headers_mut().insert("access-control-allow-credentials", HeaderValue::from_static("true"));
            response
        }
    })
    .await;
    let shared = Route { cors: Some(Arc::new(cors)), ..route(Action::Forward(Box::new(forward(&[("app", 1)])))) };
    (Proxy::with(table(vec![shared]), UpstreamHttp::Http1, &[app.address]).await, count)
}

async fn preflight(proxy: &Proxy, origin: &str) -> Answer {
    let request = Request::options("/").header("host", "a").header("origin", origin);
    let request = request.header("access-control-request-method", "PUT");
    let request = request.header("access-control-request-headers", "x-token,x-other").body(full("")).unwrap();
    proxy.http1().await.answer(request).await
}

async fn simple(proxy: &Proxy, origin: &str) -> Answer {
    let request = Request::get("/").header("host", "a").header("origin", origin).body(full("")).unwrap();
    proxy.http1().await.answer(request).await
}

fn said(answer: &Answer) -> Vec<String> {
    let mut said: Vec<_> = answer.headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
    said.retain(|it| it.starts_with("access-control-") || it.starts_with("vary"));
    said.sort();
    said
}

#[tokio::test]
async fn a_preflight_is_answered_and_the_application_is_not_asked() {
    let (proxy, count) = with(shop()).await;
    for origin in ["https://shop.test", "https://m.shop.test"] {
        let answer = preflight(&proxy, origin).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, ""));
        let expected = [
            "access-control-allow-credentials: true",
            "access-control-allow-headers: x-token",
            "access-control-allow-methods: GET, PUT",
            &format!("access-control-allow-origin: {origin}"),
            "access-control-expose-headers: x-total",
            "access-control-max-age: 600",
            "vary: origin",
        ];
        assert_eq!(said(&answer), expected);
    }
    let answer = preflight(&proxy, "https://evil.test").await;
    assert_eq!((answer.status.as_u16(), said(&answer)), (200, vec!["vary: origin".to_owned()]));
    assert_eq!(count.load(Ordering::SeqCst), 0);
    assert_eq!(proxy.recorded(&["response_code=\"200\""]), 3);
}

#[tokio::test]
async fn a_request_is_sent_whoever_asks_and_its_response_says_who_may_read_it() {
    let (proxy, count) = with(shop()).await;
    let answer = simple(&proxy, "https://shop.test").await;
    assert_eq!(answer.text(), "ok");
    let expected = [
        "access-control-allow-credentials: true",
        "access-control-allow-origin: https://shop.test",
        "access-control-expose-headers: x-total",
        "vary: origin",
    ];
    assert_eq!(said(&answer), expected);
    let answer = simple(&proxy, "https://evil.test").await;
    assert_eq!((answer.text(), answer.header("access-control-allow-origin")), ("ok", ""));
    let answer = proxy.get("/").await;
    assert_eq!((answer.header("access-control-allow-origin"), answer.header("vary")), ("", "origin"));
    // A question of another kind is the application's.
    let options = Request::options("/").header("host", "a").header("origin", "https://shop.test");
    assert_eq!(proxy.http1().await.answer(options.body(full("")).unwrap()).await.text(), "ok");
    assert_eq!(count.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn wildcards_are_names_where_there_are_credentials() {
    let all = |credentials| Cors {
        origins: vec![StringMatch::Exact("*".into())],
        any_origin: true,
        methods: CorsList::All,
        headers: CorsList::All,
        exposed: Some(HeaderValue::from_static("*")),
        max_age: None,
        credentials,
        forwards_others: false,
    };
    let (proxy, _) = with(all(false)).await;
    let expected = [
        "access-control-allow-headers: *",
        "access-control-allow-methods: *",
        "access-control-allow-origin: *",
        "access-control-expose-headers: *",
    ];
    assert_eq!(said(&preflight(&proxy, "null").await), expected);
    // The application's own word about credentials was not meant for everybody.
    assert_eq!(said(&simple(&proxy, "https://x").await), expected[2..]);
    let (proxy, _) = with(all(true)).await;
    let answer = preflight(&proxy, "https://x").await;
    assert_eq!(answer.header("access-control-allow-methods"), "PUT");
    assert_eq!(answer.header("access-control-allow-headers"), "x-token,x-other");
    assert_eq!(answer.header("access-control-allow-origin"), "https://x");
}

#[tokio::test]
async fn a_script_may_read_the_proxy_s_own_errors_too() {
    let mut unreachable = route(Action::Forward(Box::new(forward(&[("app", 1)]))));
    unreachable.cors = Some(Arc::new(shop()));
    let proxy = Proxy::with(table(vec![unreachable]), UpstreamHttp::Http1, &[nowhere().await]).await;
    let answer = simple(&proxy, "https://shop.test").await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("access-control-allow-origin"), "https://shop.test");
}

#[tokio::test]
async fn preflights_of_others_are_the_application_s_where_the_policy_says_so() {
    let (proxy, count) = with(Cors { forwards_others: true, ..shop() }).await;
    assert_eq!(preflight(&proxy, "https://evil.test").await.text(), "ok");
    assert_eq!(count.load(Ordering::SeqCst), 1);
}
