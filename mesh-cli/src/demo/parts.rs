//! The workloads of the demo.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::folder::Folder;
use crate::failure::Failure;
use crate::run::find_program;

/// Below the data folder.
const WEB_PY: &str = "shop/web.py";
const PAGE: &str = "shop/page.html";

/// One workload: an application, or with no command only a proxy.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) service: &'static str,
    pub(super) version: &'static str,
    /// As `meshctl run --port` takes it; "" for none.
    pub(super) port: &'static str,
    pub(super) health: Option<&'static str>,
    pub(super) command: Vec<OsString>,
}

impl Part {
    pub(super) fn name(&self) -> String {
        match self.version {
            "" => self.service.to_owned(),
            version => format!("{}-{version}", self.service),
        }
    }
}

/// The service that the gateway leads to, as a full name with a port.
pub(super) const ENTRY: (&str, u16) = ("web", 9080);
/// The workload that takes requests from the host.
pub(super) const GATEWAY: &str = "gateway";

/// All of them, callers first.
pub(super) fn all(folder: &Folder) -> Result<Vec<Part>, Failure> {
    let shop = find_program("shop")?;
    let rust = |part: &str, version: &str| -> Vec<OsString> {
        vec![shop.clone().into(), part.into(), "--version".into(), version.into()]
    };
    let web = match python() {
        Some(python) => {
            folder.write(PAGE, include_str!("../../../e2e/shop/page.html"))?;
            let script = folder.write(WEB_PY, include_str!("../../../e2e/shop/web.py"))?;
            vec![python.into(), script.into(), "--version".into(), "v1".into()]
        }
        None => rust("web", "v1"),
    };
    let http = |service, version, command| Part {
        service,
        version,
        port: "9080:http",
        health: Some("http:/healthz"),
        command,
    };
    Ok(vec![
        Part { service: GATEWAY, version: "", port: "", health: None, command: Vec::new() },
        http("web", "v1", web),
        http("reviews", "v1", rust("reviews", "v1")),
        http("reviews", "v2", rust("reviews", "v2")),
        Part {
            service: "ratings",
            version: "v1",
            port: "9080:grpc",
            health: Some("tcp"),
            command: rust("ratings", "v1"),
        },
        Part { service: "stock", version: "v1", port: "9070:tcp", health: Some("tcp"), command: rust("stock", "v1") },
    ])
}

/// A Python that can run `web.py`; without one `web` is in Rust, like the others.
fn python() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|folder| folder.join("python3")).find(|file| file.is_file())?;
    works(&found).then_some(found)
}

fn works(python: &Path) -> bool {
    let check = "import sys, http.server, http.client; sys.exit(sys.version_info < (3, 9))";
    Command::new(python).args(["-c", check]).output().is_ok_and(|output| output.status.success())
}
