//! Looking back: records of the files, filtered, and then those that come.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Files, Record, Trail};

/// Records that are read ahead of whoever takes them.
const AHEAD: usize = 64;
/// A longer line is none that was written here: an object has a megabyte at most, and is in it twice.
const MAX_LINE: u64 = 8 << 20;

/// Which records; nothing given asks for all.
#[derive(Clone, Debug, Default)]
pub struct Query {
    pub since: Option<Timestamp>,
    pub kind: Option<String>,
    pub namespace: Option<String>,
    pub name: Option<String>,
    /// A part of the name, or a uid.
    pub who: Option<String>,
    /// Only the last so many of those that are there.
    pub last: Option<usize>,
    /// And those that come.
    pub follow: bool,
}

impl Query {
    pub fn fits(&self, record: &Record) -> bool {
        let is = |given: &Option<String>, it: &str| given.as_ref().is_none_or(|given| given.eq_ignore_ascii_case(it));
        self.since.is_none_or(|since| record.time >= since)
            && is(&self.kind, &record.object.kind)
            && is(&self.namespace, &record.object.namespace)
            && is(&self.name, &record.object.name)
            && self.who.as_ref().is_none_or(|who| record.who.is(who))
    }

    fn fits_line(&self, line: &str) -> bool {
        serde_json::from_str(line).is_ok_and(|record| self.fits(&record))
    }
}

/// One line of JSON, or why there are no more.
pub type Told = Result<Arc<str>, String>;

impl Trail {
    /// Ends with the last record that there is, unless more are waited for.
    pub fn ask(&self, query: Query) -> ReceiverStream<Told> {
        let (out, told) = mpsc::channel(AHEAD);
        let trail = self.clone();
        tokio::spawn(async move {
            if let Err(reason) = trail.tell(query, &out).await {
                let _ = out.send(Err(reason)).await;
            }
        });
        ReceiverStream::new(told)
    }

    async fn tell(self, query: Query, out: &mpsc::Sender<Told>) -> Result<(), String> {
        let (wanted, sender) = (query.clone(), out.clone());
        let read = tokio::task::spawn_blocking(move || {
            let (files, news) = self.now()?;
            read(files, &wanted, |line| sender.blocking_send(Ok(line)).is_ok())?;
            Ok(news)
        });
        let read: io::Result<_> = read.await.map_err(|_| "mesh-control is stopping".to_owned())?;
        let mut news = read.map_err(|error| format!("the audit log cannot be read: {error}"))?;
        if !query.follow {
            return Ok(());
        }
        loop {
            let line = tokio::select! {
                line = news.recv() => line,
                () = out.closed() => return Ok(()),
            };
            match line {
                Ok(line) if query.fits_line(&line) => {
                    if out.send(Ok(line)).await.is_err() {
                        return Ok(());
                    }
                }
                Ok(_) => (),
                Err(RecvError::Lagged(missed)) => return Err(format!("{missed} records were missed; ask again")),
                Err(RecvError::Closed) => return Ok(()),
            }
        }
    }
}

/// Gives lines that fit for as long as they are taken. What is no record is left out, such as a line that was cut off.
fn read(files: Files, query: &Query, mut take: impl FnMut(Arc<str>) -> bool) -> io::Result<()> {
    let mut last = VecDeque::new();
    for (file, length) in files {
        let mut lines = BufReader::new(file.take(length));
        loop {
            let mut line = Vec::new();
            if lines.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            let Some(line) = std::str::from_utf8(&line).ok().filter(|line| query.fits_line(line)) else { continue };
            match query.last {
                Some(count) => {
                    last.push_back(Arc::from(line));
                    if last.len() > count {
                        last.pop_front();
                    }
                }
                None if take(line.into()) => (),
                None => return Ok(()),
            }
        }
    }
    last.into_iter().all(take);
    Ok(())
}
