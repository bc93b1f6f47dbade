//! A lease of a workload namespace: asked of the fabric's holder, which is started if there is none.

use std::fs::{self, DirBuilder};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use super::holder::{self, READY};
use super::protocol::{self, Answer};
use super::{Error, HOLD};

/// A network namespace in the fabric. Ends when dropped, or with this process.
#[derive(Debug)]
pub struct Lease {
    pub ipv4: Ipv4Addr,
    /// `None`: the kernel has no IPv6.
    pub ipv6: Option<Ipv6Addr>,
    pub(super) network: OwnedFd,
    /// `None`: the fabric is root's.
    pub(super) user: Option<OwnedFd>,
    /// Files that applications see instead of the host's.
    pub(super) files: PathBuf,
    connection: UnixStream,
}

impl Lease {
    pub fn addresses(&self) -> Vec<IpAddr> {
        [Some(IpAddr::V4(self.ipv4)), self.ipv6.map(IpAddr::V6)].into_iter().flatten().collect()
    }

    /// Returns when the holder has ended, which takes the network away.
    pub async fn lost(&self) -> io::Result<()> {
        let stream = self.connection.try_clone()?;
        stream.set_nonblocking(true)?;
        let stream = tokio::net::UnixStream::from_std(stream)?;
        loop {
            stream.readable().await?;
            match stream.try_read(&mut [0; 64]) {
                Ok(0) => return Ok(()),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Ok(()),
                _ => {}
            }
        }
    }
}

/// Asks for a workload namespace in the fabric of this data folder. Blocks for some milliseconds.
pub fn lease(data: &Path) -> Result<Lease, Error> {
    let failed = |error| Error::Data { path: data.to_owned(), error };
    DirBuilder::new().recursive(true).mode(0o700).create(data).map_err(failed)?;
    // The holder leaves the folder that it was started in.
    let data = data.canonicalize().map_err(failed)?;
    let files = resolver_files(&data).map_err(|error| Error::Data { path: data.clone(), error })?;
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    // A holder that is just ending closes on us; the next try starts another one.
    for _ in 0..20 {
        match ask(&data) {
            Ok((connection, Answer::Granted { ipv4, ipv6 }, namespaces)) => {
                let mut namespaces = namespaces.into_iter();
                let network = namespaces.next().ok_or_else(|| Error::Holder("it gave no namespace".into()))?;
                return Ok(Lease { ipv4, ipv6, network, user: namespaces.next(), files, connection });
            }
            Ok((_, Answer::Refused(reason), _)) => return Err(Error::Told(reason)),
            Err(error) => last = error,
        }
        start_holder(&data)?;
        thread::sleep(Duration::from_millis(20));
    }
    Err(Error::Holder(last.to_string()))
}

/// Waits until the fabric of this data folder is gone, or for a second. To be called when no lease of it is left.
pub async fn gone(data: &Path) {
    let socket = holder::socket(data);
    for _ in 0..50 {
        if !socket.exists() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn ask(data: &Path) -> io::Result<(UnixStream, Answer, Vec<OwnedFd>)> {
    let mut stream = UnixStream::connect(holder::socket(data))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(protocol::REQUEST)?;
    let (answer, namespaces) = protocol::read_answer(&stream)?;
    Ok((stream, answer, namespaces))
}

/// Returns when it is ready; if it finds another one at work it is that one that will be.
fn start_holder(data: &Path) -> Result<(), Error> {
    let mut child = Command::new("/proc/self/exe")
        .arg(HOLD)
        .arg(data)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(Error::system("start the process that holds the mesh's network"))?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output).read_line(&mut line).map_err(Error::system("hear from the holder"))?;
    }
    // Collects the child when it ends; it may well live longer than this process.
    thread::spawn(move || child.wait());
    match line.trim() {
        READY => Ok(()),
        "" => Err(Error::Holder("it said nothing".into())),
        reason => Err(Error::Told(reason.to_owned())),
    }
}

/// What applications in the fabric see as resolv.conf and nsswitch.conf. Any resolver would do, since questions are
/// intercepted; the loopback one is refused at once when no proxy is there.
fn resolver_files(data: &Path) -> io::Result<PathBuf> {
    let folder = data.join("fabric");
    fs::create_dir_all(&folder)?;
    let write = |name: &str, text: &str| -> io::Result<()> {
        let path = folder.join(name);
        if fs::read_to_string(&path).is_ok_and(|old| old == text) {
            return Ok(());
        }
        // Renamed into place: others may be reading it.
        let fresh = folder.join(format!("{name}.{}", std::process::id()));
        fs::write(&fresh, text)?;
        fs::rename(&fresh, &path)
    };
    write("resolv.conf", RESOLV_CONF)?;
    let host = fs::read_to_string("/etc/nsswitch.conf").unwrap_or_default();
    write("nsswitch.conf", &nsswitch(&host))?;
    Ok(folder)
}

const RESOLV_CONF: &str = "\
# Questions of this application are answered by its mesh-proxy.
nameserver 127.0.0.1
search default.svc.cluster.local svc.cluster.local cluster.local
";

/// The host's file, but with names looked up in DNS only: other modules ask daemons of the host over unix sockets, past
/// the proxy.
fn nsswitch(host: &str) -> String {
    let mut text: String =
        host.lines().filter(|line| !line.trim_start().starts_with("hosts:")).flat_map(|line| [line, "\n"]).collect();
    text.push_str("hosts: files dns\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up_in_dns_only() {
        let host = "passwd: files systemd\nhosts: mymachines resolve [!UNAVAIL=return] files myhostname dns\nnetworks: files\n";
        assert_eq!(nsswitch(host), "passwd: files systemd\nnetworks: files\nhosts: files dns\n");
        assert_eq!(nsswitch(""), "hosts: files dns\n");
    }
}
