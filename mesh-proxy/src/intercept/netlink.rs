//! The netlink socket: sends one transaction, reads what the kernel says about it.

use std::io::{self, Read};

use socket2::{Domain, Protocol, Socket, Type};

use super::message::{self, Answer, Attributes, Change, Kind};
use super::{Error, TABLE};

const AF_NETLINK: i32 = 16;
const NETLINK_NETFILTER: i32 = 12;

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EOPNOTSUPP: i32 = 95;
const EPROTONOSUPPORT: i32 = 93;
const EAFNOSUPPORT: i32 = 97;

/// Makes all changes, or none.
pub(super) fn commit(changes: &[Change]) -> Result<(), Error> {
    let mut done = 0;
    for answer in exchange(&message::batch(changes))? {
        check(changes, answer)?;
        done += 1;
    }
    if done < changes.len() {
        let missing = format!("the kernel confirmed {done} of {} changes", changes.len());
        return Err(Error::Netlink(io::Error::other(missing)));
    }
    Ok(())
}

/// Whether the table has this chain.
pub(super) fn chain_exists(name: &str) -> Result<bool, Error> {
    let attributes = Attributes::new().string(1, TABLE).string(3, name);
    match exchange(&message::question(Kind::GetChain, &attributes))?.first() {
        Some(Answer { errno: 0, .. }) => Ok(true),
        Some(Answer { errno: EPERM, .. }) => Err(Error::Permission),
        // ENOENT, or no nf_tables at all.
        _ => Ok(false),
    }
}

/// The expressions of the chain's rules, each rule's by itself, in the kernel's encoding.
pub(super) fn rules(chain: &str) -> Result<Vec<Vec<u8>>, Error> {
    const EXPRESSIONS: u16 = 4;
    let attributes = Attributes::new().string(1, TABLE).string(2, chain);
    let datagrams = datagrams(NETLINK_NETFILTER, &message::question_of_all(Kind::GetRule, &attributes))?;
    let of_datagram = |datagram: &Vec<u8>| {
        let rules = message::objects(datagram, Kind::NewRule).into_iter();
        rules.filter_map(|rule| message::attribute(rule, EXPRESSIONS)).map(<[u8]>::to_vec).collect::<Vec<_>>()
    };
    Ok(datagrams.iter().flat_map(of_datagram).collect())
}

fn exchange(request: &[u8]) -> Result<Vec<Answer>, Error> {
    ask(NETLINK_NETFILTER, request)
}

/// The kernel's answers to one request of a netlink protocol.
pub(super) fn ask(protocol: i32, request: &[u8]) -> Result<Vec<Answer>, Error> {
    Ok(datagrams(protocol, request)?.iter().flat_map(|datagram| message::answers(datagram)).collect())
}

/// All that the kernel says to one request.
fn datagrams(protocol: i32, request: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
    let socket =
        Socket::new(Domain::from(AF_NETLINK), Type::RAW, Some(Protocol::from(protocol))).map_err(
            |error| match error.raw_os_error() {
                Some(EPROTONOSUPPORT | EAFNOSUPPORT) => {
                    Error::Module { what: "take firewall rules over netlink".into(), module: "nfnetlink" }
                }
                _ => Error::Netlink(error),
            },
        )?;
    socket.set_nonblocking(true).map_err(Error::Netlink)?;
    socket.send(request).map_err(Error::Netlink)?;
    // The kernel works within the send: all answers are waiting when it returns.
    let mut datagrams = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match (&socket).read(&mut buffer) {
            Ok(length) => datagrams.push(buffer[..length].to_vec()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(datagrams),
            Err(error) => return Err(Error::Netlink(error)),
        }
    }
}

/// An error number as a sentence about the change that it answers.
fn check(changes: &[Change], answer: Answer) -> Result<(), Error> {
    if answer.errno == 0 {
        return Ok(());
    }
    if answer.errno == EPERM {
        return Err(Error::Permission);
    }
    let change = usize::try_from(answer.sequence).ok().and_then(|n| n.checked_sub(1)).and_then(|n| changes.get(n));
    let (what, module) = match change {
        Some(change) => (change.what.clone(), change.module),
        // The batch itself: nobody handles nf_tables messages.
        None => ("take nf_tables rules".into(), "nf_tables"),
    };
    match answer.errno {
        // A table, a chain type or an expression that this kernel does not know.
        ENOENT | EOPNOTSUPP | EAFNOSUPPORT => Err(Error::Module { what, module }),
        _ if change.is_none() => Err(Error::Module { what, module }),
        errno => Err(Error::Refused { what, error: io::Error::from_raw_os_error(errno) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intercept::{Rules, rules};

    #[test]
    fn errors_name_the_module_that_is_missing() {
        let changes = rules::replace(&Rules::default());
        let redirect = changes.iter().position(|change| change.module == "nft_redir").unwrap();
        let sequence = u32::try_from(redirect + 1).unwrap();
        let text = check(&changes, Answer { sequence, errno: ENOENT }).unwrap_err().to_string();
        assert!(text.contains("redirect connections") && text.contains("modprobe nft_redir"), "{text}");
    }

    #[test]
    fn a_refused_batch_is_about_nf_tables_or_permission() {
        let changes = rules::delete();
        let text = check(&changes, Answer { sequence: 0, errno: EOPNOTSUPP }).unwrap_err().to_string();
        assert!(text.contains("modprobe nf_tables"), "{text}");
        let text = check(&changes, Answer { sequence: 0, errno: EPERM }).unwrap_err().to_string();
        assert!(text.contains("CAP_NET_ADMIN"), "{text}");
    }
}
