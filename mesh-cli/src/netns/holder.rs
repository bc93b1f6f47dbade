//! The holder: a process in the fabric's namespace that makes a namespace for each lease and takes it away after.
//!
//! In: connections on `DATA/fabric.sock`, one for each lease. It starts with the first lease and ends shortly after the
//! last one; a lock on `DATA/fabric.lock` keeps it the only one. It survives signals from the terminal, because others may
//! use it still. Where a lease ends, it takes away what a killed workload has left in the data folder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal};
use socket2::SockRef;

use super::addresses::{self, Pool};
use super::protocol::{self, Answer};
use super::{Error, links, namespaces};
use crate::state;

/// What the holder says on its standard output when leases can be had.
pub(super) const READY: &str = "ready";
/// How long it waits for another lease after the last one.
const LINGER: Duration = Duration::from_millis(500);
const TICK: Duration = Duration::from_millis(100);

pub(super) fn socket(data: &Path) -> PathBuf {
    data.join("fabric.sock")
}

/// The holder's `main`. Says [`READY`] or why not.
pub(super) fn execute(data: &Path) -> ExitCode {
    match prepare(data) {
        Ok(Some((lock, listener, user))) => {
            println!("{READY}");
            detach();
            serve(data, &listener, user);
            state::sweep(data);
            // While the lock is held nobody else can have made a socket of that name.
            let _ = fs::remove_file(socket(data));
            drop(lock);
            ExitCode::SUCCESS
        }
        // Another one is there already, or starting.
        Ok(None) => {
            println!("{READY}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Namespaces and socket. With the user namespace if there is one.
fn prepare(data: &Path) -> Result<Option<(File, UnixListener, Option<OwnedFd>)>, Error> {
    let failed = |error| Error::Data { path: data.to_owned(), error };
    // What `ps` and `top` call it.
    let _ = rustix::thread::set_name(c"meshctl-fabric");
    // No part of the terminal's session or process group any more.
    let _ = rustix::process::setsid();
    let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(data.join("fabric.lock"));
    let mut lock = lock.map_err(failed)?;
    if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(None);
    }
    // For whoever wonders which process that is.
    lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).map_err(failed)?;
    let user = match namespaces::create_fabric()? {
        true => Some(File::open("/proc/self/ns/user").map_err(Error::system("open the user namespace"))?.into()),
        false => None,
    };
    links::make_fabric()?;
    let path = socket(data);
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path).map_err(failed)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    // So that accepting ends now and then.
    SockRef::from(&listener).set_read_timeout(Some(TICK)).map_err(failed)?;
    Ok(Some((lock, listener, user)))
}

/// Lets go of what belongs to whoever started it: whoever reads our output must see its end, and the folder may be unmounted.
fn detach() {
    if let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
    let _ = std::env::set_current_dir("/");
}

fn serve(data: &Path, listener: &UnixListener, user: Option<OwnedFd>) {
    let pool = Arc::new(Mutex::new(Pool::new()));
    let data: Arc<Path> = data.into();
    let user = Arc::new(user);
    let mut busy = Instant::now();
    while busy.elapsed() < LINGER {
        if let Ok((stream, _)) = listener.accept() {
            // Taken here, so that a lease counts from the moment that it was asked for.
            let number = lock(&pool).take();
            let (data, pool, user) = (data.clone(), pool.clone(), user.clone());
            thread::spawn(move || {
                serve_lease(stream, number, user.as_ref().as_ref());
                state::sweep(&data);
                if let Some(number) = number {
                    lock(&pool).give_back(number);
                }
            });
        }
        if !lock(&pool).is_unused() {
            busy = Instant::now();
        }
    }
}

fn lock(pool: &Mutex<Pool>) -> std::sync::MutexGuard<'_, Pool> {
    pool.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From the request to the end of the connection. What goes wrong here is told to the client; nobody else is concerned.
fn serve_lease(mut stream: UnixStream, number: Option<u16>, user: Option<&OwnedFd>) {
    let timeout = Some(Duration::from_secs(5));
    if stream.set_read_timeout(timeout).is_err() || !protocol::read_request(&mut stream).unwrap_or(false) {
        return;
    }
    let name = format!("w{}", number.unwrap_or_default());
    match number.ok_or(Error::Full).and_then(|number| make(&name, number)) {
        Ok((network, answer)) => {
            let namespaces: Vec<_> = [Some(&network), user].into_iter().flatten().map(AsFd::as_fd).collect();
            if protocol::send_answer(&stream, &answer, &namespaces).is_ok() {
                wait_for_end(&mut stream);
            }
            let _ = links::disconnect(&name);
            end_processes(&network);
        }
        Err(error) => {
            let _ = protocol::send_answer(&stream, &Answer::Refused(error.to_string()), &[]);
        }
    }
}

/// Kills what is left in a namespace: an application's own children, when whoever started the application was killed.
fn end_processes(network: &OwnedFd) {
    let Ok(wanted) = rustix::fs::fstat(network) else { return };
    // More than once, because a process may have started another one while it was looked for.
    for _ in 0..20 {
        let mut found = false;
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
            let inside = fs::metadata(entry.path().join("ns/net"))
                .is_ok_and(|namespace| (namespace.dev(), namespace.ino()) == (wanted.st_dev, wanted.st_ino));
            if let Some(pid) = pid.filter(|_| inside) {
                found = true;
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        if !found {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn make(name: &str, number: u16) -> Result<(OwnedFd, Answer), Error> {
    let network = namespaces::new_network()?;
    links::connect(name, &network)?;
    let (ipv4, ipv6) = namespaces::in_network(&network, || links::make_workload(addresses::addresses(number)))?;
    Ok((network, Answer::Granted { ipv4, ipv6 }))
}

fn wait_for_end(stream: &mut UnixStream) {
    let _ = stream.set_read_timeout(None);
    loop {
        match stream.read(&mut [0; 64]) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
