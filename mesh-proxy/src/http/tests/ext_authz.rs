//! Somebody else decides about requests, over real sockets.

use super::*;
use crate::telemetry::{AuditOptions, AuditTo};

pub(crate) fn authorizer(protocol: AuthorizerProtocol, path: &str) -> Authorizer {
    let permissions = vec![Condition::Path(StringMatch::Prefix(path.to_owned()))];
    Authorizer {
        policies: vec![Policy { name: "a/asks[0]".to_owned(), permissions, principals: vec![Condition::Any] }],
        cluster: "auth".to_owned(),
        authority: "auth:1".parse().unwrap(),
        timeout: Duration::from_millis(300),
        protocol,
        headers: None,
        body: None,
        fail_open: false,
        marks_failure: false,
        status_on_error: StatusCode::FORBIDDEN,
    }
}

pub(crate) fn over_http() -> AuthorizerProtocol {
    let to_upstream = vec![StringMatch::Exact("x-user".to_owned())];
    AuthorizerProtocol::Http { prefix: "/check".to_owned(), to_upstream, to_client: None }
}

/// The application answers with what it was sent: who the user is, whether nobody was asked, and the body with its trailer.
async fn app(request: Request<Incoming>) -> Response<AnyBody> {
    let of = |name: &str| request.headers().get_all(name).iter().map(|it| it.to_str().unwrap().to_owned());
    let users = of("x-user").collect::<Vec<_>>().join("+");
    let open = of("x-envoy-auth-failure-mode-allowed").collect::<Vec<_>>().join("+");
    let body = request.into_body().collect().await.unwrap();
    let sum = body.trailers().and_then(|it| it.get("x-sum")).map_or("", |it| it.to_str().unwrap()).to_owned();
    reply(format!("{users}|{open}|{}{sum}", String::from_utf8_lossy(&body.to_bytes())))
}

async fn proxy(authorizer: Authorizer, at: SocketAddr, http: UpstreamHttp) -> Proxy {
    let to = App::http1(app).await.address;
    let options = ProxyOptions { authorizers: vec![authorizer], ..ProxyOptions::default() };
    proxy_to((UpstreamHttp::Http1, to), options, (http, &[at])).await
}

async fn proxy_to(
    (app_http, app): (UpstreamHttp, SocketAddr),
    options: ProxyOptions,
    (http, at): (UpstreamHttp, &[SocketAddr]),
) -> Proxy {
    let resources = [
        Resource::Cluster(Arc::new(cluster("app", app_http))),
        Resource::Endpoints(endpoints("app", vec![endpoint(app)])),
        Resource::Cluster(Arc::new(cluster("auth", http))),
        Resource::Endpoints(endpoints("auth", at.iter().map(|at| endpoint(*at)).collect())),
        Resource::Routes(Arc::new(to(forward(&[("app", 1)])))),
    ];
    let downstream = Downstream { direction: Direction::Inbound, ..downstream() };
    Proxy::new(resources, ProxyOptions { downstream, ..options }).await
}

/// Lets in who says `authorization: good`, and says who it is; sleeps at `/check/slow` and fails at `/check/broken`.
async fn by_http() -> App {
    App::http1(|request: Request<Incoming>| async move {
        match request.uri().path() {
            "/check/slow" => tokio::time::sleep(SOON).await,
            "/check/broken" => {
                let mut broken = reply("");
                *broken.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                return broken;
            }
            _ => (),
        }
        let good = request.headers().get("authorization").is_some_and(|it| it == "good");
        let told = request.headers().contains_key("cookie");
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let mut answer = reply(format!("no: {}", String::from_utf8_lossy(&body)));
        answer.headers_mut().insert("x-user", HeaderValue::from_static(if told { "told" } else { "ann" }));
        answer.headers_mut().insert("x-other", HeaderValue::from_static("x"));
        *answer.status_mut() = if good { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
        answer
    })
    .await
}

fn request(path: &str, headers: &[(&str, &str)], body: &str) -> Request<AnyBody> {
    let mut request = post(path, body.to_owned());
    for (name, value) in headers {
        request
            .headers_mut()
            .append(http::HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap());
    }
    request
}

const FORGED: [(&str, &str); 3] =
    [("x-user", "admin"), ("cookie", "a=b"), ("x-envoy-auth-failure-mode-allowed", "true")];

#[tokio::test]
async fn over_http_the_status_decides_and_headers_overwrite() {
    let auth = by_http().await;
    let proxy = proxy(authorizer(over_http(), "/"), auth.address, UpstreamHttp::Http1).await;
    let mut client = proxy.http1().await;
    let good = [&FORGED[..], &[("authorization", "good")]].concat();
    assert_eq!(client.answer(request("/a?b", &good, "body")).await.text(), "ann||body");
    let refused = client.answer(request("/a", &FORGED, "body")).await;
    assert_eq!((refused.status.as_u16(), refused.text(), refused.header("x-other")), (401, "no: ", "x"));
    for path in ["/slow", "/broken"] {
        let refused = client.answer(request(path, &good, "body")).await;
        assert_eq!((refused.status.as_u16(), refused.text()), (403, "not allowed"), "{path}");
    }
    let text = proxy.ctx.telemetry.render();
    for (result, count) in [("allowed", 1), ("denied", 1), ("failed", 2)] {
        let line = format!("mesh_authorization_external_total{{result=\"{result}\"}} {count}");
        assert!(text.contains(&line), "{line}\n{text}");
    }
    assert_eq!(proxy.recorded(&["response_flags=\"UAEX\""]), 3);
}

#[tokio::test]
async fn who_is_not_there_refuses_unless_the_policy_says_otherwise() {
    let gone = nowhere().await;
    let closed = proxy(authorizer(over_http(), "/secret"), gone, UpstreamHttp::Http1).await;
    assert_eq!(closed.get("/secret").await.status, 403);
    // Nobody is asked about what no rule matches.
    assert_eq!(closed.get("/open").await.status, 200);
    let other = Authorizer { status_on_error: StatusCode::SERVICE_UNAVAILABLE, ..authorizer(over_http(), "/") };
    assert_eq!(proxy(other, gone, UpstreamHttp::Http1).await.get("/").await.status, 503);
    let open = proxy(
        Authorizer { fail_open: true, marks_failure: true, ..authorizer(over_http(), "/") },
        gone,
        UpstreamHttp::Http1,
    )
    .await;
    assert_eq!(open.http1().await.answer(request("/", &FORGED, "b")).await.text(), "admin|true|b");
}

#[tokio::test]
async fn the_body_is_told_and_goes_on_whole() {
    let auth = by_http().await;
    let body = Some(AskedBody { max: 8, partial: true, as_bytes: false });
    let partial = proxy(Authorizer { body, ..authorizer(over_http(), "/") }, auth.address, UpstreamHttp::Http1).await;
    let long = "0123456789".repeat(20_000);
    // Who is refused need not have sent all of it.
    let mut stream = partial.raw().await;
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n0123456789").await.unwrap();
    let refused = read_until(&mut stream, "no: 01234567").await;
    assert!(refused.starts_with("HTTP/1.1 401 "), "{refused}");
    let mut client = partial.http1().await;
    let answer = client.answer(request("/", &[("authorization", "good")], &long)).await;
    assert!(answer.text() == format!("ann||{long}"), "{} bytes", answer.body.len());
    assert_eq!(client.answer(request("/", &[("authorization", "good")], "")).await.text(), "ann||");
    let body = Some(AskedBody { max: 8, partial: false, as_bytes: false });
    let whole = proxy(Authorizer { body, ..authorizer(over_http(), "/") }, auth.address, UpstreamHttp::Http1).await;
    assert_eq!(whole.http1().await.answer(request("/", &[], "12345678")).await.text(), "no: 12345678");
    assert_eq!(whole.http1().await.answer(request("/", &[], "123456789")).await.status, 413);
}

const GOOD: [(&str, &str); 1] = [("authorization", "good")];

/// In several frames, without a length.
fn framed(headers: &[(&str, &str)], pieces: &[&'static str], trailers: Option<HeaderMap>) -> Request<AnyBody> {
    let data = pieces.iter().map(|piece| http_body::Frame::data(Bytes::from_static(piece.as_bytes())));
    let frames: Vec<_> = data.chain(trailers.map(http_body::Frame::trailers)).map(Ok).collect();
    let body = BodyExt::boxed(http_body_util::StreamBody::new(futures_util::stream::iter(frames)));
    request("/", headers, "").map(|_| body)
}

/// Over HTTP/2.
fn absolute(mut request: Request<AnyBody>) -> Request<AnyBody> {
    request.headers_mut().remove("host");
    *request.uri_mut() = format!("http://app.test{}", request.uri()).parse().unwrap();
    request
}

/// Whoever sends it reads what was told of it once more, though it was read to its end.
#[tokio::test]
async fn a_body_that_was_told_as_a_whole_goes_on_whole() {
    let auth = by_http().await;
    for partial in [true, false] {
        let body = Some(AskedBody { max: 8, partial, as_bytes: false });
        let asks = || Authorizer { body, ..authorizer(over_http(), "/") };
        let one = proxy(asks(), auth.address, UpstreamHttp::Http1).await;
        let mut client = one.http1().await;
        assert_eq!(client.answer(request("/", &GOOD, "12345678")).await.text(), "ann||12345678");
        assert_eq!(client.answer(framed(&GOOD, &["1234", "5678"], None)).await.text(), "ann||12345678");

        let over_http2 = (UpstreamHttp::Http2, App::http2(app).await.address);
        let options = ProxyOptions { authorizers: vec![asks()], ..ProxyOptions::default() };
        let two = proxy_to(over_http2, options, (UpstreamHttp::Http1, &[auth.address])).await;
        let mut client = Client2::connect(two.address).await;
        let trailers =
            HeaderMap::from_iter([(http::HeaderName::from_static("x-sum"), HeaderValue::from_static("=36"))]);
        let with_trailers = absolute(framed(&GOOD, &["1234", "5678"], Some(trailers)));
        assert_eq!(client.answer(with_trailers).await.text(), "ann||12345678=36");

        let (sender, mut mirrored) = tokio::sync::mpsc::channel(1);
        let shadow = App::http1(move |request: Request<Incoming>| {
            let sender = sender.clone();
            async move {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                sender.send(body).await.unwrap();
                reply("")
            }
        })
        .await;
        one.put(Resource::Cluster(Arc::new(cluster("shadow", UpstreamHttp::Http1)))).await;
        one.put(Resource::Endpoints(endpoints("shadow", vec![endpoint(shadow.address)]))).await;
        let all = Mirror { cluster: "shadow".into(), parts_per_million: 1_000_000, share: Share::default() };
        one.put(Resource::Routes(Arc::new(to(Forward { mirrors: vec![all], ..forward(&[("app", 1)]) })))).await;
        assert_eq!(one.http1().await.answer(request("/", &GOOD, "12345678")).await.text(), "ann||12345678");
        assert_eq!(soon(mirrored.recv()).await.unwrap(), "12345678");
    }
}

/// An answer to a part does not wait for the rest.
#[tokio::test]
async fn a_client_that_waits_for_an_answer_gets_one() {
    let auth = by_http().await;
    let body = Some(AskedBody { max: 8, partial: true, as_bytes: false });
    let proxy = proxy(Authorizer { body, ..authorizer(over_http(), "/") }, auth.address, UpstreamHttp::Http1).await;
    let mut client = Client2::connect(proxy.address).await;
    let piece = |text: &'static str| http_body::Frame::data(Bytes::from_static(text.as_bytes()));
    let (sender, body) = fed();
    sender.send(piece("12345678")).await.unwrap();
    let refused = client.send(absolute(request("/", &[], "").map(|_| body))).await.unwrap();
    assert_eq!(refused.status(), 401);
    let (sender, body) = fed();
    sender.send(piece("12345678")).await.unwrap();
    let answer = client.send(absolute(request("/", &GOOD, "").map(|_| body)));
    let more = async {
        sender.send(piece("9")).await.unwrap();
        drop(sender);
    };
    let (answer, ()) = tokio::join!(answer, more);
    assert_eq!(soon(read(answer.unwrap())).await.unwrap().text(), "ann||123456789");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for_any_longer_than_its_client_waits() {
    let auth = by_http().await;
    let body = Some(AskedBody { max: 8, partial: false, as_bytes: false });
    let options = |stream_idle_timeout| {
        let asks = Authorizer { body, ..authorizer(over_http(), "/") };
        ProxyOptions { authorizers: vec![asks], stream_idle_timeout, ..ProxyOptions::default() }
    };
    let to = (UpstreamHttp::Http1, App::http1(app).await.address);
    let auth = (UpstreamHttp::Http1, &[auth.address][..]);
    let (sender, fed) = fed();
    sender.send(http_body::Frame::data(Bytes::from_static(b"1234"))).await.unwrap();
    let silent = proxy_to(to, options(Duration::from_millis(200)), auth).await;
    let mut client = Client2::connect(silent.address).await;
    assert_eq!(client.answer(absolute(request("/", &GOOD, "").map(|_| fed))).await.status, 408);
    // Nobody says how long a client may be silent; it says so itself.
    let patient = proxy_to(to, options(Duration::ZERO), auth).await;
    let mut client = Client2::connect(patient.address).await;
    let (_sender, fed) = super::fed();
    let headers = [("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", "200m")];
    let answer = client.answer(absolute(request("/", &headers, "").map(|_| fed))).await;
    assert_eq!((answer.status.as_u16(), answer.header("grpc-status")), (200, "4"));
}

/// Its client was told to send it before the application was asked.
#[tokio::test]
async fn whose_body_was_told_expects_no_more() {
    let auth = by_http().await;
    let app = App::raw(|mut stream, _| async move {
        let head = read_until(&mut stream, "body").await;
        assert!(!head.contains("expect"), "{head}");
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    })
    .await;
    let body = Some(AskedBody { max: 8, partial: false, as_bytes: false });
    let asks = Authorizer { body, ..authorizer(over_http(), "/") };
    let options = ProxyOptions { authorizers: vec![asks], ..ProxyOptions::default() };
    let proxy = proxy_to((UpstreamHttp::Http1, app.address), options, (UpstreamHttp::Http1, &[auth.address])).await;
    let mut stream = proxy.raw().await;
    let head = "POST / HTTP/1.1\r\nHost: a\r\nAuthorization: good\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    read_until(&mut stream, "100 Continue\r\n\r\n").await;
    stream.write_all(b"body").await.unwrap();
    assert!(read_until(&mut stream, "ok").await.starts_with("HTTP/1.1 200 OK\r\n"));
}

/// What its client sends decides whether anybody can be asked: that lets nothing in.
#[tokio::test]
async fn what_nobody_can_be_asked_about_is_refused_even_where_no_answer_lets_in() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    let to = AuditTo::File { path: path.clone(), max_bytes: 1 << 20, keep: 1 };
    let audit_log = Some(AuditOptions { to, allowed: 1.0 });
    let prefix = format!("/{}", "p".repeat(255));
    let protocol = AuthorizerProtocol::Http { prefix, to_upstream: vec![], to_client: None };
    let body = Some(AskedBody { max: 8, partial: false, as_bytes: false });
    let asks = Authorizer { fail_open: true, body, ..authorizer(protocol, "/") };
    let options = ProxyOptions {
        authorizers: vec![asks],
        telemetry: TelemetryOptions { audit_log, ..TelemetryOptions::default() },
        ..ProxyOptions::default()
    };
    let (app, gone) = (App::http1(app).await, nowhere().await);
    let proxy = proxy_to((UpstreamHttp::Http1, app.address), options, (UpstreamHttp::Http1, &[gone])).await;
    assert_eq!(proxy.http1().await.answer(request("/", &[], "123456789")).await.status, 413);
    let long = format!("/{}", "x".repeat(65_300));
    for line in [format!("GET {long}"), "CONNECT db.test:5432".to_owned()] {
        let mut stream = proxy.raw().await;
        stream.write_all(format!("{line} HTTP/1.1\r\nHost: db.test:5432\r\n\r\n").as_bytes()).await.unwrap();
        let answer = read_until(&mut stream, "not valid").await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    assert_eq!(app.connections(), 0);
    // Of a limit that nobody has set, nothing was hit.
    let text = proxy.ctx.telemetry.render();
    assert!(!text.lines().any(|line| line.starts_with("mesh_limits_hit_total") && !line.ends_with(" 0")), "{text}");
    // Where it is only the answer that is missing, no policy has decided.
    assert_eq!(proxy.get("/").await.status, 200);
    proxy.ctx.telemetry.flush(SOON);
    let log = std::fs::read_to_string(path).unwrap();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let shown: Vec<_> = lines.iter().map(|it| (it["verdict"].as_str().unwrap(), it["policy"].as_str())).collect();
    let denied = ("denied", Some("a/asks[0]"));
    assert_eq!(shown, [denied, denied, denied, ("allowed", None)], "{log}");
    let why = lines[0]["reason"].as_str().unwrap();
    assert!(why.contains("nobody can be asked"), "{why}");
}

#[tokio::test]
async fn one_after_the_other_is_asked_until_one_refuses() {
    let first = by_http().await;
    let (sender, mut asked) = tokio::sync::mpsc::unbounded_channel();
    let second = App::http1(move |request: Request<Incoming>| {
        let of = |name: &str| {
            request.headers().get_all(name).iter().map(|it| it.to_str().unwrap()).collect::<Vec<_>>().join("+")
        };
        sender.send(format!("{} {} {}", request.uri(), of("x-user"), of("x-envoy-auth-partial-body"))).unwrap();
        async { reply("") }
    })
    .await;
    let user = vec![StringMatch::Exact("x-user".to_owned()), StringMatch::Prefix("x-envoy-".to_owned())];
    let behind = Authorizer { cluster: "auth2".to_owned(), headers: Some(user), ..authorizer(over_http(), "/") };
    let options = ProxyOptions { authorizers: vec![authorizer(over_http(), "/"), behind], ..ProxyOptions::default() };
    let to = (UpstreamHttp::Http1, App::http1(app).await.address);
    let proxy = proxy_to(to, options, (UpstreamHttp::Http1, &[first.address])).await;
    proxy.put(Resource::Cluster(Arc::new(cluster("auth2", UpstreamHttp::Http1)))).await;
    proxy.put(Resource::Endpoints(endpoints("auth2", vec![endpoint(second.address)]))).await;
    let mut client = proxy.http1().await;
    assert_eq!(client.answer(request("/", &FORGED, "b")).await.status, 401);
    // It sees what the one before has set, and nothing that a client says in the proxy's name.
    let good = [&[FORGED[0], ("x-envoy-auth-partial-body", "true")], &GOOD[..]].concat();
    assert_eq!(client.answer(request("/a?b=c", &good, "b")).await.text(), "ann||b");
    let mut all = request("/", &good, "").map(|_| full(""));
    *all.method_mut() = http::Method::OPTIONS;
    *all.uri_mut() = "*".parse().unwrap();
    assert_eq!(client.answer(all).await.status, 200);
    for expected in ["/check/a?b=c ann ", "/check/ ann "] {
        assert_eq!(asked.recv().await.unwrap(), expected);
    }
    assert!(asked.try_recv().is_err());
}

#[tokio::test]
async fn an_authorizer_that_does_not_answer_is_passed_over_for_others() {
    let good = by_http().await;
    let hung = App::raw(|stream, _| async move {
        tokio::time::sleep(SOON).await;
        drop(stream);
    })
    .await;
    let proxy = proxy_to(
        (UpstreamHttp::Http1, App::http1(app).await.address),
        ProxyOptions { authorizers: vec![authorizer(over_http(), "/")], ..ProxyOptions::default() },
        (UpstreamHttp::Http1, &[hung.address, good.address]),
    )
    .await;
    let once = OutlierDetection { consecutive_5xx: Some(1), ..health::outliers(Duration::from_secs(3600)) };
    let mut auth = cluster("auth", UpstreamHttp::Http1);
    auth.health.outliers = Some(once);
    proxy.put(Resource::Cluster(Arc::new(auth))).await;
    let mut client = proxy.http1().await;
    let mut refused = 0;
    for _ in 0..6 {
        refused += usize::from(client.answer(request("/", &GOOD, "")).await.status == 403);
    }
    // It was noticed after one question.
    assert_eq!((refused, proxy.ctx.upstreams.health().ejected), (1, 1));
}

#[tokio::test]
async fn an_authorizer_that_takes_no_connection_leaves_time_for_another() {
    let good = by_http().await;
    let (silent, _open) = retries::silent().await;
    let mut asks = authorizer(over_http(), "/");
    asks.timeout = Duration::from_secs(3);
    let proxy = proxy_to(
        (UpstreamHttp::Http1, App::http1(app).await.address),
        ProxyOptions { authorizers: vec![asks], ..ProxyOptions::default() },
        (UpstreamHttp::Http1, &[silent, good.address]),
    )
    .await;
    let mut client = proxy.http1().await;
    for _ in 0..2 {
        assert_eq!(client.answer(request("/", &GOOD, "")).await.text(), "ann||");
    }
}

#[tokio::test]
async fn over_grpc_attributes_are_told() {
    use envoy_types::pb::envoy::config::core::v3::{HeaderValue as PbHeader, HeaderValueOption};
    use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
    use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse};
    use envoy_types::pb::envoy::r#type::v3::HttpStatus;
    use envoy_types::pb::google::rpc::Status;
    use prost::Message;

    let auth = App::http2(|request: Request<Incoming>| async move {
        assert_eq!(request.uri().path(), "/envoy.service.auth.v3.Authorization/Check");
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let asked = CheckRequest::decode(&body[5..]).unwrap().attributes.unwrap().request.unwrap().http.unwrap();
        let header = |value: String| HeaderValueOption {
            header: Some(PbHeader { key: "x-user".into(), value, ..PbHeader::default() }),
            ..HeaderValueOption::default()
        };
        let said = format!(
            "{} {} {} {}",
            asked.method,
            asked.path,
            asked.host,
            asked.headers.get("x-twice").map_or("", String::as_str)
        );
        let pb = if asked.method == "CONNECT" {
            // It refuses, though its status says otherwise.
            let denied = DeniedHttpResponse { status: Some(HttpStatus { code: 200 }), ..DeniedHttpResponse::default() };
            let status = Some(Status { code: 7, ..Status::default() });
            CheckResponse { status, http_response: Some(HttpResponse::DeniedResponse(denied)), ..Default::default() }
        } else if asked.path.starts_with("/no") {
            let status = Some(HttpStatus { code: 429 });
            let denied = DeniedHttpResponse { status, body: "later".into(), ..DeniedHttpResponse::default() };
            let status = Some(Status { code: 8, ..Status::default() });
            CheckResponse { status, http_response: Some(HttpResponse::DeniedResponse(denied)), ..Default::default() }
        } else {
            let (headers, response) = (vec![header(said)], vec![header("back".to_owned())]);
            let ok = OkHttpResponse { headers, response_headers_to_add: response, ..OkHttpResponse::default() };
            CheckResponse { http_response: Some(HttpResponse::OkResponse(ok)), ..Default::default() }
        };
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", 0.into());
        let body = Full::new(crate::upstream::grpc_frame(&pb));
        Response::new(body.with_trailers(std::future::ready(Some(Ok(trailers)))).boxed())
    })
    .await;
    let proxy = proxy(authorizer(AuthorizerProtocol::Grpc, "/"), auth.address, UpstreamHttp::Http2).await;
    let mut client = proxy.http1().await;
    let twice = [("x-user", "admin"), ("x-twice", "a"), ("x-twice", "b")];
    let answer = client.answer(request("/a/../x?y", &twice, "body")).await;
    assert_eq!((answer.text(), answer.header("x-user")), ("POST /x?y app.test a,b||body", "back"));
    let refused = client.answer(request("/no", &twice, "body")).await;
    assert_eq!((refused.status.as_u16(), refused.text()), (429, "later"));
    let grpc = [&twice[..], &[("content-type", "application/grpc")]].concat();
    let refused = client.answer(request("/no", &grpc, "body")).await;
    assert_eq!(
        (refused.status.as_u16(), refused.header("grpc-status"), refused.header("grpc-message")),
        (200, "14", "later")
    );
    // Its client would take anything else for a tunnel.
    let mut stream = proxy.raw().await;
    stream.write_all(b"CONNECT db.test:5432 HTTP/1.1\r\nHost: db.test:5432\r\n\r\n").await.unwrap();
    let head = read_until(&mut stream, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
}
