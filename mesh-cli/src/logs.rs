//! Where the programs of a mesh write their logs: files below the data folder on this machine, or containers in a cluster. Neither
//! needs a control plane that answers: it may be what the log is wanted for.

use std::io::{ErrorKind, SeekFrom};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::time::Duration;

use async_stream::try_stream;
use futures_util::{AsyncBufRead, AsyncBufReadExt, Stream};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{ListParams, LogParams};
use mesh_common::names::kubernetes::{CONTAINER_PROXY, LABEL_PROXY};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::client::{Location, data_folder};
use crate::commands::Context;
use crate::failure::Failure;
use crate::install::{CONTROL, NAMESPACE, SELECTOR};
use crate::kubernetes::Cluster;
use crate::views::proxies;

/// Of a log no more bytes are taken than this, from its end.
const MOST: usize = 16 << 20;
/// How often a file is looked at that is followed.
const LOOK: Duration = Duration::from_millis(250);
const ENDING: &str = ".log";

pub type Lines = Pin<Box<dyn Stream<Item = Result<String, Failure>> + Send>>;

/// The log of one program.
#[derive(Clone)]
pub struct Log {
    /// Of a proxy, its id: the names of the workload and of its namespace; of the control plane that of its pod, if it has one.
    pub id: String,
    /// "" where files do not say.
    pub namespace: String,
    source: Source,
}

#[derive(Clone)]
enum Source {
    File(PathBuf),
    Container { cluster: Cluster, pod: String, container: &'static str },
}

/// Those of the control plane's replicas.
pub async fn of_control(context: &Context) -> Result<Vec<Log>, Failure> {
    if let Location::Cluster(access) = &context.location {
        return of_pods(access.connect().await?, Some(NAMESPACE), SELECTOR, CONTROL).await;
    }
    let folder = folder(&context.location).await?;
    let file = folder.join(CONTROL).with_extension(&ENDING[1..]);
    if !file.exists() {
        return Err(Failure::not_found(format!("The control plane has no log in {}.", folder.display()))
            .hint("It logs to its standard error, and goes wherever that was sent when it was started."));
    }
    Ok(vec![Log { id: CONTROL.to_owned(), namespace: String::new(), source: Source::File(file) }])
}

/// Those of proxies; without a namespace, of all.
pub async fn of_proxies(context: &Context, namespace: Option<&str>) -> Result<Vec<Log>, Failure> {
    if let Location::Cluster(access) = &context.location {
        let selector = format!("{LABEL_PROXY}=true");
        return of_pods(access.connect().await?, namespace, &selector, CONTAINER_PROXY).await;
    }
    let folder = folder(&context.location).await?;
    let mut names = Vec::new();
    let mut files = match tokio::fs::read_dir(&folder).await {
        Ok(files) => files,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(&folder, &error)),
    };
    while let Some(file) = files.next_entry().await? {
        let name = file.file_name();
        let Some(name) = name.to_str().and_then(|name| name.strip_suffix(ENDING)) else { continue };
        // The demo's applications write theirs beside them.
        if name != CONTROL && !name.ends_with(".app") {
            names.push(name.to_owned());
        }
    }
    names.sort();
    let source = |name: &str| Source::File(folder.join(format!("{name}{ENDING}")));
    Ok(names.into_iter().map(|id| Log { source: source(&id), namespace: String::new(), id }).collect())
}

/// That of the proxy that a name means.
pub async fn of_proxy(context: &Context, name: &str) -> Result<Log, Failure> {
    // An id says its namespace.
    let namespace = name.rsplit_once('.').map_or(context.namespace(), |(_, namespace)| namespace);
    let all = of_proxies(context, Some(namespace)).await?;
    match proxies::find_by(&all, |log| (&log.id, &log.namespace), name, namespace) {
        Ok(log) => Ok(log.clone()),
        Err(several) if several.len() > 1 => {
            let message = format!("{} proxies begin with {name}: {}.", several.len(), several.join(", "));
            Err(Failure::not_found(message).hint("Write enough of the name to tell them apart."))
        }
        Err(_) => in_files(&all, name).ok_or_else(|| has_none(name)),
    }
}

/// That of the proxy with this id. Nobody is asked whether it is there.
pub async fn of_id(context: &Context, id: &str) -> Result<Log, Failure> {
    let Location::Cluster(access) = &context.location else {
        return in_files(&of_proxies(context, None).await?, id).ok_or_else(|| has_none(id));
    };
    let (pod, namespace) = id.rsplit_once('.').ok_or_else(|| has_none(id))?;
    let (cluster, pod) = (access.connect().await?, pod.to_owned());
    let source = Source::Container { cluster, pod, container: CONTAINER_PROXY };
    Ok(Log { id: id.to_owned(), namespace: namespace.to_owned(), source })
}

/// Files are called by workloads, without their namespaces.
fn in_files(all: &[Log], id: &str) -> Option<Log> {
    let is = |log: &Log, id: &str| log.namespace.is_empty() && log.id == id;
    let workload = id.rsplit_once('.').map_or(id, |(workload, _)| workload);
    all.iter().find(|log| is(log, id)).or_else(|| all.iter().find(|log| is(log, workload))).cloned()
}

fn has_none(name: &str) -> Failure {
    Failure::not_found(format!("No proxy {name} has a log here."))
        .hint("`meshctl proxy status` shows the proxies; those of other machines have their logs there.")
}

async fn of_pods(
    cluster: Cluster,
    namespace: Option<&str>,
    selector: &str,
    container: &'static str,
) -> Result<Vec<Log>, Failure> {
    let pods = match namespace {
        Some(namespace) => cluster.namespaced::<Pod>(namespace),
        None => cluster.all::<Pod>(),
    };
    let mut found = pods.list_metadata(&ListParams::default().labels(selector)).await?.items;
    found.sort_by_key(|pod| (pod.namespace(), pod.name_any()));
    let log = |pod: kube::core::PartialObjectMeta<Pod>| {
        let (name, namespace) = (pod.name_any(), pod.namespace().unwrap_or_default());
        let id = if container == CONTAINER_PROXY { format!("{name}.{namespace}") } else { name.clone() };
        Log { id, namespace, source: Source::Container { cluster: cluster.clone(), pod: name, container } }
    };
    Ok(found.into_iter().map(log).collect())
}

async fn folder(location: &Location) -> Result<PathBuf, Failure> {
    let folder = data_folder(location).await.ok_or_else(|| {
        Failure::not_found("It is not known where to look for a data folder: neither MESH_DATA nor HOME is set.")
    });
    Ok(folder?.join("logs"))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("{} cannot be read: {error}.", path.display()))
}

impl Log {
    /// Its last lines.
    pub async fn last(&self, lines: u32, previous: bool) -> Result<String, Failure> {
        let bytes = match &self.source {
            Source::File(_) if previous => return Err(no_previous()),
            Source::File(path) => end_of(path).await?.0,
            Source::Container { cluster, pod, container } => {
                let how = LogParams { previous, ..params(container, lines) };
                let stream = cluster.namespaced::<Pod>(&self.namespace).log_stream(pod, &how).await?;
                end_of_stream(stream).await?
            }
        };
        Ok(String::from_utf8_lossy(last_lines(&bytes, lines)).into_owned())
    }

    /// Its last lines and those that come, for as long as there is whoever writes them.
    pub async fn follow(&self, lines: u32) -> Result<Lines, Failure> {
        match &self.source {
            Source::File(path) => {
                let (bytes, file) = end_of(path).await?;
                Ok(grown(path.clone(), file, last_lines(&bytes, lines).to_owned()))
            }
            Source::Container { cluster, pod, container } => {
                let how = LogParams { follow: true, ..params(container, lines) };
                Ok(streamed(cluster.namespaced::<Pod>(&self.namespace).log_stream(pod, &how).await?))
            }
        }
    }
}

fn no_previous() -> Failure {
    Failure::usage("--previous is about containers: on one machine a proxy goes on in the file that it had.")
}

fn params(container: &str, lines: u32) -> LogParams {
    LogParams { container: Some(container.to_owned()), tail_lines: Some(lines.into()), ..LogParams::default() }
}

/// The end of a file, whole lines of it, and the file behind that.
async fn end_of(path: &Path) -> Result<(Vec<u8>, File), Failure> {
    let read = async {
        let mut file = File::open(path).await?;
        let length = file.metadata().await?.len();
        let begin = length.saturating_sub(MOST as u64);
        file.seek(SeekFrom::Start(begin)).await?;
        let mut bytes = Vec::new();
        (&mut file).take(length - begin).read_to_end(&mut bytes).await?;
        if begin > 0 {
            drop_part(&mut bytes);
        }
        Ok::<_, std::io::Error>((bytes, file))
    };
    read.await.map_err(|error| unreadable(path, &error))
}

/// The same of what comes from a node. Its limit of bytes would leave out the last lines, not the first.
async fn end_of_stream(stream: impl AsyncBufRead) -> std::io::Result<Vec<u8>> {
    let mut stream = pin!(stream);
    let mut bytes = Vec::new();
    while stream.read_until(b'\n', &mut bytes).await? > 0 {
        if bytes.len() > 2 * MOST {
            bytes.drain(..bytes.len() - MOST);
            drop_part(&mut bytes);
        }
    }
    if bytes.len() > MOST {
        bytes.drain(..bytes.len() - MOST);
        drop_part(&mut bytes);
    }
    Ok(bytes)
}

/// Takes away what is left of the first line.
fn drop_part(bytes: &mut Vec<u8>) {
    let whole = bytes.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    bytes.drain(..whole);
}

pub fn last_lines(bytes: &[u8], lines: u32) -> &[u8] {
    let Some(before_last) = usize::try_from(lines).ok().and_then(|lines| lines.checked_sub(1)) else { return b"" };
    let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let ends = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    ends.map(|(at, _)| at + 1).nth(before_last).map_or(bytes, |begin| &bytes[begin..])
}

fn streamed(stream: impl AsyncBufRead + Send + 'static) -> Lines {
    Box::pin(try_stream! {
        let mut stream = pin!(stream);
        let mut line = Vec::new();
        while stream.read_until(b'\n', &mut line).await? > 0 {
            yield String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line)).into_owned();
            line.clear();
        }
    })
}

/// Lines that a file has, and that it gets; from its beginning again when it was made anew or cut off.
fn grown(path: PathBuf, mut file: File, mut bytes: Vec<u8>) -> Lines {
    Box::pin(try_stream! {
        let mut at = file.stream_position().await?;
        loop {
            let mut begin = 0;
            while let Some(length) = bytes[begin..].iter().position(|byte| *byte == b'\n') {
                yield String::from_utf8_lossy(&bytes[begin..begin + length]).into_owned();
                begin += length + 1;
            }
            bytes.drain(..begin);
            let read = (&mut file).take(MOST as u64).read_to_end(&mut bytes).await?;
            at += read as u64;
            if read > 0 {
                continue;
            }
            tokio::time::sleep(LOOK).await;
            // Whoever writes it is started anew, and has cut it off.
            if tokio::fs::metadata(&path).await.is_ok_and(|now| now.len() < at) {
                file = File::open(&path).await?;
                (at, bytes) = (0, Vec::new());
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    #[test]
    fn the_last_lines_are_whole() {
        for (text, lines, last) in [
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\nb\n", 5, "a\nb\n"),
            ("a\nb\n", 0, ""),
            ("", 3, ""),
            ("\n\n", 1, "\n"),
        ] {
            assert_eq!(last_lines(text.as_bytes(), lines), last.as_bytes(), "{text:?}");
        }
    }

    #[tokio::test]
    async fn of_a_large_file_the_end_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        let line = format!("{}\n", "x".repeat(99));
        std::fs::write(&path, line.repeat(200_000) + "the end\n").unwrap();
        let is_end =
            |bytes: &[u8]| bytes.len() <= MOST && bytes.starts_with(line.as_bytes()) && bytes.ends_with(b"\nthe end\n");
        assert!(is_end(&end_of(&path).await.unwrap().0));
        let whole = std::fs::read(&path).unwrap();
        let twice = [whole.as_slice(), whole.as_slice()].concat();
        assert!(is_end(&end_of_stream(twice.as_slice()).await.unwrap()));
        assert!(end_of(&folder.path().join("y")).await.err().unwrap().message.contains("y cannot be read"));
    }

    #[tokio::test]
    async fn what_is_no_utf8_does_not_end_a_log() {
        let bytes: &[u8] = b"1\n\xff2\n3";
        let lines: Vec<_> = streamed(bytes).map(Result::unwrap).collect().await;
        assert_eq!(lines, ["1", "\u{fffd}2", "3"]);
        assert_eq!(end_of_stream(bytes).await.unwrap(), bytes);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_written_later_follows_also_into_a_file_that_begins_anew() {
        use std::io::Write;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        std::fs::write(&path, "1\n2\n3").unwrap();
        let log = Log { id: "x".into(), namespace: String::new(), source: Source::File(path.clone()) };
        let mut lines = log.follow(2).await.unwrap();
        assert_eq!(lines.next().await.unwrap().unwrap(), "2");
        std::fs::File::options().append(true).open(&path).unwrap().write_all(b"3\n4\n").unwrap();
        assert_eq!(lines.next().await.unwrap().unwrap(), "33");
        assert_eq!(lines.next().await.unwrap().unwrap(), "4");
        std::fs::write(&path, "5\n").unwrap();
        assert_eq!(lines.next().await.unwrap().unwrap(), "5");
    }
}
