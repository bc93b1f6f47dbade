//! Network namespaces for the applications that `meshctl run` and `meshctl demo` start, with or without root.
//!
//! ```text
//! host namespace            fabric namespace (the holder)          workload namespaces
//!   meshctl, mesh-control     bridge mesh0 10.77.0.1/16  <--veth-->  eth0 10.77.0.2: mesh-proxy, the application
//!                             fd00:6d65:7368:4d::1/64    <--veth-->  eth0 10.77.0.3: ...
//! ```
//!
//! In: a data folder, which stands for one fabric. Out: [`Lease`]s: a namespace with addresses and default routes, and
//! commands that run in it. Nothing has a name on the host and nothing there changes, so all of it vanishes with its
//! processes: a workload's namespace when its lease and its processes end, the fabric when the last lease does.
//! Programs that run inside are killed with the process that started them, even by `kill -9`, and whatever they have started
//! themselves when the lease ends.

mod addresses;
mod enter;
mod error;
mod holder;
mod lease;
mod links;
mod namespaces;
mod protocol;
mod ready;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

pub use enter::{NOT_FOUND, Who, tied_command};
pub use error::Error;
pub use lease::{Lease, gone, lease};

const ENTER: &str = "__enter-namespace";
const HOLD: &str = "__hold-namespaces";
const READY: &str = "__wait-until-ready";

/// The roles that this program plays for itself. To be called first thing in `main`, because entering a user namespace
/// needs a process with one thread. `None`: this is an ordinary run.
pub fn entry() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    match args.next()?.to_str()? {
        ENTER => Some(enter::execute(args)),
        HOLD => Some(holder::execute(Path::new(&args.next().unwrap_or_else(|| OsString::from("."))))),
        READY => Some(ready::execute(args)),
        _ => None,
    }
}
