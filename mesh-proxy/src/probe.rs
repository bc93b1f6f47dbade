//! The application's probes, performed for a kubelet that has no certificate of the mesh and would not be let in.
//!
//! In: what was configured, and the name of one of it. Out: what the kubelet would have found. It goes to the pod's address
//! past the redirect, or to a loopback address; the request is otherwise the one that the kubelet would have sent.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use http::header::{ACCEPT, CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use http::{Method, Request, StatusCode, Uri, Version};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use mesh_common::inject::{Action, Probe, Probes, Which};
use mesh_common::names::path::APP_HEALTH;
use mesh_common::tls::provider;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tonic::transport::Endpoint;

use crate::application;
use crate::control::explain;

/// As many as the kubelet follows.
const MAX_REDIRECTS: usize = 10;

/// Performs what was configured, and nothing else.
#[derive(Debug)]
pub struct Prober {
    probes: Probes,
    /// What the kubelet would have connected to.
    pod_ip: IpAddr,
}

/// The probe has failed.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    pub status: StatusCode,
    pub reason: String,
}

impl Default for Prober {
    fn default() -> Self {
        Self::new(Probes::new(), None)
    }
}

impl Prober {
    pub fn new(probes: Probes, pod_ip: Option<IpAddr>) -> Self {
        Self { probes, pod_ip: pod_ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)) }
    }

    /// Performs the probe of `/app-health/<container>/<which>`, or the hook of `/app-health/<container>/<which>/<key>`. `headers` are those of the kubelet's request, which came at
    /// `asked`.
    pub async fn perform(&self, path: &str, headers: &HeaderMap, asked: Instant) -> Result<String, Failure> {
        let (which, probe) = self
            .find(path)
            .ok_or_else(|| Failure { status: StatusCode::NOT_FOUND, reason: "the pod has no such probe".to_owned() })?;
        let performed =
            tokio::time::timeout(Duration::from_secs(probe.timeout_seconds), self.ask(probe, which, headers, asked));
        match performed.await {
            Ok(result) => result,
            Err(_) => Err(failed(format!("the application did not answer within {} seconds", probe.timeout_seconds))),
        }
    }

    /// Whether this is what a container wants to be asked before it is told to end.
    pub fn is_pre_stop(&self, path: &str) -> bool {
        self.find(path).is_some_and(|(which, _)| which == Which::PreStop)
    }

    fn find(&self, path: &str) -> Option<(Which, &Probe)> {
        let (container, asked) = path.strip_prefix(APP_HEALTH)?.split_once('/')?;
        let (which, key) = asked.split_once('/').map_or((asked, None), |(which, key)| (which, Some(key)));
        let which = Which::ALL.into_iter().find(|it| it.as_str() == which)?;
        let probe = self.probes.get(container)?.get(&which)?;
        // What takes no longer for a better guess tells nothing of the key.
        let known = match (&probe.key, key) {
            (None, None) => true,
            (Some(key), Some(given)) => verify_slices_are_equal(key.as_bytes(), given.as_bytes()).is_ok(),
            _ => false,
        };
        known.then_some((which, probe))
    }

    async fn ask(&self, probe: &Probe, which: Which, headers: &HeaderMap, asked: Instant) -> Result<String, Failure> {
        match &probe.action {
            Action::Sleep { seconds } => {
                tokio::time::sleep_until(asked + Duration::from_secs(*seconds)).await;
                Ok("slept\n".to_owned())
            }
            Action::Tcp { port } => connect(self.pod_ip, *port).await.map(|_| "connected\n".to_owned()),
            Action::Grpc { port, service } => self.grpc(*port, service).await,
            Action::Http { port, path, https, headers: own } => {
                let target = Target { https: *https, port: *port, path: path.clone() };
                let status = self.http(target, own, headers).await?;
                // The kubelet asks of a hook only that it is answered.
                match which.is_hook() || (200..400).contains(&status.as_u16()) {
                    true => Ok(format!("{status}\n")),
                    false => Err(Failure { status, reason: format!("the application answered {status}") }),
                }
            }
        }
    }

    /// Follows redirects within the pod, as the kubelet does.
    async fn http(
        &self,
        mut target: Target,
        own: &[(String, String)],
        headers: &HeaderMap,
    ) -> Result<StatusCode, Failure> {
        for _ in 0..MAX_REDIRECTS {
            let request = self.request(&target, own, headers)?;
            let stream = connect(self.pod_ip, target.port).await?;
            let (status, location) = match target.https {
                false => exchange(stream, request).await?,
                true => {
                    let name = ServerName::from(self.pod_ip);
                    let stream = TlsConnector::from(trusting()?).connect(name, stream).await;
                    exchange(stream.map_err(|error| failed(format!("TLS handshake: {error}")))?, request).await?
                }
            };
            match location.filter(|_| status.is_redirection()).and_then(|location| self.within_pod(&target, &location))
            {
                Some(next) => target = next,
                None => return Ok(status),
            }
        }
        Err(failed(format!("there were more than {MAX_REDIRECTS} redirects")))
    }

    fn request(
        &self,
        target: &Target,
        own: &[(String, String)],
        headers: &HeaderMap,
    ) -> Result<Request<Empty<Bytes>>, Failure> {
        let wrong = |error: http::Error| failed(format!("the probe cannot be sent: {error}"));
        let builder = Request::builder().method(Method::GET).version(Version::HTTP_11).uri(&target.path);
        let mut request = builder.body(Empty::new()).map_err(wrong)?;
        let all = request.headers_mut();
        // All that a kubelet sends of its own: whoever else asks has nothing to say to the application.
        for name in [ACCEPT, USER_AGENT] {
            if let Some(value) = headers.get(&name) {
                all.insert(name, value.clone());
            }
        }
        for (name, value) in own {
            let name = HeaderName::try_from(name).map_err(|error| wrong(error.into()))?;
            let value = HeaderValue::try_from(value).map_err(|error| wrong(error.into()))?;
            all.insert(name, value);
        }
        if !own.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            let host = SocketAddr::new(self.pod_ip, target.port).to_string();
            all.insert(HOST, HeaderValue::try_from(host).map_err(|error| wrong(error.into()))?);
        }
        all.insert(CONNECTION, HeaderValue::from_static("close"));
        Ok(request)
    }

    /// `None`: to somewhere else, which says nothing about the application.
    fn within_pod(&self, from: &Target, location: &str) -> Option<Target> {
        if location.starts_with('/') && !location.starts_with("//") {
            return Some(Target { path: location.to_owned(), ..*from });
        }
        let uri: Uri = location.parse().ok()?;
        let host = uri.host()?.trim_matches(['[', ']']);
        let https = uri.scheme_str()? == "https";
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        (host.parse() == Ok(self.pod_ip)).then_some(Target { https, port, path })
    }

    /// `grpc.health.v1.Health/Check`
    async fn grpc(&self, port: u16, service: &str) -> Result<String, Failure> {
        let origin = format!("http://{}", SocketAddr::new(self.pod_ip, port));
        let endpoint = Endpoint::from_shared(origin).map_err(|error| failed(explain(&error)))?;
        let pod_ip = self.pod_ip;
        let connector = tower::service_fn(move |_: Uri| async move {
            let stream = connect(pod_ip, port).await.map_err(|failure| std::io::Error::other(failure.reason))?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        });
        let channel = endpoint.connect_with_connector(connector).await.map_err(|error| failed(explain(&error)))?;
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.map_err(|error| failed(explain(&error)))?;
        let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
        let request = tonic::Request::new(HealthCheckRequest { service: service.to_owned() });
        match client.unary(request, path, codec).await {
            Ok(response) if response.get_ref().status == SERVING => Ok("serving\n".to_owned()),
            Ok(response) => {
                Err(failed(format!("the application's health is {}, not SERVING", response.get_ref().status)))
            }
            Err(status) => Err(failed(format!("the application's health is not told: {status}"))),
        }
    }
}

/// Of `HealthCheckResponse`'s `status`.
pub(crate) const SERVING: i32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    pub(crate) service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    pub(crate) status: i32,
}

/// Where a request goes within the pod.
struct Target {
    https: bool,
    port: u16,
    path: String,
}

async fn connect(pod_ip: IpAddr, port: u16) -> Result<TcpStream, Failure> {
    let connected = application::connect(&[pod_ip], port).await;
    connected.map_err(|error| failed(format!("the application does not answer on port {port}: {error}")))
}

/// The status of the answer, and where it redirects to.
async fn exchange<IO: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    io: IO,
    request: Request<Empty<Bytes>>,
) -> Result<(StatusCode, Option<String>), Failure> {
    let wrong = |error: hyper::Error| failed(format!("the application did not answer: {}", explain(&error)));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(wrong)?;
    let exchange = sender.send_request(request);
    tokio::pin!(connection, exchange);
    let response = tokio::select! {
        response = &mut exchange => response,
        _ = &mut connection => exchange.await,
    };
    let response = response.map_err(wrong)?;
    let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
    Ok((response.status(), location.map(str::to_owned)))
}

fn failed(reason: String) -> Failure {
    Failure { status: StatusCode::SERVICE_UNAVAILABLE, reason }
}

/// The kubelet does not verify whom it probes either: it asks whether the application answers, not who it is.
pub fn trusting() -> Result<Arc<ClientConfig>, Failure> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| failed(error.to_string()))?;
    Ok(Arc::new(builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody)).with_no_client_auth()))
}

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
