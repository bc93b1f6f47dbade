//! Decides about requests, by Envoy's two protocols for that, and prints what it was asked: a word for the protocol, the method,
//! the path, who asked whom as far as that was told, and the body if there was any of it.

use std::net::SocketAddr;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::Peer;
use envoy_types::pb::envoy::service::auth::v3::authorization_server::{Authorization, AuthorizationServer};
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse};
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::rpc::Status;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use tokio_stream::wrappers::TcpListenerStream;

use super::serve::{self, listen};

/// Of the request that is decided about: `good`, `slow` (no answer for a long time), or anything else.
const TOKEN: &str = "x-token";
/// What the application is told of who calls.
const USER: &str = "x-user";
const LONG: Duration = Duration::from_secs(20);

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[arg(long, default_value = "0.0.0.0:9191")]
    grpc: SocketAddr,
    #[arg(long, default_value = "0.0.0.0:9192")]
    http: SocketAddr,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let (grpc, http) = (listen(args.grpc).await?, listen(args.http).await?);
    let server = tonic::transport::Server::builder().add_service(AuthorizationServer::new(Authorizer));
    tokio::select! {
        ended = server.serve_with_incoming(TcpListenerStream::new(grpc)) => Ok(ended?),
        ended = serve::http(http, answer) => ended,
    }
}

async fn lets_in(token: Option<&str>) -> bool {
    if token == Some("slow") {
        tokio::time::sleep(LONG).await;
    }
    token == Some("good")
}

struct Authorizer;

#[tonic::async_trait]
impl Authorization for Authorizer {
    async fn check(
        &self,
        request: tonic::Request<CheckRequest>,
    ) -> Result<tonic::Response<CheckResponse>, tonic::Status> {
        let attributes = request.into_inner().attributes.unwrap_or_default();
        let who = |peer: &Option<Peer>| peer.as_ref().map_or_else(String::new, |peer| peer.principal.clone());
        let (from, to) = (who(&attributes.source), who(&attributes.destination));
        let asked = attributes.request.unwrap_or_default().http.unwrap_or_default();
        let told = format!("grpc {} {} {from} {to} {}", asked.method, asked.path, asked.body);
        println!("{}", told.trim_end());
        let answer = if lets_in(asked.headers.get(TOKEN).map(String::as_str)).await {
            let ok = OkHttpResponse { headers: vec![header(USER, "ann")], ..OkHttpResponse::default() };
            CheckResponse { http_response: Some(HttpResponse::OkResponse(ok)), ..CheckResponse::default() }
        } else {
            let denied = DeniedHttpResponse {
                status: Some(HttpStatus { code: 401 }),
                headers: vec![header("x-why", "no token")],
                body: "who are you?".to_owned(),
            };
            let status = Some(Status { code: tonic::Code::Unauthenticated.into(), ..Status::default() });
            let http_response = Some(HttpResponse::DeniedResponse(denied));
            CheckResponse { status, http_response, ..CheckResponse::default() }
        };
        Ok(tonic::Response::new(answer))
    }
}

fn header(key: &str, value: &str) -> HeaderValueOption {
    let header = HeaderValue { key: key.to_owned(), value: value.to_owned(), ..HeaderValue::default() };
    // Overwrites, if it is there.
    HeaderValueOption { header: Some(header), append_action: 2, ..HeaderValueOption::default() }
}

async fn answer(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|it| it.to_bytes()).unwrap_or_default();
    let told = format!("http {} {} {}", head.method, head.uri.path(), String::from_utf8_lossy(&body));
    println!("{}", told.trim_end());
    let token = head.headers.get(TOKEN).and_then(|value| value.to_str().ok());
    let (status, name, value, body) = if lets_in(token).await {
        (StatusCode::OK, USER, "ann", "")
    } else {
        (StatusCode::UNAUTHORIZED, "x-why", "no token", "who are you?")
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(name, http::HeaderValue::from_static(value));
    response
}
