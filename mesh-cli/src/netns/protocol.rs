//! What a lease's two ends say to each other: one message each way over a unix socket, the answer with the namespaces'
//! file descriptors. The connection itself is the lease.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};

/// The only request there is; an older or newer meshctl would send another one.
pub(super) const REQUEST: &[u8] = b"workload 1\n";

/// Larger than any answer.
const MESSAGE: usize = 4096;

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// Comes with the network namespace and, unless the fabric is root's, the user namespace.
    Granted {
        ipv4: Ipv4Addr,
        /// `None`: this kernel has no IPv6.
        ipv6: Option<Ipv6Addr>,
    },
    Refused(String),
}

/// Reads a request; false for anything else.
pub(super) fn read_request(stream: &mut UnixStream) -> io::Result<bool> {
    let mut bytes = vec![0; REQUEST.len()];
    stream.read_exact(&mut bytes)?;
    Ok(bytes == REQUEST)
}

pub(super) fn send_answer(stream: &UnixStream, answer: &Answer, namespaces: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(answer)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !namespaces.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(namespaces)) {
        return Err(io::Error::other("too many file descriptors"));
    }
    rustix::net::sendmsg(stream.as_fd(), &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

pub(super) fn read_answer(stream: &UnixStream) -> io::Result<(Answer, Vec<OwnedFd>)> {
    let mut bytes = vec![0; MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        stream.as_fd(),
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let answer = serde_json::from_slice(&bytes[..received.bytes])?;
    let rights = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    Ok((answer, rights.flatten().collect()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn answers_carry_file_descriptors() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut kept, passed) = UnixStream::pair().unwrap();
        let granted = Answer::Granted { ipv4: Ipv4Addr::new(10, 77, 0, 2), ipv6: None };
        send_answer(&here, &granted, &[passed.as_fd()]).unwrap();
        drop(passed);
        let (answer, mut fds) = read_answer(&there).unwrap();
        assert!(matches!(answer, Answer::Granted { ipv4, ipv6: None } if ipv4.octets()[3] == 2));
        let mut passed = UnixStream::from(fds.pop().unwrap());
        passed.write_all(b"x").unwrap();
        kept.read_exact(&mut [0]).unwrap();
    }

    #[test]
    fn a_closed_connection_is_an_error() {
        let (here, there) = UnixStream::pair().unwrap();
        drop(here);
        assert!(read_answer(&there).is_err());
    }
}
