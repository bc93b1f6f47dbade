//! Running a program in a workload's namespace: this program starts itself again, and that process, which has one thread,
//! enters the namespaces and becomes the program.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::Parser;
use rustix::io::FdFlags;
use rustix::process::{Signal, getegid, geteuid};

use super::{ENTER, Error, Lease, READY, namespaces};

/// Exit code when the program cannot be run, as shells have it.
pub const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;
/// Exit code when the namespace cannot be entered.
const NO_NAMESPACE: u8 = 125;

/// As whom a program runs inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// With power over the workload's network: the proxy.
    Proxy,
    /// As the user who called, with the mesh's names resolved: the application.
    Application,
}

impl Lease {
    /// A command that runs `program` in this namespace. It inherits these file descriptors, under their numbers, and is
    /// killed when the thread that spawns it ends, so spawn it from one that stays.
    pub fn command(&self, who: Who, program: &OsStr, inherit: &[BorrowedFd<'_>]) -> Command {
        let mut command = enter_command();
        // Opened by the child through our table of file descriptors, so that they are not inherited any further.
        let namespace = |fd: RawFd| format!("/proc/{}/fd/{fd}", std::process::id());
        command.arg("--network").arg(namespace(self.network.as_raw_fd()));
        if let Some(user) = &self.user {
            command.arg("--user").arg(namespace(user.as_raw_fd()));
        }
        if who == Who::Application {
            command.arg("--files").arg(&self.files);
            if self.user.is_some() {
                command.arg("--uid").arg(geteuid().as_raw().to_string());
                command.arg("--gid").arg(getegid().as_raw().to_string());
            }
        }
        command.arg("--").arg(program);
        inherit_fds(&mut command, inherit);
        command
    }

    /// A command that ends well when the proxy at this address of the namespace is ready, and else says after a time on
    /// standard output why it is not.
    pub fn ready_command(&self, address: &str, patience: Duration) -> Command {
        let mut command = self.command(Who::Proxy, OsStr::new("/proc/self/exe"), &[]);
        command.args([READY, address]).arg(patience.as_secs().to_string());
        command
    }
}

/// A command that runs on the host, and is killed when the thread that spawns it ends.
pub fn tied_command(program: &OsStr) -> Command {
    let mut command = enter_command();
    command.arg("--").arg(program);
    command
}

fn enter_command() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg(ENTER).arg("--parent").arg(std::process::id().to_string());
    command
}

#[allow(unsafe_code)]
fn inherit_fds(command: &mut Command, inherit: &[BorrowedFd<'_>]) {
    let inherit: Vec<RawFd> = inherit.iter().map(AsRawFd::as_raw_fd).collect();
    let keep_open = move || -> io::Result<()> {
        for fd in &inherit {
            // SAFETY: a number that is not open (any more) is an error of fcntl, nothing worse.
            let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
            rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only fcntl is called; nothing is allocated and no lock is taken.
    unsafe { command.pre_exec(keep_open) };
}

#[derive(Debug, Parser)]
struct Args {
    /// Ends with this process
    #[arg(long)]
    parent: i32,
    #[arg(long)]
    network: Option<PathBuf>,
    #[arg(long)]
    user: Option<PathBuf>,
    /// Folder of the files to put over those in /etc
    #[arg(long)]
    files: Option<PathBuf>,
    #[arg(long, requires = "gid")]
    uid: Option<u32>,
    #[arg(long)]
    gid: Option<u32>,
    #[arg(last = true, required = true)]
    program: Vec<OsString>,
}

/// The child's `main`.
pub(super) fn execute(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args = match Args::try_parse_from(std::iter::once(OsString::from(ENTER)).chain(args)) {
        Ok(args) => args,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(NO_NAMESPACE);
        }
    };
    if let Err(error) = enter(&args) {
        eprintln!("meshctl: {error}");
        return ExitCode::from(NO_NAMESPACE);
    }
    let Some((program, arguments)) = args.program.split_first() else { return ExitCode::from(NO_NAMESPACE) };
    let error = Command::new(program).args(arguments).exec();
    eprintln!("meshctl: cannot run {}: {error}", Path::new(program).display());
    let missing = error.kind() == io::ErrorKind::NotFound;
    ExitCode::from(if missing { NOT_FOUND } else { NOT_EXECUTABLE })
}

fn enter(args: &Args) -> Result<(), Error> {
    let open = |path: &Path| File::open(path).map_err(Error::system("open the workload's namespace"));
    let network = args.network.as_deref().map(open).transpose()?;
    let user = args.user.as_deref().map(open).transpose()?;
    if let Some(user) = &user {
        namespaces::enter_user(user)?;
    }
    if let Some(network) = &network {
        namespaces::enter_network(network)?;
    }
    if let Some(files) = &args.files {
        let (resolver, switch) = (files.join("resolv.conf"), files.join("nsswitch.conf"));
        // The name service cache daemon would answer for the host, over a unix socket.
        namespaces::cover(
            &[(&resolver, "/etc/resolv.conf"), (&switch, "/etc/nsswitch.conf")],
            &["/run/nscd", "/var/run/nscd"],
        )?;
    }
    if let (Some(uid), Some(gid)) = (args.uid, args.gid) {
        namespaces::become_user(uid, gid)?;
    }
    // Last, because each change of credentials resets it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| Error::System { what: "tie the program to meshctl's life".into(), error: error.into() })?;
    // The parent may have ended before that.
    if rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(args.parent) {
        return Err(Error::Holder("meshctl ended".into()));
    }
    Ok(())
}
