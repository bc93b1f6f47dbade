//! Bytes that the kernel moves from one connection to another, without a copy of them in the proxy.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// What a pipe should hold. It stays with its 64 KiB where the user has too many others.
const SIZE: usize = 256 * 1024;
/// Pipes at a time. Each takes two descriptors, which connections need more.
const MOST: usize = 1024;

static OPEN: AtomicUsize = AtomicUsize::new(0);

/// Holds what was taken of one connection and not yet given to the other.
#[derive(Debug)]
pub(super) struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
    held: usize,
}

impl Pipe {
    /// None when the system has none to give, or there are enough.
    pub(super) fn open() -> Option<Self> {
        if OPEN.fetch_add(1, Ordering::Relaxed) < MOST
            && let Ok((out, into)) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)
        {
            let _ = fcntl_setpipe_size(&into, SIZE);
            return Some(Self { out, into, held: 0 });
        }
        OPEN.fetch_sub(1, Ordering::Relaxed);
        None
    }

    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Takes what the connection has for now, which is nothing only at its end. For an empty pipe: with a full one, it could
    /// not be told whether there is nothing to take or no room.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>, from: &TcpStream) -> Poll<io::Result<usize>> {
        debug_assert_eq!(self.held, 0);
        let filled = loop {
            ready!(from.poll_read_ready(cx))?;
            match from.try_io(Interest::READABLE, || moved(splice(from, None, &self.into, None, SIZE, FLAGS))) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                filled => break filled?,
            }
        };
        self.held = filled;
        Poll::Ready(Ok(filled))
    }

    /// Gives the connection what it takes for now, `most` bytes at most.
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>, to: &TcpStream, most: usize) -> Poll<io::Result<usize>> {
        let most = most.min(self.held);
        let drained = loop {
            ready!(to.poll_write_ready(cx))?;
            match to.try_io(Interest::WRITABLE, || moved(splice(&self.out, None, to, None, most, FLAGS))) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                drained => break drained?,
            }
        };
        self.held -= drained;
        Poll::Ready(Ok(drained))
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

const FLAGS: SpliceFlags = SpliceFlags::NONBLOCK.union(SpliceFlags::MOVE);

fn moved(result: rustix::io::Result<usize>) -> io::Result<usize> {
    result.map_err(io::Error::from)
}
