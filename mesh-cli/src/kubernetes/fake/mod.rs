//! An API server for tests: objects with versions and owners of their fields, and pods whose ports can be forwarded, over HTTP
//! on the loopback interface. What is asked of it is kept as one line each, such as `PATCH httproutes shop/reviews (dry run)`,
//! and the same lines say what it refuses.

mod forward;
mod store;

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use mesh_common::resource::{GATEWAY_GROUP, Kind};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinHandle};

pub use self::forward::Behind;
pub use self::store::Store;
use super::Access;
use crate::client::Location;
use crate::commands::Context;
use crate::install::NAMESPACE;
use crate::output::{Captured, Format, Output};

/// What happens just before a request is answered.
type Meanwhile = Box<dyn FnOnce(&mut State) + Send>;

#[derive(Default)]
pub struct State {
    pub store: Store,
    pub asked: Vec<String>,
    /// Kinds of Gateway API, by their plurals, that are served in another version than `v1`, and in that alone.
    pub older: BTreeMap<&'static str, &'static str>,
    refused: BTreeMap<String, (u16, Value)>,
    meanwhile: VecDeque<(String, Meanwhile)>,
    /// By namespace and name.
    pods: BTreeMap<(String, String), Behind>,
    /// What each of these has logged.
    pub logs: BTreeMap<(&'static str, &'static str), &'static [u8]>,
    forwarded: BTreeMap<(String, String), Vec<AbortHandle>>,
}

/// Serves until it is dropped.
pub struct ApiServer {
    state: Arc<Mutex<State>>,
    folder: tempfile::TempDir,
    accepting: JoinHandle<()>,
}

impl ApiServer {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config"), kubeconfig(listener.local_addr().unwrap())).unwrap();
        let state: Arc<Mutex<State>> = Arc::default();
        let accepting = tokio::spawn(accept(listener, state.clone()));
        Self { state, folder, accepting }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn access(&self) -> Access {
        Access { kubeconfig: Some(self.folder.path().join("config")), context: None }
    }

    /// Of a command line that names this cluster.
    pub fn context(&self, format: Format) -> (Context, Captured) {
        let (out, captured) = Output::captured(format);
        let location = Location::Cluster(self.access());
        let default_namespace = self.access().namespace().unwrap();
        (Context { location, access: self.access(), namespace: None, default_namespace, out }, captured)
    }

    /// Nobody answers any more.
    pub fn stop(&self) {
        self.accepting.abort();
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl State {
    /// Refuses the request of this line with a status that has these fields as well.
    pub fn refuse(&mut self, line: &str, code: u16, more: Value) {
        self.refused.insert(line.to_owned(), (code, more));
    }

    /// Does something just before the next request of this line is answered.
    pub fn before(&mut self, line: &str, act: impl FnOnce(&mut Self) + Send + 'static) {
        self.meanwhile.push_back((line.to_owned(), Box::new(act)));
    }

    /// A replica of mesh-control that is ready.
    pub fn add_replica(&mut self, name: &str, behind: Behind) {
        self.add_pod(NAMESPACE, name, behind);
    }

    pub fn add_pod(&mut self, namespace: &str, name: &str, behind: Behind) {
        self.pods.insert((namespace.to_owned(), name.to_owned()), behind);
    }

    /// It and all connections to it are gone.
    pub fn remove_replica(&mut self, name: &str) {
        self.remove_pod(NAMESPACE, name);
    }

    pub fn remove_pod(&mut self, namespace: &str, name: &str) {
        let place = (namespace.to_owned(), name.to_owned());
        self.pods.remove(&place);
        self.forwarded.remove(&place).into_iter().flatten().for_each(|task| task.abort());
    }

    fn serves(&self, plural: &str, version: &str) -> bool {
        version == self.older.get(plural).copied().unwrap_or("v1")
    }

    /// The kinds of Gateway API in a version.
    fn discover(&self, api_version: &str) -> Value {
        let Some(version) = api_version.strip_prefix(GATEWAY_GROUP).and_then(|rest| rest.strip_prefix('/')) else {
            return status(404, &json!({"reason": "NotFound"}));
        };
        let kinds = Kind::ALL.into_iter().filter(|kind| kind.group() == GATEWAY_GROUP);
        let there = kinds.filter(|kind| self.serves(kind.plural(), version)).map(|kind| {
            json!({"name": kind.plural(), "singularName": "", "namespaced": true, "kind": kind.as_str(), "verbs": []})
        });
        json!({"kind": "APIResourceList", "groupVersion": api_version, "resources": there.collect::<Vec<_>>()})
    }

    /// Those of the control plane, where no namespace is named.
    fn list_pods(&self, namespace: &str) -> Value {
        let wanted = if namespace.is_empty() { NAMESPACE } else { namespace };
        let pod = |(namespace, name): &(String, String)| {
            json!({"metadata": {"namespace": namespace, "name": name, "labels": {"app.kubernetes.io/name": "mesh-control"}},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]}})
        };
        json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": self.pods.keys().filter(|(namespace, _)| namespace == wanted).map(pod).collect::<Vec<_>>()})
    }
}

fn kubeconfig(address: SocketAddr) -> String {
    format!(
        "
apiVersion: v1
kind: Config
current-context: test
clusters: [{{name: c, cluster: {{server: 'http://{address}'}}}}]
users: [{{name: u, user: {{token: t}}}}]
contexts: [{{name: test, context: {{cluster: c, user: u, namespace: shop}}}}]
"
    )
}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let state = state.clone();
        let service = hyper::service::service_fn(move |request| serve(state.clone(), request));
        let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        connections.spawn(connection.with_upgrades());
    }
}

async fn serve(state: Arc<Mutex<State>>, mut request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut asked = Asked::parse(&request);
    let mut body = Value::Null;
    if asked.sub != "portforward" {
        let bytes = request.body_mut().collect().await.unwrap().to_bytes();
        body = serde_json::from_slice(&bytes).unwrap_or_default();
        // Where it is said for a deletion.
        asked.dry_run |= body["dryRun"].is_array();
    }
    if asked.plural.is_empty() && asked.api_version.contains('/') {
        return Ok(answer(&state.lock().unwrap().discover(&asked.api_version)));
    }
    let line = asked.line();
    {
        let mut state = state.lock().unwrap();
        state.asked.push(line.clone());
        if let Some(at) = state.meanwhile.iter().position(|(on, _)| *on == line)
            && let Some((_, act)) = state.meanwhile.remove(at)
        {
            act(&mut state);
        }
        if let Some((code, more)) = state.refused.get(&line) {
            return Ok(answer(&status(*code, more)));
        }
    }
    if asked.sub == "portforward" {
        return Ok(forward::answer(&state, &asked, &mut request).unwrap_or_else(|status| answer(&status)));
    }
    let mut state = state.lock().unwrap();
    if asked.sub == "log" {
        let log = state.logs.get(&(asked.namespace.as_str(), asked.name.as_str())).copied().unwrap_or_default();
        return Ok(Response::new(Full::from(log)));
    }
    let of_gateway_api = asked.api_version.strip_prefix(GATEWAY_GROUP).and_then(|rest| rest.strip_prefix('/'));
    if of_gateway_api.is_some_and(|version| !state.serves(&asked.plural, version)) {
        return Ok(answer(&status(404, &json!({"reason": "NotFound"}))));
    }
    Ok(answer(&match asked.plural.as_str() {
        "pods" => state.list_pods(&asked.namespace),
        "" if asked.api_version == "version" => version(),
        _ => state.store.answer(&asked, body),
    }))
}

fn answer(value: &Value) -> Response<Full<Bytes>> {
    let code = value["code"].as_u64().filter(|_| value["kind"] == "Status").unwrap_or(200);
    let body = Full::from(value.to_string());
    let response = Response::builder().status(StatusCode::from_u16(u16::try_from(code).unwrap()).unwrap());
    response.header("content-type", "application/json").body(body).unwrap()
}

/// Of Kubernetes.
fn version() -> Value {
    let mut version = json!({"major": "1", "minor": "34", "gitVersion": "v1.34.0"});
    for field in ["gitCommit", "gitTreeState", "buildDate", "goVersion", "compiler", "platform"] {
        version[field] = "".into();
    }
    version
}

/// A refusal, as the API server words it.
fn status(code: u16, more: &Value) -> Value {
    let mut status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "",
        "reason": "", "code": code});
    for (field, value) in more.as_object().into_iter().flatten() {
        status[field] = value.clone();
    }
    status
}

/// A request, taken apart.
struct Asked {
    method: Method,
    api_version: String,
    plural: String,
    namespace: String,
    name: String,
    sub: String,
    query: BTreeMap<String, String>,
    dry_run: bool,
}

impl Asked {
    fn parse(request: &Request<Incoming>) -> Self {
        let mut parts: VecDeque<String> =
            request.uri().path().split('/').filter(|p| !p.is_empty()).map(str::to_owned).collect();
        let mut next = || parts.pop_front().unwrap_or_default();
        let api_version = if next() == "apis" { format!("{}/{}", next(), next()) } else { next() };
        let mut plural = next();
        let mut namespace = String::new();
        let mut name = next();
        // Itself, or what is in it.
        if plural == "namespaces" && !parts.is_empty() {
            (namespace, plural) = (name, parts.pop_front().unwrap_or_default());
            name = parts.pop_front().unwrap_or_default();
        }
        let sub = parts.pop_front().unwrap_or_default();
        let query = query(request.uri());
        let dry_run = query.contains_key("dryRun");
        Self { method: request.method().clone(), api_version, plural, namespace, name, sub, query, dry_run }
    }

    fn line(&self) -> String {
        let Self { method, plural, namespace, name, .. } = self;
        let dry_run = if self.dry_run { " (dry run)" } else { "" };
        match (self.sub.as_str(), name.as_str()) {
            ("portforward", _) => format!("FORWARD {namespace}/{name}"),
            ("log", _) => format!("LOG {namespace}/{name}"),
            (_, "") => format!("LIST {plural} {}", if namespace.is_empty() { "*" } else { namespace }),
            _ => format!("{method} {plural} {namespace}/{name}{dry_run}"),
        }
    }
}

fn query(uri: &Uri) -> BTreeMap<String, String> {
    let pairs = uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.replace("%3D", "="))).collect()
}
