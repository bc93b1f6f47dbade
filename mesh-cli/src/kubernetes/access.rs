//! Finding the API server: a kubeconfig and a context in it, as with kubectl.

use std::path::PathBuf;
use std::time::Duration;

use kube::client::retry::RetryPolicy;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use tower::Layer;
use tower::retry::RetryLayer;

use super::{Cluster, webhooks};
use crate::failure::{Exit, Failure, sentence};

/// An API server that says that it cannot answer now is asked again after these pauses, or after the one that it names, and so
/// often: a few seconds in all, because somebody is waiting.
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
const TRIES: u32 = 5;

/// What the command line says about it. Empty: $KUBECONFIG or ~/.kube/config, and the current context.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    pub kubeconfig: Option<PathBuf>,
    pub context: Option<String>,
}

impl Access {
    /// Where it is looked for.
    pub fn files(&self) -> Vec<PathBuf> {
        if let Some(file) = &self.kubeconfig {
            return vec![file.clone()];
        }
        match std::env::var_os("KUBECONFIG").filter(|value| !value.is_empty()) {
            Some(paths) => std::env::split_paths(&paths).collect(),
            None => std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".kube/config")).into_iter().collect(),
        }
    }

    /// Whether the user says that it is to be a cluster.
    pub fn is_given(&self) -> bool {
        *self != Self::default()
    }

    /// The namespace that the context says, if it can be read and says one.
    pub fn namespace(&self) -> Option<String> {
        let kubeconfig = self.read().ok()?;
        let name = self.context.as_ref().or(kubeconfig.current_context.as_ref())?;
        let context = kubeconfig.contexts.iter().find(|context| context.name == *name)?;
        context.context.as_ref()?.namespace.clone().filter(|namespace| !namespace.is_empty())
    }

    pub async fn connect(&self) -> Result<Cluster, Failure> {
        let kubeconfig = self.read().map_err(|error| self.unusable(&error))?;
        let context = self.context.clone().or_else(|| kubeconfig.current_context.clone()).unwrap_or_default();
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
        let config = config.map_err(|error| self.unusable(&error))?;
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let client = client(config).map_err(|reason| {
            let message = format!("The API server {server} cannot be used: {}", sentence(&reason));
            Failure::with(Exit::Unreachable, message)
        })?;
        Ok(Cluster::new(client, context, server))
    }

    fn read(&self) -> Result<Kubeconfig, KubeconfigError> {
        match &self.kubeconfig {
            Some(file) => Kubeconfig::read_from(file),
            None => Kubeconfig::read(),
        }
    }

    fn unusable(&self, error: &KubeconfigError) -> Failure {
        let files: Vec<String> = self.files().iter().map(|file| file.display().to_string()).collect();
        let message = format!("The kubeconfig {} cannot be used: {}", files.join(", "), sentence(&full(error)));
        Failure::with(Exit::Unreachable, message)
            .hint("`kubectl config get-contexts` lists the contexts; --kubeconfig and --context choose one.")
    }
}

/// The library's own retries go on for minutes.
fn client(mut config: Config) -> Result<Client, String> {
    config.default_retry = false;
    let again = RetryPolicy::new(AGAIN.0, AGAIN.1, TRIES, true).map_err(|error| error.to_string())?;
    let namespace = config.default_namespace.clone();
    let once = Client::try_from(config).map_err(|error| full(&error))?;
    let service = tower::service_fn(move |request| {
        let once = once.clone();
        async move { once.send(request).await.map_err(tower::BoxError::from) }
    });
    Ok(Client::new(RetryLayer::new(again).layer(service), namespace))
}

/// The error with its causes, as far as they say something new.
pub fn full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = cause.source();
    }
    text
}

/// What the API server has refused, or that it was not reached.
impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        let status = match error {
            kube::Error::Api(status) => status,
            kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) => {
                return Self::new(format!("The API server's answer cannot be read: {}", sentence(&full(&error))))
                    .hint("Does the kubeconfig name an API server? `kubectl version` tries the same.");
            }
            kube::Error::Auth(_) => {
                let message = format!("Logging in to the API server failed: {}", sentence(&full(&error)));
                return Self::with(Exit::Unreachable, message).hint("`kubectl auth whoami` tries the same.");
            }
            error => {
                let message = format!("The API server cannot be reached: {}", sentence(&full(&error)));
                return Self::with(Exit::Unreachable, message).hint("`kubectl cluster-info` tries the same.");
            }
        };
        let message = sentence(&status.message);
        match status.code {
            401 => Self::with(Exit::Unreachable, format!("The API server does not know who you are: {message}"))
                .hint("Log in again; `kubectl auth whoami` tries the same."),
            403 => {
                Self::new(message).hint("Your user lacks this right; `kubectl auth can-i --list` shows what it has.")
            }
            404 => Self::not_found(message),
            409 => Self::refused(message).hint(
                "Somebody else changed the object meanwhile, or owns the field. Get it again and make your change.",
            ),
            400 | 405 | 406 | 413 | 415 | 422 => Self::refused(message),
            429 | 503 | 504 => Self::with(Exit::Unreachable, format!("The API server does not answer now: {message}"))
                .hint("Try again."),
            // The API server checks objects of the mesh and pods that get a proxy with the control plane, or not at all.
            500 if webhooks::not_called(&status.message).is_some_and(webhooks::is_ours) => {
                Self::with(Exit::Unreachable, message)
                    .hint("mesh-control does not answer the API server; `meshctl check` tells why.")
            }
            _ => Self::new(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "
apiVersion: v1
kind: Config
current-context: b
clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]
users: [{name: u, user: {token: t}}]
contexts:
- {name: a, context: {cluster: c, user: u, namespace: shop}}
- {name: b, context: {cluster: c, user: u}}
";

    fn access(folder: &std::path::Path, context: Option<&str>) -> Access {
        let file = folder.join("config");
        std::fs::write(&file, CONFIG).unwrap();
        Access { kubeconfig: Some(file), context: context.map(str::to_owned) }
    }

    #[tokio::test]
    async fn the_context_tells_the_server() {
        let folder = tempfile::tempdir().unwrap();
        let cluster = access(folder.path(), None).connect().await.unwrap();
        assert_eq!((cluster.context.as_str(), cluster.server.as_str()), ("b", "https://127.0.0.1:1"));
        let Err(failure) = access(folder.path(), Some("z")).connect().await else { panic!("connected to nothing") };
        assert_eq!(failure.exit, Exit::Unreachable);
        assert!(failure.message.contains("config cannot be used"), "{failure}");
    }

    #[test]
    fn the_namespace_is_the_contexts() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(access(folder.path(), Some("a")).namespace().as_deref(), Some("shop"));
        assert_eq!(access(folder.path(), None).namespace(), None);
        assert_eq!(access(folder.path(), Some("z")).namespace(), None);
    }

    #[test]
    fn answers_of_the_api_server_become_exit_codes() {
        let status = |code: u16| {
            let status = kube::core::Status::failure("no", "Reason").with_code(code);
            Failure::from(kube::Error::Api(status.boxed())).exit
        };
        assert_eq!(
            [404, 409, 422, 403, 503].map(status),
            [Exit::NotFound, Exit::Refused, Exit::Refused, Exit::Failed, Exit::Unreachable]
        );
    }

    #[test]
    fn a_webhook_that_does_not_answer_is_the_control_plane_if_it_is_ours() {
        let told = |webhook: &str| {
            let message = format!(
                "Internal error occurred: failed calling webhook \"{webhook}\": failed to call webhook: Post \"https://x.y.svc:443/\": connect: connection refused"
            );
            let status = kube::core::Status::failure(&message, "InternalError").with_code(500);
            Failure::from(kube::Error::Api(status.boxed()))
        };
        let ours = told("policies.validator.meshctl.dev");
        assert_eq!(ours.exit, Exit::Unreachable);
        assert!(ours.hint.is_some_and(|hint| hint.contains("meshctl check")));
        let theirs = told("validate.example.com");
        assert_eq!((theirs.exit, theirs.hint), (Exit::Failed, None));
    }
}
