//! A proxy itself, asked for what only it knows: on this machine over its admin socket in the control plane's data folder, in
//! a cluster over its ready port, forwarded from its pod.

use std::path::{Path, PathBuf};

use http::{Method, Request};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use mesh_common::names::kubernetes::CONTAINER_PROXY;
use mesh_common::names::{ADMIN_SOCKET, path, port};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

use crate::client::{Control, Place};
use crate::failure::{Exit, Failure, sentence};
use crate::kubernetes::Cluster;
use crate::kubernetes::forward::Target;

/// What a proxy says of itself.
#[derive(Debug, Deserialize)]
pub struct State {
    /// With the fields of Envoy's `Secret`.
    #[serde(default)]
    pub secrets: Vec<serde_json::Value>,
}

/// A mesh-proxy that can be reached.
#[derive(Clone)]
pub struct AdminProxy {
    id: String,
    way: Way,
}

#[derive(Clone)]
enum Way {
    Socket(PathBuf),
    Pod { cluster: Cluster, namespace: String, name: String },
}

impl AdminProxy {
    /// `None`: it is somewhere else, or no mesh-proxy.
    pub fn find(control: &Control, id: &str) -> Option<Self> {
        let (workload, namespace) = id.rsplit_once('.')?;
        let way = match &control.place {
            Place::Socket(path) => {
                Way::Socket(Some(socket(path.parent()?, workload)).filter(|socket| socket.exists())?)
            }
            Place::Cluster(cluster) => {
                let (cluster, namespace, name) = (cluster.clone(), namespace.to_owned(), workload.to_owned());
                Way::Pod { cluster, namespace, name }
            }
        };
        Some(Self { id: id.to_owned(), way })
    }

    /// The proxy of a workload that this program runs.
    pub fn of(data: &Path, workload: &str) -> Self {
        Self { id: workload.to_owned(), way: Way::Socket(socket(data, workload)) }
    }

    /// Takes its workload out of the mesh, and returns when no peer calls it any more.
    pub async fn drain(&self) -> Result<(), Failure> {
        self.ask(Method::POST, path::DRAIN).await.map(drop)
    }

    /// Why the control plane wants nothing of its workload. `None`: it does, or nobody knows.
    pub async fn refusal(&self) -> Option<String> {
        let refused = self.ask(Method::GET, path::REGISTRATION).await.err()?;
        (refused.exit == Exit::Refused).then_some(refused.message)
    }

    /// Sets its log filter, and gives its own words about it.
    pub async fn set_log_filter(&self, filter: &str) -> Result<String, Failure> {
        let query: String = filter.bytes().map(percent_encoded).collect();
        self.ask(Method::POST, &format!("/logging?filter={query}")).await
    }

    pub async fn state(&self) -> Result<State, Failure> {
        let text = self.ask(Method::GET, "/config_dump").await?;
        serde_json::from_str(&text).map_err(|e| Failure::new(format!("The proxy {} answers strangely: {e}.", self.id)))
    }

    async fn ask(&self, method: Method, path: &str) -> Result<String, Failure> {
        match &self.way {
            Way::Socket(socket) => {
                let stream = UnixStream::connect(socket).await.map_err(|error| self.gone(&error))?;
                self.ask_over(stream, method, path).await
            }
            Way::Pod { cluster, namespace, name } => {
                let target = Target { namespace: namespace.clone(), pod: name.clone(), port: port::READY };
                let (stream, said) = target.connect(cluster).await?;
                let answer = self.ask_over(stream, method, path).await;
                answer.map_err(|failure| said.failure().unwrap_or(failure))
            }
        }
    }

    fn gone(&self, error: &dyn std::fmt::Display) -> Failure {
        let hint = match &self.way {
            Way::Socket(_) => "See its log below the data folder, in logs/.".to_owned(),
            Way::Pod { namespace, name, .. } => {
                format!("See `kubectl -n {namespace} logs {name} -c {CONTAINER_PROXY}`.")
            }
        };
        Failure::new(format!("The proxy {} does not answer: {error}.", self.id)).hint(hint)
    }

    async fn ask_over<S>(&self, stream: S, method: Method, path: &str) -> Result<String, Failure>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let gone = |error: &dyn std::fmt::Display| self.gone(error);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| gone(&e))?;
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header("host", "localhost");
        let request = request.body(Empty::<Bytes>::new()).map_err(|e| gone(&e))?;
        let response = sender.send_request(request).await.map_err(|e| gone(&e))?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|e| gone(&e))?.to_bytes();
        let text = String::from_utf8_lossy(&body).trim().to_owned();
        match (status.is_success(), status.is_client_error()) {
            (true, _) => Ok(text),
            (_, true) => Err(Failure::refused(sentence(&text))),
            _ => Err(gone(&status)),
        }
    }
}

/// Why nothing can be asked of a proxy itself.
pub fn elsewhere(id: &str, path: &str) -> Failure {
    Failure::new(format!("The proxy {id} is not a mesh-proxy that was started with `meshctl run` on this machine."))
        .hint(format!(
            "On its own machine: curl -X POST 'http://127.0.0.1:{}{path}' (Envoy: its admin port).",
            port::READY
        ))
}

fn socket(data: &Path, workload: &str) -> PathBuf {
    data.join("workloads").join(workload).join(ADMIN_SOCKET)
}

fn percent_encoded(byte: u8) -> String {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Answers one request, and gives its first line.
    async fn answered(reply: &'static str) -> (Result<String, Failure>, String) {
        asked(reply, async |proxy| proxy.set_log_filter("info,a::b=trace").await).await
    }

    async fn asked<T>(reply: &'static str, ask: impl AsyncFnOnce(AdminProxy) -> T) -> (T, String) {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join(ADMIN_SOCKET);
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let proxy = AdminProxy { id: "web-1.default".into(), way: Way::Socket(socket) };
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).await.unwrap();
            stream.write_all(reply.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&request[..length]).lines().next().unwrap_or_default().to_owned()
        };
        tokio::join!(ask(proxy), serve)
    }

    #[tokio::test]
    async fn a_filter_is_sent_as_one_value() {
        let (said, request) = answered("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n").await;
        assert_eq!(said.unwrap(), "ok");
        assert_eq!(request, "POST /logging?filter=info%2Ca%3A%3Ab%3Dtrace HTTP/1.1");
    }

    #[tokio::test]
    async fn only_a_refusal_of_the_workload_is_told() {
        for (reply, told) in [
            ("HTTP/1.1 409 Conflict\r\ncontent-length: 9\r\n\r\nnot yours", Some("Not yours.".to_owned())),
            ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nregistered", None),
            ("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 9\r\n\r\nno answer", None),
        ] {
            let (refusal, request) = asked(reply, async |proxy| proxy.refusal().await).await;
            assert_eq!((refusal, request.as_str()), (told, "GET /registration HTTP/1.1"));
        }
    }

    #[tokio::test]
    async fn a_refusal_is_the_proxys_own_sentence() {
        let (said, _) = answered("HTTP/1.1 400 Bad Request\r\ncontent-length: 13\r\n\r\nno such level").await;
        let failure = said.unwrap_err();
        assert_eq!((failure.exit, failure.message.as_str()), (Exit::Refused, "No such level."));
    }
}
