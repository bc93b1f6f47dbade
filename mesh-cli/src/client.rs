//! The connection to the control plane: a unix socket, found by flag, environment or in the usual places, or a cluster.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use envoy_types::pb::envoy::service::status::v3::client_status_discovery_service_client::ClientStatusDiscoveryServiceClient;
use hyper_util::rt::TokioIo;
use mesh_common::proto::control::mesh_client::MeshClient;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::failure::{Exit, Failure};
use crate::kubernetes::{self, Access, Cluster};

/// Answers hold whole configurations; the peer is trusted with this much of our memory.
pub const MAX_MESSAGE: usize = 256 << 20;

/// How often a control plane that has not answered yet is pinged, and how long it may take to say that it is there.
const PING: Duration = Duration::from_secs(5);
const PONG: Duration = Duration::from_secs(10);

/// Where to look for the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// What the user named.
    Given(ControlAddress),
    /// The usual places, in order.
    Search(Vec<PathBuf>),
    /// The mesh of a Kubernetes cluster.
    Cluster(Access),
}

/// `unix:PATH`, or just a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlAddress(pub PathBuf);

impl FromStr for ControlAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")).unwrap_or(text);
        if path.contains("://") {
            return Err("meshctl talks to mesh-control over its unix socket only: give unix:PATH".to_owned());
        }
        if path.is_empty() {
            return Err("the path of the socket is missing: give unix:PATH".to_owned());
        }
        Ok(Self(PathBuf::from(path)))
    }
}

impl Location {
    /// What the command line names; or else a control plane that answers on this machine; or else the kubeconfig's cluster.
    pub async fn find(given: Option<ControlAddress>, access: &Access) -> Self {
        if let Some(address) = given {
            return Self::Given(address);
        }
        if access.is_given() {
            return Self::Cluster(access.clone());
        }
        let places = usual_places(env::var_os("MESH_DATA"), env::var_os("HOME"));
        for place in &places {
            if UnixStream::connect(place).await.is_ok() {
                return Self::Search(places);
            }
        }
        match access.files().iter().any(|file| file.exists()) {
            true => Self::Cluster(access.clone()),
            false => Self::Search(places),
        }
    }
}

/// The data folder of that location, where the sockets are: that of whoever answers, or else one in which somebody has.
pub async fn data_folder(location: &Location) -> Option<&Path> {
    let places = match location {
        Location::Given(ControlAddress(path)) => return path.parent(),
        Location::Search(places) => places,
        Location::Cluster(_) => return None,
    };
    for place in places {
        if UnixStream::connect(place).await.is_ok() {
            return place.parent();
        }
    }
    places.iter().find(|place| place.exists()).or(places.first())?.parent()
}

fn usual_places(data: Option<std::ffi::OsString>, home: Option<std::ffi::OsString>) -> Vec<PathBuf> {
    let filled = |value: Option<std::ffi::OsString>| value.filter(|v| !v.is_empty()).map(PathBuf::from);
    let data = filled(data).map(|data| data.join("control.sock"));
    let home = filled(home).map(|home| home.join(".mesh"));
    let homes = home.into_iter().flat_map(|home| [home.join("control.sock"), home.join("demo/control.sock")]);
    data.into_iter().chain(homes).collect()
}

/// gRPC over one connection that is there already: when it breaks, whatever uses it has failed.
pub async fn channel_over<S>(stream: S) -> Result<Channel, tonic::transport::Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut stream = Some(stream);
    let connector = tower::service_fn(move |_: Uri| {
        let stream = stream.take().map(TokioIo::new);
        async move { stream.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::BrokenPipe)) }
    });
    Endpoint::from_static("http://mesh-control").connect_with_connector(connector).await
}

/// A connected control plane. Clones share the connection.
#[derive(Clone)]
pub struct Control {
    pub place: Place,
    channel: Channel,
}

#[derive(Clone)]
pub enum Place {
    Socket(PathBuf),
    Cluster(Cluster),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Cluster(cluster) => write!(f, "the cluster {}", cluster.context),
        }
    }
}

impl Control {
    /// Connects to the first place that answers; the failure says what was tried and what came of it.
    pub async fn connect(location: &Location) -> Result<Self, Failure> {
        let mut tried = Vec::new();
        let candidates = match location {
            Location::Cluster(access) => return Self::cluster(access.connect().await?).await,
            Location::Given(ControlAddress(path)) => std::slice::from_ref(path),
            Location::Search(paths) => paths,
        };
        for path in candidates {
            match UnixStream::connect(path).await {
                Ok(_) => return Self::open(path).await,
                Err(error) => tried.push(format!("  {}: {}", path.display(), reason(&error))),
            }
        }
        let message = match location {
            Location::Given(_) | Location::Cluster(_) => {
                let why = tried.first().map(|line| line.trim_start()).unwrap_or_default();
                format!("No control plane answers at {why}.")
            }
            Location::Search(places) if places.is_empty() => {
                "It is not known where to look for a control plane: neither MESH_DATA nor HOME is set.".to_owned()
            }
            Location::Search(_) => format!("No control plane answers. These places were tried:\n{}", tried.join("\n")),
        };
        Err(Failure::with(Exit::Unreachable, message).hint(
            "Start one with `meshctl demo`, or with `mesh-control --mode standalone --data DIR` and then pass \
             `--control unix:DIR/control.sock` (or set MESH_CONTROL). For a mesh in Kubernetes, pass --kubeconfig (or set \
             KUBECONFIG).",
        ))
    }

    async fn open(path: &Path) -> Result<Self, Failure> {
        let socket = path.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = socket.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The authority is never resolved: the connector goes to the socket. A control plane that is stopped takes connections
        // and never answers; one that works answers pings whatever else it does.
        let endpoint =
            Endpoint::from_static("http://mesh-control").http2_keep_alive_interval(PING).keep_alive_timeout(PONG);
        let channel = endpoint.connect_with_connector(connector).await;
        let channel = channel.map_err(|error| {
            let message = format!("What listens at {} does not speak gRPC: {error}.", path.display());
            Failure::with(Exit::Unreachable, message).hint("Is it the control.sock of a mesh-control?")
        })?;
        Ok(Self { place: Place::Socket(path.to_owned()), channel })
    }

    /// Nothing of the cluster is asked before the first request.
    async fn cluster(cluster: Cluster) -> Result<Self, Failure> {
        let channel = kubernetes::plane::open(cluster.clone()).await?;
        Ok(Self { place: Place::Cluster(cluster), channel })
    }

    pub fn mesh(&self) -> MeshClient<Channel> {
        MeshClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub fn client_status(&self) -> ClientStatusDiscoveryServiceClient<Channel> {
        ClientStatusDiscoveryServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }
}

fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such socket".to_owned(),
        std::io::ErrorKind::ConnectionRefused => "the socket is there, but nobody listens".to_owned(),
        std::io::ErrorKind::PermissionDenied => "it belongs to another user".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_be_written_in_three_ways() {
        for text in ["unix:/run/m.sock", "unix:///run/m.sock", "/run/m.sock"] {
            assert_eq!(text.parse::<ControlAddress>().unwrap().0, Path::new("/run/m.sock"), "{text}");
        }
        assert!("https://mesh:15012".parse::<ControlAddress>().is_err());
        assert!("unix:".parse::<ControlAddress>().is_err());
    }

    #[test]
    fn the_data_folder_comes_before_the_home_folder() {
        let places = usual_places(Some("/data".into()), Some("/home/ada".into()));
        let expected = ["/data/control.sock", "/home/ada/.mesh/control.sock", "/home/ada/.mesh/demo/control.sock"];
        assert_eq!(places, expected.map(PathBuf::from));
    }

    #[tokio::test]
    async fn the_data_folder_is_that_of_whoever_answers_or_else_of_whoever_has() {
        let folder = tempfile::tempdir().unwrap();
        let [none, dead, alive] = ["none", "dead", "alive"].map(|name| folder.path().join(name));
        for path in [&dead, &alive] {
            std::fs::create_dir(path).unwrap();
        }
        std::fs::write(dead.join("control.sock"), "").unwrap();
        let location = Location::Search([&none, &dead, &alive].map(|path| path.join("control.sock")).to_vec());
        assert_eq!(data_folder(&location).await, Some(dead.as_path()));
        let _listens = tokio::net::UnixListener::bind(alive.join("control.sock")).unwrap();
        assert_eq!(data_folder(&location).await, Some(alive.as_path()));
        assert_eq!(data_folder(&Location::Search(vec![none.join("control.sock")])).await, Some(none.as_path()));
    }

    #[tokio::test]
    async fn what_the_command_line_names_goes_first() {
        let address: ControlAddress = "/m.sock".parse().unwrap();
        let context = Access { context: Some("prod".to_owned()), kubeconfig: None };
        assert!(matches!(Location::find(Some(address), &Access::default()).await, Location::Given(_)));
        assert!(matches!(Location::find(None, &context).await, Location::Cluster(access) if access == context));
    }

    #[tokio::test(start_paused = true)]
    async fn a_control_plane_that_never_answers_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let _stopped = tokio::net::UnixListener::bind(&path).unwrap();
        let control = Control::connect(&Location::Given(ControlAddress(path))).await.unwrap_or_else(|f| panic!("{f}"));
        let mut mesh = control.mesh();
        let asked = mesh.get_status(mesh_common::proto::control::GetStatusRequest {});
        let answer = tokio::time::timeout(Duration::from_secs(60), asked).await.expect("still waiting after a minute");
        let failure = Failure::from(answer.unwrap_err());
        assert_eq!(failure.exit, Exit::Unreachable, "{failure}");
    }

    #[tokio::test]
    async fn the_failure_names_what_was_tried() {
        let folder = tempfile::tempdir().unwrap();
        let paths = vec![folder.path().join("a.sock"), folder.path().join("b.sock")];
        let Err(failure) = Control::connect(&Location::Search(paths)).await else { panic!("connected to nothing") };
        assert_eq!(failure.exit, Exit::Unreachable);
        assert!(failure.message.contains("a.sock: no such socket"), "{failure}");
        assert!(failure.message.contains("b.sock: no such socket"), "{failure}");
    }
}
