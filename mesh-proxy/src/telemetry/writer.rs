//! Lines on their way to a log: collected in memory and written in blocks by a thread of its own, so that a line costs
//! its request a copy and neither a system call nor a switch to another thread.

use std::cell::Cell;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes that may wait to be written. What is more is lost.
const MAX_PENDING: usize = 4 << 20;
/// Bytes that are not waited with, and those that the buffers keep room for.
const BLOCK: usize = 64 << 10;
/// How long the first line of a block waits for more.
const GATHER: Duration = Duration::from_millis(50);

thread_local! {
    /// Where a thread makes its lines.
    static LINE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

#[derive(Debug)]
pub(super) struct Writer {
    /// What it is called.
    log: &'static str,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Wakes the thread that writes.
    work: Condvar,
    /// Wakes those who wait until all is written.
    written: Condvar,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    pending: Vec<u8>,
    /// How often it was asked to write all, and how many of those times are done.
    asked: u64,
    done: u64,
    /// There is nobody any more who sends lines.
    ended: bool,
}

impl Writer {
    /// The thread ends with the writer, after it has written all.
    pub(super) fn start(log: &'static str, out: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let its = shared.clone();
        std::thread::Builder::new().name(log.replace(' ', "-")).spawn(move || its.write_blocks(log, out))?;
        Ok(Self { log, shared })
    }

    /// A line that is made here. Never waits for the log.
    pub(super) fn line(&self, make: impl FnOnce(&mut Vec<u8>)) {
        // A thread that ends has none any more.
        let mut buffer = LINE.try_with(Cell::take).unwrap_or_default();
        buffer.clear();
        make(&mut buffer);
        self.send(&buffer);
        let _ = LINE.try_with(|line| line.set(buffer));
    }

    /// One or more whole lines. Never waits for the log.
    pub(super) fn send(&self, lines: &[u8]) {
        let mut state = self.shared.lock();
        let (before, after) = (state.pending.len(), state.pending.len() + lines.len());
        if after > MAX_PENDING {
            drop(state);
            return self.shared.lost(lines);
        }
        state.pending.extend_from_slice(lines);
        drop(state);
        if before == 0 || (before < BLOCK && after >= BLOCK) {
            self.shared.work.notify_one();
        }
    }

    /// Lines that were lost.
    pub(super) fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Waits until what was sent before is written; false: not in this time, which the program's log says.
    pub(super) fn flush(&self, timeout: Duration) -> bool {
        let mut state = self.shared.lock();
        state.asked += 1;
        let wanted = state.asked;
        self.shared.work.notify_one();
        let waiting = self.shared.written.wait_timeout_while(state, timeout, |state| state.done < wanted);
        let (state, _) = waiting.unwrap_or_else(PoisonError::into_inner);
        let written = state.done >= wanted;
        if !written {
            tracing::warn!("the {} could not be written out in time", self.log);
        }
        written
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.work.notify_one();
    }
}

impl State {
    fn is_urgent(&self) -> bool {
        self.pending.len() >= BLOCK || self.asked > self.done || self.ended
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lost(&self, lines: &[u8]) {
        let count = lines.iter().filter(|byte| **byte == b'\n').count();
        self.dropped.fetch_add(count as u64, Ordering::Relaxed);
    }

    fn write_blocks(&self, log: &str, mut out: impl Write) {
        let mut block = Vec::new();
        let mut failing = false;
        loop {
            let (asked, ended) = self.next(&mut block);
            let result = out.write_all(&block).and_then(|()| out.flush());
            if let Err(error) = &result {
                self.lost(&block);
                if !failing {
                    tracing::warn!(%error, "the {log} cannot be written; lines are lost until it can");
                }
            }
            failing = result.is_err();
            block.clear();
            block.shrink_to(2 * BLOCK);
            let mut state = self.lock();
            state.done = asked;
            self.written.notify_all();
            if ended && state.pending.is_empty() {
                return;
            }
        }
    }

    /// Waits for a block, and gives an empty one in exchange. Returns how often it was asked for all, and whether it has ended.
    fn next(&self, block: &mut Vec<u8>) -> (u64, bool) {
        let idle = |state: &mut State| state.pending.is_empty() && !state.is_urgent();
        let mut state = self.work.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        let until = Instant::now() + GATHER;
        while !state.is_urgent() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.work.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        std::mem::swap(&mut state.pending, block);
        (state.asked, state.ended)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    /// Writes nothing before it is let.
    struct Slow {
        begun: Sender<()>,
        let_go: Receiver<io::Result<()>>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.begun.send(()).ok();
            self.let_go.recv().unwrap_or(Ok(()))?;
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_in_order_and_flushed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let writer = Writer::start("access log", file.reopen().unwrap()).unwrap();
        for i in 0..20_000 {
            writer.send(format!("{i}\n").as_bytes());
        }
        assert!(writer.flush(LONG));
        let expected: String = (0..20_000).map(|i| format!("{i}\n")).collect();
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), expected);
        assert_eq!(writer.dropped(), 0);
    }

    #[test]
    fn a_line_is_written_without_being_asked_for() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let writer = Writer::start("access log", file.reopen().unwrap()).unwrap();
        writer.send(b"one\n");
        let deadline = Instant::now() + LONG;
        while std::fs::read_to_string(file.path()).unwrap() != "one\n" {
            assert!(Instant::now() < deadline, "not written");
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_end_of_the_writer_writes_all() {
        let (begun, _) = channel();
        let (let_all_go, let_go) = channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let writer = Writer::start("access log", Slow { begun, let_go, written: written.clone() }).unwrap();
        writer.send(b"last\n");
        drop((writer, let_all_go));
        let deadline = Instant::now() + LONG;
        while *written.lock().unwrap() != b"last\n" {
            assert!(Instant::now() < deadline, "not written");
            std::thread::yield_now();
        }
    }

    #[test]
    fn who_does_not_take_lines_loses_them_and_slows_nobody() {
        let (begun, writing) = channel();
        let (go, let_go) = channel();
        let writer = Writer::start("access log", Slow { begun, let_go, written: Arc::default() }).unwrap();
        writer.send(b"first\n");
        writing.recv_timeout(LONG).unwrap();
        let lines = "line\n".repeat(1000);
        let fits = MAX_PENDING / lines.len();
        for _ in 0..fits + 2 {
            writer.send(lines.as_bytes());
        }
        assert_eq!(writer.dropped(), 2000);
        assert!(!writer.flush(Duration::from_millis(1)), "nothing is written");
        // What cannot be written is lost too, and what comes later is not.
        go.send(Err(io::Error::other("disk full"))).unwrap();
        drop(go);
        assert!(writer.flush(LONG));
        assert_eq!(writer.dropped(), 2001);
    }
}
